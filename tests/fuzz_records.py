"""A fuzz target for whatever reads stored bytes: it returns a state or raises one of kvpersist's errors.

``python tests/fuzz_records.py CORPUS -max_total_time=60`` runs it (the options are libFuzzer's); it begins
with the golden records.  Right checksums are made here, or nothing behind them would be reached.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parent / "golden"))

with atheris.instrument_imports(include=["kvpersist", "burr.core.serde"]):
    import orjson
    from cases import CASES, FOLDER, KEY, NAMES

    import kvpersist.serde.json
    import kvpersist.serde.msgpack  # noqa: F401  loaded when first used, and so not seen otherwise
    from kvpersist import KvpersistError, records
    from kvpersist.keys import RecordId
    from kvpersist.serde import Serde

RECORD = RecordId("p", "a", 7, "ask")
READERS = [
    Serde({"classes": NAMES, "max_size": 2**20}),
    Serde(
        {"encryption_key": {"k1": KEY, "": KEY}, "allow_plaintext": True, "signing_key": KEY, "allow_unsigned": True}
    ),
]
CODINGS: list[dict[str, Any]] = [
    {"serializer": serializer, **compression}
    for serializer in ("json", "msgpack")
    for compression in ({}, *({"compression": name, "uncompressed_size": 500} for name in ("zstd", "lz4", "gzip")))
]
RAW, HEADER, PAYLOAD = range(3)  # what the fuzzer makes, told by its first byte


def read(data: bytes) -> None:
    """Read bytes as each kind of reader would."""
    for reader in READERS:
        try:
            state = reader.loads(*reader.decode("kvpersist", data, "key", RECORD))
        except KvpersistError as error:
            if "cannot read the record" in str(error):
                raise  # what others' serializers may raise is covered; ours raise nothing that must be
            continue
        if type(state) is not dict:
            raise AssertionError(f"a state is a {type(state)}")


def target(data: bytes) -> None:
    """One input of the fuzzer."""
    if len(data) < 2:
        return
    mode, choice, rest = data[0] % 3, data[1], data[2:]
    if mode == RAW:
        read(rest)
        return
    coding, payload = CODINGS[choice % len(CODINGS)], rest
    if mode == HEADER:
        line, _, payload = rest.partition(b"\n")
        try:
            coding = orjson.loads(line)
            if type(coding) is not dict:
                return
            orjson.dumps(coding)
        except (TypeError, ValueError):
            return
    head = records.encode_head(RECORD, "completed", "2026-11-24T06:00:00.000000+00:00", "0.1.0", coding)
    read(records.encode(head, payload))


def seeds(folder: Path) -> None:
    """The golden records, in each of the ways that the target takes its input."""
    for name in CASES:
        data = (FOLDER / f"{name}.record").read_bytes()
        line, _, payload = data.partition(b"\n")
        coding = {key: value for key, value in orjson.loads(line).items() if key not in ("checksum", "signature")}
        kept = {key: value for key, value in coding.items() if key not in RECORD._fields}
        (folder / f"raw-{name}").write_bytes(bytes((RAW, 0)) + data)
        (folder / f"header-{name}").write_bytes(bytes((HEADER, 0)) + orjson.dumps(kept) + b"\n" + payload)
        (folder / f"payload-{name}").write_bytes(bytes((PAYLOAD, 4 * ("msgpack" in name))) + payload)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # numpy's and pandas' opinions of odd bytes
    seeds(Path(next(each for each in sys.argv[1:] if not each.startswith("-"))))
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
