"""Serializers, compression, encryption and signatures: the contract, what is stored, and what bad input says."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pandas as pd
import pydantic
import pytest
import serializer_table
from burr.core import State, serde
from burr.core.state import FIELD_SERIALIZATION, register_field_serde
from serializer_table import Account, Color, Message, Point, account

from kvpersist import (
    AsyncPersister,
    ConflictError,
    DeserializationError,
    MissingExtraError,
    OptionError,
    Persister,
    SerializationError,
    StoreError,
    UnsafeSerializerError,
    UntrustedRecordError,
)
from kvpersist.keys import RecordId
from kvpersist.serde import PYTHON, Serde
from kvpersist.serde.cloudpickle import CloudpickleSerializer
from kvpersist.serde.json import JSONSerializer
from kvpersist.serde.msgpack import MessagePackSerializer
from kvpersist.serde.pickle import PickleSerializer
from kvpersist.testing import SerializerContract

RECORD = RecordId("p", "a", 1, "ask")
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
BIG = {"chat": [{"role": "user", "content": f"This is message number {number}."} for number in range(100)]}


def stored(state: dict[str, Any], **serde_kwargs: Any) -> bytes:
    """The bytes that a persister with these options stores."""
    codec = Serde(serde_kwargs)
    return codec.encode("kvpersist", RECORD, "completed", "2026-11-24T06:00:00.000000+00:00", codec.dumps(state))


def opened(data: bytes, **serde_kwargs: Any) -> dict[str, Any]:
    """The state that a persister with these options finds in stored bytes."""
    codec = Serde(serde_kwargs)
    return codec.loads(*codec.decode("kvpersist", data, "some/key", RECORD))


def header_of(data: bytes) -> dict[str, Any]:
    return json.loads(data.partition(b"\n")[0])


class TestJSON(SerializerContract):
    serializer = JSONSerializer()

    def test_a_tag_that_is_not_known_is_an_error(self) -> None:
        with pytest.raises(DeserializationError, match="'no-such-tag' is not known"):
            self.serializer.loads(b'{"a":{"$kv":"no-such-tag"}}')


class TestMessagePack(SerializerContract):
    serializer = MessagePackSerializer()


class TestPickle(SerializerContract):
    serializer = PickleSerializer()
    holds_anything = True
    equal_bytes = False


class TestCloudpickle(SerializerContract):
    serializer = CloudpickleSerializer()
    holds_anything = True
    equal_bytes = False


class OnlyJSON:
    """A simple serializer, as another package might bring: it refuses what JSON cannot hold."""

    def dumps(self, state: dict[str, Any]) -> bytes:
        self._check(state, "state")
        return json.dumps(state).encode()

    def loads(self, data: bytes) -> dict[str, Any]:
        try:
            state = json.loads(data)
        except ValueError as error:
            raise DeserializationError(str(error)) from error
        if not isinstance(state, dict):
            raise DeserializationError("not an object")
        return state

    def _check(self, value: Any, path: str) -> None:
        kind = type(value)
        held = value is None or kind in (bool, str, list, dict) or (kind is float and math.isfinite(value))
        if not (held or (kind is int and abs(value) < 2**64)) or (kind is dict and {str} < {*map(type, value), str}):
            raise SerializationError(f"{path} is a {kind.__name__}, which JSON cannot hold", path)
        if len(path) > 1000:
            raise SerializationError(f"{path} is nested too deep", path)
        for key, each in value.items() if kind is dict else enumerate(value) if kind is list else ():
            self._check(each, f"{path}[{key!r}]")


class TestOnlyJSON(SerializerContract):
    serializer = OnlyJSON()
    may_refuse = True


class Through:
    """The whole way to stored bytes and back, as a serializer."""

    def __init__(self, **serde_kwargs: Any) -> None:
        self.serde_kwargs = serde_kwargs

    def dumps(self, state: dict[str, Any]) -> bytes:
        return stored(state, **self.serde_kwargs)

    def loads(self, data: bytes) -> dict[str, Any]:
        return opened(data, **self.serde_kwargs)


class TestEverythingAtOnce(SerializerContract):
    serializer = Through(compression="zstd", encryption_key=KEY, signing_key=OTHER_KEY)
    equal_bytes = False  # each record is encrypted with a nonce of its own


# Types


@pytest.mark.parametrize("row", serializer_table.ROWS)
@pytest.mark.parametrize("serializer", serializer_table.SERIALIZERS)
def test_each_type_comes_back_exactly_or_is_an_error(serializer: str, row: str) -> None:
    assert serializer_table.outcome(serializer, serializer_table.ROWS[row]) in ("exact", "error")


def test_the_table_in_the_docs_is_up_to_date() -> None:
    page = serializer_table.PAGE.read_text()
    assert serializer_table.table() in page, "run python tests/serializer_table.py"


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_a_class_comes_back_only_where_it_is_allowed(serializer: str) -> None:
    state = {"m": Message("user", [Point(1.0)])}
    data = stored(state, serializer=serializer, classes=[Message, Point])
    assert opened(data, classes=[Message, Point]) == state
    assert opened(data, classes=["serializer_table"]) == state
    assert opened(data, allowlist=["serializer_table"]) == state
    with pytest.raises(DeserializationError, match=r"serializer_table:Message, which this reader does not allow"):
        opened(data, classes=[Point])
    with pytest.raises(SerializationError, match=r"allow it with serde_kwargs=\{'classes': \[Message\]\}"):
        stored(state, serializer=serializer)
    named = stored(state, serializer=serializer, classes={"msg": Message, "pt": Point})
    assert b"serializer_table" not in named
    assert opened(named, classes={"msg": Message, "pt": Point}) == state


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_a_local_class_is_refused_or_named(serializer: str) -> None:
    @dataclasses.dataclass
    class Local:
        value: int

    with pytest.raises(SerializationError, match=r"a local class, which no reader can find.*'Local': Local"):
        stored({"a": Local(1)}, serializer=serializer, classes=[__name__])
    with pytest.raises(OptionError, match="local class; name it"):
        Serde({"classes": [Local]})
    assert opened(stored({"a": Local(1)}, serializer=serializer, classes={"l": Local}), classes={"l": Local}) == {
        "a": Local(1)
    }


def test_a_pydantic_model_keeps_what_a_dump_would_lose() -> None:
    back = opened(stored({"a": account()}, classes=[Account, serializer_table.Inner]), classes=["serializer_table"])[
        "a"
    ]
    assert back.full_name == "A"
    assert back.password == "p"
    assert back.other == [1]
    assert back._seen == 4
    assert back.model_fields_set == account().model_fields_set
    assert back.model_dump(by_alias=True) == account().model_dump(by_alias=True)


class Before:
    """Classes as they were when records were written."""

    Data = dataclasses.make_dataclass("Data", [("a", int)])
    Attrs = attrs.make_class("Attrs", ["a"])
    Model = pydantic.create_model("Model", a=(int, ...))
    Tuple = collections.namedtuple("Tuple", "a")


class After:
    """The same classes, with a field more."""

    Data = dataclasses.make_dataclass(
        "Data", [("a", int), ("b", list, dataclasses.field(default_factory=list)), ("c", int, 3)]
    )
    Attrs = attrs.make_class("Attrs", {"a": attrs.field(), "b": attrs.field(factory=list)})
    Model = pydantic.create_model("Model", a=(int, ...), b=(list, pydantic.Field(default_factory=list)))


class Required:
    """The same classes, with a field more that has no default."""

    Data = dataclasses.make_dataclass("Data", [("a", int), ("b", list)])
    Attrs = attrs.make_class("Attrs", ["a", "b"])
    Model = pydantic.create_model("Model", a=(int, ...), b=(list, ...))
    Tuple = collections.namedtuple("Tuple", "a b")


@pytest.mark.parametrize("name", ["Data", "Attrs", "Model", "Tuple"])
def test_a_class_that_changed(name: str) -> None:
    before, required = getattr(Before, name), getattr(Required, name)
    data = stored({"x": before(a=1)}, classes={"c": before})
    with pytest.raises(DeserializationError, match=r"has a field b, which the record lacks|has 2 fields, .*record 1"):
        opened(data, classes={"c": required})
    longer = stored({"x": required(a=1, b=[])}, classes={"c": required})
    with pytest.raises(DeserializationError, match=r"has no field b any more|has 1 fields, and the record 2"):
        opened(longer, classes={"c": before})
    if name != "Tuple":
        after = getattr(After, name)
        assert opened(data, classes={"c": after}) == {"x": after(a=1, b=[])}


def test_a_field_that_was_never_set_stays_so() -> None:
    @dataclasses.dataclass
    class Lazy:
        a: int
        found: str = dataclasses.field(init=False)

    back = opened(stored({"x": Lazy(1)}, classes={"l": Lazy}), classes={"l": Lazy})["x"]
    assert back.a == 1
    assert not hasattr(back, "found")


def test_binary_values_are_compact() -> None:
    import numpy as np

    array = np.arange(10_000, dtype="float64")
    assert len(MessagePackSerializer().dumps({"a": array})) < array.nbytes + 300
    assert len(JSONSerializer().dumps({"a": array})) < array.nbytes * 4 / 3 + 300
    frame = pd.DataFrame({"a": array})
    assert len(MessagePackSerializer().dumps({"a": frame})) < array.nbytes + 3000


def test_two_frames_of_one_shape_stay_apart(tmp_path: Path) -> None:
    one, other = pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})
    back = opened(stored({"one": one, "other": other}, pandas_kwargs={"path": str(tmp_path)}))
    assert (back["one"].a[0], back["other"].a[0]) == (1, 2)
    assert list(tmp_path.iterdir()) == []


# Burr's registered types and fields


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


@pytest.fixture
def burr_types() -> Iterator[None]:
    @serde.serialize.register(Money)
    def to_dict(value: Money, currency: str = "EUR", **kwargs: Any) -> dict[str, Any]:
        return {serde.KEY: "money", "cents": value.cents, "currency": currency}

    @serde.deserializer.register("money")
    def from_dict(value: dict[str, Any], currency: str = "EUR", **kwargs: Any) -> Money:
        assert value["currency"] == currency
        return Money(value["cents"])

    register_field_serde(
        "secret", lambda value, **kwargs: {"reversed": value[::-1]}, lambda value, **kwargs: value["reversed"][::-1]
    )
    yield
    del FIELD_SERIALIZATION["secret"]
    del serde.deserializer.func_map["money"]
    serde.serialize.register(Money)(serde.serialize.dispatch(object))


@pytest.mark.usefixtures("burr_types")
@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_types_and_fields_registered_with_burr_go_on_working(serializer: str) -> None:
    state = {"a": 1, "secret": "abc", "pay": [Money(5)], "$kv": 1, "z": (1,)}
    data = stored(state, serializer=serializer, currency="NOK")
    assert b"cba" in data
    back = opened(data, currency="NOK")
    assert list(back) == list(state)
    assert back["pay"][0].cents == 5
    assert {**back, "pay": None} == {**state, "pay": None}
    with pytest.raises(DeserializationError, match="a function registered with Burr's serde failed: AssertionError"):
        opened(data, currency="SEK")
    del FIELD_SERIALIZATION["secret"]
    with pytest.raises(DeserializationError, match="'secret' was written by a function registered with Burr"):
        opened(data, currency="NOK")
    FIELD_SERIALIZATION["secret"] = (None, None)


# Compression


@pytest.mark.parametrize("compression", ["zstd", "lz4", "gzip"])
def test_compression_where_it_pays(compression: str) -> None:
    data = stored(BIG, compression=compression)
    header = header_of(data)
    assert header["compression"] == compression
    assert header["uncompressed_size"] == len(stored(BIG).partition(b"\n")[2])
    assert len(data) < len(stored(BIG)) / 3
    assert opened(data) == BIG
    small = stored({"a": "x" * 900}, compression=compression)
    assert "compression" not in header_of(small)
    incompressible = stored({"a": bytes(range(256)) * 5}, serializer=Random(), compression=compression)
    assert "compression" not in header_of(incompressible)


class Random:
    """A serializer whose bytes cannot be compressed."""

    name = "random"

    def dumps(self, state: dict[str, Any]) -> bytes:
        import random

        return random.Random(1).randbytes(5000)

    def loads(self, data: bytes) -> dict[str, Any]:
        return {}


def test_compression_levels() -> None:
    least, most = (len(stored(BIG, compression="zstd", compression_level=level)) for level in (-7, 19))
    assert most < least


def test_plain_records_say_nothing_of_compression_or_encryption() -> None:
    assert list(header_of(stored({"a": 1}))) == [
        *("kvpersist", "partition_key", "app_id", "sequence_id", "position", "status", "created_at", "version"),
        *("serializer", "checksum"),
    ]


@pytest.mark.parametrize("way", [{}, {"serializer": "msgpack"}, {"signing_key": KEY}])
def test_a_record_is_made_with_one_copy_of_the_payload(way: dict[str, Any]) -> None:
    serde = Serde(way)
    payload = serde.dumps({"text": "x" * 8_000_000})
    tracemalloc.start()
    try:
        serde.encode("kvpersist", RECORD, "completed", "", payload)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * len(payload)
    finally:
        tracemalloc.stop()


# Encryption and signatures


@pytest.mark.parametrize("algorithm", ["aes-gcm", "chacha20-poly1305"])
def test_encrypted_records(algorithm: str) -> None:
    data = stored(BIG, encryption=algorithm, encryption_key=KEY)
    assert header_of(data)["encryption"] == algorithm
    assert b"message" not in data
    assert opened(data, encryption_key=KEY) == BIG
    assert data != stored(BIG, encryption=algorithm, encryption_key=KEY)


@pytest.mark.parametrize("length", [16, 24, 32])
def test_aes_takes_keys_of_three_lengths(length: int) -> None:
    key = KEY[:length]
    assert opened(stored({"a": 1}, encryption_key=key), encryption_key=key) == {"a": 1}


def test_keys_are_rotated_by_their_ids() -> None:
    old = stored({"a": 1}, encryption_key={"2025": KEY[:16]}, signing_key={"s1": KEY})
    both = {
        "encryption": "chacha20-poly1305",
        "encryption_key": {"2026": OTHER_KEY, "2025": KEY[:16]},
        "signing_key": {"s2": OTHER_KEY, "s1": KEY},
    }
    assert opened(old, **both) == {"a": 1}
    new = stored({"a": 1}, **both)
    assert (header_of(new)["key_id"], header_of(new)["signing_key_id"]) == ("2026", "s2")
    assert opened(new, **both) == {"a": 1}
    with pytest.raises(UntrustedRecordError, match="encrypted with the key '2026', and this persister has '2025'"):
        opened(new, encryption_key={"2025": KEY})
    with pytest.raises(UntrustedRecordError, match="hmac-sha256 key 's2', which this persister has not"):
        opened(new, signing_key={"s1": KEY})
    # A key without an id becomes one of many.
    assert opened(stored({"a": 1}, encryption_key=KEY), encryption_key={"new": OTHER_KEY, "": KEY}) == {"a": 1}


class Wrapper:
    """A KMS of one key, which counts what it is asked."""

    def __init__(self, key: bytes = KEY) -> None:
        from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap

        self.asked: list[str] = []
        self.wrap = lambda data: self.asked.append("wrap") or aes_key_wrap(key, data)
        self.unwrap = lambda data: self.asked.append("unwrap") or aes_key_unwrap(key, data)


def test_envelope_encryption() -> None:
    wrapper = Wrapper()
    writer = Serde({"key_wrapper": wrapper})
    records = [writer.encode("kvpersist", RECORD, "completed", "", writer.dumps({"n": number})) for number in range(9)]
    assert wrapper.asked == ["wrap"]
    reader = Serde({"key_wrapper": wrapper})
    for number, data in enumerate(records):
        assert reader.loads(*reader.decode("kvpersist", data, "k", RECORD)) == {"n": number}
    assert wrapper.asked == ["wrap", "unwrap"]
    with pytest.raises(UntrustedRecordError, match="cannot unwrap") as caught:
        opened(records[0], key_wrapper=Wrapper(OTHER_KEY))
    assert caught.value.__cause__ is not None
    with pytest.raises(UntrustedRecordError, match="has no key_wrapper"):
        opened(records[0], encryption_key=KEY)
    unreachable = Wrapper()
    unreachable.wrap = lambda key: 1 / 0
    with pytest.raises(StoreError, match="could not wrap a key; nothing was written") as failed:
        stored({}, key_wrapper=unreachable)
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    # From one key to envelopes, and back.
    assert opened(stored({"a": 1}, encryption_key=KEY), key_wrapper=wrapper, encryption_key=KEY) == {"a": 1}
    assert opened(records[0], key_wrapper=wrapper, encryption_key=KEY, encryption=None) == {"n": 0}


def test_migrations_to_and_from_encryption_and_signatures() -> None:
    plain, encrypted = stored({"a": 1}), stored({"a": 1}, encryption_key=KEY, signing_key=KEY)
    with pytest.raises(UntrustedRecordError, match=r"not encrypted; say .*allow_plaintext"):
        opened(plain, encryption_key=KEY)
    assert opened(plain, encryption_key=KEY, allow_plaintext=True) == {"a": 1}
    with pytest.raises(UntrustedRecordError, match=r"not signed; say .*allow_unsigned"):
        opened(plain, signing_key=KEY)
    assert opened(plain, signing_key=KEY, allow_unsigned=True) == {"a": 1}
    away = {"encryption": None, "encryption_key": KEY}
    assert "encryption" not in header_of(stored({"a": 1}, **away))
    assert opened(encrypted, **away) == opened(plain, **away) == {"a": 1}
    with pytest.raises(UntrustedRecordError, match=r"encrypted; reading it needs .*encryption_key"):
        opened(encrypted)


def test_no_key_is_ever_shown(tmp_path: Path) -> None:
    secret = b"a secret key of thirty-two bytes"
    persister = Persister.from_url(f"file://{tmp_path}", serde_kwargs={"encryption_key": secret, "signing_key": secret})
    shown = [repr(persister), str(vars(persister)), repr(persister._history.serde)]
    shown += [repr(persister._history.serde._encryption), repr(persister._history.serde._signing)]
    for wrong in (
        {"encryption_key": secret[:-1]},
        {"encryption_key": secret, "encryption": "rot13"},
        {"encryption_key": secret.decode()},
        {"encryption_key": [secret]},
        {"encryption_keys": secret},
        {"signing_key": secret[:15]},
        {"signing_key": secret, "key_wrapper": secret},
    ):
        with pytest.raises(OptionError) as caught:
            Serde(wrong)
        shown.append(repr(caught.value))
    with pytest.raises(UntrustedRecordError) as refused:
        opened(stored({}, encryption_key=KEY), encryption_key=secret)
    shown.append(repr(refused.value))
    assert not [text for text in shown if "a secret key" in text]
    # It travels with the persister, or other processes could not read.
    persister.save("p", "a", 1, "ask", State({"n": 1}), "completed")
    assert pickle.loads(pickle.dumps(persister)).load("p", "a")["state"]["n"] == 1


# A persister over many ways of writing


WAYS: list[dict[str, Any]] = [
    {},
    {"serializer": "msgpack"},
    {"compression": "gzip"},
    {"serializer": "msgpack", "compression": "zstd", "encryption_key": KEY},
    {"serializer": "pickle"},
    {"encryption": "chacha20-poly1305", "encryption_key": KEY, "compression": "lz4"},
]


def test_what_was_written_before_stays_readable(tmp_path: Path) -> None:
    readable = {"encryption_key": KEY, "allow_plaintext": True, "allow_unsafe": ["pickle"]}
    persister = Persister.from_url(f"file://{tmp_path}", compact_history=False)
    for number, way in enumerate(WAYS):
        persister.set_serde_kwargs({**readable, "encryption": None, **way})
        persister.save("p", "a", number, "step", State({**BIG, "n": number}), "completed")
    headers = list(persister.history("p", "a"))
    assert [(header.serializer, header.compression, header.encryption) for header in reversed(headers)] == [
        ("json", None, None),
        ("msgpack", None, None),
        ("json", "gzip", None),
        ("msgpack", "zstd", None),
        ("pickle", None, None),
        ("json", "lz4", "chacha20-poly1305"),
    ]
    for way in (*WAYS, {"serializer": "cloudpickle"}):
        reader = Persister.from_url(f"file://{tmp_path}", serde_kwargs={**readable, **way})
        for number in range(len(WAYS)):
            assert reader.load("p", "a", number)["state"].get_all() == {**BIG, "n": number}
        reader.cleanup()


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_the_same_content_is_no_conflict_however_it_is_written(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    readable = {"encryption_key": KEY, "encryption": None, "allow_plaintext": True, "allow_unsafe": ["pickle"]}
    one, other = (
        Persister.from_url(f"sqlite://{tmp_path}/s.db", serde_kwargs={**readable, **way}) for way in (first, second)
    )
    state = State({**BIG, "when": {1, 2}, "t": (1, 1.0)})
    one.save("p", "a", 1, "step", state, "completed")
    other.save("p", "a", 1, "step", State({**BIG, "when": {2, 1}, "t": (1, 1.0)}), "completed")
    with pytest.raises(ConflictError):
        other.save("p", "a", 1, "step", State({**BIG, "when": {1, 2}, "t": (1, 1)}), "completed")
    with pytest.raises(ConflictError):
        other.save("p", "a", 1, "step", state, "failed")
    one.cleanup()
    other.cleanup()


@pytest.mark.parametrize("way", WAYS[3:])
def test_records_set_aside_can_be_read_where_they_are(way: dict[str, Any], tmp_path: Path) -> None:
    way = {**way, "signing_key": OTHER_KEY}
    persister = Persister.from_url(f"file://{tmp_path}", serde_kwargs=way, on_conflict="rewind")
    for number in range(3):
        persister.save("p", "a", number, "step", State({"n": number}), "completed")
    persister.save("p", "a", 1, "step", State({"n": "new"}), "completed")
    aside = [header for header in persister.history("p", "a", include_set_aside=True) if header.set_aside]
    assert [header.sequence_id for header in aside] == [2, 1]
    history = persister._history
    values = {path.as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = [
        history.serde.loads(*history._decoded(data, name, RecordId("p", "a", number, "step")))["n"]
        for name, data in values.items()
        if "set-aside" in name and data.startswith(b"{")
        for number in [header_of(data)["sequence_id"]]
    ]
    assert sorted(found) == [1, 2]


async def _async_round_trip(url: str) -> Any:
    async with AsyncPersister.from_url(url, serde_kwargs={"serializer": "msgpack", "encryption_key": KEY}) as persister:
        await persister.save("p", "a", 1, "ask", State(BIG), "completed")
        return await persister.load("p", "a")


def test_the_async_face_does_the_same(tmp_path: Path) -> None:
    import asyncio

    loaded = asyncio.run(_async_round_trip(f"sqlite://{tmp_path}/s.db"))
    assert loaded["state"].get_all() == BIG


# pickle and cloudpickle


def test_an_unsafe_record_is_opened_only_by_who_allows_it() -> None:
    data = stored({"a": Color.RED}, serializer="pickle")
    assert header_of(data)["python"] == PYTHON
    assert opened(data, serializer="pickle") == {"a": Color.RED}
    assert opened(data, allow_unsafe=["pickle"]) == {"a": Color.RED}
    for reader in ({}, {"serializer": "msgpack"}, {"serializer": "cloudpickle"}, {"allow_unsafe": ["cloudpickle"]}):
        with pytest.raises(UnsafeSerializerError, match=r"written by pickle, .*allow_unsafe': \['pickle'\]"):
            opened(data, **reader)


def _as_of_python(data: bytes, version: str) -> bytes:
    """A record as if another Python had written it."""
    from kvpersist import records

    head, _, rest = data.partition(b',"checksum":')
    return records.encode(head.replace(PYTHON.encode(), version.encode()), rest.partition(b"\n")[2])


def test_another_python_version_is_told() -> None:
    plain = _as_of_python(stored({"a": Color.RED}, serializer="cloudpickle"), "2.99")
    assert opened(plain, serializer="cloudpickle") == {"a": Color.RED}
    code = _as_of_python(stored({"a": lambda: 1}, serializer="cloudpickle"), "2.99")
    with pytest.raises(DeserializationError, match=f"holds code of Python 2.99, and this is Python {PYTHON}"):
        opened(code, serializer="cloudpickle")
    gone = stored({"a": Color.RED}, serializer="pickle").replace(b"Color", b"Calor")
    gone = _as_of_python(gone, "2.99")
    with pytest.raises(DeserializationError, match=r"written by Python 2.99 and cannot be opened by Python"):
        opened(gone, serializer="pickle")


@pytest.mark.parametrize("serializer", ["pickle", "cloudpickle"])
def test_what_cannot_be_pickled_is_named(serializer: str) -> None:
    with pytest.raises(SerializationError, match=r"state\['a'\]\[1\]\['b'\] is a _thread:lock") as caught:
        stored({"ok": 1, "a": [0, {"b": threading.Lock()}]}, serializer=serializer)
    assert caught.value.path == "state['a'][1]['b']"


def test_pickle_kwargs() -> None:
    assert stored({"a": 1}, serializer="pickle", pickle_kwargs={"protocol": 2}).partition(b"\n")[2][1] == 2
    with pytest.raises(OptionError, match="there is no protokol"):
        Serde({"serializer": "pickle", "pickle_kwargs": {"protokol": 2}})


# Serializers of others


class Reversed:
    """JSON backwards: an object with two methods, and no more."""

    def dumps(self, state: dict[str, Any]) -> bytes:
        return json.dumps(state).encode()[::-1]

    def loads(self, data: bytes) -> dict[str, Any]:
        return json.loads(data[::-1])


def test_an_object_with_two_methods_is_a_serializer(tmp_path: Path) -> None:
    persister = Persister.from_url(f"file://{tmp_path}", serde_kwargs={"serializer": Reversed(), "compression": "gzip"})
    persister.save("p", "a", 1, "ask", State(BIG), "completed")
    persister.save("p", "a", 1, "ask", State(BIG), "completed")
    assert persister.load("p", "a")["state"].get_all() == BIG
    (header,) = persister.history("p", "a")
    assert header.serializer == "test_serializers:Reversed"
    with pytest.raises(SerializationError, match="cannot hold the state: TypeError"):
        persister.save("p", "a", 2, "ask", State({"a": {1}}), "completed")
    other = Persister.from_url(f"file://{tmp_path}")
    with pytest.raises(DeserializationError, match="'test_serializers:Reversed', which is not installed here"):
        other.load("p", "a")
    assert json.loads(stored({"a": 1}, serializer=json_module()).partition(b"\n")[2]) == {"a": 1}


def json_module() -> Any:
    import orjson

    return orjson


def test_a_serializer_comes_by_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "import ast\n"
        "class Literal:\n"
        "    name, safe = 'literal', True\n"
        "    def __init__(self, **options): pass\n"
        "    def dumps(self, state): return repr(state).encode()\n"
        "    def loads(self, data): return ast.literal_eval(data.decode())\n"
        "class Careless(Literal):\n"
        "    name, safe = 'careless', 'yes'\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[kvpersist.serializers]\nliteral = theirs:Literal\ncareless = theirs:Careless\n"
    )
    script = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parent)!r}]\n"
        "from test_serializers import stored, opened, UnsafeSerializerError\n"
        "assert opened(stored({'a': (1,)}, serializer='literal')) == {'a': (1,)}\n"
        "try: opened(stored({'a': (1,)}, serializer='careless'))\n"
        "except UnsafeSerializerError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("refused\n", "")


# Bad input


@pytest.mark.parametrize(
    ("serde_kwargs", "message"),
    [
        ({"serializer": "yaml"}, "no serializer 'yaml' is installed; installed are cloudpickle, json, msgpack, pickle"),
        ({"serializer": 7}, "serializer=7 has no dumps and loads"),
        ({"compression": "brotli"}, "no compression 'brotli'; there are zstd, lz4, gzip and None"),
        ({"compression": 1}, "no compression 1; there are"),
        ({"compression": "zstd", "compression_level": 99}, "from -7 to 22 for zstd, not 99"),
        ({"compression": "gzip", "compression_level": "9"}, "from 0 to 9 for gzip, not '9'"),
        ({"compression_level": 3}, "means nothing without compression"),
        ({"max_size": 0}, "max_size must be a number of bytes"),
        ({"encryption": "aes-gcm"}, "needs an encryption_key or a key_wrapper"),
        ({"encryption": "rot13", "encryption_key": KEY}, "no encryption 'rot13'; there are aes-gcm, chacha20-poly1305"),
        ({"encryption_key": KEY[:5]}, "must have 16 or 24 or 32 bytes for aes-gcm, not 5"),
        ({"encryption": "chacha20-poly1305", "encryption_key": KEY[:16]}, "must have 32 bytes for chacha20"),
        ({"encryption_key": {"k1": KEY, "k0": b""}}, "the encryption key 'k0' must have"),
        ({"encryption_key": "text"}, "must be bytes, or a mapping of key ids"),
        ({"encryption_key": {}}, "must be bytes, or a mapping of key ids"),
        ({"encryption_key": {1: KEY}}, "must be bytes, or a mapping of key ids"),
        ({"key_wrapper": object()}, "methods wrap and unwrap"),
        ({"signing_key": b"short"}, "must have 16 bytes or more, not 5"),
        ({"allow_unsafe": ["pickel"]}, "no serializer 'pickel' is installed; installed are"),
        ({"allow_unsafe": "pickle"}, r"allow_unsafe=\['pickle'\]"),
        ({"encrypton_key": KEY}, "no option 'encrypton_key'; did you mean 'encryption_key'"),
        ({"compresion": "zstd"}, "did you mean 'compression'"),
        ({"classes": Message}, "must be a list or a mapping"),
        ({"classes": [1]}, "1 is neither a class nor the name of a module"),
    ],
)
def test_bad_options(serde_kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Serde(serde_kwargs)


@pytest.mark.parametrize(
    ("serde_kwargs", "blocked", "extra"),
    [
        ({"compression": "zstd"}, "zstandard", "zstd"),
        ({"compression": "lz4"}, "lz4", "lz4"),
        ({"serializer": "cloudpickle"}, "cloudpickle", "cloudpickle"),
        ({"encryption_key": KEY}, "cryptography", "encryption"),
    ],
)
def test_a_missing_extra_is_named(
    serde_kwargs: dict[str, Any], blocked: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "kvpersist.serde.cloudpickle", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == blocked]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'kvpersist\[{extra}\]'"):
        Serde(serde_kwargs)


def test_a_missing_pyarrow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kvpersist\[pandas\]'"):
        stored({"a": pd.DataFrame()})


def test_a_value_that_cannot_be_held_says_which_serializers_could() -> None:
    with pytest.raises(SerializationError, match=r"state\['a'\] is a builtins:range, .* pickle and cloudpickle"):
        stored({"a": range(3)})


def test_a_pickle_of_something_else_is_an_error() -> None:
    for serializer in (PickleSerializer(), CloudpickleSerializer()):
        with pytest.raises(DeserializationError, match="not the pickle of a dict"):
            serializer.loads(pickle.dumps([1]))
    assert CloudpickleSerializer().holds_code(b"no pickle") is False


def test_a_state_that_holds_itself_may_be_saved_again_with_pickle() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with Persister.from_url("memory://", serde_kwargs={"serializer": "pickle"}) as persister:
        for _ in range(2):
            persister.save("p", "a", 1, "ask", {"loop": loop}, "completed")
        with pytest.raises(ConflictError):
            persister.save("p", "a", 1, "ask", {"loop": [loop]}, "completed")


def test_a_record_of_pickle_that_json_cannot_hold_is_another_one() -> None:
    with Persister.from_url("memory://pickled", serde_kwargs={"serializer": "pickle"}) as persister:
        persister.save("p", "a", 1, "ask", {"a": range(3)}, "completed")
    persister = Persister.from_url("memory://pickled", serde_kwargs={"allow_unsafe": ["pickle"]})
    with persister, pytest.raises(ConflictError):
        persister.save("p", "a", 1, "ask", {"a": [0, 1, 2]}, "completed")


class NotBytes:
    def dumps(self, state: dict[str, Any]) -> Any:
        return "text" if state["a"] else 1 / 0

    def loads(self, data: bytes) -> Any:
        return [data]


def test_a_serializer_that_does_not_keep_the_contract_is_named() -> None:
    serde = Serde({"serializer": NotBytes()})
    with pytest.raises(SerializationError, match="NotBytes made a str, not bytes"):
        serde.dumps({"a": 1})
    with pytest.raises(SerializationError, match="NotBytes cannot hold the state: ZeroDivisionError"):
        serde.dumps({"a": 0})
    data = serde.encode("kvpersist", RECORD, "completed", "2026-11-24T06:00:00.000000+00:00", b"x")
    with pytest.raises(DeserializationError, match="the record holds a list, not a state"):
        serde.loads(*serde.decode("kvpersist", data, "some/key", RECORD))


def test_a_function_of_burrs_serde_that_fails_is_named() -> None:
    def fails(value: Any, **_: Any) -> Any:
        raise RuntimeError("on purpose")

    field = "fails-on-purpose"
    register_field_serde(field, fails, fails)
    try:
        with pytest.raises(SerializationError, match=r"state\['fails-on-purpose'\]: .*failed: .*on purpose") as caught:
            stored({field: 1})
        assert isinstance(caught.value.__cause__, RuntimeError)
    finally:
        del FIELD_SERIALIZATION[field]
