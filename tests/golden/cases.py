"""Records of format 1, which every later version must read.

``python tests/golden/cases.py`` writes the files that are not there yet.  A file that is there is never
written again, and no test writes any.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import math
import sys
import uuid
import zoneinfo
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pydantic

from kvpersist.keys import RecordId
from kvpersist.serde import Serde

FOLDER = Path(__file__).parent / "format1"
CREATED = "2026-11-24T06:23:49.123456+00:00"
KEY, OTHER_KEY = bytes(range(32)), bytes(range(32, 64))


class Mood(enum.Enum):
    GOOD = "g"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Message:
    role: str
    parts: list[Any]


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: str
    count: int = 0
    _seen: int = pydantic.PrivateAttr(default=0)


class Xor:
    """A key wrapper that anybody can rebuild, for these files only."""

    def wrap(self, key: bytes) -> bytes:
        return bytes(byte ^ 0x5A for byte in key)

    unwrap = wrap


def model() -> Model:
    made = Model(name="n", other=[1])
    made._seen = 2
    return made


PLAIN = {"chat": [{"role": "user", "content": "hei på deg 😀"}], "n": -1, "f": 0.1, "none": None, "yes": True, "": {}}
LONG = {"chat": [{"role": "user", "content": f"This is message number {number}."} for number in range(60)]}
TAGS = {
    "text": "\ud800",
    "ints": [2**64, -(2**63) - 1, 10**400],
    "floats": [math.inf, -math.inf, math.nan, -0.0],
    "bytes": [b"\0\xff", bytearray(b"abc")],
    "containers": [(1, (2,)), {3, 1}, frozenset({1}), collections.deque([1], maxlen=3), collections.deque([2])],
    "ordered": collections.OrderedDict([("b", 1), (2, 3)]),
    "keys": {1: "int", (1, 2): "tuple", None: "none"},
    "like a tag": {"$kv": "tuple", "value": [1]},
    "numbers": [1 + 2j, decimal.Decimal("1.10"), uuid.UUID(int=7)],
    "times": [
        dt.datetime(2026, 11, 24, 6, 23, 49, 123456),
        dt.datetime(2026, 11, 24, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30))),
        dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Oslo")),
        dt.date(2026, 11, 24),
        dt.time(6, 23, tzinfo=dt.timezone.utc),
        dt.timedelta(days=-1, microseconds=1),
    ],
}
CLASSES = {
    "values": [Mood.GOOD, Access.READ | Access.WRITE, Pair(1, "r"), Message("user", [1, Pair(None, (2,))]), model()]
}
ARRAYS = {
    "array": np.arange(6, dtype=">i4").reshape(2, 3),
    "scalar": np.float64(0.1),
    "pandas": pd.DataFrame({"a": [1, 2], "b": [0.5, math.nan]}, index=pd.RangeIndex(5, 7, name="i")),
    "series": pd.Series([1.5, 2.5], name="s"),
    "polars": pl.DataFrame({"a": [1, None], "b": [0.5, 1.5]}),
    "polars series": pl.Series("s", [1, 2]),
}
NAMES = {"Mood": Mood, "Access": Access, "Pair": Pair, "Message": Message, "Model": Model}


class Case(NamedTuple):
    """A state, what it was written with, and the record's id."""

    state: dict[str, Any]
    serde_kwargs: dict[str, Any]
    id: RecordId = RecordId("p", "a", 7, "ask")


CASES = {
    "json": Case(PLAIN, {}),
    "json-no-partition": Case({}, {}, RecordId(None, "", 0, "")),
    "json-odd-ids": Case(PLAIN, {}, RecordId('a/"b"', "Å\0\n\u2028", 2**63 - 1, "..")),
    "json-tags": Case(TAGS, {}),
    "json-classes": Case(CLASSES, {"classes": NAMES}),
    "json-arrays": Case(ARRAYS, {}),
    "msgpack": Case(PLAIN, {"serializer": "msgpack"}),
    "msgpack-tags": Case(TAGS, {"serializer": "msgpack"}),
    "msgpack-classes": Case(CLASSES, {"serializer": "msgpack", "classes": NAMES}),
    "msgpack-arrays": Case(ARRAYS, {"serializer": "msgpack"}),
    "pickle": Case(TAGS, {"serializer": "pickle", "pickle_kwargs": {"protocol": 4}}),
    "cloudpickle": Case(TAGS, {"serializer": "cloudpickle", "pickle_kwargs": {"protocol": 4}}),
    "zstd": Case(LONG, {"compression": "zstd"}),
    "lz4": Case(LONG, {"compression": "lz4"}),
    "gzip": Case(LONG, {"compression": "gzip"}),
    "aes-gcm": Case(PLAIN, {"encryption_key": KEY}),
    "chacha20-poly1305": Case(PLAIN, {"encryption": "chacha20-poly1305", "encryption_key": {"k1": KEY}}),
    "wrapped-key": Case(PLAIN, {"key_wrapper": Xor()}),
    "signed": Case(PLAIN, {"signing_key": KEY}),
    "everything": Case(
        LONG,
        {
            "serializer": "msgpack",
            "compression": "zstd",
            "encryption_key": {"k1": KEY},
            "signing_key": {"s1": OTHER_KEY},
        },
    ),
}


def main() -> None:
    for name, (state, serde_kwargs, record) in CASES.items():
        path = FOLDER / f"{name}.record"
        if not path.exists():
            serde = Serde(serde_kwargs)
            path.write_bytes(serde.encode("kvpersist", record, "completed", CREATED, serde.dumps(state)))
            sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
