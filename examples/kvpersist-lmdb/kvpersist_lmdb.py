"""``lmdb:///path/to/state.lmdb``: an LMDB database as a store of kvpersist.

LMDB keeps keys in bytewise order, never lets a reader wait and commits a write atomically, for any number of
processes of one machine: the protocol of kvpersist as it stands.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal
from urllib.parse import quote

import lmdb

from kvpersist import InvalidKeyError, StoreError
from kvpersist.backends import PAGE, Backend, Clients, Mode, Page, to_the_end
from kvpersist.keys import prefix_end, scan_range
from kvpersist.steps import Step
from kvpersist.urls import local_path

# LMDB allows a process one environment a database, so all backends of a database share it, and it is closed when the
# last of them lets go of it.
_environments: weakref.WeakValueDictionary[str, lmdb.Environment] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _after_fork() -> None:
    for environment in list(_environments.values()):
        environment.close()  # for this process, which will make its own
    _environments.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)


class LMDBBackend(Backend):
    """A store in an LMDB database.

    Args:
        url: ``lmdb:///absolute/state.lmdb`` or ``lmdb://./relative/state.lmdb``; a lock file will lie beside it.
        map_size: the most bytes that the database may take; it grows up to there as needed (not on Windows).
    """

    def __init__(self, url: str, *, asynchronous: bool = False, map_size: int = 2**32) -> None:
        super().__init__(url, asynchronous=asynchronous, map_size=map_size)
        self.path = local_path(url)
        self.url = f"lmdb://{quote(self.path.as_posix())}"  # means the same in another folder
        self._map_size = map_size
        self._clients: Clients[Any] = Clients(
            asynchronous=asynchronous, connect=self._connect, disconnect=_let_go, abandon=lambda _: None
        )

    def open(self) -> Step[None]:
        yield from self._clients.get()

    def close(self) -> Step[None]:
        yield from self._clients.close()

    def get(self, key: str) -> Step[bytes | None]:
        return self._run(lambda reading: reading.get(_stored(key)))

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        overwrite = mode == "overwrite"
        return self._run(lambda writing: writing.put(_stored(key), value, overwrite=overwrite), write=True)

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        def put_many(writing: Any) -> bool:
            if any(writing.get(_stored(key)) is not None for key, _ in entries):
                return False
            return all(writing.put(_stored(key), value) for key, value in entries)

        return self._run(put_many, write=True)

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        def replace(writing: Any) -> Any:
            if writing.get(_stored(key)) != old:
                return False
            return writing.delete(_stored(key)) if new is None else writing.put(_stored(key), new)

        return self._run(replace, write=True)

    def delete(self, keys: Iterable[str]) -> Step[None]:
        yield from self._run(lambda writing: [writing.delete(_stored(key)) for key in keys], write=True)

    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        most = limit or PAGE
        start, end = scan_range(prefix, after, children=delimiter is not None)

        def scan(reading: Any) -> Page:
            entries: list[tuple[str, bytes | None]] = []
            cursor = reading.cursor()
            found = cursor.set_range(start.encode())
            while found and len(entries) < most and (key := cursor.key().decode()) < end:
                slash = key.find("/", len(prefix)) if delimiter else -1
                if slash < 0:
                    entries.append((key, cursor.value() if values else None))
                    found = cursor.next()
                else:  # a child: go on behind all that it stands for
                    entries.append((key[: slash + 1], None))
                    found = cursor.set_range(prefix_end(key[: slash + 1]).encode())
            return Page(entries, entries[-1][0] if len(entries) == most else None)

        return self._run(scan, absent=Page([], None))

    def _run(self, function: Callable[[Any], Any], *, write: bool = False, absent: Any = None) -> Step[Any]:
        """Run a function in a transaction: here for the sync face, in a thread for the async one."""
        environment = yield from self._clients.get()
        if environment is None:
            return absent

        def run() -> Any:
            with environment.begin(write=write) as transaction:
                return function(transaction)

        try:
            return (yield to_the_end(asyncio.to_thread(run)) if self.asynchronous else run())
        except lmdb.MapFullError as error:
            raise StoreError(f"{self.path} may take no more than map_size={self._map_size} bytes") from error
        except lmdb.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    def _connect(self) -> Step[lmdb.Environment | None]:
        yield from ()
        if self.read_only and not self.path.exists():
            return None  # reads as empty, and is not made
        with _lock:
            environment = _environments.get(str(self.path))
            if environment is None:
                try:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    environment = lmdb.open(str(self.path), subdir=False, map_size=self._map_size)
                except (OSError, OverflowError, lmdb.Error) as error:
                    raise StoreError(f"{self.path} cannot be opened: {error}") from error
                _environments[str(self.path)] = environment
        return environment


def _let_go(environment: Any) -> Step[None]:
    yield from ()  # it is closed when nobody has it any more


def _stored(key: str) -> bytes:
    if len(key) > 511:
        raise InvalidKeyError(f"{key!r} is longer than the 511 bytes that LMDB can hold; use shorter ids or positions")
    return key.encode()
