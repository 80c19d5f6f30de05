"""The contract suite of kvpersist on CBOR, and what is CBOR's own."""

from __future__ import annotations

import datetime as dt
import functools
from typing import Any

import cbor2
import pytest
from kvpersist_cbor import CBORSerializer

from kvpersist import DeserializationError, Persister, SerializationError
from kvpersist.testing import SerializerContract

CBOR = CBORSerializer()


class TestSerializer(SerializerContract):
    serializer = CBOR


def test_plain_states_are_plain_cbor() -> None:
    state = {"text": "a", "n": -1, "big": 2**63, "x": 0.5, "data": b"\0", "list": [None, True, {"a": []}]}
    assert CBOR.dumps(state) == cbor2.dumps(state)


def test_what_cbor_lacks_is_a_tag() -> None:
    tag = cbor2.CBORTag(27, ["date", "2026-11-24", {}])
    assert CBOR.dumps({"when": dt.date(2026, 11, 24)}) == cbor2.dumps({"when": tag})


def test_it_is_found_by_name() -> None:
    with Persister.from_url("memory://named", serde_kwargs={"serializer": "cbor"}) as persister:
        persister.save("p", "a", 1, "ask", {"t": (1, b"2")}, "completed")
    with Persister.from_url("memory://named") as reader:  # whose own serializer is another
        assert reader.load("p", "a")["state"]["t"] == (1, b"2")
        assert [header.serializer for header in reader.history("p", "a")] == ["cbor"]


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: {1: x}, lambda x: (x,)])
def test_the_deepest_state_that_can_be_written_can_be_read(wrap: Any) -> None:
    for depth in range(400, 0, -1):
        state = {"deep": functools.reduce(lambda inner, _: wrap(inner), range(depth), 1)}
        try:
            data = CBOR.dumps(state)
        except SerializationError:
            continue
        break
    assert depth > 60
    assert CBOR.loads(data) == state


@pytest.mark.parametrize(
    "payload",
    [
        cbor2.dumps([1]),
        cbor2.dumps({"a": cbor2.CBORTag(27, "text")}),
        cbor2.dumps({"a": cbor2.CBORTag(27, ["no-such-tag", 1, {}])}),
        cbor2.dumps({"a": cbor2.CBORTag(27, ["bytearray", "text", {}])}),
        cbor2.dumps({"a": cbor2.CBORTag(27, ["dataclass", {}, {"class": "os:PathLike"}])}),
        b"\x81" * 100_000,
        b"\xa1\x61a" + b"\xd8\x1b\x83\x65tuple" * 10_000,
    ],
)
def test_what_it_never_writes_is_an_error(payload: bytes) -> None:
    with pytest.raises(DeserializationError):
        CBOR.loads(payload)
