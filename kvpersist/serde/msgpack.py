"""MessagePack: compact, and faster than JSON for numbers and bytes.

What MessagePack itself can hold is written as it is.  Anything else is an extension value; its data is
MessagePack again.  Each tag has a number of its own; a tag with more than a value is extension 0, an array
of the tag, the value and a map of the rest.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import orjson
import ormsgpack

from ..errors import DeserializationError, SerializationError
from .json import ONLY_JSON, ONLY_PLAIN, TAG
from .values import MAX_DEPTH, ROOT, TreeSerializer, has_burr_fields

# These numbers stand in stored records: they are never given to another tag.
CODES = {
    "dict": 1,
    "tuple": 2,
    "set": 3,
    "frozenset": 4,
    "OrderedDict": 5,
    "str": 6,
    "int": 7,
    "bytearray": 8,
    "datetime": 9,
    "date": 10,
    "time": 11,
    "timedelta": 12,
    "Decimal": 13,
    "UUID": 14,
    "complex": 15,
    "numpy.ndarray": 16,
    "polars.DataFrame": 17,
    "pandas.DataFrame": 18,
}
_TAGS = {code: tag for tag, code in CODES.items()}


class MessagePackSerializer(TreeSerializer):
    """MessagePack with extension types for what it lacks; takes the arguments of `TreeSerializer`."""

    name = "msgpack"
    native = frozenset((bytes, float))
    reserved = None

    def dumps(self, state: dict[str, Any]) -> bytes:
        if not has_burr_fields(state):
            try:
                data = ormsgpack.packb(state, default=self._encoded_alone, option=ONLY_PLAIN)
                # ormsgpack takes a bytearray for bytes; orjson knows neither.
                if b"\xc4" in data or b"\xc5" in data or b"\xc6" in data:
                    orjson.dumps(state, default=_no_bytearray, option=ONLY_JSON)
                return data
            except TypeError:  # both libraries' errors are one
                pass  # what it was about, and where, is found out below
        try:
            return ormsgpack.packb(self.encoded_state(state))
        except (RecursionError, ormsgpack.MsgpackEncodeError) as error:
            if isinstance(error, SerializationError):
                raise
            raise SerializationError(f"the state is nested too deep for msgpack: {error}", "state") from error

    def loads(self, data: bytes) -> dict[str, Any]:
        state = _unpacked(data, self.rebuilt)
        if type(state) is not dict:
            raise DeserializationError("the payload is not a msgpack map")
        return state

    def shown(self, data: bytes) -> Any:
        """The tree that `dumps` wrote, with tags as the JSON serializer spells them: nothing is built or imported."""
        return _plain(_unpacked(data, lambda tag, value, more: {TAG: tag, "value": value, **more}))

    def _encoded_alone(self, value: Any) -> Any:
        return self._encoded(value, ROOT, 0)

    def tagged(self, tag: str, value: Any, more: dict[str, Any]) -> Any:
        code = 0 if more else CODES.get(tag, 0)
        return ormsgpack.Ext(code, ormsgpack.packb(value if code else [tag, value, more]))

    def packed(self, node: Any) -> bytes:
        return ormsgpack.packb(node)


def _unpacked(data: bytes, build: Callable[[Any, Any, dict[str, Any]], Any]) -> Any:
    """A tree in which each tag is what `build` makes of its name, its value and what else it has."""
    failures: list[Exception] = []
    depth = 0

    def extension(code: int, content: bytes) -> Any:
        nonlocal depth
        depth += 1
        try:
            if depth > 2 * MAX_DEPTH:  # each level is one of Python's, and of the machine's stack
                raise DeserializationError("the payload is nested too deep")
            value = ormsgpack.unpackb(content, ext_hook=extension)
            if code:
                return build(_TAGS.get(code, code), value, {})
            if type(value) is not list or len(value) != 3 or type(value[2]) is not dict:
                raise DeserializationError("an extension value of type 0 is no array of three")
            return build(*value)
        except Exception as error:
            failures.append(error)  # ormsgpack tells that this failed, but not why
            raise
        finally:
            depth -= 1

    try:
        return ormsgpack.unpackb(data, ext_hook=extension)
    except (RecursionError, ValueError) as error:
        cause = failures[0] if failures else error
        if isinstance(cause, DeserializationError) or not isinstance(cause, (RecursionError, ValueError)):
            raise cause from cause.__cause__
        raise DeserializationError(f"the payload is not msgpack that kvpersist writes: {cause}") from cause


def _plain(node: Any) -> Any:
    """A tree without what JSON lacks."""
    if type(node) is dict:
        return {key: _plain(each) for key, each in node.items()}
    if type(node) is list:
        return [_plain(each) for each in node]
    if type(node) is bytes:
        return {TAG: "bytes", "value": base64.b64encode(node).decode()}
    if type(node) is float and not math.isfinite(node):
        return {TAG: "float", "value": repr(node)}
    return node


def _no_bytearray(value: Any) -> None:
    if type(value) in (bytearray, memoryview):
        raise TypeError
