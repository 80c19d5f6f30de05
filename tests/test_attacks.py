"""Attacks by somebody who can write to the store, tried one by one.

A forged record always has a right checksum: that is no secret.
"""

from __future__ import annotations

import base64
import os
import pickle
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lz4.frame
import orjson
import ormsgpack
import pytest
import zstandard
from burr.core import State, serde
from test_serializers import BIG, KEY, OTHER_KEY, RECORD, opened, stored

from kvpersist import (
    CorruptRecordError,
    DeserializationError,
    Persister,
    SerializationError,
    Store,
    UnsafeSerializerError,
    UntrustedRecordError,
    records,
)
from kvpersist.keys import RecordId
from kvpersist.serde import Serde
from kvpersist.serde.json import JSONSerializer
from kvpersist.testing.serializer import exactly

PROTECTED = [{"encryption_key": KEY}, {"signing_key": KEY}, {"encryption_key": KEY, "signing_key": OTHER_KEY}]


def forged(data: bytes, payload: bytes | None = None, /, **changes: Any) -> bytes:
    """A record with other header fields (None drops one) or another payload, and a right checksum."""
    line, _, old_payload = data.partition(b"\n")
    fields = orjson.loads(line)
    del fields["checksum"]
    signature = changes.pop("signature", fields.pop("signature", None))
    fields = {name: value for name, value in {**fields, **changes}.items() if value is not None or name in _NULLABLE}
    return records.encode(orjson.dumps(fields)[:-1], old_payload if payload is None else payload, signature)


_NULLABLE = ("partition_key",)


class Bomb:
    """Leaves a folder behind where its pickle is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that must not be opened."""
    path = tmp_path / "code was run"
    yield pickle.dumps({"a": Bomb(path)})
    assert not path.exists()


# Running code


@pytest.mark.parametrize("reader", [{}, {"serializer": "msgpack"}, *PROTECTED])
@pytest.mark.parametrize("name", ["pickle", "cloudpickle"])
def test_a_pickle_header_swapped_in(reader: dict[str, Any], name: str, bomb: bytes) -> None:
    data = forged(stored({"a": 1}, **reader), bomb, serializer=name, python="3.11")
    with pytest.raises((UnsafeSerializerError, UntrustedRecordError)):
        opened(data, **reader)


def test_a_pickle_in_a_store(bomb: bytes, tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/s.db"
    with Persister.from_url(url) as persister, Store.from_url(url) as store:
        persister.save("p", "a", 1, "ask", State({"n": 1}), "completed")
        ((key, value),) = store.scan(values=True).entries
        store.put(key, forged(value, bomb, serializer="pickle"))
        with pytest.raises(UnsafeSerializerError):
            persister.load("p", "a")
        with pytest.raises(UnsafeSerializerError):
            persister.save("p", "a", 1, "ask", State({"n": 1}), "completed")
        assert [header.serializer for header in persister.history("p", "a")] == ["pickle"]


def test_a_pickle_record_of_a_reader_that_expects_pickle_needs_the_signature(bomb: bytes) -> None:
    way = {"serializer": "pickle", "signing_key": KEY}
    with pytest.raises(UntrustedRecordError):
        opened(forged(stored({"a": 1}, **way), bomb), **way)
    with pytest.raises(UntrustedRecordError):
        opened(forged(stored({"a": 1}, **way), bomb, signature=None, signing=None), **way)


def test_the_bomb_goes_off_where_pickles_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "code was run"
    opened(forged(stored({"a": 1}), pickle.dumps({"a": Bomb(path)}), serializer="pickle"), serializer="pickle")
    assert path.exists()


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_what_burr_would_run_is_data_in_a_state(serializer: str) -> None:
    import burr.integrations.serde.pydantic  # noqa: F401  registers what reads "pydantic"

    state = {
        "one": {serde.KEY: "pydantic", "__pydantic_class": "os.system"},
        "two": [{serde.KEY: "pickle", "value": pickle.dumps(1)}],
        serde.KEY: "pydantic",
        "$kv": "burr",
    }
    assert exactly(opened(stored(state, serializer=serializer))) == exactly(state)


@pytest.fixture
def pickled_by_burr() -> Iterator[type]:
    from burr.integrations.serde.pickle import register_type_to_pickle

    class Registered(Bomb):
        pass

    register_type_to_pickle(Registered)
    yield Registered
    del serde.deserializer.func_map["pickle"]


def _burr_tag(serializer: str, value: Any) -> bytes:
    if serializer == "json":
        return orjson.dumps({"a": {"$kv": "burr", "value": _in_json(value)}})
    return ormsgpack.packb({"a": ormsgpack.Ext(0, ormsgpack.packb(["burr", value, {}]))})


def _in_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$kv": "bytes", "value": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: _in_json(each) for key, each in value.items()}
    return value


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_burrs_pickled_types_are_opened_only_where_allowed(
    serializer: str, pickled_by_burr: type, bomb: bytes, tmp_path: Path
) -> None:
    for value in ({serde.KEY: "pickle", "value": bomb}, {"deep": {serde.KEY: "pickle", "value": bomb}}):
        data = forged(stored({}, serializer=serializer), _burr_tag(serializer, value))
        with pytest.raises(DeserializationError, match=r"register_type_to_pickle.*allow_unsafe': \['pickle'\]"):
            opened(data)
    with pytest.raises(SerializationError, match=r"state\['a'\] was serialized by Burr's register_type_to_pickle"):
        stored({"a": pickled_by_burr(tmp_path / "x")}, serializer=serializer)
    allowed = stored({"a": pickled_by_burr(tmp_path / "x")}, serializer=serializer, allow_unsafe=["pickle"])
    opened(allowed, allow_unsafe=["pickle"])
    assert (tmp_path / "x").exists()


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_burrs_plugins_read_nothing(serializer: str, tmp_path: Path) -> None:
    import burr.integrations.serde.langchain
    import burr.integrations.serde.pandas
    import burr.integrations.serde.pydantic  # noqa: F401

    for value in (
        {serde.KEY: "pydantic", "__pydantic_class": "os.system"},
        {serde.KEY: "pandas.DataFrame", "path": "/etc/passwd"},
        {serde.KEY: "lc_document", "lc": 1, "type": "secret", "id": ["HOME"]},
    ):
        data = forged(stored({}, serializer=serializer), _burr_tag(serializer, value))
        with pytest.raises(DeserializationError, match=r"Burr's plugin burr.integrations.*never used to read"):
            opened(data, classes=["serializer_table"])


@pytest.mark.parametrize("tag", ["pydantic", "dataclass", "enum", "flag", "namedtuple"])
def test_a_class_path_to_something_else(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("os:system", "evil:Thing", "builtins:eval", "serializer_table:os", "serializer_table:ROWS", "", ":"):
        payload = orjson.dumps({"a": {"$kv": tag, "class": name, "value": {}, "set": []}})
        with pytest.raises(DeserializationError):
            opened(forged(stored({}), payload), classes=["serializer_table"])
        with pytest.raises(DeserializationError):
            opened(forged(stored({}), payload))
    assert "evil" not in sys.modules
    # A class that an allowed module has only imported is not its own.
    for name in ("serializer_table:Document", "serializer_table:enum.Enum", "serializer_table:threading.Thread"):
        payload = orjson.dumps({"a": {"$kv": tag, "class": name, "value": {}, "set": []}})
        with pytest.raises(DeserializationError, match="which this reader does not allow"):
            opened(forged(stored({}), payload), classes=["serializer_table"])
    # An allowed module's class of another kind is not one either.
    payload = orjson.dumps({"a": {"$kv": tag, "class": "serializer_table:Slotted", "value": {}, "set": []}})
    with pytest.raises(DeserializationError, match=f"Slotted is not a {tag}"):
        opened(forged(stored({}), payload), classes=["serializer_table"])


def test_an_allowed_package_runs_nothing_that_was_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scripts, and what its modules would do if asked for a name."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (package / "models.py").write_text(
        "import dataclasses, shop.other as other\n"
        "@dataclasses.dataclass\nclass Item:\n    x: int = 1\n"
        f"def __getattr__(name):\n    open({str(tmp_path / 'ran')!r}, 'w')\n    raise AttributeError(name)\n"
    )
    (package / "other.py").write_text("import dataclasses\n@dataclasses.dataclass\nclass Admin:\n    x: int = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        exact = JSONSerializer(classes=["shop.models"])
        item = exact.loads(b'{"a":{"$kv":"dataclass","class":"shop.models:Item","value":{"x":2}}}')["a"]
        assert item == sys.modules["shop.models"].Item(2)
        for reader in (exact, JSONSerializer(classes=["shop"])):
            for name in ("shop.__main__:X", "shop.models:missing", "shop.models:other.Admin", "shop.models:Item.x"):
                forged = f'{{"a":{{"$kv":"dataclass","class":"{name}","value":{{}}}}}}'
                with pytest.raises(DeserializationError, match="does not allow"):
                    reader.loads(forged.encode())
        assert not (tmp_path / "ran").exists()
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
            del sys.modules[name]


def test_numpy_and_frames_open_no_pickles(bomb: bytes) -> None:
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    for tag, payload in (
        ("numpy.ndarray", buffer.getvalue() + bomb),
        ("numpy.ndarray", bomb),
        ("pandas.DataFrame", bomb),
        ("pandas.Series", bomb),
        ("polars.DataFrame", bomb),
        ("polars.Series", bomb),
    ):
        value = {"$kv": tag, "value": base64.b64encode(payload).decode()}
        with pytest.raises(DeserializationError, match=r"malformed|no Arrow"):
            opened(forged(stored({}), orjson.dumps({"a": value})))
    scalar = {"$kv": "numpy", "value": base64.b64encode(bytes(8)).decode(), "dtype": "O"}
    with pytest.raises(DeserializationError, match="no numpy scalar"):
        opened(forged(stored({}), orjson.dumps({"a": scalar})))


# Using up memory

BOMB_SIZE = 2**28


def _zeros_zstd() -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj(size=BOMB_SIZE)
    return b"".join(compressor.compress(bytes(2**20)) for _ in range(BOMB_SIZE >> 20)) + compressor.flush()


def _zeros_lz4() -> bytes:
    with lz4.frame.LZ4FrameCompressor() as compressor:
        parts = [compressor.begin()]
        parts += [compressor.compress(bytes(2**20)) for _ in range(BOMB_SIZE >> 20)]
        return b"".join(parts) + compressor.flush()


def _zeros_gzip() -> bytes:
    compressor = zlib.compressobj(1, wbits=31)
    return b"".join(compressor.compress(bytes(2**20)) for _ in range(BOMB_SIZE >> 20)) + compressor.flush()


@pytest.mark.parametrize(("name", "zeros"), [("zstd", _zeros_zstd), ("lz4", _zeros_lz4), ("gzip", _zeros_gzip)])
def test_a_decompression_bomb(name: str, zeros: Any) -> None:
    compressed = zeros()
    tracemalloc.start()
    try:
        for claimed, message in ((2**40, "max_size"), (BOMB_SIZE, "max_size"), (2000, "is no"), (0, "is no")):
            data = forged(stored({}), compressed, compression=name, uncompressed_size=claimed)
            with pytest.raises(DeserializationError, match=message):
                opened(data, max_size=10_000_000)
        with pytest.raises(DeserializationError, match="is no"):
            opened(forged(stored({}), compressed, compression=name))
        assert tracemalloc.get_traced_memory()[1] < BOMB_SIZE / 10
        # Where that much is allowed it is used, and seen here.
        data = forged(stored({}), compressed, compression=name, uncompressed_size=BOMB_SIZE)
        with pytest.raises(DeserializationError, match="JSON"):
            opened(data)
        assert tracemalloc.get_traced_memory()[1] >= BOMB_SIZE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["zstd", "lz4", "gzip"])
def test_compressed_data_that_is_cut_or_goes_on(name: str) -> None:
    data = stored(BIG, compression=name)
    payload = data.partition(b"\n")[2]
    for wrong in (payload[:-1], payload + b"x", payload + payload, b"", b"x", payload[:20]):
        with pytest.raises(DeserializationError, match=f"is no {name} data"):
            opened(forged(data, wrong))


def test_an_array_that_claims_to_be_huge() -> None:
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (2**45,)})
    value = {"$kv": "numpy.ndarray", "value": base64.b64encode(buffer.getvalue()).decode()}
    with pytest.raises(DeserializationError, match="malformed"):
        opened(forged(stored({}), orjson.dumps({"a": value})))


@pytest.mark.parametrize("levels", [2_000, 100_000])
def test_nesting_without_end(levels: int) -> None:
    for payload in (b'{"a":' + b"[" * levels + b"]" * levels + b"}", b'{"$kv":"tuple","value":[' * levels):
        with pytest.raises(DeserializationError):
            opened(forged(stored({}), payload))
    deep = b"\x81\xa1a" + b"\x91" * levels + b"\x01"
    nested = ormsgpack.packb({"a": 1})
    for _ in range(min(levels, 5000)):
        nested = ormsgpack.packb(ormsgpack.Ext(2, nested))
    for payload in (deep, nested):
        with pytest.raises(DeserializationError):
            opened(forged(stored({}, serializer="msgpack"), payload))


# Moving, replaying, stripping


@pytest.mark.parametrize("way", PROTECTED)
@pytest.mark.parametrize("change", [{"app_id": "b"}, {"partition_key": None}, {"sequence_id": 2}, {"position": "b"}])
def test_a_record_moved_and_renamed(way: dict[str, Any], change: dict[str, Any]) -> None:
    data = forged(stored({"a": 1}, **way), **change)
    moved = RecordId(**{**RECORD._asdict(), **change})
    serde = Serde(way)
    with pytest.raises(UntrustedRecordError, match="moved here"):
        serde.loads(*serde.decode("kvpersist", data, "k", moved))
    # As it is, it is refused for where it stands.
    with pytest.raises(CorruptRecordError, match="moved here"):
        serde.decode("kvpersist", stored({"a": 1}, **way), "k", moved)


@pytest.mark.parametrize("way", PROTECTED)
def test_a_record_moved_to_another_namespace(way: dict[str, Any]) -> None:
    serde = Serde(way)
    with pytest.raises(UntrustedRecordError, match="moved here"):
        serde.loads(*serde.decode("other", stored({"a": 1}, **way), "k", RECORD))


@pytest.mark.parametrize("way", PROTECTED)
@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed"},
        {"created_at": "2027-01-01T00:00:00.000000+00:00"},
        {"serializer": "msgpack"},
        {"version": "9"},
        {"compression": "gzip", "uncompressed_size": 2},
        {"more": "fields"},
    ],
)
def test_any_change_of_the_header(way: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(UntrustedRecordError):
        opened(forged(stored({"a": 1}, **way), **change), **way)


@pytest.mark.parametrize("way", PROTECTED)
def test_another_payload(way: dict[str, Any]) -> None:
    data, other = stored({"a": 1}, **way), stored({"a": 2}, **way)
    payload = other.partition(b"\n")[2]
    for wrong in (payload, payload + b"x", b"", b"{}", payload[:12], payload[:11]):
        with pytest.raises(UntrustedRecordError):
            opened(forged(data, wrong), **way)


def test_a_stripped_or_foreign_signature() -> None:
    way = {"signing_key": KEY}
    data = stored({"a": 1}, **way)
    signature = orjson.loads(data.partition(b"\n")[0])["signature"]
    for change, message in (
        ({"signature": None}, "not signed"),
        ({"signing": None}, "not signed"),
        ({"signature": None, "signing": None}, "not signed"),
        ({"signature": "0" * 64}, "signature is wrong"),
        ({"signature": signature[:-1] + "g"}, None),
        ({"signature": ""}, None),
        ({"signing": "none"}, "signed with the none key"),
        ({"signing_key_id": "other"}, "key 'other', which this persister has not"),
    ):
        with pytest.raises(UntrustedRecordError, match=message):
            opened(forged(data, **change), **way)
    with pytest.raises(UntrustedRecordError, match="signature is wrong"):
        opened(stored({"a": 1}, signing_key=OTHER_KEY), **way)
    # While unsigned records are allowed, a wrong signature still is none.
    for change in ({"signature": "0" * 64}, {"signature": None}, {"signing": None}):
        with pytest.raises(UntrustedRecordError):
            opened(forged(data, **change), **way, allow_unsigned=True)


def test_a_signature_made_from_the_header_of_one_and_the_payload_of_another() -> None:
    one, other = stored({"a": 1}, signing_key=KEY), stored({"a": 2}, signing_key=KEY)
    with pytest.raises(UntrustedRecordError, match="signature is wrong"):
        opened(forged(one, other.partition(b"\n")[2]), signing_key=KEY)


def test_old_ciphertext_under_a_new_key() -> None:
    old = stored({"a": 1}, encryption_key={"1": KEY})
    new = {"encryption_key": {"2": OTHER_KEY}}
    with pytest.raises(UntrustedRecordError, match="encrypted with the key '1', and this persister has '2'"):
        opened(old, **new)
    with pytest.raises(UntrustedRecordError, match="does not decrypt"):
        opened(forged(old, key_id="2"), **new)
    with pytest.raises(UntrustedRecordError, match="does not decrypt"):
        opened(forged(old, key_id="2"), encryption_key={"2": OTHER_KEY, "1": KEY})


def test_a_downgrade() -> None:
    way = {"encryption_key": KEY}
    data = stored({"a": 1}, **way)
    with pytest.raises(UntrustedRecordError, match="not encrypted"):
        opened(forged(data, b'{"a":2}', encryption=None), **way)
    with pytest.raises(UntrustedRecordError, match="does not decrypt"):
        opened(forged(data, encryption="chacha20-poly1305"), **way)
    with pytest.raises(UntrustedRecordError, match="which is not known here"):
        opened(forged(data, encryption="none"), **way)
    with pytest.raises(UntrustedRecordError, match="no key_wrapper"):
        opened(forged(data, wrapped_key="AAAA"), **way)
    with pytest.raises(UntrustedRecordError, match="not encrypted"):
        opened(forged(stored({"a": 1}), signature=None), **way)


def test_a_wrong_key_says_nothing_of_where() -> None:
    data = stored({"a": 1}, encryption_key=KEY)
    messages = set()
    for position in range(32):
        wrong = bytearray(KEY)
        wrong[position] ^= 1
        with pytest.raises(UntrustedRecordError) as caught:
            opened(data, encryption_key=bytes(wrong))
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_the_listing_of_a_signed_history_trusts_no_header(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/s.db"
    with Persister.from_url(url, serde_kwargs={"signing_key": KEY}) as persister, Store.from_url(url) as store:
        persister.save("p", "a", 1, "ask", State({"n": 1}), "completed")
        ((key, value),) = store.scan(values=True).entries
        store.put(key, forged(value, status="failed"))
        for use in (
            lambda: persister.load("p", "a"),
            lambda: list(persister.history("p", "a")),
            lambda: persister.prune(keep_last=1),
            lambda: persister.save("p", "a", 1, "ask", State({"n": 2}), "completed"),
        ):
            with pytest.raises(UntrustedRecordError):
                use()
        assert store.get(key) == forged(value, status="failed")
