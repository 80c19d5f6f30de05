"""What a store holds, for people: read without Burr, and without building or running what a record names.

The command line and the web page stand on it.  Everything is read page by page, so that an app of a million steps
and a partition of a million apps cost what is looked at.
"""

from __future__ import annotations

import difflib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple

import orjson

from . import keys
from .backends import Backend
from .errors import CorruptPartError, CorruptRecordError, InvalidIdError, InvalidKeyError, KvpersistError
from .history import ALL, VALUES_PAGE, All, History, beyond_records, record_at
from .keys import RecordId
from .records import Header
from .serde import Sealed, Serde
from .steps import Step
from .urls import open_place

LARGEST: Final = 20
"""How many of the largest apps `Inspection.stats` tells of."""

_MOST_COMPARED = 2_000
"""The longest lists between which `diff` looks for what was moved in; longer ones are compared place by place."""


class IdPage(NamedTuple):
    """A part of the partition keys of a store, or of the app ids of a partition, in key order."""

    ids: list[str | None]
    after: str | None
    """Where the next page goes on, or None if this was the last."""


class Listed(NamedTuple):
    """A record in a list."""

    record: RecordId
    key: str
    size: int
    """The length in bytes of all that is stored under the key."""
    header: Header | None
    """None where the record cannot be read."""
    error: str | None = None
    """Why it cannot be read."""
    set_aside: bool = False
    sealed: Sealed | None = None
    """Its state, not opened yet."""


class ListedPage(NamedTuple):
    """A part of an app's records, newest first."""

    entries: list[Listed]
    after: str | None
    """Where the next page goes on, or None if this was the last."""


class Shown(NamedTuple):
    """A record with its state, as a tree that JSON can hold."""

    header: Header
    key: str
    size: int
    """The length in bytes of all that is stored under the key."""
    state: Any
    """A value that JSON has no type for is a tag, as in ``{"$kv": "datetime", "value": "2026-..."}``."""
    note: str | None = None
    """Why there is no state: it is encrypted and there is no key, or a pickle, which is never opened."""


@dataclass(kw_only=True)
class _Counts:
    """How much there is."""

    records: int = 0
    """Live records."""
    failed: int = 0
    """Those of them whose step failed."""
    set_aside: int = 0
    """Records that a rewind set aside."""
    parts: int = 0
    """What records of a compact history are written against."""
    unreadable: int = 0
    size: int = 0
    """The length in bytes of all that is stored."""

    def add(self, other: _Counts) -> None:
        """Count what another has counted."""
        for each in fields(_Counts):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(kw_only=True)
class AppStats(_Counts):
    """What is stored for an app."""

    partition_key: str | None
    app_id: str
    first: str | None = None
    """When the oldest live record was made: ISO 8601 in UTC."""
    last: str | None = None
    """When the newest live record was made."""

    @property
    def per_record(self) -> float:
        """Bytes for each live record, all in all."""
        return self.size / self.records if self.records else 0.0


@dataclass(kw_only=True)
class Stats(_Counts):
    """What is stored in a namespace, or in a part of it."""

    partitions: int = 0
    apps: int = 0
    largest: list[AppStats] = field(default_factory=list)
    """The apps that take most bytes, the largest first; `LARGEST` at most."""


class Inspection:
    """A namespace of a store, to be looked at; step bodies that `steps.run` or `steps.arun` drive.

    Nothing is written, not even a table that is not there yet.

    Args:
        backend: the store; from now on it is read-only.
        serde: how records are read that need a key; the default reads what needs none.
    """

    def __init__(self, backend: Backend, *, namespace: str = "kvpersist", serde: Serde | None = None) -> None:
        backend.read_only = True
        self.backend = backend
        self.namespace = namespace
        self.serde = serde or Serde()
        self._history = History(backend, namespace=namespace, serde=self.serde, on_conflict="overwrite")

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        asynchronous: bool = False,
        namespace: str | None = None,
        serde_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Inspection:
        """What the store at a URL holds; the arguments are those of `Persister.from_url`."""
        backend, in_url = open_place(url, asynchronous=asynchronous, options=options)
        return cls(backend, namespace=namespace or in_url or "kvpersist", serde=Serde(serde_kwargs))

    def close(self) -> Step[None]:
        """Disconnect from the store."""
        yield from self.backend.close()

    def partitions(self, *, after: str | None = None, limit: int = 100) -> Step[IdPage]:
        """The partition keys that have apps."""
        return (yield from self._ids(f"{keys.encode(self.namespace)}/", "", after, limit))

    def apps(
        self, partition_key: str | None, *, after: str | None = None, limit: int = 100, prefix: str = ""
    ) -> Step[IdPage]:
        """The app ids of a partition, or those that start with a prefix."""
        folder = keys.partition_prefix(self.namespace, partition_key)
        begun = keys.encode(f"{prefix}x")[:-1]  # with a letter behind it: a few whole ids are written in another way
        page = yield from self._ids(folder, begun, after, limit)
        whole = keys.encode(prefix) if prefix else ""
        if after is None and not whole.startswith(begun):
            found = yield from self.backend.scan(f"{folder}{whole}/", limit=1)
            return IdPage([*([prefix] if found.entries else []), *page.ids], page.after)
        return page

    def _ids(self, folder: str, begun: str, after: str | None, limit: int) -> Step[IdPage]:
        found: list[str | None] = []
        while True:
            page = yield from self.backend.scan(folder + begun, after=after, limit=limit - len(found), delimiter="/")
            for key, _ in page.entries:
                try:
                    if key.endswith("/"):
                        found.append(keys.decode(key[len(folder) : -1]))
                except InvalidKeyError:
                    pass  # somebody else's
            after = page.after
            if after is None or len(found) >= limit:
                return IdPage(found, after)

    def headers(
        self,
        partition_key: str | None,
        app_id: str,
        *,
        after: str | None = None,
        before_sequence_id: int | None = None,
        limit: int = VALUES_PAGE,
        include_set_aside: bool = False,
    ) -> Step[ListedPage]:
        """A page of an app's records, newest first, and behind them the ones set aside, where asked for.

        Args:
            before_sequence_id: start with the newest record that has a lower one.
        """
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        if after is None:
            after = app + keys.BEHIND_PARTS
            if before_sequence_id is not None:
                # The name without what follows the complement sorts right before the record.
                if before_sequence_id < 1:
                    raise InvalidIdError(f"there is no record before the sequence id {before_sequence_id}")
                after = app + keys.sequence_name(min(before_sequence_id - 1, keys.MAX_SEQUENCE_ID)).partition(".")[0]
        entries: list[Listed] = []
        while True:
            page = yield from self.backend.scan(app, after=after, limit=limit - len(entries), values=True)
            for key, value in page.entries:
                aside = beyond_records(app, key)
                record = record_at(app, key, set_aside=True)
                if value is None or record is None or (aside and not include_set_aside):
                    continue
                entries.append(self._listed(record, key, value, aside))
            after = page.after
            if after is not None and beyond_records(app, after) and not include_set_aside:
                after = None
            if after is None or len(entries) >= limit:
                return ListedPage(entries, after)

    def _listed(self, record: RecordId, key: str, value: bytes, set_aside: bool) -> Listed:
        try:
            return self._decoded(record, key, value, set_aside)
        except KvpersistError as error:
            return Listed(record, key, len(value), None, str(error), set_aside)

    def _decoded(self, record: RecordId, key: str, value: bytes, set_aside: bool) -> Listed:
        header, sealed = self.serde.decode(self.namespace, value, key, record)
        return Listed(record, key, len(value), header._replace(set_aside=set_aside), None, set_aside, sealed)

    def shown(self, listed: Listed) -> Step[Shown | None]:
        """A record of a list with its state; None where it was deleted meanwhile, and its parts with it.

        Raises:
            CorruptRecordError: it is one that cannot be read.
        """
        _, key, size, header, problem, _, sealed = listed
        if header is None or sealed is None:
            raise CorruptRecordError(problem)
        try:
            base = None
            if header.bases:
                base = yield from self._history.parts.base_of(self.serde, keys.app_of(key), key, header, {})
            return Shown(header, key, size, self.serde.shown(header, sealed, base))
        except KvpersistError as error:
            if isinstance(error, CorruptPartError) and (yield from self.backend.get(key)) is None:
                return None
            return Shown(header, key, size, None, str(error))

    def record(
        self,
        partition_key: str | None,
        app_id: str,
        sequence_id: int | None = None,
        position: str | None = None,
    ) -> Step[Shown | None]:
        """A live record: the newest, also of a failed step; the one at a sequence id; or the one at a position there.

        Raises:
            CorruptRecordError: the stored record was cut or changed.
        """
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        if sequence_id is None:
            page = yield from self.headers(partition_key, app_id, limit=1)
            if not page.entries:
                return None
            newest = page.entries[0]
            # What cannot be read is read again for its error's sake.
            return (yield from self.shown(newest) if newest.header else self.record_at(newest.key))
        if position is not None:
            return (yield from self.record_at(app + keys.record_name(sequence_id, position)))
        entries, _ = yield from self.backend.scan(app + keys.sequence_name(sequence_id), limit=1, values=True)
        return (yield from self._shown_at(*entries[0])) if entries else None

    def record_at(self, key: str) -> Step[Shown | None]:
        """The record at a key, live or set aside; None where there is none."""
        keys.check(key)
        if not key.startswith(f"{keys.encode(self.namespace)}/"):
            raise InvalidKeyError(f"{key!r} is not below the namespace {self.namespace!r}")
        return (yield from self._shown_at(key, (yield from self.backend.get(key))))

    def _shown_at(self, key: str, value: bytes | None) -> Step[Shown | None]:
        app = keys.app_of(key)
        record = None if value is None else record_at(app, key, set_aside=True)
        if record is None or value is None:
            return None
        return (yield from self.shown(self._decoded(record, key, value, beyond_records(app, key))))

    def stats(
        self,
        partition_key: str | All | None = ALL,
        app_id: str | All = ALL,
        *,
        progress: Callable[[Stats], None] = lambda stats: None,
    ) -> Step[Stats]:
        """Read everything, and count it.

        Args:
            progress: called after each app with what has been counted.
        """
        stats = Stats()
        after: str | None = None
        if partition_key is not ALL:
            yield from self._add_partition(stats, partition_key, app_id, progress)
            return stats
        if app_id is not ALL:
            raise InvalidIdError("an app id means nothing without a partition key; None is one")
        while True:
            page = yield from self.partitions(after=after)
            for each in page.ids:
                yield from self._add_partition(stats, each, ALL, progress)
            after = page.after
            if after is None:
                return stats

    def _add_partition(
        self, stats: Stats, partition_key: str | None, app_id: str | All, progress: Callable[[Stats], None]
    ) -> Step[None]:
        counted = stats.apps
        after: str | None = None
        while True:
            page = IdPage([app_id], None) if app_id is not ALL else (yield from self.apps(partition_key, after=after))
            for each in page.ids:
                app = yield from self.app_stats(partition_key, each or "")
                if app.size:
                    stats.apps += 1
                    stats.add(app)
                    stats.largest = heapq.nlargest(LARGEST, [*stats.largest, app], key=lambda app: app.size)
                progress(stats)
            after = page.after
            if after is None:
                break
        stats.partitions += stats.apps > counted

    def app_stats(self, partition_key: str | None, app_id: str) -> Step[AppStats]:
        """Read all of an app, and count it."""
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        stats = AppStats(partition_key=partition_key, app_id=app_id)
        after: str | None = None
        while True:
            page = yield from self.backend.scan(app, after=after, limit=VALUES_PAGE, values=True)
            for key, value in page.entries:
                if value is None:
                    continue
                stats.size += len(value)
                record = record_at(app, key, set_aside=True)
                if record is None:
                    stats.parts += key.startswith(app + keys.PARTS)
                    continue
                aside = beyond_records(app, key)
                header = self._listed(record, key, value, aside).header
                stats.set_aside += aside
                stats.records += not aside
                stats.unreadable += header is None
                if header is not None and not aside:
                    stats.failed += header.status == "failed"
                    stats.last = stats.last or header.created_at
                    stats.first = header.created_at
            after = page.after
            if after is None:
                return stats


def escaped(text: str) -> str:
    """Text with what is not printable, and what turns the direction of writing, as in a JSON string.

    What comes from a store may hold what a terminal obeys, or make a page show something else than there is.
    """
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def shown_size(size: float) -> str:
    """A number of bytes, in the unit that suits it."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def shown_time(created_at: str) -> str:
    """When a record was made, in UTC, to the millisecond."""
    return created_at.replace("T", " ").replace("+00:00", "")[:23]


class Change(NamedTuple):
    """One difference between two trees."""

    path: str
    """Where, as in ``chat[3].content``; ``""`` is the whole."""
    kind: Literal["added", "removed", "changed"]
    before: Any
    """None where it was added."""
    after: Any
    """None where it was removed."""


def diff(before: Any, after: Any) -> list[Change]:
    """What differs between two trees that JSON can hold, in the order in which it stands there.

    Types count: 1, 1.0 and True are three values.  In lists, what was put in or taken out in between is found.
    The path of something removed, and of something that stands elsewhere now, is the one in `before`.
    """
    return list(_differences("", before, after))


def _differences(path: str, before: Any, after: Any) -> Iterator[Change]:
    if type(before) is dict and type(after) is dict:
        for key in [*before, *(key for key in after if key not in before)]:
            below = f"{path}{_name(key, first=not path)}"
            if key not in after:
                yield Change(below, "removed", before[key], None)
            elif key not in before:
                yield Change(below, "added", None, after[key])
            else:
                yield from _differences(below, before[key], after[key])
    elif type(before) is list and type(after) is list:
        yield from _list_differences(path, before, after)
    elif _bytes(before) != _bytes(after):
        yield Change(path, "changed", before, after)


def _list_differences(path: str, before: list[Any], after: list[Any]) -> Iterator[Change]:
    olds, news = list(map(_bytes, before)), list(map(_bytes, after))
    if olds == news:
        return
    start = next((at for at, (old, new) in enumerate(zip(olds, news, strict=False)) if old != new), None)
    if start is None:
        start = min(len(olds), len(news))
    longest = max(len(olds), len(news)) - start
    matcher = difflib.SequenceMatcher(None, olds[start:], news[start:], autojunk=False)
    blocks = (
        matcher.get_opcodes()
        if longest <= _MOST_COMPARED
        else [("replace", 0, len(olds) - start, 0, len(news) - start)]
    )
    for kind, old, old_end, new, new_end in blocks:
        if kind == "equal":
            continue
        old, old_end, new, new_end = (each + start for each in (old, old_end, new, new_end))
        both = min(old_end - old, new_end - new)
        for step in range(both):
            yield from _differences(f"{path}[{old + step}]", before[old + step], after[new + step])
        for at in range(old + both, old_end):
            yield Change(f"{path}[{at}]", "removed", before[at], None)
        for at in range(new + both, new_end):
            yield Change(f"{path}[{at}]", "added", None, after[at])


def _name(key: str, *, first: bool) -> str:
    """A key as a part of a path: plain where that cannot be misread."""
    if key.isidentifier():
        return key if first else f".{key}"
    return f"[{orjson.dumps(key).decode()}]"


def _bytes(tree: Any) -> bytes:
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)
