"""The classes of Burr by name: their signatures, what may be handed in, and histories that Burr's own have begun."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import pickle
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiosqlite
import asyncpg
import psycopg
import psycopg2
import psycopg_pool
import pymongo
import pytest
import redis
import redis.asyncio
import servers
from burr.core import ApplicationBuilder, State, action, default
from burr.core import persistence as burr_persistence
from burr.integrations.persisters import b_aiosqlite, b_asyncpg, b_psycopg2, b_pymongo, b_redis
from burr.tracking import LocalTrackingClient as BurrTrackingClient
from object_servers import ObjectServer, object_servers

import kvpersist
from kvpersist import ClosedError, ConflictError, OptionError, StoreError
from kvpersist.testing import Face

__all__ = ["object_servers"]

# Signatures


def sample(values: str) -> inspect.Signature:
    """The signature of what is written as a function's parameters."""
    scope: dict[str, Any] = {}
    exec(f"def function({values}): pass", scope)
    return inspect.signature(scope["function"])


VALUES = "db_path, table_name='burr_state', serde_kwargs=None, connect_kwargs=None"
POSTGRESQL = "db_name, user, password, host, port, table_name='burr_state'"
REDIS = "host, port, db, password=None, serde_kwargs=None, redis_client_kwargs=None, namespace=None"
MONGODB = "db_name='mydatabase', collection_name='mystates', serde_kwargs=None"
SAVE = "partition_key, app_id, sequence_id, position, state, status"
LOAD = "partition_key, app_id, sequence_id=None"

# The constructors and methods of Burr's documented persisters, without self and cls.
DOCUMENTED = {
    "SQLitePersister": {
        "__init__": f"{VALUES}, connection=None",
        "from_values": VALUES,
        "create_table_if_not_exists": "table_name",
    },
    "SQLLitePersister": {"__init__": f"{VALUES}, connection=None"},
    "AsyncSQLitePersister": {
        "__init__": "connection, table_name='burr_state', serde_kwargs=None",
        "from_values": VALUES,
        "create_table_if_not_exists": "table_name",
        "close": "",
    },
    "PostgreSQLPersister": {
        "__init__": "connection, table_name='burr_state', serde_kwargs=None",
        "from_values": POSTGRESQL,
        "create_table": "table_name",
    },
    "AsyncPostgreSQLPersister": {
        "__init__": "connection, table_name='burr_state', serde_kwargs=None",
        "from_values": f"{POSTGRESQL}, use_pool=False",
        "create_table": "table_name",
    },
    "RedisBasePersister": {
        "__init__": "connection, serde_kwargs=None, namespace=None",
        "from_values": REDIS,
        "create_key": "app_id, partition_key, sequence_id",
    },
    "RedisPersister": {"__init__": REDIS, "create_key": "app_id, partition_key, sequence_id"},
    "AsyncRedisBasePersister": {
        "__init__": "connection, serde_kwargs=None, namespace=None",
        "from_values": REDIS,
        "create_key": "app_id, partition_key, sequence_id",
    },
    "MongoDBBasePersister": {
        "__init__": f"client, {MONGODB}",
        "from_values": f"uri='mongodb://localhost:27017', {MONGODB}, mongo_client_kwargs=None",
    },
}
EVERYWHERE = {
    "from_config": "config",
    "initialize": "",
    "is_initialized": "",
    "list_app_ids": "partition_key",
    "load": LOAD,
    "save": SAVE,
    "set_serde_kwargs": "serde_kwargs",
    "cleanup": "",
    "copy": "",
}


@pytest.mark.parametrize(
    ("name", "method", "documented"),
    [
        (name, method, values)
        for name, methods in DOCUMENTED.items()
        for method, values in (EVERYWHERE | methods).items()
    ],
)
def test_signatures_are_those_of_burrs_documents(name: str, method: str, documented: str) -> None:
    ours = list(inspect.signature(getattr(getattr(kvpersist, name), method)).parameters.values())
    if ours and ours[0].name == "self":
        del ours[0]
    for mine, wanted in zip(ours, list(sample(documented).parameters.values()), strict=False):
        assert mine.name == wanted.name
        assert mine.kind is wanted.kind
        if wanted.default is not inspect.Parameter.empty:
            assert mine.default == wanted.default
    more = ours[len(sample(documented).parameters) :]
    assert len(ours) >= len(sample(documented).parameters)
    for each in more:
        assert each.kind in (each.KEYWORD_ONLY, each.VAR_KEYWORD) or each.default is not each.empty


BURRS = {
    "SQLitePersister": burr_persistence.SQLitePersister,
    "SQLLitePersister": burr_persistence.SQLLitePersister,
    "InMemoryPersister": burr_persistence.InMemoryPersister,
    "AsyncInMemoryPersister": burr_persistence.AsyncInMemoryPersister,
    "AsyncSQLitePersister": b_aiosqlite.AsyncSQLitePersister,
    "PostgreSQLPersister": b_psycopg2.PostgreSQLPersister,
    "AsyncPostgreSQLPersister": b_asyncpg.AsyncPostgreSQLPersister,
    "RedisBasePersister": b_redis.RedisBasePersister,
    "RedisPersister": b_redis.RedisPersister,
    "AsyncRedisBasePersister": b_redis.AsyncRedisBasePersister,
    "MongoDBBasePersister": b_pymongo.MongoDBBasePersister,
    "LocalTrackingClient": BurrTrackingClient,
}


@pytest.mark.parametrize("name", BURRS)
def test_what_burrs_class_takes_by_keyword_ours_takes_too(name: str) -> None:
    burrs, ours = BURRS[name], getattr(kvpersist, name)
    for method, function in inspect.getmembers(burrs, callable):
        if (method.startswith("_") and method != "__init__") or method == "create_pool":
            continue  # a pool belongs to a persister here, not to the class
        theirs = inspect.signature(function).parameters.values()
        mine = inspect.signature(getattr(ours, method)).parameters
        takes_any = any(each.kind is each.VAR_KEYWORD for each in mine.values())
        missing = {each.name for each in theirs if each.kind is each.POSITIONAL_OR_KEYWORD} - {"self"} - mine.keys()
        assert not missing or takes_any, method
        assert inspect.iscoroutinefunction(function) == inspect.iscoroutinefunction(getattr(ours, method)), method


MakeBurrs = Callable[[str, dict[str, Any]], Any]


@pytest.fixture
def burr_made() -> Iterator[MakeBurrs]:
    """Makes persisters of Burr, and closes them in the end."""
    with contextlib.ExitStack() as stack:

        def make(name: str, values: dict[str, Any]) -> Any:
            # They close themselves in whichever thread collects them.
            more = {"connect_kwargs": {"check_same_thread": False}} if name == "SQLitePersister" else {}
            made = BURRS[name].from_values(**values, **more)
            stack.callback((made.connection if hasattr(made, "connection") else made.client).close)
            return made

        yield make


def test_every_class_has_an_async_twin() -> None:
    names = {name for name in kvpersist.__all__ if name.endswith("Persister") and name != "SQLLitePersister"}
    sync = {name for name in names if not name.startswith("Async")}
    assert {f"Async{name}" for name in sync} == names - sync
    for name in sync:
        assert issubclass(getattr(kvpersist, name), burr_persistence.BaseStatePersister)
        assert issubclass(getattr(kvpersist, f"Async{name}"), burr_persistence.AsyncBaseStatePersister)


# Making them


def postgresql_values() -> dict[str, Any]:
    parts = urlsplit(servers.postgresql_url())
    return {
        "db_name": parts.path.strip("/"),
        "user": parts.username,
        "password": parts.password or "not-asked-for",
        "host": parts.hostname,
        "port": parts.port,
        "table_name": servers.unique(),
    }


@pytest.fixture(scope="session", autouse=True)
def no_table_is_left(no_server_is_left_running: None) -> Iterator[None]:
    yield
    if servers.postgresql_url.cache_info().currsize:
        with psycopg.connect(servers.postgresql_url()) as connection:
            names = connection.execute("SELECT tablename FROM pg_tables WHERE tablename ^@ %s", (servers.RUN,))
            for (name,) in names.fetchall():
                connection.execute(f"DROP TABLE IF EXISTS {name}")


def redis_values() -> dict[str, Any]:
    parts = urlsplit(servers.redis_url())
    return {"host": parts.hostname, "port": parts.port, "db": 0, "namespace": servers.unique()}


def mongodb_values() -> dict[str, Any]:
    return {"uri": servers.mongodb_url(), "db_name": servers.RUN, "collection_name": servers.unique()}


VALUES_OF: dict[str, Callable[[Path], dict[str, Any]]] = {
    "SQLitePersister": lambda folder: {"db_path": str(folder / "a b%?#.db"), "table_name": 'odd "name'},
    "PostgreSQLPersister": lambda folder: postgresql_values(),
    "RedisBasePersister": lambda folder: redis_values(),
    "RedisPersister": lambda folder: redis_values(),
    "MongoDBBasePersister": lambda folder: mongodb_values(),
    "MongoDBPersister": lambda folder: mongodb_values(),
    "FilePersister": lambda folder: {"path": folder / "state"},
    "InMemoryPersister": lambda folder: {},
}


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(request.param == "async")
    yield face
    face.close()


def class_of(face: Face, name: str) -> Any:
    return getattr(kvpersist, f"Async{name}" if face.asynchronous else name)


@pytest.mark.parametrize("name", VALUES_OF)
def test_made_from_values_from_config_by_copying_and_by_pickling(face: Face, name: str, tmp_path: Path) -> None:
    kind, values = class_of(face, name), VALUES_OF[name](tmp_path)
    made = kind.from_values(**values)
    persister = face.adopt(made)
    persister.initialize()
    assert persister.is_initialized()
    state = State({"n": 1, "when": b"exact"})
    persister.save("p", "app", 0, "step", state, "completed")
    others = [made.copy(), pickle.loads(pickle.dumps(made))]
    if name != "InMemoryPersister":
        others.append(kind.from_config(values))
    for each in others:
        other = face.adopt(each)
        assert type(each) is kind
        assert other.load("p", "app")["state"].get_all() == state.get_all()
        assert other.list_app_ids("p") == ["app"]
        for attribute in values.keys() & {"table_name", "namespace", "db_path", "serde_kwargs"}:
            assert getattr(each, attribute) == values[attribute]
    with pytest.raises(ConflictError):
        persister.save("p", "app", 0, "step", State({"n": 2}), "completed")
    persister.set_serde_kwargs({"serializer": "msgpack"})
    persister.save("p", "app", 1, "step", state, "completed")
    assert [header.serializer for header in persister.history("p", "app")] == ["msgpack", "json"]
    persister.cleanup()
    with pytest.raises(ClosedError):
        persister.load("p", "app")


@pytest.mark.parametrize(("name", "server_name"), [("S3Persister", "moto"), ("GCSPersister", "gcs")])
def test_a_bucket_by_name(
    face: Face, name: str, server_name: str, object_servers: Callable[[str], ObjectServer]
) -> None:
    server = object_servers(server_name)
    bucket = f"new-{uuid.uuid4().hex[:12]}"
    values = {"bucket": bucket, "prefix": "some/folder", "storage_options": server.storage_options}
    values["create_bucket"] = True
    made = class_of(face, name).from_values(**values)
    persister = face.adopt(made)
    persister.initialize()
    persister.save("p", "app", 0, "step", State({"n": 1}), "completed")
    with pytest.raises(ConflictError):
        persister.save("p", "app", 0, "step", State({"n": 2}), "completed")
    scheme = server.base.partition("://")[0]
    with kvpersist.Persister.from_url(
        f"{scheme}://{bucket}/some/folder", storage_options=server.storage_options
    ) as other:
        assert other.load("p", "app")["state"]["n"] == 1
    for each in (pickle.loads(pickle.dumps(made)), class_of(face, name).from_config(values)):  # the bucket is there
        again = face.adopt(each)
        again.initialize()
        assert again.load("p", "app")["state"]["n"] == 1


def test_a_filesystem_by_name(face: Face, tmp_path: Path) -> None:
    kind, url = class_of(face, "FsspecPersister"), f"fsspec+file://{tmp_path}/states"
    persister = face.adopt(kind(url, {"serializer": "msgpack"}, storage_options={}, on_conflict="overwrite"))
    assert persister.serde_kwargs == {"serializer": "msgpack"}
    for n in (1, 2):
        persister.save("p", "app", 0, "step", State({"n": n}), "completed")
    assert persister.load("p", "app")["state"]["n"] == 2
    with pytest.raises(OptionError, match="cannot create a record only where there is none"):
        kind(url)


def test_a_store_in_memory_by_sqlites_name() -> None:
    with kvpersist.SQLitePersister(":memory:") as persister:
        persister.save("p", "app", 0, "step", State({"n": 1}), "completed")
        assert persister.load("p", "app")["state"]["n"] == 1


def test_mongodb_by_its_address(face: Face, tmp_path: Path) -> None:
    persister = face.adopt(class_of(face, "MongoDBPersister")(**mongodb_values()))
    persister.save("p", "app", 0, "step", State({"n": 1}), "completed")
    assert persister.load("p", "app")["state"]["n"] == 1


@pytest.mark.parametrize("name", ["SQLitePersister", "PostgreSQLPersister"])
def test_from_values_of_the_async_classes_can_be_awaited_or_entered(name: str, tmp_path: Path) -> None:
    values = VALUES_OF[name](tmp_path)
    kind = getattr(kvpersist, f"Async{name}")

    async def main() -> None:
        async with kind.from_values(**values) as persister:
            await persister.save("p", "app", 0, "step", State({"n": 1}), "completed")
        persister = await kind.from_config(values)
        assert (await persister.load("p", "app"))["state"]["n"] == 1
        await persister.close()

    asyncio.run(main())


def test_tables_are_made_as_in_burr(face: Face, tmp_path: Path) -> None:
    sqlite = face.adopt(class_of(face, "SQLitePersister").from_values(str(tmp_path / "a.db"), "steps"))
    sqlite.create_table_if_not_exists("steps")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [
            ("steps_kvpersist",)
        ]
    with pytest.raises(OptionError, match="make another"):
        sqlite.create_table_if_not_exists("others")
    values = postgresql_values()
    values["table_name"] = f"{servers.RUN}.{values['table_name']}"
    postgresql = face.adopt(class_of(face, "PostgreSQLPersister").from_values(**values))
    postgresql.create_table(values["table_name"])
    with psycopg.connect(servers.postgresql_url()) as connection:
        (found,) = connection.execute("SELECT to_regclass(%s)::text", (values["table_name"] + "_kvpersist",)).fetchone()
    assert found == values["table_name"] + "_kvpersist"


def test_options_that_mean_nothing_are_errors(tmp_path: Path) -> None:
    path = str(tmp_path / "a.db")
    assert kvpersist.SQLitePersister(path, connect_kwargs={"check_same_thread": False, "timeout": 5}).copy()
    with pytest.raises(OptionError, match="did you mean 'timeout'"):
        kvpersist.SQLitePersister(path, connect_kwargs={"timeuot": 5})
    with pytest.raises(OptionError, match="did you mean 'max_size'"):
        kvpersist.AsyncPostgreSQLPersister.from_values(**postgresql_values(), use_pool=True, maxsize=3)
    with pytest.raises(OptionError, match="connection= or pool="):
        kvpersist.AsyncPostgreSQLPersister()


def test_no_password_is_shown() -> None:
    secret = "p:a@s/s?w#o%rd"
    for made in (
        kvpersist.PostgreSQLPersister.from_values("db", "me", secret, "127.0.0.1", 1),
        kvpersist.RedisBasePersister.from_values("127.0.0.1", 1, 0, secret),
        kvpersist.RedisPersister("127.0.0.1", 1, 0, secret, redis_client_kwargs={"username": "me"}),
    ):
        with made, pytest.raises(StoreError) as error:
            made.load("p", "app")
        assert secret not in f"{made!r} {error.value} {error.value.__cause__!r}"
        assert "***" in repr(made)
        assert made._history.backend.options.get("password") is None


def test_what_is_made_in_redis_starts_with_its_key() -> None:
    values = redis_values()
    with kvpersist.RedisBasePersister.from_values(**values) as persister:
        persister.save("p", "app", 3, "step", State({}), "completed")
        found = persister._history.backend
        (key,) = (key for key, _ in kvpersist.Store(found).scan(f"{values['namespace'].lower()}/").entries)
        assert key == persister.create_key("app", "p", 3) + "step"


# Handing in a connection


def sqlite_connection(folder: Path) -> Any:
    return sqlite3.connect(folder / "given.db", check_same_thread=False)


def redis_client(_: Path) -> Any:
    return redis.Redis.from_url(servers.redis_url(), decode_responses=True)


def psycopg_pool_of(folder: Path) -> Any:
    return psycopg_pool.ConnectionPool(servers.postgresql_url(), kwargs={"autocommit": True}, open=True)


GIVEN: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any]]] = {
    "sqlite3": (sqlite_connection, lambda given: kvpersist.SQLitePersister("unused", connection=given)),
    "psycopg2": (
        lambda _: psycopg2.connect(servers.postgresql_url()),
        lambda given: kvpersist.PostgreSQLPersister(given, f"{servers.RUN}.{servers.unique()}"),
    ),
    "psycopg": (
        lambda _: psycopg.connect(servers.postgresql_url(), autocommit=True),
        lambda given: kvpersist.PostgreSQLPersister(given, f"{servers.RUN}.{servers.unique()}"),
    ),
    "psycopg_pool": (
        psycopg_pool_of,
        lambda given: kvpersist.PostgreSQLPersister(given, f"{servers.RUN}.{servers.unique()}"),
    ),
    "redis": (redis_client, lambda given: kvpersist.RedisBasePersister(given, namespace=servers.unique())),
    "pymongo": (
        lambda _: pymongo.MongoClient(servers.mongodb_url()),
        lambda given: kvpersist.MongoDBBasePersister(given, servers.RUN, servers.unique()),
    ),
}


USES: dict[str, Callable[[Any], Any]] = {
    "sqlite3": lambda given: given.execute("SELECT 1"),
    "psycopg2": lambda given: given.cursor(),
    "psycopg": lambda given: given.execute("SELECT 1"),
    "psycopg_pool": lambda given: given.getconn(),
    "pymongo": lambda given: given.admin.command("ping"),
}
CLOSED = (
    sqlite3.ProgrammingError,
    psycopg2.InterfaceError,
    psycopg.OperationalError,
    psycopg_pool.PoolClosed,
    pymongo.errors.InvalidOperation,
)


@pytest.mark.parametrize("driver", GIVEN)
def test_a_connection_is_handed_in(driver: str, tmp_path: Path) -> None:
    connect, make = GIVEN[driver]
    given = connect(tmp_path)
    with make(given) as persister:
        persister.save("p", "app", 0, "step", State({"n": 1}), "completed")
        assert persister.copy().load("p", "app")["state"]["n"] == 1
        assert persister.load("p", "other") is None
        assert persister.list_app_ids("p") == ["app"]
        if driver == "sqlite3":
            assert not given.in_transaction
    # As Burr's, a persister closes what it was given; redis-py's clients open again when they are used.
    if driver in USES:
        with pytest.raises(CLOSED):
            USES[driver](given)


@pytest.mark.parametrize("driver", ["aiosqlite", "asyncpg", "asyncpg-pool", "psycopg", "redis", "pymongo"])
def test_an_async_connection_is_handed_in(driver: str, tmp_path: Path) -> None:
    table = f"{servers.RUN}.{servers.unique()}"

    async def make() -> Any:
        if driver == "aiosqlite":
            return kvpersist.AsyncSQLitePersister(await aiosqlite.connect(tmp_path / "given.db"))
        if driver == "asyncpg":
            return kvpersist.AsyncPostgreSQLPersister(await asyncpg.connect(servers.postgresql_url()), table)
        if driver == "asyncpg-pool":
            pool = await asyncpg.create_pool(servers.postgresql_url(), min_size=1, max_size=3)
            return kvpersist.AsyncPostgreSQLPersister(pool=pool, table_name=table)
        if driver == "psycopg":
            given = await psycopg.AsyncConnection.connect(servers.postgresql_url(), autocommit=True)
            return kvpersist.AsyncPostgreSQLPersister(given, table)
        if driver == "redis":
            client = redis.asyncio.Redis.from_url(servers.redis_url())
            return kvpersist.AsyncRedisBasePersister(client, namespace=servers.unique())
        client = pymongo.AsyncMongoClient(servers.mongodb_url())
        return kvpersist.AsyncMongoDBBasePersister(client, servers.RUN, servers.unique())

    async def main() -> None:
        async with await make() as persister:
            saves = (persister.save("p", f"app{n}", 0, "step", State({"n": n}), "completed") for n in range(8))
            await asyncio.gather(*saves)
            assert (await persister.copy().load("p", "app3"))["state"]["n"] == 3
            assert await persister.load("p", "other") is None
            assert await persister.list_app_ids("p") == [f"app{n}" for n in range(8)]

    asyncio.run(main())


def test_what_cannot_be_handed_in_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a sync client"):
        kvpersist.RedisBasePersister(redis.asyncio.Redis())
    with pytest.raises(OptionError, match="no store is known"):
        kvpersist.RedisBasePersister(object())
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        given = kvpersist.SQLitePersister("x", connection=connection)
        with pytest.raises(StoreError, match="cannot be pickled"):
            pickle.dumps(given)
        with pytest.raises(OptionError, match="an async client"):
            kvpersist.AsyncSQLitePersister(connection)


# Going on with what Burr's persister has stored


@action(reads=["log"], writes=["log"])
def tick(state: State[Any]) -> State[Any]:
    return state.append(log="tick")


@action(reads=["log"], writes=["log"])
def tock(state: State[Any]) -> State[Any]:
    return state.append(log="tock")


def application(persister: Any, app_id: str = "clock", partition_key: str | None = "p") -> Any:
    return (
        ApplicationBuilder()
        .with_actions(tick, tock)
        .with_transitions(("tick", "tock", default), ("tock", "tick", default))
        .initialize_from(persister, resume_at_next_action=True, default_state={"log": []}, default_entrypoint="tick")
        .with_state_persister(persister)
        .with_identifiers(app_id=app_id, partition_key=partition_key)
        .build()
    )


SYNC = ["SQLitePersister", "PostgreSQLPersister", "RedisBasePersister", "MongoDBBasePersister"]
EXAMPLE = {"n": [1, -2.5, None, True, "\u00e9"], "deep": {"a": {"b": []}}, "__SEQUENCE_ID": 3}


@pytest.fixture(params=SYNC)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    return request.param, VALUES_OF[request.param](tmp_path) | (
        {"table_name": "burr_state"} if request.param == "SQLitePersister" else {}
    )


def rows_of_burr(name: str, values: dict[str, Any]) -> Any:
    """Everything that Burr's persister has stored."""
    if name == "SQLitePersister":
        with contextlib.closing(sqlite3.connect(values["db_path"])) as connection:
            return connection.execute("SELECT * FROM burr_state ORDER BY 1, 2, 3, 4").fetchall()
    if name == "PostgreSQLPersister":
        with psycopg.connect(servers.postgresql_url()) as connection:
            return connection.execute(f"SELECT * FROM {values['table_name']} ORDER BY 1, 2, 3, 4").fetchall()
    if name == "RedisBasePersister":
        with redis.Redis.from_url(servers.redis_url()) as client:
            names = sorted(client.scan_iter(f"{values['namespace']}:*"))
            return [(each, client.dump(each)) for each in names]
    with pymongo.MongoClient(servers.mongodb_url()) as client:
        return list(client[servers.RUN][values["collection_name"]].find(sort=[("_id", 1)]))


def test_an_application_goes_on_where_burrs_persister_left_it(
    burr_made: MakeBurrs, store: tuple[str, dict[str, Any]]
) -> None:
    name, values = store
    burrs = burr_made(name, values)
    burrs.initialize()
    application(burrs).run(halt_after=["tock"])
    application(burrs).step()
    burrs.save("p", "other", 0, "tick", State(EXAMPLE), "completed")
    burrs.save("p", "failing", 0, "tick", State(EXAMPLE), "completed")
    burrs.save("p", "failing", 1, "tock", State({}), "failed")
    before = rows_of_burr(name, values)

    with getattr(kvpersist, name).from_values(**values) as ours:  # the import has changed, and nothing else
        assert ours.list_app_ids("p") == ["clock", "failing", "other"]
        assert ours.load("p", "other")["state"].get_all() == burrs.load("p", "other")["state"].get_all() == EXAMPLE
        assert ours.load("p", "failing")["sequence_id"] == 0
        assert ours.load("p", "failing", include_failed=True)["sequence_id"] == 1
        assert ours.load("p", "failing", 1)["status"] == "failed"
        assert ours.load("p", "missing") is None
        resumed = application(ours)
        assert resumed.sequence_id == 2
        assert resumed.get_next_action().name == "tock"
        resumed.step()
        again = application(ours)
        assert again.state["log"] == ["tick", "tock", "tick", "tock"]
        assert ours.load("p", "clock", 1)["state"]["log"] == ["tick", "tock"]  # a step of Burr's
        assert [header.sequence_id for header in ours.history("p", "clock")] == [3]
        assert ours.list_app_ids("p") == ["clock", "failing", "other"]
        ours.save("p", "new", 0, "tick", State({}), "completed")
        assert ours.list_app_ids("p") == ["clock", "failing", "new", "other"]

    assert rows_of_burr(name, values) == before
    with getattr(kvpersist, name).from_values(**values, burr_history=False) as ours:
        assert ours.load("p", "other") is None
        assert ours.list_app_ids("p") == ["clock", "new"]


def test_the_app_written_last_is_found_in_burrs_table(burr_made: MakeBurrs, tmp_path: Path) -> None:
    values = VALUES_OF["SQLitePersister"](tmp_path) | {"table_name": "burr_state"}
    burrs = burr_made("SQLitePersister", values)
    burrs.initialize()
    burrs.save(None, "a", 0, "tick", State({"n": 1}), "completed")
    with kvpersist.SQLitePersister.from_values(**values) as ours:
        assert ours.load(None, None)["app_id"] == "a"
        assert ours.load(None, "a")["partition_key"] is None
        assert ours.list_app_ids(None) == ours.list_app_ids() == ["a"]


def test_the_async_classes_go_on_too(burr_made: MakeBurrs, store: tuple[str, dict[str, Any]]) -> None:
    name, values = store
    burrs = burr_made(name, values)
    burrs.initialize()
    burrs.save("p", "app", 7, "tick", State(EXAMPLE), "completed")

    async def main() -> None:
        async with getattr(kvpersist, f"Async{name}").from_values(**values) as ours:
            loaded = await ours.load("p", "app")
            assert (loaded["sequence_id"], loaded["state"].get_all()) == (7, EXAMPLE)
            assert await ours.list_app_ids("p") == ["app"]
            await ours.save("p", "app", 8, "tock", State({}), "completed")
            assert (await ours.load("p", "app"))["sequence_id"] == 8

    asyncio.run(main())


def test_a_burr_table_of_another_name_or_none_is_no_trouble(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("CREATE TABLE burr_state (something TEXT)")
    with kvpersist.SQLitePersister(str(tmp_path / "a.db"), "others") as ours:
        assert ours.load("p", "app") is None
        assert ours.list_app_ids("p") == []


# Tracking folders


def tracked(client: Any, app_id: str, partition_key: str | None, **initialize: Any) -> Any:
    builder = (
        ApplicationBuilder()
        .with_actions(tick, tock)
        .with_transitions(("tick", "tock", default), ("tock", "tick", default))
        .with_tracker(client)
        .with_identifiers(app_id=app_id, partition_key=partition_key, sequence_id=initialize.pop("sequence_id", None))
    )
    if initialize.get("resume"):
        builder = builder.initialize_from(
            client, resume_at_next_action=True, default_state={"log": []}, default_entrypoint="tick"
        )
    else:
        builder = builder.with_state(log=[]).with_entrypoint("tick")
    return builder.build()


def test_the_tracking_client_loads_what_it_tracked(tmp_path: Path) -> None:
    client = kvpersist.LocalTrackingClient("project", str(tmp_path))
    assert client.load("p", "clock") is None
    assert client.list_app_ids("p") == []
    tracked(client, "clock", "p").run(halt_after=["tock"])
    tracked(client.copy(), "other", None).step()
    assert client.list_app_ids("p") == ["clock"]
    assert client.list_app_ids(None) == ["other"]
    assert client.load("someone else", "clock") is None  # Burr's returns the app of any partition
    assert BurrTrackingClient("project", str(tmp_path)).load("someone else", "clock") is not None
    loaded, burrs = client.load("p", "clock"), BurrTrackingClient("project", str(tmp_path)).load("p", "clock")
    assert loaded["state"].get_all() == burrs["state"].get_all()
    assert (loaded["position"], loaded["sequence_id"]) == (burrs["position"], burrs["sequence_id"]) == ("tock", 1)
    assert loaded["created_at"] > "2020"
    assert client.load("p", "clock", 0)["state"]["log"] == ["tick"]
    assert client.load("p", "clock", 9) is None
    assert client.load("p", "../project/clock") is None
    assert client.load("p", None)["app_id"] == "clock"
    resumed = tracked(client.copy(), "clock", "p", resume=True)
    assert resumed.get_next_action().name == "tick"
    resumed.step()
    assert client.load("p", "clock")["state"]["log"] == ["tick", "tock", "tick"]
    back = tracked(client.copy(), "clock", "p", resume=True, sequence_id=0)
    back.step()
    assert client.load("p", "clock")["sequence_id"] == 1  # what came behind is on a way that the app has left
    assert client.load("p", "clock", 2) is None
