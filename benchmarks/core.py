"""The core: whether depth matters, what the driver of step bodies and the encoding cost, and what an import takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from burr.core import State

from kvpersist import Persister
from kvpersist.serde.json import JSONSerializer
from kvpersist.steps import Step, run

from .pairs import compare
from .report import heading, number, row
from .subjects import states_of


def main() -> None:
    heading("Core")
    with tempfile.TemporaryDirectory() as folder:
        depth(folder)
    drivers()
    encoding()
    importing()


def depth(folder: str) -> None:
    """Load latest among 10,000 records, against among 100."""
    state = State(states_of(1000)[0])
    for url in ("memory://depth", f"file://{folder}/depth?durable=no", f"sqlite://{folder}/depth.db?durable=no"):
        with Persister.from_url(url) as persister:
            for app, records in (("deep", 10_000), ("shallow", 100)):
                for number in range(records):
                    persister.save("p", app, number, "step", state, "completed")
            ratio = compare(
                lambda p=persister: p.load("p", "deep"),  # type: ignore[misc]
                lambda p=persister: p.load("p", "shallow"),  # type: ignore[misc]
            )
            row("core", f"load latest, {url.partition(':')[0]}", "at 10,000 deep", "at 100", ratio, 1.5)


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
    number("core", "what the driver adds to an operation", "µs", "", ratio.a_us - ratio.b_us, 7)


def encoding() -> None:
    """Plain JSON values, against Burr's way of writing them."""
    serializer = JSONSerializer()
    for name, size, calls in (("1 KB", 1000, 300), ("1 MB", 1_000_000, 3)):
        fields = states_of(size)[0]
        state = State(fields)
        ratio = compare(
            lambda fields=fields: serializer.dumps(fields),  # type: ignore[misc]
            lambda state=state: json.dumps(state.serialize()),  # type: ignore[misc]
            calls=calls,
        )
        row("core", f"JSON encode, {name}", "kvpersist", "json.dumps(state.serialize())", ratio, 0.1)


def importing() -> None:
    """What ``import kvpersist`` costs a new process."""

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    ratio = compare(lambda: start("import kvpersist"), lambda: start("pass"), calls=3)
    number("core", "import kvpersist", "ms", "", (ratio.a_us - ratio.b_us) / 1000, 50)


if __name__ == "__main__":
    main()
