"""pickle: any value, for those who trust whoever can write to the store.

Opening a pickle runs what it says, so a record is opened only by a persister that was told to.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import DeserializationError, OptionError, SerializationError
from .values import ROOT, Path, path_text

_OF_DUMPS, _OF_LOADS = {"protocol", "fix_imports"}, {"fix_imports", "encoding", "errors"}


class PickleSerializer:
    """Any value that Python's pickle takes.

    Args:
        pickle_kwargs: options for ``pickle.dumps`` (protocol, fix_imports) and ``pickle.loads`` (fix_imports,
            encoding, errors).
    """

    name = "pickle"
    safe = False

    def __init__(self, *, pickle_kwargs: Mapping[str, Any] | None = None, **_: Any) -> None:
        given = dict(pickle_kwargs or {})
        unknown = given.keys() - _OF_DUMPS - _OF_LOADS
        if unknown:
            raise OptionError(
                f"pickle_kwargs: there is no {', '.join(sorted(unknown))}; "
                f"there are {', '.join(sorted(_OF_DUMPS | _OF_LOADS))}"
            )
        self._for_dumps = {key: each for key, each in given.items() if key in _OF_DUMPS}
        self._for_loads = {key: each for key, each in given.items() if key in _OF_LOADS}

    def dumps(self, state: dict[str, Any]) -> bytes:
        try:
            return self._pickled(state)
        except Exception as error:
            path, found = _first_that_fails(self._pickled, state)
            raise SerializationError(f"{path_text(path)} {self._why(found)}: {error}", path_text(path)) from error

    def loads(self, data: bytes) -> dict[str, Any]:
        try:
            state = pickle.loads(data, **self._for_loads)
        except Exception as error:
            raise DeserializationError(f"the pickle cannot be opened: {error!r}") from error
        if type(state) is not dict:
            raise DeserializationError("the payload is not the pickle of a dict")
        return state

    def canonical(self, state: dict[str, Any]) -> bytes:
        """Bytes that do not depend on which parts of a state are one object, as those of `dumps` do."""
        buffer = io.BytesIO()
        pickler = self._pickler(buffer)
        pickler.fast = True
        try:
            pickler.dump(state)
        except Exception:  # noqa: BLE001  a state that holds itself
            return self.dumps(state)
        return buffer.getvalue()

    def _pickled(self, value: Any) -> bytes:
        buffer = io.BytesIO()
        self._pickler(buffer).dump(value)
        return buffer.getvalue()

    def _pickler(self, file: io.BytesIO) -> Any:
        return pickle.Pickler(file, **self._for_dumps)

    def _why(self, value: Any) -> str:
        return (
            f"is a {type(value).__module__}:{type(value).__qualname__}, which cannot be pickled; the serializer "
            "cloudpickle holds functions and local classes too"
        )


def _first_that_fails(pickled: Callable[[Any], bytes], value: Any, path: Path = ROOT) -> tuple[Path, Any]:
    """The innermost value that cannot be pickled."""
    seen = {id(value)}
    while True:
        if isinstance(value, dict):
            parts = list(value.items())
        elif isinstance(value, (list, tuple)):
            parts = list(enumerate(value))
        else:
            parts = []
        for key, part in parts:
            try:
                pickled(part)
            except Exception:  # noqa: BLE001
                if id(part) not in seen:
                    seen.add(id(part))
                    value, path = part, (path, key)
                    break
        else:
            return path, value
