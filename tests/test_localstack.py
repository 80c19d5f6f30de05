"""What a user gets to try the stores at home: the compose file, and LocalStack without Docker."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from filelock import FileLock
from object_servers import START_LOCALSTACK, free_ports

from kvpersist import Persister

FOLDER = START_LOCALSTACK.parent
COMPOSE = Path(str(importlib.resources.files("compose"))) / "docker-compose"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as Docker Compose itself reads it, which needs no Docker."""
    command = [COMPOSE, "-f", FOLDER / "docker-compose.yml", "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower()
    config: dict[str, Any] = json.loads(done.stdout)
    return config


def test_the_compose_file_has_every_store(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"localstack", "gcs", "redis", "mongodb", "postgresql"}
    for service in compose["services"].values():
        assert re.fullmatch(r"[a-z/-]+:[0-9]+\.[0-9]+(\.[0-9]+)?", service["image"])
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["healthcheck"]["retries"] > 0
        assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"]


def test_what_the_compose_file_mounts_is_there(compose: dict[str, Any]) -> None:
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", ())]
    assert [(Path(mount["source"]), mount["target"]) for mount in mounts] == [
        (FOLDER / "init", "/etc/localstack/init/ready.d")
    ]
    assert (FOLDER / "init" / "make_bucket.sh").stat().st_mode & stat.S_IXUSR


def test_docker_compose_refuses_what_is_wrong(tmp_path: Path) -> None:
    """The check above can fail."""
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text((FOLDER / "docker-compose.yml").read_text().replace("healthcheck:", "healthchek:"))
    command = [COMPOSE, "-f", wrong, "config", "--quiet"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.fixture(scope="module", params=[signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def localstack(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with FileLock(FOLDER / ".install.lock"):
        subprocess.run([sys.executable, START_LOCALSTACK, "--install-only"], check=True)
    (port,) = free_ports(1)
    command = [sys.executable, str(START_LOCALSTACK), "--port", str(port), "--bucket", "tried-at-home"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        ready = next((line for line in lines if line.startswith("ready: ")), "")
        assert ready == f"ready: s3://tried-at-home at http://127.0.0.1:{port}\n"
        yield process, f"http://127.0.0.1:{port}"
        process.send_signal(request.param)
        assert process.wait(30) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_localstack_without_docker(localstack: tuple[Any, str]) -> None:
    _, endpoint = localstack
    options = {"key": "test", "secret": "test", "endpoint_url": endpoint}
    with Persister.from_url("s3://tried-at-home/demo", storage_options=options) as persister:
        persister.save("p", "a", 1, "ask", {"n": 1}, "completed")
        assert persister.load("p", "a")["state"]["n"] == 1


def test_the_init_script_makes_the_bucket_once(localstack: tuple[Any, str], tmp_path: Path) -> None:
    _, endpoint = localstack
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    # awslocal is in LocalStack's image only; this one knows the two commands that the script uses.
    awslocal = tmp_path / "awslocal"
    awslocal.write_text(
        f"#!{sys.executable}\n"
        "import sys, boto3, botocore.exceptions\n"
        f"client = boto3.client('s3', endpoint_url={endpoint!r}, aws_access_key_id='test',"
        " aws_secret_access_key='test', region_name='us-east-1')\n"
        "service, operation, option, bucket = sys.argv[1:]\n"
        "assert (service, option) == ('s3api', '--bucket')\n"
        "try:\n"
        "    {'head-bucket': client.head_bucket, 'create-bucket': client.create_bucket}[operation](Bucket=bucket)\n"
        "except botocore.exceptions.ClientError as error:\n"
        "    sys.exit(str(error))\n"
    )
    awslocal.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run([FOLDER / "init" / "make_bucket.sh"], env=environment, check=True)
    assert "kvpersist" in {each["Name"] for each in client.list_buckets()["Buckets"]}


def test_the_health_check_of_localstack_needs_the_bucket(localstack: tuple[Any, str], compose: dict[str, Any]) -> None:
    _, endpoint = localstack
    *command, url = compose["services"]["localstack"]["healthcheck"]["test"][1:]
    assert command == ["curl", "-fs"]  # fails on what is no success
    there, absent = (url.replace("http://localhost:4566/kvpersist", f"{endpoint}/{name}") for name in _NAMES)
    assert requests.get(there, timeout=10).status_code == 200
    assert requests.get(absent, timeout=10).status_code == 404


_NAMES = ("tried-at-home", "not-made-yet")
