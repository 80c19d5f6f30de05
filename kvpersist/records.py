r"""The stored bytes of a record: one line of JSON, the header, and then the payload.

::

    {"kvpersist":1,"partition_key":null,...,"serializer":"json","checksum":"<sha-256>"}\n<payload>

The checksum is the header's last field.  It is the SHA-256, in lower-case hex, of all other bytes:
the header up to the ``,"checksum":"`` and the payload.  So whatever byte is lost or changed, wherever
it stands, the record does not decode.  `docs/format.md` is the specification.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from .errors import CorruptRecordError, InvalidIdError
from .keys import RecordId

FORMAT = 1

Status = Literal["completed", "failed"]
STATUSES = ("completed", "failed")

_CHECKSUM = b',"checksum":"'
_START = b'{"kvpersist":'
_TAIL = len(_CHECKSUM) + 64 + len(b'"}')


@dataclass(frozen=True)
class Header:
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
    size: int
    """The payload's length in bytes."""
    set_aside: bool = False
    """True where the app went back and took another way than the one this record is on."""

    @property
    def id(self) -> RecordId:
        return RecordId(self.partition_key, self.app_id, self.sequence_id, self.position)


def encode(record: RecordId, status: Status, created_at: str, serializer: str, version: str, payload: bytes) -> bytes:
    """The stored bytes of a record."""
    if status not in STATUSES:
        raise InvalidIdError(f"the status must be 'completed' or 'failed', not {status!r}")
    header = orjson.dumps(
        {
            "kvpersist": FORMAT,
            "partition_key": record.partition_key,
            "app_id": record.app_id,
            "sequence_id": record.sequence_id,
            "position": record.position,
            "status": status,
            "created_at": created_at,
            "serializer": serializer,
            "version": version,
        }
    )[:-1]
    digest = hashlib.sha256(header)
    digest.update(payload)
    return b"".join((header, _CHECKSUM, digest.hexdigest().encode(), b'"}\n', payload))


def decode(data: bytes, key: str, record: RecordId) -> tuple[Header, bytes]:
    """The header and the payload of the bytes found at `key`, where `record` must live.

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
    payload = data[end + 1 :]
    digest = hashlib.sha256(data[:start])
    digest.update(payload)
    if digest.hexdigest().encode() != data[start + len(_CHECKSUM) : end - 2]:
        raise CorruptRecordError(f"{key}: the checksum is wrong: the record was cut short or changed")
    fields: dict[str, Any] = orjson.loads(data[:start] + b"}")
    if fields["kvpersist"] != FORMAT:
        raise CorruptRecordError(
            f"{key}: the record has format {fields['kvpersist']!r}, and this version of kvpersist "
            f"knows format {FORMAT}; upgrade kvpersist to read it"
        )
    header = Header(
        fields["partition_key"],
        fields["app_id"],
        fields["sequence_id"],
        fields["position"],
        fields["status"],
        fields["created_at"],
        fields["serializer"],
        fields["version"],
        len(payload),
    )
    if header.id != record:
        raise CorruptRecordError(f"{key}: the record was moved here, it was written as {header.id}")
    return header, payload
