"""What is told of operations: to OpenTelemetry's own SDK, and to `logging`."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import servers
from burr.core import State
from conftest import STORES
from http_proxy import HTTPProxy
from object_servers import moto
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from kvpersist import (
    AsyncPersister,
    AsyncStore,
    ConflictError,
    OptionError,
    Persister,
    SQLitePersister,
    Store,
    StoreUnavailableError,
    Telemetry,
)
from kvpersist.history import History
from kvpersist.steps import run
from kvpersist.telemetry import Observed

SECRET = "do-not-tell"
"""In the state, in every id and in the password."""
STATE = {"said": SECRET, SECRET: "x" * 8_000, "n": list(range(500))}  # large enough for a part
PARTITION, APP, POSITION = f"p {SECRET}", f"a {SECRET}", f"ask {SECRET}"
SYSTEMS = {"sqlite": "sqlite", "redis": "redis", "postgresql": "postgresql", "memory": "memory", "file": "file"}


class Collected:
    """A telemetry, and what it has told."""

    def __init__(self, **options: Any) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(tracer_provider=self.provider, meter_provider=self.meters, **options)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def operations(self) -> list[ReadableSpan]:
        """The spans of operations, and every other one is a call of one of these or stands alone."""
        return [span for span in self.spans if span.name.startswith("kvpersist ")]

    def calls(self, operation: ReadableSpan) -> list[ReadableSpan]:
        found = [span for span in self.spans if span.parent and span.parent.span_id == operation.context.span_id]
        assert all(span.kind is SpanKind.CLIENT for span in found)
        return found

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        metrics = data.resource_metrics[0].scope_metrics[0].metrics
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]

    def everything(self) -> str:
        data = self.reader.get_metrics_data()
        return "".join(span.to_json() for span in self.spans) + (data.to_json() if data else "")


@pytest.fixture
def collected() -> Iterator[Collected]:
    found = Collected()
    yield found
    found.provider.shutdown()
    found.meters.shutdown()


@pytest.fixture(params=["sqlite", "redis", "postgresql", "memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    return request.param, STORES[request.param](tmp_path)


OPERATIONS: dict[str, tuple[Callable[[Any], Any], int | None]] = {
    "save": (lambda each: each.save(PARTITION, APP, 1, POSITION, State(STATE), "completed"), None),
    "load": (lambda each: each.load(PARTITION, APP), None),
    "list_app_ids": (lambda each: each.list_app_ids(PARTITION), 1),
    "list_partitions": (lambda each: each.list_partitions(), 1),
    "fork": (lambda each: each.fork(PARTITION, APP, 1, f"{APP} 2"), None),
    "rewind": (lambda each: each.rewind(PARTITION, APP, 1), 2),
    "prune": (lambda each: each.prune(keep_last=1), None),
    "sweep": (lambda each: each.sweep(), None),
    "verify": (lambda each: each.verify(), None),
    "delete_app": (lambda each: each.delete_app(PARTITION, APP), None),
}
"""Each operation, and how many calls to the store it makes, where that is the same for all."""


def _do_all(url: str, telemetry: Telemetry, face: str) -> None:
    if face == "sync":
        with Persister.from_url(url, telemetry=telemetry) as persister:
            for do, _ in OPERATIONS.values():
                do(persister)
            assert list(persister.history(PARTITION, APP)) == []
        return

    async def asynchronously() -> None:
        async with AsyncPersister.from_url(url, telemetry=telemetry) as persister:
            for do, _ in OPERATIONS.values():
                await do(persister)
            assert [header async for header in persister.history(PARTITION, APP)] == []

    asyncio.run(asynchronously())


@pytest.mark.parametrize("face", ["sync", "async"])
def test_one_span_an_operation_with_its_calls(store: tuple[str, str], face: str, collected: Collected) -> None:
    name, url = store
    _do_all(url, collected.telemetry, face)
    operations = collected.operations()
    assert [span.name for span in operations] == [f"kvpersist {name}" for name in (*OPERATIONS, "history")]
    for span in operations:
        attributes = dict(span.attributes or {})
        calls = collected.calls(span)
        operation = span.name.removeprefix("kvpersist ")
        expected = OPERATIONS.get(operation, (None, 1))[1]
        assert len(calls) == (expected or len(calls)) > 0, (span.name, calls)
        assert attributes["kvpersist.requests"] == len(calls)
        for amount in ("kvpersist.bytes.read", "kvpersist.bytes.written"):
            assert attributes[amount] == sum((call.attributes or {})[amount] for call in calls)
        assert attributes["db.operation.name"] == operation
        for each in (span, *calls):
            assert (each.attributes or {})["db.system.name"] == SYSTEMS[name]
            assert each.status.status_code is StatusCode.UNSET
            assert each.start_time < each.end_time
            assert ("server.port" in each.attributes) is (name in ("redis", "postgresql"))
            if "server.port" in each.attributes:
                port = each.attributes["server.port"]
                assert f"//127.0.0.1:{port}" in url or f"@127.0.0.1:{port}" in url or f"localhost:{port}" in url
                assert each.name.endswith(f":{port}") or each is span
    assert {span.name for span in operations} == {span.name for span in collected.spans if span.parent is None} - {
        call.name for call in collected.spans if call.name.startswith("close")
    }
    assert SECRET not in collected.everything()
    # A state of 10 KB was written, and read by the load.
    written, read = (
        operations[0].attributes["kvpersist.bytes.written"],
        operations[1].attributes["kvpersist.bytes.read"],
    )
    assert 500 < read <= written < 20_000


def test_all_operations_are_tried_here() -> None:
    marked = {name for name, each in vars(History).items() if hasattr(each, "__wrapped__")}
    assert marked - {"headers"} == set(OPERATIONS)


def test_metrics_add_up(store: tuple[str, str], collected: Collected) -> None:
    _, url = store
    _do_all(url, collected.telemetry, "sync")
    spans = collected.spans
    durations = collected.points("kvpersist.operation.duration")
    counted = {point.attributes["db.operation.name"]: point.count for point in durations}
    assert counted == dict.fromkeys((*OPERATIONS, "history"), 1)
    calls = Counter((span.attributes or {})["db.operation.name"] for span in spans if span.kind is SpanKind.CLIENT)
    counted = {p.attributes["db.operation.name"]: p.count for p in collected.points("db.client.operation.duration")}
    assert counted == calls
    assert sum(point.value for point in collected.points("kvpersist.requests")) == calls.total()
    for direction, amount in (("receive", "read"), ("transmit", "written")):
        told = [p.value for p in collected.points("kvpersist.io") if p.attributes["network.io.direction"] == direction]
        assert sum(told) == sum(
            (span.attributes or {})[f"kvpersist.bytes.{amount}"] for span in spans if span.kind is SpanKind.CLIENT
        )
        assert sum(told) > 500


def test_it_is_a_child_of_the_callers_span_also_under_gather(store: tuple[str, str], collected: Collected) -> None:
    _, url = store
    tracer = collected.provider.get_tracer("test")

    async def agent(persister: AsyncPersister, number: int) -> None:
        with tracer.start_as_current_span(f"agent {number}"):
            for step in range(3):
                await persister.save("p", f"app{number}", step, "ask", State({"n": number}), "completed")
            loaded = await persister.load("p", f"app{number}")
            assert loaded is not None

    async def asynchronously() -> None:
        async with AsyncPersister.from_url(url, telemetry=collected.telemetry) as persister:
            with tracer.start_as_current_span("all"):
                await asyncio.gather(*(agent(persister, number) for number in range(10)))
                await persister.load("p", None)  # which gathers, too

    asyncio.run(asynchronously())
    names = {span.context.span_id: span.name for span in collected.spans}
    for number in range(10):
        (agents,) = [span for span in collected.spans if span.name == f"agent {number}"]
        assert agents.parent is not None
        assert names[agents.parent.span_id] == "all"
        below = [s.name for s in collected.spans if s.parent and s.parent.span_id == agents.context.span_id]
        assert below == ["kvpersist save"] * 3 + ["kvpersist load"]
    *_, last = collected.operations()
    assert len(collected.calls(last)) >= 11  # the apps, the latest of each, the one asked for
    assert last.attributes["kvpersist.requests"] == len(collected.calls(last))
    assert all(span.context.trace_id == last.context.trace_id for span in collected.spans if "close" not in span.name)


def test_threads_do_not_mix(tmp_path: Path, collected: Collected) -> None:
    with Persister.from_url(STORES["sqlite"](tmp_path), telemetry=collected.telemetry) as persister:

        def save(number: int) -> None:
            persister.copy().save("p", f"app{number}", 0, "ask", State({"n": number}), "completed")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(save, range(40)))
    operations = collected.operations()
    assert len(operations) == 40
    assert [len(collected.calls(span)) for span in operations] == [1] * 40


@pytest.mark.parametrize("face", ["sync", "async"])
def test_errors_are_told_without_their_text(face: str, collected: Collected, caplog: pytest.LogCaptureFixture) -> None:
    url = f"redis://user:{SECRET}@127.0.0.1:{servers.free_port()}/0?timeout=1"
    caplog.set_level(logging.DEBUG, "kvpersist")
    if face == "sync":
        with Persister.from_url(url, telemetry=collected.telemetry) as persister:
            with pytest.raises(StoreUnavailableError):
                persister.load(PARTITION, APP)
            with Persister.from_url("memory://", telemetry=collected.telemetry) as other:
                other.save(PARTITION, APP, 1, POSITION, State({"said": SECRET}), "completed")
                with pytest.raises(ConflictError):
                    other.save(PARTITION, APP, 1, POSITION, State({"said": f"{SECRET}!"}), "completed")
    else:

        async def asynchronously() -> None:
            async with AsyncPersister.from_url(url, telemetry=collected.telemetry) as persister:
                with pytest.raises(StoreUnavailableError):
                    await persister.load(PARTITION, APP)
            async with AsyncPersister.from_url("memory://", telemetry=collected.telemetry) as other:
                await other.save(PARTITION, APP, 1, POSITION, State({"said": SECRET}), "completed")
                with pytest.raises(ConflictError):
                    await other.save(PARTITION, APP, 1, POSITION, State({"said": f"{SECRET}!"}), "completed")

        asyncio.run(asynchronously())
    load, _, save = collected.operations()
    (call,) = collected.calls(load)
    for span, error in ((load, "StoreUnavailableError"), (call, "StoreUnavailableError"), (save, "ConflictError")):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == f"kvpersist.errors.{error}"
        assert not span.events
    failed = [p for p in collected.points("kvpersist.operation.duration") if "error.type" in p.attributes]
    assert len(failed) == 2
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.__dict__["error.type"] for record in warned] == [
        "kvpersist.errors.StoreUnavailableError",
        "kvpersist.errors.ConflictError",
    ]
    assert SECRET not in collected.everything()
    assert SECRET not in "".join(str(record.__dict__) for record in caplog.records)


def test_ids_are_told_when_asked_for_but_never_in_metrics(caplog: pytest.LogCaptureFixture) -> None:
    collected = Collected(include_ids=True)
    caplog.set_level(logging.DEBUG, "kvpersist")
    with Persister.from_url("memory://", telemetry=collected.telemetry) as persister:
        persister.save("p", "a", 1, "ask", State({"said": SECRET}), status="completed")
        persister.load(None, "a")
        persister.load("p", app_id="a", sequence_id=1)
    told = [
        {name: value for name, value in (span.attributes or {}).items() if name.removeprefix("kvpersist.") in IDS}
        for span in collected.operations()
    ]
    assert told == [
        {
            "kvpersist.partition_key": "p",
            "kvpersist.app_id": "a",
            "kvpersist.sequence_id": 1,
            "kvpersist.position": "ask",
        },
        {"kvpersist.app_id": "a"},
        {"kvpersist.partition_key": "p", "kvpersist.app_id": "a", "kvpersist.sequence_id": 1},
    ]
    assert [getattr(record, "kvpersist.app_id") for record in caplog.records] == ["a", "a", "a"]
    for name in ("kvpersist.operation.duration", "db.client.operation.duration", "kvpersist.requests", "kvpersist.io"):
        for point in collected.points(name):
            assert not {each.removeprefix("kvpersist.") for each in point.attributes} & set(IDS)
    assert SECRET not in collected.everything()


IDS = ("partition_key", "app_id", "sequence_id", "position")


def test_the_log_is_structured_and_silent_unless_asked(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    def save(sequence_id: int) -> None:
        with Persister.from_url(f"sqlite://{tmp_path}/state.db", telemetry=True) as persister:
            persister.save(PARTITION, APP, sequence_id, POSITION, State(STATE), "completed")

    save(1)
    assert not caplog.records
    caplog.set_level(logging.DEBUG, "kvpersist")
    save(2)
    (record,) = caplog.records
    fields = {name: value for name, value in record.__dict__.items() if "." in name}
    assert json.loads(json.dumps(fields)) == fields
    duration = fields.pop("kvpersist.duration")
    assert 0 < duration < 60
    assert 0 < fields.pop("kvpersist.bytes.written") < 20_000
    assert fields.pop("kvpersist.bytes.read") > 0  # the part that it is written against
    assert fields == {"db.system.name": "sqlite", "db.operation.name": "save", "kvpersist.requests": 2}
    assert record.getMessage() == f"save on sqlite done after {duration * 1000:.1f} ms, 2 requests"
    assert SECRET not in str(record.__dict__)


def test_unobserved_there_is_nothing_of_it(tmp_path: Path) -> None:
    script = f"""
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from kvpersist import Persister
with Persister.from_url("sqlite://{tmp_path}/state.db") as persister:
    persister.save("p", "a", 1, "ask", {{"n": 1}}, "completed")
    print(type(persister._history.backend).__name__)
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout == "SQLiteBackend\n"
    assert "kvpersist" not in result.stderr


def test_observing_later_copying_pickling_and_ending(tmp_path: Path, collected: Collected) -> None:
    with SQLitePersister(str(tmp_path / "state.db")).observe(collected.telemetry) as persister:
        persister.save("p", "a", 1, "ask", State({"n": 1}), "completed")
        assert persister.copy().load("p", "a")["state"]["n"] == 1
        assert len(collected.operations()) == 2
        away = pickle.loads(pickle.dumps(persister))
        assert away.load("p", "a")["state"]["n"] == 1  # told to the process's own providers
        assert isinstance(away._history.backend, Observed)
        away.cleanup()
        assert copy.deepcopy(persister).load("p", "a")["state"]["n"] == 1
        persister.observe(False).load("p", "a")
        assert len(collected.operations()) == 2
        with pytest.raises(OptionError, match=r"bool or a kvpersist\.Telemetry, not a str"):
            persister.observe("yes")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="did you mean 'telemetry'"):
        Persister.from_url("memory://", telemetri=True)


def test_the_bare_protocol_is_observed_too(collected: Collected) -> None:
    with Store.from_url("memory://", telemetry=collected.telemetry) as store:
        store.put("a/b", b"12345", mode="create")
        assert store.replace("a/b", b"12345", b"1")
        assert store.get("a/b") == b"1"
        assert store.scan("a/", values=True).entries == [("a/b", b"1")]
        store.delete(["a/b", "a/c"])

    async def asynchronously() -> None:
        async with AsyncStore.from_url("memory://", telemetry=collected.telemetry) as store:
            await store.put("a", b"1")

    asyncio.run(asynchronously())
    told = [
        (s.name, s.attributes["kvpersist.bytes.read"], s.attributes["kvpersist.bytes.written"]) for s in collected.spans
    ]
    assert told == [
        ("create", 0, 5),
        ("replace", 0, 1),
        ("get", 1, 0),
        ("scan", 1, 0),
        ("delete", 0, 0),
        ("close", 0, 0),
        ("put", 0, 1),
        ("close", 0, 0),
    ]
    assert collected.spans[3].attributes["db.response.returned_rows"] == 1
    assert collected.spans[4].attributes["db.operation.batch.size"] == 2


def test_a_cancelled_save_is_told_and_leaves_no_context(
    collected: Collected, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async def asynchronously() -> None:
        async with AsyncPersister.from_url(STORES["redis"](tmp_path), telemetry=collected.telemetry) as persister:
            saving = asyncio.ensure_future(persister.save("p", "a", 1, "ask", State({"n": 1}), "completed"))
            await asyncio.sleep(0)
            saving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await saving
        async with AsyncPersister.from_url(STORES["file"](tmp_path), telemetry=collected.telemetry) as persister:
            given_up = persister.load("p", "a")
            given_up.send(None)
            given_up.close()  # as when the interpreter collects it
            await persister.load("p", "b")

    asyncio.run(asynchronously())
    errors = [(span.attributes or {}).get("error.type") for span in collected.operations()]
    assert errors == ["asyncio.exceptions.CancelledError", "builtins.GeneratorExit", None]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:pa/s?s@w#ord@example.org:7000/0".replace("#", "%23"), ("example.org", 7000)),
        ("redis://[::1]/0", ("::1", 6379)),
        ("redis+cluster://one:7000,two:7001", ("one", 7000)),
        ("redis://host:port/0?x=y", None),
        ("unix:///tmp/redis.sock", None),
        ("postgresql://user:secret@db/name", ("db", 5432)),
        ("postgresql:///name", None),
        ("mongodb://user:secret@one,two:27018/name", ("one", 27017)),
        ("s3://bucket/prefix", None),
        ("file:///tmp/x", None),
        ("sqlite://./state.db", None),
    ],
)
def test_the_address_is_the_servers_and_never_more(url: str, expected: tuple[str, int] | None) -> None:
    from kvpersist.telemetry import _described
    from kvpersist.urls import open_backend

    backend = open_backend("redis://localhost", asynchronous=False, options={}) if "?" in url else None
    if backend is None:
        backend = open_backend(url, asynchronous=False, options={})
    else:
        backend.url = url  # which its own checks would not let through
    attributes, target = _described(backend)
    found = (attributes["server.address"], attributes["server.port"]) if "server.address" in attributes else None
    assert found == expected
    assert target == (f" {expected[0]}:{expected[1]}" if expected else "")
    run(backend.close())


def test_on_an_object_store_the_requests_are_those_on_the_wire(collected: Collected) -> None:
    state = State({"text": "".join(f"word {number} " for number in range(2000))})  # with parts
    with moto() as server, HTTPProxy(server.endpoint).running() as proxy:
        options = server.through(proxy.url)
        with Persister.from_url(server.url(), storage_options=options, telemetry=collected.telemetry) as persister:
            for step in range(3):
                persister.save("p", "a", step, "ask", state.update(n=step), "completed")
            persister.load("p", "a")
            persister.load("p", None)
            persister.list_app_ids("p")
            assert len(list(persister.history("p", "a"))) == 3
            wire = proxy.counted()
    assert sum((span.attributes or {})["kvpersist.requests"] for span in collected.operations()) == len(wire) > 10
    assert {(span.attributes or {})["db.system.name"] for span in collected.spans} == {"s3"}
