"""Speed and size of serializers, as ratios to Burr's own way, measured pairwise in one run.

``python -m benchmarks serializers`` prints them, and ``python -m benchmarks.serializers --write`` puts the
tables into docs/serializers.md as well.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from burr.core import State

from kvpersist.keys import RecordId
from kvpersist.serde import Serde

from .pairs import Ratio, compare
from .report import heading, row

PAGE = Path(__file__).parent.parent / "docs" / "serializers.md"
BEGIN, END = "<!-- speed and size: written by benchmarks/serializers.py -->", "<!-- end of speed and size -->"
RECORD = RecordId("user-1", "chat-1", 7, "answer")
WORDS = [
    "the",
    "state",
    "of",
    "an",
    "agent",
    "after",
    "one",
    "step",
    "is",
    "saved",
    "and",
    "loaded",
    "again",
    "for",
    "you",
]

_random = random.Random(5)


def _text(words: int) -> str:
    return " ".join(_random.choice(WORDS) for _ in range(words))


SMALL = {"prompt": _text(5), "turn": 3, "done": False, "last": None}
CHAT = {
    "chat": [
        {"role": _random.choice(["user", "assistant"]), "content": _text(40), "id": number} for number in range(60)
    ],
    "prompt": _text(20),
    "turn": 30,
}
STATES: dict[str, dict[str, Any]] = {
    "a small state": SMALL,
    "a chat of 60 messages": CHAT,
    "2,000 floats": {"embedding": [_random.random() for _ in range(2000)]},
    "500 rows of numbers": {"rows": [{"id": number, "x": _random.random(), "ok": True} for number in range(500)]},
}
WITH_DATES = {**CHAT, "chat": [{**each, "at": dt.datetime(2026, 1, 1, 1, 2, 3)} for each in CHAT["chat"]]}

WAYS: dict[str, dict[str, Any]] = {
    "json": {},
    "msgpack": {"serializer": "msgpack"},
    "pickle": {"serializer": "pickle"},
    "cloudpickle": {"serializer": "cloudpickle"},
    "json + lz4": {"compression": "lz4"},
    "json + zstd": {"compression": "zstd"},
    "json + gzip": {"compression": "gzip"},
    "msgpack + zstd": {"serializer": "msgpack", "compression": "zstd"},
    "json + aes-gcm": {"encryption_key": bytes(32)},
    "json + zstd + aes-gcm + signature": {"compression": "zstd", "encryption_key": bytes(32), "signing_key": bytes(32)},
}


def ratio(ours: Callable[[], object], theirs: Callable[[], object]) -> Ratio:
    """How long ours takes for each of theirs."""
    start = time.perf_counter()
    theirs()
    calls = max(1, int(0.004 / (time.perf_counter() - start)))
    return compare(ours, theirs, pairs=31, calls=calls)


def _table(title: str, columns: list[str], rows: dict[str, list[str]]) -> list[str]:
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]


def tables() -> str:
    """All the tables in Markdown, measured now."""
    encode: dict[str, list[str]] = {}
    save: dict[str, list[str]] = {}
    load: dict[str, list[str]] = {}
    size: dict[str, list[str]] = {}
    for name, way in WAYS.items():
        serde = Serde(way)
        for what, fields in STATES.items():
            state = State(fields)
            plain = serde.dumps(fields)
            stored = serde.encode("kvpersist", RECORD, "completed", "2026-11-24T06:00:00.000000+00:00", plain)
            of_burr = json.dumps(state.serialize())

            def saved(serde: Serde = serde, fields: dict[str, Any] = fields) -> bytes:
                created_at = "2026-11-24T06:00:00.000000+00:00"
                return serde.encode("kvpersist", RECORD, "completed", created_at, serde.dumps(fields))

            def loaded(serde: Serde = serde, stored: bytes = stored) -> object:
                return serde.loads(*serde.decode("kvpersist", stored, "key", RECORD))

            def burr_saves(state: State[Any] = state) -> str:
                return json.dumps(state.serialize())

            def burr_loads(of_burr: str = of_burr) -> object:
                return State.deserialize(json.loads(of_burr))

            if len(way) == 0 or way.keys() == {"serializer"}:
                encoded = ratio(lambda serde=serde, fields=fields: serde.dumps(fields), burr_saves)
                aim = 0.06 if name in ("json", "msgpack") and fields is not SMALL else None
                row("serializers", f"encode, {what}", name, "json.dumps(state.serialize())", encoded, aim)
                encode.setdefault(name, []).append(f"{encoded.median:.3f}")
            save.setdefault(name, []).append(f"{ratio(saved, burr_saves).median:.3f}")
            load.setdefault(name, []).append(f"{ratio(loaded, burr_loads).median:.3f}")
            size.setdefault(name, []).append(f"{len(stored):,}")
    states = list(STATES)

    def burr_saves_dates() -> str:
        return json.dumps(State(WITH_DATES).serialize())

    dates = []
    for way in ("json", "msgpack", "pickle"):
        serde = Serde(WAYS[way])
        dates.append(f"{ratio(lambda serde=serde: serde.dumps(WITH_DATES), burr_saves_dates).median:.3f}")
    return "\n".join(
        [
            "Time to encode a state, where Burr's `json.dumps(state.serialize())` is 1:",
            "",
            *_table("serializer", states, encode),
            "",
            "Time to make a whole record (encode, compress, encrypt, sign, header and checksum), likewise:",
            "",
            *_table("written with", states, save),
            "",
            "Time to read one, where Burr's `State.deserialize(json.loads(text))` is 1:",
            "",
            *_table("written with", states, load),
            "",
            "Bytes of a record, header and all:",
            "",
            *_table("written with", states, size),
            "",
            "A chat of 60 messages with a `datetime` each, which Burr turns into text; time to encode, as above:",
            "",
            *_table("", ["json", "msgpack", "pickle"], {"a chat with dates": dates}),
        ]
    )


def main() -> None:
    """Print the tables, and write them where that was asked for."""
    heading("Serializers")
    measured = tables()
    print(f"\n{measured}")
    if "--write" in sys.argv:
        pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
        PAGE.write_text(pattern.sub(lambda _: f"{BEGIN}\n{measured}\n{END}", PAGE.read_text()))


if __name__ == "__main__":
    main()
