"""Carrying histories from one store to another, and from what Burr's own persisters have written.

Between two stores of kvpersist the stored bytes are moved as they are, what a rewind set aside included: a record is
bound to its ids and not to its store.  Keys go in ascending order, in which both stores list them, so the target
itself says how far an earlier run came.  From Burr's layouts a state is rebuilt by Burr and saved as by a persister.

Nothing is overwritten in the target, but for a failed record that has become a completed one in the source; and the
source is opened for reading only.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, cast

from . import keys, records
from .backends import PAGE, Backend
from .burr_layouts import BurrRecord, Layout, Unreadable, open_layout
from .errors import AccessDeniedError, CorruptRecordError, KvpersistError, OptionError, StoreUnavailableError
from .history import ALL, All
from .keys import RecordId
from .records import Status
from .serde import Serde
from .steps import Step, arun, gather
from .urls import open_place

PAGE_BYTES: Final = 4 * 2**20
"""About how many bytes of records are read at once."""

FIRST, MOST = 16, 256
"""How many records are read at once while their size is unknown, and at most: the next ones may be larger."""

KEPT: Final = 1000
"""The most reasons that a report keeps."""


Compared = Literal["same", "gives way", "other"]
"""How what the target has stands to what would go there."""


class NotCarried(NamedTuple):
    """Something that is not in the target as it is in the source."""

    what: str
    """Its key in the source, or where it stands there."""
    why: str


@dataclass
class CopyReport:
    """What a copy did."""

    carried: int = 0
    """Records that were written to the target; with `dry_run`, that would be."""
    already_there: int = 0
    """Records that the target had already, with the same content."""
    failed: int = 0
    """Records that could not be carried."""
    not_carried: list[NotCarried] = field(default_factory=list)
    """Which they are, and why; the first 1,000 of them."""
    only_in_target: int = 0
    """Keys that the target has and the source does not; they stay as they are."""
    bytes: int = 0
    """The size of what was carried."""
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def found(self) -> int:
        """How many records the source has, as far as was looked."""
        return self.carried + self.already_there + self.failed

    def lose(self, what: str, why: object) -> None:
        """Count something that could not be carried."""
        self.failed += 1
        if len(self.not_carried) < KEPT:
            self.not_carried.append(NotCarried(what, str(why)))


Progress = Callable[[CopyReport, "int | None"], None]
"""Called after each page with what was done so far, and how many records there are, once that is known."""


def copy(source: str, target: str, **options: Any) -> CopyReport:
    """Carry histories from one store to another; see `acopy`, which this runs on an event loop of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(acopy(source, target, **options))
    raise OptionError("an event loop runs here already: await kvpersist.acopy(...)")


async def acopy(
    source: str,
    target: str,
    *,
    partition_key: str | All | None = ALL,
    namespace: str | None = None,
    target_namespace: str | None = None,
    serde_kwargs: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    in_flight: int = 32,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Carry histories from one store to another.

    It may be stopped at any time and run again: what is in the target already is compared, not written.  So a second
    run is also a check of the first.

    Args:
        source: the URL of a store, or of what Burr has written: ``burr+sqlite:///state.db?table=burr_state``,
            ``burr+postgresql://...?table=burr_state``, ``burr+redis://...?namespace=``,
            ``burr+mongodb://host/mydatabase?collection=mystates`` or ``burr+tracking:///home/me/.burr/project``.
        target: the URL of a store.
        partition_key: carry this partition only; None is one.
        namespace: the source's namespace, where its URL does not say: ``"kvpersist"`` by default.
        target_namespace: the target's, if it is another one.
        serde_kwargs: for a source of Burr: how states are written, and what its registered functions are given.
        source_options: options of the source's backend, where they do not stand in the URL.
        target_options: options of the target's backend.
        in_flight: how many records are on their way at once.
        dry_run: look at everything, write nothing.
        progress: see `Progress`.

    Raises:
        OptionError: for a URL or an option that means nothing.
        StoreUnavailableError: a store could not be reached; running it again goes on from there.
    """
    opened: list[Backend] = []
    counting: asyncio.Task[int] | None = None
    try:
        origin: Layout | Backend
        if source.startswith("burr+"):
            origin = open_layout(source, asynchronous=True, options=dict(source_options or {}))
            if origin.backend is not None:
                opened.append(origin.backend)
        else:
            origin, in_url = open_place(source, asynchronous=True, options=source_options)
            namespace = namespace or in_url
            origin.read_only = True
            opened.append(origin)
        namespace = namespace or "kvpersist"
        destination, in_url = open_place(target, asynchronous=True, options=target_options)
        destination.read_only = dry_run
        opened.append(destination)
        prefix = _prefix(namespace, partition_key)
        if progress is not None:
            count = origin.count() if isinstance(origin, Layout) else _count(origin, prefix)
            counting = asyncio.ensure_future(arun(count))
        work = _Copy(
            origin,
            destination,
            partition_key=partition_key,
            source_prefix=prefix,
            target_namespace=target_namespace or in_url or namespace,
            serde=Serde(serde_kwargs),
            in_flight=in_flight,
            dry_run=dry_run,
            progress=lambda report: progress(report, _result(counting)) if progress else None,
        )
        return await arun(work.run())
    finally:
        if counting is not None:
            counting.cancel()
            await asyncio.gather(counting, return_exceptions=True)
        for backend in opened:
            await arun(backend.close())


def _result(task: asyncio.Task[int] | None) -> int | None:
    return task.result() if task and task.done() and not task.cancelled() and not task.exception() else None


def _prefix(namespace: str, partition_key: str | All | None) -> str:
    if isinstance(partition_key, All):
        return f"{keys.encode(namespace)}/"
    return keys.partition_prefix(namespace, partition_key)


def _count(backend: Backend, prefix: str) -> Step[int]:
    total, after = 0, None
    while True:
        page = yield from backend.scan(prefix, after=after, limit=PAGE)
        total += len(page.entries)
        after = page.after
        if after is None:
            return total


class _Copy:
    """One run, from one origin to one store."""

    def __init__(
        self,
        origin: Layout | Backend,
        target: Backend,
        *,
        partition_key: str | All | None,
        source_prefix: str,
        target_namespace: str,
        serde: Serde,
        in_flight: int,
        dry_run: bool,
        progress: Callable[[CopyReport], None],
    ) -> None:
        self.origin = origin
        self.target = target
        self.partition_key = partition_key
        self.source_prefix = source_prefix
        self.target_namespace = target_namespace
        self.target_prefix = keys.encode(target_namespace) + source_prefix[source_prefix.index("/") :]
        self.serde = serde
        self.in_flight = in_flight
        self.progress = progress
        self.report = CopyReport(dry_run=dry_run)

    def run(self) -> Step[CopyReport]:
        started = time.monotonic()
        yield from self._from_layout(self.origin) if isinstance(self.origin, Layout) else self._from_store(self.origin)
        self.report.seconds = time.monotonic() - started
        return self.report

    def _from_store(self, source: Backend) -> Step[None]:
        there = _Keys(self.target, self.target_prefix)
        passed: set[str] = set()  # the parts that were met, of the apps that this page is about
        after, limit = None, FIRST
        while True:
            page = yield from source.scan(self.source_prefix, after=after, limit=limit, values=True)
            going_on = keys.app_of(page.entries[0][0]) if page.entries else ""
            passed = {key for key in passed if key.startswith(going_on)}
            passed.update(key for key, _ in page.entries if _record_of(key) is None)
            parts: list[Step[None]] = []
            whole: list[Step[None]] = []
            for key, value in page.entries:
                target_key = self.target_prefix + key[len(self.source_prefix) :]
                has = yield from there.reach(target_key)
                if value is not None:
                    record = _record_of(key)
                    moved = self._move(source, key, record, target_key, value, has, passed)
                    (parts if record is None else whole).append(moved)
            # What is no record may be what records are made of, and sorts before them: it is there when they come.
            yield from gather(parts, limit=self.in_flight)
            yield from gather(whole, limit=self.in_flight)
            self.progress(self.report)
            after = page.after
            if after is None:
                self.report.only_in_target = yield from there.others()
                return
            limit = _next_limit(sum(len(value or b"") for _, value in page.entries), len(page.entries))

    def _move(
        self,
        source: Backend,
        key: str,
        record: RecordId | None,
        target_key: str,
        value: bytes,
        has: bool,
        passed: set[str],
    ) -> Step[None]:
        """Carry a stored value as it is."""

        def compared(stored: bytes) -> Compared:
            if stored == value:
                return "same"
            if record is None:
                return "other"
            old, _, old_payload = records.decode(stored, target_key, record)
            new, _, new_payload = records.decode(value, key, record)
            is_same = old_payload == new_payload and (old.serializer, old.compression) == (
                new.serializer,
                new.compression,
            )
            return _compared(old.status, new.status, is_same)

        if record is not None:
            try:
                header, _, _ = records.decode(value, key, record)
            except CorruptRecordError as error:
                self.report.lose(key, error)
                return
            if self.target_prefix != self.source_prefix and (header.encryption or header.signing):
                self.report.lose(key, "it was encrypted or signed for its namespace, and cannot go to another one")
                return
            # An app that is being run may have got a part since its parts were met; it goes before its record.
            late = [
                part for part in (keys.part_key(keys.app_of(key), name) for name in header.bases) if part not in passed
            ]
            for part in reversed(late):
                content = yield from source.get(part)
                if content is not None:
                    part_there = self.target_prefix + part[len(self.source_prefix) :]
                    yield from self._move(source, part, None, part_there, content, False, passed)
                passed.add(part)
        yield from self._carry(key, target_key, value, has, compared)

    def _from_layout(self, layout: Layout) -> Step[None]:
        after, limit = None, FIRST
        while True:
            found, after = yield from layout.page(after, limit)
            bodies = []
            for each in found:
                if isinstance(each, Unreadable):
                    self.report.lose(*each)
                elif self.partition_key is ALL or each.id.partition_key == self.partition_key:
                    bodies.append(self._save(each))
            yield from gather(bodies, limit=self.in_flight)
            self.progress(self.report)
            if after is None:
                return
            limit = _next_limit(sum(len(each.state) for each in found if isinstance(each, BurrRecord)), len(found))

    def _save(self, found: BurrRecord) -> Step[None]:
        """Write a step of Burr's as a persister would have written it at its time."""
        record, serde, namespace = found.id, self.serde, self.target_namespace
        status = cast(Status, found.status)

        def compared(stored: bytes) -> Compared:
            header, sealed = serde.decode(namespace, stored, key, record)
            return _compared(header.status, status, serde.is_same(header, sealed, payload))

        try:
            app = keys.app_prefix(namespace, record.partition_key, record.app_id)
            folder = _set_aside_folder(app, found.set_aside) if found.set_aside else app
            key = folder + keys.record_name(record.sequence_id, record.position)
            payload = serde.dumps(found.fields(serde.options))
            created_at = found.created_at.astimezone(dt.timezone.utc).isoformat(timespec="microseconds")
            value = serde.encode(namespace, record, status, created_at, payload)
        except KvpersistError as error:
            self.report.lose(str(record), error)
            return
        yield from self._carry(str(record), key, value, False, compared)

    def _carry(self, what: str, key: str, value: bytes, has: bool, compared: Callable[[bytes], Compared]) -> Step[None]:
        """Have a value in the target, unless another is there."""
        report = self.report
        try:
            while True:
                if not has and not report.dry_run and (yield from self.target.put(key, value, "create")):
                    break
                stored = yield from self.target.get(key)
                if stored is None:
                    if report.dry_run:
                        break
                    has = False  # deleted meanwhile
                    continue
                difference = compared(stored)
                if difference == "same":
                    report.already_there += 1
                    return
                if difference == "other":
                    report.lose(what, f"the target has other content at {key}")
                    return
                if report.dry_run or (yield from self.target.replace(key, stored, value)):
                    break
        except (StoreUnavailableError, AccessDeniedError):
            raise
        except KvpersistError as error:  # a key that is too long for this store, a value that is too large
            report.lose(what, error)
            return
        report.carried += 1
        report.bytes += len(value)


class _Keys:
    """The keys of the target in ascending order, read along with those of the source."""

    def __init__(self, backend: Backend, prefix: str) -> None:
        self._backend = backend
        self._prefix = prefix
        self._page: list[str] = []
        self._next = 0
        self._after: str | None = None
        self._is_over = False
        self._passed = 0

    def reach(self, key: str) -> Step[bool]:
        """Whether a key is there; each call asks for a greater one."""
        while True:
            while self._next < len(self._page):
                if self._page[self._next] >= key:
                    if self._page[self._next] > key:
                        return False
                    self._next += 1
                    return True
                self._next += 1
                self._passed += 1
            if self._is_over:
                return False
            page = yield from self._backend.scan(self._prefix, after=self._after, limit=PAGE)
            self._page, self._next = [each for each, _ in page.entries], 0
            self._after = page.after
            self._is_over = page.after is None

    def others(self) -> Step[int]:
        """How many keys were passed over, with all that are left."""
        yield from self.reach("~")
        return self._passed


def _compared(old: Status, new: Status, is_same: bool) -> Compared:
    if old == new and is_same:
        return "same"
    return "gives way" if (old, new) == ("failed", "completed") else "other"


def _set_aside_folder(app: str, time: dt.datetime) -> str:
    """Below an app, where what was left at this time goes; each run of a copy makes the same name of it."""
    folder = f"{keys.MAX_SEQUENCE_ID - int(time.timestamp() * 1e6):019d}"
    return f"{app}{keys.SET_ASIDE}{folder}-{hashlib.sha256((app + folder).encode()).hexdigest()[:8]}/"


def _record_of(key: str) -> RecordId | None:
    """The record that lives at a key, also where it was set aside; None for what is no record."""
    segments = key.split("/")
    if len(segments) > 4 and f"{segments[3]}/" == keys.SET_ASIDE:
        segments[3:] = segments[-1:]
    parsed = keys.parse("/".join(segments))
    return parsed[1] if parsed else None


def _next_limit(size: int, count: int) -> int:
    """How many records to read next, so that a page is of about the same size whatever theirs is."""
    return max(1, min(MOST, PAGE_BYTES * count // max(size, 1))) if count else FIRST
