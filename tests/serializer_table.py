"""What each serializer does with each type: the rows of the table in docs/serializers.md.

``python tests/serializer_table.py`` tries every value with every serializer and writes the table into the
page; the tests check that it is up to date.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import math
import pathlib
import re
import threading
import uuid
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np
import pandas as pd
import polars as pl
import pydantic
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from kvpersist import DeserializationError, SerializationError
from kvpersist.serde import Serde
from kvpersist.testing.serializer import exactly

SERIALIZERS = ("json", "msgpack", "pickle", "cloudpickle")
PAGE = Path(__file__).parent.parent / "docs" / "serializers.md"
BEGIN, END = "<!-- types: written by tests/serializer_table.py -->", "<!-- end of types -->"


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Message:
    role: str
    parts: list[Any] = dataclasses.field(default_factory=list)
    sent: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float = 0.0


@attrs.define
class Span:
    start: int
    _stop: int = attrs.field(default=7)


@attrs.frozen
class Label:
    text: str


class Inner(pydantic.BaseModel):
    when: dt.datetime
    tags: set[str] = set()


class Account(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    full_name: str = pydantic.Field(alias="fullName")
    password: str = pydantic.Field(exclude=True)
    inner: Inner | None = None
    untouched: int = 3
    _seen: int = pydantic.PrivateAttr(default=0)

    class Settings(pydantic.BaseModel):
        theme: str


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


def local_instance() -> Any:
    @dataclasses.dataclass
    class Local:
        value: int

    return Local(1)


def account() -> Account:
    made = Account(
        fullName="A",
        password="p",
        inner=Inner(when=dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc), tags={"a"}),
        other=[1],
    )
    made._seen = 4
    return made


ALLOWED = [__name__, "langchain_core.messages", "langchain_core.documents"]

OSLO = zoneinfo.ZoneInfo("Europe/Oslo")

# A name for people, and values of that kind.  All values of a row must come back exactly, or none.
ROWS: dict[str, list[Any]] = {
    "None, bool, str, list, dict with text keys": [None, True, "é\0😀", ["a", {"b": []}], {"a": {"": 1}}],
    "str with lone surrogates": ["\ud800"],
    "int of any size": [0, -(2**63), 2**64 - 1, 10**400, -(10**5000)],
    "float with infinities, NaN, -0.0": [0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324],
    "complex, Decimal, UUID": [1 + 2j, decimal.Decimal("1.10"), uuid.UUID(int=5)],
    "bytes, bytearray": [b"\0\xff", bytearray(b"abc")],
    "tuple, set, frozenset, deque, OrderedDict": [
        (1, (2,)),
        {1, "a"},
        frozenset({1}),
        collections.deque([1], maxlen=2),
        collections.OrderedDict(b=1, a=2),
    ],
    "dict with other keys": [{1: 1, (1, 2): 2, None: 3}],
    "datetime (naive, UTC, offset, ZoneInfo, fold)": [
        dt.datetime(2026, 1, 1, 1, 2, 3, 4),
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45))),
        dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=OSLO),
    ],
    "date, time, timedelta": [dt.date(2026, 1, 1), dt.time(1, 2, tzinfo=OSLO), dt.timedelta(days=-1, microseconds=1)],
    "Enum, IntEnum, Flag ¹": [Color.RED, Level.LOW, Access.READ | Access.WRITE],
    "NamedTuple ¹": [Pair(1, [Pair("a", None)])],
    "dataclass (also frozen, slots, nested) ¹": [
        Message("user", [Point(1.5)], dt.datetime(2026, 1, 1)),
        Point(1.0, math.inf),
    ],
    "attrs class ¹": [Span(1, 2), [Label("a")]],
    "pydantic model (aliases, excluded, extra, private fields) ¹": [account()],
    "pydantic model nested in a class ¹": [Account.Settings(theme="dark")],
    "LangChain message, document ¹": [
        HumanMessage("hi", id="1"),
        AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "t"}], usage_metadata=None),
        ToolMessage("4", tool_call_id="t"),
        Document("text", metadata={"page": 1}),
    ],
    "numpy array (any numbers, bool, text, datetime64, structured)": [
        np.arange(12, dtype="int16").reshape(3, 4),
        np.array([[1.5, math.nan]], order="F"),
        np.zeros((0, 3)),
        np.array(7),
        np.array(["a", "ü"]),
        np.array([b"a"]),
        np.array(["2026-01-01"], dtype="datetime64[ns]"),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", ">f8")]),
        np.arange(10)[::2],
    ],
    "numpy scalar": [
        np.float64(0.1),
        np.int8(-1),
        np.bool_(True),
        np.str_("ü"),
        np.str_(""),
        np.datetime64("2026-01-01", "s"),
    ],
    "numpy array of Python objects": [np.array([None, {}], dtype=object)],
    "pandas DataFrame, Series ²": [
        pd.DataFrame({"a": [1, 2], "b": [1.5, math.nan], "t": pd.to_datetime(["2026-01-01", None]).tz_localize("UTC")}),
        pd.DataFrame({"o": pd.Series(["x", None], dtype=object), "l": pd.Series([[1], [2, 3]], dtype=object)}),
        pd.DataFrame({"c": pd.Categorical(["a", "b"], ordered=True), "i": pd.array([1, None], dtype="Int64")}),
        pd.DataFrame({"n": [1, 2]}, index=pd.date_range("2026-01-01", periods=2, tz="UTC", name="day")),
        pd.DataFrame({"n": [1, 2]}, index=pd.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["x", None])),
        pd.DataFrame([[1, 2], [3, 4]], columns=[5, 6]),
        pd.DataFrame(),
        pd.Series([1, 2], name="s"),
        pd.Series([1.5]),
        pd.Series(["a", None], dtype=object, name=0),
    ],
    "pandas frame that Arrow does not hold": [
        pd.DataFrame({"o": pd.Series([1, "x"], dtype=object)}),
        pd.DataFrame({"o": pd.Series([math.nan, "x"], dtype=object)}),
        pd.DataFrame({"c": np.array([1j])}),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
    ],
    "polars DataFrame, Series": [
        pl.DataFrame({"a": [1, None], "b": ["x", "ü"], "l": [[1], []], "t": [dt.datetime(2026, 1, 1)] * 2}),
        pl.DataFrame(
            {
                "d": pl.Series([decimal.Decimal("1.10")], dtype=pl.Decimal(10, 2)),
                "c": pl.Series(["a"], dtype=pl.Categorical),
            }
        ),
        pl.DataFrame(),
        pl.Series("s", [1.5, None, math.nan]),
    ],
    "function, class": [len, Color],
    "instance of a class that was not allowed": [Slotted(1)],
    "instance of a local class": [local_instance()],
    "lambda": [lambda: 1],
    "pathlib path, range, Counter, partial": [
        pathlib.PurePosixPath("/a"),
        range(3),
        collections.Counter("ab"),
        functools.partial(int, base=2),
    ],
    "lock, generator, open file": [threading.Lock(), (each for each in "a")],
}


def outcome(serializer: str, values: list[Any]) -> str:
    """What a serializer does with all values of a row: "exact" or "error"; anything else raises."""
    serde = Serde({"serializer": serializer, "classes": ALLOWED})
    found = {_outcome(serde, value) for value in values}
    if len(found) != 1:
        raise AssertionError(f"{serializer} does not do the same with all of {values!r}")
    return found.pop()


def _outcome(serde: Serde, value: Any) -> str:
    try:
        data = serde.dumps({"a": [value]})
    except SerializationError as error:
        if not error.path.startswith("state['a'][0]"):
            raise AssertionError(f"the path of {value!r} is said to be {error.path}") from error
        return "error"
    try:
        back = serde.writer.loads(data)["a"][0]
    except DeserializationError as error:
        raise AssertionError(f"{value!r} was written but cannot be read") from error
    if not same(value, back):
        raise AssertionError(f"{value!r} came back as {back!r}")
    return "exact"


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same in type and content."""
    if type(one) is not type(other):
        return type(one).__qualname__ == type(other).__qualname__ and "<locals>" in type(one).__qualname__
    if isinstance(one, np.ndarray) and one.dtype.hasobject:
        return bool(exactly(one.tolist()) == exactly(other.tolist()))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, np.generic):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, pd.Series):
        one, other = one.to_frame(), other.to_frame()
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True, check_freq=True)
        columns = range(one.shape[1])
        return all(
            exactly(list(one.iloc[:, each])) == exactly(list(other.iloc[:, each]))
            for each in columns
            if one.dtypes.iloc[each].name == "object"
        )
    if isinstance(one, (pl.DataFrame, pl.Series)):
        one, other = (each.to_frame() if isinstance(each, pl.Series) else each for each in (one, other))
        return bool(one.schema == other.schema and one.equals(other))
    if isinstance(one, pydantic.BaseModel):
        return exactly_model(one) == exactly_model(other)
    if isinstance(one, functools.partial):
        return (one.func, one.args, one.keywords) == (other.func, other.args, other.keywords)
    if callable(one) and getattr(one, "__name__", "") == "<lambda>":
        return bool(one() == other())
    return bool(exactly(one) == exactly(other))


def exactly_model(model: pydantic.BaseModel) -> Any:
    state = model.__getstate__()
    return exactly({**state, "__dict__": {key: repr(each) for key, each in state["__dict__"].items()}})


def table() -> str:
    """The table in Markdown, made by trying everything."""
    lines = ["| type | " + " | ".join(SERIALIZERS) + " |", "|---|" + "---|" * len(SERIALIZERS)]
    for name, values in ROWS.items():
        lines.append(f"| {name} | " + " | ".join(outcome(each, values) for each in SERIALIZERS) + " |")
    return "\n".join(lines)


def written(page: str, make: Callable[[], str] = table) -> str:
    """The page with a new table."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{make()}\n{END}", page)


if __name__ == "__main__":
    ALLOWED[0] = "__main__"
    PAGE.write_text(written(PAGE.read_text()))
