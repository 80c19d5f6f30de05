"""Records written by earlier versions stay readable: the files below golden/ are read, and never written, here."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import sys
from pathlib import Path

import ormsgpack
import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from serializer_table import same

sys.path.insert(0, str(Path(__file__).parent / "golden"))

from cases import CASES, CREATED, FOLDER, KEY, LONG, OTHER_KEY

from kvpersist.keys import RecordId, encode, record_key
from kvpersist.serde import Serde
from kvpersist.serde.msgpack import CODES


@pytest.mark.parametrize("name", CASES)
def test_it_stays_readable(name: str) -> None:
    case = CASES[name]
    serde = Serde(case.serde_kwargs)
    data = (FOLDER / f"{name}.record").read_bytes()
    header, sealed = serde.decode("kvpersist", data, name, case.id)
    state = serde.loads(header, sealed)
    assert (header.status, header.created_at) == ("completed", CREATED)
    assert list(state) == list(case.state)
    for key, value in case.state.items():
        assert same(value, state[key]), key
    # A save of the same state by this version is no conflict with it; Arrow names the version of pandas.
    assert "arrays" in name or serde.is_same(header, sealed, serde.dumps(case.state))


def test_every_file_has_its_case() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CASES)


def test_the_specification_is_enough_to_read_a_record() -> None:
    """Reads the record that has everything by docs/format.md alone."""
    data = (FOLDER / "everything.record").read_bytes()
    line, _, payload = data.partition(b"\n")
    header = json.loads(line)
    before_checksum, _, rest = line.partition(b',"checksum":"')
    assert rest == hashlib.sha256(before_checksum + payload).hexdigest().encode() + b'"}'
    head, _, signature = before_checksum.partition(b',"signature":"')
    bound = b"kvpersist" + b"\n" + head
    assert header["signing"] == "hmac-sha256"
    assert hmac.new(OTHER_KEY, bound + b"\n" + payload, hashlib.sha256).hexdigest().encode() + b'"' == signature
    assert (header["encryption"], header["key_id"], header["compression"]) == ("aes-gcm", "k1", "zstd")
    compressed = AESGCM(KEY).decrypt(base64.b64decode(header["nonce"]), payload, bound)
    plain = zstandard.ZstdDecompressor().decompress(compressed)
    assert len(plain) == header["uncompressed_size"]
    assert ormsgpack.unpackb(plain) == LONG


def test_the_keys_in_the_specification() -> None:
    page = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
    for record in (RecordId("user-1", "chat", 0, "ask"), RecordId(None, "Ab/c", 7, "")):
        assert f"`{record_key('kvpersist', record)}`" in page
    assert f"`con` is `{encode('con')}`" in page
    for tag, code in CODES.items():
        assert re.search(rf"\| {code} \| `{re.escape(tag)}` \|", page)
