"""A worker: a process with some clients, threads or tasks, each of which asks one thing after the other and logs it.

A client is a step body (see `kvpersist.steps`), so that one text serves both faces.  It is the only writer of an app of
its own, as the worker of a Burr application is; all clients race for the shared apps, and all read all.

The log is written before a call and after it, each time with one write to a file: what a killed worker has done, or was
about to do, is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, Literal

from burr.core import State

from kvpersist import (
    AsyncPersister,
    ConflictError,
    InvalidIdError,
    Persister,
    StoreError,
    acopy,
)
from kvpersist.steps import Step, arun, run

from .checker import Event

Face = Literal["sync", "async"]

SHOW_STACKS = signal.SIGUSR1
"""Has a worker print what its tasks and threads are at."""

ELDERS = ("0", "1")
"""Workers that are never killed: on them it shows whether anything grows.  Only they copy, so that no folder stays."""

WRITERS = ("plain", "pruned", "rewound", "rewinding", "overwritten")
"""What the app of a client's own goes through, besides being saved."""

RACES = ("race-small", "race-large")


@dataclass(frozen=True)
class Place:
    """What a worker has to know."""

    url: str
    options: dict[str, Any]
    folder: Path
    seed: str
    crews: dict[str, tuple[Face, ...]]
    """The clients of each worker."""

    def apps(self) -> list[str]:
        """The apps of a round."""
        return [
            *RACES,
            *(own_app(worker, number) for worker, crew in self.crews.items() for number in range(len(crew))),
        ]


def own_app(worker: str, number: int) -> str:
    """The app that only this client writes to: small in every second."""
    count = int(worker) * 2 + number
    return f"{WRITERS[count % len(WRITERS)]}-{count}-{('small', 'large')[count // 2 % 2]}"


# States


@lru_cache(maxsize=10_000)
def _message(app: str, number: int) -> dict[str, Any]:
    words = Random(f"{app}/{number}").choices(["the", "state", "of", "an", "agent", "after", "one", "step", "is"], k=40)
    return {"role": "assistant" if number % 2 else "user", "content": " ".join(words)}


def state_of(app: str, seq: int, name: str) -> dict[str, Any]:
    """The state that a save of this name has: a chat that grows, over the size from which histories are compact."""
    state = {"name": name, "app": app, "seq": seq, "pair": (seq, name), "raw": name.encode()}
    if app.endswith("large"):
        state["chat"] = [_message(app, number) for number in range(20 + seq % 60)]
    return state


# The log


class Log:
    """The events of a worker, appended to a file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._numbers = itertools.count()

    def begin(self, event: Event) -> int:
        number = next(self._numbers)
        event.start = time.monotonic()
        known = {name: value for name, value in vars(event).items() if name not in ("end", "outcome", "result")}
        self._write({"number": number, **known})
        return number

    def end(self, number: int, outcome: str, result: Any, problem: str) -> None:
        answer = {"number": number, "end": time.monotonic(), "outcome": outcome, "result": result}
        self._write({**answer, "problem": problem})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")


def read_log(path: Path) -> list[Event]:
    """What a worker has done, and what it was about to do when it was killed."""
    events: dict[int, Event] = {}
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):  # the last one may be cut
            fields = json.loads(line)
            number = fields.pop("number")
            if number not in events:
                if fields["content"] is not None:
                    fields["content"] = tuple(fields["content"])
                events[number] = Event(**fields)
            else:
                vars(events[number]).update(fields)
    for event in events.values():
        event.result = _typed(event.op, event.result)
        if event.outcome == "unknown":
            event.end = math.inf
    return list(events.values())


def _typed(op: str, result: Any) -> Any:
    """A result as it was before it became JSON."""
    if result is None:
        return None
    if op == "load":
        return tuple(result)
    if op == "latest":
        return result[0], tuple(result[1])
    if op == "history":
        return {int(seq): status for seq, status in result.items()}
    if op == "copy":
        return {app: {int(seq): tuple(what) for seq, what in found.items()} for app, found in result.items()}
    return result


# What a client does


class WrongState(Exception):
    """A state that came back otherwise than it was saved."""


@dataclass
class Client:
    """One that asks one thing after the other."""

    name: str
    app: str
    face: Face
    place: Place
    persisters: dict[str, Any]
    log: Log
    random: Random
    partition: str = ""
    newest: dict[str, int] = field(default_factory=dict)
    following: int | None = None
    """The sequence id that its own app goes on with, where that is known."""
    names: Iterator[int] = field(default_factory=itertools.count)

    def work(self, partition: str, until: float) -> Step[None]:
        """Do one thing after the other."""
        if partition != self.partition:
            self.partition, self.following = partition, None
            self.newest.clear()
        others = self.place.apps()
        yield from self.step()
        while time.monotonic() < until:
            dice = self.random.random()
            if dice < 0.4:
                yield from self.step()
            elif dice < 0.6:
                yield from self.race(self.random.choice(RACES))
            elif dice < 0.78:
                yield from self.latest(self.random.choice(others))
            elif dice < 0.92:
                app = self.random.choice(others)
                newest = self.newest.get(app, 0)
                yield from self.load(app, self.random.randint(max(0, newest - 8), newest + 1))
            elif dice < 0.95:
                yield from self.history(self.random.choice(others))
            elif dice < 0.98 or self.name.partition(".")[0] not in ELDERS:
                yield from self.list_apps()
            else:
                yield from self.copy()

    def step(self) -> Step[None]:
        """Go on with its own app, as one that was resumed does where it does not know where it is."""
        kind, random = self.app.partition("-")[0], self.random
        if self.following is None:
            outcome, found = yield from self.latest(self.app)
            if outcome != "ok":
                return
            self.following = 0 if found is None else found[0] + 1
        following = self.following
        some_before = random.randint(max(0, following - 5), max(0, following - 1))
        dice = random.random()
        if kind == "pruned" and dice < 0.1:
            yield from self.prune(random.randint(1, 6))
        elif kind == "rewound" and dice < 0.1 and following:
            if (yield from self.rewind(some_before)) == "ok":
                self.following = some_before + 1
            else:
                self.following = None
        elif kind in ("rewinding", "overwritten") and dice < 0.15:
            yield from self.save_own(some_before, "completed")
        else:
            if dice > 0.9:
                yield from self.save_own(following, "failed")
            if self.following is not None:
                yield from self.save_own(following, "completed")

    def save_own(self, seq: int, status: str) -> Step[None]:
        """Save with retries, as a careful application does."""
        mode = {"rewinding": "rewind", "overwritten": "overwrite"}.get(self.app.partition("-")[0], "error")
        name = self.new_name()
        for _ in range(3):
            outcome = yield from self.save(self.app, seq, name, status, mode)
            if outcome == "ok":
                assert self.following is not None
                if status == "completed":
                    self.following = seq + 1 if mode == "rewind" else max(self.following, seq + 1)
                return
            if outcome == "refused":
                break
        self.following = None

    def race(self, app: str) -> Step[None]:
        outcome, found = yield from self.latest(app)
        if outcome == "ok":
            seq = 0 if found is None else found[0] + 1
            name = self.new_name()
            if (yield from self.save(app, seq, name, "completed", "error")) == "unknown":
                yield from self.save(app, seq, name, "completed", "error")

    def new_name(self) -> str:
        return f"{self.name}.{next(self.names)}"

    # One call each

    def save(self, app: str, seq: int, name: str, status: str, mode: str) -> Step[str]:
        persister, state = self.persisters[f"{self.face} {mode}"], State(state_of(app, seq, name))
        event = Event("save", app, seq=seq, content=(name, status), mode=mode)
        outcome, _ = yield from self.ask(
            event, lambda: persister.save(self.partition, app, seq, "step", state, status), lambda _: None
        )
        return outcome

    def load(self, app: str, seq: int) -> Step[None]:
        persister = self.persisters[f"{self.face} error"]
        yield from self.ask(
            Event("load", app, seq=seq),
            lambda: persister.load(self.partition, app, seq),
            lambda found: None if found is None else self.content(found, app, seq),
        )

    def latest(self, app: str, mode: str = "") -> Step[tuple[str, Any]]:
        mode = mode or {"rewinding": "rewind", "overwritten": "overwrite"}.get(app.partition("-")[0], "error")
        persister = self.persisters[f"{self.face} {mode}"]

        def result(found: Any) -> Any:
            if found is None:
                return None
            self.newest[app] = found["sequence_id"]
            return found["sequence_id"], self.content(found, app, found["sequence_id"])

        outcome, found = yield from self.ask(Event("latest", app), lambda: persister.load(self.partition, app), result)
        return outcome, found

    @staticmethod
    def content(found: Any, app: str, seq: int) -> tuple[str, str]:
        """What was loaded, if it is just what was saved."""
        state = found["state"].get_all()
        if found["sequence_id"] != seq or state != state_of(app, seq, state.get("name", "")):
            raise WrongState(f"{app}, sequence id {seq} came back as {str(state)[:300]}")
        return state["name"], found["status"]

    def history(self, app: str) -> Step[None]:
        yield from self.ask(
            Event("history", app),
            lambda: self.headers(app),
            lambda headers: {header.sequence_id: header.status for header in headers},
        )

    def aside(self, app: str) -> Step[None]:
        """List all completed records that there are, those set aside among them."""
        yield from self.ask(
            Event("aside", app),
            lambda: self.headers(app, include_set_aside=True),
            lambda headers: [[each.sequence_id, each.created_at] for each in headers if each.status == "completed"],
        )

    def headers(self, app: str, **options: Any) -> Any:
        persister = self.persisters[f"{self.face} error"]
        if self.face == "sync":
            return list(persister.history(self.partition, app, **options))

        async def collected() -> list[Any]:
            return [each async for each in persister.history(self.partition, app, **options)]

        return collected()

    def list_apps(self) -> Step[None]:
        persister = self.persisters[f"{self.face} error"]
        yield from self.ask(Event("list"), lambda: persister.list_app_ids(self.partition), list)

    def prune(self, keep: int) -> Step[None]:
        persister = self.persisters[f"{self.face} error"]
        yield from self.ask(
            Event("prune", self.app, keep=keep),
            lambda: persister.prune(self.partition, self.app, keep_last=keep),
            lambda _: None,
        )

    def rewind(self, seq: int) -> Step[str]:
        persister = self.persisters[f"{self.face} error"]
        outcome, _ = yield from self.ask(
            Event("rewind", self.app, seq=seq), lambda: persister.rewind(self.partition, self.app, seq), lambda _: None
        )
        return outcome

    def copy(self) -> Step[None]:
        """Copy the round's partition to a new database, and read what is there."""
        with tempfile.TemporaryDirectory(dir=self.place.folder / "tmp", prefix="copy-") as folder:
            target = f"sqlite://{folder}/copy.db?durable=no"

            async def copied() -> Any:
                source, options = self.place.url, self.place.options
                report = await acopy(source, target, partition_key=self.partition, source_options=options)
                if report.not_carried:
                    raise WrongState(f"not copied: {report.not_carried[:3]}")
                return await asyncio.to_thread(read)

            def read() -> dict[str, dict[int, tuple[str, str]]]:
                found: dict[str, dict[int, tuple[str, str]]] = {}
                with Persister.from_url(target) as persister:
                    for app in persister.list_app_ids(self.partition):
                        records = found[app] = {}
                        for header in persister.history(self.partition, app):
                            seq = header.sequence_id
                            loaded = persister.load(self.partition, app, seq)
                            records[seq] = self.content(loaded, app, seq)
                return found

            yield from self.ask(
                Event("copy"), lambda: copied() if self.face == "async" else asyncio.run(copied()), lambda found: found
            )

    def inspect(self, partition: str) -> Step[None]:
        """Where all is quiet: look at everything, and then remove it."""
        self.partition, self.following = partition, None
        persister = self.persisters[f"{self.face} error"]
        yield from self.list_apps()
        for app in self.place.apps():
            yield from self.latest(app)
            yield from self.history(app)
            if not app.startswith(("pruned", "overwritten")):  # those lose what they have, on purpose
                yield from self.aside(app)
            for seq in range(self.newest.get(app, 0) + 2):
                yield from self.load(app, seq)

        def sound(report: Any) -> None:
            if not report.ok:
                raise WrongState(f"verify: {report}")

        yield from self.ask(Event("verify"), lambda: persister.verify(self.partition), sound)
        yield from self.copy()
        for app in self.place.apps():
            yield from self.ask(
                Event("delete", app), lambda app=app: persister.delete_app(self.partition, app), lambda _: None
            )
            yield from self.history(app)

    def look_back(self, partition: str) -> Step[None]:
        """Load what was deleted: so every persister forgets what it remembers of it."""
        self.partition = partition
        for app in self.place.apps():
            for mode in ("error", "overwrite", "rewind"):
                yield from self.latest(app, mode)

    def ask(self, event: Event, call: Callable[[], Any], result: Callable[[Any], Any]) -> Step[tuple[str, Any]]:
        """Make a call, and log it before and after."""
        event.by = self.name
        number = self.log.begin(event)
        outcome, found, problem = "ok", None, ""
        try:
            found = result((yield call()))
        except ConflictError as error:
            outcome, problem = ("refused", "") if event.op == "save" else ("broken", repr(error))
        except InvalidIdError as error:
            outcome, problem = ("absent", "") if event.op == "rewind" else ("broken", repr(error))
        except StoreError as error:  # out of reach, or it says that it failed: what came of it is not known
            outcome, problem = "unknown", f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001  no other may come through
            outcome, problem = "broken", "".join(traceback.format_exception(error)[-12:])
        self.log.end(number, outcome, found, problem)
        if outcome == "unknown":
            yield time.sleep(0.05) if self.face == "sync" else asyncio.sleep(0.05)
        return outcome, found


# The process


def main(place: Place, worker: str, life: int, commands: Connection) -> None:
    """What a worker's process runs: rounds of work, an inspection, until told to stop."""
    logging.disable()  # drivers write about each fault
    tempfile.tempdir = str(place.folder / "tmp")
    log = Log(place.folder / f"log-{worker}-{life}-{os.getpid()}.jsonl")
    crew = place.crews[worker]
    persisters = {
        f"{face} {mode}": (Persister if face == "sync" else AsyncPersister).from_url(
            place.url, on_conflict=mode, **place.options
        )
        for face in set(crew)
        for mode in ("error", "overwrite", "rewind")
    }
    clients = [
        Client(
            name=f"{worker}.{life}.{number}",
            app=own_app(worker, number),
            face=face,
            place=place,
            persisters=persisters,
            log=log,
            random=Random(f"{place.seed}/{worker}/{life}/{number}"),
        )
        for number, face in enumerate(crew)
    ]
    loop = asyncio.new_event_loop()
    with contextlib.suppress(StoreError):  # a successor may be born while the store is out of reach
        for name, persister in persisters.items():
            persister.initialize() if name.startswith("sync") else loop.run_until_complete(persister.initialize())
    commands.send("ready")
    while (command := commands.recv())[0] != "stop":
        what, partition, *more = command
        if what == "work":
            bodies = [(client.face, client.work(partition, *more)) for client in clients]
        elif what == "inspect":
            bodies = [(clients[0].face, clients[0].inspect(partition))]
        else:
            bodies = [(client.face, client.look_back(partition)) for client in clients]
        _all(loop, bodies)
        commands.send("done")
    for name, persister in persisters.items():
        if name.startswith("sync"):
            persister.cleanup()
        else:
            loop.run_until_complete(persister.cleanup())
    loop.close()


def _all(loop: asyncio.AbstractEventLoop, bodies: list[tuple[Face, Step[None]]]) -> None:
    """Run bodies at once: those of the sync face in threads, those of the async one as tasks."""
    threads = [threading.Thread(target=run, args=(body,)) for face, body in bodies if face == "sync"]
    for thread in threads:
        thread.start()

    async def tasks() -> None:
        await asyncio.gather(*(arun(body) for face, body in bodies if face == "async"))

    def show(*_: Any) -> None:
        for task in asyncio.all_tasks():
            print(task.get_name(), file=sys.stderr)
            at: Any = task.get_coro()
            while at is not None:  # down to what it waits for
                frame = getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None)
                print("   ", f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else at, file=sys.stderr)
                at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None)
        sys.stderr.flush()
        faulthandler.dump_traceback()

    loop.add_signal_handler(SHOW_STACKS, show)

    loop.run_until_complete(tasks())
    for thread in threads:
        thread.join()
