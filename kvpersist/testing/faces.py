"""One way to call both faces, so that each test is written once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvpersist import AsyncPersister, AsyncStore, Persister, Store


class Blocking:
    """An async object behind blocking calls, on a loop of its own."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            result = attribute(*args, **kwargs)
            if inspect.isasyncgen(result):
                return self._loop.run_until_complete(_collected(result))
            if inspect.isawaitable(result):
                return self._loop.run_until_complete(_awaited(result))
            return Blocking(result, self._loop) if isinstance(result, type(self._target)) else result

        return call


async def _collected(items: Any) -> list[Any]:
    return [item async for item in items]


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


class Face:
    """Opens stores and persisters with one of the two faces, and closes them in the end."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.loop = asyncio.new_event_loop()
        self._opened: list[Any] = []

    def store(self, url: str, **options: Any) -> Any:
        """A `Store`, or an `AsyncStore` behind blocking calls."""
        return self.adopt((AsyncStore if self.asynchronous else Store).from_url(url, **options))

    def persister(self, url: str, **options: Any) -> Any:
        """A `Persister`, or an `AsyncPersister` behind blocking calls."""
        return self.adopt((AsyncPersister if self.asynchronous else Persister).from_url(url, **options))

    def adopt(self, target: Any) -> Any:
        """Any object of this face behind blocking calls, to be closed in the end."""
        opened = Blocking(target, self.loop) if self.asynchronous else target
        self._opened.append(opened)
        return opened

    def other(self) -> Face:
        """The other face."""
        return Face(not self.asynchronous)

    def at_once(self, opened: Any, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Call a method many times at the same time, in threads or tasks; an exception is a result."""
        if self.asynchronous:
            function = getattr(opened._target, method)

            async def gathered() -> list[Any]:
                return await asyncio.gather(*(function(*each) for each in arguments), return_exceptions=True)

            return self.loop.run_until_complete(gathered())
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(getattr(opened, method), *each) for each in arguments]
        return [future.exception() or future.result() for future in futures]

    def close(self) -> None:
        """Close all that was opened, and the loop."""
        for each in reversed(self._opened):
            each.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


class FaceFixtures:
    """The fixtures of the contract classes."""

    @pytest.fixture(params=["sync", "async"])
    def face(self, request: pytest.FixtureRequest) -> Iterator[Face]:
        face = Face(request.param == "async")
        yield face
        face.close()

    @pytest.fixture
    def other_face(self, face: Face) -> Iterator[Face]:
        other = face.other()
        yield other
        other.close()

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """The options to open the store with; override it where a store needs some."""
        return {}
