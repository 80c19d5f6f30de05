"""Any filesystem of fsspec: ``az://``, ``sftp://``, ``hdfs://``, ``webdav://`` and whatever else is installed.

``fsspec+PROTOCOL://`` names a filesystem whose protocol is not listed, or is one of our own names
(``fsspec+file://`` is fsspec's own local filesystem).  S3 and GCS have backends of their own, which do
better what an object store does better.

All work is written once, as coroutines: the async face awaits them on its own event loop, the sync face
runs them on the loop that fsspec keeps in a thread.  A filesystem that can only block is put behind
fsspec's `AsyncFileSystemWrapper`, which calls it in a thread, one call at a time.

fsspec has no atomic "create where absent" that holds on every filesystem, so this backend does not
claim one (`atomic_create`): persisters on it need ``on_conflict="overwrite"`` or ``"rewind"`` and one worker an app.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from ..errors import (
    AccessDeniedError,
    KvpersistError,
    MissingExtraError,
    OptionError,
    StoreError,
    StoreUnavailableError,
)
from ..keys import prefix_end, scan_range
from ..steps import Step, arun, gather
from ..urls import redacted
from . import PAGE, Backend, Clients, Mode, Page

T = TypeVar("T")


class Client(NamedTuple):
    """What works on one event loop."""

    filesystem: Any
    """An `AsyncFileSystem`; only its coroutines (``_ls``, ``_cat_file``) are called."""
    lock: asyncio.Lock
    """Held between a look and the write that depends on it, where the filesystem has nothing better."""
    connection: AsyncGenerator[None, None]
    """Disconnects when it is closed, which an event loop does to its generators before it ends."""


class FsspecBackend(Backend):
    """Files below a folder of a filesystem that fsspec knows.

    A page of a scan lists the folder of its prefix whole, whatever its limit, since that is all that a
    filesystem offers; and since filesystems keep folders that have become empty, each child of a scan with a
    delimiter is looked into.  A value is as atomic as the filesystem's own writes.

    Args:
        url: such as ``az://container/folder``, ``sftp://user@host/folder`` or ``fsspec+file:///folder``.
        storage_options: what the filesystem's constructor takes: hosts, credentials, timeouts.
    """

    atomic_create = False
    values_in_scan = False

    extra: ClassVar[str] = "fsspec"

    def __init__(
        self, url: str, *, asynchronous: bool = False, storage_options: dict[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(url, asynchronous=asynchronous, storage_options=storage_options, **options)
        if not isinstance(storage_options, (Mapping, type(None))):
            raise OptionError(f"storage_options must be a dict, not a {type(storage_options).__name__}")
        self._location = url.removeprefix("fsspec+")
        self._kind = self._filesystem_class()
        self._settings = {**self._kind._get_kwargs_from_urls(self._location), **(storage_options or {})}
        self.root = str(self._kind._strip_protocol(self._location)).rstrip("/")
        if any(each in self.root for each in "*?[") or "//" in self.root:
            raise OptionError(f"{redacted(url)}: the path holds an empty part, or one of * ? [, which fsspec expands")
        self._clients: Clients[Client] = Clients(
            asynchronous=asynchronous, connect=self._connect, disconnect=self._disconnect, abandon=self._abandon
        )

    def open(self) -> Step[None]:
        yield from self._call(self._open)

    def close(self) -> Step[None]:
        yield from self._clients.close()

    def get(self, key: str) -> Step[bytes | None]:
        return (yield from self._call(self._read, self._path(key)))

    def get_many(self, keys: Iterable[str]) -> Step[list[bytes | None]]:
        return (yield from self._call(self._read_all, [self._path(key) for key in keys]))

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        return (yield from self._call(self._write, self._path(key), value, mode))

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        return (yield from self._call(self._replace, self._path(key), old, new))

    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        self._path(max(prefix, after or "", key=len))
        start, end = scan_range(prefix, after, children=delimiter is not None)
        if start >= end:
            return Page([], None)
        # Where a filesystem lists folders whole, all children are one page; others list as many as they do at once.
        limit = limit or (sys.maxsize if delimiter and not values else PAGE)
        return (yield from self._call(self._scan, prefix, after, limit, values, delimiter))

    def delete(self, keys: Iterable[str]) -> Step[None]:
        paths = [self._path(key) for key in keys]
        if paths:
            yield from self._call(self._delete, paths)

    def _path(self, key: str) -> str:
        """Where a key lives.  Keys hold no ``..`` segment, so it is always below the root."""
        return f"{self.root}/{key}"

    # The client

    def _filesystem_class(self) -> Any:
        protocol = urlsplit(self._location).scheme
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError(f'{protocol}:// needs fsspec: pip install "kvpersist[{self.extra}]"') from error
        try:
            return fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            raise MissingExtraError(
                f"{protocol}:// needs a package that is not installed ({error}); fsspec itself comes with "
                f'pip install "kvpersist[{self.extra}]"'
            ) from error
        except ValueError as error:
            raise OptionError(f"fsspec knows no filesystem for {protocol}://") from error

    def _make(self) -> Any:
        """A new filesystem, shared with nobody: fsspec's own cache of instances knows nothing of event loops."""
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        if self._kind.async_impl:
            return self._kind(asynchronous=self.asynchronous, skip_instance_cache=True, **self._settings)
        filesystem = self._kind(skip_instance_cache=True, **self._settings)
        return AsyncFileSystemWrapper(filesystem, asynchronous=self.asynchronous, semaphore=asyncio.Semaphore(1))

    def _connect(self) -> Step[Client]:
        # Finding credentials may read files or ask a metadata server.
        filesystem = yield asyncio.to_thread(self._make) if self.asynchronous else self._make()
        client = Client(filesystem, asyncio.Lock(), self._connection(filesystem))
        yield self._on_loop(self._prepare, client)
        return client

    def _disconnect(self, client: Client) -> Step[None]:
        yield self._on_loop(client.connection.aclose)

    def _abandon(self, client: Client) -> None:
        # On a loop that was closed in the midst of things there is nothing to wait for.
        closing = client.connection.aclose()
        with contextlib.suppress(StopIteration, StopAsyncIteration, Exception):
            closing.send(None)
        closing.close()

    async def _connection(self, filesystem: Any) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self._finish(filesystem)

    async def _prepare(self, client: Client) -> None:
        """Connect."""
        await anext(client.connection)

    async def _finish(self, filesystem: Any) -> None:
        """Disconnect."""

    def _on_loop(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Any:
        """What `function` returns: to be awaited in the async face, at once in the sync face."""
        if self.asynchronous:
            return function(*args)
        from fsspec.asyn import get_loop, sync

        return sync(get_loop(), function, *args)

    def _call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Step[T]:
        """The one place where work is done."""
        try:
            client = yield from self._clients.get()
            result: T = yield self._on_loop(function, client, *args)
        except KvpersistError:
            raise
        except Exception as error:  # every filesystem has exceptions of its own
            raise self._translated(error) from error
        return result

    def _translated(self, error: Exception) -> KvpersistError:
        where, what = redacted(self.url), redacted(str(error)) or type(error).__name__
        if isinstance(error, PermissionError):
            return AccessDeniedError(f"{where}: access denied: {what}")
        if isinstance(error, (ConnectionError, TimeoutError, asyncio.TimeoutError)):
            return StoreUnavailableError(f"{where}: the store could not be reached: {what}")
        return StoreError(f"{where}: {what}")

    # The work, on the client's event loop

    async def _open(self, client: Client) -> None:
        await client.filesystem._makedirs(self.root, exist_ok=True)

    async def _read(self, client: Client, path: str) -> bytes | None:
        value: bytes | None = None
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            value = await client.filesystem._cat_file(path)
        return value

    async def _read_all(self, client: Client, paths: list[str]) -> list[bytes | None]:
        def body(path: str) -> Step[bytes | None]:
            value: bytes | None = yield self._read(client, path)
            return value

        return await arun(gather(body(path) for path in paths))

    async def _write(self, client: Client, path: str, value: bytes, mode: Mode) -> bool:
        async with client.lock:
            if mode == "create" and await self._read(client, path) is not None:
                return False
            await self._pipe(client, path, value)
            return True

    async def _replace(self, client: Client, path: str, old: bytes, new: bytes | None) -> bool:
        async with client.lock:
            if await self._read(client, path) != old:
                return False
            if new is None:
                await self._delete(client, [path])
            else:
                await self._pipe(client, path, new)
            return True

    async def _pipe(self, client: Client, path: str, value: bytes) -> None:
        try:
            await client.filesystem._pipe_file(path, value)
        except Exception:  # noqa: BLE001  no folder yet, of which each filesystem speaks in its own way
            await client.filesystem._makedirs(path.rpartition("/")[0], exist_ok=True)
            await client.filesystem._pipe_file(path, value)

    async def _scan(
        self, client: Client, prefix: str, after: str | None, limit: int, values: bool, delimiter: str | None
    ) -> Page:
        keys, more = await self._list(client, prefix, after, limit, delimiter)
        if not values:
            return Page([(key, None) for key in keys], more)
        found = [key for key in keys if not (delimiter and key.endswith("/"))]
        contents = dict(zip(found, await self._read_all(client, [self._path(key) for key in found]), strict=True))
        return Page([(key, contents.get(key)) for key in keys], more)

    async def _list(
        self, client: Client, prefix: str, after: str | None, limit: int, delimiter: str | None
    ) -> tuple[list[str], str | None]:
        """A page of keys, and where the next one goes on."""
        start, end = scan_range(prefix, after, children=delimiter is not None)
        folder = prefix[: prefix.rfind("/") + 1]
        keys = await self._first(client, folder, start, end, limit + 1, deep=delimiter is None)
        return keys[:limit], keys[limit - 1] if len(keys) > limit else None

    async def _first(self, client: Client, folder: str, start: str, end: str, limit: int, deep: bool) -> list[str]:
        """The first keys below a folder from `start` on and before `end`; unless `deep`, a folder stands for its own.

        A folder sorts by its name with the slash behind it, so that what is in it comes in the order of the
        whole keys.
        """
        client.filesystem.invalidate_cache()  # it hides what others have written since
        try:
            listed = await client.filesystem._ls(self._path(folder).rstrip("/"), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        own = len(self.root) + 1
        found = ((self._kind._strip_protocol(each["name"]).rstrip("/")[own:], each["type"]) for each in listed)
        keys: list[str] = []
        for key in sorted(f"{key}/" if kind == "directory" else key for key, kind in found if key.startswith(folder)):
            if key >= end or len(keys) == limit:
                break
            if not key.endswith("/"):
                keys += [key] if key >= start else []
            elif prefix_end(key) > start:
                below = await self._first(client, key, start, end, limit - len(keys) if deep else 1, deep=True)
                keys += below if deep else [key for _ in below]
        return keys

    async def _delete(self, client: Client, paths: list[str]) -> None:
        def body(path: str) -> Step[None]:
            try:
                yield client.filesystem._rm_file(path)
            except Exception:  # of what is not there, each filesystem speaks in its own way
                if (yield self._read(client, path)) is not None:
                    raise

        await arun(gather(body(path) for path in paths))


# fsspec forgets its loop in a forked child, but not the lock that a thread of the parent may have held.
def _after_fork() -> None:
    import sys

    asyn = sys.modules.get("fsspec.asyn")
    if asyn is not None:
        asyn.reset_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
