"""The bare protocol, for those who have their own idea of a record: text keys in order, bytes as values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from . import keys
from .backends import PAGE, Backend, Mode, Page
from .errors import ClosedError, OptionError
from .steps import Step, arun, run
from .telemetry import Telemetry, observed
from .urls import backend_of_client, open_backend, redacted

Self = TypeVar("Self", bound="_StoreFace")


class _StoreFace:
    """What the sync and the async store share: how they are made, and the checks of what they are given."""

    _asynchronous: bool

    def __init__(self, backend: Backend) -> None:
        if backend.asynchronous is not self._asynchronous:
            raise OptionError(f"{type(self).__name__} needs a backend with asynchronous={self._asynchronous}")
        self._backend = backend
        self._closed = False

    @property
    def backend(self) -> Backend:
        """The backend, as long as this store is open."""
        if self._closed:
            raise ClosedError(f"{self!r} was closed; open it anew")
        return self._backend

    @classmethod
    def from_url(cls: type[Self], url: str, *, telemetry: bool | Telemetry = False, **options: Any) -> Self:
        """The store that a URL names, with its backend's options; for `telemetry` see `Persister.from_url`."""
        backend = open_backend(url, asynchronous=cls._asynchronous, options=options, known=("telemetry",))
        return cls(observed(backend, telemetry))

    @classmethod
    def from_client(cls: type[Self], client: Any, *, telemetry: bool | Telemetry = False, **options: Any) -> Self:
        """The store behind a driver's client, which stays the caller's; see `Persister.from_client`."""
        backend = backend_of_client(client, asynchronous=cls._asynchronous, options=options, known=("telemetry",))
        return cls(observed(backend, telemetry))

    def _get(self, key: str) -> Step[bytes | None]:
        keys.check(key)
        return self.backend.get(key)

    def _put(self, key: str, value: bytes, mode: Mode) -> Step[bool]:
        keys.check(key)
        if mode not in ("overwrite", "create"):
            raise OptionError(f"the mode must be 'overwrite' or 'create', not {mode!r}")
        return self.backend.put(key, _checked_value(value), mode)

    def _replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        keys.check(key)
        return self.backend.replace(key, _checked_value(old), None if new is None else _checked_value(new))

    def _scan(
        self, prefix: str, after: str | None, limit: int | None, values: bool, delimiter: Literal["/"] | None
    ) -> Step[Page]:
        if limit is not None and (type(limit) is not int or limit < 1):
            raise OptionError(f"the limit must be an int from 1 on, not {limit!r}")
        if delimiter not in (None, "/"):
            raise OptionError(f"the delimiter can only be '/', not {delimiter!r}")
        for text in (prefix, after):
            if text:
                keys.check(text + "x")  # what a key can start with
        limit = None if limit is None else min(limit, PAGE)
        return self.backend.scan(prefix, after=after, limit=limit, values=values, delimiter=delimiter)

    def _delete(self, keys_: Iterable[str]) -> Step[None]:
        if isinstance(keys_, str):
            raise OptionError(f"delete takes a list of keys, as in [{keys_!r}]")
        listed = list(keys_)
        for key in listed:
            keys.check(key)
        return self.backend.delete(listed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redacted(self._backend.url)!r})"


class Store(_StoreFace):
    """An ordered key-value store, sync.  The operations are those of `Backend`."""

    _asynchronous = False

    def get(self, key: str) -> bytes | None:
        """The value of a key, or None."""
        return run(self._get(key))

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> bool:
        """Store a value; ``"create"`` only where the key is absent.  Returns whether it was stored."""
        return run(self._put(key, value, mode))

    def replace(self, key: str, old: bytes, new: bytes | None) -> bool:
        """Store `new` only where the value is still `old`, atomically; None removes the key.

        Returns whether the value was still `old`.
        """
        return run(self._replace(key, old, new))

    def scan(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Page:
        """A page of the keys that start with `prefix`, ascending; go on with ``after=page.after``."""
        return run(self._scan(prefix, after, limit, values, delimiter))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys; an absent one is no error."""
        run(self._delete(keys))

    def close(self) -> None:
        """Let go of the connection."""
        self._closed = True
        run(self._backend.close())

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStore(_StoreFace):
    """An ordered key-value store, async; the twin of `Store`."""

    _asynchronous = True

    async def get(self, key: str) -> bytes | None:
        """See `Store.get`."""
        return await arun(self._get(key))

    async def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> bool:
        """See `Store.put`."""
        return await arun(self._put(key, value, mode))

    async def replace(self, key: str, old: bytes, new: bytes | None) -> bool:
        """See `Store.replace`."""
        return await arun(self._replace(key, old, new))

    async def scan(
        self,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Page:
        """See `Store.scan`."""
        return await arun(self._scan(prefix, after, limit, values, delimiter))

    async def delete(self, keys: Iterable[str]) -> None:
        """See `Store.delete`."""
        await arun(self._delete(keys))

    async def close(self) -> None:
        """See `Store.close`."""
        self._closed = True
        await arun(self._backend.close())

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _checked_value(value: bytes) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise OptionError(f"a value must be bytes, not {type(value).__name__}")
    return bytes(value)
