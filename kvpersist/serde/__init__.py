"""Serializers: a state's fields to bytes and back, exactly.

Which one writes is chosen through ``serde_kwargs``; which one reads is told by the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, runtime_checkable

from ..errors import DeserializationError, OptionError


@runtime_checkable
class Serializer(Protocol):
    """What turns a state into bytes and back.  Any object with these three will do."""

    name: str
    """What stands in the header of the records it writes."""

    def dumps(self, state: dict[str, Any]) -> bytes:
        """The bytes of a state's fields.

        Raises `SerializationError` for a value that `loads` would not return exactly, and the
        same bytes for equal states, so that a repeated save can be told from a conflict.
        """

    def loads(self, data: bytes) -> dict[str, Any]:
        """The fields that `dumps` made these bytes of.  Never runs code that the bytes name."""


class Serde:
    """The serializers of a persister: the one that writes, and those that read.

    Args:
        serde_kwargs: ``serializer`` is the name of an installed serializer, or an object that is one;
            the rest are its options.
    """

    def __init__(self, serde_kwargs: Mapping[str, Any] | None = None) -> None:
        self.serde_kwargs = dict(serde_kwargs or {})
        self._options = dict(self.serde_kwargs)
        chosen = self._options.pop("serializer", "json")
        self._readers: dict[str, Serializer] = {}
        if isinstance(chosen, str):
            self.writer = self._installed(chosen)
        elif isinstance(chosen, Serializer):
            self.writer = chosen
        else:
            raise OptionError(f"serializer={chosen!r} has no name, dumps and loads; installed are {_names()}")
        self._readers[self.writer.name] = self.writer

    def reader(self, name: str) -> Serializer:
        """The serializer for a record that names `name`."""
        reader = self._readers.get(name)
        if reader is None:
            try:
                reader = self._readers[name] = self._installed(name)
            except OptionError as error:
                raise DeserializationError(
                    f"the record was written by the serializer {name!r}, which is not installed here"
                ) from error
        return reader

    def _installed(self, name: str) -> Serializer:
        point = _serializers().get(name)
        if point is None:
            raise OptionError(f"no serializer {name!r} is installed; installed are {_names()}")
        serializer: Serializer = point.load()(**self._options)
        return serializer


@lru_cache(maxsize=1)
def _serializers() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="kvpersist.serializers")}


def _names() -> str:
    return ", ".join(sorted(_serializers()))
