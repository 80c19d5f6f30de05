"""How long `kvpersist copy` takes, and how much memory: ``python -m benchmarks.copying 1000000 redis://127.0.0.1:6379``.

It makes a database of that many small records, copies it with the command in a process of its own, and again, and
prints each time the rate and the most memory that the process had.
"""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kvpersist import Persister, keys
from kvpersist.keys import RecordId
from kvpersist.serde import Serde

STATE = {"messages": ["hello", "world"] * 10, "n": 1, "done": False}
APPS = 1000


def make(path: Path, count: int) -> None:
    """Fill a database as persisters would, in one transaction."""
    with Persister.from_url(f"sqlite://{path}") as persister:
        persister.initialize()
    serde = Serde()
    payload = serde.dumps(STATE)

    def rows() -> object:
        for number in range(count):
            record = RecordId("p", f"app-{number % APPS}", number // APPS, "step")
            value = serde.encode("kvpersist", record, "completed", "2026-01-01T00:00:00.000000+00:00", payload)
            yield keys.record_key("kvpersist", record), value

    with sqlite3.connect(path) as connection:
        connection.executemany("INSERT INTO kvpersist VALUES (?, ?)", rows())
    connection.close()


def main() -> None:
    count, target = int(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "from.db")
        make(path, count)
        for _ in range(2):
            started = time.monotonic()
            subprocess.run([sys.executable, "-m", "kvpersist.cli", "copy", f"sqlite://{path}", target], check=True)
            seconds = time.monotonic() - started
            most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(f"{count:,} records in {seconds:.0f} s ({count / seconds:,.0f}/s), at most {most:.0f} MB")


if __name__ == "__main__":
    main()
