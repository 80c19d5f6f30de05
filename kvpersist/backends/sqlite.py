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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from ..errors import MissingExtraError, OptionError, StoreError, StoreUnavailableError
from ..keys import scan_range
from ..steps import Step
from ..urls import check_options, local_path, redacted
from . import PAGE, Backend, Clients, GivenClient, Mode, Page, to_the_end


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


class _Client(NamedTuple):
    """Two connections, so that no reader waits for a writer that waits for another process."""

    writer: Any
    reader: Any


_COLUMNS = [("key", "TEXT", 1), ("value", "BLOB", 0)]  # name, type, place in the primary key


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
        self.url = f"sqlite://{quote(self.path.as_posix())}"  # means the same in another folder
        if self.path.name in ("", ":memory:") or self.path.parent == Path("/"):
            raise OptionError(
                f"{redacted(url)!r} names no database file, or one at the root of the disk; write "
                "sqlite:///absolute/path.db, sqlite://./relative/path.db or, for a store in memory, memory://"
            )
        if not 0 <= busy_timeout <= 1_000_000:
            raise OptionError(f"busy_timeout must be a number of seconds from 0 to 1,000,000, not {busy_timeout!r}")
        if not table or "\0" in table or table.lower().startswith("sqlite_"):
            raise OptionError(f"{table!r} cannot be the name of an SQLite table")
        self._busy_timeout = busy_timeout
        self._durable = durable
        self._is_set_up = True  # once connected; a connection that was handed in has yet to be looked at
        self._table = name = _quoted(table)
        new, walk = _quoted(f"{table} new"), _quoted(f"{table} walk")  # never the table's own name
        self._clients: Clients[_Client] | GivenClient[_Client] = Clients(
            asynchronous=asynchronous,
            connect=self._connect,
            disconnect=self._disconnect,
            abandon=_stop_unheard,
        )
        self._get = f"SELECT value FROM {name} WHERE key = ?"
        self._get_many = f"SELECT key, value FROM {name} WHERE key IN (SELECT value FROM json_each(?))"
        self._create_all = (
            f"WITH {new} (key, value) AS (VALUES ",
            f") INSERT INTO {name} (key, value) SELECT key, value FROM {new} "
            f"WHERE NOT EXISTS (SELECT 1 FROM {name} JOIN {new} USING (key)) RETURNING 1",
        )
        self._create = f"INSERT INTO {name} (key, value) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1"
        self._overwrite = (
            f"INSERT INTO {name} (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )
        self._replace = f"UPDATE {name} SET value = ? WHERE key = ? AND value = ? RETURNING 1"
        self._remove = f"DELETE FROM {name} WHERE key = ? AND value = ? RETURNING 1"
        self._delete = f"DELETE FROM {name} WHERE key IN (SELECT value FROM json_each(?))"
        self._keys = f"SELECT key, NULL FROM {name} WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
        self._items = f"SELECT key, value FROM {name} WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
        # A skip scan: each step seeks the first key behind all that the last child stands for.
        self._children = f"""
            WITH RECURSIVE
              {walk}(key) AS (
                SELECT (SELECT key FROM {name} WHERE key >= :start AND key < :end ORDER BY key LIMIT 1)
                UNION ALL
                SELECT (SELECT key FROM {name} WHERE key < :end AND key >=
                          CASE instr(substr({walk}.key, :skip), '/') WHEN 0 THEN {walk}.key || ' ' ELSE
                            substr({walk}.key, 1, :skip - 2 + instr(substr({walk}.key, :skip), '/')) || '0' END
                        ORDER BY key LIMIT 1)
                FROM {walk} WHERE {walk}.key IS NOT NULL
              )
            SELECT CASE instr(substr(key, :skip), '/') WHEN 0 THEN key
                     ELSE substr(key, 1, :skip - 1 + instr(substr(key, :skip), '/')) END, NULL
            FROM {walk} WHERE key IS NOT NULL LIMIT :limit"""

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool, **options: Any) -> SQLiteBackend:
        """The store behind a `sqlite3.Connection` or, async, a connection of `aiosqlite`.

        What is pending on the connection is committed, and its database keeps its journal mode.
        """
        if isinstance(client, sqlite3.Connection) is asynchronous:
            raise OptionError(
                f"this needs {'an async' if asynchronous else 'a sync'} client, a connection of "
                f"{'aiosqlite' if asynchronous else 'sqlite3'}, not a "
                f"{type(client).__module__}.{type(client).__qualname__}"
            )
        check_options(options, ("table",), "a store made of a client")
        backend = cls("sqlite:///client/connection", asynchronous=asynchronous, **options)
        backend.url, backend.path = "sqlite://client", Path("the database of the connection")
        backend._is_set_up = False
        given: Any = _AsyncGiven(client) if asynchronous else _Given(client)
        backend._clients = GivenClient(_Client(given, given))
        return backend

    def open(self) -> Step[None]:
        yield from self._read(self._get, ("",))

    def close(self) -> Step[None]:
        yield from self._clients.close()

    def get(self, key: str) -> Step[bytes | None]:
        rows = yield from self._read(self._get, (key,))
        return rows[0][0] if rows else None

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        if mode == "overwrite":
            yield from self._write(self._overwrite, (key, value))
            return True
        return bool((yield from self._write(self._create, (key, value))))

    def get_many(self, keys: Iterable[str]) -> Step[list[bytes | None]]:
        wanted = list(keys)
        found = dict((yield from self._read(self._get_many, (json.dumps(wanted),))))
        return [found.get(key) for key in wanted]

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        # One statement, and so all or none.
        sql = ", ".join(["(?, ?)"] * len(entries)).join(self._create_all)
        return bool((yield from self._write(sql, [each for entry in entries for each in entry])))

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        if new is None:
            return bool((yield from self._write(self._remove, (key, old))))
        return bool((yield from self._write(self._replace, (new, key, old))))

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
            rows = yield from self._read(self._children, parameters)
        else:
            rows = yield from self._read(self._items if values else self._keys, (start, end, limit))
        return Page(rows, rows[-1][0] if len(rows) == limit else None)

    def delete(self, keys: Iterable[str]) -> Step[None]:
        yield from self._write(self._delete, (json.dumps(list(keys)),))

    def _read(self, sql: str, parameters: Any) -> Step[list[Any]]:
        return self._run(sql, parameters, writes=False)

    def _write(self, sql: str, parameters: Any) -> Step[list[Any]]:
        return self._run(sql, parameters, writes=True)

    def _run(self, sql: str, parameters: Any, *, writes: bool) -> Step[list[Any]]:
        """The one place where a statement runs."""
        try:
            client = yield from self._clients.get()
            if not self._is_set_up:
                columns = yield from self._columns(client.writer)
                yield from self._make_table(client.writer, columns)
                self._is_set_up = True
            connection = client.writer if writes else client.reader
            rows: list[Any] = yield self._finished(connection.execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            if self.read_only and "no such table" in str(error):
                return []
            raise self._translated(error) from error
        return rows

    def _finished(self, result: Any) -> Any:
        return to_the_end(result) if self.asynchronous else result

    def _connect(self) -> Step[_Client]:
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: kvpersist needs 3.35 or newer")
        if self.read_only:
            only = yield from self._connection()
            return _Client(only, only)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder of the database {self.path}: {error.strerror}") from error
        writer = yield from self._connection()
        try:
            yield from self._set_up(writer)
            reader = yield from self._connection()
        except BaseException:
            yield writer.close()
            raise
        yield reader.execute_fetchall("PRAGMA query_only = ON")
        return _Client(writer, reader)

    def _connection(self) -> Step[Any]:
        settings: dict[str, Any] = {"timeout": self._busy_timeout, "isolation_level": None}
        database: Path | str = self.path
        if self.read_only:
            database = f"{self.path.as_uri()}?mode=ro" if self.path.exists() else ":memory:"
            settings["uri"] = True
        if not self.asynchronous:
            return _Connection(database, **settings)
        try:
            import aiosqlite
        except ImportError as error:
            raise MissingExtraError('async SQLite needs aiosqlite: pip install "kvpersist[sqlite]"') from error
        connection = aiosqlite.connect(database, **settings)
        # An application that forgets to clean up should still be able to exit.
        connection._thread.daemon = True
        try:
            yield connection
        except BaseException:
            yield asyncio.to_thread(connection._thread.join)  # it still has its own end to report to this loop
            raise
        return connection

    def _set_up(self, writer: Any) -> Step[None]:
        # First a look: a database that is not ours is left as it is.
        columns = yield from self._columns(writer)
        yield from self._set_wal(writer)
        yield writer.execute_fetchall(f"PRAGMA synchronous = {'FULL' if self._durable else 'NORMAL'}")
        yield from self._make_table(writer, columns)

    def _columns(self, writer: Any) -> Step[list[Any]]:
        columns: list[Any] = yield writer.execute_fetchall(f"PRAGMA table_info({self._table})")
        if columns and [(column[1], column[2], column[5]) for column in columns] != _COLUMNS:
            raise StoreError(
                f"the table {self.options['table']!r} of {self.path} is not one of kvpersist's; "
                "choose another with table=..."
            )
        return columns

    def _make_table(self, writer: Any, columns: list[Any]) -> Step[None]:
        if not columns:
            yield writer.execute_fetchall(
                f"CREATE TABLE IF NOT EXISTS {self._table} (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL)"
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

    def _disconnect(self, client: _Client) -> Step[None]:
        yield client.reader.close()
        if client.writer is not client.reader:
            yield client.writer.close()

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


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _stop_unheard(client: _Client) -> None:
    """Stop `aiosqlite` connections of another loop.

    They would report to the loop that runs here and now, and that one may be closed as well by then.  A new
    thread has no loop.
    """
    for connection in client:
        thread = threading.Thread(target=connection.stop)
        thread.start()
        thread.join()
