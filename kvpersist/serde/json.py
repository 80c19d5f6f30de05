"""The default serializer: JSON that people can read and that comes back exactly, or an error.

What JSON itself can hold is written as it is.  Anything else is a *tag*, an object with the key
``$kv``::

    {"when": {"$kv": "datetime", "value": "2026-11-24T06:23:49+01:00", "zone": "Europe/Oslo"}}

A dict of the user's that has that key, or keys that are not text, is written as a tag too, as pairs,
and so nothing in a state can be mistaken for a tag.

Classes come back only where the reader allows them, and without running their constructors.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime as dt
import decimal
import enum
import importlib
import math
import re
import sys
import uuid
import zoneinfo
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
import ormsgpack

from ..errors import DeserializationError, OptionError, SerializationError

TAG = "$kv"

_TAG_BYTES = b'"$kv"'
_MAX_DEPTH = 200  # orjson refuses more than 254 levels, and a tag takes up to three
_HOLDS_ANYTHING = "the serializers pickle and cloudpickle can hold any value"

# With all of these, ormsgpack takes what JSON can hold, bytes and non-finite floats, and nothing else;
# orjson refuses bytes; the floats are looked for in the packed bytes.  It is the cheapest exactness check
# there is: two passes in native code.
_ONLY_PLAIN = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_ONLY_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_MAYBE_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search

_Path = tuple[Any, Any]  # the path of the container, and the key in it


class JSONSerializer:
    """Readable JSON with tags for what JSON lacks.

    Args:
        classes: which dataclasses, named tuples, enums and pydantic models a state may hold.  A class, or
            a mapping of names to classes (records then hold that name, and the class may move), or the
            name of a module, which allows all classes in it and in the modules below it.
        burr_kwargs: passed on to the functions registered with Burr's serde.  Burr's own ``allowlist`` of
            modules counts as `classes`.
    """

    name = "json"

    def __init__(self, *, classes: Mapping[str, type] | Iterable[type | str] = (), **burr_kwargs: Any) -> None:
        self._burr_kwargs = burr_kwargs
        self._classes: dict[str, type] = {}
        self._modules: list[str] = list(burr_kwargs.get("allowlist") or ())
        if isinstance(classes, (str, type)):
            raise OptionError(f"classes must be a list or a mapping, as in classes=[{classes!r}]")
        named = classes.items() if isinstance(classes, Mapping) else [(None, each) for each in classes]
        for name, each in named:
            if isinstance(each, str):
                self._modules.append(each)
                continue
            if not isinstance(each, type):
                raise OptionError(f"classes: {each!r} is neither a class nor the name of a module")
            name = name or _full_name(each)
            if self._classes.setdefault(name, each) is not each:
                raise OptionError(f"classes: two classes are called {name!r}; name them, as in classes={{'a': A}}")
        self._names = {each: name for name, each in self._classes.items()}

    def dumps(self, state: dict[str, Any]) -> bytes:
        fields = _burr_fields()
        if not fields or fields.keys().isdisjoint(state):
            try:
                packed = ormsgpack.packb(state, option=_ONLY_PLAIN)
                data = orjson.dumps(state, option=_ONLY_JSON)
            except TypeError:  # both libraries' errors are one
                pass
            else:
                if not (b"null" in data and _MAYBE_NOT_FINITE(packed)) and _TAG_BYTES not in data:
                    return data
        try:
            return orjson.dumps(self._encoded_state(state, fields))
        except (RecursionError, orjson.JSONEncodeError) as error:
            if isinstance(error, SerializationError):
                raise
            raise SerializationError(f"the state is nested too deep for JSON: {error}", "state") from error

    def loads(self, data: bytes) -> dict[str, Any]:
        try:
            state = orjson.loads(data)
            if _TAG_BYTES in data:
                state = self._decoded_state(state)
        except (RecursionError, orjson.JSONDecodeError) as error:
            if isinstance(error, DeserializationError):
                raise
            raise DeserializationError(f"the payload is not JSON that kvpersist writes: {error}") from error
        if type(state) is not dict:
            raise DeserializationError("the payload is not a JSON object")
        return state

    # Encoding: a tree of any values to a tree that orjson writes faithfully.

    def _encoded_state(self, state: dict[str, Any], fields: Mapping[str, Any]) -> Any:
        ours = {key: value for key, value in state.items() if key not in fields}
        encoded = self._encoded(ours, (None, None), 0)
        if len(ours) == len(state):
            return encoded
        if TAG in encoded:
            raise SerializationError(
                f"a state with fields registered with Burr's serde cannot have a field called {TAG!r}",
                "state",
            )
        # Burr's State has registered functions for these fields.
        result = {}
        for key, value in state.items():
            if key in fields:
                of_burr = fields[key][0](value, **self._burr_kwargs)
                result[key] = {TAG: "field", "value": self._encoded(of_burr, ((None, None), key), 1)}
            else:
                result[key] = encoded[key]
        return result

    def _encoded(self, value: Any, path: _Path, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return value if _is_unicode(value) else _tag("str", _base64(value.encode("utf-8", "surrogatepass")))
        if kind is int:
            return value if -(2**63) <= value < 2**64 else _tag("int", _digits(value))
        if kind is float:
            return value if math.isfinite(value) else _tag("float", _signed(value))
        if depth > _MAX_DEPTH:
            raise SerializationError(
                f"{_text(path)[:200]}... is nested more than {_MAX_DEPTH} levels deep, or holds itself",
                _text(path),
            )
        if kind is dict:
            if TAG not in value and all(type(key) is str and _is_unicode(key) for key in value):
                return {key: self._encoded(each, (path, key), depth + 1) for key, each in value.items()}
            return _tag("dict", self._pairs(value, path, depth))
        if kind is list:
            return self._items(value, path, depth)
        encode = _ENCODERS.get(kind)
        if encode is not None:
            return encode(self, value, path, depth)
        return self._encoded_object(value, kind, path, depth)

    def _items(self, values: Iterable[Any], path: _Path, depth: int) -> list[Any]:
        return [self._encoded(each, (path, index), depth + 1) for index, each in enumerate(values)]

    def _pairs(self, values: Mapping[Any, Any], path: _Path, depth: int) -> list[Any]:
        return [
            [self._encoded(key, (path, key), depth + 2), self._encoded(each, (path, key), depth + 2)]
            for key, each in values.items()
        ]

    def _encoded_object(self, value: Any, kind: type, path: _Path, depth: int) -> Any:
        """An instance of a user's class."""
        parts = _taken_apart(value)
        name = self._names.get(kind)
        if name is None and self._allows_module(kind.__module__) and _found(_full_name(kind)) is kind:
            name = _full_name(kind)
        if parts is not None and name is not None:
            what, content, more = parts
            return {
                TAG: what,
                "class": name,
                "value": self._encoded(content, path, depth + 1),
                **{key: self._encoded(each, (path, f"<{key}>"), depth + 1) for key, each in more.items()},
            }
        of_burr = _burr_serialize(kind)
        if of_burr is not None:
            return _tag("burr", self._encoded(of_burr(value, **self._burr_kwargs), path, depth + 1))
        if parts is None:
            reason = "which JSON cannot hold exactly;"
        else:
            reason = (
                "which no reader is allowed to rebuild; allow it with "
                f"serde_kwargs={{'classes': [{kind.__name__}]}}, or"
            )
        raise SerializationError(f"{_text(path)} is a {_full_name(kind)}, {reason} {_HOLDS_ANYTHING}", _text(path))

    # Decoding: the same tree back.

    def _decoded_state(self, state: Any) -> Any:
        if type(state) is not dict or TAG in state:
            return self._decoded(state)
        fields = _burr_fields()
        result = {}
        for key, node in state.items():
            if type(node) is dict and node.get(TAG) == "field":
                if key not in fields:
                    raise DeserializationError(
                        f"the field {key!r} was written by a function registered with Burr's "
                        "register_field_serde; register it before loading"
                    )
                result[key] = fields[key][1](self._decoded(node["value"]), **self._burr_kwargs)
            else:
                result[key] = self._decoded(node)
        return result

    def _decoded(self, node: Any) -> Any:
        if type(node) is list:
            return [self._decoded(each) for each in node]
        if type(node) is not dict:
            return node
        tag = node.get(TAG)
        if tag is None:
            return {key: self._decoded(each) for key, each in node.items()}
        decode = _DECODERS.get(tag)
        if decode is None:
            raise DeserializationError(f"the tag {tag!r} is not known to this version of kvpersist")
        try:
            return decode(self, node)
        except DeserializationError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, binascii.Error) as error:
            raise DeserializationError(f"a value tagged {tag!r} is malformed: {error!r}") from error

    def _allowed_class(self, name: str) -> type:
        """The class of a name in a record.  Imports only what the reader allowed."""
        allowed = self._classes.get(name)
        if allowed is None and self._allows_module(name.partition(":")[0]):
            allowed = _found(name)
        if allowed is None:
            raise DeserializationError(
                f"the record holds a {name}, which this reader does not allow; allow it with "
                f"serde_kwargs={{'classes': [{name.rpartition(':')[2]}]}}"
            )
        return allowed

    def _allowed_modules(self) -> list[str]:
        plugin = sys.modules.get("burr.integrations.serde.pydantic")
        return [*self._modules, *(getattr(plugin, "_global_allowlist", None) or ())]

    def _allows_module(self, module: str) -> bool:
        return any(module == each or module.startswith(each + ".") for each in self._allowed_modules())

    def _of_burr(self, node: dict[str, Any]) -> Any:
        from burr.core import serde

        # Without an allow-list, Burr would import whatever pydantic class the record names.
        return serde.deserialize(
            self._decoded(node["value"]), **{**self._burr_kwargs, "allowlist": self._allowed_modules()}
        )


def _tag(name: str, value: Any, **more: Any) -> dict[str, Any]:
    return {TAG: name, "value": value, **more}


# What the standard library's types look like, and how they come back.

_Encoder = Callable[[JSONSerializer, Any, _Path, int], Any]
_Decoder = Callable[[JSONSerializer, dict[str, Any]], Any]


def _encoded_set(self: JSONSerializer, value: Any, path: _Path, depth: int) -> Any:
    # In a fixed order, so that equal states have equal bytes.
    items = sorted((self._encoded(each, (path, each), depth + 1) for each in value), key=_sort_key)
    return _tag(type(value).__name__, items)


def _sort_key(node: Any) -> bytes:
    return orjson.dumps(node)


def _encoded_deque(self: JSONSerializer, value: Any, path: _Path, depth: int) -> Any:
    return _tag("deque", self._items(value, path, depth), maxlen=value.maxlen)


def _encoded_moment(self: JSONSerializer, value: Any, path: _Path, depth: int) -> Any:
    tag = _tag(type(value).__name__, value.isoformat())
    zone = value.tzinfo
    if type(zone) is zoneinfo.ZoneInfo and zone.key:
        tag["value"] = value.replace(tzinfo=None).isoformat()
        tag["zone"] = zone.key
    elif zone is not None and (type(zone) is not dt.timezone or repr(zone) != repr(dt.timezone(zone.utcoffset(None)))):
        raise SerializationError(
            f"{_text(path)} has the time zone {zone!r}, which JSON cannot hold exactly; use a "
            f"zoneinfo.ZoneInfo or a datetime.timezone without a name, or {_HOLDS_ANYTHING}",
            _text(path),
        )
    if value.fold:
        tag["fold"] = 1
    return tag


def _decoded_moment(kind: type[dt.datetime] | type[dt.time]) -> _Decoder:
    def decode(self: JSONSerializer, node: dict[str, Any]) -> Any:
        moment = kind.fromisoformat(node["value"])
        if "zone" in node:
            moment = moment.replace(tzinfo=zoneinfo.ZoneInfo(node["zone"]))
        return moment.replace(fold=node.get("fold", 0))

    return decode


_ENCODERS: dict[type, _Encoder] = {
    tuple: lambda self, value, path, depth: _tag("tuple", self._items(value, path, depth)),
    set: _encoded_set,
    frozenset: _encoded_set,
    deque: _encoded_deque,
    OrderedDict: lambda self, value, path, depth: _tag("OrderedDict", self._pairs(value, path, depth)),
    bytes: lambda self, value, path, depth: _tag("bytes", _base64(value)),
    bytearray: lambda self, value, path, depth: _tag("bytearray", _base64(value)),
    dt.datetime: _encoded_moment,
    dt.time: _encoded_moment,
    dt.date: lambda self, value, path, depth: _tag("date", value.isoformat()),
    dt.timedelta: lambda self, value, path, depth: _tag("timedelta", [value.days, value.seconds, value.microseconds]),
    decimal.Decimal: lambda self, value, path, depth: _tag("Decimal", str(value)),
    uuid.UUID: lambda self, value, path, depth: _tag("UUID", str(value)),
    complex: lambda self, value, path, depth: _tag("complex", [_signed(value.real), _signed(value.imag)]),
}

_DECODERS: dict[str, _Decoder] = {
    "str": lambda self, node: _from_base64(node["value"]).decode("utf-8", "surrogatepass"),
    "int": lambda self, node: int(node["value"], 0),
    "float": lambda self, node: float(node["value"]),
    "dict": lambda self, node: {self._decoded(key): self._decoded(each) for key, each in node["value"]},
    "tuple": lambda self, node: tuple(self._decoded(node["value"])),
    "set": lambda self, node: set(self._decoded(node["value"])),
    "frozenset": lambda self, node: frozenset(self._decoded(node["value"])),
    "deque": lambda self, node: deque(self._decoded(node["value"]), node["maxlen"]),
    "OrderedDict": lambda self, node: OrderedDict(
        (self._decoded(key), self._decoded(each)) for key, each in node["value"]
    ),
    "bytes": lambda self, node: _from_base64(node["value"]),
    "bytearray": lambda self, node: bytearray(_from_base64(node["value"])),
    "datetime": _decoded_moment(dt.datetime),
    "time": _decoded_moment(dt.time),
    "date": lambda self, node: dt.date.fromisoformat(node["value"]),
    "timedelta": lambda self, node: dt.timedelta(*node["value"]),
    "Decimal": lambda self, node: decimal.Decimal(node["value"]),
    "UUID": lambda self, node: uuid.UUID(node["value"]),
    "complex": lambda self, node: complex(*map(float, node["value"])),
    "burr": JSONSerializer._of_burr,
}


# What users' classes look like, and how they come back: their fields, without a call of their constructor.


def _taken_apart(value: Any) -> tuple[str, Any, dict[str, Any]] | None:
    """What an instance of a user's class is, its content and what else makes it up; None where it is neither."""
    kind = type(value)
    if isinstance(value, enum.Flag):
        return "flag", value.value, {}
    if isinstance(value, enum.Enum):
        return "enum", value.name, {}
    if isinstance(value, tuple) and hasattr(kind, "_fields") and not getattr(value, "__dict__", None):
        return "namedtuple", list(value), {}
    if dataclasses.is_dataclass(kind):
        fields = {
            field.name: getattr(value, field.name) for field in dataclasses.fields(kind) if hasattr(value, field.name)
        }
        slots = [slot for each in kind.__mro__ for slot in _slots(each) if hasattr(value, slot)]
        builtin = any(each.__module__ == "builtins" for each in kind.__mro__[1:-1])
        if builtin or not fields.keys() >= {*getattr(value, "__dict__", ()), *slots}:
            return None  # it holds more than its fields
        return "dataclass", fields, {}
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        state = pydantic.BaseModel.__getstate__(value)
        more = {
            "set": sorted(state["__pydantic_fields_set__"]),
            "extra": state["__pydantic_extra__"],
            "private": state["__pydantic_private__"],
        }
        return "pydantic", state["__dict__"], {key: each for key, each in more.items() if each is not None}
    return None


def _slots(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _put_together(check: Callable[[type], bool], build: Callable[[Any, Any, dict[str, Any]], Any]) -> _Decoder:
    def decode(self: JSONSerializer, node: dict[str, Any]) -> Any:
        kind = self._allowed_class(node["class"])
        if not check(kind):
            raise DeserializationError(f"{node['class']} is not a {node[TAG]}")
        more = {key: self._decoded(each) for key, each in node.items() if key not in (TAG, "class", "value")}
        return build(kind, self._decoded(node["value"]), more)

    return decode


def _dataclass(kind: Any, fields: dict[str, Any], more: dict[str, Any]) -> Any:
    instance = object.__new__(kind)
    unknown = fields.keys() - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise DeserializationError(f"{_full_name(kind)} has no field {', '.join(sorted(unknown))} any more")
    for name, value in fields.items():
        object.__setattr__(instance, name, value)
    return instance


def _pydantic_model(kind: Any, fields: dict[str, Any], more: dict[str, Any]) -> Any:
    import pydantic

    instance = kind.__new__(kind)
    pydantic.BaseModel.__setstate__(
        instance,
        {
            "__dict__": fields,
            "__pydantic_fields_set__": set(more["set"]),
            "__pydantic_extra__": more.get("extra"),
            "__pydantic_private__": more.get("private"),
        },
    )
    return instance


def _is_pydantic_model(kind: type) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(kind, pydantic.BaseModel)


_DECODERS.update(
    {
        "enum": _put_together(lambda kind: issubclass(kind, enum.Enum), lambda kind, name, _: kind[name]),
        "flag": _put_together(lambda kind: issubclass(kind, enum.Flag), lambda kind, value, _: kind(value)),
        "namedtuple": _put_together(
            lambda kind: issubclass(kind, tuple) and hasattr(kind, "_fields"),
            lambda kind, values, _: tuple.__new__(kind, values),
        ),
        "dataclass": _put_together(dataclasses.is_dataclass, _dataclass),
        "pydantic": _put_together(_is_pydantic_model, _pydantic_model),
    }
)


# What is registered with Burr's serde.  Burr is imported where its states are used, and nowhere else.


def _burr_fields() -> Mapping[str, Any]:
    """Burr's registered fields: name to serializer and deserializer."""
    module = sys.modules.get("burr.core.state")
    return module.FIELD_SERIALIZATION if module is not None else {}


def _burr_serialize(kind: type) -> Callable[..., Any] | None:
    """The function registered with Burr's serde for a type, other than Burr's own catch-alls."""
    serde = sys.modules.get("burr.core.serde")
    if serde is None:
        return None
    registered: Callable[..., Any] = serde.serialize.dispatch(kind)
    lossy = [serde.serialize.dispatch(each) for each in (object, str, dict, list)]
    plugin = sys.modules.get("burr.integrations.serde.pydantic")
    if registered in lossy or registered is getattr(plugin, "serialize_pydantic", None):
        return None
    return registered


def _signed(value: float) -> str:
    text = repr(value)
    return text if text.startswith("-") or math.copysign(1, value) > 0 else "-" + text  # a NaN's sign


def _digits(value: int) -> str:
    return str(value) if value.bit_length() < 3000 else hex(value)  # Python limits decimal digits to 4300


def _full_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _found(full_name: str) -> type | None:
    """The class of a full name, whose module is imported."""
    module, _, qualified = full_name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in qualified.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) else None


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _text(path: _Path) -> str:
    """A path as Python would write it: ``state['chat'][3]``."""
    keys = []
    while path[0] is not None:
        path, key = path
        keys.append(f"[{key!r}]")
    return "state" + "".join(reversed(keys))
