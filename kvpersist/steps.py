"""The two drivers: one body of code, run with a sync client or with an async one.

A *step body* is a generator that says ``yield`` where async code would say ``await``::

    def load(self, key):
        value = yield self.client.get(key)
        return value.decode()

With a sync client, `run` sends what was yielded straight back.  With an async client, `arun` awaits
it first and throws what it raises back into the body, so ``try`` and ``with`` around a ``yield``
mean the same in both.  A body calls another with ``yield from``, and yields a `Group` (through
`gather`) for bodies that may run side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Step = Generator[Any, Any, T]
"""A body: yields what its client returned, is sent the result, returns a `T`."""


class Group(Generic[T]):
    """Bodies that do not depend on each other, of which at most `limit` run at once."""

    __slots__ = ("bodies", "limit")

    def __init__(self, bodies: list[Step[T]], limit: int) -> None:
        self.bodies = bodies
        self.limit = limit


def gather(bodies: Iterable[Step[T]], *, limit: int = 32) -> Step[list[T]]:
    """Run bodies side by side where the client is async, one after the other where it is not.

    Returns their results in order.  The first failure cancels the rest and is raised.
    """
    results: list[T] = yield Group(list(bodies), limit)
    return results


def run(body: Step[T]) -> T:
    """Drive a body whose clients are sync, and return what it returns."""
    try:
        yielded = next(body)
        while True:
            if yielded.__class__ is Group:
                try:
                    yielded = [run(each) for each in yielded.bodies]
                except BaseException as error:  # noqa: BLE001  the body decides
                    yielded = body.throw(error)
                    continue
            yielded = body.send(yielded)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def arun(body: Step[T]) -> T:
    """Drive a body whose clients are async, and return what it returns.

    Cancelling the task raises `asyncio.CancelledError` at the body's ``yield``, so that it can clean up.
    """
    try:
        yielded = next(body)
        while True:
            try:
                if yielded.__class__ is Group:
                    yielded = await _gather(yielded)
                elif hasattr(yielded.__class__, "__await__"):
                    yielded = await yielded
            except GeneratorExit:  # this coroutine was closed: no body may yield any more
                body.close()
                raise
            except BaseException as error:  # noqa: BLE001  the body decides
                yielded = body.throw(error)
                continue
            yielded = body.send(yielded)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _gather(group: Group[T]) -> list[T]:
    slots = asyncio.Semaphore(group.limit)

    async def in_slot(body: Step[T]) -> T:
        async with slots:
            return await arun(body)

    tasks = [asyncio.ensure_future(in_slot(body)) for body in group.bodies]
    try:
        return await asyncio.gather(*tasks)
    except GeneratorExit:  # this coroutine was closed: it may not wait any more
        for task in tasks:
            task.cancel()
        raise
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
