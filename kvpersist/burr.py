"""Burr's persisters by name and signature, over the one implementation.

A Burr user changes the import, and nothing else::

    from kvpersist import SQLitePersister      # was: from burr.core.persistence import SQLitePersister

The records of kvpersist are kept beside Burr's: where Burr has the table or collection ``burr_state``, these classes
have ``burr_state_kvpersist``.  What Burr's persister has stored is never written to; an app that is found only there
is loaded from there, so that it goes on where it was.  `kvpersist.copy` carries the whole history over.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from burr.core.persistence import PersistedStateData
from burr.core.state import State

from . import keys
from .backends import Backend
from .burr_layouts import BurrRecord, Layout, MongoDBLayout, PostgreSQLLayout, RedisLayout, SQLiteLayout
from .errors import OptionError
from .history import OnConflict
from .persisters import AsyncPersister, Persister, _Face
from .steps import Step, arun, run
from .urls import backend_of_client, check_options, open_backend

Self = TypeVar("Self", bound="_Named")
Kwargs = dict[str, Any]

SUFFIX = "_kvpersist"
"""What the name of our table or collection has behind the name of Burr's."""


class _Named(_Face):
    """A class that takes a store's own arguments in the place of a URL.

    All of them take two arguments more, as keywords: ``on_conflict``, as `Persister.from_url` does, and
    ``burr_history``: whether what Burr's own persister has stored in the same place is read too.
    """

    connection: Any = None
    """The connection or client that was handed in; `cleanup` closes it, as Burr's does."""
    _layout: Layout | None = None

    def _open(
        self,
        backend: Backend,
        serde_kwargs: Mapping[str, Any] | None,
        on_conflict: OnConflict,
        *,
        namespace: str = "kvpersist",
        layout: Layout | None = None,
        connection: Any = None,
        **attributes: Any,
    ) -> None:
        _Face.__init__(self, backend, namespace=namespace, serde_kwargs=serde_kwargs, on_conflict=on_conflict)
        self._layout = layout
        self.connection = connection
        self.__dict__.update(attributes)

    @classmethod
    def from_config(cls: type[Self], config: dict[str, Any]) -> Self:
        """`from_values` with the entries of a dict."""
        made: Self = cls.from_values(**config)
        return made

    @classmethod
    def from_values(cls: type[Self], *args: Any, **kwargs: Any) -> Self:
        """The same as calling the class."""
        return cls(*args, **kwargs)

    @property
    def serde_kwargs(self) -> Kwargs:
        """The serializer's options."""
        return self._history.serde.serde_kwargs

    def _attributes(self) -> dict[str, Any]:
        own = {"_history", "_is_copy", "_closed", "connection"}
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def _burr_load(
        self, partition_key: str | None, app_id: str | None, sequence_id: int | None, include_failed: bool
    ) -> Step[PersistedStateData | None]:
        """What Burr's own persister has stored, where kvpersist has nothing."""
        if self._layout is None:
            return None
        record = yield from self._layout.load(partition_key, app_id, sequence_id, include_failed)
        return None if record is None else loaded(record, self._history.serde.options)

    def _list_app_ids(self, partition_key: str | None) -> Step[list[str]]:
        app_ids = yield from self._open_history.list_app_ids(partition_key)
        if self._layout is None:
            return app_ids
        return sorted({*app_ids, *(yield from self._layout.list_app_ids(partition_key))}, key=keys.encode)


def loaded(record: BurrRecord, serde_kwargs: Mapping[str, Any]) -> PersistedStateData:
    """What a persister returns for a step that Burr has stored."""
    partition_key, app_id, sequence_id, position = record.id
    return PersistedStateData(
        partition_key=partition_key,  # type: ignore[typeddict-item]  # Burr's type forgets that it may be None
        app_id=app_id,
        sequence_id=sequence_id,
        position=position,
        state=State(record.fields(serde_kwargs)),
        created_at=record.created_at.isoformat(timespec="microseconds"),
        status=record.status,
    )


class _Sync(_Named, Persister):
    """The sync face of the named classes."""

    def load(
        self,
        partition_key: str | None,
        app_id: str | None,
        sequence_id: int | None = None,
        *,
        include_failed: bool = False,
        **kwargs: Any,
    ) -> PersistedStateData | None:
        """See `Persister.load`."""
        found = super().load(partition_key, app_id, sequence_id, include_failed=include_failed)
        return found or run(self._burr_load(partition_key, app_id, sequence_id, include_failed))

    def list_app_ids(self, partition_key: str | None = None, **kwargs: Any) -> list[str]:
        """See `Persister.list_app_ids`."""
        return run(self._list_app_ids(partition_key))

    def cleanup(self) -> None:
        """See `Persister.cleanup`; what was handed in is closed too."""
        super().cleanup()
        if self.connection is not None:
            self.connection.close()

    close = cleanup


class _Async(_Named, AsyncPersister):
    """The async face of the named classes."""

    async def load(
        self,
        partition_key: str | None,
        app_id: str | None,
        sequence_id: int | None = None,
        *,
        include_failed: bool = False,
        **kwargs: Any,
    ) -> PersistedStateData | None:
        """See `Persister.load`."""
        found = await super().load(partition_key, app_id, sequence_id, include_failed=include_failed)
        return found or await arun(self._burr_load(partition_key, app_id, sequence_id, include_failed))

    async def list_app_ids(self, partition_key: str | None = None, **kwargs: Any) -> list[str]:
        """See `Persister.list_app_ids`."""
        return await arun(self._list_app_ids(partition_key))

    async def cleanup(self) -> None:
        """See `Persister.cleanup`; what was handed in is closed too."""
        await super().cleanup()
        if self.connection is not None:
            await (self.connection.aclose() if hasattr(self.connection, "aclose") else self.connection.close())

    close = cleanup

    def __await__(self: Self) -> Generator[Any, None, Self]:
        """Burr's ``from_values`` is awaited, or entered by ``async with``; ours connects when it is first used."""
        yield from ()
        return self


# SQLite


class _SQLite(_Named):
    db_path: str
    table_name: str

    def _open_sqlite(
        self,
        db_path: str,
        table_name: str,
        serde_kwargs: Kwargs | None,
        connect_kwargs: Kwargs | None,
        connection: Any,
        on_conflict: OnConflict,
        burr_history: bool,
    ) -> None:
        # What Burr needs the others for is so anyway: threads share a connection, every statement commits.
        settings = dict(connect_kwargs or {})
        check_options(settings, ("timeout", *_NO_LONGER_NEEDED), "connect_kwargs")
        options: Kwargs = {"table": table_name + SUFFIX}
        if connection is not None:
            backend = backend_of_client(connection, asynchronous=self._asynchronous, options=options)
        elif db_path in ("", ":memory:"):
            backend, burr_history = open_backend("memory://", asynchronous=self._asynchronous, options={}), False
        else:
            if "timeout" in settings:
                options["busy_timeout"] = settings["timeout"]
            url = "sqlite" + Path(db_path).absolute().as_uri().removeprefix("file")
            backend = open_backend(url, asynchronous=self._asynchronous, options=options)
        self._open(
            backend,
            serde_kwargs,
            on_conflict,
            layout=SQLiteLayout(backend, table_name) if burr_history else None,
            connection=connection,
            db_path=db_path,
            table_name=table_name,
        )


_NO_LONGER_NEEDED = ("check_same_thread", "isolation_level", "cached_statements", "detect_types", "autocommit")


class SQLitePersister(_SQLite, _Sync):
    """Burr's ``SQLitePersister``; see `Persister` for what it does.

    Args:
        db_path: the database file; ``":memory:"`` is a store in this process.
        table_name: Burr's table; ours is this name with ``_kvpersist`` behind it.
        serde_kwargs: the serializer's options; what kvpersist does not know goes to Burr's registered functions.
        connect_kwargs: ``timeout``, in seconds; ``check_same_thread`` and its like are no longer needed.
        connection: a connection of `sqlite3`, used in the place of `db_path`; what is pending on it is committed.
    """

    def __init__(
        self,
        db_path: str,
        table_name: str = "burr_state",
        serde_kwargs: Kwargs | None = None,
        connect_kwargs: Kwargs | None = None,
        connection: Any = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> None:
        self._open_sqlite(
            os.fspath(db_path), table_name, serde_kwargs, connect_kwargs, connection, on_conflict, burr_history
        )

    @classmethod
    def from_values(
        cls,
        db_path: str,
        table_name: str = "burr_state",
        serde_kwargs: Kwargs | None = None,
        connect_kwargs: Kwargs | None = None,
        **settings: Any,
    ) -> SQLitePersister:
        """The same as calling the class."""
        return cls(db_path, table_name, serde_kwargs, connect_kwargs, **settings)

    def create_table_if_not_exists(self, table_name: str) -> None:
        """The same as `initialize`."""
        _check_table(self.table_name, table_name)
        self.initialize()


SQLLitePersister = SQLitePersister


class AsyncSQLitePersister(_SQLite, _Async):
    """Burr's ``AsyncSQLitePersister``; see `AsyncPersister` for what it does.

    Args:
        connection: a connection of ``aiosqlite``; what is pending on it is committed.
        table_name: Burr's table; ours is this name with ``_kvpersist`` behind it.
    """

    def __init__(
        self,
        connection: Any,
        table_name: str = "burr_state",
        serde_kwargs: Kwargs | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> None:
        self._open_sqlite("", table_name, serde_kwargs, None, connection, on_conflict, burr_history)

    @classmethod
    def from_values(
        cls,
        db_path: str,
        table_name: str = "burr_state",
        serde_kwargs: Kwargs | None = None,
        connect_kwargs: Kwargs | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> AsyncSQLitePersister:
        """A persister on a database file, to be awaited or entered by ``async with``."""
        made = cls.__new__(cls)
        made._open_sqlite(os.fspath(db_path), table_name, serde_kwargs, connect_kwargs, None, on_conflict, burr_history)
        return made

    async def create_table_if_not_exists(self, table_name: str) -> None:
        """The same as `initialize`."""
        _check_table(self.table_name, table_name)
        await self.initialize()


def _check_table(own: str, asked_for: str) -> None:
    if asked_for != own:
        raise OptionError(f"this persister was made for table_name={own!r}; make another for {asked_for!r}")


# PostgreSQL


class _PostgreSQL(_Named):
    table_name: str

    def _open_postgresql(
        self,
        backend: Backend,
        table_name: str,
        serde_kwargs: Kwargs | None,
        on_conflict: OnConflict,
        burr_history: bool,
        connection: Any = None,
    ) -> None:
        layout = PostgreSQLLayout(backend, table_name) if burr_history else None
        self._open(backend, serde_kwargs, on_conflict, layout=layout, connection=connection, table_name=table_name)

    def _postgresql_at(self, db_name: str, user: str, password: str, host: str, port: int, **options: Any) -> Backend:
        login = ":".join(quote(part, safe="") for part in (user, password) if part)
        # A path is the folder of a server's socket; an IPv6 address stands in brackets.
        address = f"[{host}]" if ":" in host else quote(host, safe="")
        url = f"postgresql://{login}@{address}:{port}/{quote(db_name, safe='')}"
        return open_backend(url, asynchronous=self._asynchronous, options=options)

    def _postgresql_of(self, connection: Any, table_name: str) -> Backend:
        """The backend for what was handed in: itself if it is one of psycopg 3, else another to the same server."""
        options = _table(table_name)
        driver = type(connection).__module__.partition(".")[0]
        try:
            if driver == "psycopg2":
                info = connection.info
                return self._postgresql_at(info.dbname, info.user, info.password, info.host, info.port, **options)
            if driver == "asyncpg":
                if hasattr(connection, "acquire"):
                    options["pool"] = connection.get_max_size()
                    connection = next(holder._con for holder in connection._holders if holder._con is not None)
                parameters, address = connection._params, connection._addr
                host, port = address if isinstance(address, tuple) else os.path.split(address)
                options["sslmode"] = parameters.sslmode.name.replace("_", "-")
                return self._postgresql_at(
                    parameters.database,
                    parameters.user,
                    parameters.password,
                    host,
                    int(str(port).rpartition(".")[2]),
                    **options,
                )
        except (AttributeError, StopIteration) as error:
            raise OptionError(f"this {driver} connection does not tell where it leads; use from_values") from error
        return backend_of_client(connection, asynchronous=self._asynchronous, options=options)


def _table(table_name: str) -> Kwargs:
    schema, _, table = table_name.rpartition(".")
    return {"table": table + SUFFIX, **({"schema": schema} if schema else {})}


class PostgreSQLPersister(_PostgreSQL, _Sync):
    """Burr's ``PostgreSQLPersister``; see `Persister` for what it does.

    Args:
        connection: one of psycopg 3 in autocommit mode, or a pool of such, is used itself; one of psycopg2 says
            where to connect to.
        table_name: Burr's table; ours is this name with ``_kvpersist`` behind it.
    """

    def __init__(
        self,
        connection: Any,
        table_name: str = "burr_state",
        serde_kwargs: Kwargs | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> None:
        backend = self._postgresql_of(connection, table_name)
        self._open_postgresql(backend, table_name, serde_kwargs, on_conflict, burr_history, connection)

    @classmethod
    def from_values(
        cls,
        db_name: str,
        user: str,
        password: str,
        host: str,
        port: int,
        table_name: str = "burr_state",
        *,
        serde_kwargs: Kwargs | None = None,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> PostgreSQLPersister:
        """A persister on a database."""
        made = cls.__new__(cls)
        backend = made._postgresql_at(db_name, user, password, host, port, **_table(table_name))
        made._open_postgresql(backend, table_name, serde_kwargs, on_conflict, burr_history)
        return made

    def create_table(self, table_name: str) -> None:
        """The same as `initialize`."""
        _check_table(self.table_name, table_name)
        self.initialize()


class AsyncPostgreSQLPersister(_PostgreSQL, _Async):
    """Burr's ``AsyncPostgreSQLPersister``; see `AsyncPersister` for what it does.

    Args:
        connection: one of psycopg 3 in autocommit mode is used itself; one of asyncpg says where to connect to.
        table_name: Burr's table; ours is this name with ``_kvpersist`` behind it.
        pool: a pool, likewise, in the place of the connection.
    """

    def __init__(
        self,
        connection: Any = None,
        table_name: str = "burr_state",
        serde_kwargs: Kwargs | None = None,
        *,
        pool: Any = None,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> None:
        given = connection if pool is None else pool
        if given is None:
            raise OptionError("either connection= or pool= must be given, or use from_values")
        backend = self._postgresql_of(given, table_name)
        self._open_postgresql(backend, table_name, serde_kwargs, on_conflict, burr_history, given)

    @classmethod
    def from_values(
        cls,
        db_name: str,
        user: str,
        password: str,
        host: str,
        port: int,
        table_name: str = "burr_state",
        use_pool: bool = False,
        *,
        serde_kwargs: Kwargs | None = None,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
        **pool_kwargs: Any,
    ) -> AsyncPostgreSQLPersister:
        """A persister on a database, to be awaited or entered by ``async with``.

        Args:
            use_pool: have up to ``max_size`` connections (by default 10) and not one.
            pool_kwargs: of asyncpg's, ``max_size`` and ``command_timeout`` mean something here; ``min_size``
                does not, since connections are made when they are needed.
        """
        check_options(pool_kwargs, ("max_size", "min_size", "command_timeout"), "pool_kwargs")
        options = _table(table_name)
        if use_pool:
            options["pool"] = pool_kwargs.get("max_size", 10)
        if pool_kwargs.get("command_timeout"):
            options["timeout"] = pool_kwargs["command_timeout"]
        made = cls.__new__(cls)
        backend = made._postgresql_at(db_name, user, password, host, port, **options)
        made._open_postgresql(backend, table_name, serde_kwargs, on_conflict, burr_history)
        return made

    async def create_table(self, table_name: str) -> None:
        """The same as `initialize`."""
        _check_table(self.table_name, table_name)
        await self.initialize()


# Redis


class _Redis(_Named):
    namespace: str

    def __init__(
        self,
        connection: Any,
        serde_kwargs: Kwargs | None = None,
        namespace: str | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> None:
        backend = backend_of_client(connection, asynchronous=self._asynchronous, options={})
        self._open_redis(backend, serde_kwargs, namespace, on_conflict, burr_history, connection)

    @classmethod
    def from_values(
        cls: type[Self],
        host: str,
        port: int,
        db: int,
        password: str | None = None,
        serde_kwargs: Kwargs | None = None,
        redis_client_kwargs: Kwargs | None = None,
        namespace: str | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> Self:
        """A persister on a Redis server.

        Args:
            redis_client_kwargs: what ``redis.Redis`` takes besides.
            namespace: sets these records apart from others in the same database.
        """
        made: Any = cls.__new__(cls)
        backend = made._redis_at(host, port, db, password, redis_client_kwargs)
        made._open_redis(backend, serde_kwargs, namespace, on_conflict, burr_history)
        return made  # type: ignore[no-any-return]

    def _redis_at(
        self, host: str, port: int, db: int, password: str | None, redis_client_kwargs: Kwargs | None
    ) -> Backend:
        options = dict(redis_client_kwargs or {})
        scheme = "rediss" if options.pop("ssl", False) else "redis"
        user = options.pop("username", None) or ""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
        address = f"{f'[{host}]' if ':' in host else host}:{port}"
        path = options.pop("unix_socket_path", None)
        url = f"unix://{login}{quote(path)}?db={db}" if path else f"{scheme}://{login}{address}/{db}"
        return open_backend(url, asynchronous=self._asynchronous, options=options)

    def _open_redis(
        self,
        backend: Backend,
        serde_kwargs: Kwargs | None,
        namespace: str | None,
        on_conflict: OnConflict,
        burr_history: bool,
        connection: Any = None,
    ) -> None:
        self._open(
            backend,
            serde_kwargs,
            on_conflict,
            namespace=namespace or "kvpersist",
            layout=RedisLayout(backend, namespace or "") if burr_history else None,
            connection=connection,
        )
        self.namespace = namespace or ""

    def create_key(self, app_id: str, partition_key: str | None, sequence_id: int) -> str:
        """What the keys of kvpersist start with for this step: a hash holds an app, and a field a step."""
        namespace = self._history.namespace
        return keys.app_prefix(namespace, partition_key, app_id) + keys.sequence_name(sequence_id)


class RedisBasePersister(_Redis, _Sync):
    """Burr's ``RedisBasePersister``; see `Persister` for what it does.

    Args:
        connection: a ``redis.Redis`` or ``redis.RedisCluster``, used itself.
        namespace: sets these records apart from others in the same database.
    """


class AsyncRedisBasePersister(_Redis, _Async):
    """Burr's ``AsyncRedisBasePersister``; see `AsyncPersister` for what it does.

    Args:
        connection: a ``redis.asyncio.Redis`` or ``RedisCluster``, used itself.
        namespace: sets these records apart from others in the same database.
    """


class _RedisAt(_Redis):
    def __init__(
        self,
        host: str,
        port: int,
        db: int,
        password: str | None = None,
        serde_kwargs: Kwargs | None = None,
        redis_client_kwargs: Kwargs | None = None,
        namespace: str | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> None:
        backend = self._redis_at(host, port, db, password, redis_client_kwargs)
        self._open_redis(backend, serde_kwargs, namespace, on_conflict, burr_history)


class RedisPersister(_RedisAt, RedisBasePersister):
    """Burr's ``RedisPersister``: what `RedisBasePersister.from_values` makes."""


class AsyncRedisPersister(_RedisAt, AsyncRedisBasePersister):
    """What `AsyncRedisBasePersister.from_values` makes."""


# MongoDB


class _MongoDB(_Named):
    def __init__(
        self,
        client: Any,
        db_name: str = "mydatabase",
        collection_name: str = "mystates",
        serde_kwargs: Kwargs | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> None:
        options = {"database": db_name, "collection": collection_name + SUFFIX}
        backend = backend_of_client(client, asynchronous=self._asynchronous, options=options)
        self._open_mongodb(backend, collection_name, serde_kwargs, on_conflict, burr_history, client)

    @classmethod
    def from_values(
        cls: type[Self],
        uri: str = "mongodb://localhost:27017",
        db_name: str = "mydatabase",
        collection_name: str = "mystates",
        serde_kwargs: Kwargs | None = None,
        mongo_client_kwargs: Kwargs | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> Self:
        """A persister on a MongoDB server.

        Args:
            collection_name: Burr's collection; ours is this name with ``_kvpersist`` behind it.
            mongo_client_kwargs: what ``pymongo.MongoClient`` takes besides.
        """
        made: Any = cls.__new__(cls)
        backend = made._mongodb_at(uri, db_name, collection_name, mongo_client_kwargs)
        made._open_mongodb(backend, collection_name, serde_kwargs, on_conflict, burr_history)
        return made  # type: ignore[no-any-return]

    def _mongodb_at(self, uri: str, db_name: str, collection_name: str, mongo_client_kwargs: Kwargs | None) -> Backend:
        options = {"database": db_name, "collection": collection_name + SUFFIX, **(mongo_client_kwargs or {})}
        return open_backend(uri, asynchronous=self._asynchronous, options=options)

    def _open_mongodb(
        self,
        backend: Backend,
        collection_name: str,
        serde_kwargs: Kwargs | None,
        on_conflict: OnConflict,
        burr_history: bool,
        client: Any = None,
    ) -> None:
        layout = MongoDBLayout(backend, collection_name) if burr_history else None
        self._open(backend, serde_kwargs, on_conflict, layout=layout, connection=client)


class MongoDBBasePersister(_MongoDB, _Sync):
    """Burr's ``MongoDBBasePersister``; see `Persister` for what it does.

    Args:
        client: a ``pymongo.MongoClient``, used itself.
        collection_name: Burr's collection; ours is this name with ``_kvpersist`` behind it.
    """


class AsyncMongoDBBasePersister(_MongoDB, _Async):
    """The async twin of `MongoDBBasePersister`, on a ``pymongo.AsyncMongoClient``."""


class _MongoDBAt(_MongoDB):
    def __init__(
        self,
        uri: str = "mongodb://localhost:27017",
        db_name: str = "mydatabase",
        collection_name: str = "mystates",
        serde_kwargs: Kwargs | None = None,
        mongo_client_kwargs: Kwargs | None = None,
        *,
        on_conflict: OnConflict = "error",
        burr_history: bool = True,
    ) -> None:
        backend = self._mongodb_at(uri, db_name, collection_name, mongo_client_kwargs)
        self._open_mongodb(backend, collection_name, serde_kwargs, on_conflict, burr_history)


class MongoDBPersister(_MongoDBAt, MongoDBBasePersister):
    """Burr's ``MongoDBPersister``: what `MongoDBBasePersister.from_values` makes."""


class AsyncMongoDBPersister(_MongoDBAt, AsyncMongoDBBasePersister):
    """What `AsyncMongoDBBasePersister.from_values` makes."""


# What Burr lacks


class _File(_Named):
    def __init__(
        self,
        path: str | os.PathLike[str],
        serde_kwargs: Kwargs | None = None,
        *,
        durable: bool = True,
        namespace: str = "kvpersist",
        on_conflict: OnConflict = "error",
    ) -> None:
        url = Path(path).absolute().as_uri()
        backend = open_backend(url, asynchronous=self._asynchronous, options={"durable": durable})
        self._open(backend, serde_kwargs, on_conflict, namespace=namespace)


class FilePersister(_File, _Sync):
    """Keeps records as files below a folder.

    Args:
        path: the folder; it is made if it is not there.
        durable: wait for the disk at each save.
    """


class AsyncFilePersister(_File, _Async):
    """The async twin of `FilePersister`."""


class _Fsspec(_Named):
    def __init__(
        self,
        url: str,
        serde_kwargs: Kwargs | None = None,
        *,
        storage_options: Kwargs | None = None,
        namespace: str = "kvpersist",
        on_conflict: OnConflict = "error",
    ) -> None:
        options = {"storage_options": storage_options}
        backend = open_backend(url, asynchronous=self._asynchronous, options=options)
        self._open(backend, serde_kwargs, on_conflict, namespace=namespace)


class FsspecPersister(_Fsspec, _Sync):
    """Keeps records on any filesystem of fsspec.

    Args:
        url: such as ``az://container/folder`` or ``sftp://user@host/folder``.
        storage_options: what the filesystem's constructor takes: hosts, credentials, timeouts.
        on_conflict: most filesystems cannot do ``"error"``, and this class then says so.
    """


class AsyncFsspecPersister(_Fsspec, _Async):
    """The async twin of `FsspecPersister`."""


class _Bucket(_Named):
    _scheme: ClassVar[str]

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        serde_kwargs: Kwargs | None = None,
        *,
        storage_options: Kwargs | None = None,
        create_bucket: bool = False,
        namespace: str = "kvpersist",
        on_conflict: OnConflict = "error",
    ) -> None:
        url = f"{self._scheme}://{bucket}/{prefix}".rstrip("/")
        options = {"storage_options": storage_options, "create_bucket": create_bucket}
        backend = open_backend(url, asynchronous=self._asynchronous, options=options)
        self._open(backend, serde_kwargs, on_conflict, namespace=namespace)


class S3Persister(_Bucket, _Sync):
    """Keeps records as objects in an S3 bucket.

    Args:
        bucket: the bucket's name.
        prefix: what all keys start with.
        storage_options: what ``s3fs.S3FileSystem`` takes, such as ``endpoint_url``, ``key`` and ``secret``; the
            environment and the usual files are read besides.
        create_bucket: make the bucket if it is not there.
    """

    _scheme = "s3"


class AsyncS3Persister(_Bucket, _Async):
    """The async twin of `S3Persister`."""

    _scheme = "s3"


class GCSPersister(_Bucket, _Sync):
    """Keeps records as objects in a bucket of Google Cloud Storage.

    Args:
        bucket: the bucket's name.
        prefix: what all keys start with.
        storage_options: what ``gcsfs.GCSFileSystem`` takes, such as ``token`` and ``project``.
        create_bucket: make the bucket if it is not there.
    """

    _scheme = "gs"


class AsyncGCSPersister(_Bucket, _Async):
    """The async twin of `GCSPersister`."""

    _scheme = "gs"


class _InMemory(_Named):
    def __init__(self, serde_kwargs: Kwargs | None = None, *, on_conflict: OnConflict = "error") -> None:
        backend = open_backend("memory://", asynchronous=self._asynchronous, options={})
        self._open(backend, serde_kwargs, on_conflict)


class InMemoryPersister(_InMemory, _Sync):
    """Burr's ``InMemoryPersister``: a store of this process, for tests.  It holds bytes, so that history stays."""


class AsyncInMemoryPersister(_InMemory, _Async):
    """Burr's ``AsyncInMemoryPersister``; the async twin of `InMemoryPersister`."""
