"""PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import selectors
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.sql import SQL, Identifier
from server_contract import ServerContract, SharedStoreContract, state
from servers import Server, new_pgbouncer, new_postgresql, unique

from kvpersist import AsyncStore, ClosedError, ConflictError, OptionError, Persister, Store, StoreError
from kvpersist.testing.faces import Face, FaceFixtures


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    server = new_postgresql()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def server(postgresql: Server) -> Server:
    """What the tests connect to."""
    return postgresql


class TestPostgreSQL(ServerContract):
    @pytest.fixture
    def place(self) -> dict[str, Any]:
        return {"table": unique()}

    def url(self, port: int) -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/postgres?timeout=1"

    def client(self, url: str, *, asynchronous: bool) -> Any:
        kind: Any = psycopg.AsyncConnection if asynchronous else psycopg.Connection
        return kind.connect(url.partition("?")[0], autocommit=True)


class TestPool(SharedStoreContract):
    @pytest.fixture
    def place(self) -> dict[str, Any]:
        return {"table": unique()}

    def url(self, port: int) -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/postgres?timeout=2&pool=3"

    def client(self, url: str, *, asynchronous: bool) -> Any:
        kind: Any = psycopg_pool.AsyncConnectionPool if asynchronous else psycopg_pool.ConnectionPool
        pool = kind(url.partition("?")[0], kwargs={"autocommit": True}, open=False)
        return opened(pool) if asynchronous else (pool.open(), pool)[1]

    def test_connections_killed_in_the_pool_are_replaced(
        self, face: Face, server: Server, place: dict[str, Any]
    ) -> None:
        persister = face.persister(self.url(server.port), application_name=place["table"], **place)
        for attempt in range(3):
            saves = [("p", "a", 20 * attempt + number, "step", state(number), "completed") for number in range(20)]
            assert face.at_once(persister, "save", saves) == [None] * 20
            assert _kill_connections(server, place["table"]) >= 1
        assert len(list(persister.history("p", "a"))) == 60

    def test_all_connections_are_closed_in_the_end(self, face: Face, server: Server, place: dict[str, Any]) -> None:
        persister = face.persister(self.url(server.port), application_name=place["table"], **place)
        saves = [("p", "a", number, "step", state(number), "completed") for number in range(20)]
        face.at_once(persister, "save", saves)
        persister.cleanup()
        _until(lambda: _activity(server, place["table"]) == [])


class TestPgBouncer(SharedStoreContract):
    """In transaction mode, where each statement may run on another connection."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, postgresql: Server) -> Iterator[Server]:
        bouncer = new_pgbouncer(postgresql)
        yield bouncer
        bouncer.kill()

    @pytest.fixture
    def place(self) -> dict[str, Any]:
        return {"table": unique(), "prepare": False}

    def url(self, port: int) -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/postgres?timeout=2"

    def client(self, url: str, *, asynchronous: bool) -> Any:
        kind: Any = psycopg.AsyncConnection if asynchronous else psycopg.Connection
        return kind.connect(url.partition("?")[0], autocommit=True)

    def test_more_clients_than_connections(self, face: Face, server: Server, place: dict[str, Any]) -> None:
        persisters = [face.persister(self.url(server.port), **place) for _ in range(6)]
        for number in range(10):
            for which, persister in enumerate(persisters):
                persister.save("p", f"app{which}", number, "step", state(number), "completed")
                assert persister.load("p", f"app{which}")["state"]["n"] == number
        assert persisters[0].list_app_ids("p") == [f"app{which}" for which in range(6)]

    def test_a_bouncer_that_knows_no_prepared_statements(
        self, face: Face, server: Server, place: dict[str, Any]
    ) -> None:
        """Debian 12's is older than 1.21: a statement is missing on one connection, and on another there already."""
        persisters = [face.persister(self.url(server.port), **{**place, "prepare": True}) for _ in range(6)]
        arguments = [("p", "a", number, "step", state(number), "completed") for number in range(10)]
        results = [result for persister in persisters for result in face.at_once(persister, "save", arguments)]
        assert all(result is None or "say prepare=False" in str(result) for result in results)
        persister = face.persister(self.url(server.port), **place)
        assert face.at_once(persister, "save", arguments) == [None] * 10

    def test_a_bouncer_that_forgets_prepared_statements(
        self, face: Face, postgresql: Server, place: dict[str, Any]
    ) -> None:
        bouncer = new_pgbouncer(postgresql, "server_reset_query = DISCARD ALL", "server_reset_query_always = 1")
        try:
            persister = face.persister(self.url(bouncer.port), **{**place, "prepare": True})
            with pytest.raises(StoreError, match="say prepare=False"):
                persister.save("p", "a", 1, "step", state(1), "completed")
            persister = face.persister(self.url(bouncer.port), **place)
            persister.save("p", "a", 1, "step", state(1), "completed")
            assert persister.load("p", "a")["state"]["n"] == 1
        finally:
            bouncer.kill()


async def opened(pool: Any) -> Any:
    await pool.open()
    return pool


class TestTables(FaceFixtures):
    @pytest.fixture
    def url(self, server: Server) -> str:
        return f"postgresql://postgres@127.0.0.1:{server.port}/postgres"

    @pytest.mark.parametrize(
        "name",
        [
            'a"b',
            '"; DROP TABLE precious; --',
            "'; DROP TABLE precious; --",
            "%s",
            "%(key)s %b %%",
            "$1",
            "Select",
            "a.b",
            "two words",
            "日本語",
            "x" * 63,
            "\\",
        ],
    )
    def test_any_name_of_a_table_or_schema(self, face: Face, url: str, name: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS precious ()")
            connection.execute(SQL("CREATE SCHEMA IF NOT EXISTS {}").format(Identifier(name)))
            persister = face.persister(url, table=name, schema=name)
            persister.save("p", "a", 1, "step", state(name), "completed")
            persister.save("p", "a", 2, "step", state(name), "completed")
            assert persister.load("p", "a")["state"]["n"] == name
            assert persister.list_app_ids("p") == ["a"]
            assert persister.delete_app("p", "a") == 2
            connection.execute("SELECT FROM precious")
            assert connection.execute(
                "SELECT count(*) FROM pg_tables WHERE schemaname = %s AND tablename = %s", (name, name)
            ).fetchone() == (1,)
            connection.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(name)))

    @pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, "é" * 32])
    def test_what_is_no_name_is_refused(self, face: Face, url: str, name: str) -> None:
        with pytest.raises(OptionError, match="cannot be a name"):
            face.store(url, table=name)

    def test_a_value_is_stored_as_it_is_and_out_of_line(self, face: Face, url: str) -> None:
        table = unique()
        face.store(url, table=table).put("a", b"x" * 100_000)
        with psycopg.connect(url) as connection:
            name = Identifier(table)
            assert connection.execute(SQL("SELECT pg_column_size(value) FROM {}").format(name)).fetchone() == (100_000,)
            pages = connection.execute("SELECT pg_relation_size(%s::regclass)", (table,)).fetchone()
            assert pages == (8192,)

    def test_many_initialize_at_once(self, url: str) -> None:
        for _ in range(10):
            table = unique()
            persisters = [Persister.from_url(url, table=table) for _ in range(4)]
            with ThreadPoolExecutor(4) as threads:
                assert list(threads.map(lambda each: each.initialize(), persisters)) == [None] * 4
            for each in persisters:
                each.initialize()
                each.cleanup()

    def test_a_foreign_table_is_left_alone(self, face: Face, url: str) -> None:
        for columns in (
            "id int",
            "key text PRIMARY KEY, value bytea NOT NULL",  # in the order of some language
            'key text COLLATE "C", value bytea',  # not unique
        ):
            table = unique()
            with psycopg.connect(url) as connection:
                connection.execute(SQL("CREATE TABLE {} ({})").format(Identifier(table), SQL(columns)))
            with pytest.raises(StoreError, match="not one of kvpersist's"):
                face.persister(url, table=table).initialize()

    def test_least_rights(self, face: Face, server: Server, url: str) -> None:
        table, role = unique(), unique()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(role)))
            mine = f"postgresql://{role}@127.0.0.1:{server.port}/postgres"
            with pytest.raises(StoreError, match="lacks a right"):
                face.persister(mine, table=table).initialize()
            face.persister(url, table=table).initialize()
            connection.execute(
                SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}").format(Identifier(table), Identifier(role))
            )
        persister = face.persister(mine, table=table)
        persister.initialize()
        persister.save("p", "a", 1, "step", state(0), "failed")
        persister.save("p", "a", 1, "step", state(1), "completed")
        assert persister.load("p", "a")["state"]["n"] == 1
        assert persister.list_app_ids("p") == ["a"]
        assert persister.delete_app("p", "a") == 1

    def test_a_missing_schema_says_so(self, face: Face, url: str) -> None:
        with pytest.raises(StoreError, match="nowhere"):
            face.persister(url, schema="nowhere").initialize()


class TestConnections(FaceFixtures):
    @pytest.fixture
    def url(self, server: Server) -> str:
        return f"postgresql://postgres@127.0.0.1:{server.port}/postgres"

    def test_no_operation_leaves_a_transaction(self, face: Face, server: Server, url: str) -> None:
        name = unique()
        persister = face.persister(url, table=name, application_name=name)
        persister.save("p", "a", 1, "step", state(1), "completed")
        with pytest.raises(ConflictError):
            persister.save("p", "a", 1, "step", state(2), "completed")
        for operation in (
            lambda: persister.load("p", "a"),
            lambda: persister.load("p", "b"),
            lambda: persister.list_app_ids("p"),
            lambda: list(persister.history("p", "a")),
            lambda: persister.save("p", "a", 2, "step", state(2), "completed"),
        ):
            operation()
            assert _activity(server, name) == ["idle"]

    def test_a_killed_connection_is_replaced(self, face: Face, server: Server, url: str) -> None:
        name = unique()
        persister = face.persister(url, table=name, application_name=name)
        for number in range(5):
            persister.save("p", "a", number, "step", state(number), "completed")
            assert _kill_connections(server, name) == 1
            assert persister.load("p", "a")["sequence_id"] == number
            assert _kill_connections(server, name) == 1
            saves = [("p", f"b{number}", each, "step", state(each), "completed") for each in range(8)]
            assert face.at_once(persister, "save", saves) == [None] * 8
            assert len(_activity(server, name)) == 1

    def test_statements_are_prepared_unless_told_otherwise(self, face: Face, server: Server, url: str) -> None:
        for prepare in (True, False):
            name = unique()
            kind: Any = psycopg.AsyncConnection if face.asynchronous else psycopg.Connection
            connection = kind.connect(url, autocommit=True)
            if face.asynchronous:
                connection = face.loop.run_until_complete(connection)
            store_kind: Any = AsyncStore if face.asynchronous else Store
            store = face.adopt(store_kind.from_client(connection, table=name, prepare=prepare))
            for number in range(10):
                store.put(f"a/{number}", b"x", "create")
                store.scan("a/", limit=1)

            async def prepared(connection: Any = connection) -> int:
                cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
                return (await cursor.fetchone())[0]

            if face.asynchronous:
                count = face.loop.run_until_complete(prepared())
                face.loop.run_until_complete(connection.close())
            else:
                count = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()[0]
                connection.close()
            assert count == (2 if prepare else 0)

    def test_what_was_prepared_may_be_deallocated(self, url: str) -> None:
        with (
            psycopg.connect(url, autocommit=True) as connection,
            Persister.from_client(connection, table=unique()) as persister,
        ):
            for number in range(3):
                persister.save("p", "a", number, "step", state(number), "completed")
                assert persister.load("p", "a")["sequence_id"] == number  # type: ignore[index]
                connection.execute("DEALLOCATE ALL")

    def test_a_pool_whose_connections_forget_what_was_prepared(self, url: str) -> None:
        def forget(connection: Any) -> None:
            connection.execute("DISCARD ALL")

        with (
            psycopg_pool.ConnectionPool(url, min_size=3, reset=forget, kwargs={"autocommit": True}) as pool,
            Store.from_client(pool, table=unique()) as store,
        ):
            for number in range(20):
                assert store.put(f"a/{number}", b"x", "create") is True

    def test_the_caller_decides_what_is_prepared(self, url: str) -> None:
        with (
            psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection,
            Store.from_client(connection, table=unique()) as store,
        ):
            for number in range(3):
                store.put(f"a/{number}", b"x")
            assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)

    def test_nothing_fails_that_would_end_a_transaction_of_the_callers(self, url: str) -> None:
        with (
            psycopg.connect(url, autocommit=True) as connection,
            Store.from_client(connection, table=unique()) as store,
        ):
            store.put("a/1", b"x")
            connection.execute("DEALLOCATE ALL")
            with connection.transaction():
                store.put("a/2", b"y")
                store.put("a/3", b"z", "create")
            assert [key for key, _ in store.scan("a/").entries] == ["a/1", "a/2", "a/3"]

    def test_pipeline_mode_is_refused(self, url: str) -> None:
        with (
            psycopg.connect(url, autocommit=True) as connection,
            Store.from_client(connection, table=unique()) as store,
        ):
            store.put("a/1", b"x")
            with connection.pipeline(), pytest.raises(OptionError, match="pipeline mode"):
                store.put("a/2", b"y")
            assert store.get("a/2") is None

    def test_another_encoding(self, face: Face, url: str) -> None:
        for table in (f"käse{unique()}", unique()):
            store = face.store(url, table=table, client_encoding="latin1")
            store.put("a/b", b"x")
            assert store.get("a/b") == b"x"
            assert face.store(url, table=table).get("a/b") == b"x"

    def test_no_connection_prepares_without_end(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            with Store.from_client(connection, table=unique()) as store:
                store.put("a/b", b"x")
                for limit in range(1, 150):
                    assert store.scan("a/", limit=limit, values=True).entries == [("a/b", b"x")]
            assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (100,)

    def test_a_statement_is_planned_once(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            with Persister.from_client(connection, table=unique()) as persister:
                for number in range(20):
                    persister.save("p", f"app{number}", 1, "step", state(number), "completed")
                    persister.load("p", "app0")
                    persister.list_app_ids("p")
            plans = connection.execute("SELECT generic_plans, custom_plans FROM pg_prepared_statements").fetchall()
        assert len(plans) == 3
        for generic, custom in plans:
            assert custom == 5  # what the server tries before it decides
            assert generic >= 10

    def test_a_cancelled_task_leaves_a_connection_that_works(self, url: str) -> None:
        async def main() -> None:
            async with AsyncStore.from_url(url, table=unique()) as store:
                await store.put("a/b", b"x" * 100)
                for delay in (0, 0.0001, 0.0005, 0.001, 0.005):
                    tasks = [asyncio.ensure_future(store.get("a/b")) for _ in range(20)]
                    await asyncio.sleep(delay)
                    for task in tasks[::2]:
                        task.cancel()
                    results = await asyncio.gather(*tasks, return_exceptions=True)
                    assert results[1::2] == [b"x" * 100] * 10
                    assert await store.get("a/b") == b"x" * 100

        asyncio.run(main())

    def test_a_connection_that_ends_while_idle_keeps_no_loop_busy(self, server: Server, url: str) -> None:
        rounds = 0

        class Counting(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                nonlocal rounds
                rounds += 1
                return super().select(timeout)

        async def main() -> None:
            name = unique()
            async with AsyncStore.from_url(url, table=name, application_name=name) as store:
                await store.put("a/b", b"x")
                assert _kill_connections(server, name) == 1
                before = rounds
                await asyncio.sleep(0.3)
                assert rounds - before < 20
                assert await store.get("a/b") == b"x"

        loop = asyncio.SelectorEventLoop(Counting())
        loop.run_until_complete(main())
        loop.close()

    def test_a_connection_that_ended_leaves_its_number_to_others(self, server: Server, url: str) -> None:
        """The loop must not take another socket with its file descriptor for it."""

        async def main() -> None:
            name = unique()
            async with AsyncStore.from_url(url, table=name, application_name=name) as store:
                await store.put("a/b", b"x")
                for _ in range(10):
                    assert _kill_connections(server, name) == 1
                    with contextlib.suppress(StoreError):
                        await store.get("a/b")
                    await _others_are_heard(server)
                    assert await store.get("a/b") == b"x"

        asyncio.run(main())

    def test_closing_ends_what_waits(self, url: str) -> None:
        async def main() -> None:
            table = unique()
            store = AsyncStore.from_url(url, table=table)
            await store.put("a/b", b"x")
            with psycopg.connect(url) as connection:
                connection.execute(SQL("LOCK TABLE {}").format(Identifier(table)))
                reading = asyncio.ensure_future(store.get("a/b"))
                await asyncio.sleep(0.1)
                await store.close()
                with pytest.raises((StoreError, ClosedError)):
                    await asyncio.wait_for(reading, 5)

        asyncio.run(main())

    def test_closing_on_another_loop_ends_what_waits(self, url: str) -> None:
        table = unique()
        store = AsyncStore.from_url(url, table=table)

        async def read() -> None:
            assert await store.get("a/b") == b"x"
            with psycopg.connect(url) as connection:
                connection.execute(SQL("LOCK TABLE {}").format(Identifier(table)))
                reading = asyncio.ensure_future(store.get("a/b"))
                await asyncio.sleep(0.1)
                threads.submit(asyncio.run, store.close())
                with pytest.raises((StoreError, ClosedError)):
                    await asyncio.wait_for(reading, 5)

        with ThreadPoolExecutor(1) as threads:
            asyncio.run(store.put("a/b", b"x"))
            asyncio.run(read())

    def test_a_call_that_is_closed_leaves_a_store_that_works(self, url: str) -> None:
        async def main() -> None:
            table = unique()
            async with AsyncStore.from_url(url, table=table) as store:
                await store.put("a/b", b"x")
                with psycopg.connect(url) as connection:
                    connection.execute(SQL("LOCK TABLE {}").format(Identifier(table)))
                    reading = store.get("a/b")
                    reading.send(None)
                    reading.close()
                for _ in range(3):
                    assert await store.get("a/b") == b"x"

        asyncio.run(main())

    def test_a_process_without_a_file_descriptor_left(self, url: str) -> None:
        async def main() -> None:
            async with AsyncStore.from_url(url, table=unique()) as store:
                await store.put("a/b", b"x")
                cancelled = asyncio.ensure_future(store.get("a/b"))
                await asyncio.sleep(0)
                cancelled.cancel()
                await asyncio.wait([cancelled])
                limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                with os.scandir("/proc/self/fd") as files:
                    used = max(int(each.name) for each in files)
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, limits[1]))
                taken = []
                try:
                    with contextlib.suppress(OSError):
                        while True:
                            taken.append(os.dup(0))
                    assert await store.get("a/b") == b"x"
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                    for each in taken:
                        os.close(each)
                assert await store.get("a/b") == b"x"

        asyncio.run(main())

    def test_a_child_that_lets_go_does_not_deafen_its_parent(self, url: str) -> None:
        async def main() -> None:
            stores = [AsyncStore.from_url(url, table=unique(), timeout=5)]
            await stores[0].put("a/b", b"x")
            child = os.fork()
            if child == 0:
                stores.clear()
                gc.collect()
                os._exit(0)
            await asyncio.to_thread(os.waitpid, child, 0)
            assert await stores[0].get("a/b") == b"x"
            await stores[0].close()

        asyncio.run(main())

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_a_store_that_nobody_closes_is_collected(self, server: Server, url: str) -> None:
        async def main() -> None:
            name = unique()
            store = AsyncStore.from_url(url, table=name, application_name=name)
            await store.put("a/b", b"x")
            assert _activity(server, name) == ["idle"]
            del store
            gc.collect()
            await asyncio.to_thread(_until, lambda: _activity(server, name) == [])
            await _others_are_heard(server)

        asyncio.run(main())

    def test_a_client_must_be_in_autocommit_mode(self, url: str) -> None:
        with psycopg.connect(url) as connection, pytest.raises(OptionError, match="autocommit"):
            Persister.from_client(connection)
        with (
            psycopg_pool.ConnectionPool(url, min_size=1) as pool,
            Persister.from_client(pool) as persister,
            pytest.raises(OptionError, match="autocommit"),
        ):
            persister.load("p", "a")

    def test_driver_options(self, face: Face, server: Server, url: str) -> None:
        store = face.store(f"{url}?application_name=mine&sslmode=prefer&table={unique()}", keepalives_idle=5)
        store.put("a", b"x")
        assert _activity(server, "mine") == ["idle"]
        with pytest.raises(OptionError, match="colour"):
            face.store(url, colour="red")

    def test_no_error_tells_the_password(self, face: Face, server: Server, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
        try:
            wrong = f"postgresql://guarded:wr0ng@127.0.0.1:{server.port}/nowhere"
            store = face.store(wrong)
            with pytest.raises(StoreError) as caught:
                store.get("a")
            assert "wr0ng" not in f"{caught.value}{caught.value.__cause__}{store!r}"
            for malformed in ("postgresql://me:wr0ng@[bad/db", "postgresql://me:wr0ng%@host/db"):
                with pytest.raises(OptionError) as refused:
                    face.store(malformed).get("a")
                assert "wr0ng" not in f"{refused.value}{refused.value.__cause__}"
        finally:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP ROLE guarded")

    def test_the_list_of_apps_looks_at_no_step(self, url: str) -> None:
        """What the server itself says it read: a row for each app, not one for each step."""
        table = unique()
        with Persister.from_url(url, table=table) as persister, psycopg.connect(url, autocommit=True) as connection:
            for app in range(10):
                persister.save("p", f"app{app}", 0, "step", state(0), "completed")
            connection.execute(
                SQL(
                    "INSERT INTO {0} SELECT replace(key, '9223372036854775807.0.', (1e18 + n)::bigint || '.0.'), value "
                    "FROM {0}, generate_series(1, 3000) AS n"
                ).format(Identifier(table))
            )
            connection.execute(SQL("ANALYZE {}").format(Identifier(table)))
            connection.execute(f"PREPARE children (text, text, int) AS {persister._history.backend._children} 1000")
            plan = connection.execute(
                "EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE children ('kvpersist/p/', 'kvpersist/p0', 13)"
            ).fetchone()
            assert plan is not None
            assert len(persister.list_app_ids("p")) == 10
            assert 10 <= _rows_read(plan[0][0]["Plan"]) <= 30


def _rows_read(plan: dict[str, Any]) -> float:
    own = plan["Actual Rows"] * plan["Actual Loops"] if plan.get("Relation Name") else 0
    own += plan.get("Rows Removed by Filter", 0) * plan["Actual Loops"]
    return own + sum(_rows_read(each) for each in plan.get("Plans", []))


def _activity(server: Server, application_name: str) -> list[str]:
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{server.port}/postgres") as connection:
        rows = connection.execute("SELECT state FROM pg_stat_activity WHERE application_name = %s", (application_name,))
        return [state for (state,) in rows]


def _kill_connections(server: Server, application_name: str) -> int:
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{server.port}/postgres") as connection:
        rows = connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
            (application_name,),
        )
        return sum(killed for (killed,) in rows)


async def _others_are_heard(server: Server) -> None:
    """Some more sockets, to which the server says something."""
    streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
    for reader, writer in streams:
        writer.write(struct.pack("!ii", 8, 80877103))  # may we speak TLS?
        assert await asyncio.wait_for(reader.read(1), 5) == b"N"
        writer.close()
        await writer.wait_closed()


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
