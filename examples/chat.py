"""A chat-like Burr application that survives anything: a loop, a branch, an action that may fail, a typed value.

    ask ──> answer ──┐          It takes the questions of its script one by one.  One that ends in
     │               ├──> ask   "?" needs a search, which fails while the service is down.
     └──> search ────┘
     └──> done

Run one step after the other in a process of its own, as a worker would:

    python examples/chat.py sqlite://./chat.db --app chat-1
    python examples/chat.py file://./chats --app chat-1 --async

Start it again after any crash, and it goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import functools
import os
import time
from collections.abc import Callable
from typing import Any

from burr.core import Application, ApplicationBuilder, State, action, default, when
from pydantic import BaseModel

from kvpersist import AsyncPersister, Persister

Step = Callable[[State[Any]], State[Any]]

SCRIPT = ["hello", "what is a persister?", "thank you", "what is a sequence id?", "goodbye"]


class Profile(BaseModel):
    """What the application learns about its user: a value that plain JSON cannot hold."""

    name: str
    first_seen: dt.datetime
    topics: set[str] = set()


# Classes come back from a store only where the reader allows them.
SERDE: dict[str, Any] = {"classes": {"Profile": Profile}}

# In an async application Burr 0.43 saves the state from before a sync action, so each is registered in both forms.
ACTIONS: dict[bool, list[Any]] = {False: [], True: []}


def step(reads: list[str], writes: list[str]) -> Callable[[Step], Step]:
    """Register a function as a sync action and as an async one."""

    def register(function: Step) -> Step:
        @functools.wraps(function)
        async def awaited(state: State[Any]) -> State[Any]:
            return function(state)

        ACTIONS[False].append(action(reads=reads, writes=writes)(function))
        ACTIONS[True].append(action(reads=reads, writes=writes)(awaited))
        return function

    return register


@step(reads=["script", "chat"], writes=["question", "kind", "chat", "script"])
def ask(state: State[Any]) -> State[Any]:
    script = list(state["script"])
    if not script:
        return state.update(question=None, kind="done", script=script, chat=state["chat"])
    question = script.pop(0)
    kind = "search" if question.endswith("?") else "answer"
    return state.append(chat={"role": "user", "content": question}).update(question=question, kind=kind, script=script)


@step(reads=["question", "chat", "profile"], writes=["chat"])
def answer(state: State[Any]) -> State[Any]:
    if os.environ.get("CHAT_HANG_AT") == state["question"]:
        print("hanging", flush=True)
        time.sleep(600)  # a slow model: time enough to be killed in the middle of a step
    return state.append(chat={"role": "assistant", "content": f"You said {state['question']!r}."})


@step(reads=["question", "chat", "profile"], writes=["chat", "profile"])
def search(state: State[Any]) -> State[Any]:
    if os.environ.get("CHAT_SEARCH_IS_DOWN"):
        raise ConnectionError("the search service is down")
    profile = state["profile"]
    topic = state["question"].rstrip("?").split()[-1]
    return state.append(chat={"role": "assistant", "content": f"I looked up {topic!r}."}).update(
        profile=profile.model_copy(update={"topics": {*profile.topics, topic}})
    )


@step(reads=["chat"], writes=[])
def done(state: State[Any]) -> State[Any]:
    return state


def builder(
    persister: Persister | AsyncPersister,
    app_id: str,
    *,
    script: list[str] | None = None,
    sequence_id: int | None = None,
    fork_from: tuple[str, int] | None = None,
) -> ApplicationBuilder[Any]:
    """The application, resumed from what is stored: at its latest step, at an earlier one, or forked from another."""
    partition_key = "demo"
    fork_app_id, fork_sequence_id = fork_from or (None, None)
    return (
        ApplicationBuilder()
        .with_actions(*ACTIONS[persister.is_async()])
        .with_transitions(
            ("ask", "done", when(kind="done")),
            ("ask", "search", when(kind="search")),
            ("ask", "answer", default),
            (["answer", "search"], "ask", default),
        )
        .initialize_from(
            persister,
            resume_at_next_action=True,
            default_state={
                "script": SCRIPT,
                "chat": [],
                "profile": Profile(name="Ada", first_seen=dt.datetime(2026, 11, 24, 6, 23, tzinfo=dt.timezone.utc)),
            },
            default_entrypoint="ask",
            fork_from_app_id=fork_app_id,  # type: ignore[arg-type]  # Burr's types leave out the None it asks for
            fork_from_partition_key=partition_key if fork_from else None,  # type: ignore[arg-type]
            fork_from_sequence_id=fork_sequence_id,  # type: ignore[arg-type]
            override_state_values=None if script is None else {"script": script},
        )
        .with_state_persister(persister)
        .with_identifiers(app_id=app_id, partition_key=partition_key, sequence_id=sequence_id)  # type: ignore[arg-type]
    )


def run(url: str, app_id: str, options: dict[str, Any], **kwargs: Any) -> Application[Any]:
    """Run a sync application to its end."""
    with Persister.from_url(url, serde_kwargs=SERDE, **options) as persister:
        app = builder(persister, app_id, **kwargs).build()
        _announce(app)
        app.run(halt_after=["done"])
    return app


async def arun(url: str, app_id: str, options: dict[str, Any], **kwargs: Any) -> Application[Any]:
    """Run an async application to its end."""
    async with AsyncPersister.from_url(url, serde_kwargs=SERDE, **options) as persister:
        app = await builder(persister, app_id, **kwargs).abuild()
        _announce(app)
        await app.arun(halt_after=["done"])
    return app


def _announce(app: Application[Any]) -> None:
    following = app.get_next_action()
    where = "starts at" if app.sequence_id is None else f"has done step {app.sequence_id} and goes on at"
    print(f"{app.uid} {where} {following.name if following else 'its end'!r}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="where the state is kept")
    parser.add_argument("--app", default="chat-1", help="the application's id")
    parser.add_argument("--async", action="store_true", dest="asynchronous", help="run the async application")
    arguments = parser.parse_args()
    if arguments.asynchronous:
        asyncio.run(arun(arguments.url, arguments.app, {}))
    else:
        run(arguments.url, arguments.app, {})
