"""The contract of a persister on a store: what Burr asks for, and what this library promises beyond it."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import os
import pickle
import random
import traceback
import unicodedata
from typing import Any

import pytest
from burr.core import State

from kvpersist import ClosedError, ConflictError, CorruptRecordError, InvalidIdError, OptionError, SerializationError

from .faces import Face, FaceFixtures

HOSTILE_IDS = [
    "",
    "/",
    "a/b",
    "a",
    "A",
    "a:b",
    "a b",
    "..",
    ".",
    "../..",
    "a\\b",
    "a%2fb",
    "a=2fb",
    "=none",
    "=empty",
    "None",
    "null",
    "con",
    "a\0b",
    "a\nb",
    "é",
    unicodedata.normalize("NFD", "é"),
    "日本語",
    "😀",
    "'; DROP TABLE kvpersist; --",
    "*",
    "a*",
    "{a}",
    "-",
    "set-aside",
    "0",
    "9223372036854775807.0.a",
]


class PersisterContract(FaceFixtures):
    """Needs a fixture `url`, the URL of a new, empty store."""

    @pytest.fixture
    def persister(self, face: Face, url: str, options: dict[str, Any]) -> Any:
        return face.persister(url, **options)

    # What Burr asks for

    def test_nothing_stored_is_none(self, persister: Any) -> None:
        assert persister.load("p", "a") is None
        assert persister.load("p", "a", 3) is None
        assert persister.load("p", None) is None
        assert persister.list_app_ids("p") == []
        assert list(persister.history("p", "a")) == []

    def test_what_was_saved_is_loaded(self, persister: Any) -> None:
        before = dt.datetime.now(dt.timezone.utc)
        state: State[Any] = State({"chat": [{"role": "user", "content": "hi"}], "n": 1, "x": None})
        persister.save("p", "a", 7, "ask", state, "completed")
        loaded = persister.load("p", "a")
        assert isinstance(loaded["state"], State)
        assert loaded["state"].get_all() == state.get_all()
        assert {**loaded, "state": None, "created_at": None} == {
            "partition_key": "p",
            "app_id": "a",
            "sequence_id": 7,
            "position": "ask",
            "status": "completed",
            "state": None,
            "created_at": None,
        }
        created_at = dt.datetime.fromisoformat(loaded["created_at"])
        assert before <= created_at <= dt.datetime.now(dt.timezone.utc)

    def test_the_latest_is_the_highest_sequence_id(self, persister: Any) -> None:
        for number in (5, 3, 11, 10, 9, 2):
            persister.save("p", "a", number, "step", _state(number), "completed")
        assert persister.load("p", "a")["sequence_id"] == 11
        assert persister.load("p", "a", 3)["state"]["n"] == 3
        assert persister.load("p", "a", 4) is None

    def test_the_latest_is_the_latest_completed(self, persister: Any) -> None:
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        for number in range(2, 9):
            persister.save("p", "a", number, "fails", _state(number), "failed")
        assert persister.load("p", "a")["sequence_id"] == 1
        assert persister.load("p", "a", include_failed=True)["sequence_id"] == 8
        assert persister.load("p", "a", 2)["status"] == "failed"
        persister.save("p", "only-failed", 0, "fails", _state(0), "failed")
        assert persister.load("p", "only-failed") is None

    @pytest.mark.parametrize("sequence_id", [0, 1, 2**31, 2**53 + 1, 2**63 - 1])
    def test_sequence_ids(self, persister: Any, sequence_id: int) -> None:
        persister.save("p", "a", sequence_id, "ask", _state(1), "completed")
        assert persister.load("p", "a")["sequence_id"] == sequence_id
        assert persister.load("p", "a", sequence_id)["sequence_id"] == sequence_id

    def test_no_app_id_asks_for_the_last_written_of_the_partition(self, persister: Any) -> None:
        persister.save("p", "z", 5, "ask", _state("z"), "completed")
        persister.save("p", "a", 1, "ask", _state("a"), "completed")
        persister.save("q", "b", 1, "ask", _state("b"), "completed")
        persister.save("p", "c", 1, "ask", _state("c"), "failed")
        assert persister.load("p", None)["app_id"] == "a"
        persister.save("p", "z", 6, "ask", _state("z"), "completed")
        assert persister.load("p", None)["app_id"] == "z"

    def test_the_absent_partition_is_not_the_empty_one(self, persister: Any) -> None:
        persister.save(None, "a", 1, "ask", _state("none"), "completed")
        persister.save("", "a", 1, "ask", _state("empty"), "completed")
        assert persister.load(None, "a")["state"]["n"] == "none"
        assert persister.load(None, "a")["partition_key"] is None
        assert persister.load("", "a")["partition_key"] == ""
        assert persister.list_app_ids(None) == ["a"]
        assert set(persister.list_partitions()) == {None, ""}

    def test_hostile_ids_stay_apart(self, persister: Any) -> None:
        for number, each in enumerate(HOSTILE_IDS):
            persister.save(each, "app", 1, "ask", _state(number), "completed")
            persister.save("apps", each, 1, each, _state(number), "completed")
        for number, each in enumerate(HOSTILE_IDS):
            assert persister.load(each, "app")["state"]["n"] == number
            loaded = persister.load("apps", each)
            assert (loaded["state"]["n"], loaded["app_id"], loaded["position"]) == (number, each, each)
            assert persister.list_app_ids(each) == ["app"]
        assert sorted(persister.list_app_ids("apps")) == sorted(HOSTILE_IDS)

    def test_an_enum_that_is_text_is_that_text(self, persister: Any) -> None:
        class Name(str, enum.Enum):
            CHAT = "chat"

        assert persister.load(Name.CHAT, Name.CHAT) is None
        persister.save("chat", "chat", 1, "chat", _state(1), "completed")
        assert persister.load(Name.CHAT, Name.CHAT)["sequence_id"] == 1
        persister.save("chat", "chat", 1, Name.CHAT, _state(1), "completed")
        assert persister.list_partitions() == ["chat"]

    def test_a_state_changed_later_changes_no_history(self, persister: Any) -> None:
        chat = [1]
        persister.save("p", "a", 1, "ask", State({"chat": chat}), "completed")
        chat.append(2)
        persister.load("p", "a")["state"]["chat"].append(3)
        assert persister.load("p", "a")["state"]["chat"] == [1]

    def test_it_is_a_true_burr_persister(self, face: Face, persister: Any) -> None:
        from burr.core import persistence

        kind = persistence.AsyncBaseStatePersister if face.asynchronous else persistence.BaseStatePersister
        target = persister._target if face.asynchronous else persister
        assert isinstance(target, kind)
        assert bool(target)
        assert persister.is_async() is face.asynchronous
        assert persister.is_initialized() is True
        persister.initialize()
        persister.initialize()

    # Conflicts

    def test_the_same_again_is_fine(self, persister: Any) -> None:
        for _ in range(3):
            persister.save("p", "a", 1, "ask", _state({1, 2, 3}), "completed")
        assert len(list(persister.history("p", "a"))) == 1

    def test_a_failed_record_gives_way_to_the_next_try(self, persister: Any) -> None:
        persister.save("p", "a", 1, "ask", _state(0), "failed")
        persister.save("p", "a", 1, "ask", _state(1), "failed")
        assert persister.load("p", "a", 1)["state"]["n"] == 1
        persister.save("p", "a", 1, "ask", _state(2), "completed")
        assert persister.load("p", "a")["state"]["n"] == 2

    @pytest.mark.parametrize("status", ["completed", "failed"])
    def test_anything_else_is_a_conflict(self, persister: Any, status: str) -> None:
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        with pytest.raises(ConflictError, match="sequence id 1, position 'ask'"):
            persister.save("p", "a", 1, "ask", _state(2), status)
        assert persister.load("p", "a", 1)["state"]["n"] == 1

    def test_overwrite_lets_the_last_writer_win(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, on_conflict="overwrite", **options)
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        persister.save("p", "a", 1, "ask", _state(2), "completed")
        assert persister.load("p", "a")["state"]["n"] == 2

    @pytest.mark.parametrize("position", ["step", "elsewhere"])
    @pytest.mark.parametrize("fresh", [True, False])
    def test_rewind_sets_the_old_way_aside(
        self, face: Face, url: str, options: dict[str, Any], position: str, fresh: bool
    ) -> None:
        persister = face.persister(url, on_conflict="rewind", **options)
        for number in range(11):
            persister.save("p", "a", number, "step", _state(number), "completed")
        if fresh:
            persister = face.persister(url, on_conflict="rewind", **options)
        assert persister.load("p", "a", 5)["sequence_id"] == 5
        persister.save("p", "a", 6, position, _state("new"), "completed")
        persister.save("p", "a", 6, position, _state("new"), "completed")
        assert persister.load("p", "a")["state"]["n"] == "new"
        persister.save("p", "a", 7, "step", _state("newer"), "completed")
        assert persister.load("p", "a")["state"]["n"] == "newer"
        live = [header.sequence_id for header in persister.history("p", "a")]
        assert live == [7, 6, 5, 4, 3, 2, 1, 0]
        everything = list(persister.history("p", "a", include_set_aside=True))
        assert [header.sequence_id for header in everything if header.set_aside] == [10, 9, 8, 7, 6]
        assert persister.list_app_ids("p") == ["a"]

    def test_rewind_keeps_a_record_that_comes_out_the_same(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, on_conflict="rewind", **options)
        for number in range(4):
            persister.save("p", "a", number, "step", _state(number), "completed")
        persister.save("p", "a", 1, "step", _state(1), "completed")
        assert persister.load("p", "a")["sequence_id"] == 1
        persister.save("p", "a", 2, "step", _state("other"), "failed")
        persister.save("p", "a", 2, "step", _state("right"), "completed")
        assert persister.load("p", "a")["state"]["n"] == "right"
        aside = [header for header in persister.history("p", "a", include_set_aside=True) if header.set_aside]
        assert [header.sequence_id for header in aside] == [3, 2]

    def test_rewind_on_request(self, persister: Any) -> None:
        for number in range(4):
            persister.save("p", "a", number, "step", _state(number), "completed")
        assert persister.rewind("p", "a", 1) == 2
        assert persister.load("p", "a")["sequence_id"] == 1
        assert persister.rewind("p", "a", 1) == 0
        with pytest.raises(InvalidIdError, match="no record with the sequence id 7"):
            persister.rewind("p", "a", 7)

    def test_fork(self, face: Face, persister: Any, url: str, options: dict[str, Any]) -> None:
        for number in range(4):
            text = "some text " * 1000 * number
            persister.save("p", "a", number, "step", _state(text), "failed" if number == 2 else "completed")
        persister.fork("p", "a", 3, "b")
        loaded = persister.load("p", "b")
        assert (loaded["sequence_id"], loaded["position"], loaded["state"]["n"]) == (3, "step", "some text " * 3000)
        persister.fork("p", "a", 2, "c")
        assert persister.load("p", "c") is None
        assert persister.load("p", "c", 2)["status"] == "failed"
        persister.save("p", "b", 4, "step", _state("on"), "completed")
        assert [header.sequence_id for header in persister.history("p", "b")] == [4, 3]
        assert persister.verify().ok
        with pytest.raises(ConflictError, match="has records already"):
            persister.fork("p", "a", 1, "b")
        with pytest.raises(InvalidIdError, match="no record with the sequence id 9"):
            persister.fork("p", "a", 9, "d")
        assert persister.list_app_ids("p") == ["a", "b", "c"]
        pickling = face.persister(url, serde_kwargs={"serializer": "pickle"}, **options)
        pickling.save("p", "pickled", 1, "step", _state({1, 2}), "completed")
        persister.fork("p", "pickled", 1, "forked")  # without opening it
        assert pickling.load("p", "forked")["state"]["n"] == {1, 2}

    def test_rewind_past_what_another_worker_wrote(self, face: Face, url: str, options: dict[str, Any]) -> None:
        one = face.persister(url, on_conflict="rewind", **options)
        other = face.persister(url, on_conflict="rewind", **options)
        one.save("p", "a", 5, "step", _state(5), "completed")
        for number in (6, 7, 8):
            other.save("p", "a", number, "step", _state("other"), "completed")
        one.save("p", "a", 6, "step", _state("one"), "completed")
        assert persister_ids(one) == [6, 5]
        assert one.load("p", "a")["state"]["n"] == "one"
        everything = [header.sequence_id for header in one.history("p", "a", include_set_aside=True)]
        assert everything == [6, 5, 8, 7, 6]

    def test_rewind_of_more_than_a_page(self, persister: Any) -> None:
        for number in range(150):
            persister.save("p", "a", number, "step", _state(number), "completed")
        assert persister.rewind("p", "a", 9) == 140
        assert persister_ids(persister) == list(range(9, -1, -1))
        assert len(list(persister.history("p", "a", include_set_aside=True))) == 150

    def test_a_rewind_that_races_with_saves_loses_nothing(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, on_conflict="rewind", **options)
        for attempt in range(5):
            saves = [("p", f"a{attempt}", 1, "step", _state(f"by {writer}"), "completed") for writer in range(8)]
            assert face.at_once(persister, "save", saves) == [None] * 8
            store = face.store(url, **options)
            kept = [value for _, value in store.scan(f"kvpersist/p/a{attempt}/", values=True).entries]
            for writer in range(8):  # live or set aside, in one place at least
                assert any(b"by %d" % writer in value for value in kept)

    def test_one_winner_of_a_race(self, persister: Any, face: Face) -> None:
        saves = [("p", "a", 1, "ask", _state(writer), "completed") for writer in range(8)]
        results = face.at_once(persister, "save", saves)
        assert results.count(None) == 1
        assert sum(isinstance(result, ConflictError) for result in results) == 7
        assert persister.load("p", "a")["state"]["n"] == results.index(None)

    # Beyond the contract

    def test_several_positions_at_one_sequence_id(self, persister: Any) -> None:
        persister.save("p", "a", 1, "b", _state("b"), "completed")
        persister.save("p", "a", 1, "c", _state("c"), "completed")
        persister.save("p", "a", 1, "a", _state("a"), "failed")
        assert persister.load("p", "a")["position"] == persister.load("p", "a", 1)["position"] == "b"

    def test_history_is_newest_first(self, persister: Any) -> None:
        for number in range(150):
            persister.save("p", "a", number, "step", _state(number), "failed" if number % 7 == 0 else "completed")
        headers = list(persister.history("p", "a"))
        assert [header.sequence_id for header in headers] == list(range(149, -1, -1))
        assert headers[2].status == "failed"
        assert headers[0].position == "step"
        assert headers[0].size > 0

    def test_delete_app(self, persister: Any) -> None:
        for number in range(3):
            persister.save("p", "a", number, "step", _state(number), "completed")
            persister.save("p", "ab", number, "step", _state(number), "completed")
        assert persister.delete_app("p", "a") == 3
        assert persister.delete_app("p", "a") == 0
        assert persister.load("p", "a") is None
        assert persister.list_app_ids("p") == ["ab"]
        assert persister.load("p", "ab")["sequence_id"] == 2

    def test_prune_keeps_the_last(self, persister: Any) -> None:
        for app in ("a", "b"):
            for number in range(100):
                status = "failed" if number in (97, 99) else "completed"
                persister.save("p", app, number, "step", _state(number), status)
        assert persister.prune("p", "a", keep_last=2) == 96
        assert [header.sequence_id for header in persister.history("p", "a")] == [99, 98, 97, 96]
        assert persister.prune(keep_last=1) == 2 + 98
        assert persister.load("p", "b")["sequence_id"] == 98

    def test_prune_spares_what_was_set_aside_unless_asked(self, persister: Any) -> None:
        for number in range(10):
            persister.save("p", "a", number, "step", _state(number), "completed")
        persister.rewind("p", "a", 4)
        assert persister.prune(keep_last=2) == 3
        assert len(list(persister.history("p", "a", include_set_aside=True))) == 2 + 5
        assert persister.prune(older_than=dt.timedelta(hours=1), include_set_aside=True) == 0
        assert persister.prune(keep_last=2, include_set_aside=True) == 5
        assert persister_ids(persister) == [4, 3]

    def test_the_list_of_apps_has_more_than_a_page(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, **options)
        persister.save("p", "template", 1, "ask", _state(1), "completed")
        store = face.store(url, **options)
        ((key, value),) = store.scan(values=True).entries
        for number in range(1100):
            store.put(key.replace("template", f"app{number:04d}"), value)
        assert persister.list_app_ids("p") == [*(f"app{number:04d}" for number in range(1100)), "template"]

    def test_prune_by_age(self, persister: Any) -> None:
        for number in range(3):
            persister.save("p", "a", number, "step", _state(number), "completed")
        assert persister.prune(older_than=dt.timedelta(hours=1)) == 0
        middle = dt.datetime.fromisoformat(persister.load("p", "a", 1)["created_at"])
        assert persister.prune(older_than=middle) == 1
        assert persister.prune(older_than=dt.timedelta(0)) == 1
        assert persister.load("p", "a")["sequence_id"] == 2
        assert persister.prune(keep_last=0, older_than=dt.timedelta(0)) == 1
        assert persister.load("p", "a") is None

    def test_namespaces_stay_apart(self, face: Face, url: str, options: dict[str, Any]) -> None:
        one = face.persister(url, namespace="one", **options)
        two = face.persister(url, namespace="one/two", **options)
        one.save("p", "a", 1, "ask", _state(1), "completed")
        assert two.load("p", "a") is None
        assert two.list_partitions() == []
        assert two.prune(keep_last=1) == 0

    # Compact histories

    def test_a_history_grows_with_what_changed(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, **options)
        chats = _chats(60)
        for number, chat in enumerate(chats):
            persister.save("p", "a", number, "step", State({"chat": chat}), "completed")
        headers = list(persister.history("p", "a"))
        assert [header.sequence_id for header in headers] == list(range(59, -1, -1))
        assert all(header.size < 2000 for header in headers if header.bases)
        assert sum(bool(header.bases) for header in headers) > 50
        fresh = face.persister(url, **options)
        for number, chat in enumerate(chats):
            assert fresh.load("p", "a", number)["state"]["chat"] == chat
        assert fresh.load("p", "a")["state"]["chat"] == chats[-1]
        assert fresh.load("p", None)["sequence_id"] == 59
        assert fresh.verify().ok

    def test_a_compact_history_that_goes_back(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, on_conflict="rewind", **options)
        old, new = _chats(30), _chats(30, "another way")
        for number, chat in enumerate(old):
            persister.save("p", "a", number, "step", State({"chat": chat}), "completed")
        for number in range(10, 30):
            persister.save("p", "a", number, "step", State({"chat": new[number]}), "completed")
        fresh = face.persister(url, **options)
        for number in range(30):
            assert fresh.load("p", "a", number)["state"]["chat"] == (old if number < 10 else new)[number]
        report = fresh.verify()
        assert report.ok
        assert report.records == 50
        assert not report.unreachable_parts

    def test_what_no_record_needs_is_collected(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, **options)
        chats = _chats(30)
        for number, chat in enumerate(chats):
            persister.save("p", "a", number, "step", State({"chat": chat}), "completed")
        assert persister.prune(keep_last=1) == 29
        assert persister.sweep() == 0  # not yet
        unreachable = persister.verify().unreachable_parts
        assert persister.sweep(grace=dt.timedelta(0)) == len(unreachable) > 0
        report = face.persister(url, **options).verify()
        assert report.ok
        assert not report.unreachable_parts
        assert persister.load("p", "a")["state"]["chat"] == chats[-1]
        assert persister.delete_app("p", "a") == 1
        assert face.store(url, **options).scan().entries == []

    def test_writers_of_large_states_race(self, persister: Any, face: Face) -> None:
        chats = _chats(20)
        for number in (0, 7, 49):
            saves: list[Any] = [
                ("p", "a", number, "step", State({"chat": chats[10 + writer]}), "completed") for writer in range(8)
            ]
            results = face.at_once(persister, "save", saves)
            assert results.count(None) == 1
            assert sum(isinstance(result, ConflictError) for result in results) == 7
            winner = results.index(None)
            assert persister.load("p", "a", number)["state"]["chat"] == chats[10 + winner]
            again = face.at_once(persister, "save", [saves[winner]] * 4)
            assert again == [None] * 4
        assert persister.verify().ok

    # Sharing, copying, closing

    def test_many_writers_on_one_persister(self, persister: Any, face: Face) -> None:
        saves = [
            ("p", f"app{writer}", number, "step", _state(number), "completed")
            for number in range(20)
            for writer in range(8)
        ]
        assert face.at_once(persister, "save", saves) == [None] * 160
        for writer in range(8):
            assert [header.sequence_id for header in persister.history("p", f"app{writer}")] == list(range(19, -1, -1))

    def test_copies_share_the_store(self, persister: Any) -> None:
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        twin = persister.copy()
        assert twin.load("p", "a")["sequence_id"] == 1
        twin.cleanup()
        assert persister.load("p", "a")["sequence_id"] == 1

    def test_it_can_be_pickled(self, face: Face, persister: Any) -> None:
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        target = persister._target if face.asynchronous else persister
        twin = face.adopt(pickle.loads(pickle.dumps(target)))
        assert twin.load("p", "a")["sequence_id"] == 1

    def test_a_second_event_loop(self, face: Face, persister: Any) -> None:
        if not face.asynchronous:
            return
        persister.save("p", "a", 1, "ask", _state(1), "completed")

        async def elsewhere() -> Any:
            await persister._target.save("p", "a", 2, "ask", _state(2), "completed")
            return await asyncio.gather(*(persister._target.load("p", "a") for _ in range(4)))

        for _ in range(2):
            assert [loaded["sequence_id"] for loaded in asyncio.run(elsewhere())] == [2] * 4
        assert persister.load("p", "a")["sequence_id"] == 2

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_fork(self, face: Face, persister: Any, capfd: Any) -> None:
        if not hasattr(os, "fork"):
            return
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if face.asynchronous:
                    loaded = asyncio.run(persister._target.load("p", "a"))
                    asyncio.run(persister._target.save("p", "b", 1, "ask", _state(1), "completed"))
                else:
                    loaded = persister.load("p", "a")
                    persister.save("p", "b", 1, "ask", _state(1), "completed")
                status = 0 if loaded["sequence_id"] == 1 else 2
            except BaseException:  # noqa: BLE001  told by the exit status
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, capfd.readouterr().err
        assert persister.load("p", "a")["sequence_id"] == 1
        persister.save("p", "a", 2, "ask", _state(2), "completed")
        if not persister._history.backend.url.startswith("memory:"):  # which each process has for itself
            assert persister.load("p", "b")["sequence_id"] == 1

    def test_after_cleanup_it_says_so(self, persister: Any) -> None:
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        persister.cleanup()
        persister.cleanup()
        with pytest.raises(ClosedError, match="cleaned up"):
            persister.load("p", "a")
        with pytest.raises(ClosedError, match="cleaned up"):
            persister.copy()

    # Bad input: a clear error, and nothing written

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("p", "a", -1, "ask"), "from 0 to"),
            (("p", "a", 2**63, "ask"), "from 0 to"),
            (("p", "a", True, "ask"), "must be an int"),
            (("p", "a", "1", "ask"), "must be an int"),
            (("p", "a", 1.0, "ask"), "must be an int"),
            (("p", None, 1, "ask"), "app id must be a str"),
            (("p", ["a"], 1, "ask"), "app id must be a str"),
            ((7, "a", 1, "ask"), "partition key must be a str"),
            (("p", "a", 1, None), "position must be a str"),
            (("p", "\ud800", 1, "ask"), "not valid Unicode"),
        ],
    )
    def test_bad_ids(self, persister: Any, arguments: Any, message: str) -> None:
        with pytest.raises(InvalidIdError, match=message):
            persister.save(*arguments, _state(1), "completed")
        assert persister.list_partitions() == []

    def test_bad_status_and_state(self, persister: Any) -> None:
        with pytest.raises(InvalidIdError, match="'done'"):
            persister.save("p", "a", 1, "ask", _state(1), "done")
        with pytest.raises(SerializationError, match=r"state\['n'\]\[1\] is a builtins:object") as caught:
            persister.save("p", "a", 1, "ask", _state([1, object()]), "completed")
        assert caught.value.path == "state['n'][1]"
        with pytest.raises(OptionError, match="not a list"):
            persister.save("p", "a", 1, "ask", [], "completed")
        assert persister.list_partitions() == []

    def test_bad_requests(self, persister: Any) -> None:
        with pytest.raises(OptionError, match="delete_app"):
            persister.prune()
        with pytest.raises(OptionError, match="time zone"):
            persister.prune(older_than=dt.datetime(2026, 1, 1))
        with pytest.raises(OptionError, match="before all time"):
            persister.prune(older_than=dt.timedelta.max)
        with pytest.raises(InvalidIdError):
            persister.load("p", None, 3)

    # Stored bytes that are not what was written

    def test_a_damaged_record_raises(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, **options)
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        store = face.store(url, **options)
        ((key, value),) = store.scan(values=True).entries
        for damaged in (b"", value[:-1], value.replace(b'"ask"', b'"asc"'), b"hello"):
            store.put(key, damaged)
            with pytest.raises(CorruptRecordError, match=key):
                persister.load("p", "a")
            with pytest.raises(CorruptRecordError, match=key):
                persister.save("p", "a", 1, "ask", _state(1), "completed")

    def test_a_moved_record_raises(self, face: Face, url: str, options: dict[str, Any]) -> None:
        persister = face.persister(url, **options)
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        store = face.store(url, **options)
        ((key, value),) = store.scan(values=True).entries
        store.put(key.replace("/a/", "/b/"), value)
        with pytest.raises(CorruptRecordError, match="moved"):
            persister.load("p", "b")

    def test_what_others_put_there_is_skipped_with_a_warning(
        self, face: Face, url: str, options: dict[str, Any]
    ) -> None:
        persister = face.persister(url, **options)
        persister.save("p", "a", 1, "ask", _state(1), "completed")
        store = face.store(url, **options)
        store.put("kvpersist/p/a/000-readme", b"hello")
        store.put("kvpersist/p/note=", b"hello")
        with pytest.warns(UserWarning, match="000-readme"):
            assert persister.load("p", "a")["sequence_id"] == 1
        with pytest.warns(UserWarning, match="note="):
            assert persister.list_app_ids("p") == ["a"]


def persister_ids(persister: Any) -> list[int]:
    """The sequence ids of the live records of one app."""
    return [header.sequence_id for header in persister.history("p", "a")]


def _state(value: Any) -> State[Any]:
    return State({"n": value, "text": "some text"})


def _chats(steps: int, seed: str = "chat") -> list[list[str]]:
    rnd = random.Random(seed)
    messages = [" ".join(f"{rnd.randrange(10**6)}" for _ in range(80)) for _ in range(steps + 5)]
    return [messages[: number + 5] for number in range(steps)]
