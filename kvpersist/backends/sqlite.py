"""``sqlite:///path/to/file.db``: one table in an SQLite database, for one machine.

The sync face uses the standard library's `sqlite3`, the async face `aiosqlite` (which runs it in a
thread).  Every operation is one statement in autocommit mode, so that no transaction is ever left
open.  The database is in WAL mode: readers never wait for a writer, in this process or another.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any, Literal

from ..errors import MissingExtraError, OptionError, StoreError, StoreUnavailableError
from ..keys import scan_range
from ..steps import Step
from ..urls import check_options, local_path
from . import PAGE, Backend, Clients, GivenClient, Mode, Page


class _Connection:
    """A `sqlite3` connection that many threads may use, with the one method of `aiosqlite` that we need."""

    def __init__(self, database: Path | str, **settings: Any) -> None:
        self._connection: sqlite3.Connection = sqlite3.connect(database, check_same_thread=False, **settings)
        self._lock = threading.Lock()

    def execute_fetchall(self, sql: str, parameters: Any = ()) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, parameters).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class _Given:
    """A `sqlite3` connection that the caller made, in whatever mode: each statement is committed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def execute_fetchall(self, sql: str, parameters: Any = ()) -> list[Any]:
        with self._lock:
            cursor = self._connection.cursor()
            cursor.row_factory = None
            rows = cursor.execute(sql, parameters).fetchall()
            if self._connection.in_transaction:
                self._connection.commit()
            return rows


class _AsyncGiven:
    """The async twin of `_Given`, for a connection of `aiosqlite`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()

    async def execute_fetchall(self, sql: str, parameters: Any = ()) -> list[Any]:
        async with self._lock, self._connection.cursor() as cursor:
            cursor.row_factory = None
            await cursor.execute(sql, parameters)
            rows: list[Any] = await cursor.fetchall()
            if self._connection.in_transaction:
                await self._connection.commit()
            return rows


class SQLiteBackend(Backend):
    """A table of an SQLite database.

    Args:
        url: ``sqlite:///absolute/path.db`` or ``sqlite://./relative/path.db``.
        table: the table's name, any text.
        busy_timeout: seconds to wait for another process that writes.
        durable: wait for the disk at each write, so that a power cut loses nothing acknowledged.
            Without it a power cut may lose the last writes; a crash of the process still loses nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        asynchronous: bool = False,
        table: str = "kvpersist",
        busy_timeout: float = 30.0,
        durable: bool = True,
    ) -> None:
        super().__init__(url, asynchronous=asynchronous, table=table, busy_timeout=busy_timeout, durable=durable)
        self.path = local_path(url)
        if self.path.name in ("", ":memory:") or self.path.parent == Path("/"):
            raise OptionError(
                f"{url!r} names no database file; write sqlite:///absolute/path.db, "
                "sqlite://./relative/path.db or, for a store in memory, memory://"
            )
        if not table or "\0" in table or table.lower().startswith("sqlite_"):
            raise OptionError(f"{table!r} cannot be the name of an SQLite table")
        self._busy_timeout = busy_timeout
        self._durable = durable
        self._table_is_there = True  # once connected; a connection that was handed in has yet to be looked at
        self._table = name = '"' + table.replace('"', '""') + '"'
        self._clients: Clients[Any] | GivenClient[Any] = Clients(
            asynchronous=asynchronous,
            connect=self._connect,
            disconnect=self._disconnect,
            abandon=_stop_unheard,
        )
        self._get = f"SELECT value FROM {name} WHERE key = ?"
        self._create = f"INSERT INTO {name} (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1"
        self._overwrite = (
            f"INSERT INTO {name} (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )
        self._replace = f"UPDATE {name} SET value = ? WHERE key = ? AND value = ? RETURNING 1"
        self._delete = f"DELETE FROM {name} WHERE key IN (SELECT value FROM json_each(?))"
        self._keys = f"SELECT key, NULL FROM {name} WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
        self._items = f"SELECT key, value FROM {name} WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
        # A skip scan: each step seeks the first key behind all that the last child stands for.
        self._children = f"""
            WITH RECURSIVE
              found(key) AS (
                SELECT (SELECT key FROM {name} WHERE key >= :start AND key < :end ORDER BY key LIMIT 1)
                UNION ALL
                SELECT (SELECT key FROM {name} WHERE key < :end AND key >=
                          CASE instr(substr(found.key, :skip), '/') WHEN 0 THEN found.key || ' ' ELSE
                            substr(found.key, 1, :skip - 2 + instr(substr(found.key, :skip), '/')) || '0' END
                        ORDER BY key LIMIT 1)
                FROM found WHERE found.key IS NOT NULL
              )
            SELECT CASE instr(substr(key, :skip), '/') WHEN 0 THEN key
                     ELSE substr(key, 1, :skip - 1 + instr(substr(key, :skip), '/')) END, NULL
            FROM found WHERE key IS NOT NULL LIMIT :limit"""

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool, **options: Any) -> SQLiteBackend:
        """The store behind a `sqlite3.Connection` or, async, a connection of `aiosqlite`.

        What is pending on the connection is committed, and its database keeps its journal mode.
        """
        is_sync = isinstance(client, sqlite3.Connection)
        if is_sync is asynchronous:
            raise OptionError(
                f"this needs {'an async' if asynchronous else 'a sync'} client, a connection of "
                f"{'aiosqlite' if asynchronous else 'sqlite3'}, not a "
                f"{type(client).__module__}.{type(client).__qualname__}"
            )
        check_options(options, ("table",), "a store made of a client")
        backend = cls("sqlite:///client/connection", asynchronous=asynchronous, **options)
        backend.url, backend.path = "sqlite://client", Path("the database of the connection")
        backend._table_is_there = False
        backend._clients = GivenClient(_AsyncGiven(client) if asynchronous else _Given(client))
        return backend

    def open(self) -> Step[None]:
        yield from self._fetchall(self._get, ("",))

    def close(self) -> Step[None]:
        yield from self._clients.close()

    def get(self, key: str) -> Step[bytes | None]:
        rows = yield from self._fetchall(self._get, (key,))
        return rows[0][0] if rows else None

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        if mode == "overwrite":
            yield from self._fetchall(self._overwrite, (key, value))
            return True
        return bool((yield from self._fetchall(self._create, (key, value))))

    def replace(self, key: str, old: bytes, new: bytes) -> Step[bool]:
        return bool((yield from self._fetchall(self._replace, (new, key, old))))

    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        limit = limit or PAGE
        start, end = scan_range(prefix, after, children=delimiter is not None)
        if delimiter:
            parameters = {"start": start, "end": end, "skip": len(prefix) + 1, "limit": limit}
            rows = yield from self._fetchall(self._children, parameters)
        else:
            rows = yield from self._fetchall(self._items if values else self._keys, (start, end, limit))
        return Page(rows, rows[-1][0] if len(rows) == limit else None)

    def delete(self, keys: Iterable[str]) -> Step[None]:
        yield from self._fetchall(self._delete, (json.dumps(list(keys)),))

    def _fetchall(self, sql: str, parameters: Any) -> Step[list[Any]]:
        """The one place where a statement runs."""
        try:
            client = yield from self._clients.get()
            if not self._table_is_there:
                yield from self._make_table(client)
                self._table_is_there = True
            rows: list[Any] = yield self._finished(client.execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            if self.read_only and "no such table" in str(error):
                return []
            raise self._translated(error) from error
        return rows

    def _finished(self, result: Any) -> Any:
        """Have a statement of the async face awaited to its end, even by a task that is cancelled.

        A cancelled save is then over when its task is, and no thread reports to a loop that is closed.
        """
        return _awaited_to_the_end(result) if self.asynchronous else result

    def _connect(self) -> Step[Any]:
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: kvpersist needs 3.35 or newer")
        settings: dict[str, Any] = {"timeout": self._busy_timeout, "isolation_level": None}
        database: Path | str = self.path
        if self.read_only:
            database = f"{self.path.as_uri()}?mode=ro" if self.path.exists() else ":memory:"
            settings["uri"] = True
        else:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"cannot make the folder of the database {self.path}: {error.strerror}") from error
        client: Any
        if self.asynchronous:
            try:
                import aiosqlite
            except ImportError as error:
                raise MissingExtraError('async SQLite needs aiosqlite: pip install "kvpersist[sqlite]"') from error
            client = aiosqlite.connect(database, **settings)
            # An application that forgets to clean up should still be able to exit.
            client._thread.daemon = True
            yield client
        else:
            client = _Connection(database, **settings)
        if self.read_only:
            return client
        try:
            yield from self._set_wal(client)
            yield client.execute_fetchall(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
            yield from self._make_table(client)
        except BaseException:
            yield client.close()
            raise
        return client

    def _make_table(self, client: Any) -> Step[None]:
        if not (yield client.execute_fetchall(f"PRAGMA table_info({self._table})")):
            yield client.execute_fetchall(
                f"CREATE TABLE IF NOT EXISTS {self._table} (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL)"
            )
        columns = yield client.execute_fetchall(f"PRAGMA table_info({self._table})")
        if [(column[1], column[2], column[5]) for column in columns] != [("key", "TEXT", 1), ("value", "BLOB", 0)]:
            raise StoreError(
                f"the table {self.options['table']!r} of {self.path} is not one of kvpersist's; "
                "choose another with table=..."
            )

    def _set_wal(self, client: Any) -> Step[None]:
        # For this one statement SQLite does not wait for a lock, whatever the timeout says.  Two processes
        # that make a database at once would meet here.
        deadline = time.monotonic() + self._busy_timeout
        while (yield client.execute_fetchall("PRAGMA journal_mode"))[0][0] != "wal":
            try:
                yield client.execute_fetchall("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                if self.asynchronous:
                    yield asyncio.sleep(0.005)
                else:
                    time.sleep(0.005)
            else:
                return  # where a file system cannot do it, the mode stays what it was

    def _disconnect(self, client: Any) -> Step[None]:
        yield client.close()

    def _translated(self, error: sqlite3.Error) -> StoreError:
        message = str(error)
        if "locked" in message or "busy" in message:
            return StoreUnavailableError(
                f"{self.path}: another process kept the database locked for {self._busy_timeout} s"
            )
        if "not a database" in message:
            return StoreError(f"{self.path} is a file, but not an SQLite database")
        if "unable to open" in message or "readonly" in message:
            purpose = "reading" if self.read_only else "writing"
            return StoreError(f"{self.path} cannot be opened for {purpose}: {message}")
        return StoreError(f"{self.path}: {message}")


async def _awaited_to_the_end(awaitable: Awaitable[Any]) -> Any:
    task = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _stop_unheard(client: Any) -> None:
    """Stop an `aiosqlite` connection whose loop is closed.

    It would report to the loop that runs here and now, and that one may be closed as well by then.  A new
    thread has no loop.
    """
    thread = threading.Thread(target=client.stop)
    thread.start()
    thread.join()
