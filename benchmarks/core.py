"""The core: what kvpersist adds to a bare statement, whether depth matters, and how Burr's own persister compares."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from typing import Any

from burr.core import State
from burr.core.persistence import SQLitePersister

from kvpersist import Persister, keys
from kvpersist.serde.json import JSONSerializer
from kvpersist.steps import Step, run

from .pairs import compare, heading, row


def state_of(size: int) -> State[Any]:
    """A chat of about `size` bytes as JSON."""
    message = {"role": "assistant", "content": "some text that was said, more or less long. " * 2}
    return State({"chat": [message] * max(1, size // 130), "n": 1, "score": 0.5, "__SEQUENCE_ID": 1})


def main() -> None:
    heading("Core", "apache-burr", "orjson", "ormsgpack", "aiosqlite")
    with tempfile.TemporaryDirectory() as folder:
        against_raw_sqlite(folder)
        against_burr(folder)
        depth(folder)
    drivers()
    encoding()
    importing()


def against_raw_sqlite(folder: str) -> None:
    """Save and load, against the one statement that any program on SQLite needs for them."""
    for name, size, calls in (("1 KB", 1000, 100), ("1 MB", 1_000_000, 3)):
        state = state_of(size)
        path = f"{folder}/raw-{size}.db"
        raw = sqlite3.connect(path, isolation_level=None)
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute("CREATE TABLE state (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL)")
        persister = Persister.from_url(f"sqlite://{folder}/ours-{size}.db")
        payload = json.dumps(state.get_all()).encode()
        ours, theirs = count(), count()

        def save(persister: Any = persister, state: Any = state, ours: Any = ours) -> None:
            persister.save("p", "a", next(ours), "step", state, "completed")

        def insert(raw: Any = raw, payload: bytes = payload, theirs: Any = theirs) -> None:
            key = f"p/a/{keys.MAX_SEQUENCE_ID - next(theirs):019d}"
            raw.execute("INSERT INTO state VALUES (?, ?)", (key, payload))

        row(f"SQLite save, {name} : bare INSERT", compare(save, insert, calls=calls), 1.4)

        def load(persister: Any = persister) -> Any:
            return persister.load("p", "a")

        def select(raw: Any = raw) -> Any:
            return raw.execute(
                "SELECT value FROM state WHERE key >= 'p/a/' AND key < 'p/a0' ORDER BY key LIMIT 1"
            ).fetchone()

        def select_and_decode(select: Callable[[], Any] = select) -> Any:
            return json.loads(select()[0])

        row(f"SQLite load latest, {name} : SELECT + json.loads", compare(load, select_and_decode, calls=calls), 1.5)
        row(f"SQLite load latest, {name} : bare SELECT, undecoded", compare(load, select, calls=calls))
        persister.cleanup()
        raw.close()


def against_burr(folder: str) -> None:
    """The same operations through Burr's own persister, each with its defaults."""
    for name, size, calls in (("1 KB", 1000, 50), ("1 MB", 1_000_000, 3)):
        state = state_of(size)
        burr = SQLitePersister(f"{folder}/burr-{size}.db")
        burr.initialize()
        persister = Persister.from_url(f"sqlite://{folder}/against-{size}.db")
        ours, theirs = count(), count()

        def save(persister: Any = persister, numbers: Any = ours, state: Any = state) -> None:
            persister.save("p", "a", next(numbers), "step", state, "completed")

        def burr_save(burr: Any = burr, numbers: Any = theirs, state: Any = state) -> None:
            burr.save("p", "a", next(numbers), "step", state, "completed")

        row(f"SQLite save, {name} : Burr's SQLitePersister", compare(save, burr_save, calls=calls), 1)
        row(
            f"SQLite load latest, {name} : Burr's SQLitePersister",
            compare(lambda p=persister: p.load("p", "a"), lambda p=burr: p.load("p", "a"), calls=calls),  # type: ignore[misc]
            1,
        )
        persister.cleanup()
        burr.cleanup()


def depth(folder: str) -> None:
    """Load latest among 10,000 records, against among 100."""
    state = state_of(1000)
    for url in ("memory://depth", f"file://{folder}/depth?durable=no", f"sqlite://{folder}/depth.db?durable=no"):
        with Persister.from_url(url) as persister:
            for app, records in (("deep", 10_000), ("shallow", 100)):
                for number in range(records):
                    persister.save("p", app, number, "step", state, "completed")
            ratio = compare(
                lambda p=persister: p.load("p", "deep"),  # type: ignore[misc]
                lambda p=persister: p.load("p", "shallow"),  # type: ignore[misc]
            )
            row(f"load latest at 10,000 : at 100, {url.partition(':')[0]}", ratio, 1.5)


def drivers() -> None:
    """What the sync driver adds to an operation: one nested as deep as a load, against the same calls made directly."""

    def backend() -> Step[int]:
        return (yield 1)

    def middle() -> Step[int]:
        return (yield from backend())

    def operation() -> Step[int]:
        return (yield from middle())

    def plain_backend() -> int:
        return 1

    def plain_middle() -> int:
        return plain_backend()

    def plain_operation() -> int:
        return plain_middle()

    ratio = compare(lambda: run(operation()), plain_operation, calls=5000)
    print(f"{'driver overhead, us an operation':58} {ratio.a_us - ratio.b_us:6.2f}   aim 7")


def encoding() -> None:
    """Plain JSON values, against Burr's way of writing them."""
    serializer = JSONSerializer()
    for name, size, calls in (("1 KB", 1000, 300), ("1 MB", 1_000_000, 3)):
        state = state_of(size)
        fields = state.get_all()
        ratio = compare(
            lambda fields=fields: serializer.dumps(fields),  # type: ignore[misc]
            lambda state=state: json.dumps(state.serialize()),  # type: ignore[misc]
            calls=calls,
        )
        row(f"JSON encode, {name} : json.dumps(state.serialize())", ratio, 0.1)


def importing() -> None:
    """What ``import kvpersist`` costs a new process."""

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    ratio = compare(lambda: start("import kvpersist"), lambda: start("pass"), calls=3)
    print(f"{'import kvpersist, ms':58} {(ratio.a_us - ratio.b_us) / 1000:6.2f}   aim 50")


if __name__ == "__main__":
    main()
