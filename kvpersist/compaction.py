"""Compact histories: a large state is stored as what changed against a *part*, which many records share.

A state's payload (the bytes that the serializer made) of `THRESHOLD` bytes or more is stored as a zstd
patch against the payload of an earlier step.  Which one is arithmetic on the sequence id n::

    level 1   the part at n - n % K       a patch against the part of level 2
    level 2   the part at n - n % K**2    a patch against the part of level 3
    level 3   the part at n - n % K**3    whole

so that who knows n can ask for the three parts at once, and no record is ever more than three patches
from something whole, however long its history is.  A part that is missing is made of the payload at
hand, whatever it is: a patch can be taken against any content, and how well that works decides about
sizes only.

A record's header names its parts, nearest first, and has the SHA-256 of the first one's stored bytes,
whose header has that of the second, and so on.  So what a record was written against cannot change
unnoticed, and a signature of the record covers its parts.  `docs/compaction.md` tells the whole story.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import zstandard

from . import keys
from .backends import PAGE, Backend
from .errors import CorruptPartError, KvpersistError
from .keys import RecordId
from .records import Header
from .steps import Step, gather

if TYPE_CHECKING:
    from .serde import Serde

THRESHOLD = 4096
"""Payloads of fewer bytes are stored whole: a patch and its header would win nothing."""

LARGEST = 2**28
"""Payloads of more bytes are stored whole: preparing a patch takes several times their size in memory."""

K = 7
LEVELS = 3

GRACE = dt.timedelta(hours=1)
"""How long a part stays after nothing was found to need it.  A writer takes a part that it knows for
granted for half of that, so that no part goes while a record that needs it is on its way."""

CACHED = 64 * 2**20
"""How many bytes of payloads a persister remembers; with what patches need, about 2.5 times that in memory."""

PATCH = "zstd-patch"
"""What a header has for the compression of a patch."""

_LEVEL = 3  # of zstd


def blocks(sequence_id: int) -> list[int]:
    """Where the parts of a record are, the nearest first; a multiple of K**2 has two, one of K**3 has one."""
    return list(dict.fromkeys(sequence_id - sequence_id % K**level for level in range(1, LEVELS + 1)))


def level_of(block: int) -> int:
    """The level of the part at a multiple of K."""
    return max(level for level in range(1, LEVELS + 1) if block % K**level == 0)


# Patches


@dataclass(eq=False, slots=True)
class Base:
    """A part, and the payload that it stands for."""

    name: str
    bases: tuple[str, ...]
    """The parts that this one is made with, nearest first."""
    digest: str
    """The SHA-256 of its stored bytes."""
    payload: bytes
    seen: float = field(default_factory=time.time)
    """When it was last known to be in the store and not condemned."""
    _prepared: tuple[Any, Any] | None = None

    @property
    def block(self) -> int:
        return int(self.name.partition(".")[0])

    @property
    def chain(self) -> tuple[str, ...]:
        """The names of this part and of those that it is made with."""
        return self.name, *self.bases

    def patch(self, payload: bytes) -> bytes:
        """What `unpatch` makes the payload of, with this part's."""
        prepared = self._prepared
        if len(payload) > 2 * len(self.payload):  # for which the tables of a much smaller base would be too small
            prepared = _dictionary(self.payload, len(payload))
        elif prepared is None:
            prepared = self._prepared = _dictionary(self.payload, len(payload))
            # Takes as long as all else together, and serves the next K - 1 saves as well.
            prepared[0].precompute_compress(compression_params=prepared[1])
        dictionary, parameters = prepared
        patched: bytes = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(payload)
        return patched

    def let_go(self) -> None:
        """Forget what was prepared for patches: the next one comes much later."""
        self._prepared = None


def _dictionary(base: bytes, size: int) -> tuple[Any, Any]:
    """A base as a zstd dictionary, and parameters under which all of it is used.

    The window spans the base and the payload.  The match tables have a slot for every fourth byte: zstd drops
    the start of a dictionary that is longer than eight times their length without a word.
    """
    logarithm = max(14, min(26, max(len(base), size).bit_length() - 2))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=size,
        dict_size=len(base),
        window_log=max(10, (len(base) + max(size, 2 * len(base))).bit_length()),
        hash_log=logarithm,
        chain_log=logarithm,
        write_content_size=True,
        write_dict_id=False,
    )
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT), parameters


def snapshot(payload: bytes) -> bytes:
    """A payload compressed without a base."""
    compressed: bytes = zstandard.ZstdCompressor(level=_LEVEL).compress(payload)
    return compressed


def unpatch(base: bytes, patch: bytes, size: int) -> bytes:
    """The payload of a patch, which has `size` bytes; any exception where that is not so."""
    if zstandard.get_frame_parameters(patch).content_size != size:
        raise ValueError("the frame has another size than the header says")
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=2**31)
    payload: bytes = decompressor.decompress(patch, max_output_size=size, allow_extra_data=False)
    return payload


# What a process remembers


class Cache:
    """The parts that a persister last wrote or read of each app, at most `limit` bytes of payloads.

    Everything in it can be had from the store again.
    """

    def __init__(self, limit: int = CACHED) -> None:
        self._limit = limit
        self._size = 0
        self._apps: OrderedDict[str, dict[int, Base]] = OrderedDict()  # by level
        self._has_parts: OrderedDict[str, bool] = OrderedDict()
        self._lock = threading.Lock()
        _all_caches.add(self)

    def of(self, app: str) -> dict[int, Base]:
        """The parts of an app by where they are: of each level the one that was added last."""
        return {part.block: part for part in self._apps.get(app, {}).values()}

    def add(self, app: str, parts: Iterable[Base], *, only: bool = False) -> None:
        """Remember parts, those of an app that was not used for longest giving way; `only` forgets its others."""
        with self._lock:
            known = self._apps.pop(app, {})
            self._size -= _size(known)
            known = {} if only else dict(known)
            known.update((level_of(part.block), part) for part in parts)
            if known:  # now the one that was used last
                self._apps[app] = known
                self._size += _size(known)
            while self._size > self._limit:
                _, going = self._apps.popitem(last=False)
                self._size -= _size(going)

    def forget(self, app: str) -> None:
        if app in self._apps:
            self.add(app, (), only=True)

    def has_parts(self, app: str) -> bool | None:
        """Whether an app had parts when last seen; None if it was never seen.  Only a hint."""
        return self._has_parts.get(app)

    def saw_parts(self, app: str, has_parts: bool) -> None:
        with self._lock:
            self._has_parts[app] = has_parts
            if len(self._has_parts) > 10_000:
                self._has_parts.popitem(last=False)


def _size(parts: Mapping[int, Base]) -> int:
    return sum(len(part.payload) for part in parts.values())


_all_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in list(_all_caches):
        cache._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# Parts in a store


class New(NamedTuple):
    """A part that is to be written."""

    key: str
    value: bytes
    base: Base


class Parts:
    """The parts of the apps of one namespace: written before the records that name them, read, and collected."""

    def __init__(self, backend: Backend, namespace: str, cache: Cache) -> None:
        self._backend = backend
        self._namespace = namespace
        self.cache = cache

    # Writing

    def known(self, serde: Serde, app: str, sequence_id: int) -> Step[dict[int, Base]]:
        """The parts that a record may be written against: remembered, or fetched in one round trip."""
        now = time.time()
        trusted = {
            block: part
            for block, part in self.cache.of(app).items()
            # A clock that was set back makes a part look too young; then it is fetched.
            if 0 <= now - part.seen < GRACE.total_seconds() / 2
        }
        wanted = blocks(sequence_id)
        known = {block: trusted[block] for block in wanted if block in trusted}
        # The part at this very step is most likely to be made now; if it is there already, writing it tells.
        absent = [block for block in wanted if block not in known and block != sequence_id]
        if absent:
            yield from self._fetch(serde, app, absent, known)
            self.cache.add(app, known.values())
        return known

    def _fetch(self, serde: Serde, app: str, absent: list[int], known: dict[int, Base]) -> Step[None]:
        seen = time.time()
        names = [str(block) for block in absent]
        values = yield from self._backend.get_many(
            [keys.part_key(app, name) for name in names] + [keys.condemned_key(app, name) for name in names]
        )
        fetched = dict(zip(names, values, strict=False))
        unmarked = {name for name, marker in zip(names, values[len(names) :], strict=True) if marker is None}
        for name in names:
            value = fetched[name]
            if value is None or name not in unmarked:
                continue
            try:
                part = yield from self._part(serde, app, name, value, fetched)
            except KvpersistError:
                continue  # what cannot be read is written against by nobody, and keeps nobody from saving
            others = [each for each in part.bases if each not in unmarked]
            if others:
                markers = yield from self._backend.get_many(keys.condemned_key(app, each) for each in others)
                if any(marker is not None for marker in markers):
                    continue
                unmarked.update(others)
            part.seen = seen
            known[part.block] = part

    def _part(self, serde: Serde, app: str, name: str, value: bytes, fetched: dict[str, bytes | None]) -> Step[Base]:
        key = keys.part_key(app, name)
        header, sealed = serde.decode(self._namespace, value, key, part_id(app, name), part=True)
        # Nothing is remembered of what only a part names: that does not show that it will stay.
        base = yield from self.base_of(serde, app, key, header, fetched, remember=False)
        payload = serde.opened(header, sealed, base)
        return Base(name, header.bases, hashlib.sha256(value).hexdigest(), payload)

    def made(
        self, serde: Serde, app: str, sequence_id: int, payload: bytes, created_at: str, known: Mapping[int, Base]
    ) -> tuple[list[New], Base]:
        """The parts that a record lacks, to be written in this order, and the one that it is a patch against."""
        made: list[New] = []
        base: Base | None = None
        for block in reversed(blocks(sequence_id)):
            part = known.get(block)
            if part is None:
                new = self._new(serde, app, block, payload, created_at, base)
                made.append(new)
                part = new.base
            base = part
        assert base is not None
        return made, base

    def _new(
        self,
        serde: Serde,
        app: str,
        block: int,
        payload: bytes,
        created_at: str,
        base: Base | None,
        *,
        own: bool = False,
    ) -> New:
        name = str(block)
        value = serde.encode(
            self._namespace, part_id(app, name), "completed", created_at, payload, base=base, part=level_of(block)
        )
        if base is not None:
            base.let_go()
        digest = hashlib.sha256(value).hexdigest()
        # Where creating is not atomic, another writer's part could replace ours; a name of its own keeps it.
        if own or not self._backend.atomic_create:
            name = f"{block}.{digest[:32]}"
        return New(keys.part_key(app, name), value, Base(name, base.chain if base else (), digest, payload))

    def put(self, app: str, known: dict[int, Base], made: list[New], *more: tuple[str, bytes]) -> Step[bool]:
        """Write new parts and then `more`, all of which must be new too; returns whether they all were.

        One round trip where the store can do that.
        """
        won = yield from self._backend.put_many([*((new.key, new.value) for new in made), *more])
        if won:
            self.cache.add(app, (*known.values(), *(new.base for new in made)))
            self.cache.saw_parts(app, True)
        return won

    def write(
        self, serde: Serde, app: str, sequence_id: int, payload: bytes, created_at: str, known: dict[int, Base]
    ) -> Step[Base]:
        """Write the parts that a record lacks one by one, where a name is taken under another one.

        Returns the one that the record is a patch against.
        """
        base: Base | None = None
        for block in reversed(blocks(sequence_id)):
            part = known.get(block)
            if part is None:
                new = self._new(serde, app, block, payload, created_at, base)
                won = yield from self._backend.put(new.key, new.value, "create")
                if not won and (yield from self._backend.get(new.key)) != new.value:
                    new = self._new(serde, app, block, payload, created_at, base, own=True)
                    yield from self._backend.put(new.key, new.value, "create")
                part = known[block] = new.base
            base = part
        assert base is not None
        self.cache.add(app, known.values())
        return base

    # Reading

    def base_of(
        self,
        serde: Serde,
        app: str,
        key: str,
        header: Header,
        fetched: dict[str, bytes | None],
        *,
        remember: bool = True,
        only: bool = False,
    ) -> Step[bytes | None]:
        """The payload that the record (or part) at `key` is a patch against; None where it is whole.

        `fetched` has what was fetched already, by name, and is added to.  With `only`, what was remembered of
        the app is forgotten: it may be from before the app was deleted and begun anew.

        Raises:
            CorruptPartError: where a part is missing or is not the one that the record was written against.
        """
        if not header.bases:
            return None
        seen = time.time()
        lacking = [name for name in header.bases if name not in fetched]
        if lacking:
            values = yield from self._backend.get_many(keys.part_key(app, name) for name in lacking)
            fetched.update(zip(lacking, values, strict=True))
        digest = header.base_hash
        links = []
        for number, name in enumerate(header.bases):
            part_key = keys.part_key(app, name)
            value = fetched[name]
            if value is None:
                raise CorruptPartError(f"{key}: its part {part_key} is missing", part_key, missing=True)
            if hashlib.sha256(value).hexdigest() != digest:
                raise CorruptPartError(
                    f"{key}: its part {part_key} is not the one that it was written against", part_key
                )
            try:
                part, sealed = serde.decode(self._namespace, value, part_key, part_id(app, name), part=True)
            except KvpersistError as error:
                raise CorruptPartError(f"{key}: its part {part_key} cannot be read: {error}", part_key) from error
            if part.bases != header.bases[number + 1 :]:
                raise CorruptPartError(f"{key}: its part {part_key} was written against others", part_key)
            links.append((name, part, sealed, digest))
            digest = part.base_hash
        remembered = self.cache.of(app)
        payload: bytes | None = None
        bases = []
        for name, part, sealed, digest in reversed(links):
            same = remembered.get(int(name.partition(".")[0]))
            if same is not None and same.digest == digest:
                base = same
            else:
                base = Base(name, part.bases, digest, serde.opened(part, sealed, payload))
            payload = base.payload
            bases.append(base)
        if remember:
            for base in bases:
                base.seen = seen
            self.cache.add(app, bases, only=only)
        return payload

    # Collecting

    def names(self, app: str) -> Step[list[str]]:
        """The names of all parts of an app, the newest first."""
        found = []
        for key, _ in (yield from self._all(app + keys.PARTS)):
            name = keys.parse_part_name(key[len(app) + len(keys.PARTS) :])
            if name is not None:
                found.append(name)
        return found

    def markers(self, app: str) -> Step[dict[str, str]]:
        """The parts that were found to be unreachable, and when."""
        found = {}
        for key, value in (yield from self._all(app + keys.CONDEMNED, values=True)):
            name = keys.parse_part_name(key[len(app) + len(keys.CONDEMNED) :])
            if name is not None and value is not None:
                found[name] = value.decode("ascii", "replace")
        return found

    def _all(self, prefix: str, *, values: bool = False) -> Step[list[tuple[str, bytes | None]]]:
        found: list[tuple[str, bytes | None]] = []
        after = None
        while True:
            page = yield from self._backend.scan(prefix, after=after, limit=PAGE, values=values)
            found += page.entries
            after = page.after
            if after is None:
                return found

    def condemn_anew(self, app: str, markers: Mapping[str, str], sequence_ids: Iterable[int]) -> Step[None]:
        """Give the parts of records that are about to be removed their whole grace period.

        Somebody may have read such a record a moment ago and be writing one against its parts, which may bear a
        marker from an earlier time when nothing needed them.
        """
        if not markers:
            return
        losing = {block for sequence_id in sequence_ids for block in blocks(sequence_id)}
        now = _iso(dt.datetime.now(dt.timezone.utc))
        yield from gather(
            self._backend.put(keys.condemned_key(app, name), now.encode())
            for name in markers
            if int(name.partition(".")[0]) in losing
        )

    def collect(self, app: str, reached: set[str], marked_from: dt.datetime, grace: dt.timedelta) -> Step[int]:
        """Remove the parts that no record needs and that were condemned a grace period ago, and condemn the others.

        A writer takes a part for granted for half of `GRACE` after it was in the store without a marker or named
        by a record.  So a record that names a part with a marker as old as `GRACE` was there before
        `marked_from`, when the records began to be read for `reached`.

        Returns how many parts were removed.
        """
        names = yield from self.names(app)
        # Read after the records were: whoever removed one of them since has renewed the markers first.
        markers = yield from self.markers(app)
        limit = _iso(marked_from - grace)
        unreachable = [name for name in names if name not in reached]
        going = [name for name in unreachable if not grace or markers.get(name, "~") <= limit]
        kept = set(unreachable).difference(going)
        now = _iso(dt.datetime.now(dt.timezone.utc))
        yield from gather(
            self._backend.put(keys.condemned_key(app, name), now.encode(), "create")
            for name in unreachable
            if name in kept and name not in markers
        )
        if going:
            yield from self._backend.delete([keys.part_key(app, name) for name in going])
        released = [keys.condemned_key(app, name) for name in markers if name not in kept]
        if released:
            yield from self._backend.delete(released)
        if going:
            self.cache.forget(app)
        return len(going)


def part_id(app: str, name: str) -> RecordId:
    """What a part's header has for its id."""
    return RecordId(*keys.ids_of(app), int(name.partition(".")[0]), "")


def _iso(time: dt.datetime) -> str:
    return time.isoformat(timespec="microseconds")
