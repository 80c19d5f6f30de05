r"""The stored bytes of a record: one line of JSON, the header, and then the payload.

::

    {"kvpersist":1,"partition_key":null,...,"serializer":"json","checksum":"<sha-256>"}\n<payload>

The checksum is the header's last field.  It is the SHA-256, in lower-case hex, of all other bytes:
the header up to the ``,"checksum":"`` and the payload.  So whatever byte is lost or changed, wherever
it stands, the record does not decode.  In a signed record the signature stands right before it; what
stands before both is the *head*, which encryption and signature are bound to.  `docs/format.md` is the
specification.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import orjson

from .errors import CorruptRecordError, InvalidIdError
from .keys import MAX_SEQUENCE_ID, RecordId, is_part_name

FORMAT = 1

Status = Literal["completed", "failed"]
STATUSES = ("completed", "failed")

_CHECKSUM = b',"checksum":"'
_START = b'{"kvpersist":'
_TAIL = len(_CHECKSUM) + 64 + len(b'"}')
_SIGNED = b',"signature":"'
_SIGNATURE = re.compile(rb',"signature":"([0-9a-f]{64})"$').match
_SIGNATURE_LENGTH = len(_SIGNED) + 64 + len('"')
_SHA256 = re.compile(r"[0-9a-f]{64}").fullmatch
_MOST_BASES = 8


class Header(NamedTuple):
    """What is known of a record without decoding its state."""

    partition_key: str | None
    app_id: str
    sequence_id: int
    position: str
    status: Status
    created_at: str
    """When the record was made: ISO 8601 in UTC with microseconds, so that text order is time order."""
    serializer: str
    version: str
    """The version of `kvpersist` that wrote the record."""
    compression: str | None = None
    uncompressed_size: int | None = None
    """The payload's length in bytes before compression."""
    python: str | None = None
    """The version of Python that wrote the record, where the serializer depends on it."""
    encryption: str | None = None
    nonce: str | None = None
    key_id: str | None = None
    wrapped_key: str | None = None
    signing: str | None = None
    signing_key_id: str | None = None
    size: int = 0
    """The payload's length in bytes, as stored."""
    signature: str | None = None
    set_aside: bool = False
    """True where the app went back and took another way than the one this record is on."""
    part: int | None = None
    """The level of a part, which is no record but what records of a compact history are written against."""
    bases: tuple[str, ...] = ()
    """The names of the parts that the payload is made with, nearest first; it is a patch against the first."""
    base_hash: str | None = None
    """The SHA-256, in lower-case hex, of the first one's stored bytes."""

    @property
    def id(self) -> RecordId:
        return RecordId(self.partition_key, self.app_id, self.sequence_id, self.position)


_FIELDS = Header._fields[: Header._fields.index("size")]  # those that stand in the stored header
_TYPES: tuple[tuple[type, ...], ...] = (
    *((str, type(None)), (str,), (int,), *((str,),) * 5),
    *((str, type(None)), (int, type(None)), *((str, type(None)),) * 7),
)


class Decoded(NamedTuple):
    """The parts of stored bytes, whole and unchanged."""

    header: Header
    head: bytes
    payload: bytes


def encode_head(record: RecordId, status: Status, created_at: str, version: str, coding: Mapping[str, Any]) -> bytes:
    """The head of a record; `coding` says how its payload is to be read."""
    if status not in STATUSES:
        raise InvalidIdError(f"the status must be 'completed' or 'failed', not {status!r}")
    return orjson.dumps(
        {
            "kvpersist": FORMAT,
            "partition_key": record.partition_key,
            "app_id": record.app_id,
            "sequence_id": record.sequence_id,
            "position": record.position,
            "status": status,
            "created_at": created_at,
            "version": version,
            **coding,
        }
    )[:-1]


def encode(head: bytes, payload: bytes, signature: str | None = None) -> bytes:
    """The stored bytes of a record.  Its signature is 64 hex digits, or None."""
    if signature is not None:
        head += b',"signature":"%s"' % signature.encode()
    digest = hashlib.sha256(head)
    digest.update(payload)
    return b"".join((head, _CHECKSUM, digest.hexdigest().encode(), b'"}\n', payload))


def decode(data: bytes, key: str, record: RecordId, *, part: bool = False) -> Decoded:
    """What the bytes found at `key` consist of, where `record` must live (or, with `part`, a part that has its id).

    Raises `CorruptRecordError` where they are not that record, whole and unchanged.
    """
    end = data.find(b"\n")
    start = end - _TAIL
    if (
        not data.startswith(_START)
        or start < 0
        or not data.startswith(_CHECKSUM, start)
        or data[end - 2 : end] != b'"}'
    ):
        raise CorruptRecordError(f"{key}: this is no kvpersist record, or its header is damaged")
    head, payload = data[:start], data[end + 1 :]
    digest = hashlib.sha256(head)
    digest.update(payload)
    if digest.hexdigest().encode() != data[start + len(_CHECKSUM) : end - 2]:
        raise CorruptRecordError(f"{key}: the checksum is wrong: the record was cut short or changed")
    signature = None
    if head.startswith(_SIGNED, len(head) - _SIGNATURE_LENGTH):
        found = _SIGNATURE(head, len(head) - _SIGNATURE_LENGTH)
        if found is not None:
            head, signature = head[: found.start()], found[1].decode()
    header = _header(head, key, signature, len(payload))
    if header[:4] != record:
        raise CorruptRecordError(f"{key}: the record was moved here, it was written as {header.id}")
    if (header.part is not None) is not part:
        raise CorruptRecordError(f"{key}: {'a record' if part else 'a part of records'} was moved here")
    return Decoded(header, head, payload)


def _header(head: bytes, key: str, signature: str | None, size: int) -> Header:
    try:
        fields: dict[str, Any] = orjson.loads(head + b"}")
    except orjson.JSONDecodeError as error:
        raise CorruptRecordError(f"{key}: the record's header is not JSON") from error
    if type(fields["kvpersist"]) is not int or fields["kvpersist"] != FORMAT:
        raise CorruptRecordError(
            f"{key}: the record has format {fields['kvpersist']!r}, and this version of kvpersist "
            f"knows format {FORMAT}; upgrade kvpersist to read it"
        )
    values: Any = tuple(map(fields.get, _FIELDS))
    header = Header._make((*values, size, signature, False, None, (), None))
    if (
        not _well_typed(tuple(map(type, values)))
        or "partition_key" not in fields
        or not 0 <= header.sequence_id <= MAX_SEQUENCE_ID
        or header.status not in STATUSES
        or (header.uncompressed_size or 0) < 0
    ):
        raise CorruptRecordError(f"{key}: the record's header lacks a field, or has one of another type")
    if "part" in fields or "bases" in fields or "base_hash" in fields:
        return header._replace(**_compaction(fields, key))
    return header


def _compaction(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What only the header of a part, or of a record that needs parts, has."""
    part, bases, base_hash = fields.get("part"), fields.get("bases", []), fields.get("base_hash")
    if (
        not (part is None or type(part) is int)
        or not (type(bases) is list and len(bases) <= _MOST_BASES)
        or not all(type(name) is str and is_part_name(name) for name in bases)
        or not (type(base_hash) is str and _SHA256(base_hash) if bases else base_hash is None)
    ):
        raise CorruptRecordError(f"{key}: the record's header does not say what it was written against")
    return {"part": part, "bases": tuple(bases), "base_hash": base_hash}


@lru_cache(maxsize=256)
def _well_typed(types: tuple[type, ...]) -> bool:
    return all(each in allowed for each, allowed in zip(types, _TYPES, strict=True))
