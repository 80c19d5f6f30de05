"""Burr applications of the kinds that its documents describe, on every store: streams, spawning, typed state, and
steps that end by something that is no exception."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from burr.core import ApplicationBuilder, State, action, default
from burr.core.action import streaming_action
from burr.integrations.pydantic import PydanticTypingSystem
from conftest import STORES
from object_servers import ObjectServer, object_servers

from kvpersist.testing import Face

__all__ = ["object_servers"]


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    face = Face(request.param == "async")
    yield face
    face.close()


@pytest.fixture(params=[*(name for name in STORES if name != "file-durable"), "s3"])
def make(
    request: pytest.FixtureRequest, face: Face, tmp_path: Path, object_servers: Callable[[str], ObjectServer]
) -> Callable[..., Any]:
    """Makes persisters on one store."""
    if request.param == "s3":
        server = object_servers("moto")
        url, options = server.url(), {"storage_options": server.storage_options}
    else:
        url, options = STORES[request.param](tmp_path), {}
    return lambda **more: face.persister(url, **options, **more)


def drive(face: Face, coroutine: Any) -> Any:
    return face.loop.run_until_complete(coroutine)


def build(face: Face, persister: Any, builder: ApplicationBuilder[Any], entrypoint: str, **identifiers: Any) -> Any:
    target = persister._target if face.asynchronous else persister
    builder = (
        builder.initialize_from(
            target, resume_at_next_action=True, default_state={"log": []}, default_entrypoint=entrypoint
        )
        .with_state_persister(target)
        .with_identifiers(**{"app_id": "app", "partition_key": "p", **identifiers})
    )
    return drive(face, builder.abuild()) if face.asynchronous else builder.build()


def step(face: Face, app: Any) -> Any:
    return drive(face, app.astep()) if face.asynchronous else app.step()


def ask(face: Face) -> Any:
    @action(reads=["log"], writes=["log"])
    def sync_ask(state: State[Any]) -> State[Any]:
        return state.append(log="ask")

    @action(reads=["log"], writes=["log"])
    async def async_ask(state: State[Any]) -> State[Any]:
        return state.append(log="ask")

    return async_ask if face.asynchronous else sync_ask


def chat(face: Face) -> ApplicationBuilder[Any]:
    """A question, and an answer that is streamed."""

    @streaming_action(reads=["log"], writes=["log"])
    def sync_answer(state: State[Any]) -> Generator[tuple[dict[str, Any], State[Any] | None], None, None]:
        for part in ("a", "n", "swer"):
            yield {"part": part}, None
        yield {"part": "answer"}, state.append(log="answer")

    @streaming_action(reads=["log"], writes=["log"])
    async def async_answer(state: State[Any]) -> AsyncGenerator[tuple[dict[str, Any], State[Any] | None], None]:
        for part in ("a", "n", "swer"):
            yield {"part": part}, None
        yield {"part": "answer"}, state.append(log="answer")

    answer = async_answer if face.asynchronous else sync_answer
    return (
        ApplicationBuilder()
        .with_actions(ask=ask(face), answer=answer)
        .with_transitions(("ask", "answer", default), ("answer", "ask", default))
    )


def stream(face: Face, app: Any, parts: int | None = None) -> list[str]:
    """Stream the next answer to its end, or close the stream after some parts."""
    found: list[str] = []
    if not face.asynchronous:
        _, container = app.stream_result(halt_after=["answer"])
        items = iter(container)
        for item in items:
            found.append(item["part"])
            if len(found) == parts:
                items.close()
        return found

    async def go() -> None:
        _, container = await app.astream_result(halt_after=["answer"])
        items = container.__aiter__()
        async for item in items:
            found.append(item["part"])
            if len(found) == parts:
                await items.aclose()

    drive(face, go())
    return found


def test_a_stream_is_saved_when_it_has_ended(face: Face, make: Callable[..., Any]) -> None:
    persister = make()
    app = build(face, persister, chat(face), "ask")
    assert stream(face, app) == ["a", "n", "swer"]
    loaded = persister.load("p", "app")
    assert (loaded["sequence_id"], loaded["position"]) == (1, "answer")
    assert loaded["state"]["log"] == ["ask", "answer"]
    resumed = build(face, persister, chat(face), "ask")
    assert resumed.get_next_action().name == "ask"
    stream(face, resumed)
    assert persister.load("p", "app")["state"]["log"] == ["ask", "answer"] * 2


@pytest.mark.filterwarnings("ignore")
def test_a_stream_that_is_closed_early_is_streamed_again(face: Face, make: Callable[..., Any]) -> None:
    persister = make()
    app = build(face, persister, chat(face), "ask")
    assert stream(face, app, parts=2) == ["a", "n"]
    assert persister.load("p", "app")["position"] == "ask"
    assert persister.load("p", "app", 1)["status"] == "failed"
    resumed = build(face, persister, chat(face), "ask")
    assert resumed.get_next_action().name == "answer"
    assert stream(face, resumed) == ["a", "n", "swer"]
    assert persister.load("p", "app", 1)["status"] == "completed"


def test_spawned_applications_keep_their_own_histories(face: Face, make: Callable[..., Any]) -> None:
    persister = make()
    parent = build(face, persister, chat(face), "ask")
    step(face, parent)
    child = chat(face).with_spawning_parent(app_id="app", sequence_id=0, partition_key="p")
    spawned = build(face, persister, child, "ask", app_id="child")
    step(face, spawned)
    stream(face, spawned)
    assert spawned.spawning_parent_pointer.app_id == "app"
    assert persister.list_app_ids("p") == ["app", "child"]
    assert persister.load("p", "app")["sequence_id"] == 0
    assert persister.load("p", "child")["sequence_id"] == 1


class Chat(pydantic.BaseModel):
    log: list[str] = []
    last: tuple[int, bytes] | None = None


def test_typed_state(face: Face, make: Callable[..., Any]) -> None:
    persister = make(serde_kwargs={"classes": [Chat]})

    def change(state: Chat) -> Chat:
        state.log.append("typed")
        state.last = (len(state.log), b"\0")
        return state

    @action.pydantic(reads=["log", "last"], writes=["log", "last"])
    def sync_note(state: Chat) -> Chat:
        return change(state)

    @action.pydantic(reads=["log", "last"], writes=["log", "last"])
    async def async_note(state: Chat) -> Chat:
        return change(state)

    def builder() -> ApplicationBuilder[Any]:
        return (
            ApplicationBuilder()
            .with_actions(note=async_note if face.asynchronous else sync_note)
            .with_transitions(("note", "note", default))
            .with_typing(PydanticTypingSystem(Chat))
        )

    app = build(face, persister, builder(), "note")
    for _ in range(2):
        step(face, app)
    resumed = build(face, persister, builder(), "note")
    assert resumed.state.data == Chat(log=["typed"] * 2, last=(2, b"\0"))
    assert resumed.sequence_id == 1


@pytest.mark.parametrize("before", ["ask", "work"])
def test_a_step_that_is_interrupted_is_not_completed(face: Face, make: Callable[..., Any], before: str) -> None:
    """Burr calls a step completed that Ctrl-C or a cancelled task has ended, with the state from before it."""
    persister = make()
    started = asyncio.Event()
    interrupts = True

    @action(reads=["log"], writes=["log"])
    def sync_work(state: State[Any]) -> State[Any]:
        if interrupts:
            raise KeyboardInterrupt
        return state.append(log="work")

    @action(reads=["log"], writes=["log"])
    async def async_work(state: State[Any]) -> State[Any]:
        if interrupts:
            started.set()
            await asyncio.sleep(60)
        return state.append(log="work")

    def builder() -> ApplicationBuilder[Any]:
        return (
            ApplicationBuilder()
            .with_actions(ask=ask(face), work=async_work if face.asynchronous else sync_work)
            .with_transitions(("ask", "work", default), ("work", "work", default))
        )

    app = build(face, persister, builder(), "ask")
    step(face, app)
    if before == "work":  # an action that follows itself
        interrupts = False
        step(face, app)
        interrupts = True
    last = app.sequence_id
    if face.asynchronous:

        async def cancelled() -> None:
            task = asyncio.ensure_future(app.astep())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        drive(face, cancelled())
    else:
        with pytest.raises(KeyboardInterrupt):
            step(face, app)
    statuses = [(each.sequence_id, each.status) for each in persister.history("p", "app")]
    assert statuses[:2] == [(last + 1, "failed"), (last, "completed")]
    interrupts = False
    resumed = build(face, persister, builder(), "ask")
    assert resumed.get_next_action().name == "work"
    step(face, resumed)
    assert persister.load("p", "app")["state"]["log"] == ["ask"] + ["work"] * (last + 1)
