"""Real Burr applications: resume, fail, fork, rewind, typed values, what is registered with Burr's serde."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pydantic
import pytest
from burr.core import ApplicationBuilder, State, action, default, expr, serde, state
from conftest import STORES

from kvpersist import (
    ALL,
    AsyncPersister,
    ConflictError,
    DeserializationError,
    OptionError,
    Persister,
    SerializationError,
)
from kvpersist.testing import Face

EXAMPLES = Path(__file__).parent.parent / "examples"


class Broken(Exception):
    pass


class Clock:
    """A graph of two actions in a loop; `tock` fails when told to."""

    def __init__(self, face: Face, persister: Any) -> None:
        self.face = face
        self.persister = persister
        self.fails = False

    def build(self, *, app_id: str = "clock", sequence_id: int | None = None, **initialize: Any) -> Any:
        def count(state: State[Any], name: str) -> State[Any]:
            if name == "tock" and self.fails:
                raise Broken
            return state.append(log=name).increment(n=1)

        @action(reads=["log", "n"], writes=["log", "n"])
        def tick(state: State[Any]) -> State[Any]:
            return count(state, "tick")

        @action(reads=["log", "n"], writes=["log", "n"])
        def tock(state: State[Any]) -> State[Any]:
            return count(state, "tock")

        @action(reads=["log", "n"], writes=["log", "n"])
        async def atick(state: State[Any]) -> State[Any]:
            return count(state, "tick")

        @action(reads=["log", "n"], writes=["log", "n"])
        async def atock(state: State[Any]) -> State[Any]:
            return count(state, "tock")

        actions = {"tick": atick, "tock": atock} if self.face.asynchronous else {"tick": tick, "tock": tock}
        persister = self.persister._target if self.face.asynchronous else self.persister
        builder = (
            ApplicationBuilder()
            .with_actions(**actions)
            .with_transitions(("tick", "tock", default), ("tock", "tick", expr("n >= 0")))
            .initialize_from(
                persister,
                resume_at_next_action=True,
                default_state={"log": [], "n": 0},
                default_entrypoint="tick",
                **initialize,
            )
            .with_state_persister(persister)
            .with_identifiers(app_id=app_id, partition_key=None, sequence_id=sequence_id)
        )
        return self._drive(builder.abuild()) if self.face.asynchronous else builder.build()

    def steps(self, app: Any, count: int) -> Any:
        for _ in range(count):
            if self.face.asynchronous:
                self._drive(app.astep())
            else:
                app.step()
        return app

    def _drive(self, coroutine: Any) -> Any:
        return self.face.loop.run_until_complete(coroutine)


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Any:
    face = Face(request.param == "async")
    yield face
    face.close()


@pytest.fixture(params=[name for name in STORES if name != "file-durable"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return STORES[request.param](tmp_path)


def test_an_application_goes_on_where_it_was(face: Face, url: str) -> None:
    clock = Clock(face, face.persister(url))
    clock.steps(clock.build(), 3)
    resumed = clock.build()
    assert resumed.get_next_action().name == "tock"
    assert resumed.sequence_id == 2
    clock.steps(resumed, 2)
    assert resumed.state["log"] == ["tick", "tock"] * 2 + ["tick"]
    assert clock.persister.load(None, "clock")["state"].get_all() == resumed.state.get_all()
    assert [header.position for header in clock.persister.history(None, "clock")] == [
        "tick",
        "tock",
        "tick",
        "tock",
        "tick",
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_failed_action_is_repeated(face: Face, url: str) -> None:
    clock = Clock(face, face.persister(url))
    app = clock.steps(clock.build(), 1)
    clock.fails = True
    with pytest.raises(Broken):
        clock.steps(app, 1)
    assert clock.persister.load(None, "clock", 1)["status"] == "failed"
    with pytest.raises(Broken):  # again, from a new process as it were: the same failed record
        clock.steps(clock.build(), 1)
    clock.fails = False
    resumed = clock.build()
    assert resumed.get_next_action().name == "tock"
    clock.steps(resumed, 1)
    loaded = clock.persister.load(None, "clock")
    assert (loaded["sequence_id"], loaded["status"], loaded["state"]["log"]) == (1, "completed", ["tick", "tock"])


def test_fork(face: Face, url: str) -> None:
    clock = Clock(face, face.persister(url))
    clock.steps(clock.build(), 6)
    fork = clock.build(app_id="fork", fork_from_app_id="clock", fork_from_sequence_id=2)
    clock.steps(fork, 1)
    assert clock.persister.load(None, "fork")["state"]["log"] == ["tick", "tock", "tick", "tock"]
    assert clock.persister.load(None, "clock")["sequence_id"] == 5


def test_rewind_on_one_app_id(face: Face, url: str) -> None:
    clock = Clock(face, face.persister(url, on_conflict="rewind"))
    clock.steps(clock.build(), 11)
    back = clock.build(sequence_id=5, override_state_values={"n": 100})
    clock.steps(back, 2)
    assert clock.persister.load(None, "clock")["state"]["n"] == 102
    again = clock.build()
    assert again.sequence_id == 7
    clock.steps(again, 1)
    live = [header.sequence_id for header in clock.persister.history(None, "clock")]
    assert live == [8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_going_back_without_saying_so_is_a_conflict(face: Face, url: str) -> None:
    clock = Clock(face, face.persister(url))
    clock.steps(clock.build(), 4)
    with pytest.raises(ConflictError, match="rewind"):
        clock.steps(clock.build(sequence_id=1, override_state_values={"n": 100}), 1)


def test_two_workers_on_one_app_find_out(face: Face, url: str) -> None:
    clock = Clock(face, face.persister(url))
    clock.steps(clock.build(), 1)
    one, other = clock.build(override_state_values={"n": 1}), clock.build(override_state_values={"n": 2})
    clock.steps(one, 1)
    with pytest.raises(ConflictError, match="Another worker may be running this app"):
        clock.steps(other, 1)


def test_sync_actions_of_an_async_application_are_warned_of() -> None:
    @action(reads=[], writes=["x"])
    def plain(state: State[Any]) -> State[Any]:
        return state.update(x=1)

    async def main() -> None:
        async with AsyncPersister.from_url("memory://") as persister:
            app = await (
                ApplicationBuilder()
                .with_actions(plain)
                .with_transitions(("plain", "plain", default))
                .initialize_from(persister, resume_at_next_action=True, default_state={}, default_entrypoint="plain")
                .with_state_persister(persister)
                .abuild()
            )
            with pytest.warns(RuntimeWarning, match="before the action 'plain'"):
                await app.astep()

    asyncio.run(main())


def test_the_demo_runs() -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py"], check=False, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("set aside by the rewind") == 6 * 6
    assert "=== s3, async ===" in result.stdout


# Values and classes


class Color(enum.Enum):
    RED = "r"


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: tuple[int, ...] = ()


@dataclasses.dataclass
class Built:
    x: int
    calls: typing.ClassVar[int] = 0

    def __post_init__(self) -> None:
        type(self).calls += 1


class Pair(typing.NamedTuple):
    a: int
    b: set[int]


class Message(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    text: str = pydantic.Field(alias="TEXT")
    secret: str = pydantic.Field(default="s", exclude=True)
    points: list[Point] = []
    _private: int = pydantic.PrivateAttr(default=0)


CLASSES = [Color, Level, Point, Built, Pair, Message]


def message() -> Message:
    made = Message(TEXT="hi", points=[Point(1)], more={"color": Color.RED})  # type: ignore[call-arg]
    made._private = 7
    made.secret = "other"
    return made


@pytest.mark.parametrize(
    "value",
    [Color.RED, Level.LOW, Level.LOW | Level.HIGH, Point(1, (2, 3)), Pair(1, {2}), message(), {Color.RED: Point(1)}],
    ids=repr,
)
def test_classes_come_back_where_they_are_allowed(value: Any) -> None:
    for classes in (CLASSES, {"c": Color, "l": Level, "p": Point, "q": Pair, "m": Message}, [__name__]):
        with Persister.from_url("memory://", serde_kwargs={"classes": classes}) as persister:
            persister.save("p", "a", 1, "step", State({"v": [value]}), "completed")
            (loaded,) = persister.load("p", "a")["state"]["v"]  # type: ignore[index]
            assert loaded == value
            assert type(loaded) is type(value)
            assert repr(loaded) == repr(value)
            if isinstance(value, Message):
                assert (loaded._private, loaded.secret) == (7, "other")


def test_a_constructor_is_not_run_by_a_load() -> None:
    with Persister.from_url("memory://", serde_kwargs={"classes": [Built]}) as persister:
        persister.save("p", "a", 1, "step", State({"v": Built(1)}), "completed")
        calls = Built.calls
        assert persister.load("p", "a")["state"]["v"] == Built(1)  # type: ignore[index]
        assert Built.calls == calls + 1  # by the line above


def test_classes_that_are_not_allowed() -> None:
    name = "memory://not-allowed"
    with Persister.from_url(name, serde_kwargs={"classes": [Point]}) as allowing, Persister.from_url(name) as other:
        for value in (Point(1), Color.RED, Pair(1, set()), message()):
            with pytest.raises(
                SerializationError, match=rf"state\['v'\] is a test_burr:{type(value).__name__}.*classes"
            ):
                other.save("p", "a", 1, "step", State({"v": value}), "completed")
        allowing.save("p", "a", 1, "step", State({"v": Point(1)}), "completed")
        with pytest.raises(DeserializationError, match=r"test_burr:Point.*'classes': \[Point\]"):
            other.load("p", "a")
    for bad in (Point, "builtins", [1], {"a": Point, "b": 3}):
        with pytest.raises(OptionError, match="classes"):
            Persister.from_url(name, serde_kwargs={"classes": bad})
    with pytest.raises(OptionError, match="no serializer 'yaml'"):
        Persister.from_url(name, serde_kwargs={"serializer": "yaml"})


class Temperature:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> typing.Iterator[None]:
    """A type and a field registered with Burr's serde, as users do."""

    @serde.serialize.register(Temperature)
    def _serialize(value: Temperature, unit: str = "C", **_: Any) -> dict[str, Any]:
        return {serde.KEY: "temperature", "raw": [value.degrees, unit], "bytes": b"x"}

    @serde.deserializer.register("temperature")
    def _deserialize(value: dict[str, Any], unit: str = "C", **_: Any) -> Temperature:
        assert value["raw"][1] == unit
        return Temperature(value["raw"][0])

    state.register_field_serde(
        "special", lambda value, **_: {"wrapped": value}, lambda value, **_: ("special", value["wrapped"])
    )
    yield
    del serde.deserializer.func_map["temperature"]
    del state.FIELD_SERIALIZATION["special"]


@pytest.mark.usefixtures("registered")
def test_what_is_registered_with_burrs_serde_keeps_working() -> None:
    with Persister.from_url("memory://", serde_kwargs={"unit": "F"}) as persister:
        saved = State({"t": [Temperature(3.5)], "special": {1, 2}, "plain": {"special": 1}})
        persister.save("p", "a", 1, "step", saved, "completed")
        loaded = persister.load("p", "a")["state"]  # type: ignore[index]
        assert loaded["t"][0].degrees == 3.5
        assert loaded["special"] == ("special", {1, 2})
        assert loaded["plain"] == {"special": 1}
        del state.FIELD_SERIALIZATION["special"]
        with pytest.raises(DeserializationError, match="register_field_serde"):
            persister.load("p", "a")
        state.FIELD_SERIALIZATION["special"] = (lambda: None, lambda: None)


def test_all_is_the_name_of_everything() -> None:
    assert repr(ALL) == "ALL"


class _Slotted:
    __slots__ = ("__hidden", "shown")

    def hide(self, value: int) -> None:
        self.__hidden = value


@dataclasses.dataclass
class Holder(_Slotted):
    x: int = 1


class SlottedModel(pydantic.BaseModel):
    __slots__ = ("extra_slot",)
    x: int = 1


def test_what_would_lose_a_slot_is_refused() -> None:
    with Persister.from_url("memory://", serde_kwargs={"classes": [Holder, SlottedModel]}) as persister:
        persister.save("p", "a", 1, "step", State({"v": [Holder(), SlottedModel()]}), "completed")
        hiding, shown, model = Holder(), Holder(), SlottedModel()
        hiding.hide(5)
        shown.shown = 5
        object.__setattr__(model, "extra_slot", 5)
        for value in (hiding, shown, model):
            with pytest.raises(SerializationError, match="cannot hold exactly"):
                persister.save("p", "a", 2, "step", State({"v": value}), "completed")
