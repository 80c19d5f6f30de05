"""What is particular to SQLite: statements counted, locks, other people's databases, many processes."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from burr.core import State

from kvpersist import AsyncPersister, OptionError, Persister, StoreError, StoreUnavailableError
from kvpersist.steps import arun, run
from kvpersist.testing import Face


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Any:
    face = Face(request.param == "async")
    yield face
    face.close()


def statements_of(face: Face, persister: Any) -> list[str]:
    """A list that every statement this persister runs from now on is added to."""
    seen: list[str] = []
    persister.initialize()
    clients = (persister._target if face.asynchronous else persister)._history.backend._clients
    if face.asynchronous:

        async def trace() -> None:
            for connection in await arun(clients.get()):
                await connection.set_trace_callback(seen.append)

        face.loop.run_until_complete(trace())
    else:
        for connection in run(clients.get()):
            connection._connection.set_trace_callback(seen.append)
    return seen


@pytest.mark.parametrize("depth", [10, 3000])
def test_statements_are_one_an_operation_however_deep(face: Face, path: Path, depth: int) -> None:
    persister = face.persister(f"sqlite://{path}?durable=no")
    fill(persister, depth)
    statements = statements_of(face, persister)

    def counted(call: Any) -> int:
        statements.clear()
        call()
        return len(statements)

    state = State({"n": 1})
    assert counted(lambda: persister.save("p", "a", depth, "step", state, "completed")) == 1
    assert counted(lambda: persister.load("p", "a")) == 1
    assert counted(lambda: persister.load("p", "a", depth // 2)) == 1
    assert counted(lambda: persister.list_app_ids("p")) == 1
    assert counted(lambda: persister.load("p", "absent")) == 1
    assert counted(lambda: persister.delete_app("p", "a")) == 2 * (1 + depth // 1000)  # a page, and its removal
    if not face.asynchronous:
        # Nothing is left open: another process may write at once.
        with sqlite3.connect(path, timeout=0) as other:
            other.execute("DELETE FROM kvpersist WHERE key = 'x'")
        other.close()


def fill(persister: Any, depth: int) -> None:
    for number in range(depth):
        persister.save("p", "a", number, "step", State({"n": number}), "completed")


def test_the_list_of_apps_does_not_walk_their_steps(path: Path) -> None:
    with Persister.from_url(f"sqlite://{path}?durable=no") as persister:
        persister.initialize()
        client = run(persister._history.backend._clients.get())
        rows = ((f"kvpersist/p/app{app}/{step:05d}", b"x") for app in range(20) for step in range(5000))
        client.writer._connection.executemany("INSERT INTO kvpersist VALUES (?, ?)", rows)
        ticks = []
        client.reader._connection.set_progress_handler(lambda: ticks.append(1), 100)
        assert len(persister.list_app_ids("p")) == 20
        # Virtual machine instructions, in hundreds: some for each app, none for each of the 100,000 steps.
        assert len(ticks) < 100


def test_a_writer_in_another_process_is_waited_for(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with Persister.from_url(f"sqlite://{path}", busy_timeout=0.05) as persister:
        persister.save("p", "a", 1, "step", State({}), "completed")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match=r"locked for 0\.05 s") as caught:
            persister.save("p", "a", 2, "step", State({}), "completed")
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert persister.load("p", "a")["sequence_id"] == 1  # readers need not wait
    with Persister.from_url(f"sqlite://{path}") as patient:
        timer = threading.Timer(0.1, lambda: other.execute("COMMIT"))
        timer.start()
        patient.save("p", "a", 2, "step", State({}), "completed")
        timer.join()
    other.close()


def test_a_load_does_not_wait_for_a_save_that_waits(path: Path) -> None:
    with Persister.from_url(f"sqlite://{path}") as persister:
        persister.save("p", "a", 1, "step", State({}), "completed")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        saver = threading.Thread(target=persister.save, args=("p", "a", 2, "step", State({}), "completed"))
        saver.start()
        for _ in range(20):
            assert persister.load("p", "a")["sequence_id"] == 1
        assert saver.is_alive()
        other.execute("COMMIT")
        other.close()
        saver.join()
        assert persister.load("p", "a")["sequence_id"] == 2


def test_a_failed_start_leaves_no_thread_that_complains(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; from kvpersist import AsyncPersister, StoreError\n"
        "for _ in range(20):\n"
        "    try: asyncio.run(AsyncPersister.from_url(sys.argv[1]).initialize())\n"
        "    except StoreError: print('refused')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, f"sqlite://{tmp_path}"], check=True, capture_output=True, text=True
    )
    assert result.stdout == "refused\n" * 20
    assert result.stderr == ""


def test_what_is_no_database_of_ours(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, not a database" * 40)
    with pytest.raises(StoreError, match="not an SQLite database"):
        Persister.from_url(f"sqlite://{text}").initialize()
    assert text.read_text().startswith("these are my notes")
    with pytest.raises(StoreError, match=r"cannot make the folder"):
        Persister.from_url(f"sqlite://{text}/below/state.db").initialize()
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE kvpersist (id INTEGER, name TEXT)")
    connection.close()
    before = foreign.read_bytes()
    with pytest.raises(StoreError, match="not one of kvpersist's; choose another"):
        Persister.from_url(f"sqlite://{foreign}").initialize()
    assert foreign.read_bytes() == before
    with Persister.from_url(f"sqlite://{foreign}", table="mine") as persister:
        assert persister.is_initialized()
    with pytest.raises(StoreError, match="cannot be opened"):
        Persister.from_url(f"sqlite://{tmp_path}").initialize()  # a folder
    for url in ("sqlite://", "sqlite://:memory:", "sqlite:///", "sqlite:///state.db", "sqlite://host/state.db"):
        with pytest.raises(OptionError):
            Persister.from_url(url)


@pytest.mark.parametrize("table", ['x"; DROP TABLE kvpersist; --', "two words", "select", "täble", "'", "[x]", "a.b"])
def test_a_table_may_have_any_name(path: Path, table: str) -> None:
    with (
        Persister.from_url(f"sqlite://{path}") as plain,
        Persister.from_url(f"sqlite://{path}", table=table) as odd,
    ):
        plain.save("p", "a", 1, "step", State({"n": 1}), "completed")
        odd.save("p", "a", 1, "step", State({"n": 2}), "completed")
        assert plain.load("p", "a")["state"]["n"] == 1
        assert odd.load("p", "a")["state"]["n"] == 2
        assert odd.list_app_ids("p") == ["a"]
    for bad in ("", "sqlite_master", "a\0b"):
        with pytest.raises(OptionError, match="cannot be the name"):
            Persister.from_url(f"sqlite://{path}", table=bad)


def test_it_is_wal_and_durable_unless_told_otherwise(path: Path) -> None:
    for url, synchronous in ((f"sqlite://{path}", 2), (f"sqlite://{path}?durable=no", 1)):
        with Persister.from_url(url) as persister:
            persister.initialize()
            client = run(persister._history.backend._clients.get())
            assert client.writer.execute_fetchall("PRAGMA journal_mode") == [("wal",)]
            assert client.writer.execute_fetchall("PRAGMA synchronous") == [(synchronous,)]
            assert client.reader.execute_fetchall("PRAGMA query_only") == [(1,)]


def test_many_may_make_the_database_at_once(tmp_path: Path) -> None:
    # Connections of one process meet in SQLite's locks just as those of several do, and start closer together.
    barrier = threading.Barrier(8)

    def work(number: int, url: str) -> None:
        with Persister.from_url(url) as persister:
            barrier.wait()
            persister.save("p", str(number), 1, "step", State({}), "completed")

    with ThreadPoolExecutor(8) as pool:
        for attempt in range(30):
            url = f"sqlite://{tmp_path}/{attempt}.db?durable=no"
            list(pool.map(work, range(8), [url] * 8))
            with Persister.from_url(url) as persister:
                assert persister.list_app_ids("p") == [str(number) for number in range(8)]


def test_an_async_application_that_forgets_to_clean_up_still_exits(path: Path) -> None:
    script = (
        "import asyncio, sys; from kvpersist import AsyncPersister; from burr.core import State\n"
        "persister = AsyncPersister.from_url(sys.argv[1])\n"
        "asyncio.run(persister.save('p', 'a', 1, 'step', State({}), 'completed'))\n"
    )
    subprocess.run([sys.executable, "-c", script, f"sqlite://{path}"], check=True, timeout=30)
    with Persister.from_url(f"sqlite://{path}") as persister:
        assert persister.load("p", "a")["sequence_id"] == 1


def test_a_second_event_loop_and_a_cancelled_save(path: Path) -> None:
    persister = AsyncPersister.from_url(f"sqlite://{path}")

    async def first() -> None:
        await persister.save("p", "a", 1, "step", State({"n": 1}), "completed")
        task = asyncio.create_task(persister.save("p", "a", 2, "step", State({"n": 2}), "completed"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def second() -> None:
        await persister.save("p", "a", 2, "step", State({"n": 2}), "completed")
        loaded = await persister.load("p", "a")
        assert loaded is not None
        assert loaded["sequence_id"] == 2
        await persister.cleanup()

    asyncio.run(first())
    asyncio.run(second())
