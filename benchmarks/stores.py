"""Every store: kvpersist, the driver alone, Burr's persister and LangGraph's saver on the same server in one run.

A case is a store, a face, a size of the state, a depth of the history and how many calls are in flight; in each, all
save in turn and load in turn.  ``bare`` is the driver alone with bytes that are ready, and ``Store`` kvpersist's bare
protocol, which does the same; ``by hand`` is the driver with `json.dumps` and `json.loads`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

from burr.core import State

from kvpersist import Persister

from . import subjects
from .pairs import compare, in_turn, ratio
from .report import heading, row
from .subjects import IN_FLIGHT, Compared, Loop, PostgreSQL, Redis, SQLite, Subject, servers, states_of

SIZES = {"1 KB": 1000, "1 MB": 1_000_000}
PAIRS = (*(("kvpersist", other) for other in ("bare", "by hand", "Burr", "LangGraph")), ("Store", "bare"))


def main(*, quick: bool = False) -> None:
    heading("Stores")
    warnings.simplefilter("ignore")
    with servers._at_the_end:
        for make in subjects.ALL:
            compared(make(), quick)
        if not quick:
            listing()


def compared(store: Compared, quick: bool) -> None:
    """All cases of a store; a history that is deep is filled once, for both faces."""
    for depth in store.depths[:1] if quick else store.depths:
        store.fresh()
        numbers = fill(store, depth)
        for size in SIZES:
            for face in store.faces:
                for flight in store.flights:
                    # Many large states in flight fill the server's memory, and depth does not matter to them.
                    if flight == 1 or size == "1 KB" or depth == store.depths[0]:
                        case(store, face, size, depth, flight, numbers, quick)


def fill(store: Compared, depth: int) -> dict[str, Any]:
    """Give each subject a history so deep, and return the numbers that it goes on with."""
    loop = Loop()
    (small, *_) = states_of(SIZES["1 KB"])
    numbers = {}
    for subject in store.subjects(False, 1, loop):
        numbers[subject.name] = count()
        for _ in range(depth):
            subject.save(next(numbers[subject.name]), small)
        subject.close()
    loop.close()
    return numbers


def case(store: Compared, face: str, size: str, depth: int, flight: int, numbers: dict[str, Any], quick: bool) -> None:
    asynchronous = face == "async"
    loop, threads = Loop(), ThreadPoolExecutor(IN_FLIGHT)
    states = states_of(SIZES[size])
    everybody = store.subjects(asynchronous, flight, loop)

    def at_once(call: Callable[[], Any], times: int) -> Callable[[], object]:
        """Many calls: one after the other, or some of them always in flight."""
        if flight > 1:
            if asynchronous:
                return lambda: loop.at_once([call] * flight)
            return lambda: [each.result() for each in [threads.submit(call) for _ in range(flight)]]
        if asynchronous:
            return lambda: loop.in_turn(call, times)
        return lambda: [call() for _ in range(times)]

    def saver(subject: Subject) -> Callable[[], Any]:
        def save() -> Any:
            following = next(numbers[subject.name])
            return subject.save(following, states[following % len(states)])

        return save

    where = f"{store.name}, {face}, {size}, {depth:,} deep, {flight} in flight"
    calls = {"save": saver, "load": lambda subject: subject.load}
    for what, call in calls.items():
        working, slowest = [], 0.0
        for subject in everybody:
            try:
                once = at_once(call(subject), 1)
                once()
                started = time.perf_counter()
                once()
                took = time.perf_counter() - started
            except Exception as error:  # noqa: BLE001  some of the others cannot do this
                print(f"{where}, {what}: {subject.name} fails: {type(error).__name__}: {str(error)[:100]}")
                continue
            working.append(subject)
            if subject.name == "kvpersist":
                slowest = took
        times = max(1, min(100, int((0.01 if quick else 0.04) / slowest)))
        blocks = 3 if quick else 5 if slowest > 0.1 else 9
        done = times if flight == 1 else flight
        measured = in_turn([at_once(call(each), times) for each in working], blocks=blocks, calls=1)
        by_name = {
            subject.name: [each / done for each in found] for subject, found in zip(working, measured, strict=True)
        }
        for a, b in PAIRS:
            if a in by_name and b in by_name:
                aim = store.aims.get((what, a, b)) if flight == 1 else None
                if a == "kvpersist" and b == "Burr" and not isinstance(store, subjects.MongoDB):
                    aim = 1
                row("stores", f"{where}, {what}", a, b, ratio(by_name[a], by_name[b]), aim)
    for subject in everybody:
        subject.close()
    threads.shutdown()
    loop.close()


STEPS = {
    "PostgreSQL": "SELECT step FROM generate_series(0, 9999) AS step",
    "SQLite": "WITH RECURSIVE s(step) AS (SELECT 0 UNION ALL SELECT step + 1 FROM s LIMIT 10000) SELECT step FROM s",
}


def listing() -> None:
    """The apps of a partition: 10 apps of 10,000 steps each, to Burr's persisters for PostgreSQL and SQLite."""
    small = State({"text": "x" * 100})
    postgresql, sqlite = PostgreSQL(), SQLite()
    theirs = {}
    for store in (postgresql, sqlite):
        store.fresh()
        burr = theirs[store.name] = store.burr(False, 1)
        burr.initialize()
        burr.save("p", "a", -1, "step", small, "completed")
        steps = STEPS[store.name]
        burr.connection.cursor().execute(
            "INSERT INTO burr_state (partition_key, app_id, sequence_id, position, status, state) "
            "SELECT partition_key, 'app' || app, steps.step, position, status, state FROM burr_state, "
            f"({steps}) AS steps, (SELECT step AS app FROM ({steps}) AS s WHERE step < 10) AS apps"
        )
        burr.connection.commit()
    for store in (Redis(), postgresql, sqlite):
        with Persister.from_url(store.url) as ours:
            for app in range(10):
                for step in range(10_000):
                    ours.save("p", f"app{app}", step, "step", small, "completed")
            assert ours.list_app_ids("p") == [f"app{app}" for app in range(10)]
            name = store.name if store.name in theirs else "PostgreSQL"
            found = compare(
                lambda ours=ours: ours.list_app_ids("p"),  # type: ignore[misc]
                lambda burr=theirs[name]: burr.list_app_ids("p"),  # type: ignore[misc]
                pairs=9,
                calls=10,
            )
            row("stores", f"{store.name}, list_app_ids, 10 x 10,000", "kvpersist", f"Burr's {name}", found, 0.01)
    for burr in theirs.values():
        burr.cleanup()
