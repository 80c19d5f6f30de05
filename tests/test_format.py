"""The specification is enough: a reader that was written from docs/format.md alone reads what kvpersist writes."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvpersist import Persister
from kvpersist.keys import decode, encode

READER = Path(__file__).parent / "format_reader.py"
GOLDEN = Path(__file__).parent / "golden" / "format1"
# No kvpersist, and so nothing of it by way of a dependency.
SCRIPT = (
    "import runpy, sys; sys.modules['kvpersist'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], {}, '__main__')"
)


def read(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", SCRIPT, str(READER), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def expected(persister: Persister, partition_key: str | None, app_id: str) -> list[dict[str, Any]]:
    """What kvpersist itself says of an app's records, as the reader prints it."""
    return [
        {
            "namespace": "kvpersist",
            "ids": [header.partition_key, header.app_id, header.sequence_id, header.position],
            "status": header.status,
            "created_at": header.created_at,
            "set_aside": header.set_aside,
            "bases": len(header.bases),
        }
        for header in persister.history(partition_key, app_id, include_set_aside=True)
    ]


ODD = ["a:b/c", "..", "Ab", "aB", "con", "", "=none", "ünï", "e\u0301", "\U0001f600", "\0", "x" * 60]


def test_odd_ids_and_tags(tmp_path: Path) -> None:
    with Persister.from_url(f"file://{tmp_path}/store") as persister:
        wanted = []
        for number, partition_key in enumerate([None, *ODD]):
            app_id = ODD[-1 - number % len(ODD)]
            state = {"n": number, "t": (1, 2), "when": dt.date(2026, 11, 24), "f": 0.1}
            persister.save(partition_key, app_id, number, ODD[number % len(ODD)], state, "failed")
            wanted += expected(persister, partition_key, app_id)
    found = read(tmp_path / "store")
    for record in found:
        assert record.pop("state") == {
            "n": record["ids"][2],
            "t": {"$kv": "tuple", "value": [1, 2]},
            "when": {"$kv": "date", "value": "2026-11-24"},
            "f": 0.1,
        }
    assert len(found) == len(ODD) + 1
    assert sorted(found, key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize("serde_kwargs", [{}, {"compression": "zstd"}, {"compression": "gzip"}], ids=str)
def test_compact_histories_set_aside_and_condemned(tmp_path: Path, serde_kwargs: dict[str, Any]) -> None:
    def state(step: int, way: str = "") -> dict[str, Any]:
        # Steps of a chat; around 0 too small to be compact.
        return {"chat": [f"{way}message {number} " + "word " * (number % 40) for number in range(step)]}

    url = f"file://{tmp_path}/store?durable=no"
    with Persister.from_url(url, on_conflict="rewind", serde_kwargs=serde_kwargs) as persister:
        for step in range(120):
            persister.save("p", "a", step, "ask", state(step), "completed")
        for step in range(100, 110):  # another way, whose parts have the names of others
            persister.save("p", "a", step, "answer" if step == 100 else "ask", state(step, "other "), "completed")
        persister.prune(keep_last=40)
        wanted = expected(persister, "p", "a")
    keys = {re.sub(r"\+/", "", path.relative_to(tmp_path).as_posix()) for path in tmp_path.rglob("*") if path.is_file()}
    for folder in ("!parts", "condemned", "set-aside"):
        assert any(f"/{folder}/" in key for key in keys), f"nothing in {folder}"
    assert any(re.search(r"/!parts/\d+\.\d+\.[0-9a-f]{32}$", key) for key in keys), "no part has a hash in its name"
    found = read(tmp_path / "store")
    for record in found:
        step = record["ids"][2]
        other = not record["set_aside"] and step >= 100
        assert record.pop("state") == state(step, "other " if other else "")
    assert found == wanted
    assert {record["bases"] for record in found} >= {2, 3}
    assert {record["set_aside"] for record in found} == {True, False}


def test_signatures(tmp_path: Path) -> None:
    key = "sixteen bytes or more"
    with Persister.from_url(f"file://{tmp_path}/store", serde_kwargs={"signing_key": key.encode()}) as persister:
        persister.save("p", "a", 1, "ask", {"text": "x" * 10_000}, "completed")
    (record,) = read(tmp_path / "store", key)
    assert record["state"] == {"text": "x" * 10_000}
    with pytest.raises(AssertionError, match="Malformed: signature"):
        read(tmp_path / "store", "another key that it is not")


def test_what_was_changed_is_not_read(tmp_path: Path) -> None:
    with Persister.from_url(f"file://{tmp_path}/store") as persister:
        persister.save("p", "a", 1, "ask", {"text": "a"}, "completed")
    (path,) = list(tmp_path.rglob("*.ask"))
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"text":"a"', b'"text":"b"'))
    with pytest.raises(AssertionError, match="checksum"):
        read(tmp_path / "store")
    path.unlink()
    moved = (
        tmp_path / "store" / "kvpersist" / "p" / "b" / path.relative_to(tmp_path / "store" / "kvpersist" / "p" / "a")
    )
    moved.parent.mkdir(parents=True)
    moved.write_bytes(good)
    with pytest.raises(AssertionError, match="Malformed: place"):
        read(tmp_path / "store")


def test_golden_files() -> None:
    import format_reader

    for name in ("json", "json-tags", "json-odd-ids", "json-no-partition", "zstd", "gzip", "signed", "msgpack"):
        header, _, _, payload = format_reader.split((GOLDEN / f"{name}.record").read_bytes())
        data = format_reader.undo(header, payload, None)
        if header["serializer"] == "json":
            assert type(json.loads(data)) is dict
    for text in [None, *ODD, "kvpersist", "CON", "lpt9", "lpt", "a.b"]:
        assert format_reader.escape(text) == encode(text)
        assert format_reader.unescape(encode(text)) == text == decode(encode(text))


def test_the_reader_owes_nothing_to_kvpersist() -> None:
    imported = re.findall(r"^ *(?:import|from) ([a-z_]+)", READER.read_text(), re.MULTILINE)
    assert set(imported) - set(sys.stdlib_module_names) == {"zstandard"}
