"""numpy arrays as npy, pandas and polars frames as Arrow IPC: compact bytes that come back exactly.

Where a format does not hold a value faithfully, the value is refused: each frame is read back and compared
when it is saved.  These are the only libraries that reading a record may import, and none of them runs
what the bytes say.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

from ..errors import DeserializationError, MissingExtraError, SerializationError


class Codec(Protocol):
    """One kind of array or frame to bytes and back."""

    tag: str

    def handles(self, kind: type) -> bool:
        """Whether it is for the instances of a class of its library."""

    def dumps(self, value: Any, path: str) -> tuple[bytes, dict[str, Any]]:
        """The bytes of a value, and what else makes it up; `SerializationError` where that is not exact."""

    def loads(self, data: bytes, more: dict[str, Any]) -> Any:
        """The value that `dumps` took apart."""


class _Array:
    """A numpy array, in numpy's own file format."""

    tag = "numpy.ndarray"

    def handles(self, kind: type) -> bool:
        return kind is sys.modules["numpy"].ndarray

    def dumps(self, value: Any, path: str) -> tuple[bytes, dict[str, Any]]:
        from numpy.lib import format as npy

        dtype = value.dtype
        if dtype.hasobject:
            raise SerializationError(
                f"{path} is a numpy array of Python objects, which only pickle and cloudpickle hold; "
                "a list can hold them",
                path,
            )
        if dtype.metadata or npy.descr_to_dtype(npy.dtype_to_descr(dtype)) != dtype:
            raise _inexact(path, f"a numpy array of {dtype!r}", "npy")
        buffer = io.BytesIO()
        npy.write_array(buffer, value, allow_pickle=False)
        return buffer.getvalue(), {}

    def loads(self, data: bytes, more: dict[str, Any]) -> Any:
        from numpy.lib import format as npy

        buffer = io.BytesIO(data)
        array = npy.read_array(buffer, allow_pickle=False)
        if buffer.read(1):
            raise DeserializationError("a numpy array is followed by other bytes")
        return array


class _Scalar:
    """A numpy scalar, as the bytes of its type."""

    tag = "numpy"

    def handles(self, kind: type) -> bool:
        return issubclass(kind, sys.modules["numpy"].generic)

    def dumps(self, value: Any, path: str) -> tuple[bytes, dict[str, Any]]:
        import numpy

        code = value.dtype.str
        if value.dtype.hasobject or value.dtype.kind == "V" or numpy.dtype(code).type is not type(value):
            raise _inexact(path, f"a numpy scalar of {value.dtype!r}", "npy")
        return value.tobytes()[: value.dtype.itemsize], {"dtype": code}  # an empty text has none, and gives four

    def loads(self, data: bytes, more: dict[str, Any]) -> Any:
        import numpy

        dtype = numpy.dtype(more["dtype"])
        if dtype.hasobject or len(data) != dtype.itemsize:
            raise DeserializationError(f"{len(data)} bytes are no numpy scalar of {dtype!r}")
        return numpy.frombuffer(data, dtype)[0] if data else dtype.type()


class _PandasFrame:
    """A pandas frame, as an Arrow stream."""

    tag = "pandas.DataFrame"

    def handles(self, kind: type) -> bool:
        return kind is sys.modules["pandas"].DataFrame

    def dumps(self, value: Any, path: str) -> tuple[bytes, dict[str, Any]]:
        pyarrow = _pyarrow()
        more: dict[str, Any] = {}
        # What Arrow forgets: which columns were Python objects, and that an index has a regular step.
        objects = [number for number, dtype in enumerate(value.dtypes) if dtype.name == "object"]
        if objects:
            more["objects"] = objects
        if getattr(value.index, "freqstr", None) and type(value.index).__name__ == "DatetimeIndex":
            more["freq"] = value.index.freqstr
        try:
            table = pyarrow.Table.from_pandas(value)
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            data = sink.getvalue().to_pybytes()
            same = _same_frame(value, self.loads(data, more))
        except (
            ArithmeticError,
            LookupError,
            NotImplementedError,
            TypeError,
            ValueError,
            pyarrow.ArrowException,
        ) as error:
            raise _inexact(path, f"a pandas frame ({error})", "Arrow") from error
        if not same:
            raise _inexact(path, "a pandas frame", "Arrow")
        return data, more

    def loads(self, data: bytes, more: dict[str, Any]) -> Any:
        import pandas

        pyarrow = _pyarrow()
        try:
            table = pyarrow.ipc.open_stream(data).read_all()
            table.validate(full=True)
            frame = table.to_pandas()
        except pyarrow.ArrowException as error:
            raise DeserializationError(f"the bytes are no Arrow table of a pandas frame: {error}") from error
        for number in more.get("objects", ()):
            column = pandas.Series(index=frame.index, dtype=object)
            for row, each in enumerate(table.column(number).to_pylist()):
                column.iat[row] = each
            frame.isetitem(number, column)
        if "freq" in more:
            frame.index.freq = more["freq"]
        return frame


class _PandasSeries(_PandasFrame):
    """A pandas series, as a frame of one column."""

    tag = "pandas.Series"

    def handles(self, kind: type) -> bool:
        return kind is sys.modules["pandas"].Series

    def dumps(self, value: Any, path: str) -> tuple[bytes, dict[str, Any]]:
        data, more = super().dumps(value.to_frame(), path)
        return data, {**more, "named": value.name is not None}

    def loads(self, data: bytes, more: dict[str, Any]) -> Any:
        frame = super().loads(data, more)
        if "named" not in more:  # `dumps` compares the frame
            return frame
        return frame.iloc[:, 0] if more["named"] else frame.iloc[:, 0].rename(None)


class _PolarsFrame:
    """A polars frame, as an Arrow file."""

    tag = "polars.DataFrame"

    def handles(self, kind: type) -> bool:
        return kind is sys.modules["polars"].DataFrame

    def dumps(self, value: Any, path: str) -> tuple[bytes, dict[str, Any]]:
        import polars

        buffer = io.BytesIO()
        with _panics(lambda error: _inexact(path, f"a polars frame ({error})", "Arrow")):
            value.write_ipc(buffer, compression="uncompressed")
            data = buffer.getvalue()
            back = polars.read_ipc(io.BytesIO(data))
        if back.schema != value.schema or not back.equals(value, null_equal=True):
            raise _inexact(path, "a polars frame", "Arrow")
        return data, {}

    def loads(self, data: bytes, more: dict[str, Any]) -> Any:
        import polars

        with _panics(lambda error: DeserializationError(f"the bytes are no Arrow file of a polars frame: {error}")):
            return polars.read_ipc(io.BytesIO(data))


class _PolarsSeries(_PolarsFrame):
    """A polars series, as a frame of one column."""

    tag = "polars.Series"

    def handles(self, kind: type) -> bool:
        return kind is sys.modules["polars"].Series

    def dumps(self, value: Any, path: str) -> tuple[bytes, dict[str, Any]]:
        return super().dumps(value.to_frame(), path)

    def loads(self, data: bytes, more: dict[str, Any]) -> Any:
        return super().loads(data, more).to_series()


CODECS: list[Codec] = [_Array(), _Scalar(), _PandasFrame(), _PandasSeries(), _PolarsFrame(), _PolarsSeries()]


@lru_cache(maxsize=256)
def codec_of(kind: type) -> Codec | None:
    """The codec for the instances of a class, if it is one of these libraries' classes."""
    library = kind.__module__.partition(".")[0]
    if library not in sys.modules:
        return None
    return next((each for each in CODECS if each.tag.partition(".")[0] == library and each.handles(kind)), None)


@contextmanager
def _panics(to_error: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Turns any failure of polars into an error of ours; a panic in its native code is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise to_error(error) from error
        raise


def _inexact(path: str, what: str, how: str) -> SerializationError:
    return SerializationError(
        f"{path} is {what}, which does not come back exactly from {how}; "
        "the serializers pickle and cloudpickle can hold any value",
        path,
    )


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingExtraError("pandas frames need pyarrow: pip install 'kvpersist[pandas]'") from error
    return pyarrow


def _same_frame(one: Any, other: Any) -> bool:
    from pandas.testing import assert_frame_equal

    try:
        assert_frame_equal(one, other, check_exact=True, check_freq=True)
    except AssertionError:
        return False
    # For pandas, None, NaN and NA are one, and so are 1 and True.
    return repr(one.attrs) == repr(other.attrs) and all(
        all(map(_same, one.iloc[:, number], other.iloc[:, number]))
        for number, dtype in enumerate(one.dtypes)
        if dtype.name == "object"
    )


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(_same, one.values(), other.values()))
    return bool(one == other) or bool(one != one and other != other)  # noqa: PLR0124  a NaN
