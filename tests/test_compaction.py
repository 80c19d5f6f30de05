"""Compact histories: what they cost, counted; and that every record that is there loads exactly, whatever happened."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import zstandard
from conftest import STORES
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from kvpersist import (
    ConflictError,
    CorruptPartError,
    CorruptRecordError,
    DeserializationError,
    OptionError,
    Persister,
    Store,
    UntrustedRecordError,
    compaction,
    keys,
    records,
)
from kvpersist.backends import Backend, Page
from kvpersist.backends.memory import MemoryBackend
from kvpersist.compaction import GRACE, K, blocks
from kvpersist.steps import Step, gather, run
from kvpersist.testing import Face

KEY = bytes(range(32))
NO_GRACE = dt.timedelta(0)


class ObjectStore(MemoryBackend):
    """A store that costs what an object store does: counts requests, and the round trips one after another."""

    values_in_scan: ClassVar[bool] = False

    def __init__(self, url: str, *, asynchronous: bool = False) -> None:
        super().__init__(url, asynchronous=asynchronous)
        self.requests: Counter[str] = Counter()
        self.trips = 0
        self.fails_after: int | None = None

    def counted(self) -> tuple[int, Counter[str]]:
        counted = self.trips, Counter(self.requests)
        self.trips = 0
        self.requests.clear()
        return counted

    def get(self, key: str) -> Step[bytes | None]:
        self.trips += 1
        self.requests["GET"] += 1
        return (yield from super().get(key))

    def get_many(self, keys: Any) -> Step[list[bytes | None]]:
        wanted = list(keys)
        self.trips += 1 - len(wanted)  # side by side
        return (yield from gather(self.get(key) for key in wanted))

    def put(self, key: str, value: bytes, mode: Any = "overwrite") -> Step[bool]:
        if self.fails_after is not None:
            if self.fails_after == 0:
                raise ConnectionError("the process died")
            self.fails_after -= 1
        self.trips += 1
        self.requests["PUT"] += 1
        return (yield from super().put(key, value, mode))

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        return (yield from Backend.put_many(self, entries))

    def scan(self, prefix: str, *, values: bool = False, **options: Any) -> Step[Page]:
        self.trips += 1
        self.requests["LIST"] += 1
        page = yield from super().scan(prefix, values=values, **options)
        if values and page.entries:
            self.trips += 1
            self.requests["GET"] += len(page.entries)
        return page


def size_of(backend: MemoryBackend) -> int:
    return sum(map(len, backend._space.values.values()))


def words(seed: int) -> random.Random:
    return random.Random(seed)


VOCABULARY = ["".join(words(number).choices("etaoinshrdlu", k=2 + number % 9)) for number in range(3000)]
WEIGHTS = [1 / (number + 2) for number in range(3000)]


def text(rnd: random.Random, length: int) -> str:
    return " ".join(rnd.choices(VOCABULARY, WEIGHTS, k=length // 5))[:length]


def chat(steps: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """States of a chat: about 615 bytes of JSON more at each step, and a prompt that is edited at each."""
    rnd = words(seed)
    messages: list[dict[str, Any]] = []
    prompt = text(rnd, 400)
    for number in range(steps):
        role = "assistant" if number % 2 else "user"
        messages.append({"role": role, "content": text(rnd, 540), "id": f"m-{rnd.getrandbits(64):016x}"})
        at = rnd.randrange(300)
        prompt = prompt[:at] + text(rnd, 30) + prompt[at + 30 :]
        yield {"prompt": prompt, "chat": list(messages), "__SEQUENCE_ID": number, "__PRIOR_STEP": "answer"}


@pytest.fixture(scope="module")
def states() -> list[dict[str, Any]]:
    states = list(chat(3000))
    assert 600 * 1000 < len(json.dumps(states[999])) < 640 * 1000
    return states


def fill(persister: Any, states: Any, app: str = "a", first: int = 0) -> None:
    for number, state in enumerate(states, first):
        persister.save("p", app, number, "answer", state, "completed")


def check(persister: Any, states: Sequence[Any], app: str = "a", step: int = 1) -> None:
    for number in range(0, len(states), step):
        assert persister.load("p", app, number)["state"].get_all() == states[number], number
    assert persister.load("p", app)["state"].get_all() == states[-1]


# What it costs


def test_bounds_on_object_stores(states: list[dict[str, Any]]) -> None:
    backend = ObjectStore("memory://")
    persister = Persister(backend)
    fill(persister, states[:1000])
    size = size_of(backend)
    trips, requests = backend.counted()
    assert size <= 4096 * 1000
    assert requests["PUT"] <= 1300
    assert trips <= 1300 + requests["GET"]
    assert requests["GET"] <= 20  # to see that a part is not there yet
    assert set(requests) <= {"PUT", "GET"}
    for number in (*range(0, 1000, 37), 999):
        fresh = Persister(backend)
        assert fresh.load("p", "a", number)["state"].get_all() == states[number]
        trips, requests = backend.counted()
        assert trips <= 2, number
        assert requests["LIST"] == 1
        assert requests["GET"] <= 4
        again = persister.load("p", "a", number)
        assert again["sequence_id"] == number
        assert backend.counted()[0] <= 2
    fresh = Persister(backend)
    assert fresh.load("p", "a")["state"].get_all() == states[999]
    assert backend.counted() == (2, {"LIST": 1, "GET": 4})
    assert fresh.load("p", "a")["sequence_id"] == 999
    assert backend.counted() == (2, {"LIST": 1, "GET": 4})
    fill(persister, states[1000:], first=1000)
    assert size_of(backend) <= 4.3 * size
    backend.counted()
    assert Persister(backend).load("p", "a")["state"].get_all() == states[-1]
    assert backend.counted()[0] == 2
    # A process that comes new to it reads what it needs, in one round trip, and goes on.
    fresh = Persister(backend)
    fresh.save("p", "a", 3000, "answer", states[-1], "completed")
    assert backend.counted() == (2, {"GET": 6, "PUT": 1})
    fresh.save("p", "a", 3001, "answer", states[-1], "completed")
    assert backend.counted() == (1, {"PUT": 1})


def statements_of(persister: Any) -> list[str]:
    seen: list[str] = []
    persister.initialize()
    for connection in run(persister._history.backend._clients.get()):
        connection._connection.set_trace_callback(seen.append)
    return seen


def test_bounds_on_sqlite(states: list[dict[str, Any]], tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/state.db?durable=no"
    persister = Persister.from_url(url)
    statements = statements_of(persister)
    fill(persister, states[:1000])
    assert len(statements) <= 1010  # one a save, and a few to see that a part is not there yet
    connection = sqlite3.connect(tmp_path / "state.db")
    ((size,),) = connection.execute("SELECT sum(length(key) + length(value)) FROM kvpersist").fetchall()
    connection.close()
    assert size <= 4096 * 1000
    statements.clear()
    check(persister, states[:1000], step=37)
    assert len(statements) == 2 * 29 - 1  # the first state was small
    fresh = Persister.from_url(url)
    statements = statements_of(fresh)
    statements.clear()
    assert fresh.load("p", "a")["state"].get_all() == states[999]
    assert len(statements) == 2
    fresh.save("p", "a", 1000, "answer", states[1000], "completed")
    assert len(statements) == 3
    other = Persister.from_url(url)
    statements = statements_of(other)
    statements.clear()
    other.save("p", "a", 1001, "answer", states[1001], "completed")
    assert len(statements) == 2
    check(other, states[:1002], step=101)
    for each in (persister, fresh, other):
        each.cleanup()


def edited_in_the_middle(rnd: random.Random, messages: list[str]) -> list[str]:
    at = rnd.randrange(len(messages))
    return [*messages[:at], text(rnd, 500), *messages[at + 1 :]]


def sliding_window(rnd: random.Random, messages: list[str]) -> list[str]:
    return [*messages[1:], text(rnd, 500)]


def reordered(rnd: random.Random, messages: list[str]) -> list[str]:
    at = rnd.randrange(len(messages))
    return [*messages[at:], *messages[:at]]


def shuffled(rnd: random.Random, messages: list[str]) -> list[str]:
    return rnd.sample(messages, len(messages))


def truncated(rnd: random.Random, messages: list[str]) -> list[str]:
    return messages[:-1] if len(messages) > 10 else [text(rnd, 500) for _ in range(100)]


def all_new(rnd: random.Random, messages: list[str]) -> list[str]:
    return [text(rnd, 500) for _ in messages]


def incompressible(rnd: random.Random, messages: list[str]) -> list[str]:
    return [rnd.randbytes(250).hex() for _ in messages]


@pytest.mark.parametrize(
    "change",
    [edited_in_the_middle, sliding_window, reordered, shuffled, truncated, all_new, incompressible],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("length", [12, 100])
def test_whatever_changes_costs_no_more_than_compressed_snapshots(change: Any, length: int) -> None:
    rnd = words(5)
    messages = [text(rnd, 500) for _ in range(length)]
    compact, full = ObjectStore("memory://"), ObjectStore("memory://")
    persister = Persister(compact)
    snapshots = Persister(full, compact_history=False, serde_kwargs={"compression": "zstd"})
    history = []
    for number in range(120):
        messages = change(rnd, messages)
        history.append({"chat": messages, "n": number})
        persister.save("p", "a", number, "answer", history[-1], "completed")
        snapshots.save("p", "a", number, "answer", history[-1], "completed")
    assert size_of(compact) <= 1.1 * size_of(full)
    check(Persister(compact), history, step=11)


@pytest.mark.parametrize("first", [0, 3, 344, 10_000_001])
def test_a_large_value_that_stays_is_written_once(first: int) -> None:
    backend = ObjectStore("memory://")
    persister = Persister(backend)
    # Where the parts that arithmetic asks for are not there, since the state was small before.
    document = words(1).randbytes(150_000).hex()
    fill(persister, ({"document": document, "n": number} for number in range(200)), first=first)
    compressed = len(zstandard.ZstdCompressor(level=3).compress(document.encode()))
    crossed = {blocks(number)[-1] for number in range(first, first + 200)}
    assert size_of(backend) <= len(crossed) * compressed + 240 * 800
    assert backend.requests["PUT"] <= 1.3 * 200


def test_small_states_cost_what_they_did() -> None:
    backend, plain = ObjectStore("memory://"), ObjectStore("memory://")
    states = [{"n": number, "text": "x" * 3000} for number in range(20)]
    for each, compact in ((backend, True), (plain, False)):
        persister = Persister(each, compact_history=compact)
        fill(persister, states)
        assert each.counted() == (20, {"PUT": 20})
        assert persister.load("p", "a")["sequence_id"] == 19
        assert each.counted() == (2, {"LIST": 1, "GET": 1})
        assert persister.load("p", "a", 4)["sequence_id"] == 4
        assert each.counted() == (2, {"LIST": 1, "GET": 1})
        assert persister.prune(keep_last=1) == 19
        assert each.counted()[1]["GET"] <= 2
    sizes = [[len(value) for value in each._space.values.values()] for each in (backend, plain)]
    assert sizes[0] == sizes[1]


# Exactness


WAYS: dict[str, dict[str, Any]] = {
    "json": {},
    "msgpack": {"serializer": "msgpack"},
    "pickle": {"serializer": "pickle"},
    "cloudpickle": {"serializer": "cloudpickle"},
    "compressed": {"compression": "gzip"},
    "encrypted": {"encryption_key": KEY},
    "signed": {"signing_key": KEY},
    "both": {"encryption_key": KEY, "signing_key": KEY, "encryption": "chacha20-poly1305"},
}


@pytest.mark.parametrize("serde_kwargs", WAYS.values(), ids=WAYS)
def test_every_serializer_and_protection(serde_kwargs: dict[str, Any], states: list[dict[str, Any]]) -> None:
    backend = ObjectStore("memory://")
    persister = Persister(backend, serde_kwargs=serde_kwargs)
    fill(persister, states[:120])
    check(Persister(backend, serde_kwargs=serde_kwargs), states[:120])
    assert size_of(backend) < 120 * 4096
    assert persister.verify().ok
    if "encryption_key" in serde_kwargs:
        everything = b"".join(backend._space.values.values())
        assert states[119]["chat"][50]["content"][:40].encode() not in everything
        payload = run_payload(persister, states[119])
        assert compaction.hashlib.sha256(payload).hexdigest().encode() not in everything


def run_payload(persister: Any, state: dict[str, Any]) -> bytes:
    payload: bytes = persister._history.serde.dumps(state)
    return payload


@pytest.mark.parametrize("store_name", [name for name in STORES if name != "file-durable"])
@pytest.mark.parametrize("face_name", ["sync", "async"])
def test_on_every_store(store_name: str, face_name: str, tmp_path: Path, states: list[dict[str, Any]]) -> None:
    face = Face(face_name == "async")
    url = STORES[store_name](tmp_path)
    persister = face.persister(url)
    fill(persister, states[:60])
    fill(persister, states[:20], app="b")
    fresh = face.persister(url)
    check(fresh, states[:60])
    assert [header.sequence_id for header in fresh.history("p", "a")] == list(range(59, -1, -1))
    assert fresh.load("p", None)["app_id"] == "b"
    assert fresh.list_app_ids("p") == ["a", "b"]
    assert fresh.rewind("p", "a", 39) == 20
    assert fresh.verify().records == 80
    assert fresh.prune("p", "a", keep_last=3) == 37
    assert fresh.verify().records == 43
    assert fresh.prune("p", "a", keep_last=3, include_set_aside=True) == 20
    report = fresh.verify()
    assert report.ok
    assert report.unreachable_parts
    assert fresh.sweep(grace=NO_GRACE) == len(report.unreachable_parts)
    report = face.persister(url).verify()
    assert report.ok
    assert not report.unreachable_parts
    check(face.persister(url), states[:20], app="b")
    assert fresh.load("p", "a")["state"].get_all() == states[39]
    assert fresh.delete_app("p", "a") == 3
    assert fresh.delete_app("p", "b") == 20
    assert face.store(url).scan().entries == []
    face.close()


def test_both_kinds_lie_side_by_side(states: list[dict[str, Any]]) -> None:
    backend = ObjectStore("memory://")
    for number, state in enumerate(states[:100]):
        Persister(backend, compact_history=number % 3 != 0).save("p", "a", number, "answer", state, "completed")
    for compact in (True, False):
        check(Persister(backend, compact_history=compact), states[:100])
    persister = Persister(backend, compact_history=False)
    backend.counted()
    persister.save("p", "a", 100, "answer", states[100], "completed")
    assert backend.counted() == (1, {"PUT": 1})
    assert next(iter(persister.history("p", "a"))).bases == ()
    persister.save("p", "a", 98, "answer", states[98], "completed")  # the same in the other form
    Persister(backend).save("p", "a", 99, "answer", states[99], "completed")


def test_a_sequence_id_of_any_size(states: list[dict[str, Any]]) -> None:
    persister = Persister(ObjectStore("memory://"))
    for number in (0, 1, 6, 7, 48, 49, 342, 343, 344, 2**53, 2**63 - 1):
        persister.save("p", "a", number, "answer", states[20], "completed")
        assert persister.load("p", "a", number)["state"].get_all() == states[20]
    assert persister.verify().ok
    assert blocks(1000) == [994, 980, 686]
    assert blocks(343) == [343]
    assert blocks(7) == [7, 0]


# Conflicts and races


@pytest.mark.parametrize("number", [5, K, K * K, K**3])
@pytest.mark.parametrize("warm", [True, False])
def test_retries_and_conflicts(states: list[dict[str, Any]], number: int, warm: bool) -> None:
    backend = ObjectStore("memory://")
    persister = Persister(backend)
    fill(persister, states[20 : 20 + 5], first=max(0, number - 5))
    persister.save("p", "a", number, "answer", states[30], "completed")

    def again() -> Persister:
        return persister if warm else Persister(backend)

    again().save("p", "a", number, "answer", states[30], "completed")
    with pytest.raises(ConflictError):
        again().save("p", "a", number, "answer", states[31], "completed")
    with pytest.raises(ConflictError):
        again().save("p", "a", number, "answer", states[30], "failed")
    assert again().load("p", "a")["state"].get_all() == states[30]
    again().save("p", "a", number + 1, "fails", states[30], "failed")
    again().save("p", "a", number + 1, "fails", states[31], "completed")
    assert again().load("p", "a")["state"].get_all() == states[31]
    Persister(backend, on_conflict="overwrite").save("p", "a", number, "answer", states[33], "completed")
    assert again().load("p", "a", number)["state"].get_all() == states[33]
    assert again().verify().ok


@pytest.mark.parametrize("warm", [True, False])
def test_another_way_gets_parts_of_its_own(states: list[dict[str, Any]], warm: bool) -> None:
    backend = ObjectStore("memory://")
    persister = Persister(backend, on_conflict="rewind")
    fill(persister, states[:400])
    before = size_of(backend)
    other = list(chat(400, seed=2))
    if not warm:
        persister = Persister(backend, on_conflict="rewind")
    persister.load("p", "a", 49)
    way = [*states[:50], *({**state, "chat": [*states[49]["chat"], *state["chat"]]} for state in other[:350])]
    fill(persister, way[50:], first=50)
    assert size_of(backend) <= 2.2 * before
    check(Persister(backend), way, step=7)
    report = persister.verify()
    assert report.ok
    assert report.records == 750
    headers = [header for header in persister.history("p", "a", include_set_aside=True) if header.set_aside]
    assert [header.sequence_id for header in headers] == list(range(399, 49, -1))
    # Both ways are whole until the old one is pruned.
    persister.prune(keep_last=1, grace=NO_GRACE)
    report = persister.verify()
    assert report.ok
    assert report.records == 351
    persister.prune(keep_last=1, grace=NO_GRACE, include_set_aside=True)
    assert persister.load("p", "a")["state"].get_all() == way[-1]
    assert persister.verify().parts <= 3


@pytest.mark.parametrize("same", [True, False])
def test_writers_race_at_a_part(states: list[dict[str, Any]], same: bool, tmp_path: Path) -> None:
    for url in (
        f"memory://race-{same}",
        f"sqlite://{tmp_path}/race.db?durable=no",
        f"file://{tmp_path}/race?durable=no",
    ):
        for number in (0, K, K * K, K**3):
            contents = [states[100 + (0 if same else writer)] for writer in range(4)]
            persisters = [Persister.from_url(url) for _ in range(4)]
            barrier = threading.Barrier(4)

            def save(
                writer: int, number: int = number, p: Any = persisters, c: Any = contents, b: Any = barrier
            ) -> Any:
                b.wait()
                try:
                    return p[writer].save("p", "a", number, "answer", c[writer], "completed")
                except ConflictError as error:
                    return error

            with ThreadPoolExecutor(4) as pool:
                results = list(pool.map(save, range(4)))
            winners = [writer for writer, result in enumerate(results) if result is None]
            assert len(winners) == (4 if same else 1)
            assert persisters[0].load("p", "a", number)["state"].get_all() == contents[winners[0]]
            # All go on, whoever wrote the part.
            for writer, persister in enumerate(persisters):
                persister.save("p", "a", number + 1, f"by-{writer}", states[110 + writer], "completed")
            assert persisters[0].verify().ok
            for persister in persisters:
                persister.cleanup()


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_crash_between_part_and_record(states: list[dict[str, Any]], lost: int) -> None:
    backend = ObjectStore("memory://")
    for number, state in enumerate(states[:60]):
        backend.fails_after = lost
        persister = Persister(backend)
        try:
            persister.save("p", "a", number, "answer", state, "completed")
        except ConnectionError:
            backend.fails_after = None
            assert persister.verify().ok
            Persister(backend).save("p", "a", number, "answer", state, "completed")
    backend.fails_after = None
    check(Persister(backend), states[:60])
    assert Persister(backend).verify().ok
    # A part that was made for a record that never came.
    backend.fails_after = 1
    with pytest.raises(ConnectionError):
        persister.save("p", "a", 63, "answer", states[63], "completed")
    backend.fails_after = None
    assert persister.verify().unreachable_parts == {keys.part_key("kvpersist/p/a/", "63")}
    persister.sweep()
    persister.save("p", "a", 63, "answer", states[64], "completed")
    assert persister.load("p", "a")["state"].get_all() == states[64]


def test_a_lost_answer_is_no_conflict(states: list[dict[str, Any]]) -> None:
    class Forgetful(ObjectStore):
        """Stores, and reports that somebody else did: as a client does whose own retry met its first request."""

        def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
            yield from super().put_many(entries)
            return False

    persister = Persister(Forgetful("memory://"))
    fill(persister, states[:30])
    check(persister, states[:30])
    assert not persister.verify().unreachable_parts


def test_no_atomic_create(states: list[dict[str, Any]]) -> None:
    class Sloppy(ObjectStore):
        """A store on which each of two that create a key believes that it did."""

        atomic_create: ClassVar[bool] = False

        def put(self, key: str, value: bytes, mode: Any = "overwrite") -> Step[bool]:
            yield from super().put(key, value)
            return True

    backend = Sloppy("memory://")
    one, two = (Persister(backend, on_conflict="overwrite") for _ in range(2))
    for number in range(30):
        one.save("p", "a", number, "one", states[number], "completed")
        two.save("p", "a", number, "two", states[number + 100], "completed")
    assert one.verify().ok


# Attacks: somebody who can write to the store


class Attack:
    """An app of each of two tenants, and ways to change what is stored of them."""

    def __init__(self, serde_kwargs: dict[str, Any], states: list[dict[str, Any]]) -> None:
        self.backend = MemoryBackend("memory://")
        self.values = self.backend._space.values
        self.serde_kwargs = serde_kwargs
        self.victim, self.other = "kvpersist/p/a/", "kvpersist/q/b/"
        for partition, app in (("p", "a"), ("q", "b")):
            for number in range(55):
                self.persister().save(partition, app, number, "answer", states[number], "completed")

    def persister(self) -> Persister:
        return Persister(self.backend, serde_kwargs=self.serde_kwargs)

    def load(self) -> Any:
        return self.persister().load("p", "a", 54)

    def part(self, name: str, app: str | None = None) -> str:
        return keys.part_key(app or self.victim, name)

    @property
    def record(self) -> str:
        return self.victim + keys.record_name(54, "answer")


@pytest.fixture(params=["json", "encrypted", "signed", "both"])
def attack(request: pytest.FixtureRequest, states: list[dict[str, Any]]) -> Attack:
    return Attack(WAYS[request.param], states)


def test_parts_of_equal_states_are_not_shared(attack: Attack) -> None:
    parts = [key for key in attack.values if keys.PARTS in key]
    assert len(parts) == 2 * 8
    assert len({attack.values[key] for key in parts}) == 16
    attack.persister().delete_app("q", "b")
    assert attack.load()["sequence_id"] == 54


@pytest.mark.parametrize("name", ["49", "0"])
def test_a_part_replaced_is_found_out(attack: Attack, name: str) -> None:
    key, values = attack.part(name), attack.values
    genuine = values[key]
    old = values[attack.part("42")]
    others = [
        values[attack.part(name, attack.other)],  # another tenant's, of the same content
        old,  # older content of the same app
        values[attack.part("49" if name == "0" else "0")],
        values[attack.record],
        genuine[:-1],
        genuine + b"x",
        genuine.replace(b'"completed"', b'"failed"'),
        b"",
        b"hello",
        _resealed(genuine, created_at="2020-01-01T00:00:00.000000+00:00"),
    ]
    for forged in others:
        values[key] = forged
        with pytest.raises(CorruptPartError, match=key) as caught:
            attack.load()
        assert caught.value.part == key
        assert attack.record in str(caught.value) or attack.part("49") in str(caught.value)
        report = attack.persister().verify("p", "a")
        assert set(report.corrupt_parts) == {key}
        assert not report.ok
    del values[key]
    attack.backend._space.keys.remove(key)
    with pytest.raises(CorruptPartError, match="missing") as caught:
        attack.load()
    assert caught.value.missing
    assert attack.persister().verify("p", "a").missing_parts == {key}
    # Another app is untouched, and this one can go on.
    assert attack.persister().load("q", "b")["sequence_id"] == 54
    attack.persister().save("p", "a", 55, "answer", {"text": text(words(1), 9000)}, "completed")
    assert attack.persister().load("p", "a")["sequence_id"] == 55


def _resealed(value: bytes, **changes: Any) -> bytes:
    """A value with another header and a right checksum, as anybody can make it."""
    head, payload = value.split(b"\n", 1)
    fields = json.loads(head)
    del fields["checksum"]
    signature = fields.pop("signature", None)
    return records.encode(json.dumps({**fields, **changes}, separators=(",", ":"))[:-1].encode(), payload, signature)


def test_a_record_cannot_be_pointed_elsewhere(attack: Attack) -> None:
    genuine = attack.values[attack.record]
    fields = json.loads(genuine.split(b"\n", 1)[0])
    part = attack.values[attack.part("42")]
    elsewhere = _resealed(
        genuine, bases=["42", *fields["bases"][1:]], base_hash=compaction.hashlib.sha256(part).hexdigest()
    )
    shortened = _resealed(genuine, bases=fields["bases"][:1])
    for forged in (
        elsewhere,
        shortened,
        _resealed(genuine, bases=["49", "49", "0"]),
        _resealed(genuine, bases=[]),
        _resealed(genuine, bases=["../../q/b/!parts/0"]),
        _resealed(genuine, bases=["0" * 9] * 9),
        _resealed(genuine, bases=[49, 0]),
        _resealed(genuine, base_hash="0" * 64),
        _resealed(genuine, base_hash=None),
        _resealed(genuine, part=1),
        _resealed(genuine, compression="zstd"),
        attack.values[attack.part("49")],
    ):
        attack.values[attack.record] = forged
        with pytest.raises((CorruptRecordError, UntrustedRecordError, DeserializationError)) as caught:
            attack.load()
        if forged in (elsewhere, shortened) and "signing_key" in attack.serde_kwargs:
            assert isinstance(caught.value, UntrustedRecordError)
        elif forged is shortened:
            assert isinstance(caught.value, CorruptPartError)


@pytest.mark.parametrize("claimed", [2**40, 2**29, 100])
def test_a_bomb_is_refused(states: list[dict[str, Any]], claimed: int) -> None:
    attack = Attack({"max_size": 2**20}, states)
    genuine = attack.values[attack.record]
    head = genuine.split(b"\n", 1)[0]
    bomb = zstandard.ZstdCompressor().compress(b"\0" * 2**29)
    attack.values[attack.record] = _resealed(head + b"\n" + bomb, uncompressed_size=claimed)
    with pytest.raises(DeserializationError, match=r"max_size|no zstd-patch data"):
        attack.load()


# Collecting


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> dt.timedelta:
    grace = dt.timedelta(seconds=0.4)
    monkeypatch.setattr(compaction, "GRACE", grace)
    return grace


def test_parts_are_condemned_before_they_go(states: list[dict[str, Any]]) -> None:
    backend = MemoryBackend("memory://")
    persister = Persister(backend)
    fill(persister, states[:100])
    parts = persister.verify().parts
    assert persister.prune(keep_last=1) == 99
    report = persister.verify()
    assert report.parts == parts
    assert len(report.unreachable_parts) == parts - len(blocks(99))
    assert sum(keys.CONDEMNED in key for key in backend._space.keys) == len(report.unreachable_parts)
    assert persister.sweep() == 0
    assert persister.list_app_ids("p") == ["a"]
    assert len(list(persister.history("p", "a", include_set_aside=True))) == 1
    # One that is needed again is no longer condemned; the others go when their time has come.
    unneeded = report.unreachable_parts - {keys.part_key("kvpersist/p/a/", name) for name in ("91", "49")}
    header = next(iter(persister.history("p", "a")))
    assert "91" not in header.bases
    base = compaction.Base("91", ("49", "0"), _digest(backend, "91"), run_payload(persister, states[91]))
    record = keys.RecordId("p", "a", 97, "answer")
    value = persister._history.serde.encode(
        "kvpersist",
        record,
        "completed",
        "2026-01-01T00:00:00.000000+00:00",
        run_payload(persister, states[97]),
        base=base,
    )
    run(backend.put(keys.record_key("kvpersist", record), value))
    assert persister.sweep() == 0
    assert keys.condemned_key("kvpersist/p/a/", "91") not in backend._space.keys
    assert sum(keys.CONDEMNED in key for key in backend._space.keys) == len(unneeded)
    for key in backend._space.keys:
        if keys.CONDEMNED in key:
            backend._space.values[key] = b"2020-01-01T00:00:00.000000+00:00"
    assert persister.sweep(grace=dt.timedelta(days=10_000)) == 0
    assert persister.sweep() == len(unneeded)
    report = persister.verify()
    assert report.ok
    assert not report.unreachable_parts
    assert not any(keys.CONDEMNED in key for key in backend._space.keys)
    assert persister.load("p", "a", 97)["state"].get_all() == states[97]
    assert persister.load("p", "a")["state"].get_all() == states[99]


def _digest(backend: MemoryBackend, name: str) -> str:
    return compaction.hashlib.sha256(backend._space.values[keys.part_key("kvpersist/p/a/", name)]).hexdigest()


def test_a_condemned_part_is_not_written_against(states: list[dict[str, Any]]) -> None:
    backend = MemoryBackend("memory://")
    fill(Persister(backend), states[:100])
    app = "kvpersist/p/a/"
    for name in ("98", "49"):
        run(backend.put(keys.condemned_key(app, name), b"2020-01-01T00:00:00.000000+00:00"))
        fresh = Persister(backend)
        fresh.save("p", "a", 99 + int(name), "answer", states[99 + int(name)], "completed")
        fresh.save("p", "a", 99, f"other{name}", states[99], "completed")
        header = next(header for header in fresh.history("p", "a") if header.position == f"other{name}")
        assert name not in header.bases
    assert fresh.verify().ok


def test_the_parts_of_a_record_that_goes_get_their_whole_grace(states: list[dict[str, Any]]) -> None:
    """Somebody may have read the record a moment ago."""
    backend = MemoryBackend("memory://")
    fill(Persister(backend), states[:60])
    app = "kvpersist/p/a/"
    for name in ("42", "35"):
        run(backend.put(keys.condemned_key(app, name), b"2020-01-01T00:00:00.000000+00:00"))
    reader = Persister(backend)
    assert reader.load("p", "a", 45)["sequence_id"] == 45
    assert Persister(backend).prune(keep_last=1) == 59
    reader.save("p", "a", 46, "again", states[46], "completed")
    assert reader.load("p", "a", 46)["state"].get_all() == states[46]
    assert next(header for header in reader.history("p", "a") if header.position == "again").bases[0] == "42"
    assert reader.verify().ok


def test_collecting_races_writers(states: list[dict[str, Any]], short_grace: dt.timedelta, tmp_path: Path) -> None:
    """Writers that keep what they know, and others that come new, against two that prune and sweep all the time."""
    for url in ("memory://collecting", f"sqlite://{tmp_path}/collecting.db?durable=no"):
        stop = time.monotonic() + 2.5
        done = threading.Event()
        opened = contextlib.ExitStack()

        def new(url: str = url, opened: contextlib.ExitStack = opened) -> Persister:
            return opened.enter_context(Persister.from_url(url))

        def write(writer: int, stop: float = stop, new: Callable[[], Persister] = new) -> None:
            """Two writers have an app each, two share one: of the one that lags behind all is pruned at once."""
            rnd = words(writer)
            persister, reader = new(), new()
            app, number = f"app{min(writer, 2)}", 10_000 * (writer == 3)
            saves = 0
            while time.monotonic() < stop or saves < 10:
                if rnd.random() < 0.1:
                    persister = new()
                    persister.load("p", app)
                number += 1
                saves += 1
                state = states[30 + number % 1000]
                persister.save("p", app, number, f"by-{writer}", state, "completed")
                loaded = reader.load("p", app, number)
                assert loaded is None or loaded["state"].get_all() == state
                if rnd.random() < 0.1:
                    time.sleep(rnd.random() * 2 * short_grace.total_seconds())

        def collect(done: threading.Event = done, new: Callable[[], Persister] = new) -> int:
            persister = new()
            removed = 0
            while not done.is_set():
                persister.prune(keep_last=1, grace=short_grace)
                removed += persister.sweep(grace=short_grace)
            return removed

        with opened:
            with ThreadPoolExecutor(6) as pool:
                collectors = [pool.submit(collect) for _ in range(2)]
                writers = [pool.submit(write, writer) for writer in range(4)]
                try:
                    for each in writers:
                        each.result()
                finally:
                    done.set()
                assert sum(each.result() for each in collectors) > 0
            persister = new()
            report = persister.verify()
            assert report.ok, report
            for app in persister.list_app_ids("p"):
                loaded = persister.load("p", app)
                assert loaded["state"].get_all() == states[30 + loaded["sequence_id"] % 1000]


def test_what_is_remembered_too_long_is_read_anew(
    states: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ObjectStore("memory://")
    persister = Persister(backend)
    fill(persister, states[:52])
    backend.counted()
    now = time.time()
    for passed in (1, -100, GRACE.total_seconds()):
        monkeypatch.setattr(compaction.time, "time", lambda passed=passed: now + passed)
        persister.save("p", "a", 52, f"after{passed:.0f}", states[52], "completed")
        _, requests = backend.counted()
        assert requests["GET"] == (0 if passed == 1 else 4)


def test_an_app_that_is_deleted_and_begun_anew(states: list[dict[str, Any]]) -> None:
    backend = MemoryBackend("memory://")
    worker, admin = Persister(backend), Persister(backend)
    for first in (states[3], {"n": 1}, None):
        fill(worker, states[20:30])
        admin.delete_app("p", "a")
        assert backend._space.keys == []
        if first is not None:
            admin.save("p", "a", 0, "answer", first, "completed")
        assert (worker.load("p", "a") is None) is (first is None)
        worker.save("p", "a", 3, "answer", states[20], "completed")
        assert admin.verify().ok
        assert admin.load("p", "a")["state"].get_all() == states[20]
        admin.delete_app("p", "a")
        worker.load("p", "a")


def test_a_record_deleted_under_a_reader_is_no_corruption(states: list[dict[str, Any]]) -> None:
    backend = MemoryBackend("memory://")
    fill(Persister(backend), states[:30])
    original = MemoryBackend.get_many

    def get_many(keys: Any) -> Step[list[bytes | None]]:
        Persister(MemoryBackend(f"memory://{backend._name}")).delete_app("p", "a")
        return (yield from original(backend, keys))

    backend.get_many = get_many  # type: ignore[method-assign]
    assert Persister(backend).load("p", "a", 29) is None
    del backend.get_many
    fill(Persister(backend), states[:30])
    backend.get_many = get_many  # type: ignore[method-assign]
    assert Persister(backend).load("p", "a") is None


def test_what_cannot_be_asked(states: list[dict[str, Any]]) -> None:
    persister = Persister(MemoryBackend("memory://"))
    for grace in (-GRACE, 3600, None):
        with pytest.raises(OptionError, match="grace"):
            persister.sweep(grace=grace)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="grace"):
            persister.prune(keep_last=1, grace=grace)  # type: ignore[arg-type]


# What a process remembers


def test_the_cache_is_bounded_and_nothing_needs_it(states: list[dict[str, Any]]) -> None:
    backend = ObjectStore("memory://")
    persister = Persister(backend)
    cache = persister._history.parts.cache = compaction.Cache(limit=200_000)
    for number in range(60):
        for app in "abcd":
            persister.save("p", app, number, "answer", states[number], "completed")
        assert cache._size == sum(map(compaction._size, cache._apps.values())) <= 200_000
    for app in "abcd":
        check(Persister(backend), states[:60], app=app)
    assert 0 < len(cache._apps) < 4


def test_copies_share_it_and_pickles_do_not(states: list[dict[str, Any]]) -> None:
    backend = ObjectStore("memory://")
    persister = Persister(backend, compact_history=True)
    fill(persister, states[:30])
    backend.counted()
    persister.copy().save("p", "a", 30, "answer", states[30], "completed")
    assert backend.counted() == (1, {"PUT": 1})
    assert persister.__reduce__()[1][2]["compact_history"] is True


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_has_the_lock(tmp_path: Path, states: list[dict[str, Any]]) -> None:
    persister = Persister.from_url(f"sqlite://{tmp_path}/state.db")
    fill(persister, states[:20])
    with persister._history.parts.cache._lock:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                persister.save("p", "a", 20, "answer", states[20], "completed")
                status = 0
            finally:
                os._exit(status)
    deadline = time.monotonic() + 30
    while not (finished := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
        time.sleep(0.01)
    assert finished[1] == 0
    check(persister, states[:21])
    persister.cleanup()


def test_parts_have_names_that_come_back() -> None:
    for name in ("0", "994", "9223372036854775807", "7." + "0a" * 16):
        key = keys.part_key("n/p/a/", name)
        keys.check(key)
        assert keys.parse_part_name(key.rpartition("/")[2]) == name
        assert keys.part_key("n/p/a/", name).startswith("n/p/a/!")
    for bad in ("07", "-1", "9223372036854775808", "7.", "7." + "0A" * 16, "7." + "0a" * 15, "٣", "", "7\n", "1" * 20):
        assert not keys.is_part_name(bad)
    assert keys.parse_part_name("9223372036854775807.1") is None
    store = Store.from_url("memory://")
    store.put("kvpersist/p/a/!parts/hello", b"hello")
    assert run(compaction.Parts(store.backend, "kvpersist", compaction.Cache()).names("kvpersist/p/a/")) == []


@pytest.mark.parametrize("sizes", [(4096, 4096), (5000, 900_000), (900_000, 5000), (70_000, 70_000), (8, 300), (1, 1)])
def test_patches(sizes: tuple[int, int]) -> None:
    rnd = words(3)
    one, other = (text(rnd, size).encode() for size in sizes)
    for base, payload in ((one, other), (one, one), (one, one + other), (one, other + one), (other, b"")):
        made = compaction.Base("7", (), "", base).patch(payload)
        assert compaction.unpatch(base, made, len(payload)) == payload
        assert len(made) <= 1.05 * len(compaction.snapshot(payload)) + 20
        with pytest.raises(ValueError, match="another size"):
            compaction.unpatch(base, made, len(payload) + 1)
    appended = compaction.Base("7", (), "", one).patch(one + b"a little more")
    assert len(appended) < 60 + len(one) // 2000


# Any sequence of things


class HistoryMachine(RuleBasedStateMachine):
    """An app that several processes work on, one after the other, against a model: what was saved and not removed."""

    def __init__(self) -> None:
        super().__init__()
        self.backend = ObjectStore("memory://")
        self.live: dict[int, dict[str, Any]] = {}
        self.aside = 0
        self.chat: list[str] = []
        self.texts = 0
        self.processes = [self.process() for _ in range(2)]

    def process(self) -> Persister:
        return Persister(self.backend, on_conflict="rewind")

    def text(self) -> str:
        self.texts += 1
        return text(words(self.texts), 700)

    @rule(count=st.integers(1, 20))
    def append(self, count: int) -> None:
        self.chat = [*self.chat, *(self.text() for _ in range(count))]

    @rule(at=st.integers(0, 30))
    def edit(self, at: int) -> None:
        self.chat = [*self.chat[:at], self.text(), *self.chat[at + 1 :]]

    @rule(keep=st.integers(0, 12))
    def truncate(self, keep: int) -> None:
        self.chat = self.chat[-keep:] if keep else []

    @rule(seed=st.integers(0, 5))
    def shuffle(self, seed: int) -> None:
        self.chat = words(seed).sample(self.chat, len(self.chat))

    @property
    def newest(self) -> int:
        return max(self.live, default=-1)

    @rule(which=st.integers(0, 1), skip=st.sampled_from([1, 1, 1, 1, 2, 6, 40, 300]), times=st.integers(1, 9))
    def save(self, which: int, skip: int, times: int) -> None:
        for _ in range(times):
            self.saved(self.newest + skip, which)
            self.chat = [*self.chat, self.text()]

    def saved(self, number: int, which: int) -> None:
        state = {"chat": self.chat, "n": number}
        self.processes[which].save("p", "a", number, "step", state, "completed")
        self.live[number] = state

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1))
    def repeat(self, which: int) -> None:
        self.processes[which].save("p", "a", self.newest, "step", self.live[self.newest], "completed")

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1), back=st.integers(0, 20))
    def take_another_way(self, which: int, back: int) -> None:
        number = max(0, self.newest - back)
        self.chat = [*self.live.get(number, {"chat": self.chat})["chat"], self.text()]
        gone = [each for each in self.live if each >= number]
        self.saved(number, which)
        self.aside += len(gone)
        self.live = {each: state for each, state in self.live.items() if each not in gone or each == number}
        self.processes[1 - which] = self.process()  # in this mode an app has one worker at a time

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 1), back=st.integers(0, 20))
    def rewind(self, which: int, back: int) -> None:
        number = sorted(self.live)[-1 - back % len(self.live)]
        gone = [each for each in self.live if each > number]
        assert self.processes[which].rewind("p", "a", number) == len(gone)
        self.aside += len(gone)
        for each in gone:
            del self.live[each]
        self.processes[1 - which] = self.process()

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        self.processes[which] = self.process()

    @rule(which=st.integers(0, 1), writes=st.integers(0, 3))
    def crash(self, which: int, writes: int) -> None:
        self.backend.fails_after = writes
        number, before = self.newest + 1, dict(self.live)
        try:
            self.saved(number, which)
        except ConnectionError:
            self.live = before
        self.backend.fails_after = None
        self.processes[which] = self.process()

    def pruned(self, persister: Persister, keep: int, aside: bool, **options: Any) -> None:
        going = sorted(self.live)[:-keep]
        count = persister.prune("p", "a", keep_last=keep, include_set_aside=aside, **options)
        assert count == len(going) + aside * self.aside
        self.aside *= not aside
        for each in going:
            del self.live[each]

    @rule(which=st.integers(0, 1), keep=st.integers(1, 12), aside=st.booleans())
    def prune(self, which: int, keep: int, aside: bool) -> None:
        self.pruned(self.processes[which], keep, aside)

    @rule(keep=st.integers(1, 12), aside=st.booleans())
    def prune_while_nobody_writes(self, keep: int, aside: bool) -> None:
        self.pruned(self.process(), keep, aside, grace=NO_GRACE)
        self.processes = [self.process() for _ in range(2)]
        assert not self.process().verify().unreachable_parts

    @rule(which=st.integers(0, 1))
    def load(self, which: int) -> None:
        loaded = self.processes[which].load("p", "a")
        assert (loaded and loaded["state"].get_all()) == self.live.get(self.newest)

    def teardown(self) -> None:
        persister = self.process()
        report = persister.verify()
        assert report.ok, report
        assert report.records == len(self.live) + self.aside
        for number, state in self.live.items():
            assert persister.load("p", "a", number)["state"].get_all() == state
        assert persister.delete_app("p", "a") == len(self.live) + self.aside
        assert self.backend._space.keys == []


def test_any_sequence_of_things_leaves_every_record_exact() -> None:
    run_state_machine_as_test(
        HistoryMachine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
    )
