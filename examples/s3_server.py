"""An S3 server to try things with: moto, in this process, on loopback, gone when the process ends.

    python examples/s3_server.py

prints a store's URL and its storage options, and serves until Ctrl-C.  Needs ``pip install "moto[server,s3]"``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server(bucket: str = "kvpersist-demo") -> Iterator[tuple[str, dict[str, Any]]]:
    """The URL of a new bucket, and the storage options that reach it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"key": "demo", "secret": "demo", "endpoint_url": f"http://{host}:{port}"}
        client = boto3.client(
            "s3",
            aws_access_key_id=options["key"],
            aws_secret_access_key=options["secret"],
            endpoint_url=options["endpoint_url"],
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        yield f"s3://{bucket}", options
    finally:
        server.stop()


if __name__ == "__main__":
    with s3_server() as (url, storage_options):
        print(url, json.dumps(storage_options), flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
