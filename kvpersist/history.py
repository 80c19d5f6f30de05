"""The one implementation of persistence: every operation, as step bodies over a `Backend`.

It knows records and keys, not Burr and not any store.  The faces in `persisters` drive it.
"""

from __future__ import annotations

import datetime as dt
import enum
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from . import keys
from .backends import PAGE, Backend, Entry
from .compaction import GRACE, LARGEST, THRESHOLD, Base, Cache, Parts, blocks, part_id
from .errors import ConflictError, CorruptPartError, InvalidIdError, InvalidKeyError, KvpersistError, OptionError
from .keys import RecordId
from .records import Header, Status
from .serde import Sealed, Serde
from .steps import Step, gather
from .telemetry import Telemetry, observed, operation
from .urls import redacted

OnConflict = Literal["error", "overwrite", "rewind"]
ON_CONFLICT: Final = ("error", "overwrite", "rewind")

VALUES_PAGE = 64
"""How many records are read at once where their content is needed."""


class All(enum.Enum):
    """The type of `ALL`."""

    ALL = "ALL"

    def __repr__(self) -> str:
        return "ALL"


ALL: Final = All.ALL
"""Every partition, or every app (None is a partition of its own)."""


class Record(NamedTuple):
    """A record with its state."""

    header: Header
    state: dict[str, Any]


class Stored(NamedTuple):
    """A record that was found and checked, and not opened yet."""

    header: Header
    sealed: Sealed
    key: str
    value: bytes
    fetched: dict[str, bytes | None]
    """Parts that came with it, by name."""


class HeaderPage(NamedTuple):
    """A part of a history."""

    headers: list[Header]
    after: str | None
    """Where the next page goes on, or None if this was the last."""


@dataclass
class Report:
    """What `verify` found, by key."""

    records: int = 0
    """How many records were read, those set aside among them."""
    parts: int = 0
    """How many parts there are."""
    corrupt_records: dict[str, str] = field(default_factory=dict)
    """Records that cannot be loaded, and why: those without a broken part are broken themselves."""
    missing_parts: set[str] = field(default_factory=set)
    """Parts that a record needs and that are not there."""
    corrupt_parts: dict[str, str] = field(default_factory=dict)
    """Parts that cannot be read, or are not what a record was written against; and why."""
    unreachable_parts: set[str] = field(default_factory=set)
    """Parts that no record needs: `prune` and `sweep` collect them in time."""

    @property
    def ok(self) -> bool:
        """Whether every record can be loaded."""
        return not (self.corrupt_records or self.missing_parts or self.corrupt_parts)


class History:
    """The records below one namespace of one store."""

    def __init__(
        self,
        backend: Backend,
        *,
        namespace: str = "kvpersist",
        serde: Serde,
        on_conflict: OnConflict = "error",
        compact_history: bool = True,
    ) -> None:
        if on_conflict not in ON_CONFLICT:
            raise OptionError(f"on_conflict must be one of {', '.join(ON_CONFLICT)}, not {on_conflict!r}")
        if not isinstance(namespace, str) or not namespace:
            raise OptionError(f"the namespace must be a non-empty str, not {namespace!r}")
        if on_conflict == "error" and not backend.atomic_create:
            raise OptionError(
                f"{redacted(backend.url)}: this store cannot create a record only where there is none, so two workers "
                "that race on one app would not find out; say on_conflict='overwrite' if there is one worker an app"
            )
        self.backend = backend
        self.namespace = namespace
        self.serde = serde
        self.on_conflict = on_conflict
        self.compact_history = compact_history
        self.parts = Parts(backend, namespace, Cache())
        # For "rewind": the newest sequence id of each app as last seen here, so that only a save that
        # does not continue what this process knows has to look first.
        self._newest: dict[str, int] = {}

    # Writing

    @operation("save")
    def save(
        self,
        partition_key: str | None,
        app_id: str,
        sequence_id: int,
        position: str,
        state: Mapping[str, Any],
        status: Status,
    ) -> Step[None]:
        """Store a record; see `Persister.save`."""
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        key = app + keys.record_name(sequence_id, position)
        record = RecordId(partition_key, app_id, sequence_id, position)
        created_at = dt.datetime.now(dt.timezone.utc).isoformat(timespec="microseconds")
        payload = self.serde.dumps(state if type(state) is dict else dict(state))
        if self.compact_history and THRESHOLD <= len(payload) <= min(LARGEST, self.serde.max_size):
            known = yield from self.parts.known(self.serde, app, sequence_id)
            parts, base = self.parts.made(self.serde, app, sequence_id, payload, created_at, known)
        else:
            known, parts, base = {}, [], None

        def encoded(base: Base | None) -> bytes:
            return self.serde.encode(self.namespace, record, status, created_at, payload, base=base)

        value = encoded(base)
        if self.on_conflict == "overwrite":
            if parts and not (yield from self.parts.put(app, known, parts)):
                value = encoded((yield from self.parts.write(self.serde, app, sequence_id, payload, created_at, known)))
            yield from self.backend.put(key, value)
            return
        # In a rewind, all that is not older than the new record goes.  One that continues what this process has
        # seen leaves nothing to look for.
        rewinds = self.on_conflict == "rewind"
        looks = rewinds and sequence_id <= self._newest.get(app, keys.MAX_SEQUENCE_ID)
        aside = _set_aside_folder(app) if rewinds else ""
        if looks:
            yield from self._set_aside(app, sequence_id, aside, spare=key)
        if parts:
            won = yield from self.parts.put(app, known, parts, (key, value))
        else:
            won = yield from self.backend.put(key, value, "create")
        while not won:
            if rewinds and not looks:  # what this process had seen is not the newest any more
                looks = True
                yield from self._set_aside(app, sequence_id, aside, spare=key)
            stored = yield from self.backend.get(key)
            if stored is not None:
                header, settled = yield from self._settled(app, stored, key, record, status, payload)
                if settled == "same":
                    break
                if settled == "conflict":
                    if not rewinds:
                        raise ConflictError(
                            f"{record}: a {header.status} record with other content is stored already (made "
                            f"{header.created_at}); nothing was changed. Another worker may be running this app. To go "
                            "back and take another way, use on_conflict='rewind' or fork to a new app id"
                        )
                    yield from self.backend.put(aside + key[len(app) :], stored)
            if parts:  # some of their names were taken, or the record's was
                value = encoded((yield from self.parts.write(self.serde, app, sequence_id, payload, created_at, known)))
                parts = []
            if stored is None:  # deleted meanwhile, or not tried yet
                won = yield from self.backend.put(key, value, "create")
            else:
                won = yield from self.backend.replace(key, stored, value)
        if rewinds:
            self._newest[app] = sequence_id

    @operation("rewind")
    def rewind(self, partition_key: str | None, app_id: str, sequence_id: int) -> Step[int]:
        """Set aside all records newer than a sequence id; returns how many."""
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        page = yield from self.backend.scan(app + keys.sequence_name(sequence_id), limit=1)
        if not page.entries:
            raise InvalidIdError(
                f"partition {partition_key!r}, app {app_id!r} has no record with the sequence id {sequence_id} to go "
                "back to; nothing was changed"
            )
        self._newest.pop(app, None)
        return (yield from self._set_aside(app, sequence_id + 1, _set_aside_folder(app)))

    def observe(self, telemetry: bool | Telemetry) -> None:
        """Report what is done from now on; see `Persister.observe`."""
        self.backend = observed(self.backend, telemetry)
        self.parts = Parts(self.backend, self.namespace, self.parts.cache)

    @operation("fork")
    def fork(self, partition_key: str | None, app_id: str, sequence_id: int, new_app_id: str) -> Step[None]:
        """Begin a new app of the partition with the record that another has at a sequence id.

        The state is not built: its bytes go over as they are, whatever their serializer.

        Raises:
            InvalidIdError: there is no such record.
            ConflictError: the new app has records already; nothing was changed.
        """
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        new_app = keys.app_prefix(self.namespace, partition_key, new_app_id)
        found = yield from self._with_sequence_id(app, keys.sequence_name(sequence_id))
        if found is None:
            raise InvalidIdError(
                f"partition {partition_key!r}, app {app_id!r} has no record with the sequence id {sequence_id} to fork"
            )
        base = yield from self._base_of(app, found.key, found.header, found.fetched)
        header = found.header
        value = self.serde.encode(
            self.namespace,
            header.id._replace(app_id=new_app_id),
            header.status,
            dt.datetime.now(dt.timezone.utc).isoformat(timespec="microseconds"),
            self.serde.opened(header, found.sealed, base),
            like=header,
        )
        taken = (yield from self.backend.scan(new_app, limit=1)).entries
        if taken or not (yield from self.backend.put(new_app + found.key[len(app) :], value, "create")):
            raise ConflictError(
                f"partition {partition_key!r}, app {new_app_id!r} has records already; nothing was changed. Fork to an "
                "app id that is not taken"
            )

    def share_memory(self, other: History) -> None:
        """Know of newest records and parts what another history of the same store knows, and the other way round."""
        self._newest = other._newest
        self.parts = other.parts

    def _set_aside(self, app: str, first: int, folder: str, spare: str | None = None) -> Step[int]:
        """Move the live records from a sequence id on, but for one key, to a folder, the newest first.

        Each is copied, and then removed if it is still what was copied.  A crash in between leaves a shorter
        history and some records in both places, never a record in neither.
        """
        moved = 0
        after: str | None = app + keys.BEHIND_PARTS
        looking = True  # most often the key of the newest record shows that there is nothing to do
        while True:
            page = yield from self.backend.scan(
                app, after=after, limit=1 if looking else VALUES_PAGE, values=not looking
            )
            found = [(record_at(app, key), key, value) for key, value in page.entries]
            going = [
                (key, value)
                for record, key, value in found
                if record is not None and record.sequence_id >= first and key != spare
            ]
            older = any(record is not None and record.sequence_id < first for record, _, _ in found)
            at_end = older or page.after is None or beyond_records(app, page.after)
            if looking and not (at_end and not going):
                looking = False  # the same page again, longer and with values
                continue
            moves = (self._move(key, value, folder + key[len(app) :]) for key, value in going)
            moved += sum((yield from gather(moves)))
            if at_end:
                return moved
            after = page.after

    def _move(self, key: str, value: bytes | None, to: str) -> Step[int]:
        while value is not None:
            yield from self.backend.put(to, value)
            if (yield from self.backend.replace(key, value, None)):
                return 1
            value = yield from self.backend.get(key)  # it was changed after it was copied
        return 0

    def _settled(
        self, app: str, stored: bytes, key: str, record: RecordId, status: Status, payload: bytes
    ) -> Step[tuple[Header, Literal["same", "gives way", "conflict"]]]:
        """The record stored under a new one's key, and what it means for it."""
        header, sealed = self._decoded(stored, key, record)
        if header.status == status:
            base = yield from self._base_of(app, key, header, {})
            if self.serde.is_same(header, sealed, payload, base):
                return header, "same"  # the retry of a save whose answer was lost
        return header, "gives way" if header.status == "failed" else "conflict"

    # Reading

    @operation("load")
    def load(
        self,
        partition_key: str | None,
        app_id: str | None,
        sequence_id: int | None = None,
        *,
        include_failed: bool = False,
    ) -> Step[Record | None]:
        """The record asked for, or None; see `Persister.load`."""
        if app_id is None:
            if sequence_id is not None:
                raise InvalidIdError("a sequence id means nothing without an app id")
            return (yield from self._load_last_written(partition_key, include_failed))
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        while True:
            if sequence_id is not None:
                found = yield from self._with_sequence_id(app, keys.sequence_name(sequence_id))
            else:
                found = yield from self._latest(app, include_failed)
            if found is None or not found.header.bases:
                self.parts.cache.forget(app)  # what it holds may be from before the app was deleted
                return None if found is None else self._opened(found)
            try:
                return (yield from self._rebuilt(app, found, only=sequence_id is None))
            except CorruptPartError as error:
                if not error.missing or (yield from self.backend.get(found.key)) == found.value:
                    raise
                # The record was removed meanwhile, and its parts with it: look again.

    def _latest(self, app: str, include_failed: bool, *, with_parts: bool = True) -> Step[Stored | None]:
        after: str | None = app + keys.BEHIND_PARTS
        limit, newest = 1, -1
        fetched: dict[str, bytes | None] = {}
        while True:
            if self.backend.values_in_scan or limit > 1 or not with_parts:
                entries, after = yield from self.backend.scan(app, after=after, limit=limit, values=True)
            else:
                entries, after, fetched = yield from self._newest_and_parts(app)
            found = None
            for key, value in entries:
                record = record_at(app, key)
                if record is None or value is None:
                    continue
                newest = max(newest, record.sequence_id)
                found = self._decoded(value, key, record)
                if include_failed or found[0].status == "completed":
                    break
                found = None
            if found or after is None or beyond_records(app, after):
                self._saw_newest(app, newest)
                return None if found is None or value is None else Stored(*found, key, value, fetched)
            limit = min(4 * limit, VALUES_PAGE)

    def _newest_and_parts(self, app: str) -> Step[tuple[list[Entry], str | None, dict[str, bytes | None]]]:
        """The newest record with its parts, and where the others go on, where a listing brings no values.

        Two round trips: the listing begins by telling whether there are parts, and which ones the record
        needs is arithmetic, most of the time.
        """
        page = yield from self.backend.scan(app, limit=2, delimiter="/")
        listed = [key for key, _ in page.entries]
        has_parts = app + keys.PARTS in listed
        self.parts.cache.saw_parts(app, has_parts)
        listed = [key for key in listed if key != app + keys.PARTS]
        if not listed or listed[0].endswith("/"):
            return [], None, {}
        entries, fetched = yield from self._with_parts(app, listed[:1], has_parts)
        return entries, listed[0] if len(listed) > 1 or page.after is not None else None, fetched

    def _with_parts(
        self, app: str, found: list[str], has_parts: bool
    ) -> Step[tuple[list[Entry], dict[str, bytes | None]]]:
        """The values of some records of one sequence id, and with them the parts that they most likely need."""
        record = keys.parse_name(found[0][len(app) :]) if has_parts else None
        names = [] if record is None else [str(block) for block in blocks(record[0])]
        values = yield from self.backend.get_many([*found, *(keys.part_key(app, name) for name in names)])
        fetched = dict(zip(names, values[len(found) :], strict=True))
        # What is not there is asked for again if a record names it: it may have been written in between.
        return list(zip(found, values, strict=False)), {
            name: part for name, part in fetched.items() if part is not None
        }

    def _with_sequence_id(self, app: str, name: str) -> Step[Stored | None]:
        page = yield from self.backend.scan(app + name, values=self.backend.values_in_scan)
        entries, fetched = page.entries, dict[str, "bytes | None"]()
        if entries and not self.backend.values_in_scan:
            # Parts are asked for unless it is known that the app has none.
            has_parts = self.parts.cache.has_parts(app) is not False
            entries, fetched = yield from self._with_parts(app, [key for key, _ in entries], has_parts)
        found = []
        for key, value in entries:
            record = record_at(app, key)
            if record is not None and value is not None:
                found.append(Stored(*self._decoded(value, key, record), key, value, fetched))
        # Burr has one position a sequence id.  Where there are more, the answer is the one that is the latest too.
        completed = [each for each in found if each.header.status == "completed"]
        return next(iter(completed or found), None)

    def _saw_newest(self, app: str, sequence_id: int) -> None:
        """Remember the newest sequence id, never a lower one: a look may be older than a save of meanwhile."""
        if self.on_conflict != "rewind":
            return
        if len(self._newest) >= 10_000:  # what is forgotten costs one look
            self._newest.clear()
        self._newest[app] = max(sequence_id, self._newest.get(app, -1))

    def _load_last_written(self, partition_key: str | None, include_failed: bool) -> Step[Record | None]:
        def latest(app: str) -> Step[tuple[str, str] | None]:
            found = yield from self._latest(app, include_failed, with_parts=False)
            return None if found is None else (found.header.created_at, app)  # not the state: there may be many apps

        last: tuple[str, str] | None = None
        after: str | None = None
        prefix = keys.partition_prefix(self.namespace, partition_key)
        while True:
            page = yield from self.backend.scan(prefix, after=after, delimiter="/")
            found = yield from gather(latest(key) for key, _ in page.entries if key.endswith("/"))
            last = max((each for each in (last, *found) if each is not None), default=None)
            after = page.after
            if after is None:
                break
        if last is None:
            return None
        return (yield from self.load(*keys.ids_of(last[1]), include_failed=include_failed))

    @operation("list_partitions")
    def list_partitions(self) -> Step[list[str | None]]:
        """The partition keys that have apps, in key order."""
        return (yield from self._children(f"{keys.encode(self.namespace)}/"))

    @operation("list_app_ids")
    def list_app_ids(self, partition_key: str | None) -> Step[list[str]]:
        """The app ids of a partition, in key order."""
        found = yield from self._children(keys.partition_prefix(self.namespace, partition_key))
        return [app_id for app_id in found if app_id is not None]

    @operation("history")
    def headers(
        self,
        partition_key: str | None,
        app_id: str,
        *,
        after: str | None = None,
        include_set_aside: bool = False,
    ) -> Step[HeaderPage]:
        """A page of an app's records, newest first, and behind them the ones set aside, where asked for."""
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        after = after or app + keys.BEHIND_PARTS
        page = yield from self.backend.scan(app, after=after, limit=VALUES_PAGE, values=True)
        headers = []
        for key, value in page.entries:
            if value is None or (not include_set_aside and beyond_records(app, key)):
                continue
            record = record_at(app, key, set_aside=True)
            if record is not None:
                header, _ = self._decoded(value, key, record)
                headers.append(header._replace(set_aside=beyond_records(app, key)))
        after = page.after
        if after is not None and not include_set_aside and beyond_records(app, after):
            after = None
        return HeaderPage(headers, after)

    def _children(self, prefix: str) -> Step[list[str | None]]:
        found: list[str | None] = []
        after: str | None = None
        while True:
            page = yield from self.backend.scan(prefix, after=after, delimiter="/")
            for key, _ in page.entries:
                try:
                    if not key.endswith("/"):
                        raise InvalidKeyError(key)
                    found.append(keys.decode(key[len(prefix) : -1]))
                except InvalidKeyError:
                    _warn_foreign(key)
            after = page.after
            if after is None:
                return found

    def _decoded(self, value: bytes, key: str, record: RecordId) -> tuple[Header, Sealed]:
        return self.serde.decode(self.namespace, value, key, record)

    def _opened(self, stored: Stored, base: bytes | None = None) -> Record:
        return Record(stored.header, self.serde.loads(stored.header, stored.sealed, base))

    def _rebuilt(self, app: str, stored: Stored, *, only: bool) -> Step[Record]:
        """A record that has parts."""
        base = yield from self._base_of(app, stored.key, stored.header, stored.fetched, only=only)
        return self._opened(stored, base)

    def _base_of(
        self, app: str, key: str, header: Header, fetched: dict[str, bytes | None], *, only: bool = False
    ) -> Step[bytes | None]:
        if not header.bases:
            return None
        self.parts.cache.saw_parts(app, True)
        return (yield from self.parts.base_of(self.serde, app, key, header, fetched, only=only))

    # Removing

    @operation("delete_app")
    def delete_app(self, partition_key: str | None, app_id: str) -> Step[int]:
        """Remove an app whole; returns how many records there were."""
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        self._newest.pop(app, None)
        self.parts.cache.forget(app)
        deleted, parts, after = 0, [], None
        while True:
            page = yield from self.backend.scan(app, after=after, limit=PAGE)
            # Parts go last: a crash on the way must not leave a record without them.
            parts += [key for key, _ in page.entries if key.startswith(app + keys.PARTS)]
            going = [key for key, _ in page.entries if not key.startswith(app + keys.PARTS)]
            if going:
                yield from self.backend.delete(going)
                deleted += sum(not key.startswith(app + keys.CONDEMNED) for key in going)
            after = page.after
            if after is None:
                break
        if parts:
            yield from self.backend.delete(parts)
        return deleted

    @operation("prune")
    def prune(
        self,
        partition_key: str | All | None = ALL,
        app_id: str | All = ALL,
        *,
        keep_last: int | None = None,
        older_than: dt.timedelta | dt.datetime | None = None,
        include_set_aside: bool = False,
        grace: dt.timedelta = GRACE,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Step[int]:
        """Remove old records; see `Persister.prune`.

        Args:
            progress: called after each app with how many were pruned, and how many there are.
        """
        keep, cutoff = _checked_prune(keep_last, older_than)
        _check_grace(grace)
        pruned = 0
        apps = yield from self._apps(partition_key, app_id)
        for done, app in enumerate(apps, 1):
            removed, has_parts = yield from self._prune_app(app, keep, cutoff, include_set_aside)
            pruned += removed
            if has_parts:
                yield from self._sweep_app(app, grace)
            progress(done, len(apps))
        return pruned

    def _apps(self, partition_key: str | All | None, app_id: str | All) -> Step[list[str]]:
        """The key prefixes of an app, of a partition's apps or of all."""
        if app_id is not ALL and partition_key is ALL:
            raise InvalidIdError("an app id means nothing without a partition key; None is one")
        found = []
        for partition in (yield from self.list_partitions()) if partition_key is ALL else [partition_key]:
            for app in (yield from self.list_app_ids(partition)) if app_id is ALL else [app_id]:
                found.append(keys.app_prefix(self.namespace, partition, app))
        return found

    def _prune_app(self, app: str, keep: int, cutoff: str | None, include_set_aside: bool) -> Step[tuple[int, bool]]:
        """Remove an app's old records; returns how many, and whether the app has parts."""
        pruned, kept, after = 0, 0, None
        has_parts, markers = False, dict[str, str]()
        while True:
            # What a record says is needed only until enough are kept, unless age decides.
            values = cutoff is not None or kept < keep
            limit = VALUES_PAGE if cutoff is not None else min(keep - kept, VALUES_PAGE) or PAGE
            page = yield from self.backend.scan(app, after=after, limit=limit, values=values)
            if page.entries and page.entries[0][0].startswith(app + keys.PARTS):
                has_parts, after = True, app + keys.BEHIND_PARTS
                markers = yield from self.parts.markers(app)
                continue
            going = []
            for key, value in page.entries:
                live = not beyond_records(app, key)
                record = record_at(app, key, set_aside=True)
                if record is None or not (live or include_set_aside):
                    continue
                if value is not None:
                    header, _ = self._decoded(value, key, record)
                    if live and kept < keep:
                        kept += header.status == "completed"
                        continue
                    if cutoff is not None and header.created_at >= cutoff:
                        continue
                going.append((key, record.sequence_id))
            if going:
                yield from self.parts.condemn_anew(app, markers, [sequence_id for _, sequence_id in going])
                yield from self.backend.delete([key for key, _ in going])
                pruned += len(going)
            after = page.after
            if after is None or (beyond_records(app, after) and not include_set_aside):
                return pruned, has_parts

    @operation("sweep")
    def sweep(
        self, partition_key: str | All | None = ALL, app_id: str | All = ALL, *, grace: dt.timedelta = GRACE
    ) -> Step[int]:
        """Collect the parts that no record needs; see `Persister.sweep`."""
        _check_grace(grace)
        removed = 0
        for app in (yield from self._apps(partition_key, app_id)):
            if (yield from self.backend.scan(app + keys.PARTS, limit=1)).entries:
                removed += yield from self._sweep_app(app, grace)
        return removed

    def _sweep_app(self, app: str, grace: dt.timedelta) -> Step[int]:
        started = dt.datetime.now(dt.timezone.utc)
        reached: set[str] = set()
        after: str | None = app + keys.BEHIND_PARTS
        while after is not None:
            entries, after = yield from self.backend.scan(app, after=after, limit=VALUES_PAGE, values=True)
            for key, value in entries:
                record = record_at(app, key, set_aside=True)
                if record is not None and value is not None:
                    reached.update(self._decoded(value, key, record)[0].bases)
        return (yield from self.parts.collect(app, reached, started, grace))

    @operation("verify")
    def verify(
        self,
        partition_key: str | All | None = ALL,
        app_id: str | All = ALL,
        *,
        build: bool = True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Step[Report]:
        """Read every record and part; see `Persister.verify`.

        Args:
            build: make the states, as a load does; without, the bytes are checked, decrypted and unpacked alone.
            progress: called after each app with how many were read, and how many there are.
        """
        report = Report()
        apps = yield from self._apps(partition_key, app_id)
        for done, app in enumerate(apps, 1):
            yield from self._verify_app(app, report, self.serde.loads if build else self.serde.opened)
            progress(done, len(apps))
        return report

    def _verify_app(self, app: str, report: Report, read: Callable[[Header, Sealed, bytes | None], Any]) -> Step[None]:
        parts = Parts(self.backend, self.namespace, Cache())  # which rebuilds each part once
        names = yield from parts.names(app)
        report.parts += len(names)
        unreachable = set(names)
        after: str | None = app + keys.BEHIND_PARTS
        while after is not None:
            entries, after = yield from self.backend.scan(app, after=after, limit=VALUES_PAGE, values=True)
            for key, value in entries:
                record = record_at(app, key, set_aside=True)
                if record is None or value is None:
                    continue
                report.records += 1
                try:
                    header, sealed = self._decoded(value, key, record)
                    unreachable.difference_update(header.bases)
                    base = yield from parts.base_of(self.serde, app, key, header, {})
                    read(header, sealed, base)
                except CorruptPartError as error:
                    if error.missing and (yield from self.backend.get(key)) != value:
                        continue  # deleted meanwhile, and its parts with it
                    report.corrupt_records[key] = str(error)
                    if error.missing:
                        report.missing_parts.add(error.part)
                    else:
                        report.corrupt_parts[error.part] = str(error)
                except KvpersistError as error:
                    report.corrupt_records[key] = str(error)
        for name in unreachable:
            key = keys.part_key(app, name)
            report.unreachable_parts.add(key)
            value = yield from self.backend.get(key)
            if value is not None:
                try:
                    self.serde.decode(self.namespace, value, key, part_id(app, name), part=True)
                except KvpersistError as error:
                    report.corrupt_parts[key] = str(error)


def _checked_prune(keep_last: int | None, older_than: dt.timedelta | dt.datetime | None) -> tuple[int, str | None]:
    """How many completed records of an app stay whatever their age, and the time before which the others go."""
    if keep_last is None and older_than is None:
        raise OptionError("prune needs keep_last= or older_than=; delete_app removes an app whole")
    if keep_last is not None and (type(keep_last) is not int or keep_last < 0):
        raise OptionError(f"keep_last must be an int from 0 on, not {keep_last!r}")
    if keep_last == 0 and older_than is None:
        raise OptionError("prune(keep_last=0) would remove everything; delete_app removes an app whole")
    keep = 1 if keep_last is None else keep_last
    if older_than is None:
        return keep, None
    if isinstance(older_than, dt.timedelta):
        try:
            older_than = dt.datetime.now(dt.timezone.utc) - older_than
        except OverflowError as error:
            raise OptionError(f"older_than={older_than!r} is before all time") from error
    if not isinstance(older_than, dt.datetime) or older_than.tzinfo is None:
        raise OptionError(f"older_than must be a timedelta or a datetime with a time zone, not {older_than!r}")
    return keep, older_than.astimezone(dt.timezone.utc).isoformat(timespec="microseconds")


def _check_grace(grace: dt.timedelta) -> None:
    if not isinstance(grace, dt.timedelta) or grace < dt.timedelta(0):
        raise OptionError(f"the grace period must be a timedelta from 0 on, not {grace!r}")


def record_at(app: str, key: str, *, set_aside: bool = False) -> RecordId | None:
    """The record that lives at a key below an app; None where none does, with a warning for what is not ours."""
    name = key[len(app) :]
    if name.startswith((keys.PARTS, keys.CONDEMNED)):
        return None
    if name.startswith(keys.SET_ASIDE):
        if not set_aside:
            return None
        name = name.rpartition("/")[2]
    parsed = keys.parse_name(name)
    if parsed is None:
        _warn_foreign(key)
        return None
    partition_key, app_id = keys.ids_of(app)
    return RecordId(partition_key, app_id, *parsed)


def beyond_records(app: str, key: str) -> bool:
    """Whether a key of an app sorts behind all its live records."""
    return key[len(app) : len(app) + 1] > "9"


def _set_aside_folder(app: str) -> str:
    """A new folder for what one rewind sets aside; the newest sorts first."""
    now = dt.datetime.now(dt.timezone.utc).timestamp()
    return f"{app}{keys.SET_ASIDE}{keys.MAX_SEQUENCE_ID - int(now * 1e6):019d}-{uuid.uuid4().hex[:8]}/"


def _warn_foreign(key: str) -> None:
    warnings.warn(f"{key}: not written by kvpersist, and skipped", stacklevel=2)
