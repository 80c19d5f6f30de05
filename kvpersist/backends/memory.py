"""``memory://``: a store in this process, for tests and for applications that need no restart.

``memory://name`` is one store for all who name it; ``memory://`` is a new one for each who opens it.
It holds bytes, so that changing a state later never changes its history.
"""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from ..errors import OptionError, StoreError
from ..keys import prefix_end, scan_range
from ..steps import Step
from ..urls import redacted
from . import PAGE, Backend, Mode, Page


class _Space:
    """Keys in order, and their values."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.keys: list[str] = []
        self.values: dict[str, bytes] = {}

    def remove(self, key: str) -> None:
        del self.values[key]
        del self.keys[bisect_left(self.keys, key)]


_spaces: weakref.WeakValueDictionary[str, _Space] = weakref.WeakValueDictionary()
_named: dict[str, _Space] = {}


def _after_fork() -> None:
    for space in list(_spaces.values()):
        space.lock = threading.Lock()  # a thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class MemoryBackend(Backend):
    """A store in this process."""

    def __init__(self, url: str, *, asynchronous: bool = False) -> None:
        super().__init__(url, asynchronous=asynchronous)
        parts = urlsplit(url)
        if parts.path not in ("", "/"):
            raise OptionError(f"{redacted(url)!r}: a memory store has a name and no path, as in memory://name")
        self._name = parts.netloc or uuid.uuid4().hex
        self._space = _spaces.setdefault(self._name, _Space())
        if parts.netloc:
            _named[self._name] = self._space

    def open(self) -> Step[None]:
        yield from ()

    def close(self) -> Step[None]:
        yield from ()

    def get(self, key: str) -> Step[bytes | None]:
        yield from ()
        return self._space.values.get(key)

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        yield from ()
        space = self._space
        with space.lock:
            if key not in space.values:
                insort(space.keys, key)
            elif mode == "create":
                return False
            space.values[key] = value
        return True

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        yield from ()
        space = self._space
        with space.lock:
            if any(key in space.values for key, _ in entries):
                return False
            for key, value in entries:
                insort(space.keys, key)
                space.values[key] = value
        return True

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        yield from ()
        space = self._space
        with space.lock:
            if space.values.get(key) != old:
                return False
            if new is None:
                space.remove(key)
            else:
                space.values[key] = new
        return True

    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        yield from ()
        space = self._space
        limit = limit or PAGE
        start, end = scan_range(prefix, after, children=delimiter is not None)
        entries: list[tuple[str, bytes | None]] = []
        with space.lock:
            index, last = bisect_left(space.keys, start), bisect_left(space.keys, end)
            while index < last and len(entries) < limit:
                key = space.keys[index]
                slash = key.find("/", len(prefix)) if delimiter else -1
                if slash < 0:
                    entries.append((key, space.values[key] if values else None))
                    index += 1
                else:
                    child = key[: slash + 1]
                    entries.append((child, None))
                    index = bisect_left(space.keys, prefix_end(child), index)
        return Page(entries, entries[-1][0] if index < last else None)

    def delete(self, keys: Iterable[str]) -> Step[None]:
        yield from ()
        space = self._space
        with space.lock:
            for key in keys:
                if key in space.values:
                    space.remove(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reattached, (f"memory://{self._name}", self.asynchronous, os.getpid())


def _reattached(url: str, asynchronous: bool, process: int) -> MemoryBackend:
    if process != os.getpid():
        raise StoreError(
            "a memory:// store lives in one process and cannot be sent to another; use file:// or sqlite://"
        )
    return MemoryBackend(url, asynchronous=asynchronous)
