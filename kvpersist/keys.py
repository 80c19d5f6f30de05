"""The key layout: where a record lives, and which record lives at a key.

::

    <namespace>/<partition>/<app>/<complement of the sequence id>.<sequence id>.<position>

Every id is written in an alphabet that every store can hold, one that no store folds, normalises or
reads as syntax: ``a-z 0-9 - _``.  An upper-case letter is ``!`` and its lower case (``Ab`` is
``!ab``), any other byte of the id's UTF-8 is ``=`` and two hex digits (``a/b`` is ``a=2fb``).  The
absent partition is ``=none`` and the empty string ``=empty``, neither of which an id can spell.

The sequence id is written as its complement to 2**63 - 1 in 19 digits, so that ascending key order is
newest first, and once more as itself, for people.

What belongs to an app but is no live record lies below a word in the app's folder (``set-aside/``).
A word sorts after every digit, so that the first record of an app is its newest.  The parts that large
records share (see `compaction`) lie below ``!parts/``, which sorts before every digit, so that a listing
of the app begins by telling whether there are any::

    <namespace>/<partition>/<app>/!parts/<complement of the sequence id>.<sequence id>[.<hash>]

All functions are pure, and `parse` is the exact inverse of `record_key`: a key that some other
program made up parses as None, never as somebody's record.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from .errors import InvalidIdError, InvalidKeyError

MAX_SEQUENCE_ID = 2**63 - 1
SET_ASIDE = "set-aside/"
CONDEMNED = "condemned/"
PARTS = "!parts/"
BEHIND_PARTS = "!~"
"""Where a scan of an app's records starts: behind its parts, before its records."""

_NONE, _EMPTY = "=none", "=empty"
_PLAIN = re.compile(r"[a-z0-9_-]+").fullmatch
_ESCAPE = re.compile(r"=([0-9a-f]{2})|!([a-z])|([a-z0-9_-])")
_KEY = re.compile(r"(?!.*//)[a-z0-9!=_-][a-z0-9!=_./-]*").fullmatch
_RECORD_NAME = re.compile(r"([0-9]{19})\.([0-9]{1,19})\.([a-z0-9!=_-]+)").fullmatch
_PART_NAME = re.compile(r"([0-9]{1,19})(\.[0-9a-f]{32})?").fullmatch
# Windows keeps these file names for devices, whatever follows them.
_RESERVED = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]").fullmatch


class RecordId(NamedTuple):
    """What names a record: Burr's quadruple."""

    partition_key: str | None
    app_id: str
    sequence_id: int
    position: str

    def __str__(self) -> str:
        return (
            f"partition {self.partition_key!r}, app {self.app_id!r}, "
            f"sequence id {self.sequence_id}, position {self.position!r}"
        )


@lru_cache(maxsize=4096)
def encode(text: str | None) -> str:
    """An id as a key segment.  Two different ids never have the same segment."""
    if text is None:
        return _NONE
    if text == "":
        return _EMPTY
    if _PLAIN(text):
        return f"={ord(text[0]):02x}{text[1:]}" if _RESERVED(text) else text
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidIdError(
            f"the id {text!r} is not valid Unicode: it holds the lone surrogate {text[error.start]!r}"
        ) from error
    return "".join(_SEGMENT_OF_BYTE[byte] for byte in data)


_SEGMENT_OF_BYTE = [
    chr(byte) if _PLAIN(chr(byte)) else "!" + chr(byte).lower() if 65 <= byte <= 90 else f"={byte:02x}"
    for byte in range(256)
]


@lru_cache(maxsize=4096)
def decode(segment: str) -> str | None:
    """The id that `encode` wrote as this segment.

    Raises `InvalidKeyError` for a segment that `encode` never writes.
    """
    if segment == _NONE:
        return None
    if segment == _EMPTY:
        return ""
    data = bytearray()
    end = 0
    for escape in _ESCAPE.finditer(segment):
        if escape.start() != end:
            break
        end = escape.end()
        byte, upper, plain = escape.groups()
        data.append(int(byte, 16) if byte else ord(upper.upper()) if upper else ord(plain))
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if end != len(segment) or not text or encode(text) != segment:
        raise InvalidKeyError(f"{segment!r} is not a key segment that kvpersist writes")
    return text


def partition_prefix(namespace: str, partition_key: str | None) -> str:
    """What every key of a partition starts with."""
    return _joined(namespace, None if partition_key is None else _text(partition_key, "partition key"))


def app_prefix(namespace: str, partition_key: str | None, app_id: str) -> str:
    """What every key of an app starts with."""
    partition_key = None if partition_key is None else _text(partition_key, "partition key")
    return _joined(namespace, partition_key, _text(app_id, "app id"))


@lru_cache(maxsize=4096)
def _joined(*ids: str | None) -> str:
    return "".join(f"{encode(each)}/" for each in ids)


def sequence_name(sequence_id: int) -> str:
    """What the names of all records of a sequence id start with, whatever their position."""
    if type(sequence_id) is not int:
        raise InvalidIdError(f"the sequence id must be an int, not {_described(sequence_id)}")
    if not 0 <= sequence_id <= MAX_SEQUENCE_ID:
        raise InvalidIdError(f"the sequence id must be from 0 to 2**63 - 1, not {sequence_id}")
    return f"{MAX_SEQUENCE_ID - sequence_id:019d}.{sequence_id}."


def record_name(sequence_id: int, position: str) -> str:
    """The last segment of a record's key."""
    return sequence_name(sequence_id) + encode(_text(position, "position"))


def record_key(namespace: str, record: RecordId) -> str:
    """Where a record lives."""
    partition_key, app_id, sequence_id, position = record
    return app_prefix(namespace, partition_key, app_id) + record_name(sequence_id, position)


def parse_name(name: str) -> tuple[int, str] | None:
    """The sequence id and position of a record's name, or None where it is no record's name."""
    match = _RECORD_NAME(name)
    if match is None:
        return None
    complement, written, segment = match.groups()
    sequence_id = MAX_SEQUENCE_ID - int(complement)
    if written != str(sequence_id):
        return None
    try:
        position = decode(segment)
    except InvalidKeyError:
        return None
    return None if position is None else (sequence_id, position)


def part_key(app: str, name: str) -> str:
    """Where a part lives; its name is its sequence id, which a dot and 32 hex digits may follow."""
    return app + PARTS + _complemented(name)


def condemned_key(app: str, name: str) -> str:
    """Where it is written that nothing was found to need a part."""
    return app + CONDEMNED + _complemented(name)


def _complemented(part: str) -> str:
    return f"{MAX_SEQUENCE_ID - int(part.partition('.')[0]):019d}.{part}"


def parse_part_name(segment: str) -> str | None:
    """The name of the part whose key ends in this segment, or None where no part's does."""
    name = segment[20:]
    return name if is_part_name(name) and _complemented(name) == segment else None


def is_part_name(text: str) -> bool:
    """Whether a part can have this name."""
    match = _PART_NAME(text)
    return match is not None and str(int(match[1])) == match[1] and int(match[1]) <= MAX_SEQUENCE_ID


def parse(key: str) -> tuple[str, RecordId] | None:
    """The namespace and the record that lives at `key`, or None where no record can live there."""
    segments = key.split("/")
    if len(segments) != 4:
        return None
    parsed = parse_name(segments[3])
    try:
        namespace, partition_key, app_id = map(decode, segments[:3])
    except InvalidKeyError:
        return None
    if parsed is None or namespace is None or app_id is None:
        return None
    return namespace, RecordId(partition_key, app_id, *parsed)


@lru_cache(maxsize=4096)
def ids_of(app: str) -> tuple[str | None, str]:
    """The partition key and app id of what `app_prefix` returned."""
    _, partition, app_id, _ = app.split("/")
    return decode(partition), decode(app_id) or ""


def app_of(key: str) -> str:
    """What all keys of the app start with that a key belongs to: `app_prefix` of its ids."""
    return "/".join(key.split("/", 3)[:3]) + "/"


def check(key: str) -> None:
    """Raise `InvalidKeyError` unless this is a key.

    Keys are segments of ``a-z 0-9 - _ . = !`` joined by ``/``; none is empty, or starts or ends with a dot.
    How long a key may be is the store's to say.
    """
    if not isinstance(key, str):
        raise InvalidKeyError(f"a key must be a str, not {_described(key)}")
    if not _KEY(key) or "/." in key or "./" in key or key.endswith(("/", ".")):
        raise InvalidKeyError(
            f"{key!r} is not a key: keys are segments of a-z 0-9 - _ . = ! joined by '/', "
            "and none is empty, or starts or ends with a dot"
        )


@lru_cache(maxsize=4096)
def prefix_end(prefix: str) -> str:
    """The smallest text that is greater than every key that starts with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "~"


def scan_range(prefix: str, after: str | None, *, children: bool) -> tuple[str, str]:
    """The keys that a scan is about, as a half-open range: from the first on, before the second.

    `after` is the last entry of the page before: a key, or with `children` a rolled-up child
    (it ends in ``/``), after whose keys the scan goes on.
    """
    if after is None or after < prefix:
        start = prefix
    elif children and after.endswith("/"):
        start = prefix_end(after)
    else:
        start = after + " "  # a space sorts before all that a key can hold
    return start, prefix_end(prefix)


def _text(value: str, what: str) -> str:
    """An id as plain text: a member of a ``str`` enum would be formatted as its name."""
    if type(value) is str:
        return value
    if not isinstance(value, str):
        raise InvalidIdError(f"the {what} must be a str, not {_described(value)}")
    return str.__str__(value)


def _described(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"
