"""What a store holds, without Burr and without building anything."""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import decimal
import json
import math
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from burr.core import State
from conftest import STORES
from hypothesis import given
from hypothesis import strategies as st

from kvpersist import ALL, CorruptRecordError, InvalidIdError, InvalidKeyError, Persister, Store, StoreError
from kvpersist.inspection import Change, Inspection, diff
from kvpersist.steps import run


@dataclass
class Person:
    name: str


@pytest.fixture(params=["memory", "file", "sqlite", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return STORES[request.param](tmp_path)


@pytest.fixture
def persister(url: str) -> Iterator[Persister]:
    with Persister.from_url(url, on_conflict="rewind") as persister:
        yield persister


@pytest.fixture
def look(persister: Persister, url: str) -> Iterator[Callable[..., Any]]:
    """Calls a method of an inspection of the same store."""
    inspection = Inspection.from_url(url)
    yield lambda method, *arguments, **options: run(getattr(inspection, method)(*arguments, **options))
    run(inspection.close())


def save(persister: Persister, sequence_id: int, *, app: str = "a", status: Any = "completed", **state: Any) -> None:
    persister.save("p", app, sequence_id, f"step{sequence_id}", State(state), status)


def test_ids(persister: Persister, look: Callable[..., Any]) -> None:
    for partition in (None, "", "Zoë", "../x"):
        persister.save(partition, "a", 1, "step", State({}), "completed")
    for number in range(25):
        save(persister, 1, app=f"app{number:02}")
    found, after = [], None
    while True:
        page = look("partitions", after=after, limit=2)
        found += page.ids
        assert len(page.ids) <= 2
        after = page.after
        if after is None:
            break
    assert set(found) == {None, "", "Zoë", "../x", "p"}
    assert len(found) == 5
    assert look("apps", "p", limit=10).ids == [f"app{number:02}" for number in range(10)]
    assert look("apps", "p", prefix="app1").ids == [f"app{number}" for number in range(10, 20)]
    assert look("apps", "absent").ids == []


def test_headers(persister: Persister, look: Callable[..., Any]) -> None:
    for number in range(200):
        save(persister, number, text="x" * number * 100, status="failed" if number == 150 else "completed")
    page = look("headers", "p", "a", limit=10)
    assert [each.header.sequence_id for each in page.entries] == [*range(199, 189, -1)]
    assert [each.header.sequence_id for each in look("headers", "p", "a", after=page.after, limit=2).entries] == [
        189,
        188,
    ]
    page = look("headers", "p", "a", before_sequence_id=151, limit=2)
    assert [(each.record.sequence_id, each.header.status) for each in page.entries] == [
        (150, "failed"),
        (149, "completed"),
    ]
    assert look("headers", "p", "a", before_sequence_id=1).entries[0].record.sequence_id == 0
    assert look("headers", "p", "a", before_sequence_id=2**63 + 5, limit=1).entries[0].record.sequence_id == 199
    with pytest.raises(InvalidIdError, match="no record before"):
        look("headers", "p", "a", before_sequence_id=0)
    persister.rewind("p", "a", 197)
    assert [each.record.sequence_id for each in look("headers", "p", "a", limit=1).entries] == [197]
    listed = look("headers", "p", "a", include_set_aside=True, limit=1000).entries
    assert [each.record.sequence_id for each in listed if each.set_aside] == [199, 198]
    aside = next(each for each in listed if each.set_aside)
    shown = look("record_at", aside.key)
    assert shown.header.set_aside
    assert shown.state == {"text": "x" * 19900}


def test_a_record(persister: Persister, look: Callable[..., Any]) -> None:
    save(persister, 1, n=1)
    save(persister, 2, n=2, text="long " * 10_000)
    save(persister, 3, n=3, text="long " * 10_000 + "er", status="failed")
    assert look("record", "p", "a").header.status == "failed"
    assert look("record", "p", "a", 2).state == {"n": 2, "text": "long " * 10_000}
    assert look("record", "p", "a", 2, "step2").state["n"] == 2
    assert look("record", "p", "a", 2, "other") is None
    assert look("record", "p", "a", 4) is None
    assert look("record", "p", "absent") is None
    with pytest.raises(InvalidKeyError, match="not below"):
        look("record_at", "other/p/a/1")


def test_the_same_tree_whatever_the_serializer(persister: Persister, look: Callable[..., Any], url: str) -> None:
    state = {
        "when": dt.datetime(2026, 11, 24, 6, 23, tzinfo=dt.timezone.utc),
        "bytes": b"\0\xff",
        "tuple": (1, (2.0, "x")),
        "price": decimal.Decimal("1.50"),
        "id": uuid.UUID(int=5),
        "keys": {1: "one", (2, 3): {"two"}},
        "infinite": [math.inf, -math.inf],
        "big": 2**80,
        "person": Person("Zoë"),
    }
    for serializer in ("json", "msgpack"):
        with Persister.from_url(url, serde_kwargs={"serializer": serializer, "classes": [Person]}) as other:
            other.save("p", serializer, 1, "step", State(state), "completed")
    shown = look("record", "p", "json")
    assert shown.note is None
    assert shown.state["when"] == {"$kv": "datetime", "value": "2026-11-24T06:23:00+00:00"}
    assert shown.state["person"]["$kv"] == "dataclass"
    assert json.loads(json.dumps(shown.state)) == shown.state
    assert diff(shown.state, look("record", "p", "msgpack").state) == []


def test_what_is_not_opened(persister: Persister, look: Callable[..., Any], url: str) -> None:
    key = b"k" * 32
    for name, options in (("pickle", {"serializer": "pickle"}), ("secret", {"encryption_key": key})):
        with Persister.from_url(url, serde_kwargs=options) as other:
            other.save("p", name, 1, "step", State({"n": "do not tell"}), "completed")
        shown = look("record", "p", name)
        assert shown.header.position == "step"
        assert shown.state is None
        assert name.removesuffix("ret") in shown.note or "encrypted" in shown.note
    for app, options, state, note in (
        ("secret", {"encryption_key": key}, {"n": "do not tell"}, "None"),
        ("pickle", {"allow_unsafe": ["pickle"]}, None, "not opened"),
    ):
        inspection = Inspection.from_url(url, serde_kwargs=options)
        opened = run(inspection.record("p", app))
        assert opened is not None
        assert opened.state == state
        assert note in str(opened.note)
        run(inspection.close())


def test_a_record_that_is_deleted_after_it_was_listed(persister: Persister, look: Callable[..., Any]) -> None:
    for number in range(2):
        save(persister, number, text=f"{number} " * 10_000)
    listed = look("headers", "p", "a").entries[0]
    assert listed.header.bases
    persister.delete_app("p", "a")
    assert look("shown", listed) is None


def test_a_broken_record_hides_no_other(persister: Persister, look: Callable[..., Any], url: str) -> None:
    for number in range(3):
        save(persister, number, n=number)
    key = look("headers", "p", "a").entries[1].key
    with Store.from_url(url) as store:
        value = store.get(key)
        assert value is not None
        store.put(key, value[:-1])
    listed = look("headers", "p", "a").entries
    assert [each.header is None for each in listed] == [False, True, False]
    assert "checksum" in listed[1].error
    assert look("stats").unreadable == 1
    with pytest.raises(CorruptRecordError):
        look("record", "p", "a", 1)


def test_stats(persister: Persister, look: Callable[..., Any], url: str) -> None:
    for number in range(20):
        save(persister, number, text="some text " * 1000 * number, status="failed" if number == 3 else "completed")
        persister.save(None, f"small{number}", 1, "step", State({}), "completed")
    persister.rewind("p", "a", 17)
    seen = []
    stats = look("stats", progress=lambda so_far: seen.append(so_far.apps))
    assert (stats.partitions, stats.apps, stats.records, stats.failed, stats.set_aside) == (2, 21, 38, 1, 2)
    assert stats.parts > 0
    assert seen == [*range(1, 22)]
    with Store.from_url(url) as store:
        everything = store.scan("kvpersist/", values=True)
        assert everything.after is None
        assert stats.size == sum(len(value or b"") for _, value in everything.entries)
    assert stats.largest[0].app_id == "a"
    assert len(stats.largest) == 20
    assert stats.largest[0].first < stats.largest[0].last
    assert stats.largest[0].per_record == stats.largest[0].size / 18
    assert look("stats", None).apps == 20
    assert look("stats", "p", "a").records == 18
    assert look("stats", "p", "absent").apps == 0
    with pytest.raises(InvalidIdError):
        look("stats", ALL, "a")


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_nothing_is_made(scheme: str, tmp_path: Path) -> None:
    inspection = Inspection.from_url(f"{scheme}://{tmp_path}/absent")
    with contextlib.suppress(StoreError):
        assert run(inspection.partitions()).ids == []
    run(inspection.close())
    assert [*tmp_path.iterdir()] == []


def test_neither_burr_nor_what_a_record_names_is_imported(tmp_path: Path) -> None:
    module = tmp_path / "of_the_user.py"
    module.write_text("from dataclasses import dataclass\n@dataclass\nclass Thing:\n    n: int\n")
    url = f"sqlite://{tmp_path}/state.db"
    writing = """if True:
        import sys
        from kvpersist import Persister
        from burr.core import State
        import of_the_user
        for serializer, options in (("json", {"classes": [of_the_user.Thing]}), ("pickle", {})):
            with Persister.from_url(sys.argv[1], serde_kwargs={"serializer": serializer, **options}) as persister:
                persister.save("p", serializer, 1, "s", State({"t": of_the_user.Thing(1)}), "completed")
    """
    reading = """if True:
        import sys
        from kvpersist.inspection import Inspection
        from kvpersist.steps import run
        inspection = Inspection.from_url(sys.argv[1])
        for app in run(inspection.apps("p")).ids:
            assert run(inspection.record("p", app)).header.app_id == app
        assert run(inspection.stats()).records == 2
        assert len(run(inspection.headers("p", "json")).entries) == 1
        assert not {"burr", "of_the_user"} & set(sys.modules)
    """
    for code in (writing, reading):
        subprocess.run([sys.executable, "-c", code, url], check=True, cwd=tmp_path, timeout=60)


# Differences

TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, "a", "$kv", "a.b"]),
    lambda below: (
        st.lists(below, max_size=5) | st.dictionaries(st.sampled_from(["a", "b", "a.b", ""]), below, max_size=4)
    ),
    max_leaves=20,
)


def test_differences() -> None:
    before = {"chat": [{"role": "user", "text": "hi"}, {"role": "ai", "text": "yo"}], "n": 1, "gone": [1]}
    after = copy.deepcopy(before)
    del after["gone"]
    after["n"] = True  # type: ignore[assignment]
    after["chat"].insert(1, {"role": "user", "text": "new"})  # type: ignore[attr-defined]
    after["chat"][2]["text"] = "yo!"  # type: ignore[index]
    after["a key"] = 1.0  # type: ignore[assignment]
    assert diff(before, after) == [
        Change("chat[1].role", "changed", "ai", "user"),
        Change("chat[1].text", "changed", "yo", "new"),
        Change("chat[2]", "added", None, {"role": "ai", "text": "yo!"}),
        Change("n", "changed", 1, True),
        Change("gone", "removed", [1], None),
        Change('["a key"]', "added", None, 1.0),
    ]
    assert diff([1, 2, 3, 4], [1, 3, 4, 5]) == [Change("[1]", "removed", 2, None), Change("[3]", "added", None, 5)]
    assert diff([*range(5000)], [*range(5000), 5000]) == [Change("[5000]", "added", None, 5000)]
    assert diff(1, 1.0) == [Change("", "changed", 1, 1.0)]


@given(TREES, TREES)
def test_there_is_a_difference_where_there_is_one(before: Any, after: Any) -> None:
    same = json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
    assert (diff(before, after) == []) is same
    assert diff(before, copy.deepcopy(before)) == []
    # Each change can be found at its path, on the side that it is told of.
    mirrored = {"added": "removed", "removed": "added", "changed": "changed"}
    kinds = sorted(mirrored[change.kind] for change in diff(after, before))
    assert bool(kinds) is not same
