"""The contract of a serializer: a state comes back exactly, or is an error that names the path."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import math
import struct
import uuid
import zoneinfo
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvpersist import CorruptRecordError, DeserializationError, SerializationError

PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    0.0,
    -0.0,
    1.0,
    0.1,
    5e-324,
    1.7976931348623157e308,
    "",
    "text",
    "\0\t\n\u2028\x7f",
    "é日本語😀",
    "e\u0301",
    [],
    [1, True, 1.0, "1", None],
    [[[[]]]],
    {},
    {"a": {"b": [1, {"c": None}]}},
    {"": 1},
]
"""What JSON can hold, and so every serializer must."""

FURTHER: list[Any] = [
    2**63,
    -(2**63) - 1,
    2**64,
    10**400,
    -(10**5000),
    math.inf,
    -math.inf,
    math.nan,
    -math.nan,
    struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0],
    "\ud800 a lone surrogate",
    b"",
    bytes(range(256)),
    bytearray(b"abc"),
    {1: "int", "1": "str", 1.5: "float", None: "none", (1, 2): "tuple", b"k": "bytes"},
    {True: "bool"},
    {"\ud800": 1},
    (),
    (1, (2, [3])),
    set(),
    {1, "a", (2, 3)},
    frozenset({1, frozenset({2})}),
    collections.deque([1, 2, 3]),
    collections.deque([1], maxlen=5),
    collections.OrderedDict([("b", 1), ("a", 2), (3, 4)]),
    1 + 2j,
    complex(math.nan, -0.0),
    decimal.Decimal("1.10"),
    decimal.Decimal("-0"),
    decimal.Decimal("1E+400"),
    decimal.Decimal("NaN"),
    uuid.UUID(int=5),
    uuid.UUID(int=5, is_safe=uuid.SafeUUID.safe),
    dt.datetime(2026, 11, 24, 6, 23, 49, 123456),
    dt.datetime(1, 1, 1),
    dt.datetime(2026, 11, 24, tzinfo=dt.timezone.utc),
    dt.datetime(2026, 11, 24, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30, seconds=-1))),
    dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Oslo")),
    dt.datetime(2026, 10, 25, 2, 30, fold=1),
    dt.date(2026, 11, 24),
    dt.time(6, 23, 49, 7),
    dt.time(6, 23, tzinfo=dt.timezone.utc),
    dt.time(6, 23, tzinfo=zoneinfo.ZoneInfo("Asia/Tokyo"), fold=1),
    dt.timedelta(days=-1, microseconds=1),
    dt.timedelta.max,
    # What looks like a tag, or like one of Burr's.
    {"$kv": "tuple", "value": [1, 2]},
    {"$kv": None},
    {"a": "$kv"},
    {"__burr_serde__": "pydantic", "__pydantic_class": "os.system"},
    {"__burr_serde__": "pickle", "value": "gASVBQ=="},
]

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(),
    st.text(st.characters(categories=["Cs", "Lu"]), max_size=3),
    st.binary(),
    st.complex_numbers(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.times(),
    st.datetimes(timezones=st.just(dt.timezone.utc) | st.none()),
    st.timedeltas(),
    st.sampled_from(["$kv", "__burr_serde__"]),
)
_HASHABLE = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=5
)
NESTED = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(collections.deque),
        st.dictionaries(st.text(max_size=3) | st.just("$kv"), inner, max_size=4),
        st.dictionaries(_HASHABLE, inner, max_size=3),
        st.dictionaries(_HASHABLE, inner, max_size=3).map(collections.OrderedDict),
        st.sets(_HASHABLE, max_size=3),
    ),
    max_leaves=12,
)
STATES = st.dictionaries(st.text(max_size=5) | st.sampled_from(["$kv", "__PRIOR_STEP"]), NESTED, max_size=5)


class Unknown:
    """A class that no serializer may take for something else."""


class _Text(str):
    __slots__ = ()


class _Mapping(dict):  # type: ignore[type-arg]
    pass


class SerializerContract:
    """Needs the attribute `serializer`: an object with ``dumps`` and ``loads``."""

    serializer: Any

    may_refuse = False
    """Whether it may refuse, by a `SerializationError`, what JSON cannot hold; otherwise it must hold it."""

    holds_anything = False
    """Whether values of any class can be held, as pickle does."""

    equal_bytes = True
    """Whether equal states have equal bytes, as a safe serializer promises."""

    @pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
    def test_plain_values_come_back_exactly(self, value: Any) -> None:
        for state in ({"field": value, "n": 1}, {"a": [{"b": [value]}]}):
            assert exactly(self.serializer.loads(self.serializer.dumps(state))) == exactly(state)

    @pytest.mark.parametrize("value", FURTHER, ids=lambda value: type(value).__name__)
    def test_other_values_come_back_exactly(self, value: Any) -> None:
        for state in ({"field": value, "n": 1}, {"a": [{"b": [value]}]}):
            data = self._dumped(state)
            assert data is None or exactly(self.serializer.loads(data)) == exactly(state)

    # One test is inherited by the class of each serializer, so what one of them found is not replayed in another.
    @settings(suppress_health_check=[HealthCheck.differing_executors], database=None, deadline=None)
    @given(state=STATES)
    def test_any_nesting_comes_back_exactly(self, state: dict[str, Any]) -> None:
        data = self._dumped(state)
        if data is not None:
            assert exactly(self.serializer.loads(data)) == exactly(state)
            if self.equal_bytes:
                assert self.serializer.dumps(self.serializer.loads(data)) == data

    def test_equal_states_have_equal_bytes(self) -> None:
        if not self.equal_bytes:
            return
        one, other = {8, 0}, {0, 8}  # iterate in the order of insertion, since their hashes collide
        assert list(one) != list(other)
        assert self._dumped({"s": one}) == self._dumped({"s": other})

    def _dumped(self, state: dict[str, Any]) -> bytes | None:
        """The bytes of a state, or None where the serializer refuses it and may."""
        try:
            data: bytes = self.serializer.dumps(state)
        except SerializationError as error:
            if not self.may_refuse:
                raise
            if not error.path.startswith("state"):
                raise AssertionError(f"{error.path!r} is no path in a state") from error
            return None
        return data

    def test_order_is_kept(self) -> None:
        state = {"b": {"z": 1, "a": 2}, "a": 1}
        assert list(self.serializer.loads(self.serializer.dumps(state))["b"]) == ["z", "a"]

    @pytest.mark.parametrize(
        "value", [Unknown(), _Text("a"), _Mapping(a=1), object(), len, Unknown, collections.Counter("ab"), range(3)]
    )
    def test_what_would_not_come_back_is_an_error(self, value: Any) -> None:
        if self.holds_anything:
            self.serializer.loads(self.serializer.dumps({"a": value}))
            return
        with pytest.raises(SerializationError, match=r"state\['a'\]\[0\]\['b'\]\[1\]") as caught:
            self.serializer.dumps({"a": [{"b": [0, value]}]})
        assert caught.value.path == "state['a'][0]['b'][1]"

    def test_what_holds_itself_is_an_error(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        if self.holds_anything:
            loop = self.serializer.loads(self.serializer.dumps({"loop": loop}))["loop"]
            assert loop[0] is loop
            return
        with pytest.raises(SerializationError):
            self.serializer.dumps({"loop": loop})

    @pytest.mark.parametrize("data", [b"", b"\0", b"[1]", b"nonsense", b'{"a":'])
    def test_other_bytes_are_an_error(self, data: bytes) -> None:
        with pytest.raises((DeserializationError, CorruptRecordError)):
            self.serializer.loads(data)


def exactly(value: Any) -> Any:
    """A value with its types spelt out, so that ``==`` tells 1 from True from 1.0, and a NaN equals itself."""
    kind = type(value)
    if isinstance(value, dict):
        return kind, [(exactly(key), exactly(each)) for key, each in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(map(exactly, value), key=repr)
    if isinstance(value, (list, tuple, collections.deque)):
        return kind, getattr(value, "maxlen", None), [exactly(each) for each in value]
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is decimal.Decimal:
        return kind, repr(value)
    if kind is complex:
        return kind, exactly(value.real), exactly(value.imag)
    if isinstance(value, (dt.datetime, dt.time)):
        return kind, value.isoformat(), value.fold, repr(value.tzinfo)
    if kind is uuid.UUID:
        return kind, value, value.is_safe
    return kind, value
