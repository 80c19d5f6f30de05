"""The contract of a backend."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from kvpersist import AsyncStore, ClosedError, InvalidKeyError, OptionError, Store
from kvpersist.steps import arun, run
from kvpersist.urls import open_backend

from .faces import Face, FaceFixtures
from .model import StoreMachine

NEWEST, OLDER = "9223372036854775801.6.answer", "9223372036854775802.5.ask"

HOSTILE_ORDER = sorted(
    [
        "o/a",
        "o/a!",
        "o/a-",
        "o/a-/x",
        "o/a.b",
        "o/a0",
        "o/a=2f",
        "o/aa/b/c",
        "o/b/c",
        "o/b-c/d",
        "o/b0/d",
        "p/=empty/q",
        "p/=none/q",
        # A record's name among names that begin with the same digits, as keys and as folders.
        f"d/{NEWEST}",
        f"d/{OLDER}",
        "d/9223372036",
        "d/9223372036/x",
        "d/9223372036-x",
        "d/92233720368547758015",
        "d/92233720368/x",
        "d/92233720368-x",
        "d/92233720368z/x",
        "d/9223372036854/x",
        "d/9223372036zzz/x",
        "d/set-aside/x",
    ]
)


class BackendContract(FaceFixtures):
    """Needs a fixture `url`, the URL of a new, empty store; `options`, `raw` and `flat_keys` are optional."""

    examples = 40
    """How many sequences of operations are held against a model; fewer for a slow store."""

    @pytest.fixture
    def store(self, face: Face, url: str, options: dict[str, Any]) -> Any:
        return face.store(url, **options)

    @pytest.fixture
    def raw(self) -> Any:
        """Access that bypasses the store under test: an object with ``read(key)`` and ``write(key, value)``."""
        return None

    # get, put, delete

    def test_an_absent_key_is_none(self, store: Any) -> None:
        assert store.get("a/b") is None

    @pytest.mark.parametrize("value", [b"", b"\0", b"x" * 3_000_000, bytes(range(256)) * 3, b'{"a": 1}\n'])
    def test_a_value_comes_back_as_it_went_in(self, store: Any, value: bytes) -> None:
        assert store.put("a/b", value) is True
        assert store.get("a/b") == value
        assert type(store.get("a/b")) is bytes

    def test_put_overwrites(self, store: Any) -> None:
        store.put("k", b"1")
        assert store.put("k", b"22") is True
        assert store.get("k") == b"22"

    def test_create_stores_only_where_the_key_is_absent(self, store: Any) -> None:
        assert store.put("a/k", b"1", mode="create") is True
        assert store.put("a/k", b"2", mode="create") is False
        assert store.get("a/k") == b"1"

    def test_create_has_one_winner(self, store: Any, face: Face) -> None:
        for attempt in range(5):
            key = f"race/{attempt}"
            won = face.at_once(store, "put", [(key, b"%d" % writer, "create") for writer in range(8)])
            assert sorted(won) == [False] * 7 + [True]
            assert store.get(key) == b"%d" % won.index(True)

    def test_replace_needs_the_old_value(self, store: Any) -> None:
        assert store.replace("a/k", b"0", b"1") is False
        assert store.get("a/k") is None
        store.put("a/k", b"1")
        assert store.replace("a/k", b"0", b"2") is False
        assert store.get("a/k") == b"1"
        assert store.replace("a/k", b"1", b"2") is True
        assert store.get("a/k") == b"2"

    def test_replace_by_nothing_removes(self, store: Any, face: Face) -> None:
        store.put("a/k", b"1")
        assert store.replace("a/k", b"0", None) is False
        assert store.replace("a/absent", b"0", None) is False
        assert store.get("a/k") == b"1"
        removed = face.at_once(store, "replace", [("a/k", b"1", None)] * 8)
        assert sorted(removed) == [False] * 7 + [True]
        assert store.scan().entries == []

    def test_replace_loses_no_update(self, store: Any, face: Face) -> None:
        store.put("a/k", b"old")
        won = face.at_once(store, "replace", [("a/k", b"old", b"%d" % writer) for writer in range(8)])
        assert sorted(won) == [False] * 7 + [True]
        assert store.get("a/k") == b"%d" % won.index(True)

    def test_delete(self, store: Any) -> None:
        for key in ("a/1", "a/2", "a/3", "b/1"):
            store.put(key, b"x")
        store.delete(["a/1", "a/3", "a/absent", "never/there"])
        assert _keys(store.scan()) == ["a/2", "b/1"]
        store.delete([])
        store.delete(["a/2", "b"])
        assert _keys(store.scan("", delimiter="/")) == ["b/"]
        assert store.put("a/1", b"y", mode="create") is True

    def test_deleting_more_than_a_page(self, store: Any) -> None:
        keys = [f"many/{number:04d}" for number in range(1100)]
        for key in keys:
            store.put(key, b"x")
        assert _keys(_all(store, "many/")) == keys
        store.delete(keys[1:])
        assert _keys(store.scan()) == keys[:1]

    # Several at once

    @pytest.fixture
    def ran(self, store: Any, face: Face) -> Any:
        """Runs an operation of the backend that the store does not show."""
        backend = (store._target if face.asynchronous else store).backend

        def ran(method: str, *arguments: Any) -> Any:
            body = getattr(backend, method)(*arguments)
            return face.loop.run_until_complete(arun(body)) if face.asynchronous else run(body)

        return ran

    def test_get_many(self, store: Any, ran: Any) -> None:
        for key in ("a/1", "a/2", "b"):
            store.put(key, key.encode())
        assert ran("get_many", ["b", "a/3", "a/1", "b"]) == [b"b", None, b"a/1", b"b"]
        assert ran("get_many", []) == []

    def test_put_many(self, store: Any, ran: Any) -> None:
        assert ran("put_many", [("a/1", b"1"), ("b", b"2" * 100_000), (f"c/{NEWEST}", b"")]) is True
        assert _all(store, "", values=True) == [("a/1", b"1"), ("b", b"2" * 100_000), (f"c/{NEWEST}", b"")]
        assert ran("put_many", [("a/2", b"3")]) is True
        assert store.get("a/2") == b"3"

    def test_put_many_stores_nothing_behind_a_key_that_is_taken(self, store: Any, ran: Any) -> None:
        store.put("a/1", b"old")
        assert ran("put_many", [("a/1", b"new"), ("a/2", b"new")]) is False
        assert _all(store, "", values=True) == [("a/1", b"old")]
        assert ran("put_many", [("a/3", b"new"), ("a/1", b"new"), ("a/4", b"new")]) is False
        assert store.get("a/1") == b"old"
        assert store.get("a/3") in (None, b"new")  # all or none, or one after the other
        assert store.get("a/4") is None

    def test_put_many_has_one_winner(self, store: Any, face: Face) -> None:
        target = store._target if face.asynchronous else store

        async def in_tasks(entries: list[Any]) -> list[Any]:
            return await asyncio.gather(*(arun(target.backend.put_many(each)) for each in entries))

        for attempt in range(5):
            entries = [
                [(f"race/{attempt}/part", b"%d" % writer), (f"race/{attempt}/record", b"%d" % writer)]
                for writer in range(8)
            ]
            if face.asynchronous:
                won = face.loop.run_until_complete(in_tasks(entries))
            else:
                with ThreadPoolExecutor(8) as pool:
                    won = list(pool.map(lambda each: run(target.backend.put_many(each)), entries))
            assert sorted(won) == [False] * 7 + [True]
            assert store.get(f"race/{attempt}/record") == b"%d" % won.index(True)
            assert store.get(f"race/{attempt}/part") == b"%d" % won.index(True)

    # scan

    def test_scan_is_in_bytewise_order(self, store: Any, flat_keys: bool) -> None:
        expected = [key for key in HOSTILE_ORDER if flat_keys or not _starts_another(key, HOSTILE_ORDER)]
        for key in reversed(expected):
            store.put(key, key.encode())
        for prefix in ["", "o/", "o/a", "o/a-", "o/b", "d/", "d/92", "d/9223372036854775801", "p/", "zz/"]:
            below = [key for key in expected if key.startswith(prefix)]
            assert _keys(store.scan(prefix)) == below
            assert _all(store, prefix, values=True) == [(key, key.encode()) for key in below]
            for limit in (1, 2, 3):
                assert _keys(_all(store, prefix, limit=limit)) == below
            for after in [*below[::3], prefix.rstrip("/") + "0"]:
                if after:
                    rest = [key for key in below if key > after]
                    assert _keys(_all(store, prefix, after=after, limit=2)) == rest

    def test_scan_rolls_up_children(self, store: Any, flat_keys: bool) -> None:
        expected = [key for key in HOSTILE_ORDER if flat_keys or not _starts_another(key, HOSTILE_ORDER)]
        for key in expected:
            store.put(key, b"x")
        for prefix in ["", "o/", "o/a", "o/b", "d/", "d/9223372036", "p/", "zz/"]:
            children = _rolled_up(expected, prefix)
            assert _keys(store.scan(prefix, delimiter="/")) == children
            for limit in (1, 2, 3):
                assert _keys(_all(store, prefix, delimiter="/", limit=limit)) == children

    def test_no_prefix_matches_half_a_segment_by_accident(self, store: Any) -> None:
        for key in ("n/p/app/1", "n/p/app1/1", "n/p2/app/1"):
            store.put(key, b"x")
        assert _keys(store.scan("n/p/app/")) == ["n/p/app/1"]
        assert _keys(store.scan("n/p/", delimiter="/")) == ["n/p/app/", "n/p/app1/"]
        assert _keys(store.scan("n/", delimiter="/")) == ["n/p/", "n/p2/"]

    def test_the_last_page_says_so(self, store: Any) -> None:
        for number in range(4):
            store.put(f"a/{number}", b"x")
        page = store.scan("a/", limit=3)
        assert len(page.entries) <= 3
        assert page.after == page.entries[-1][0]
        assert store.scan("a/").after is None
        assert store.scan("nothing/").after is None

    def test_the_newest_record_comes_first(self, store: Any) -> None:
        store.put(f"n/p/a/{OLDER}", b"older")
        store.put(f"n/p/a/{NEWEST}", b"newest")
        assert store.scan("n/p/a/", limit=1, values=True).entries == [(f"n/p/a/{NEWEST}", b"newest")]

    # The rest

    def test_any_sequence_of_operations_agrees_with_a_model(self, store: Any) -> None:
        machine: Any = lambda: StoreMachine(store)  # noqa: E731  hypothesis takes what makes one, too
        run_state_machine_as_test(
            machine,
            settings=settings(max_examples=self.examples, stateful_step_count=30, deadline=None, derandomize=True),
        )
        assert store.scan().entries == []

    def test_a_read_only_store_is_left_as_it_is(self, face: Face, url: str, options: dict[str, Any]) -> None:
        """A store that is not there reads as empty and is not made; one that is there is read."""

        def opened(*, read_only: bool) -> Any:
            backend = open_backend(url, asynchronous=face.asynchronous, options=options)
            backend.read_only = read_only
            return face.adopt((AsyncStore if face.asynchronous else Store)(backend))

        reader = opened(read_only=True)
        assert reader.get("a/b") is None
        assert reader.scan().entries == []
        assert reader.scan(delimiter="/", values=True).entries == []
        reader.close()
        opened(read_only=False).put("a/b", b"1")
        reader = opened(read_only=True)
        assert reader.get("a/b") == b"1"
        assert _keys(reader.scan()) == ["a/b"]

    def test_what_one_face_writes_the_other_reads(
        self, store: Any, other_face: Face, url: str, options: dict[str, Any]
    ) -> None:
        other = other_face.store(url, **options)
        store.put("a/b", b"1")
        assert other.get("a/b") == b"1"
        assert other.put("a/b", b"2", mode="create") is False
        assert _keys(other.scan("a/")) == ["a/b"]

    def test_raw_access_agrees(self, store: Any, raw: Any) -> None:
        if raw is None:
            return
        store.put(f"n/p/a/{NEWEST}", b"1")
        assert raw.read(f"n/p/a/{NEWEST}") == b"1"
        raw.write(f"n/p/a/{OLDER}", b"2")
        assert store.get(f"n/p/a/{OLDER}") == b"2"
        assert store.put(f"n/p/a/{OLDER}", b"3", mode="create") is False
        assert _keys(store.scan("n/p/a/")) == [f"n/p/a/{NEWEST}", f"n/p/a/{OLDER}"]

    def test_a_pickled_backend_is_the_same_store(self, face: Face, url: str, options: dict[str, Any]) -> None:
        backend = open_backend(url, asynchronous=face.asynchronous, options=options)
        kind = type(face.store(url, **options)._target if face.asynchronous else face.store(url, **options))
        face.adopt(kind(backend)).put("a/b", b"1")
        twin = face.adopt(kind(pickle.loads(pickle.dumps(backend))))
        assert twin.get("a/b") == b"1"

    @pytest.mark.parametrize(
        "key", ["", "/a", "a/", "a//b", "a/../b", "..", ".a/b", "A", "a b", "ä", "a\0", "a\n", "a.", "a./b", 7]
    )
    def test_what_is_no_key_is_refused(self, store: Any, key: Any) -> None:
        with pytest.raises(InvalidKeyError):
            store.get(key)
        with pytest.raises(InvalidKeyError):
            store.put(key, b"x")
        with pytest.raises(InvalidKeyError):
            store.replace(key, b"x", b"y")
        with pytest.raises(InvalidKeyError):
            store.delete([key])

    def test_what_makes_no_sense_is_refused(self, store: Any) -> None:
        with pytest.raises(OptionError, match="bytes"):
            store.put("a", "text")
        with pytest.raises(OptionError, match="'append'"):
            store.put("a", b"x", mode="append")
        with pytest.raises(OptionError, match="from 1 on"):
            store.scan("a", limit=0)
        assert store.scan("a", limit=2**70).entries == []
        with pytest.raises(OptionError, match="delimiter"):
            store.scan("a", delimiter=".")
        with pytest.raises(OptionError, match="list of keys"):
            store.delete("a")
        assert store.scan().entries == []

    def test_a_closed_store_says_so(self, store: Any) -> None:
        store.put("a", b"x")
        store.close()
        with pytest.raises(ClosedError):
            store.get("a")

    @pytest.fixture
    def flat_keys(self) -> bool:
        """Whether a key may be the start of another (``a`` and ``a/b``); False for file systems."""
        return True


def _keys(page: Any) -> list[str]:
    return [key for key, _ in (page if isinstance(page, list) else page.entries)]


def _all(store: Any, prefix: str, *, after: str | None = None, **options: Any) -> list[Any]:
    entries: list[Any] = []
    for _ in range(100_000):
        page = store.scan(prefix, after=after, **options)
        assert len(page.entries) <= options.get("limit", 1000)
        entries += page.entries
        after = page.after
        if after is None:
            return entries
    raise AssertionError("the cursor never ends")


def _rolled_up(keys: list[str], prefix: str) -> list[str]:
    def child(key: str) -> str:
        head, slash, _ = key[len(prefix) :].partition("/")
        return prefix + head + slash

    return [entry for entry, _ in itertools.groupby(child(key) for key in keys if key.startswith(prefix))]


def _starts_another(key: str, keys: list[str]) -> bool:
    return any(other.startswith(key + "/") for other in keys)
