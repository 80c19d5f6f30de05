"""The record format: what is stored comes back whole, and anything else raises."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpersist import CorruptRecordError, DeserializationError, InvalidIdError, UntrustedRecordError, records
from kvpersist.keys import MAX_SEQUENCE_ID, RecordId
from kvpersist.records import Header
from kvpersist.serde import Serde
from kvpersist.testing.persister import HOSTILE_IDS

CREATED = "2026-11-24T06:00:00.123456+00:00"
RECORD = RecordId("p", "a", 7, "ask")
KEY = bytes(range(32))

IDS = st.text() | st.sampled_from(HOSTILE_IDS) | st.sampled_from(['"}\n{', ',"checksum":"', "\u2028", "\\", '\\"'])
RECORDS = st.builds(RecordId, st.none() | IDS, IDS, st.integers(0, MAX_SEQUENCE_ID), IDS)


def record(payload: bytes = b'{"n":1}', of: RecordId = RECORD, **coding: Any) -> bytes:
    head = records.encode_head(of, "completed", CREATED, "0.1.0", {"serializer": "json", **coding})
    return records.encode(head, payload)


def handmade(head: bytes, payload: bytes = b"{}") -> bytes:
    """A record by the specification alone: what an attacker, or a program in another language, would write."""
    return head + b',"checksum":"' + hashlib.sha256(head + payload).hexdigest().encode() + b'"}\n' + payload


@given(
    of=RECORDS, payload=st.binary(), status=st.sampled_from(records.STATUSES), signature=st.none() | st.just("ab" * 32)
)
def test_any_record_comes_back(of: RecordId, payload: bytes, status: Any, signature: str | None) -> None:
    head = records.encode_head(of, status, CREATED, "0.1.0", {"serializer": "x", "compression": "zstd"})
    data = records.encode(head, payload, signature)
    header, bound, found = records.decode(data, "k", of)
    assert header == Header(
        partition_key=of.partition_key,
        app_id=of.app_id,
        sequence_id=of.sequence_id,
        position=of.position,
        status=status,
        created_at=CREATED,
        serializer="x",
        version="0.1.0",
        size=len(payload),
        compression="zstd",
        signature=signature,
    )
    assert header.id == of
    assert (bound, found) == (head, payload)
    # The header is the first line, and JSON for everybody.
    line, _, rest = data.partition(b"\n")
    assert rest == payload
    fields = json.loads(line)
    assert (fields["partition_key"], fields["app_id"], fields["position"]) == (of.partition_key, of.app_id, of.position)
    assert list(fields)[-1] == "checksum"


def test_the_format_by_hand() -> None:
    head = (
        '{"kvpersist":1,"partition_key":null,"app_id":"é","sequence_id":3,"position":"ask","status":"failed",'
        f'"created_at":"{CREATED}","version":"0.1.0","serializer":"json"'
    ).encode()
    of = RecordId(None, "é", 3, "ask")
    header, _, payload = records.decode(handmade(head, b'{"a":1}'), "k", of)
    assert (header.status, header.serializer, payload) == ("failed", "json", b'{"a":1}')
    built = records.encode_head(of, "failed", CREATED, "0.1.0", {"serializer": "json"})
    assert records.encode(built, b'{"a":1}') == handmade(head, b'{"a":1}')


WAYS: list[dict[str, Any]] = [
    {},
    {"serializer": "msgpack", "compression": "zstd"},
    {"serializer": "pickle"},
    {"compression": "gzip", "encryption_key": KEY, "signing_key": KEY},
]


@pytest.mark.parametrize("way", WAYS)
def test_any_cut_and_any_flipped_bit_raises(way: dict[str, Any]) -> None:
    serde = Serde(way)
    payload = serde.dumps({"text": "x" * 1100 if "compression" in way else "x", "n": [1, 2.5, None]})
    data = serde.encode("kvpersist", RECORD, "completed", CREATED, payload)
    serde.loads(*serde.decode("kvpersist", data, "some/key", RECORD))
    for end in range(len(data)):
        with pytest.raises(CorruptRecordError, match="some/key"):
            serde.decode("kvpersist", data[:end], "some/key", RECORD)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(CorruptRecordError, match="some/key"):
                serde.decode("kvpersist", bytes(changed), "some/key", RECORD)
    for more in (b"\n", b" ", b"\0"):
        with pytest.raises(CorruptRecordError):
            serde.decode("kvpersist", data + more, "some/key", RECORD)
        with pytest.raises(CorruptRecordError):
            serde.decode("kvpersist", more + data, "some/key", RECORD)


@given(payload=st.binary(max_size=60), edit=st.tuples(st.integers(0, 400), st.integers(0, 400), st.binary(max_size=5)))
def test_any_other_edit_raises(payload: bytes, edit: tuple[int, int, bytes]) -> None:
    data = record(payload)
    start, end, put = edit
    changed = data[:start] + put + data[max(start, end) :]
    if changed != data:
        with pytest.raises(CorruptRecordError):
            records.decode(changed, "k", RECORD)


@given(data=st.binary() | st.binary().map(lambda rest: b'{"kvpersist":1' + rest) | st.binary().map(handmade))
def test_any_other_bytes_raise(data: bytes) -> None:
    with pytest.raises(CorruptRecordError):
        records.decode(data, "k", RECORD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kvpersist": 2}, "has format 2, and this version of kvpersist knows format 1; upgrade"),
        ({"kvpersist": True}, "has format True"),
        ({"kvpersist": "1"}, "has format '1'"),
        ({"partition_key": 1}, "lacks a field, or has one of another type"),
        ({"app_id": None}, "lacks a field"),
        ({"sequence_id": -1}, "lacks a field"),
        ({"sequence_id": 2**63}, "lacks a field"),
        ({"sequence_id": 7.0}, "lacks a field"),
        ({"sequence_id": True}, "lacks a field"),
        ({"status": "done"}, "lacks a field"),
        ({"serializer": None}, "lacks a field"),
        ({"compression": 7}, "lacks a field"),
        ({"uncompressed_size": "7"}, "lacks a field"),
        ({"uncompressed_size": -1}, "lacks a field"),
        ({"app_id": "b"}, "was moved here, it was written as partition 'p', app 'b'"),
        ({"partition_key": None}, "was moved here"),
        ({"sequence_id": 8}, "was moved here"),
        ({"position": "other"}, "was moved here"),
    ],
)
def test_a_header_with_a_right_checksum_and_wrong_fields(changes: dict[str, Any], message: str) -> None:
    head = records.encode_head(RECORD, "completed", CREATED, "0.1.0", {"serializer": "json"})
    changed = orjson.dumps({**orjson.loads(head + b"}"), **changes})[:-1]
    with pytest.raises(CorruptRecordError, match=message):
        records.decode(handmade(changed), "k", RECORD)
    missing = orjson.loads(head + b"}")
    missing.pop(next(iter(changes)), None) or missing.pop("version")
    with pytest.raises(CorruptRecordError):
        records.decode(handmade(orjson.dumps(missing)[:-1]), "k", RECORD)


@pytest.mark.parametrize("head", [b'{"kvpersist":1,', b'{"kvpersist":', b'{"kvpersist":1}', b'{"kvpersist":1,"a":\xff'])
def test_a_header_with_a_right_checksum_that_is_no_json(head: bytes) -> None:
    with pytest.raises(CorruptRecordError):
        records.decode(handmade(head), "k", RECORD)


def test_a_status_that_is_none_cannot_be_written() -> None:
    with pytest.raises(InvalidIdError, match="must be 'completed' or 'failed', not 'done'"):
        records.encode_head(RECORD, "done", CREATED, "0.1.0", {})  # type: ignore[arg-type]


def test_unknown_ways_of_writing_are_named() -> None:
    serde = Serde({"encryption_key": KEY, "encryption": None})
    for coding, error, message in (
        ({"serializer": "yaml"}, DeserializationError, "serializer 'yaml', which is not installed here; installed are"),
        ({"compression": "brotli"}, DeserializationError, "compressed with 'brotli', .* it knows zstd, lz4, gzip"),
        ({"encryption": "rot13"}, UntrustedRecordError, "encrypted with 'rot13', which is not known here"),
    ):
        with pytest.raises(error, match=message):
            serde.loads(*serde.decode("kvpersist", record(**coding), "k", RECORD))


# The same marker as in pyproject.toml: elsewhere there is no atheris to install.
if sys.platform == "linux" and platform.machine() == "x86_64" and (3, 11) <= sys.version_info < (3, 15):

    def test_fuzzing_for_a_while_finds_nothing(tmp_path: Path) -> None:
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        target = Path(__file__).parent / "fuzz_records.py"
        options = [
            "-max_total_time=15",
            "-max_len=6000",
            "-timeout=10",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={tmp_path}/",
        ]
        done = subprocess.run(
            [sys.executable, str(target), str(corpus), *options],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        runs = re.search(r"Done (\d+) runs", done.stderr)
        assert runs is not None
        assert int(runs[1]) > 1000
