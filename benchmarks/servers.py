"""Redis, PostgreSQL and MongoDB on loopback: against the bare statement, and against Burr's own persister there.

For each, the store is the protocol alone (bytes in, bytes out), as the bare statement is; save and load are the
persister whole, with the encoding, the checks and the checksum of a record.

The servers are those of the tests.  PostgreSQL runs with fsync off, so that the disk does not hide what is measured.
MongoDB is a stand-in written in Python, so that only the round trips it saves can be seen, not MongoDB's speed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import redis
import redis.asyncio
from burr.core.persistence import SQLitePersister
from burr.integrations.persisters.b_asyncpg import AsyncPostgreSQLPersister
from burr.integrations.persisters.b_psycopg2 import PostgreSQLPersister
from burr.integrations.persisters.b_pymongo import MongoDBBasePersister
from burr.integrations.persisters.b_redis import AsyncRedisBasePersister, RedisBasePersister

from kvpersist import AsyncPersister, AsyncStore, Persister, Store

from .core import state_of
from .pairs import compare, heading, row

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import servers

SIZES = [("1 KB", 1000, 40), ("1 MB", 1_000_000, 4)]
DEPTHS = [100, 10_000]


class Loop:
    """Runs what may be a coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def __call__(self, result: Any) -> Any:
        return self._loop.run_until_complete(result) if hasattr(result, "__await__") else result

    def many(self, function: Callable[[], Any], asynchronous: bool, times: int) -> Callable[[], Any]:
        """A function that calls another several times, in one task if it is async."""
        if not asynchronous:
            return lambda: [function() for _ in range(times)]

        async def in_turn() -> None:
            for _ in range(times):
                await function()

        return lambda: self._loop.run_until_complete(in_turn())


class Redis:
    name, aims = "Redis", (1.3, 1.5)

    def __init__(self) -> None:
        self.url = servers.redis_url()
        self.port = int(self.url.rpartition(":")[2])

    def fresh(self) -> tuple[str, dict[str, Any]]:
        with redis.Redis(port=self.port) as client:
            client.flushall()
        return self.url, {}

    def burr(self, asynchronous: bool) -> Any:
        kind: Any = AsyncRedisBasePersister if asynchronous else RedisBasePersister
        return kind.from_values("127.0.0.1", self.port, 0)

    def bare(self, asynchronous: bool, payload: bytes) -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
        client: Any = (redis.asyncio if asynchronous else redis).Redis(port=self.port)
        numbers = count()
        return (
            client,
            lambda: client.set(f"bare/p/a/{next(numbers):019d}", payload),
            lambda: client.get("bare/p/a/0000000000000000000"),
        )


class PostgreSQL:
    name, aims = "PostgreSQL", (1.3, 1.2)

    def __init__(self) -> None:
        self.url = servers.postgresql_url()
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])

    def fresh(self) -> tuple[str, dict[str, Any]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS kvpersist, bare, burr_state")
            connection.execute('CREATE TABLE bare (key text COLLATE "C" PRIMARY KEY, value bytea NOT NULL)')
            connection.execute("ALTER TABLE bare ALTER COLUMN value SET STORAGE EXTERNAL")
        return self.url, {}

    def burr(self, asynchronous: bool) -> Any:
        kind: Any = AsyncPostgreSQLPersister if asynchronous else PostgreSQLPersister
        return kind.from_values("postgres", "postgres", "", "127.0.0.1", self.port)

    def bare(self, asynchronous: bool, payload: bytes) -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
        kind: Any = psycopg.AsyncConnection if asynchronous else psycopg.Connection
        client = kind.connect(self.url, autocommit=True)
        numbers = count()
        insert, select = "INSERT INTO bare VALUES (%s, %b)", "SELECT value FROM bare WHERE key = %s"

        def write() -> Any:
            return opened[0].execute(insert, (f"p/a/{next(numbers):019d}", payload), prepare=True)

        def read() -> Any:
            return opened[0].execute(select, ("p/a/0000000000000000000",), prepare=True, binary=True).fetchone()

        async def read_async() -> Any:
            cursor = await opened[0].execute(select, ("p/a/0000000000000000000",), prepare=True, binary=True)
            return await cursor.fetchone()

        opened = [client]
        return opened, write, read_async if asynchronous else read


class MongoDB:
    name, aims = "MongoDB (stand-in)", (None, None)

    def __init__(self) -> None:
        self.url = servers.mongodb_url()

    def fresh(self) -> tuple[str, dict[str, Any]]:
        import pymongo

        with pymongo.MongoClient(self.url) as client:
            client.drop_database(servers.RUN)
        return self.url, {"database": servers.RUN}

    def burr(self, asynchronous: bool) -> Any:
        assert not asynchronous  # Burr has none
        return MongoDBBasePersister.from_values(self.url, servers.RUN, "burr")


def main() -> None:
    heading("Servers", "apache-burr", "redis", "hiredis", "psycopg", "psycopg2-binary", "asyncpg", "pymongo")
    warnings.simplefilter("ignore")
    with servers._at_the_end:
        loop = Loop()
        for store in (Redis(), PostgreSQL()):
            for asynchronous in (False, True):
                for depth in DEPTHS:
                    for name, size, times in SIZES:
                        cell(store, loop, asynchronous, depth, name, size, times, pairs=15)
        cell(MongoDB(), loop, False, 100, *SIZES[0], pairs=7)
        listing()


def cell(
    store: Any, loop: Loop, asynchronous: bool, depth: int, size_name: str, size: int, times: int, pairs: int
) -> None:
    """Save and load latest in an app of a depth, with states of a size."""
    url, options = store.fresh()
    state = state_of(size)
    small = state_of(1000)
    what = f"{store.name} {'async' if asynchronous else 'sync'}, {size_name}, {depth:,} deep"
    ours = (AsyncPersister if asynchronous else Persister).from_url(url, **options)
    burr = loop(store.burr(asynchronous))
    if hasattr(burr, "initialize"):
        loop(burr.initialize())
    for number in range(depth - 1):
        loop(ours.save("p", "a", number, "step", small, "completed"))
        loop(burr.save("p", "a", number, "step", small, "completed"))
    our_numbers, burr_numbers = count(depth), count(depth)

    def save() -> Any:
        return ours.save("p", "a", next(our_numbers), "step", state, "completed")

    def burr_save() -> Any:
        return burr.save("p", "a", next(burr_numbers), "step", state, "completed")

    def load() -> Any:
        return ours.load("p", "a")

    def burr_load() -> Any:
        return burr.load("p", "a")

    loop(save()), loop(burr_save())

    def measured(label: str, a: Any, b: Any, aim: float | None) -> None:
        ratio = compare(loop.many(a, asynchronous, times), loop.many(b, asynchronous, times), pairs=pairs, calls=1)
        row(f"{what}: {label}", ratio._replace(a_us=ratio.a_us / times, b_us=ratio.b_us / times), aim)

    measured("load : Burr", load, burr_load, 1)
    if hasattr(store, "bare"):
        payload = json.dumps(state.get_all()).encode()
        keys = AsyncStore if asynchronous else Store
        protocol = keys.from_url(url, **options)

        def put() -> Any:
            return protocol.put(f"n/p/a/{2**63 - 1 - next(our_numbers):019d}", payload, "create")

        def newest() -> Any:
            return protocol.scan("n/p/a/", limit=1, values=True)

        client, write, read = store.bare(asynchronous, payload)
        if isinstance(client, list) and asynchronous:
            client[0] = loop(client[0])
        loop(write()), loop(put())
        measured("store, newest value : bare read", newest, read, store.aims[1])
        measured("store, create : bare write", put, write, store.aims[0])
        measured("load : bare read", load, read, store.aims[1])
        measured("save : bare write", save, write, store.aims[0])
        loop(protocol.close())
        client = client[0] if isinstance(client, list) else client
        loop(client.aclose() if hasattr(client, "aclose") else client.close())
    measured("save : Burr", save, burr_save, 1)
    loop(ours.cleanup())
    if store.name != MongoDB.name:  # there it raises
        loop(burr.cleanup())


def listing() -> None:
    """The apps of a partition: 10 apps of 10,000 steps each."""
    small = state_of(100)
    postgresql = PostgreSQL()
    postgresql.fresh()
    burr = postgresql.burr(False)
    burr.initialize()
    burr.save("p", "a", -1, "step", small, "completed")
    with psycopg.connect(postgresql.url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO burr_state (partition_key, app_id, sequence_id, position, status, state) "
            "SELECT partition_key, 'app' || app, step, position, status, state "
            "FROM burr_state, generate_series(0, 9) AS app, generate_series(0, 9999) AS step"
        )
    with tempfile.TemporaryDirectory() as folder:
        burr_sqlite = SQLitePersister(f"{folder}/burr.db")
        burr_sqlite.initialize()
        state = json.dumps(small.serialize())
        burr_sqlite.connection.executemany(
            "INSERT INTO burr_state (partition_key, app_id, sequence_id, position, status, state) "
            "VALUES ('p', ?, ?, 'step', 'completed', ?)",
            ((f"app{app}", step, state) for app in range(10) for step in range(10_000)),
        )
        burr_sqlite.connection.commit()
        for store in (Redis(), postgresql):
            if store is not postgresql:
                store.fresh()
            with Persister.from_url(store.url) as ours:
                for app in range(10):
                    for step in range(10_000):
                        ours.save("p", f"app{app}", step, "step", small, "completed")
                assert ours.list_app_ids("p") == [f"app{app}" for app in range(10)]
                for name, theirs in (("PostgreSQL", burr), ("SQLite", burr_sqlite)):
                    ratio = compare(
                        lambda ours=ours: ours.list_app_ids("p"),  # type: ignore[misc]
                        lambda theirs=theirs: theirs.list_app_ids("p"),  # type: ignore[misc]
                        pairs=9,
                        calls=3,
                    )
                    row(f"{store.name} list_app_ids, 10 x 10,000 : Burr's {name}", ratio, 0.01)
        burr_sqlite.cleanup()
    burr.cleanup()


if __name__ == "__main__":
    main()
