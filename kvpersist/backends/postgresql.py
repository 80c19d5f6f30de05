"""``postgresql://``: one table in a PostgreSQL database.

Every operation is one statement in autocommit mode: one round trip, and no transaction is left open.  Keys have the
collation "C", which is bytewise order.  Values are stored out of line and not compressed again (EXTERNAL), so that
looking at keys never touches them.

What a save or a load runs is a `_Statement`, which goes to libpq as it is; the others go through psycopg's cursors,
which are more comfortable, and cost as much again as the round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import socket
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple
from weakref import WeakKeyDictionary

from ..errors import MissingExtraError, OptionError, StoreError, StoreUnavailableError
from ..keys import scan_range
from ..steps import Step
from ..urls import redacted
from . import PAGE, Backend, Clients, GivenClient, Mode, Page

try:
    import psycopg
    import psycopg_pool
    from psycopg.conninfo import make_conninfo
    from psycopg.generators import execute
    from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
    from psycopg.rows import tuple_row
    from psycopg.sql import Identifier
    from psycopg.waiting import Ready
except ImportError as error:
    raise MissingExtraError('PostgreSQL needs psycopg: pip install "kvpersist[postgresql]"') from error

MAX_NAME = 63
"""The longest name of a table or schema, in bytes; the server would cut a longer one, and two could become one."""

MOST_PREPARED: Final = 100
"""How many statements are prepared on a connection at most, which is psycopg's limit as well."""

READ, WRITE = int(Ready.R), int(Ready.W)  # also what generators of psycopg's wait for


class _Statement(NamedTuple):
    """SQL for libpq: $1, $2, ... stand for parameters in their binary format, and so do the rows."""

    sql: bytes
    name: bytes
    types: tuple[int, ...]


@lru_cache(maxsize=1000)
def _statement(sql: str, *types: str) -> _Statement:
    oids = tuple(psycopg.adapters.types[each].oid for each in types)
    return _Statement(sql.encode(), b"kvpersist_" + hashlib.sha256(sql.encode()).hexdigest()[:32].encode(), oids)


class _Connection(psycopg.Connection[Any]):
    """A connection that does not wait for an answer for ever."""

    answer_timeout: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, self.answer_timeout if timeout is None else timeout)


class _AsyncConnection(psycopg.AsyncConnection[Any]):
    """The async twin of `_Connection`, whose socket stays with the event loop from one wait to the next.

    psycopg enters and removes it for each wait, which takes about as long as the rest of a statement.  Other loops than
    asyncio's own may hear no more of a socket after an error (uvloop does not), so there it is left to psycopg.
    """

    answer_timeout: float | None = None
    _socket: _Socket | None = None

    async def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        timeout = self.answer_timeout if timeout is None else timeout
        if self._socket is None:
            self._socket = _Socket()
        if not self._socket.enter(self.pgconn.socket):
            return await super().wait(gen, interval, timeout)
        try:
            return await self._socket.finish(gen, timeout)
        except (asyncio.CancelledError, KeyboardInterrupt) as error:
            self._socket.leave()
            return await super().wait(_Interrupted(gen, error), interval)  # type: ignore[arg-type]
        except BaseException:
            if self.pgconn.status != ConnStatus.OK:
                self._socket.leave()
            raise

    async def close(self) -> None:
        self._leave()
        await super().close()

    def __del__(self, *warn: Any) -> None:
        self._leave()
        super().__del__(*warn)

    def _leave(self) -> None:
        if self._socket is not None:
            self._socket.leave()


class _Socket:
    """A connection's socket, which an event loop watches.

    The loop gets a duplicate: libpq may close its own at any time, and a loop that still watched that number would
    take the next file that gets it for this one.  It does not know the connection, which could not be collected then.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._twin: socket.socket | None = None
        self._pid = 0
        self._waiter: asyncio.Future[int] | None = None
        self._is_unread = False
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, fileno: int) -> bool:
        """Have the running loop watch the socket; says whether it does."""
        if self._loop is None:
            loop = asyncio.get_running_loop()
            if not isinstance(loop, asyncio.SelectorEventLoop):
                return False
            try:
                self._twin = socket.fromfd(fileno, socket.AF_INET, socket.SOCK_STREAM)
            except OSError:  # this process may open no more files
                return False
            loop.add_reader(self._twin, self._wake, READ)
            self._loop, self._pid = loop, os.getpid()
        return True

    async def finish(self, gen: Any, timeout: float | None) -> Any:
        """What a generator of psycopg's returns in the end, which yields what it waits for."""
        loop, twin = self._loop, self._twin
        assert loop is not None
        assert twin is not None
        try:
            waits_for = next(gen)
            if timeout is not None:
                self._deadline = loop.time() + timeout
                if self._timer is not None and self._timer.when() > self._deadline:
                    self._timer.cancel()
                    self._timer = None
                if self._timer is None:
                    self._timer = loop.call_at(self._deadline, self._expire)
            while True:
                self._waiter = loop.create_future()
                self._is_unread = False
                if waits_for & WRITE:
                    loop.add_writer(twin, self._wake, WRITE)
                try:
                    ready = await self._waiter
                finally:
                    self._waiter = None
                    if waits_for & WRITE and self._twin is twin:
                        loop.remove_writer(twin)
                if self._twin is not twin:
                    raise psycopg.OperationalError("the connection was closed meanwhile")
                waits_for = gen.send(ready)
        except StopIteration as stop:
            return stop.value
        finally:
            self._deadline = math.inf

    def leave(self) -> None:
        """Let the loop forget it, until the next wait; who waits now finds that the connection is closed."""
        loop, self._loop = self._loop, None
        twin, self._twin = self._twin, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if twin is None:
            return
        # In a child the loop's selector is the parent's: what is removed there is deaf here.
        if loop is not None and not loop.is_closed() and self._pid == os.getpid():
            loop.remove_reader(twin)
            loop.remove_writer(twin)
            if self._waiter is not None:
                loop.call_soon_threadsafe(self._wake, READ)  # the loop may be another thread's
        twin.close()

    def _wake(self, ready: int) -> None:
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(ready)
        elif not self._is_unread:
            self._is_unread = True  # the loop saw it once more before the one that waited came to read
        else:
            self.leave()  # the server has closed it, or has something to say that nobody asked for

    def _expire(self) -> None:
        """The one timer has come to its end, and most often another wait has begun since it was set."""
        assert self._loop is not None
        self._timer = None
        if self._deadline > self._loop.time():
            if self._deadline < math.inf:
                self._timer = self._loop.call_at(self._deadline, self._expire)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(psycopg.errors._WaitTimeout("wait timeout expired"))


class _Interrupted:
    """A generator of psycopg's whose wait was interrupted: psycopg cancels the statement and waits for its end."""

    def __init__(self, gen: Any, error: BaseException) -> None:
        self._gen = gen
        self._error: BaseException | None = error

    def __next__(self) -> int:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return READ

    def send(self, ready: int) -> Any:
        return self._gen.send(ready)


class PostgreSQLBackend(Backend):
    """A table of a PostgreSQL database, 12 or newer.

    One connection serves all threads or tasks, one after the other, unless there is a pool.

    Args:
        url: ``postgresql://user:password@host:5432/database``.
        table: the table's name, any text of up to 63 bytes.
        schema: the table's schema, which must exist; by default the first of the search path.
        pool: the most connections of a pool; 0 is one connection and no pool.
        prepare: prepare statements; say False behind a PgBouncer in transaction mode that does not support it.
        timeout: seconds to wait for a connection, and for an answer.
        driver_options: all others go to libpq, such as ``sslmode`` or ``application_name``.
    """

    default_port = 5432

    def __init__(
        self,
        url: str,
        *,
        asynchronous: bool = False,
        table: str = "kvpersist",
        schema: str = "",
        pool: int = 0,
        prepare: bool = True,
        timeout: float = 30.0,
        **driver_options: Any,
    ) -> None:
        super().__init__(
            url,
            asynchronous=asynchronous,
            table=table,
            schema=schema,
            pool=pool,
            prepare=prepare,
            timeout=timeout,
            **driver_options,
        )
        for name in (table, schema or "public"):
            if not name or "\0" in name or len(name.encode()) > MAX_NAME:
                raise OptionError(f"{name!r} cannot be a name in PostgreSQL: those have 1 to {MAX_NAME} bytes, no NUL")
        settings = {"connect_timeout": max(2, math.ceil(timeout)), **driver_options}
        if url == _GIVEN:
            url = "postgresql://"
        try:
            conninfo = make_conninfo(url)
        except (psycopg.Error, ValueError):
            # Neither the message nor the cause: libpq quotes the part it stumbles over, which may be the password.
            raise OptionError(
                f"{redacted(url)} is no URL that PostgreSQL understands; special characters in a user's name or a "
                "password must be percent-encoded"
            ) from None
        try:
            self._conninfo = make_conninfo(conninfo, **settings)
        except psycopg.Error as error:
            raise OptionError(f"{redacted(url)}: {error}") from error
        self._pool = pool
        self._prepare = prepare
        self._timeout = timeout
        self._table = Identifier(*filter(None, (schema, table))).as_string(None)
        self._table_is_there = False
        self._clients: Clients[Any] | GivenClient[Any] = Clients(
            asynchronous=asynchronous,
            connect=self._connect,
            disconnect=self._disconnect,
            abandon=_abandon,
        )
        name = self._table
        self._get = _statement(f"SELECT value FROM {name} WHERE key = $1", "text")
        insert = f"INSERT INTO {name} (key, value) VALUES ($1, $2) ON CONFLICT"
        self._put = {
            "create": _statement(f"{insert} DO NOTHING RETURNING 1", "text", "bytea"),
            "overwrite": _statement(
                f"{insert} (key) DO UPDATE SET value = excluded.value RETURNING 1", "text", "bytea"
            ),
        }
        self._replace = _statement(
            f"UPDATE {name} SET value = $3 WHERE key = $1 AND value = $2 RETURNING 1", "text", "bytea", "bytea"
        )
        self._remove = _statement(f"DELETE FROM {name} WHERE key = $1 AND value = $2 RETURNING 1", "text", "bytea")
        # The limit is part of the statement: with it as a parameter the server would plan anew each time, since a
        # plan for any limit looks dearer to it than the one for this limit.
        self._keys = f"SELECT key, NULL::bytea FROM {name} WHERE key >= $1 AND key < $2 ORDER BY key LIMIT "
        self._items = f"SELECT key, value FROM {name} WHERE key >= $1 AND key < $2 ORDER BY key LIMIT "
        # A skip scan: each step seeks the first key behind all that the last child stands for.
        self._children = f"""
            WITH RECURSIVE
              found(key) AS (
                (SELECT key FROM {name} WHERE key >= $1 AND key < $2 ORDER BY key LIMIT 1)
                UNION ALL
                SELECT (SELECT key FROM {name} WHERE key < $2 AND key >=
                          CASE strpos(substr(found.key, $3), '/') WHEN 0 THEN found.key || ' ' ELSE
                            left(found.key, $3 - 2 + strpos(substr(found.key, $3), '/')) || '0' END
                        ORDER BY key LIMIT 1)
                FROM found WHERE found.key IS NOT NULL
              )
            SELECT CASE strpos(substr(key, $3), '/') WHEN 0 THEN key
                     ELSE left(key, $3 - 1 + strpos(substr(key, $3), '/')) END, NULL::bytea
            FROM found WHERE key IS NOT NULL LIMIT """
        name = name.replace("%", "%%")
        self._get_several = f"SELECT key, value FROM {name} WHERE key = ANY(%s::text[])"
        self._create_all = (
            f'INSERT INTO {name} (key, value) SELECT key, value FROM "new entries" '
            f'WHERE NOT EXISTS (SELECT 1 FROM {name} JOIN "new entries" USING (key)) RETURNING 1'
        )
        self._delete = f"WITH gone AS (DELETE FROM {name} WHERE key = ANY(%s::text[])) SELECT 1"

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool, **options: Any) -> PostgreSQLBackend:
        """The store behind a connection in autocommit mode or a pool of such, sync or async."""
        kinds = (
            (psycopg.AsyncConnection, psycopg_pool.AsyncConnectionPool)
            if asynchronous
            else (psycopg.Connection, psycopg_pool.ConnectionPool)
        )
        if not isinstance(client, kinds):
            raise OptionError(
                f"this needs {'an async' if asynchronous else 'a sync'} client, a psycopg.{kinds[0].__name__} or "
                f"psycopg_pool.{kinds[1].__name__}, not a {type(client).__module__}.{type(client).__qualname__}"
            )
        unknown = options.keys() - {"table", "schema", "prepare"}
        if unknown:
            raise OptionError(
                f"a store made of a client has no option {min(unknown)!r}; known are prepare, schema, table"
            )
        is_pool = isinstance(client, kinds[1])
        if not is_pool:
            _check_autocommit(client)
        backend = cls(_GIVEN, asynchronous=asynchronous, pool=int(is_pool), **options)
        backend._clients = GivenClient(client)
        return backend

    def open(self) -> Step[None]:
        yield from self._rows(self._get, b"")

    def close(self) -> Step[None]:
        yield from self._clients.close()

    def get(self, key: str) -> Step[bytes | None]:
        rows = yield from self._rows(self._get, key.encode())
        return rows[0][0] if rows else None

    def get_many(self, keys: Iterable[str]) -> Step[list[bytes | None]]:
        keys = list(keys)
        if not keys:
            return []
        found = dict((yield from self._fetchall(self._get_several, (keys,))))
        return [found.get(key) for key in keys]

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        return bool((yield from self._rows(self._put[mode], key.encode(), value)))

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        # One statement, and so all or none.
        values = ", ".join(['(%s::text COLLATE "C", %b::bytea)'] * len(entries))
        statement = f'WITH "new entries" (key, value) AS (VALUES {values}) {self._create_all}'
        try:
            return bool((yield from self._fetchall(statement, [each for entry in entries for each in entry])))
        except StoreError as error:
            if isinstance(error.__cause__, psycopg.errors.UniqueViolation):
                return False  # somebody else made one of them at the same time
            raise

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        if new is None:
            return bool((yield from self._rows(self._remove, key.encode(), old)))
        return bool((yield from self._rows(self._replace, key.encode(), old, new)))

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
        parameters = [start.encode(), end.encode()]
        if delimiter:
            statement = _statement(f"{self._children}{limit:d}", "text", "text", "int4")
            parameters.append((len(prefix) + 1).to_bytes(4, "big"))
        else:
            statement = _statement(f"{self._items if values else self._keys}{limit:d}", "text", "text")
        rows = yield from self._rows(statement, *parameters)
        entries = [(key.decode(), value) for key, value in rows]
        return Page(entries, entries[-1][0] if len(entries) == limit else None)

    def delete(self, keys: Iterable[str]) -> Step[None]:
        yield from self._fetchall(self._delete, (list(keys),))

    def _fetchall(self, statement: str, parameters: Any) -> Step[list[Any]]:
        """The rows of a statement, through a cursor."""
        return self._run(self._through_cursor, statement, parameters)

    def _rows(self, statement: _Statement, *parameters: bytes) -> Step[list[Any]]:
        """The rows of a statement that goes to libpq as it is."""
        return self._run(self._through_libpq, statement, parameters)

    def _run(self, through: Callable[..., Step[list[Any]]], statement: Any, parameters: Any) -> Step[list[Any]]:
        """The one place where statements run.

        A connection that the server has closed is noticed when it is used.  Every operation may be done twice, so it
        is done again on a new one.
        """
        try:
            try:
                return (yield from self._run_once(through, statement, parameters))
            except _Broken:
                return (yield from self._run_once(through, statement, parameters))
        except _Broken as broken:
            raise self._translated(broken.error) from broken.error
        except psycopg.errors.UndefinedTable as error:
            if self.read_only:
                return []
            raise self._translated(error) from error
        except psycopg.Error as error:
            raise self._translated(error) from error

    def _run_once(self, through: Callable[..., Step[list[Any]]], statement: Any, parameters: Any) -> Step[list[Any]]:
        client = yield from self._clients.get()
        connection = (yield client.getconn()) if self._pool else client
        try:
            if not self._table_is_there and not self.read_only:
                yield from self._make_table(connection)
            rows = yield from through(connection, statement, parameters)
        except BaseException as error:
            # The answer may still come, and would be taken for another's.
            is_waiting = connection.pgconn.transaction_status == TransactionStatus.ACTIVE
            if isinstance(error, GeneratorExit):  # nothing can be waited for any more
                if is_waiting and connection is client and not isinstance(self._clients, GivenClient):
                    self._clients.drop(client)
                    _abandon(client)
                raise
            is_late = isinstance(error, psycopg.errors._WaitTimeout)
            if (is_late or is_waiting) and not isinstance(self._clients, GivenClient):
                yield connection.close()
            if self._pool:
                yield client.putconn(connection)
            elif connection.closed:
                self._clients.drop(client)
            if connection.closed and not is_late and isinstance(error, psycopg.OperationalError):
                if self._pool:
                    yield client.check()  # where one has been closed, others have
                raise _Broken(error) from error
            raise
        if self._pool:
            yield client.putconn(connection)
        return rows

    def _through_cursor(self, connection: Any, statement: str, parameters: Any) -> Step[list[Any]]:
        cursor = connection.cursor(binary=True, row_factory=tuple_row)
        yield cursor.execute(statement, parameters, prepare=self._prepare)
        rows: list[Any] = yield cursor.fetchall()
        return rows

    def _through_libpq(self, connection: Any, statement: _Statement, parameters: tuple[bytes, ...]) -> Step[list[Any]]:
        if connection.pgconn.pipeline_status:
            raise OptionError("the connection is in pipeline mode, in which nothing is answered; leave it first")
        yield connection.lock.acquire()
        try:
            result = yield connection.wait(_query(connection, statement, parameters, prepare=self._prepare))
        finally:
            connection.lock.release()
        value, columns = result.get_value, range(result.nfields)
        return [[value(row, column) for column in columns] for row in range(result.ntuples)]

    def _connect(self) -> Step[Any]:
        connection_class: Any = _AsyncConnection if self.asynchronous else _Connection
        connection = yield connection_class.connect(self._conninfo, autocommit=True)
        connection.answer_timeout = self._timeout
        if not self._pool:
            return connection
        # That worked, so it is worth while to start a pool.
        yield connection.close()
        pool_class: Any = psycopg_pool.AsyncConnectionPool if self.asynchronous else psycopg_pool.ConnectionPool
        pool = pool_class(
            self._conninfo,
            connection_class=connection_class,
            kwargs={"autocommit": True},
            configure=self._configure_async if self.asynchronous else self._configure,
            min_size=1,
            max_size=self._pool,
            timeout=self._timeout,
            open=False,
        )
        yield pool.open()
        return pool

    def _configure(self, connection: _Connection) -> None:
        connection.answer_timeout = self._timeout

    async def _configure_async(self, connection: _AsyncConnection) -> None:
        connection.answer_timeout = self._timeout

    def _disconnect(self, client: Any) -> Step[None]:
        yield client.close()

    def _make_table(self, connection: Any) -> Step[None]:
        _check_autocommit(connection)
        columns = yield from self._columns(connection)
        if not columns:
            # Of two that find that it does not exist one may be told that it does.
            with contextlib.suppress(*_EXISTS_ALREADY):
                # Both in one message are one transaction.
                yield connection.execute(
                    f'CREATE TABLE IF NOT EXISTS {self._table} (key text COLLATE "C" PRIMARY KEY, '
                    f"value bytea NOT NULL); ALTER TABLE {self._table} ALTER COLUMN value SET STORAGE EXTERNAL",
                    prepare=False,
                )
            columns = yield from self._columns(connection)
        if columns != [("key", "text", "C", True), ("value", "bytea", None, False)]:
            raise StoreError(
                f"{redacted(self.url)}: the table {self._table} is not one of kvpersist's; "
                "choose another with table=..."
            )
        self._table_is_there = True

    def _columns(self, connection: Any) -> Step[list[Any]]:
        cursor = connection.cursor(row_factory=tuple_row)
        yield cursor.execute(
            """SELECT attname::text, format_type(atttypid, atttypmod), collname::text, EXISTS (
                   SELECT FROM pg_catalog.pg_index
                   WHERE indrelid = attrelid AND indisunique AND indnatts = 1 AND indkey[0] = attnum)
               FROM pg_catalog.pg_attribute LEFT JOIN pg_catalog.pg_collation AS c ON c.oid = attcollation
               WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum""",
            (self._table,),
            prepare=False,
        )
        columns: list[Any] = yield cursor.fetchall()
        return columns

    def _translated(self, error: psycopg.Error) -> StoreError:
        where = redacted(self.url)
        if isinstance(error, psycopg.errors._WaitTimeout):
            return StoreUnavailableError(f"{where}: no answer within {self._timeout} s")
        if isinstance(error, (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)):
            return StoreError(f"{where}: {error}; behind a PgBouncer that does not know them, say prepare=False")
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return StoreError(f"{where}: the user lacks a right: {error}")
        if isinstance(error, psycopg.OperationalError) and not isinstance(error, _REFUSED):
            return StoreUnavailableError(f"{where}: {error}")
        return StoreError(f"{where}: {error}")


class _Broken(Exception):
    """The connection is closed, and that was found out only now."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(error)
        self.error = error


def _query(
    connection: Any, statement: _Statement, parameters: tuple[bytes, ...], *, prepare: bool
) -> Generator[Any, Any, Any]:
    """The result of a statement, as a generator that connections of psycopg's wait for."""
    sql, name, types = statement
    pgconn = connection.pgconn
    binary = (1,) * len(types)
    if not sql.isascii():
        sql = sql.decode().encode(connection.info.encoding)
    prepared: set[bytes] | None = _prepared.get(connection)
    if prepared is None:
        prepared = _prepared[connection] = set()
    # What fails in a transaction of the caller's would end it.
    if prepare and not pgconn.transaction_status and connection.prepare_threshold is not None:
        if name in prepared:
            pgconn.send_query_prepared(name, parameters, binary, 1)
            try:
                return _checked((yield from execute(pgconn)))
            except psycopg.errors.InvalidSqlStatementName:  # somebody has deallocated it
                prepared.discard(name)
        if len(prepared) < MOST_PREPARED:
            pgconn.send_prepare(name, sql, types)
            # A task that was cancelled here may have prepared it; what has this name is this statement.
            with contextlib.suppress(psycopg.errors.DuplicatePreparedStatement):
                _checked((yield from execute(pgconn)))
            prepared.add(name)
            pgconn.send_query_prepared(name, parameters, binary, 1)
            return _checked((yield from execute(pgconn)))
    pgconn.send_query_params(sql, parameters, types, binary, 1)
    return _checked((yield from execute(pgconn)))


def _checked(results: list[Any]) -> Any:
    """The result of a statement, or its error."""
    (result,) = results
    if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        raise psycopg.errors.error_from_result(result)
    return result


_prepared: WeakKeyDictionary[Any, set[bytes]] = WeakKeyDictionary()
"""The names of the statements that are prepared on a connection, whoever uses it."""

_GIVEN = "postgresql://client"
# What the loser of a race to make a table may be told, depending on how far the winner was.
_EXISTS_ALREADY = (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation)
# Errors that waiting does not help against, though they are operational.
_REFUSED = (
    psycopg.errors.InvalidPassword,
    psycopg.errors.InvalidAuthorizationSpecification,
    psycopg.errors.DiskFull,
    psycopg.errors.OutOfMemory,
)


def _check_autocommit(connection: Any) -> None:
    if not connection.autocommit:
        raise OptionError(
            "the connection must be in autocommit mode, or every read would leave a transaction open: "
            "psycopg.connect(..., autocommit=True); for a pool, kwargs={'autocommit': True}"
        )


def _abandon(client: Any) -> None:
    # The loop is gone, and with it what could close a pool; a connection needs no loop to go.
    if isinstance(client, _AsyncConnection):
        client._leave()
        client.pgconn.finish()
