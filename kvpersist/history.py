"""The one implementation of persistence: every operation, as step bodies over a `Backend`.

It knows records and keys, not Burr and not any store.  The faces in `persisters` drive it.
"""

from __future__ import annotations

import datetime as dt
import enum
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from . import keys
from .backends import PAGE, Backend
from .errors import ConflictError, InvalidIdError, InvalidKeyError, OptionError
from .keys import RecordId
from .records import Header, Status
from .serde import Sealed, Serde
from .steps import Step, gather

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


@dataclass(frozen=True)
class Record:
    """A record with its state."""

    header: Header
    state: dict[str, Any]


class HeaderPage(NamedTuple):
    """A part of a history."""

    headers: list[Header]
    after: str | None
    """Where the next page goes on, or None if this was the last."""


class History:
    """The records below one namespace of one store."""

    def __init__(
        self,
        backend: Backend,
        *,
        namespace: str = "kvpersist",
        serde: Serde,
        on_conflict: OnConflict = "error",
    ) -> None:
        if on_conflict not in ON_CONFLICT:
            raise OptionError(f"on_conflict must be one of {', '.join(ON_CONFLICT)}, not {on_conflict!r}")
        if not isinstance(namespace, str) or not namespace:
            raise OptionError(f"the namespace must be a non-empty str, not {namespace!r}")
        if on_conflict == "error" and not backend.atomic_create:
            raise OptionError(
                f"{backend.url}: this store cannot create a record only where there is none, so two workers that "
                "race on one app would not find out; say on_conflict='overwrite' if there is one worker an app"
            )
        self.backend = backend
        self.namespace = namespace
        self.serde = serde
        self.on_conflict = on_conflict
        # For "rewind": the newest sequence id of each app as last seen here, so that only a save that
        # does not continue what this process knows has to look first.
        self._newest: dict[str, int] = {}

    # Writing

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
        value = self.serde.encode(self.namespace, record, status, created_at, payload)
        if self.on_conflict == "overwrite":
            yield from self.backend.put(key, value)
            return
        # A record that continues what this process has seen leaves nothing to set aside.
        if self.on_conflict == "rewind" and sequence_id <= self._newest.get(app, keys.MAX_SEQUENCE_ID):

            def stays(stored_key: str, stored: bytes) -> bool:
                return stored_key == key and bool(self._settled(*self._decoded(stored, key, record), status, payload))

            yield from self._set_aside(app, sequence_id, stays)
        won = yield from self.backend.put(key, value, "create")
        while not won:
            stored = yield from self.backend.get(key)
            if stored is None:  # deleted meanwhile
                won = yield from self.backend.put(key, value, "create")
                continue
            header, stored_payload = self._decoded(stored, key, record)
            settled = self._settled(header, stored_payload, status, payload)
            if settled == "same":
                break
            if settled is None:
                raise ConflictError(
                    f"{record}: a {header.status} record with other content is stored already (made "
                    f"{header.created_at}); nothing was changed. Another worker may be running this app. To go "
                    "back and take another way, use on_conflict='rewind' or fork to a new app id"
                )
            won = yield from self.backend.replace(key, stored, value)
        if self.on_conflict == "rewind":
            self._saw_newest(app, sequence_id)

    def rewind(self, partition_key: str | None, app_id: str, sequence_id: int) -> Step[int]:
        """Set aside all records newer than a sequence id; returns how many."""
        keys.sequence_name(sequence_id)
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        self._newest.pop(app, None)
        return (yield from self._set_aside(app, sequence_id + 1))

    def _set_aside(self, app: str, first: int, stays: Callable[[str, bytes], bool] = lambda *_: False) -> Step[int]:
        """Move the live records from a sequence id on to a folder of their own, the newest first.

        Each is copied before it is removed.  A crash in between leaves a shorter history and some records in
        both places, never a record in neither.
        """
        moved = 0
        folder = f"{app}{keys.SET_ASIDE}{_newest_first_name()}/"
        after, limit = None, 1  # most often the newest record shows that there is nothing to do
        while True:
            page = yield from self.backend.scan(app, after=after, limit=limit)
            found = [(key, self._record_at(app, key)) for key, _ in page.entries]
            candidates = [key for key, record in found if record is not None and record.sequence_id >= first]
            values = yield from self.backend.get_many(candidates)
            going = {
                key: value
                for key, value in zip(candidates, values, strict=True)
                if value is not None and not stays(key, value)
            }
            if going:
                yield from gather(self.backend.put(folder + key[len(app) :], going[key]) for key in going)
                yield from self.backend.delete(going)
            moved += len(going)
            older = any(record is not None and record.sequence_id < first for _, record in found)
            if page.after is None or older or _beyond_records(app, page.after):
                return moved
            after, limit = page.after, VALUES_PAGE

    def _saw_newest(self, app: str, sequence_id: int) -> None:
        if len(self._newest) >= 10_000:  # what is forgotten costs one look
            self._newest.clear()
        self._newest[app] = sequence_id

    def _settled(
        self, header: Header, stored: Sealed, status: Status, payload: bytes
    ) -> Literal["same", "gives way"] | None:
        """What the record stored under a new one's key means for it; None is a conflict."""
        if header.status == status and self.serde.is_same(header, stored, payload):
            return "same"  # the retry of a save whose answer was lost
        return "gives way" if header.status == "failed" and status == "completed" else None

    # Reading

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
        if sequence_id is not None:
            return (yield from self._load_sequence_id(app, keys.sequence_name(sequence_id)))
        return (yield from self._load_latest(app, include_failed))

    def _load_latest(self, app: str, include_failed: bool) -> Step[Record | None]:
        after, limit, newest = None, 1, -1
        found: Record | None = None
        while True:
            page = yield from self.backend.scan(app, after=after, limit=limit, values=True)
            for key, value in page.entries:
                record = self._record_at(app, key)
                if record is None or value is None:
                    continue
                newest = max(newest, record.sequence_id)
                header, payload = self._decoded(value, key, record)
                if include_failed or header.status == "completed":
                    found = self._opened(header, payload)
                    break
            if found or page.after is None or _beyond_records(app, page.after):
                if self.on_conflict == "rewind":
                    self._saw_newest(app, newest)
                return found
            after, limit = page.after, min(4 * limit, VALUES_PAGE)

    def _load_sequence_id(self, app: str, name: str) -> Step[Record | None]:
        page = yield from self.backend.scan(app + name, values=True)
        found = []
        for key, value in page.entries:
            record = self._record_at(app, key)
            if record is not None and value is not None:
                found.append(self._decoded(value, key, record))
        if not found:
            return None
        # Burr has one position a sequence id; where there are more, the last completed one is the answer.
        return self._opened(*max(found, key=lambda each: (each[0].status == "completed", each[0].created_at)))

    def _load_last_written(self, partition_key: str | None, include_failed: bool) -> Step[Record | None]:
        last: Record | None = None
        after: str | None = None
        prefix = keys.partition_prefix(self.namespace, partition_key)
        while True:
            page = yield from self.backend.scan(prefix, after=after, delimiter="/")
            candidates = yield from gather(
                self._load_latest(key, include_failed) for key, _ in page.entries if key.endswith("/")
            )
            for each in candidates:
                if each is not None and (last is None or each.header.created_at > last.header.created_at):
                    last = each
            after = page.after
            if after is None:
                return last

    def list_partitions(self) -> Step[list[str | None]]:
        """The partition keys that have apps, in key order."""
        return (yield from self._children(f"{keys.encode(self.namespace)}/"))

    def list_app_ids(self, partition_key: str | None) -> Step[list[str]]:
        """The app ids of a partition, in key order."""
        found = yield from self._children(keys.partition_prefix(self.namespace, partition_key))
        return [app_id for app_id in found if app_id is not None]

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
        page = yield from self.backend.scan(app, after=after, limit=VALUES_PAGE, values=True)
        headers = []
        for key, value in page.entries:
            if value is None or (not include_set_aside and _beyond_records(app, key)):
                continue
            record = self._record_at(app, key, set_aside=True)
            if record is not None:
                header, _ = self._decoded(value, key, record)
                headers.append(replace(header, set_aside=_beyond_records(app, key)))
        after = page.after
        if after is not None and not include_set_aside and _beyond_records(app, after):
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

    def _opened(self, header: Header, payload: Sealed) -> Record:
        return Record(header, self.serde.loads(header, payload))

    def _record_at(self, app: str, key: str, *, set_aside: bool = False) -> RecordId | None:
        """The record that lives at a key below an app; None where none does, with a warning for what is not ours."""
        name = key[len(app) :]
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

    # Removing

    def delete_app(self, partition_key: str | None, app_id: str) -> Step[int]:
        """Remove an app whole; returns how many records there were."""
        app = keys.app_prefix(self.namespace, partition_key, app_id)
        self._newest.pop(app, None)
        deleted = 0
        while True:
            page = yield from self.backend.scan(app, limit=PAGE)
            if page.entries:
                yield from self.backend.delete([key for key, _ in page.entries])
                deleted += len(page.entries)
            if page.after is None:
                return deleted

    def prune(
        self,
        partition_key: str | All | None = ALL,
        app_id: str | All = ALL,
        *,
        keep_last: int | None = None,
        older_than: dt.timedelta | dt.datetime | None = None,
    ) -> Step[int]:
        """Remove old records; see `Persister.prune`."""
        keep, cutoff = _checked_prune(keep_last, older_than)
        if app_id is not ALL and partition_key is ALL:
            raise InvalidIdError("an app id means nothing without a partition key; None is one")
        partitions = (yield from self.list_partitions()) if partition_key is ALL else [partition_key]
        pruned = 0
        for partition in partitions:
            apps = (yield from self.list_app_ids(partition)) if app_id is ALL else [app_id]
            for app in apps:
                prefix = keys.app_prefix(self.namespace, partition, app)
                pruned += yield from self._prune_app(prefix, keep, cutoff)
        return pruned

    def _prune_app(self, app: str, keep: int, cutoff: str | None) -> Step[int]:
        pruned, kept, after = 0, 0, None
        while True:
            # What a record says is needed only until enough are kept, unless age decides.
            values = cutoff is not None or kept < keep
            limit = VALUES_PAGE if cutoff is not None else min(keep - kept, VALUES_PAGE) or PAGE
            page = yield from self.backend.scan(app, after=after, limit=limit, values=values)
            going = []
            for key, value in page.entries:
                record = self._record_at(app, key, set_aside=True)
                if record is None:
                    continue
                live = not _beyond_records(app, key)
                if value is not None:
                    header, _ = self._decoded(value, key, record)
                    if live and kept < keep:
                        kept += header.status == "completed"
                        continue
                    if cutoff is not None and header.created_at >= cutoff:
                        continue
                going.append(key)
            if going:
                yield from self.backend.delete(going)
                pruned += len(going)
            after = page.after
            if after is None:
                return pruned


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
        older_than = dt.datetime.now(dt.timezone.utc) - older_than
    if not isinstance(older_than, dt.datetime) or older_than.tzinfo is None:
        raise OptionError(f"older_than must be a timedelta or a datetime with a time zone, not {older_than!r}")
    return keep, older_than.astimezone(dt.timezone.utc).isoformat(timespec="microseconds")


def _beyond_records(app: str, key: str) -> bool:
    """Whether a key of an app sorts behind all its live records."""
    return key[len(app) : len(app) + 1] > "9"


def _newest_first_name() -> str:
    now = dt.datetime.now(dt.timezone.utc).timestamp()
    return f"{keys.MAX_SEQUENCE_ID - int(now * 1e6):019d}-{uuid.uuid4().hex[:8]}"


def _warn_foreign(key: str) -> None:
    warnings.warn(f"{key}: not written by kvpersist, and skipped", stacklevel=2)
