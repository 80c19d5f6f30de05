"""Burr's parallelism: sub-applications that persist through copies (threads, tasks) and through pickles (Ray)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from burr.core import ApplicationBuilder, GraphBuilder, State, action, default
from burr.core.action import create_action
from burr.core.parallelism import MapActions, MapStates, RunnableGraph
from conftest import STORES
from object_servers import ObjectServer, object_servers

from kvpersist import ALL, AsyncPersister, ConflictError, Persister
from kvpersist.testing import Face

__all__ = ["object_servers"]

Place = tuple[str, dict[str, Any]]


@pytest.fixture(params=[*(name for name in STORES if name != "file-durable"), "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, object_servers: Callable[[str], ObjectServer]) -> Place:
    """The URL of an empty store, and its options."""
    if request.param == "s3":
        server = object_servers("moto")
        return server.url(), {"storage_options": server.storage_options}
    return STORES[request.param](tmp_path), {}


class Steps:
    """What the sub-applications do: it is counted, and can be made to fail or to wait."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []
        self.fails: set[int] = set()
        self.waits_for: dict[int, asyncio.Event] = {}
        self.threads: set[int] = set()

    def graph(self, asynchronous: bool) -> RunnableGraph:
        @action(reads=["n"], writes=["half"])
        def start(state: State[Any]) -> State[Any]:
            return self.start(state)

        @action(reads=["half"], writes=["out"])
        def finish(state: State[Any]) -> State[Any]:
            return self.finish(state)

        @action(reads=["n"], writes=["half"])
        async def astart(state: State[Any]) -> State[Any]:
            return self.start(state)

        @action(reads=["half"], writes=["out"])
        async def afinish(state: State[Any]) -> State[Any]:
            if state["n"] in self.waits_for:
                await self.waits_for[state["n"]].wait()
            return self.finish(state)

        actions = {"start": astart, "finish": afinish} if asynchronous else {"start": start, "finish": finish}
        graph = GraphBuilder().with_actions(**actions).with_transitions(("start", "finish", default)).build()
        return RunnableGraph(graph, "start", ["finish"])

    def start(self, state: State[Any]) -> State[Any]:
        self.done.append(("start", state["n"]))
        self.threads.add(threading.get_ident())
        return state.update(half=(state["n"], b"exact"))

    def finish(self, state: State[Any]) -> State[Any]:
        self.done.append(("finish", state["n"]))
        if state["n"] in self.fails:
            raise RuntimeError("flaky")
        return state.update(out=state["half"][0] ** 2)


class _Squares(MapStates):
    reads: ClassVar[list[str]] = ["numbers"]
    writes: ClassVar[list[str]] = ["outs"]

    def __init__(self, graph: RunnableGraph) -> None:
        super().__init__()
        self.graph = graph

    def action(self, state: State[Any], inputs: dict[str, Any]) -> RunnableGraph:
        return self.graph

    def states(self, state: State[Any], context: Any, inputs: dict[str, Any]) -> Iterator[State[Any]]:
        for number in state["numbers"]:
            yield state.update(n=number)


class Squares(_Squares):
    def reduce(self, state: State[Any], states: Iterator[State[Any]]) -> State[Any]:
        return state.update(outs=[each["out"] for each in states])


class AsyncSquares(_Squares):
    def is_async(self) -> bool:
        return True

    async def reduce(self, state: State[Any], states: AsyncGenerator[State[Any], None]) -> State[Any]:
        return state.update(outs=[each["out"] async for each in states])


def squares(graph: RunnableGraph, asynchronous: bool) -> _Squares:
    return (AsyncSquares if asynchronous else Squares)(graph)


def builder(persister: Any, numbers: list[int], **actions: Any) -> ApplicationBuilder[Any]:
    (name,) = actions
    return (
        ApplicationBuilder()
        .with_actions(**actions)
        .with_transitions((name, name, default))
        .initialize_from(
            persister, resume_at_next_action=True, default_state={"numbers": numbers}, default_entrypoint=name
        )
        .with_state_persister(persister)
        .with_identifiers(app_id="parent", partition_key="p")
    )


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(request.param == "async")
    yield face
    face.close()


def step(face: Face, persister: Any, numbers: list[int], **actions: Any) -> State[Any]:
    """Build an application, as after a restart, and run its next step."""
    if not face.asynchronous:
        _, _, state = builder(persister, numbers, **actions).build().step()
        return state

    async def go() -> State[Any]:
        app = await builder(persister._target, numbers, **actions).abuild()
        _, _, state = await app.astep()
        return state

    return face.loop.run_until_complete(go())


def records(persister: Any) -> dict[str, list[tuple[int, str, str]]]:
    return {
        app_id: [(each.sequence_id, each.position, each.status) for each in persister.history("p", app_id)]
        for app_id in persister.list_app_ids("p")
    }


WHOLE = [(1, "finish", "completed"), (0, "start", "completed")]


@pytest.mark.filterwarnings("ignore")
def test_map_states_and_a_retry_after_a_failure(face: Face, place: Place) -> None:
    url, options = place
    persister = face.persister(url, **options)
    steps = Steps()
    steps.fails = {2}
    fan = squares(steps.graph(face.asynchronous), face.asynchronous)
    with pytest.raises(RuntimeError, match="flaky"):
        step(face, persister, [0, 1, 2], fan=fan)
    # Burr's gather returns at the first failure while the others go on: here they end before the restart.
    deadline = time.monotonic() + 30
    while list(records(persister).values()).count(WHOLE) < 2:
        assert time.monotonic() < deadline
    steps.done.clear()
    steps.fails.clear()
    # After a restart, what the sub-applications did is still there: only what has failed is done again.
    assert step(face, persister, [0, 1, 2], fan=fan)["outs"] == [0, 1, 4]
    assert steps.done == [("finish", 2)]
    found = records(persister)
    assert found.pop("parent") == [(0, "fan", "completed")]
    assert list(found.values()) == [WHOLE] * 3
    for app_id in found:
        assert persister.load("p", app_id)["state"]["half"][1] == b"exact"
    if not face.asynchronous:
        assert len(steps.threads - {threading.get_ident()}) > 0


@pytest.mark.filterwarnings("ignore")
def test_map_actions(face: Face, place: Place) -> None:
    url, options = place
    persister = face.persister(url, **options)

    @action(reads=["numbers"], writes=["out"])
    def total(state: State[Any], power: int) -> State[Any]:
        return state.update(out=sum(each**power for each in state["numbers"]))

    @action(reads=["numbers"], writes=["out"])
    async def atotal(state: State[Any], power: int) -> State[Any]:
        return state.update(out=sum(each**power for each in state["numbers"]))

    class Totals(MapActions):
        reads: ClassVar[list[str]] = ["numbers"]
        writes: ClassVar[list[str]] = ["outs"]

        def actions(self, state: State[Any], context: Any, inputs: dict[str, Any]) -> Iterator[Any]:
            for power in (1, 2, 3):
                bound = (atotal if face.asynchronous else total).bind(power=power)
                yield create_action(bound, f"power{power}")

        def is_async(self) -> bool:
            return face.asynchronous

        def reduce(self, state: State[Any], states: Any) -> Any:
            if not face.asynchronous:
                return state.update(outs=[each["out"] for each in states])

            async def reduced() -> State[Any]:
                return state.update(outs=[each["out"] async for each in states])

            return reduced()

    assert step(face, persister, [1, 2, 3], totals=Totals())["outs"] == [6, 14, 36]
    found = records(persister)
    assert found.pop("parent") == [(0, "totals", "completed")]
    assert sorted(position for ((_, position, _),) in found.values()) == ["power1", "power2", "power3"]


@pytest.mark.filterwarnings("ignore")
def test_a_fan_in_a_fan(face: Face, tmp_path: Path) -> None:
    persister = face.persister(STORES["sqlite"](tmp_path))
    steps = Steps()
    inner = squares(steps.graph(face.asynchronous), face.asynchronous)

    @action(reads=["n"], writes=["numbers"])
    def spread(state: State[Any]) -> State[Any]:
        return state.update(numbers=[state["n"], state["n"] + 10])

    @action(reads=["n"], writes=["numbers"])
    async def aspread(state: State[Any]) -> State[Any]:
        return state.update(numbers=[state["n"], state["n"] + 10])

    @action(reads=["outs"], writes=["out"])
    def add(state: State[Any]) -> State[Any]:
        return state.update(out=sum(state["outs"]))

    @action(reads=["outs"], writes=["out"])
    async def aadd(state: State[Any]) -> State[Any]:
        return state.update(out=sum(state["outs"]))

    graph = (
        GraphBuilder()
        .with_actions(
            spread=aspread if face.asynchronous else spread, inner=inner, add=aadd if face.asynchronous else add
        )
        .with_transitions(("spread", "inner", default), ("inner", "add", default))
        .build()
    )
    outer = squares(RunnableGraph(graph, "spread", ["add"]), face.asynchronous)
    assert step(face, persister, [1, 2], outer=outer)["outs"] == [1 + 121, 4 + 144]
    found = records(persister)
    assert len(found) == 1 + 2 + 4
    lengths = sorted(len(each) for each in found.values())
    assert lengths == [1, 2, 2, 2, 2, 3, 3]


@pytest.mark.filterwarnings("ignore")
def test_a_retry_while_cancelled_siblings_still_write(tmp_path: Path) -> None:
    """Burr's gather returns at the first failure; the other sub-applications go on, and the retry meets them."""
    steps = Steps()

    async def main() -> None:
        async with AsyncPersister.from_url(STORES["sqlite"](tmp_path)) as persister:
            fan = squares(steps.graph(asynchronous=True), asynchronous=True)
            steps.fails, steps.waits_for = {2}, {0: asyncio.Event(), 1: asyncio.Event()}
            app = await builder(persister, [0, 1, 2], fan=fan).abuild()
            others = asyncio.all_tasks()
            with pytest.raises(RuntimeError, match="flaky"):
                await app.astep()
            left = asyncio.all_tasks() - others
            assert len(left) == 2
            doomed, _ = left
            doomed.cancel()  # while it is in its second step: Burr saves that as failed, in the end
            steps.fails.clear()
            app = await builder(persister, [0, 1, 2], fan=fan).abuild()
            retry = asyncio.ensure_future(app.astep())
            await asyncio.sleep(0)
            steps.waits_for[0].set()
            steps.waits_for[1].set()
            _, _, state = await retry
            assert state["outs"] == [0, 1, 4]
            await asyncio.gather(*left, return_exceptions=True)
            for app_id in await persister.list_app_ids("p"):
                if app_id != "parent":
                    assert (await persister.load("p", app_id))["sequence_id"] == 1  # type: ignore[index]
                    found = [each.status async for each in persister.history("p", app_id)]
                    assert found == ["completed", "completed"]

    asyncio.run(main())


def test_a_late_failure_does_not_replace_what_the_retry_completed() -> None:
    with Persister.from_url("memory://") as persister:
        persister.save("p", "sub", 0, "step", State({"n": 0}), "failed")
        persister.save("p", "sub", 0, "step", State({"n": 1}), "completed")  # by the retry
        with pytest.raises(ConflictError):  # in the cancelled sibling, where nobody waits for it
            persister.save("p", "sub", 0, "step", State({"n": 0}), "failed")
        assert persister.load("p", "sub")["state"]["n"] == 1  # type: ignore[index]
        assert persister.prune(ALL, keep_last=1) == 0


def test_on_ray(tmp_path: Path, object_servers: Callable[[str], ObjectServer]) -> None:
    server = object_servers("moto")
    places: dict[str, Place] = {name: (STORES[name](tmp_path), {}) for name in ("sqlite", "file", "redis")}
    places["s3"] = (server.url(), {"storage_options": server.storage_options})
    result = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("ray_application.py"), json.dumps(places)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout.splitlines()[-1])
    for name, (url, options) in places.items():
        assert results[name]["outs"] == [1, 4, 9]
        assert results[name]["here"] not in results[name]["there"]
        with Persister.from_url(url, **options) as persister:
            found = records(persister)
            assert found.pop("parent") == [(0, "squares", "completed")]
            assert list(found.values()) == [[(1, "finish", "completed"), (0, "square", "completed")]] * 3
            for app_id in found:
                assert persister.load("p", app_id)["state"]["out"][1] == b"\0"  # type: ignore[index]
