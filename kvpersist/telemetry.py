"""What persisters and stores do, told to OpenTelemetry and to `logging`.

    persister = Persister.from_url(url, telemetry=True)

Each operation (a save, a load, ...) is a span, with a child for each call to the store, and one record of the logger
``kvpersist``; both are measured too.  All carry the same attributes, in which there is nothing of a state, no key and,
unless asked for, no id.

Two places do it: `operation` marks the operations of `History`, and `Observed` is put around the backend.  Where
nothing is observed, an operation costs one comparison more.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, Protocol, TypeVar
from urllib.parse import urlsplit

from .backends import Backend, GivenClient, Mode, Page
from .errors import MissingExtraError, OptionError
from .steps import Step
from .urls import redacted

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

T = TypeVar("T")
P = ParamSpec("P")

LOGGER: Final = logging.getLogger("kvpersist")
LOGGER.addHandler(logging.NullHandler())

IDS: Final = ("partition_key", "app_id", "sequence_id", "position")

BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""In seconds: those of the semantic conventions for database clients."""


class Work:
    """What an operation, or a call to the store, has come to so far."""

    __slots__ = ("attributes", "more", "read", "requests", "written")

    def __init__(self, attributes: dict[str, Any], more: Mapping[str, Any] | None = None) -> None:
        self.attributes = attributes
        """Of few values each, so that metrics can carry them."""
        self.more = dict(more or {})
        """What only spans and the log tell."""
        self.requests = 0
        self.read = 0
        self.written = 0

    def told(self) -> dict[str, Any]:
        """All that a span or a log record tells."""
        counted = {
            "kvpersist.requests": self.requests,
            "kvpersist.bytes.read": self.read,
            "kvpersist.bytes.written": self.written,
        }
        return {**self.attributes, **self.more, **counted}


_operation: ContextVar[Work | None] = ContextVar("kvpersist_operation", default=None)
"""The operation that runs here; the tasks of a `Group` inherit it."""


class Telemetry:
    """Where to report, and whether ids may be told.

    Spans and metrics need ``kvpersist[otel]``; where that is not installed, there is the log alone.  A persister that
    is pickled reports to the providers of the process that it comes to.

    Args:
        tracer_provider: takes the spans; by default the process's.
        meter_provider: takes the metrics; by default the process's.
        include_ids: tell partition keys, app ids, sequence ids and positions in spans and the log; metrics never do.

    Raises:
        MissingExtraError: for a provider, where OpenTelemetry is not installed.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        include_ids: bool = False,
    ) -> None:
        self.include_ids = include_ids
        self._otel: _OpenTelemetry | None = None
        try:
            self._otel = _OpenTelemetry(tracer_provider, meter_provider)
        except ImportError as error:
            if tracer_provider is not None or meter_provider is not None:
                raise MissingExtraError('OpenTelemetry is not installed: pip install "kvpersist[otel]"') from error

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Telemetry, include_ids=self.include_ids), ()

    @contextmanager
    def observed(self, name: str, work: Work, *, is_operation: bool) -> Iterator[None]:
        """Report what is done within: an operation, or a call to the store."""
        span = self._otel and self._otel.span(name, work, is_operation)
        outer = _operation.get()
        token = _operation.set(work) if is_operation else None
        started = time.perf_counter()
        try:
            yield
        except BaseException as error:
            work.attributes["error.type"] = f"{type(error).__module__}.{type(error).__qualname__}"
            raise
        finally:
            seconds = time.perf_counter() - started
            if not is_operation and outer is not None:
                outer.requests += work.requests
                outer.read += work.read
                outer.written += work.written
            if is_operation:
                _log(work, seconds)
            if token is not None:
                with suppress(ValueError):  # what was given up half way may be closed in another context
                    _operation.reset(token)
            if self._otel and span:
                self._otel.measure(work, seconds, is_operation)
                self._otel.end(span, work)


def _log(work: Work, seconds: float) -> None:
    """One record, while the operation's span is still the current one."""
    error = work.attributes.get("error.type")
    level = logging.WARNING if error else logging.DEBUG
    if LOGGER.isEnabledFor(level):
        LOGGER.log(
            level,
            "%s on %s %s after %.1f ms, %d requests",
            work.attributes["db.operation.name"],
            work.attributes["db.system.name"],
            f"failed with {error}" if error else "done",
            seconds * 1000,
            work.requests,
            extra={**work.told(), "kvpersist.duration": seconds},
        )


class _OpenTelemetry:
    """The tracer and the instruments."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        from opentelemetry import context, metrics, trace

        from . import __version__

        self._context, self._trace = context, trace
        self._tracer = trace.get_tracer("kvpersist", __version__, tracer_provider)
        meter = metrics.get_meter("kvpersist", __version__, meter_provider)
        self._calls = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of the calls to the store.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._operations = meter.create_histogram(
            "kvpersist.operation.duration",
            "s",
            "Duration of saves, loads and the other operations.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._requests = meter.create_counter("kvpersist.requests", "{request}", "Requests to the store.")
        self._bytes = meter.create_counter("kvpersist.io", "By", "Bytes of values read from and written to the store.")

    def span(self, name: str, work: Work, is_operation: bool) -> tuple[Any, Any]:
        """Start a span, and make it the current one."""
        kind = self._trace.SpanKind.INTERNAL if is_operation else self._trace.SpanKind.CLIENT
        span = self._tracer.start_span(name, kind=kind, attributes={**work.attributes, **work.more})
        return span, self._context.attach(self._trace.set_span_in_context(span))

    def end(self, started: tuple[Any, Any], work: Work) -> None:
        """End a span; the one before is the current one again, if this one is."""
        span, token = started
        span.set_attributes(work.told())
        if "error.type" in work.attributes:
            # Without the error's text, which names the record.
            span.set_status(self._trace.StatusCode.ERROR)
        if self._trace.get_current_span() is span:
            self._context.detach(token)
        span.end()

    def measure(self, work: Work, seconds: float, is_operation: bool) -> None:
        """Add to the metrics: what was asked of the store is counted where it was asked."""
        attributes = work.attributes
        if is_operation:
            self._operations.record(seconds, attributes)
            return
        self._calls.record(seconds, attributes)
        self._requests.add(work.requests, attributes)
        for direction, amount in (("receive", work.read), ("transmit", work.written)):
            if amount:
                self._bytes.add(amount, {**attributes, "network.io.direction": direction})


class _HasBackend(Protocol):
    backend: Backend


H = TypeVar("H", bound=_HasBackend)


def operation(
    name: str,
) -> Callable[[Callable[Concatenate[H, P], Step[T]]], Callable[Concatenate[H, P], Step[T]]]:
    """Mark a step body as an operation: where the backend is observed, so is the operation as a whole.

    One that another operation calls is a part of that.
    """

    def mark(body: Callable[Concatenate[H, P], Step[T]]) -> Callable[Concatenate[H, P], Step[T]]:
        signature = inspect.signature(body)

        def marked(self: H, /, *args: P.args, **kwargs: P.kwargs) -> Step[T]:
            steps = body(self, *args, **kwargs)
            backend = self.backend
            if backend.__class__ is not Observed or _operation.get() is not None:
                return steps
            assert isinstance(backend, Observed)
            ids: dict[str, Any] = {}
            if backend.telemetry.include_ids:
                given = signature.bind(self, *args, **kwargs).arguments
                ids = {f"kvpersist.{each}": given[each] for each in IDS if type(given.get(each)) in (str, int)}
            return backend.operation(name, steps, ids)

        functools.update_wrapper(marked, body)
        return marked

    return mark


class Observed(Backend):
    """A backend, each call to which is reported."""

    def __init__(self, inner: Backend, telemetry: Telemetry) -> None:
        super().__init__(inner.url, asynchronous=inner.asynchronous)
        self.inner = inner
        self.telemetry = telemetry
        self.atomic_create = inner.atomic_create
        self.read_only = inner.read_only
        self.values_in_scan = inner.values_in_scan
        self._attributes, self._target = _described(inner)

    def operation(self, name: str, steps: Step[T], ids: Mapping[str, Any]) -> Step[T]:
        """The steps of an operation on this store, reported as one."""
        work = Work({**self._attributes, "db.operation.name": name}, ids)
        with self.telemetry.observed(f"kvpersist {name}", work, is_operation=True):
            return (yield from steps)

    def _call(
        self,
        name: str,
        steps: Step[T],
        count: Callable[[T, Work], None] | None = None,
        *,
        written: int = 0,
        batch: int = 1,
    ) -> Step[T]:
        more = {"db.operation.batch.size": batch} if batch > 1 else None
        work = Work({**self._attributes, "db.operation.name": name}, more)
        work.requests, work.written = 1, written
        with self.telemetry.observed(name + self._target, work, is_operation=False):
            result = yield from steps
            if count is not None:
                count(result, work)
        return result

    def open(self) -> Step[None]:
        return self._call("open", self.inner.open())

    def close(self) -> Step[None]:
        return self._call("close", self.inner.close())

    def get(self, key: str) -> Step[bytes | None]:
        return self._call("get", self.inner.get(key), _count_value)

    def get_many(self, keys: Iterable[str]) -> Step[list[bytes | None]]:
        if type(self.inner).get_many is Backend.get_many:  # made of gets, each of which is told
            return super().get_many(keys)
        listed = list(keys)
        return self._call("get_many", self.inner.get_many(listed), self._count_values, batch=len(listed))

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        return self._call("put" if mode == "overwrite" else mode, self.inner.put(key, value, mode), written=len(value))

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        if type(self.inner).put_many is Backend.put_many:
            return super().put_many(entries)
        written = sum(len(value) for _, value in entries)
        return self._call("put_many", self.inner.put_many(entries), written=written, batch=len(entries))

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        return self._call("replace", self.inner.replace(key, old, new), written=len(new or b""))

    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        page = self.inner.scan(prefix, after=after, limit=limit, values=values, delimiter=delimiter)
        return self._call("scan", page, self._count_page)

    def delete(self, keys: Iterable[str]) -> Step[None]:
        listed = list(keys)
        return self._call("delete", self.inner.delete(listed), batch=len(listed))

    def _count_values(self, values: list[bytes | None], work: Work) -> None:
        work.read = sum(len(value) for value in values if value is not None)
        if not self.values_in_scan:  # each was fetched by itself
            work.requests = len(values)

    def _count_page(self, page: Page, work: Work) -> None:
        values = [value for _, value in page.entries if value is not None]
        work.read = sum(map(len, values))
        work.more["db.response.returned_rows"] = len(page.entries)
        if not self.values_in_scan:
            work.requests += len(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return Observed, (self.inner, self.telemetry)


def observed(backend: Backend, telemetry: bool | Telemetry) -> Backend:
    """A backend that is observed as asked for: True for a `Telemetry` as it is by default, False for none.

    Raises:
        OptionError: for what is neither.
    """
    if not isinstance(telemetry, (bool, Telemetry)):
        raise OptionError(f"telemetry must be a bool or a kvpersist.Telemetry, not a {type(telemetry).__name__}")
    if isinstance(backend, Observed):
        backend = backend.inner
    if telemetry is False:
        return backend
    return Observed(backend, Telemetry() if telemetry is True else telemetry)


def _count_value(value: bytes | None, work: Work) -> None:
    work.read = len(value or b"")


def _described(backend: Backend) -> tuple[dict[str, Any], str]:
    """What every span, metric and log record says of the store, and what the names of its spans end in."""
    attributes: dict[str, Any] = {"db.system.name": type(backend).__name__.removesuffix("Backend").lower()}
    if backend.default_port is None or isinstance(getattr(backend, "_clients", None), GivenClient):
        return attributes, ""  # the URL names no server
    try:
        host = urlsplit(redacted(backend.url)).netloc.rpartition("@")[2].partition(",")[0]
        server = urlsplit(f"//{host}")
        address, port = server.hostname, server.port or backend.default_port
    except ValueError:  # a port that is no number: the driver will say so
        return attributes, ""
    if not address:
        return attributes, ""
    return {**attributes, "server.address": address, "server.port": port}, f" {address}:{port}"
