"""``file:///path/to/folder``: one readable file a record, below a folder of the local file system.

A key's segments are folders and its last segment is a file, with one exception: a record's name starts
with 19 digits, of which the first eleven and then three times two become folders of their own
(``92233720368+/54+/77+/58+/01.6.answer``).  So no folder that is listed grows with the history: it holds
at most a hundred entries, and the topmost one more for every 10**8 steps.

Every write goes to a temporary file first, is synced, and then appears under its name at once: by a hard
link where the name must be new, by a rename where it may be replaced.  A reader or a crash never sees
half a record.  The async face does the same work in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import heapq
import itertools
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from ..errors import InvalidKeyError, OptionError, StoreError
from ..keys import prefix_end, scan_range
from ..steps import Step
from ..urls import local_path, redacted
from . import PAGE, Backend, Mode, Page, to_the_end

T = TypeVar("T")

MAX_NAME = 255
"""The longest file name, in bytes, that the common file systems hold (ext4, XFS, APFS, NTFS)."""

_TEMPORARY = ".tmp"
_LOCK = ".lock"
_STALE = 3600.0  # seconds after which a temporary file has lost its writer
_RECORD_NAME = re.compile(r"([0-9]{11})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2}\..*)").fullmatch
_NAME = re.compile(r"[a-z0-9!=_-][a-z0-9!=._-]*\+?").fullmatch
_FAN = "+"  # ends the folders that stand for the digits of a name; no key holds it


class FileBackend(Backend):
    """Files below a folder.

    Args:
        url: ``file:///absolute/folder`` or ``file://./relative/folder``.
        durable: sync each file and its folder, so that a power cut loses nothing acknowledged.
            Without it only a crash of the process is survived.
    """

    def __init__(self, url: str, *, asynchronous: bool = False, durable: bool = True) -> None:
        super().__init__(url, asynchronous=asynchronous, durable=durable)
        path = local_path(url)
        if path == path.parent:
            raise OptionError(f"{redacted(url)!r} is the root of the disk; name a folder")
        self.root = str(path)
        self.url = f"file://{quote(path.as_posix())}"  # means the same in another folder
        self._durable = durable
        self._opened = False
        self._synced: set[str] = set()  # folders whose own names are known to be on the disk

    def open(self) -> Step[None]:
        yield from self._call(self._open)

    def close(self) -> Step[None]:
        yield from ()

    def get(self, key: str) -> Step[bytes | None]:
        return (yield from self._call(self._read, key))

    def get_many(self, keys: Iterable[str]) -> Step[list[bytes | None]]:
        return (yield from self._call(lambda: [self._read(key) for key in keys]))

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        return (yield from self._call(self._put, key, value, mode))

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        if new is None:
            return (yield from self._call(self._remove, key, old))
        return (yield from self._call(self._replace, key, old, new))

    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        # A folder is read whole, whatever is wanted of it: all its children are one page.
        limit = limit or (sys.maxsize if delimiter and not values else PAGE)
        return (yield from self._call(self._scan, prefix, after, limit, values, delimiter is not None))

    def delete(self, keys: Iterable[str]) -> Step[None]:
        yield from self._call(self._delete, list(keys))

    def _call(self, function: Callable[..., T], *args: Any) -> Step[T]:
        """Do blocking work: here for the sync face, in a thread for the async one."""
        try:
            result: T = yield to_the_end(asyncio.to_thread(function, *args)) if self.asynchronous else function(*args)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{error.filename or self.root}: {error.strerror or error}") from error
        return result

    def _open(self) -> None:
        temporary = os.path.join(self.root, _TEMPORARY)
        self._make_folder(temporary)
        now = time.time()
        for entry in os.scandir(temporary):
            with contextlib.suppress(FileNotFoundError):
                if now - entry.stat().st_mtime > _STALE:
                    os.unlink(entry.path)
        self._opened = True

    def _path(self, key: str) -> str:
        """The file of a key.  Keys hold no ``..`` segment, so it is always below the root."""
        folder, _, name = key.rpartition("/")
        if len(name) > MAX_NAME or any(len(segment) > MAX_NAME for segment in folder.split("/")):
            raise InvalidKeyError(
                f"{key!r}: a part of this key is longer than {MAX_NAME} bytes, the most that a file's name can "
                "hold; use shorter ids or positions, or another store"
            )
        record = _RECORD_NAME(name)
        if record:
            name = "+/".join(record.groups())
        return os.path.join(self.root, folder, name)

    def _read(self, key: str) -> bytes | None:
        try:
            with open(self._path(key), "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _put(self, key: str, value: bytes, mode: Mode) -> bool:
        path = self._path(key)
        with self._temporary_file(value) as temporary:
            if mode == "create":
                return self._appear(os.link, temporary, path)
            with self._locked():
                return self._appear(os.replace, temporary, path)

    def _replace(self, key: str, old: bytes, new: bytes) -> bool:
        path = self._path(key)
        # Whatever may change or remove an existing file holds the lock, so that none does in between.
        with self._temporary_file(new) as temporary, self._locked():
            return self._read(key) == old and self._appear(os.replace, temporary, path)

    def _remove(self, key: str, old: bytes) -> bool:
        with self._locked():
            if self._read(key) != old:
                return False
            self._unlink([key])
            return True

    def _delete(self, keys: list[str]) -> None:
        if keys:
            with self._locked():
                self._unlink(keys)

    def _unlink(self, keys: list[str]) -> None:
        folders = set()
        for key in keys:
            path = self._path(key)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if not os.path.isdir(path):
                    os.unlink(path)
                    folders.add(os.path.dirname(path))
        for folder in folders:
            while folder != self.root:
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    pass  # removed with a folder before
                except OSError:
                    break  # not empty
                self._synced.discard(folder)
                folder = os.path.dirname(folder)
            self._sync_folder(folder)

    def _scan(self, prefix: str, after: str | None, limit: int, values: bool, children: bool) -> Page:
        start, end = scan_range(prefix, after, children=children)
        folder = prefix[: prefix.rfind("/") + 1]
        found = list(
            itertools.islice(self._walk(os.path.join(self.root, folder), folder, start, end, deep=not children), limit)
        )
        entries: list[tuple[str, bytes | None]] = []
        for key in found:
            value = self._read(key) if values and not key.endswith("/") else None
            if value is not None or not values or key.endswith("/"):  # else it was deleted meanwhile
                entries.append((key, value))
        return Page(entries, found[-1] if len(found) == limit else None)

    def _walk(self, folder: str, base: str, start: str, end: str, *, deep: bool) -> Iterator[str]:
        """The keys from `start` on and before `end` in a folder whose keys all start with `base`, in order."""
        bounds: list[tuple[str, str]] = []  # what an entry's keys start with, and its path
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    bound = base + entry.name
                    if not _NAME(entry.name):
                        continue  # not ours
                    if entry.name.endswith(_FAN):
                        bound = bound[:-1]
                    elif entry.is_dir():
                        bound += "/"
                    if bound < end and (bound >= start or prefix_end(bound) > start):
                        bounds.append((bound, entry.path))
        except (FileNotFoundError, NotADirectoryError):
            return
        bounds.sort()

        def expanded(bound: str, path: str) -> Iterator[str]:
            if path.endswith(_FAN):
                return self._walk(path, bound, start, end, deep=deep)
            if bound.endswith("/") and deep:
                return self._walk(path, bound, start, end, deep=True)
            return iter((bound,) if bound >= start else ())

        index = 0
        while index < len(bounds):
            first, path = bounds[index]
            index += 1
            together = [expanded(first, path)]
            # A folder of digits may have neighbours that begin with the same digits: merge their keys.
            while index < len(bounds) and path.endswith(_FAN) and bounds[index][0].startswith(first):
                together.append(expanded(*bounds[index]))
                index += 1
            yield from heapq.merge(*together) if len(together) > 1 else together[0]

    @contextlib.contextmanager
    def _temporary_file(self, value: bytes) -> Iterator[str]:
        """A synced file with this content, gone afterwards unless it was renamed."""
        if not self._opened or not os.path.isdir(os.path.join(self.root, _TEMPORARY)):
            self._open()
        path = os.path.join(self.root, _TEMPORARY, uuid.uuid4().hex)
        try:
            with open(path, "xb") as file:
                file.write(value)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _appear(self, operation: Callable[[str, str], None], temporary: str, path: str) -> bool:
        """Link or rename a temporary file to its path; returns whether the path was free to take."""
        folder = os.path.dirname(path)
        for _ in range(1000):
            try:
                operation(temporary, path)
            except FileNotFoundError:
                if not os.path.exists(temporary):
                    raise
                with contextlib.suppress(FileNotFoundError):  # a delete may be removing empty folders: again
                    self._make_folder(folder)
            except FileExistsError as error:
                if os.path.isdir(path):
                    raise InvalidKeyError(f"{path} is a folder: a key cannot be the start of other keys") from error
                # What is there may be the caller's own, from a try that was cut short before it was synced.
                self._sync_up(folder)
                return False
            except OSError as error:
                if operation is os.link and error.errno in (errno.EPERM, errno.ENOTSUP):
                    raise StoreError(
                        f"{self.root}: this file system has no hard links, without which two processes could "
                        "both believe that they made a record; use another folder or store"
                    ) from error
                raise
            else:
                self._sync_up(folder)
                return True
        raise StoreError(f"{folder} cannot be made: is a part of it a link to somewhere that is not there?")

    def _make_folder(self, folder: str) -> None:
        parent = os.path.dirname(folder)
        try:
            os.mkdir(folder)
        except FileExistsError:
            return
        except FileNotFoundError:
            if parent == folder:
                raise
            self._make_folder(parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
        self._synced.discard(folder)  # if it was there before, it is another one now
        self._sync_folder(parent)

    def _sync_up(self, folder: str) -> None:
        """Sync a folder, and those above it that nobody here has synced yet, whoever made them."""
        self._sync_folder(folder)
        while folder not in self._synced and folder != self.root:
            self._synced.add(folder)
            folder = os.path.dirname(folder)
            self._sync_folder(folder)
        if len(self._synced) > 10_000:
            self._synced.clear()

    def _sync_folder(self, folder: str) -> None:
        if not self._durable or os.name == "nt":  # Windows cannot open a folder
            return
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # emptied and removed meanwhile
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _locked(self) -> AbstractContextManager[Any]:
        """The lock of all processes that use this root, for what may not happen at the same time."""
        from filelock import FileLock

        self._make_folder(self.root)
        return FileLock(os.path.join(self.root, _LOCK))
