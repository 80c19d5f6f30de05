#!/usr/bin/env python3
"""Start LocalStack's S3 without Docker, from its PyPI packages, in an environment of its own.

    python localstack/start.py [--port 4566] [--bucket kvpersist] [--environment FOLDER] [--install-only]

The first start installs it (about a minute).  It listens on loopback only, keeps everything in memory, and stops
with Ctrl-C.  Needs Python 3.10 to 3.13 and nothing else.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description="Start LocalStack's S3 without Docker.")
    parser.add_argument("--port", type=int, default=4566)
    parser.add_argument("--bucket", default="kvpersist", help="a bucket to make at the start")
    parser.add_argument("--environment", type=Path, default=HERE / ".venv", help="where LocalStack is installed")
    parser.add_argument("--install-only", action="store_true")
    options = parser.parse_args()

    python = install(options.environment)
    if options.install_only:
        return 0
    url = f"http://127.0.0.1:{options.port}"
    environment = {
        **os.environ,
        "SERVICES": "s3",
        "STRICT_SERVICE_LOADING": "1",
        "EAGER_SERVICE_LOADING": "1",
        "GATEWAY_LISTEN": f"127.0.0.1:{options.port}",
        "DNS_ADDRESS": "0",  # no DNS server
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DISABLE_EVENTS": "1",
        "LOCALSTACK_HOST": f"127.0.0.1:{options.port}",
    }
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is stopped, whatever stops us
    server = subprocess.Popen([python, "-m", "localstack.runtime.main"], env=environment)
    try:
        wait_until_ready(server, url)
        # Any credentials do, and an unsigned PUT of a bucket is all that it takes to make one.
        urllib.request.urlopen(urllib.request.Request(f"{url}/{options.bucket}", method="PUT"), timeout=30).close()
        print(f"ready: s3://{options.bucket} at {url}", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def install(environment: Path) -> Path:
    """Make the environment where it is not there yet, and return its Python."""
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = environment / "requirements.txt"
    if not done.exists() or done.read_text() != REQUIREMENTS.read_text():
        print(f"installing LocalStack into {environment} ...", flush=True)
        venv.create(environment, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)
        done.write_text(REQUIREMENTS.read_text())
    return python


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"LocalStack stopped with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/_localstack/health", timeout=5) as answer:
                if b'"s3": "running"' in answer.read():
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    raise SystemExit("LocalStack did not become ready within a minute")


if __name__ == "__main__":
    sys.exit(main())
