"""The default serializer: JSON that people can read and that comes back exactly, or an error.

What JSON itself can hold is written as it is.  Anything else is a *tag*, an object with the key
``$kv``::

    {"when": {"$kv": "datetime", "value": "2026-11-24T06:23:49+01:00", "zone": "Europe/Oslo"}}

A dict of the user's that has that key, or keys that are not text, is written as a tag too, as pairs,
and so nothing in a state can be mistaken for a tag.

What tags there are stands in `values`.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import orjson
import ormsgpack

from ..errors import DeserializationError, SerializationError
from .values import TreeSerializer, has_burr_fields

TAG = "$kv"


# With all of these, ormsgpack takes what JSON can hold, bytes and non-finite floats, and nothing else;
# orjson refuses bytes; the floats are looked for in the packed bytes.  It is the cheapest exactness check
# there is: two passes in native code.
ONLY_PLAIN = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
ONLY_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search


class JSONSerializer(TreeSerializer):
    """Readable JSON with tags for what JSON lacks; takes the arguments of `TreeSerializer`."""

    name = "json"
    native = frozenset()
    reserved = TAG

    def dumps(self, state: dict[str, Any]) -> bytes:
        if not has_burr_fields(state):
            try:
                packed = ormsgpack.packb(state, option=ONLY_PLAIN)
                data = orjson.dumps(state, option=ONLY_JSON)
            except TypeError:  # both libraries' errors are one
                pass
            else:
                if not _holds_tag(data) and not (_holds_not_finite(packed) and b"null" in data):
                    return data
        try:
            return orjson.dumps(self.encoded_state(state))
        except (RecursionError, orjson.JSONEncodeError) as error:
            if isinstance(error, SerializationError):
                raise
            raise SerializationError(f"the state is nested too deep for JSON: {error}", "state") from error

    def loads(self, data: bytes) -> dict[str, Any]:
        try:
            state = orjson.loads(data)
            if _holds_tag(data):
                state = self._decoded(state)
        except (RecursionError, orjson.JSONDecodeError) as error:
            if isinstance(error, DeserializationError):
                raise
            raise DeserializationError(f"the payload is not JSON that kvpersist writes: {error}") from error
        if type(state) is not dict:
            raise DeserializationError("the payload is not a JSON object")
        return state

    def shown(self, data: bytes) -> Any:
        """The tree that `dumps` wrote, with its tags as they stand: nothing is built or imported."""
        return orjson.loads(data)

    def _decoded(self, node: Any) -> Any:
        if type(node) is list:
            return [self._decoded(each) for each in node]
        if type(node) is not dict:
            return node
        decoded = {key: self._decoded(each) for key, each in node.items()}
        if TAG not in decoded:
            return decoded
        return self.rebuilt(decoded.pop(TAG), decoded.pop("value", None), decoded)

    def tagged(self, tag: str, value: Any, more: dict[str, Any]) -> Any:
        return {TAG: tag, "value": value, **more}

    def packed(self, node: Any) -> bytes:
        return orjson.dumps(node)

    def binary(self, data: bytes) -> str:
        return base64.b64encode(data).decode()

    def unbinary(self, value: Any) -> bytes:
        return base64.b64decode(value, validate=True)


# Looking for one byte is ten times as fast as looking for some, and most often there is none.


def _holds_tag(data: bytes) -> bool:
    return b"$" in data and b'"$' in data and b'"$kv"' in data


def _holds_not_finite(packed: bytes) -> bool:
    """Whether there may be an infinity or a NaN, which orjson writes as null."""
    return (b"\x7f" in packed or b"\xff" in packed) and _NOT_FINITE(packed) is not None
