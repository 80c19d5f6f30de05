"""Values taken apart into what a format holds, and put together again: what JSON and msgpack share.

What a format holds itself is written as it is.  Anything else is a *tag*: a name such as ``datetime`` or
``dataclass``, a value that the format holds or that holds further tags, and what else is needed.  How a
tag is spelt is the format's own matter.

Reading is safe.  Classes come back only where the reader allows them, and without running their
constructors; what Burr's own plugins for pydantic, pandas, langchain and pickle wrote is never handed to
them, since they import, read or run what the record names.
"""

from __future__ import annotations

import binascii
import dataclasses
import datetime as dt
import decimal
import enum
import importlib
import math
import struct
import sys
import uuid
import zoneinfo
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import DeserializationError, KvpersistError, OptionError, SerializationError
from . import arrays

HOLDS_ANYTHING = "the serializers pickle and cloudpickle can hold any value"

MAX_DEPTH = 200  # orjson refuses more than 254 levels, and a tag takes up to three

_ABSENT: Any = object()
_TEXT = frozenset((str,))

Path = tuple[Any, Any]  # the path of the container, and the key in it
ROOT: Path = (None, None)


class _Field(NamedTuple):
    """A field of a state that has functions registered with Burr's `register_field_serde`."""

    name: str
    value: Any


class TreeSerializer:
    """The base of the serializers that hold a tree of plain values and tags.

    Args:
        classes: which dataclasses, attrs classes, named tuples, enums and pydantic models a state may hold.
            A class, or a mapping of names to classes (records then hold that name, and the class may move),
            or the name of a module, which allows all classes in it and in the modules below it.
        allow_unsafe: with ``"pickle"`` in it, types given to Burr's ``register_type_to_pickle`` may be
            held.  Whoever can write to the store can then run code in its readers.
        burr_kwargs: passed on to the functions registered with Burr's serde.  Burr's own ``allowlist`` of
            modules counts as `classes`.
    """

    name: str
    safe = True

    # What differs from format to format.

    native: frozenset[type]
    """The types besides None, bool, int, str, list and dict that the format holds itself."""
    reserved: str | None
    """A key that no dict may have, since it marks a tag."""

    def tagged(self, tag: str, value: Any, more: dict[str, Any]) -> Any:
        """A tag as the format spells it."""
        raise NotImplementedError

    def packed(self, node: Any) -> bytes:
        """The bytes of a tree, for ordering."""
        raise NotImplementedError

    def binary(self, data: bytes) -> Any:
        """Bytes as the value of a tag: themselves, unless the format holds none."""
        return data

    def unbinary(self, value: Any) -> bytes:
        """The bytes that `binary` was given."""
        if type(value) is not bytes:
            raise DeserializationError(f"bytes are expected, not a {type(value).__name__}")
        return value

    def __init__(
        self,
        *,
        classes: Mapping[str, type] | Iterable[type | str] = (),
        allow_unsafe: Iterable[str] = (),
        **burr_kwargs: Any,
    ) -> None:
        self._burr_kwargs = burr_kwargs
        self._burr_pickles = "pickle" in allow_unsafe
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
            if name is None and "<locals>" in each.__qualname__:
                raise OptionError(f"classes: {each.__qualname__} is a local class; name it, as in classes={{'a': A}}")
            name = name or _full_name(each)
            if self._classes.setdefault(name, each) is not each:
                raise OptionError(f"classes: two classes are called {name!r}; name them, as in classes={{'a': A}}")
        self._names = {each: name for name, each in self._classes.items()}

    # Encoding

    def encoded_state(self, state: dict[str, Any]) -> Any:
        """The tree of a state."""
        fields = _burr_fields()
        if not fields.keys().isdisjoint(state):
            state = {key: _Field(key, value) if key in fields else value for key, value in state.items()}
        return self._encoded(state, ROOT, 0)

    def _encoded(self, value: Any, path: Path, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind in self.native:
            return value
        if kind is str:
            return value if _is_unicode(value) else self._text_tag(value)
        if kind is int:
            return value if -(2**63) <= value < 2**64 else self.tagged("int", _digits(value), {})
        if kind is float:
            return value if math.isfinite(value) else self.tagged("float", _not_finite(value), {})
        if depth > MAX_DEPTH:
            raise SerializationError(
                f"{path_text(path)[:200]}... is nested more than {MAX_DEPTH} levels deep, or holds itself",
                path_text(path),
            )
        if kind is dict:
            if self.reserved not in value and _TEXT.issuperset(map(type, value)) and _is_unicode("".join(value)):
                return {key: self._encoded(each, (path, key), depth + 1) for key, each in value.items()}
            return self.tagged("dict", self._pairs(value, path, depth), {})
        if kind is list:
            return self._items(value, path, depth)
        encode = _ENCODERS.get(kind)
        if encode is not None:
            return encode(self, value, path, depth)
        return self._encoded_object(value, kind, path, depth)

    def _text_tag(self, value: str) -> Any:
        return self.tagged("str", self.binary(value.encode("utf-8", "surrogatepass")), {})

    def _items(self, values: Iterable[Any], path: Path, depth: int) -> list[Any]:
        return [self._encoded(each, (path, index), depth + 1) for index, each in enumerate(values)]

    def _pairs(self, values: Mapping[Any, Any], path: Path, depth: int) -> list[Any]:
        return [
            [self._encoded(key, (path, key), depth + 2), self._encoded(each, (path, key), depth + 2)]
            for key, each in values.items()
        ]

    def _encoded_object(self, value: Any, kind: type, path: Path, depth: int) -> Any:
        """An array, a frame, or an instance of a user's class."""
        codec = arrays.codec_of(kind)
        if codec is not None:
            data, more = codec.dumps(value, path_text(path))
            return self.tagged(codec.tag, self.binary(data), more)
        parts = _taken_apart(value)
        name = self._names.get(kind)
        if name is None and self._allows_module(kind.__module__) and _found(_full_name(kind)) is kind:
            name = _full_name(kind)
        if parts is not None and name is not None:
            what, content, more = parts
            more = {key: self._encoded(each, (path, f"<{key}>"), depth + 1) for key, each in more.items()}
            return self.tagged(what, self._encoded(content, path, depth + 1), {"class": name, **more})
        of_burr = _burr_serialize(kind)
        if of_burr is not None:
            return self._of_burr("burr", of_burr, value, path, depth, {})
        raise SerializationError(
            f"{path_text(path)} is a {_full_name(kind)}, {self._why_not(kind, parts is not None)} {HOLDS_ANYTHING}",
            path_text(path),
        )

    def _why_not(self, kind: type, would_come_back: bool) -> str:
        if not would_come_back:
            return f"which {self.name} cannot hold exactly;"
        if "<locals>" in kind.__qualname__:
            return (
                "a local class, which no reader can find; move it to the top of its module, or name it with "
                f"serde_kwargs={{'classes': {{{kind.__name__!r}: {kind.__name__}}}}}, or"
            )
        return (
            "which no reader is allowed to rebuild; allow it with "
            f"serde_kwargs={{'classes': [{kind.__qualname__}]}}, or"
        )

    def _of_burr(
        self, tag: str, function: Callable[..., Any], value: Any, path: Path, depth: int, more: dict[str, Any]
    ) -> Any:
        """What a function registered with Burr's serde makes of a value."""
        try:
            made = function(value, **self._burr_kwargs)
        except Exception as error:
            raise SerializationError(
                f"{path_text(path)}: the function registered with Burr's serde failed: {error!r}", path_text(path)
            ) from error
        refused = self._refused_by_reader(made)
        if refused:
            raise SerializationError(f"{path_text(path)} was serialized by {refused}", path_text(path))
        return self.tagged(tag, self._encoded(made, path, depth + 1), more)

    # Decoding

    def rebuilt(self, tag: Any, value: Any, more: dict[str, Any]) -> Any:
        """The value of a tag, whose parts have been decoded before."""
        decode = _DECODERS.get(tag) if type(tag) is str else None
        if decode is None:
            raise DeserializationError(f"the tag {tag!r} is not known to this version of kvpersist")
        try:
            return decode(self, value, more)
        except DeserializationError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            OSError,
            TypeError,
            ValueError,
            binascii.Error,
        ) as error:
            raise DeserializationError(f"a value tagged {tag!r} is malformed: {error!r}") from error

    def _allowed_class(self, name: str) -> type:
        """The class of a name in a record.  Imports only what the reader allowed."""
        allowed = self._classes.get(name)
        module = name.partition(":")[0]
        # Importing runs a module: only one that was named itself, not one that is merely below it.
        if allowed is None and self._allows_module(module) and (module in sys.modules or module in self._modules):
            allowed = _found(name)
        if allowed is None:
            raise DeserializationError(
                f"the record holds a {name}, which this reader does not allow; allow it with "
                f"serde_kwargs={{'classes': [{name.rpartition(':')[2]}]}}"
            )
        return allowed

    def _allows_module(self, module: str) -> bool:
        plugin = sys.modules.get("burr.integrations.serde.pydantic")
        allowed = [*self._modules, *(getattr(plugin, "_global_allowlist", None) or ())]
        return any(module == each or module.startswith(each + ".") for each in allowed)

    def _from_burr(self, value: Any, field: str | None = None) -> Any:
        """What functions registered with Burr's serde make of what their counterparts made."""
        from burr.core import serde

        refused = self._refused_by_reader(value)
        if refused:
            raise DeserializationError(f"the record holds a value of {refused}")
        function: Callable[..., Any] = serde.deserialize
        if field is not None:
            fields = _burr_fields()
            if field not in fields:
                raise DeserializationError(
                    f"the field {field!r} was written by a function registered with Burr's "
                    "register_field_serde; register it before loading"
                )
            function = fields[field][1]
        try:
            return function(value, **self._burr_kwargs)
        except Exception as error:
            raise DeserializationError(f"a function registered with Burr's serde failed: {error!r}") from error

    def _refused_by_reader(self, value: Any) -> str | None:
        """Which plugin of Burr's own a value would be read by, if any: they import or run what it says."""
        from burr.core import serde

        if isinstance(value, dict):
            key = value.get(serde.KEY)
            function = serde.deserializer.func_map.get(key) if isinstance(key, str) else None
            module = getattr(function, "__module__", "")
            if module == "burr.integrations.serde.pickle" and not self._burr_pickles:
                return (
                    "Burr's register_type_to_pickle, which lets whoever can write to the store run code; "
                    "if that is wanted, say serde_kwargs={'allow_unsafe': ['pickle']}"
                )
            if module.startswith("burr.") and module != "burr.integrations.serde.pickle":
                return f"Burr's plugin {module}, which is never used to read; see serde_kwargs={{'classes': ...}}"
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            return next(filter(None, map(self._refused_by_reader, value)), None)
        return None


# What the standard library's types look like, and how they come back.

_Encoder = Callable[[TreeSerializer, Any, Path, int], Any]
_Decoder = Callable[[TreeSerializer, Any, dict[str, Any]], Any]


def _encoded_set(self: TreeSerializer, value: Any, path: Path, depth: int) -> Any:
    # In a fixed order, so that equal states have equal bytes.
    items = sorted((self._encoded(each, (path, each), depth + 1) for each in value), key=self.packed)
    return self.tagged(type(value).__name__, items, {})


def _encoded_moment(self: TreeSerializer, value: Any, path: Path, depth: int) -> Any:
    text, zone = value.isoformat(), value.tzinfo
    more: dict[str, Any] = {}
    if type(zone) is zoneinfo.ZoneInfo and zone is _usual_zone(zone.key):
        text = value.replace(tzinfo=None).isoformat()
        more["zone"] = zone.key
    elif zone is not None and (type(zone) is not dt.timezone or repr(zone) != repr(dt.timezone(zone.utcoffset(None)))):
        raise SerializationError(
            f"{path_text(path)} has the time zone {zone!r}, which {self.name} cannot hold exactly; use a "
            f"zoneinfo.ZoneInfo or a datetime.timezone without a name, or {HOLDS_ANYTHING}",
            path_text(path),
        )
    if value.fold:
        more["fold"] = 1
    return self.tagged(type(value).__name__, text, more)


def _usual_zone(key: str | None) -> zoneinfo.ZoneInfo | None:
    """The zone that everybody gets for a key; one made of a file may have the same key and other rules."""
    try:
        return zoneinfo.ZoneInfo(key) if key else None
    except (ValueError, zoneinfo.ZoneInfoNotFoundError):
        return None


def _decoded_moment(kind: type[dt.datetime] | type[dt.time]) -> _Decoder:
    def decode(self: TreeSerializer, value: Any, more: dict[str, Any]) -> Any:
        moment = kind.fromisoformat(value)
        if "zone" in more:
            moment = moment.replace(tzinfo=zoneinfo.ZoneInfo(more["zone"]))
        return moment.replace(fold=more.get("fold", 0))

    return decode


_ENCODERS: dict[type, _Encoder] = {
    tuple: lambda self, value, path, depth: self.tagged("tuple", self._items(value, path, depth), {}),
    set: _encoded_set,
    frozenset: _encoded_set,
    deque: lambda self, value, path, depth: self.tagged(
        "deque", self._items(value, path, depth), {"maxlen": value.maxlen}
    ),
    OrderedDict: lambda self, value, path, depth: self.tagged("OrderedDict", self._pairs(value, path, depth), {}),
    bytes: lambda self, value, path, depth: self.tagged("bytes", self.binary(value), {}),
    bytearray: lambda self, value, path, depth: self.tagged("bytearray", self.binary(bytes(value)), {}),
    dt.datetime: _encoded_moment,
    dt.time: _encoded_moment,
    dt.date: lambda self, value, path, depth: self.tagged("date", value.isoformat(), {}),
    dt.timedelta: lambda self, value, path, depth: self.tagged(
        "timedelta", [value.days, value.seconds, value.microseconds], {}
    ),
    decimal.Decimal: lambda self, value, path, depth: self.tagged("Decimal", str(value), {}),
    uuid.UUID: lambda self, value, path, depth: self.tagged(
        "UUID", str(value), {} if value.is_safe is uuid.SafeUUID.unknown else {"is_safe": value.is_safe.value}
    ),
    complex: lambda self, value, path, depth: self.tagged(
        "complex", [_not_finite(value.real), _not_finite(value.imag)], {}
    ),
    _Field: lambda self, value, path, depth: self._of_burr(
        "field", _burr_fields()[value.name][0], value.value, path, depth, {"name": value.name}
    ),
}

_DECODERS: dict[str, _Decoder] = {
    "str": lambda self, value, more: self.unbinary(value).decode("utf-8", "surrogatepass"),
    "int": lambda self, value, more: int(value, 0),
    "float": lambda self, value, more: _float(value),
    "dict": lambda self, value, more: {key: each for key, each in value},  # noqa: C416  a pair is checked to be one
    "tuple": lambda self, value, more: tuple(value),
    "set": lambda self, value, more: set(value),
    "frozenset": lambda self, value, more: frozenset(value),
    "deque": lambda self, value, more: deque(value, more["maxlen"]),
    "OrderedDict": lambda self, value, more: OrderedDict((key, each) for key, each in value),
    "bytes": lambda self, value, more: self.unbinary(value),
    "bytearray": lambda self, value, more: bytearray(self.unbinary(value)),
    "datetime": _decoded_moment(dt.datetime),
    "time": _decoded_moment(dt.time),
    "date": lambda self, value, more: dt.date.fromisoformat(value),
    "timedelta": lambda self, value, more: dt.timedelta(*value),
    "Decimal": lambda self, value, more: decimal.Decimal(value),
    "UUID": lambda self, value, more: uuid.UUID(value, is_safe=uuid.SafeUUID(more.get("is_safe"))),
    "complex": lambda self, value, more: complex(*map(_float, value)),
    "field": lambda self, value, more: self._from_burr(value, more["name"]),
    "burr": lambda self, value, more: self._from_burr(value),
}


def _decoded_by(codec: arrays.Codec) -> _Decoder:
    def decode(self: TreeSerializer, value: Any, more: dict[str, Any]) -> Any:
        data = self.unbinary(value)
        try:
            return codec.loads(data, more)
        except KvpersistError:
            raise
        except Exception as error:  # these libraries raise what they like at bytes that are not theirs
            raise DeserializationError(f"a value tagged {codec.tag!r} is malformed: {error!r}") from error

    return decode


_DECODERS.update({codec.tag: _decoded_by(codec) for codec in arrays.CODECS})


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
    names = _field_names(kind)
    if names is not None:
        fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
        slots = [slot for each in kind.__mro__ for slot in _slots(each) if hasattr(value, slot)]
        builtin = any(each.__module__ == "builtins" for each in kind.__mro__[1:-1])
        if builtin or not fields.keys() >= {*getattr(value, "__dict__", ()), *slots}:
            return None  # it holds more than its fields
        return "dataclass", fields, {}
    if _is_pydantic_model(kind):
        import pydantic

        own = kind.__mro__[: kind.__mro__.index(pydantic.BaseModel)]
        if any(hasattr(value, slot) for each in own for slot in _slots(each)):
            return None  # it holds more than its fields
        state = pydantic.BaseModel.__getstate__(value)
        more = {
            "set": sorted(state["__pydantic_fields_set__"]),
            "extra": state["__pydantic_extra__"],
            "private": state["__pydantic_private__"],
        }
        return "pydantic", state["__dict__"], {key: each for key, each in more.items() if each is not None}
    return None


def _field_names(kind: type) -> list[str] | None:
    """The fields of a dataclass or an attrs class."""
    if dataclasses.is_dataclass(kind) or hasattr(kind, "__attrs_attrs__"):
        return [field.name for field in _fields(kind)]
    return None


def _fields(kind: Any) -> tuple[Any, ...]:
    fields: tuple[Any, ...] = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else kind.__attrs_attrs__
    return fields


def _slots(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    private = f"_{kind.__name__.lstrip('_')}__"  # what Python makes of a name that starts with two underscores
    return [
        private + name[2:] if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def _put_together(
    what: str, check: Callable[[type], bool], build: Callable[[Any, Any, dict[str, Any]], Any]
) -> _Decoder:
    def decode(self: TreeSerializer, value: Any, more: dict[str, Any]) -> Any:
        kind = self._allowed_class(more["class"])
        if not check(kind):
            raise DeserializationError(f"{more['class']} is not a {what}")
        return build(kind, value, more)

    return decode


def _dataclass(kind: Any, fields: dict[str, Any], more: dict[str, Any]) -> Any:
    instance = object.__new__(kind)
    names = _field_names(kind) or []
    _refuse_lost(kind, fields.keys() - names)
    for name, value in fields.items():
        object.__setattr__(instance, name, value)
    for field in _fields(kind):  # those that the class has got since
        if field.name not in fields and not hasattr(instance, field.name):
            default = _default(kind, field, instance)
            if default is not _ABSENT:
                object.__setattr__(instance, field.name, default)
    return instance


def _default(kind: type, field: Any, instance: Any) -> Any:
    """What a field of a dataclass or an attrs class is where nobody said; absent if nobody has to."""
    if dataclasses.is_dataclass(kind):
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
        if field.default is not dataclasses.MISSING:
            return field.default
    else:
        import attr

        if isinstance(field.default, attr.Factory):  # type: ignore[arg-type]
            return field.default.factory(*[instance] * field.default.takes_self)
        if field.default is not attr.NOTHING:
            return field.default
    if field.init:
        raise DeserializationError(f"{_full_name(kind)} has a field {field.name}, which the record lacks")
    return _ABSENT


def _refuse_lost(kind: type, names: Iterable[str]) -> None:
    lost = sorted(names)
    if lost:
        raise DeserializationError(f"{_full_name(kind)} has no field {', '.join(lost)} any more")


def _namedtuple(kind: Any, values: list[Any], more: dict[str, Any]) -> Any:
    if len(values) != len(kind._fields):
        raise DeserializationError(f"{_full_name(kind)} has {len(kind._fields)} fields, and the record {len(values)}")
    return tuple.__new__(kind, values)


def _pydantic_model(kind: Any, fields: dict[str, Any], more: dict[str, Any]) -> Any:
    import pydantic

    _refuse_lost(kind, (name for name in fields if name not in kind.model_fields and not hasattr(kind, name)))
    for name, field in kind.model_fields.items():
        if name not in fields:
            if field.is_required():
                raise DeserializationError(f"{_full_name(kind)} has a field {name}, which the record lacks")
            fields[name] = field.get_default(call_default_factory=True)
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
        "enum": _put_together("enum", lambda kind: issubclass(kind, enum.Enum), lambda kind, name, _: kind[name]),
        "flag": _put_together("flag", lambda kind: issubclass(kind, enum.Flag), lambda kind, value, _: kind(value)),
        "namedtuple": _put_together(
            "namedtuple",
            lambda kind: issubclass(kind, tuple) and hasattr(kind, "_fields"),
            _namedtuple,
        ),
        "dataclass": _put_together("dataclass", lambda kind: _field_names(kind) is not None, _dataclass),
        "pydantic": _put_together("pydantic model", _is_pydantic_model, _pydantic_model),
    }
)


# What is registered with Burr's serde.  Burr is imported where its states are used, and nowhere else.


def _burr_fields() -> Mapping[str, Any]:
    """Burr's registered fields: name to serializer and deserializer."""
    module = sys.modules.get("burr.core.state")
    return module.FIELD_SERIALIZATION if module is not None else {}


def has_burr_fields(state: dict[str, Any]) -> bool:
    """Whether functions are registered with Burr's `register_field_serde` for any field of a state."""
    fields = _burr_fields()
    return bool(fields) and not fields.keys().isdisjoint(state)


def _burr_serialize(kind: type) -> Callable[..., Any] | None:
    """The function registered with Burr's serde for a type, other than Burr's catch-alls and plugins."""
    serde = sys.modules.get("burr.core.serde")
    if serde is None:
        return None
    registered: Callable[..., Any] = serde.serialize.dispatch(kind)
    module = getattr(registered, "__module__", None) or ""
    if module.startswith("burr.") and module != "burr.integrations.serde.pickle":
        return None
    return registered


def _not_finite(value: float) -> str:
    """A float as text, a NaN with its bits where they are not the usual ones."""
    text = repr(value)
    if not math.isnan(value) or struct.pack(">d", value) == struct.pack(">d", math.nan):
        return text
    return f"nan:{struct.pack('>d', value).hex()}"


def _float(text: str) -> float:
    if text.startswith("nan:"):
        value: float = struct.unpack(">d", bytes.fromhex(text[4:]))[0]
        return value
    return float(text)


def _digits(value: int) -> str:
    return str(value) if value.bit_length() < 3000 else hex(value)  # Python limits decimal digits to 4300


def _full_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _found(full_name: str) -> type | None:
    """The class of a full name, whose module is imported; none that is only imported there by another module."""
    module, _, qualified = full_name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in qualified.split("."):
            found = vars(found)[name]  # not getattr, which a module or a class may answer by running code
    except (ImportError, KeyError, TypeError, ValueError):
        return None
    return found if isinstance(found, type) and _full_name(found) == full_name else None


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_text(path: Path) -> str:
    """A path as Python would write it: ``state['chat'][3]``."""
    keys = []
    while path[0] is not None:
        path, key = path
        keys.append(f"[{key!r}]")
    return "state" + "".join(reversed(keys))
