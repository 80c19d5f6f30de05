"""The protocol every store is reached through, and what the modules of this package share.

A backend is one module with one class.  It keeps text keys in ascending bytewise order and bytes as
values, and does four things: `~Backend.get`, `~Backend.put`, `~Backend.scan` and `~Backend.delete`;
a fifth, `~Backend.replace`, is compare-and-swap.  Each is a step body (see `kvpersist.steps`) and so
serves the sync and the async face alike.  `memory.py` is the shortest example.
"""

from __future__ import annotations

import abc
import asyncio
import gc
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from ..errors import ClosedError, OptionError, StoreError
from ..steps import Step, arun, gather

PAGE = 1000
"""The most entries of a page for which no limit was given, but for the children of a folder that is read whole."""

Mode = Literal["overwrite", "create"]
Entry = tuple[str, "bytes | None"]


class Page(NamedTuple):
    """A part of a scan."""

    entries: list[Entry]
    """Keys in ascending order, each with its value where values were asked for.  A key that ends in
    ``/`` is a child: it stands for all keys that start with it."""
    after: str | None
    """Where the next page goes on (`scan(after=...)`), or None if this was the last one."""


class Backend(abc.ABC):
    """A store.  Made with its URL and options; connects when first used.

    An instance serves either the sync face or the async one (`asynchronous`), from any number of
    threads or tasks, and can be pickled: what travels is the URL and the options.
    """

    atomic_create: bool = True
    """Whether of two concurrent `put(mode="create")` of one key exactly one wins."""

    read_only: bool = False
    """Set on a store that must stay as it is: no table, index or file is made when it is opened, and one that
    is not there reads as empty."""

    values_in_scan: bool = True
    """Whether `scan(values=True)` is one round trip.  Where it is not, as on object stores, what is behind a key
    is fetched together with other things."""

    default_port: ClassVar[int | None] = None
    """Where the store is a server: the port of one whose URL names none."""

    def __init__(self, url: str, *, asynchronous: bool = False, **options: Any) -> None:
        self.url = url
        self.asynchronous = asynchronous
        self.options = options

    @abc.abstractmethod
    def open(self) -> Step[None]:
        """Make what the store needs (a folder, a table), so that mistakes show now.  Idempotent."""

    @abc.abstractmethod
    def close(self) -> Step[None]:
        """Let go of all connections."""

    @abc.abstractmethod
    def get(self, key: str) -> Step[bytes | None]:
        """The value of a key, or None."""

    def get_many(self, keys: Iterable[str]) -> Step[list[bytes | None]]:
        """The values of several keys, in order."""
        return gather(self.get(key) for key in keys)

    @abc.abstractmethod
    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        """Store a value.  ``"create"`` stores it only where the key is absent and returns whether it did."""

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        """Store values under keys that are absent, in order: none is stored unless all before it were.

        Returns whether all were.  A store that can do so makes one round trip of it, and stores all or none.
        """
        for key, value in entries:
            if not (yield from self.put(key, value, "create")):
                return False
        return True

    @abc.abstractmethod
    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        """Store `new` only where the value is still `old`, in one atomic step; returns whether it did.

        With None for `new` the key is removed.
        """

    @abc.abstractmethod
    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        """The keys that start with `prefix`, ascending: those after `after`, at most `limit` of them.

        With `delimiter`, keys that go on behind the next ``/`` are rolled up to one entry that ends in it.
        With `values`, the values come along.  A page may hold fewer entries than asked for; only
        `Page.after` says whether there are more.
        """

    @abc.abstractmethod
    def delete(self, keys: Iterable[str]) -> Step[None]:
        """Remove keys.  An absent one is no error."""

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool, **options: Any) -> Backend:
        """The store behind a driver's client that the caller made and will close; optional.

        Raises:
            OptionError: a client that cannot be used here.
        """
        raise OptionError(f"{cls.__name__} cannot be made of a client")

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(getattr(self, "_clients", None), GivenClient):
            raise StoreError(
                f"{self.url}: a store made of a client cannot be pickled, copied or sent to another process; "
                "make it from its URL"
            )
        return _rebuilt, (type(self), self.url, self.asynchronous, self.options)


def _rebuilt(kind: type[Backend], url: str, asynchronous: bool, options: dict[str, Any]) -> Backend:
    return kind(url, asynchronous=asynchronous, **options)


C = TypeVar("C")
T = TypeVar("T")


class Clients(Generic[C]):
    """The client of a backend: one a process for the sync face, one an event loop for the async face.

    It is made when first asked for.  A client from before a fork is left alone, since its connection
    is the parent's; one of a loop that has been closed is abandoned when the next one is made, and those
    of other loops when this is closed: `abandon` lets go of a client without its loop.
    """

    def __init__(
        self,
        *,
        asynchronous: bool,
        connect: Callable[[], Step[C]],
        disconnect: Callable[[C], Step[None]],
        abandon: Callable[[C], None],
    ) -> None:
        self._asynchronous = asynchronous
        self._connect = connect
        self._disconnect = disconnect
        self._abandon = abandon
        self._closed = False
        self._lock = threading.Lock()
        self._sync: C | None = None
        self._tasks: dict[asyncio.AbstractEventLoop, asyncio.Task[C]] = {}
        self._of_parent: list[object] = []
        _all_clients.add(self)

    def get(self) -> Step[C]:
        """The client to use here and now."""
        if self._closed:
            raise ClosedError("this store was closed; open it anew")
        if self._sync is not None:
            return self._sync
        if not self._asynchronous:
            with self._lock:
                if self._sync is None:
                    self._sync = yield from self._connect()
            return self._sync
        loop = asyncio.get_running_loop()
        task = self._tasks.get(loop)
        if task is None:
            self._abandon_others(lambda loop: loop.is_closed())
            task = self._tasks[loop] = loop.create_task(arun(self._connected(loop)))
        if not task.done():
            # Shielded: one task's cancellation must not take the client from others who wait for it.
            yield asyncio.shield(task)
        return task.result()

    def _connected(self, loop: asyncio.AbstractEventLoop) -> Step[C]:
        try:
            return (yield from self._connect())
        except BaseException:
            self._tasks.pop(loop, None)  # the next caller tries again
            raise

    def drop(self, client: C) -> None:
        """Forget a client that is of no more use, so that the next `get` makes another."""
        if self._sync is client:
            self._sync = None
        for loop, task in list(self._tasks.items()):
            if task.done() and not task.cancelled() and task.exception() is None and task.result() is client:
                del self._tasks[loop]

    def close(self) -> Step[None]:
        """Disconnect.  From now on `get` raises `ClosedError`."""
        self._closed = True
        client, self._sync = self._sync, None
        if client is not None:
            yield from self._disconnect(client)
        if self._asynchronous:
            task = self._tasks.pop(asyncio.get_running_loop(), None)
            self._abandon_others(lambda loop: True)
            if task is not None:
                yield from self._disconnect((yield task))

    def _abandon_others(self, of_loop: Callable[[asyncio.AbstractEventLoop], bool]) -> None:
        for loop in [loop for loop in list(self._tasks) if of_loop(loop)]:
            task = self._tasks.pop(loop, None)
            if task is None:
                continue  # a thread with a loop of its own was faster
            if task.done() and not task.cancelled() and task.exception() is None:
                self._abandon(task.result())
            del loop, task
            # What is left of its client can be closed by nobody any more: it is collected now, without a report.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()

    def _forget_parent(self) -> None:
        # Kept, not dropped: what a client does when it is collected would be done to the parent's connection.
        self._of_parent += [self._sync, self._tasks]
        self._lock = threading.Lock()
        self._sync = None
        self._tasks = {}


async def to_the_end(awaitable: Awaitable[T]) -> T:
    """Await work that a thread does, to its end even when the task is cancelled.

    A cancelled save is then over when its task is, and no thread reports to a loop that is closed.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: nobody is left to be told
        raise


class GivenClient(Generic[C]):
    """In the place of `Clients`, a client that the caller made: it is used, and never closed by us."""

    def __init__(self, client: C) -> None:
        self._client = client
        self._closed = False

    def get(self) -> Step[C]:
        """The client."""
        yield from ()
        if self._closed:
            raise ClosedError("this store was closed; open it anew")
        return self._client

    def drop(self, client: C) -> None:
        """Nothing: there is no other."""

    def close(self) -> Step[None]:
        """From now on `get` raises `ClosedError`; the client stays as it is."""
        yield from ()
        self._closed = True


_all_clients: weakref.WeakSet[Clients[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for clients in list(_all_clients):
        clients._forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
