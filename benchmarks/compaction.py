"""What a long chat costs: kvpersist, Burr's SQLitePersister and LangGraph's SqliteSaver store the same one.

``python -m benchmarks compaction`` prints the tables; ``python -m benchmarks.compaction --write`` takes minutes
longer, since it goes on to 3,000 steps, and puts table and picture into docs/.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from burr.core import State
from burr.core.persistence import SQLitePersister

from kvpersist import Persister
from kvpersist.compaction import CACHED, Cache, K
from kvpersist.steps import run

from .pairs import compare
from .report import heading, number, row

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- what a chat costs: written by benchmarks/compaction.py -->", "<!-- end of what a chat costs -->"
MARKS = (100, 300, 1000, 3000)

VOCABULARY = ["".join(random.Random(number).choices("etaoinshrdlu", k=2 + number % 9)) for number in range(3000)]
WEIGHTS = [1 / (number + 2) for number in range(3000)]


def text(rnd: random.Random, length: int) -> str:
    return " ".join(rnd.choices(VOCABULARY, WEIGHTS, k=length // 5))[:length]


def chat(steps: int) -> Iterator[dict[str, Any]]:
    """States of a chat: about 615 bytes of JSON more at each step, and a prompt that is edited at each."""
    rnd = random.Random(1)
    messages: list[dict[str, Any]] = []
    prompt = text(rnd, 400)
    for step in range(steps):
        role = "assistant" if step % 2 else "user"
        messages.append({"role": role, "content": text(rnd, 540), "id": f"m-{rnd.getrandbits(64):016x}"})
        at = rnd.randrange(300)
        prompt = prompt[:at] + text(rnd, 30) + prompt[at + 30 :]
        yield {"prompt": prompt, "chat": list(messages), "__SEQUENCE_ID": step, "__PRIOR_STEP": "answer"}


class Contender(NamedTuple):
    """A persister on an SQLite file of its own."""

    name: str
    connection: sqlite3.Connection
    save: Callable[[int, dict[str, Any]], object]


def contenders(folder: str) -> list[Contender]:
    """All with their defaults, but that LangGraph's, like the others, waits for the disk."""

    def ours(name: str, **options: Any) -> Contender:
        persister = Persister.from_url(f"sqlite://{folder}/{len(name)}.db", **options)
        persister.initialize()
        connection = run(persister._history.backend._clients.get()).writer._connection  # type: ignore[attr-defined]
        return Contender(
            name,
            connection,
            lambda number, state: persister.save("p", "a", number, "answer", State(state), "completed"),
        )

    burr = SQLitePersister(f"{folder}/burr.db")
    burr.initialize()

    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.sqlite import SqliteSaver

    graph = SqliteSaver(sqlite3.connect(f"{folder}/langgraph.db", check_same_thread=False))
    graph.setup()
    config: Any = {"configurable": {"thread_id": "a", "checkpoint_ns": ""}}

    def save_graph(number: int, state: dict[str, Any]) -> None:
        nonlocal config
        checkpoint: Any = {**empty_checkpoint(), "id": f"{number:08d}", "channel_values": state}
        config = graph.put(config, checkpoint, {"source": "loop", "step": number}, {})

    return [
        ours("kvpersist"),
        ours("kvpersist, full snapshots", compact_history=False),
        Contender(
            "Burr SQLitePersister",
            burr.connection,
            lambda number, state: burr.save("p", "a", number, "answer", State(state), "completed"),
        ),
        Contender("LangGraph SqliteSaver", graph.conn, save_graph),
    ]


class Cost(NamedTuple):
    megabytes: float
    statements: int
    seconds: float


def stored(steps: int) -> dict[str, dict[int, Cost]]:
    """What each has stored, asked and taken when it came to each mark; each step is saved by all in turn."""
    with tempfile.TemporaryDirectory() as folder:
        everybody = contenders(folder)
        seen = {each.name: 0 for each in everybody}
        seconds = {each.name: 0.0 for each in everybody}
        costs: dict[str, dict[int, Cost]] = {each.name: {} for each in everybody}
        for each in everybody:

            def traced(_: str, name: str = each.name) -> None:
                seen[name] += 1

            each.connection.set_trace_callback(traced)
        for number, state in enumerate(chat(steps)):
            for each in everybody:
                start = time.perf_counter()
                each.save(number, state)
                seconds[each.name] += time.perf_counter() - start
                if number + 1 in MARKS:
                    statements = seen[each.name]
                    (pages,), (size,) = (
                        each.connection.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "page_size")
                    )
                    seen[each.name] = statements
                    costs[each.name][number + 1] = Cost(pages * size / 1e6, statements, seconds[each.name])
        return costs


def table(costs: dict[str, dict[int, Cost]]) -> str:
    marks = list(next(iter(costs.values())))
    lines = ["| | " + " | ".join(f"{mark:,} steps" for mark in marks) + " |", "|---" * (len(marks) + 1) + "|"]
    for name, by_mark in costs.items():
        cells = [
            f"{cost.megabytes:,.1f} MB, {cost.statements:,} statements, {cost.seconds:,.1f} s"
            for cost in by_mark.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(costs: dict[str, dict[int, Cost]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kvpersist"  # so that the file changes only with what it shows
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
    for axis, what, label in ((axes[0], "megabytes", "MB stored"), (axes[1], "seconds", "seconds to save, in sum")):
        for name, by_mark in costs.items():
            marks, values = list(by_mark), [getattr(cost, what) for cost in by_mark.values()]
            axis.plot(marks, values, marker="o", label=name, linewidth=3 if name == "kvpersist" else 1.5)
        axis.set(xscale="log", yscale="log", xlabel="steps of the chat", ylabel=label)
        axis.set_xticks(marks, [f"{mark:,}" for mark in marks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(DOCS / "compaction.png", dpi=130)
    figure.savefig(DOCS / "compaction.svg", metadata={"Date": None})


def speed() -> None:
    """The CPU of a save, against that of compressing the state."""
    states = [State(state) for state in list(chat(1300))[1000:]]
    payload = Persister.from_url("memory://")._history.serde.dumps(states[0].get_all())

    def saver(**options: Any) -> Callable[[], None]:
        persister = Persister.from_url("memory://", **options)
        numbers = count()

        def save() -> None:
            step = next(numbers)
            persister.save("p", f"a{step // 300}", 1000 + step % 300, "answer", states[step % 300], "completed")

        return save

    zstd = {"compression": "zstd"}
    compress = zstandard.ZstdCompressor(level=3).compress
    whole = compare(saver(), saver(compact_history=False, serde_kwargs=zstd), calls=K)
    row("compaction", "save, 1,000 messages", "kvpersist", "whole states with zstd", whole, 1)
    compact, full = saver(), saver(compact_history=False)
    added = compare(compact, full, calls=K)
    alone = compare(lambda: compress(payload), lambda: compress(payload), calls=K)
    part = (added.a_us - added.b_us) / alone.a_us
    number("compaction", "save, 1,000 messages, time", "what compaction adds", "compressing one state", part, 1)
    compact, full = Persister.from_url("memory://"), Persister.from_url("memory://", compact_history=False)  # type: ignore[assignment]
    for persister in (compact, full):
        for step in range(1000, 1010):
            persister.save("p", "a", step, "answer", states[step - 1000], "completed")  # type: ignore[attr-defined]
    loads = compare(lambda: compact.load("p", "a"), lambda: full.load("p", "a"), calls=K)  # type: ignore[attr-defined]
    row("compaction", "load latest, 1,000 messages", "kvpersist", "whole states", loads)

    def cold() -> None:
        compact._history.parts.cache = Cache(CACHED)  # type: ignore[attr-defined]
        compact.load("p", "a")  # type: ignore[attr-defined]

    loads = compare(cold, lambda: full.load("p", "a"), calls=K)  # type: ignore[attr-defined]
    row("compaction", "load latest, 1,000 messages, by a new process", "kvpersist", "whole states", loads)
    small = State({"text": "some text " * 90, "n": 1})
    persisters = [Persister.from_url("memory://", compact_history=each) for each in (True, False)]
    numbers = count()

    def save_small(persister: Persister) -> None:
        persister.save("p", "a", next(numbers), "answer", small, "completed")

    saves = compare(lambda: save_small(persisters[0]), lambda: save_small(persisters[1]))
    row("compaction", "save, 1 KB", "kvpersist", "compact_history=False", saves)
    loads = compare(lambda: persisters[0].load("p", "a"), lambda: persisters[1].load("p", "a"))
    row("compaction", "load latest, 1 KB", "kvpersist", "compact_history=False", loads)


def main(*, write: bool = False) -> None:
    heading("Compact histories")
    speed()
    costs = stored(3000 if write else 1000)
    print("\n" + table(costs))
    ours, *others = costs
    for steps in costs[ours]:
        for other in others:
            stored_by = costs[ours][steps].megabytes / costs[other][steps].megabytes
            number("compaction", f"what is stored of {steps:,} steps of a chat", ours, other, stored_by)
    if write:
        picture(costs)
        page = DOCS / "compaction.md"
        before, _, rest = page.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n{table(costs)}\n{END}{after}")


if __name__ == "__main__":
    main(write="--write" in sys.argv)
