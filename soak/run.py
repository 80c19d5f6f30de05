"""The soak of one store: rounds of work under faults, after each a look at everything, and the model's verdict."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import psutil

from . import checker, worker
from .checker import Event
from .stores import FORGETFUL, STORES, Store, servers
from .worker import Place

CREWS: dict[str, tuple[worker.Face, ...]] = {"0": ("sync", "sync"), "1": ("async", "async"), "2": ("sync", "async")}
LONGEST = 120
"""Seconds after which an operation counts as one that hangs."""

ALLOWED = {"memory": 32 * 2**20, "descriptors": 16, "threads": 4, "connections": 16, "temporary files": 0}
"""How much more each may be late in a run than early: see `checker.growth`.  Drivers keep pools of connections, of
which more or fewer are open as the faults have it; what leaks at each fault comes to hundreds in half an hour."""

CONTEXT = multiprocessing.get_context("forkserver")
BACKENDS = {
    "memory": ["kvpersist.backends.memory"],
    "file": ["kvpersist.backends.file"],
    "sqlite": ["kvpersist.backends.sqlite", "aiosqlite"],
    "redis": ["kvpersist.backends.redis", "redis.asyncio"],
    "forgetful": ["kvpersist.backends.redis", "redis.asyncio"],
    "postgresql": ["kvpersist.backends.postgresql"],
    "mongodb": ["kvpersist.backends.mongodb"],
    "s3": ["kvpersist.backends.s3", "s3fs"],
    "gcs": ["kvpersist.backends.gcs", "gcsfs"],
}
"""The modules of each store."""


@dataclass
class Report:
    """What became of one store."""

    rounds: int = 0
    seconds: float = 0
    """How long it all took, servers and inspections included."""
    operations: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    """What was said where the outcome is unknown, by the kind of error."""
    longest: float = 0
    """Seconds that the longest operation took."""
    records: int = 0
    """How many records' histories were checked."""
    resources: dict[str, list[float]] = field(default_factory=dict)
    growth: dict[str, float | None] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def take(self, events: list[Event]) -> None:
        """Count a round, and judge it."""
        self.rounds += 1
        for each in events:
            self.operations[each.op] += 1
            self.outcomes[each.outcome] += 1
            if each.outcome == "unknown":
                self.problems[each.problem.partition(":")[0] or "killed"] += 1
            else:
                self.longest = max(self.longest, each.end - each.start)
        self.records += len(checker.operations(events))
        self.violations += checker.violations(events)
        self.violations += [
            f"{each.op} of {each.app} by {each.by} took {each.end - each.start:.0f} s"
            for each in events
            if each.outcome != "unknown" and each.end - each.start > LONGEST
        ]

    def judge_resources(self) -> None:
        for name, samples in self.resources.items():
            grown = self.growth[name] = checker.growth(samples)
            allowed = ALLOWED[name.partition(" of ")[0]]
            if grown is not None and grown > allowed:
                self.violations.append(f"{name} has grown by {grown:,.0f}, more than {allowed:,}: {samples}")


@dataclass
class Worker:
    """A process, and how to tell it what to do."""

    process: Any
    pipe: Connection


class Crew:
    """The workers of a store; one that was killed is replaced by the next of its line."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lives: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.command: tuple[Any, ...] | None = None
        self.workers = {name: self._born(name) for name in place.crews}

    def _born(self, name: str) -> Worker:
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=worker.main, args=(self._place, name, self._lives[name], theirs))
        process.start()
        theirs.close()
        self._lives[name] += 1
        return Worker(process, ours)

    def tell(self, command: tuple[Any, ...], names: list[str]) -> None:
        with self._lock:
            self.command = command
            for name in names:
                self.workers[name].pipe.send(command)

    def kill(self, name: str) -> None:
        """Kill a worker, and let another one go on with its work."""
        with self._lock:
            self.workers[name].process.kill()
            self.workers[name].process.join()
            self.workers[name].pipe.close()
            born = self.workers[name] = self._born(name)
            born.pipe.send(self.command)

    def stop_for(self, name: str, seconds: float) -> None:
        pid = self.workers[name].process.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    def wait(self, names: list[str], word: str = "done") -> None:
        """Wait until workers say that they are ready, or done."""
        for name in names:
            pipe = self.workers[name].pipe
            while True:
                if not pipe.poll(1.5 * LONGEST):
                    os.kill(self.workers[name].process.pid, worker.SHOW_STACKS)
                    time.sleep(2)
                    raise RuntimeError(f"worker {name} is not {word}; where it hangs is on stderr")
                if pipe.recv() == word:
                    break

    def end(self) -> None:
        """Let all end by themselves."""
        for each in self.workers.values():
            each.pipe.send(("stop",))
        for name, each in self.workers.items():
            each.process.join(LONGEST)
            if each.process.exitcode != 0:
                raise RuntimeError(f"worker {name} ended with {each.process.exitcode}")

    def kill_all(self) -> None:
        for each in self.workers.values():
            each.process.kill()


def soak(name: str, seconds: float, round_seconds: float, seed: str, out: Path) -> Report:
    """Soak a store for some seconds."""
    report, started = Report(), time.monotonic()
    random = Random(f"{seed}/{name}")
    with ExitStack() as stack:
        stack.enter_context(servers._at_the_end)
        folder = Path(tempfile.mkdtemp(prefix="kvpersist-soak-"))
        stack.push(lambda kind, *_: kind is None and shutil.rmtree(folder, ignore_errors=True))  # else it is evidence
        (folder / "tmp").mkdir()
        store: Store = stack.enter_context({**STORES, **FORGETFUL}[name]())
        crews = {"0": ("sync", "sync", "async", "async")} if store.one_process else CREWS
        # What workers need is imported once, in the process that they are forked from.
        CONTEXT.set_forkserver_preload(["soak.worker", *BACKENDS[name.partition("-")[0]], *BACKENDS["sqlite"]])
        place = Place(store.url, store.options, folder, f"{seed}/{name}", crews)  # type: ignore[arg-type]
        crew = Crew(place)
        stack.callback(crew.kill_all)
        crew.wait(list(crews), "ready")
        elders = [each for each in worker.ELDERS if each in crews]
        coming: list[str] = []
        end = time.monotonic() + seconds
        while report.rounds == 0 or time.monotonic() + round_seconds / 2 < end:
            partition = f"round-{report.rounds}"
            until = time.monotonic() + round_seconds
            crew.tell(("work", partition, until), list(crews))
            _disturb(store, crew, random, until, report, coming)
            crew.wait(list(crews))
            time.sleep(0.2)  # what was under way when a worker was killed arrives
            crew.tell(("inspect", partition), ["0"])
            crew.wait(["0"])
            crew.tell(("look back", partition), elders)
            crew.wait(elders)
            logs = sorted(folder.glob("log-*.jsonl"))
            events = [event for log in logs for event in worker.read_log(log)]
            before = len(report.violations)
            report.take(events)
            if len(report.violations) > before:
                kept = out / f"{name}-{partition}"
                kept.mkdir(parents=True, exist_ok=True)
                for log in logs:
                    shutil.copy(log, kept)
            for log in logs:
                os.truncate(log, 0)
            store.tidy()
            _sample(store, crew, elders, folder, report)
        crew.end()
        report.judge_resources()
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _disturb(store: Store, crew: Crew, random: Random, until: float, report: Report, coming: list[str]) -> None:
    """One fault after the other, all kinds before one comes again, until shortly before the end of a round."""
    faults = dict(store.faults)
    if not store.one_process:
        mortal = [name for name in crew.workers if name not in worker.ELDERS]
        faults["worker killed"] = lambda random: crew.kill(random.choice(mortal))
        faults["worker stopped"] = lambda random: crew.stop_for(
            random.choice(list(crew.workers)), random.uniform(0.1, 3)
        )
    while faults:
        pause = random.uniform(0.1, 1.5)
        if time.monotonic() + pause + 0.5 > until:
            return
        time.sleep(pause)
        if not coming:
            coming += random.sample(sorted(faults), len(faults))
        kind = coming.pop()
        faults[kind](random)
        report.faults[kind] += 1


def _sample(store: Store, crew: Crew, elders: list[str], folder: Path, report: Report) -> None:
    """What the workers hold where nothing is going on."""
    found: dict[str, float] = {"temporary files": len(list((folder / "tmp").iterdir()))}
    if store.connections is not None:
        found["connections"] = store.connections()
    for name in elders:
        process = psutil.Process(crew.workers[name].process.pid)
        found[f"memory of worker {name}"] = process.memory_full_info().uss
        found[f"descriptors of worker {name}"] = process.num_fds()
        found[f"threads of worker {name}"] = process.num_threads()
    for name, value in found.items():
        report.resources.setdefault(name, []).append(value)


def main(name: str, seconds: float, round_seconds: float, seed: str, out: Path, answer: Connection) -> None:
    """What a store's process runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are stopped
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the proxy's, of the faults it was told to make
    try:
        report = soak(name, seconds, round_seconds, seed, out)
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        report = Report(violations=[f"the soak itself failed: {type(error).__name__}: {error}"])
    answer.send(vars(report))
