"""The stores of the soak: the servers of the tests, set up so that what they acknowledge survives what is done to them.

A fault is a function that does something and, unless that is over by itself, undoes it before it returns.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import redis

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import http_proxy
import object_servers
import servers
from http_proxy import HTTPProxy
from tcp_proxy import TCPProxy

Fault = Callable[[Random], None]

TIMEOUT = 2
"""Seconds that a worker waits for an answer, where the store has such an option."""


@dataclass
class Store:
    """Where the workers save, and what can be done to it."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    connections: Callable[[], int] | None = None
    """How many connections the server has."""
    tidy: Callable[[], None] = lambda: None
    """Called where a round is over."""
    one_process: bool = False
    """Whether nothing outlives the process."""


def _of_server(server: servers.Server, name: str = "server") -> dict[str, Fault]:
    def killed(random: Random) -> None:
        server.kill()
        time.sleep(random.uniform(0, 1))
        server.start()

    def stopped(random: Random) -> None:
        server.pause()
        time.sleep(random.uniform(0.1, 2 * TIMEOUT))
        server.resume()

    return {f"{name} killed": killed, f"{name} stopped": stopped}


def _of_tcp(proxy: TCPProxy) -> dict[str, Fault]:
    def silence(random: Random) -> None:
        proxy.inject("silence")
        time.sleep(random.uniform(0.1, 2 * TIMEOUT))
        proxy.inject(None)

    return {
        "connections cut": lambda _: proxy.cut(),
        "request lost": lambda _: proxy.inject("cut before"),
        "answer lost": lambda _: proxy.inject("cut after"),
        "silence": silence,
    }


def _of_http(proxy: HTTPProxy, busy: http_proxy.Fault) -> dict[str, Fault]:
    async def silent(proxy: HTTPProxy, *_: Any) -> None:
        await asyncio.sleep(2 * TIMEOUT)

    def some(fault: http_proxy.Fault, most: int = 3) -> Fault:
        return lambda random: proxy.faults.extend([fault] * random.randint(1, most))

    return {
        "request lost": some(http_proxy.reset),
        "answer lost": some(http_proxy.lose_reply),
        "answer cut": some(http_proxy.cut),
        "busy": some(busy, 10),
        "silence": some(silent),
    }


@contextmanager
def memory() -> Iterator[Store]:
    yield Store("memory://soak", one_process=True)


@contextmanager
def file() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        yield Store(f"file://{folder}/store")


@contextmanager
def sqlite() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        yield Store(f"sqlite://{folder}/store.db")


@contextmanager
def redis_server(*arguments: str) -> Iterator[Store]:
    server = servers.new_redis(*arguments)

    def connections() -> int:
        with redis.Redis(port=server.port) as client:
            return len(client.client_list()) - 1

    with TCPProxy(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}?timeout={TIMEOUT}"
        yield Store(url, faults={**_of_server(server), **_of_tcp(proxy)}, connections=connections)


DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@contextmanager
def redis_cluster() -> Iterator[Store]:
    """Three masters without replicas.  They tell clients their own addresses, so no proxy stands before them."""
    nodes = servers.new_redis_cluster(*DURABLE)
    faults: dict[str, Fault] = {}
    for what in ("killed", "stopped"):

        def fault(random: Random, what: str = what) -> None:
            _of_server(random.choice(nodes))[f"server {what}"](random)
            servers.await_cluster(nodes)

        faults[f"node {what}"] = fault

    def connections() -> int:
        total = 0
        for node in nodes:
            with redis.Redis(port=node.port) as client:
                total += len(client.client_list()) - 1
        return total

    addresses = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    yield Store(f"redis+cluster://{addresses}?timeout={TIMEOUT}", faults=faults, connections=connections)


@contextmanager
def postgresql() -> Iterator[Store]:
    """fsync is off: that is for a crash of the machine, and only the server is killed here."""
    server = servers.new_postgresql()

    def connections() -> int:
        with psycopg.connect(f"postgresql://postgres@127.0.0.1:{server.port}/postgres") as connection:
            statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'soak'"
            row = connection.execute(statement).fetchone()
            assert row is not None
            count: int = row[0]
            return count

    with TCPProxy(server.port) as proxy:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?application_name=soak&timeout={TIMEOUT}"
        yield Store(url, faults={**_of_server(server), **_of_tcp(proxy)}, connections=connections)


@contextmanager
def mongodb() -> Iterator[Store]:
    """The stand-in, with a sync at each commit."""
    server = servers.new_mongodb()
    with TCPProxy(server.port) as proxy:
        url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&timeout={TIMEOUT}"
        yield Store(url, faults={**_of_server(server), **_of_tcp(proxy)})


@contextmanager
def s3() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        at, command = object_servers.seaweedfs_in(folder)
        server = servers.Server(command, ready=lambda _: object_servers.make_bucket(at), not_yet=(Exception,))
        with HTTPProxy(at.endpoint).running() as proxy:
            options = at.through(proxy.url)
            options["config_kwargs"] = {
                "read_timeout": TIMEOUT,
                "connect_timeout": TIMEOUT,
                "retries": {"max_attempts": 1},
            }
            faults = {**_of_server(server), **_of_http(proxy, http_proxy.answer(503, "SlowDown"))}
            yield Store(f"{at.base}/soak", {"storage_options": options}, faults, tidy=proxy.requests.clear)


@contextmanager
def gcs() -> Iterator[Store]:
    """The fake keeps all in memory, and so is never killed."""
    at, command, ready = object_servers.fake_gcs_server()
    server = servers.Server(command, ready=lambda _: ready(), not_yet=(Exception,))
    with HTTPProxy(at.endpoint).running() as proxy:
        faults = {**_of_server(server), **_of_http(proxy, http_proxy.answer(503))}
        del faults["server killed"]
        yield Store(f"{at.base}/soak", {"storage_options": at.through(proxy.url)}, faults, tidy=proxy.requests.clear)


STORES: dict[str, Callable[[], Any]] = {
    "memory": memory,
    "file": file,
    "sqlite": sqlite,
    "redis": lambda: redis_server(*DURABLE),
    "redis-cluster": redis_cluster,
    "postgresql": postgresql,
    "mongodb": mongodb,
    "s3": s3,
    "gcs": gcs,
}


@contextmanager
def forgetful() -> Iterator[Store]:
    """A Redis that loses all when it is killed, so that a soak of it must fail: the tests see to that."""
    with redis_server() as store:
        store.faults = {"server killed": store.faults["server killed"]}
        yield store


FORGETFUL: dict[str, Callable[[], Any]] = {"forgetful": forgetful}

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
