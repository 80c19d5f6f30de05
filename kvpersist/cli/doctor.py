"""``kvpersist doctor URL``"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.text import Text

from kvpersist import keys, telemetry
from kvpersist.backends import Backend
from kvpersist.errors import KvpersistError, StoreError, StoreUnavailableError
from kvpersist.history import History
from kvpersist.inspection import escaped
from kvpersist.serde import Serde
from kvpersist.steps import Step, run
from kvpersist.urls import redacted

from . import options, output


@dataclass
class Finding:
    """What came of one thing that was tried."""

    what: str
    ok: bool
    seconds: float
    requests: int | None = None
    """How many requests it took; None where nothing was counted."""
    problem: str | None = None


class _Counter(telemetry.Telemetry):
    """Knows how many requests the last operation took."""

    requests = 0

    @contextlib.contextmanager
    def observed(self, name: str, work: telemetry.Work, *, is_operation: bool) -> Iterator[None]:
        try:
            with super().observed(name, work, is_operation=is_operation):
                yield
        finally:
            if is_operation:
                self.requests = work.requests


class Wrong(Exception):
    """The store did it, but not as it must."""


@click.command()
@options.store(argument=True)
@click.option("--read-only", is_flag=True, help="Try only what changes nothing.")
@options.as_json
def doctor(store: options.Location, *, read_only: bool, as_json: bool) -> None:
    """Find out whether the store at URL can be used: is it there, and may we do all that is needed?

    What is tried is done in a namespace of its own, which is removed in the end.  The exit code is 1 if anything
    does not work, and 3 if the store cannot be reached.
    """
    findings = list(_reading(store))
    if all(each.ok for each in findings) and not read_only:
        findings += _writing(store)
    if as_json:
        output.print_json({"ok": all(each.ok for each in findings), "checks": [asdict(each) for each in findings]})
    else:
        _print(store, findings)
    if not findings[0].ok:
        raise SystemExit(3)
    if not all(each.ok for each in findings):
        raise SystemExit(1)


def _reading(store: options.Location) -> Iterator[Finding]:
    """What is done with what is there already."""
    backend = store.backend()
    backend.read_only = True
    folder = f"{keys.encode(store.namespace)}/"
    try:
        found = _tried("reach it", lambda: _reached(backend, folder))
        yield found
        if found.ok:
            yield _tried(f"list the namespace {store.namespace!r}", lambda: _listed_in_order(backend, folder))
            yield _tried("read", lambda: backend.get(f"{folder}none/at/all"))
    finally:
        run(backend.close())


def _reached(backend: Backend, folder: str) -> Step[None]:
    with contextlib.suppress(StoreError):  # a refusal is an answer
        try:
            yield from backend.scan(folder, limit=1, delimiter="/")
        except StoreUnavailableError as error:
            raise Wrong(f"the store is not there, or does not answer: {error}") from error


def _listed_in_order(backend: Backend, folder: str) -> Step[None]:
    page = yield from backend.scan(folder, limit=100, delimiter="/")
    names = [key for key, _ in page.entries]
    if names != sorted(names):
        raise Wrong("keys are not listed in bytewise order, on which all reading stands")


def _writing(store: options.Location) -> Iterator[Finding]:
    """What needs a place of its own."""
    backend = store.backend()
    namespace = f"doctor-{uuid.uuid4().hex}"
    try:
        yield _tried("make what the store needs", backend.open)
        for what, tried in _writes(backend, namespace):
            yield _tried(what, tried)
        counter = _Counter()
        history = History(
            telemetry.Observed(backend, counter), namespace=namespace, serde=Serde(), on_conflict="overwrite"
        )
        for what, operation in (
            ("the first save of an app", lambda: history.save("p", "a", 0, "step", {"n": 0}, "completed")),
            ("a save", lambda: history.save("p", "a", 1, "step", {"n": 1}, "completed")),
            ("a load of the latest", lambda: history.load("p", "a")),
            ("a load by sequence id", lambda: history.load("p", "a", 0)),
            ("a list of the apps", lambda: history.list_app_ids("p")),
        ):
            found = _tried(what, operation)
            found.requests = counter.requests
            yield found
        yield _tried("remove an app", lambda: history.delete_app("p", "a"))
        yield _tried("leave nothing behind", lambda: _emptied(backend, namespace))
    finally:
        with contextlib.suppress(KvpersistError):
            run(_emptied(backend, namespace))
        run(backend.close())


def _writes(backend: Backend, namespace: str) -> Iterator[tuple[str, Callable[[], Step[Any]]]]:
    def key(name: str) -> str:
        return f"{namespace}/p/a/{name}"

    def write() -> Step[None]:
        yield from backend.put(key("b"), b"1")
        if (yield from backend.get(key("b"))) != b"1":
            raise Wrong("what was written does not come back")

    def create() -> Step[None]:
        if not (yield from backend.put(key("a"), b"1", "create")):
            raise Wrong("a key that is not there could not be made")
        if (yield from backend.put(key("a"), b"2", "create")) or (yield from backend.get(key("a"))) != b"1":
            raise Wrong(
                "a key that is there was made again: two workers could overwrite each other; the store ignores "
                "conditions on writes, as some imitations of S3 do"
            )

    def replace() -> Step[None]:
        if (yield from backend.replace(key("a"), b"other", b"3")):
            raise Wrong("a value was replaced that was not the expected one")
        if not (yield from backend.replace(key("a"), b"1", b"2")):
            raise Wrong("the expected value could not be replaced")

    def order() -> Step[None]:
        yield from backend.put(key("c"), b"1")
        page = yield from backend.scan(f"{namespace}/p/a/", values=True)
        if page.entries != [(key("a"), b"2"), (key("b"), b"1"), (key("c"), b"1")]:
            raise Wrong("what was written is not listed, or not in bytewise order")

    def delete() -> Step[None]:
        yield from backend.delete([key("a"), key("b"), key("c")])
        if (yield from backend.get(key("a"))) is not None:
            raise Wrong("what was deleted is there still")

    yield "write", write
    if backend.atomic_create:
        yield "create only where there is nothing", create
    else:
        yield "create", lambda: backend.put(key("a"), b"1")
    yield "replace only what is expected", replace
    yield "list in order", order
    yield "delete", delete


def _emptied(backend: Backend, namespace: str) -> Step[None]:
    page = yield from backend.scan(f"{namespace}/")
    if page.entries:
        yield from backend.delete([key for key, _ in page.entries])
    if (yield from backend.scan(f"{namespace}/")).entries:
        raise Wrong(f"the namespace {namespace} is not empty")


def _tried(what: str, operation: Callable[[], Step[Any]]) -> Finding:
    started = time.perf_counter()
    problem = None
    try:
        run(operation())
    except (KvpersistError, Wrong) as error:
        problem = str(error)
    return Finding(what, problem is None, time.perf_counter() - started, None, problem)


def _print(store: options.Location, findings: list[Finding]) -> None:
    console = output.console()
    console.print(Text(redacted(store.url), style="bold"))
    table = output.table("can I", "", "ms", "requests", numbers=("ms", "requests"))
    for each in findings:
        table.add_row(
            escaped(each.what),
            Text("yes", style="green") if each.ok else Text("NO", style="bold red"),
            f"{each.seconds * 1000:,.1f}",
            "" if each.requests is None else str(each.requests),
        )
    console.print(table)
    for each in findings:
        if each.problem is not None:
            console.print(Text(f"{each.what}: {escaped(each.problem)}", style="red"), soft_wrap=True)
    if all(each.ok for each in findings):
        console.print(Text("all is well", style="green"))
