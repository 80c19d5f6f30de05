"""CBOR (RFC 8949) as a serializer of kvpersist: compact, and read in any language.

What CBOR itself can hold is written as it is.  Anything else is tag 27, which CBOR's registry keeps for "a
serialised object with its type's name and constructor arguments": the array of a tag of kvpersist, its value and
a map of the rest, as in ``27(["datetime", "2026-11-24T06:23:49", {}])``.
"""

from __future__ import annotations

from typing import Any

import cbor2

from kvpersist import DeserializationError
from kvpersist.serde.values import MAX_DEPTH, TreeSerializer

OBJECT = 27


class CBORSerializer(TreeSerializer):
    """CBOR with a tag for what it lacks; takes the arguments of `TreeSerializer`."""

    name = "cbor"  # stands in the header of its records
    native = frozenset((bytes,))
    reserved = None  # a tag is no map, so that no map can be taken for one

    def dumps(self, state: dict[str, Any]) -> bytes:
        return cbor2.dumps(self.encoded_state(state))

    def loads(self, data: bytes) -> dict[str, Any]:
        try:
            # Only this tag: those that cbor2 knows besides are of other programs.
            state = cbor2.loads(data, semantic_decoders={OBJECT: self._object}, max_depth=6 * MAX_DEPTH)
        except cbor2.CBORDecodeError as error:
            if isinstance(error.__cause__, DeserializationError):
                raise error.__cause__ from error.__cause__.__cause__
            raise DeserializationError(f"the payload is not CBOR that kvpersist writes: {error}") from error
        if type(state) is not dict:
            raise DeserializationError("the payload is not a CBOR map")
        return state

    def _object(self, content: Any, immutable: bool) -> Any:
        if type(content) is not list or len(content) != 3 or type(content[2]) is not dict:
            raise DeserializationError("tag 27 is not on an array of three")
        return self.rebuilt(*content)

    def tagged(self, tag: str, value: Any, more: dict[str, Any]) -> Any:
        return cbor2.CBORTag(OBJECT, [tag, value, more])

    def packed(self, node: Any) -> bytes:
        return cbor2.dumps(node)
