"""Copying histories between stores and from Burr's layouts, in the library and as a command."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pymongo
import pytest
import redis
import servers
from burr.core import State
from click.testing import CliRunner
from conftest import STORES
from object_servers import ObjectServer, object_servers
from test_dropin import EXAMPLE, SYNC, VALUES_OF, MakeBurrs, burr_made, no_table_is_left, rows_of_burr, tracked

import kvpersist
from kvpersist import ALL, DeserializationError, OptionError, Persister, Store, copy
from kvpersist.backends.memory import MemoryBackend
from kvpersist.burr_layouts import open_layout
from kvpersist.cli import main
from kvpersist.steps import Step
from kvpersist.steps import run as run_body

__all__ = ["burr_made", "no_table_is_left", "object_servers"]

PARTITIONS: list[str | None] = [None, "", "p", "P/..\0é"]


def fill(url: str, **options: Any) -> int:
    """A few histories with all that there can be, and how many keys they have."""
    with Persister.from_url(url, on_conflict="rewind", **options) as persister:
        for partition in PARTITIONS:
            for app in ("a", "A", "a/b"):
                for number in range(4):
                    state = State({"n": number, "b": b"\0", "app": app})
                    persister.save(partition, app, number, "step", state, "failed" if number == 3 else "completed")
        persister.save("p", "a", 2, "other way", State({"n": "other"}), "completed")  # sets two aside
        with Store(persister._history.backend) as store:
            return len(everything(store))


def everything(store: Store) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    after = None
    while True:
        page = store.scan(after=after, limit=7, values=True)
        found.update(page.entries)
        after = page.after
        if after is None:
            return found


def contents(url: str) -> dict[str, bytes | None]:
    with Store.from_url(url) as store:
        return everything(store)


@pytest.fixture(params=[name for name in STORES if name != "file-durable"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return STORES[request.param](tmp_path)


def test_to_any_store_and_back(other: str, tmp_path: Path) -> None:
    first, last = f"sqlite://{tmp_path}/first.db", f"file://{tmp_path}/last?durable=no"
    total = fill(first)
    before = (tmp_path / "first.db").read_bytes()
    report = copy(first, other, in_flight=4)
    assert (report.carried, report.already_there, report.failed, report.only_in_target) == (total, 0, 0, 0)
    assert contents(other) == contents(first)
    assert report.bytes == sum(len(value or b"") for value in contents(first).values())
    report = copy(other, last)
    assert report.carried == total
    assert contents(last) == contents(first)
    again = copy(first, other)
    assert (again.carried, again.already_there, again.failed) == (0, total, 0)
    assert (tmp_path / "first.db").read_bytes() == before
    with Persister.from_url(last) as persister:
        assert persister.load("p", "a")["state"]["n"] == "other"  # type: ignore[index]
        aside = [each.position for each in persister.history("p", "a", include_set_aside=True) if each.set_aside]
        assert aside == ["step", "step"]


def test_to_a_bucket_and_back(object_servers: Callable[[str], ObjectServer], tmp_path: Path) -> None:
    server = object_servers("moto")
    first, last, bucket = f"sqlite://{tmp_path}/first.db", f"sqlite://{tmp_path}/last.db", server.url()
    options = {"storage_options": server.storage_options}
    total = fill(first)
    assert copy(first, bucket, target_options=options).carried == total
    assert copy(first, bucket, target_options=options).already_there == total
    assert copy(bucket, last, source_options=options).carried == total
    assert contents(last) == contents(first)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    return f"sqlite://{tmp_path}/from.db", f"sqlite://{tmp_path}/to.db"


def test_one_partition_or_another_namespace(pair: tuple[str, str]) -> None:
    source, target = pair
    fill(source)
    fill(source, namespace="other")
    for partition in PARTITIONS:
        copy(source, target, partition_key=partition)
        with Persister.from_url(target) as persister:
            assert persister.list_partitions() == [partition]
            assert persister.list_app_ids(partition) == ["A", "a", "a/b"]
            for app in persister.list_app_ids(partition):
                persister.delete_app(partition, app)
    assert copy(source, target, namespace="other", target_namespace="New").carried > 0
    with Persister.from_url(target, namespace="New") as persister:
        assert persister.load("p", "a")["state"]["n"] == "other"  # type: ignore[index]
    with Persister.from_url(target, namespace="New") as persister:
        persister.delete_app("p", "a")
    assert copy(f"{source}?namespace=other", f"{target}?namespace=New&on_conflict=rewind").carried > 0
    with Persister.from_url(target, namespace="New") as persister:
        assert persister.load("p", "a")["state"]["n"] == "other"  # type: ignore[index]
    assert copy(source, target, namespace="absent").found == 0


def test_a_dry_run_writes_nothing(pair: tuple[str, str], other: str, tmp_path: Path) -> None:
    source, target = pair
    total = fill(source)
    report = copy(source, target, dry_run=True)
    assert (report.carried, report.failed, report.dry_run) == (total, 0, True)
    assert not (tmp_path / "to.db").exists()
    assert copy(source, other, dry_run=True).carried == total
    assert contents(other) == {}
    copy(source, other, partition_key="p")
    there = contents(other)
    report = copy(source, other, dry_run=True)
    assert (report.carried, report.already_there) == (total - len(there), len(there))
    assert contents(other) == there


def test_a_source_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert copy(f"sqlite://{tmp_path}/a/typo.db", "memory://").found == 0
    assert copy(f"file://{tmp_path}/b", "memory://").found == 0
    table = servers.unique()
    assert copy(f"{servers.postgresql_url()}?table={table}", "memory://").found == 0
    with psycopg.connect(servers.postgresql_url()) as connection:
        assert connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,)
    assert copy(f"{servers.mongodb_url()}/{servers.RUN}?collection={table}", "memory://").found == 0
    with pymongo.MongoClient(servers.mongodb_url()) as client:
        assert table not in client[servers.RUN].list_collection_names()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_carried_is_reported(pair: tuple[str, str]) -> None:
    source, target = pair
    total = fill(source)
    with Store.from_url(source) as store, Store.from_url(target) as there:
        keys = [key for key in everything(store) if "set-aside" not in key and "/p/" in key]
        cut, changed, moved = keys[:3]
        value: bytes = store.get(cut) or b""
        store.put(cut, value[:-1])
        store.put(changed, (store.get(changed) or b"").replace(b"completed", b"Completed"))
        store.put(moved, store.get(keys[3]) or b"")
        store.put("kvpersist/p/a/note.txt", b"of somebody else")
        there.put(keys[4], b"something else")
        there.put("kvpersist/p/zz", b"only there")
    report = copy(source, target)
    reasons = dict(report.not_carried)
    assert reasons.keys() == {cut, changed, moved, keys[4]}
    assert "checksum" in reasons[cut]
    assert "moved here" in reasons[moved]
    assert "other content" in reasons[keys[4]] or "no kvpersist record" in reasons[keys[4]]
    assert (report.failed, report.carried, report.only_in_target) == (4, total - 4 + 1, 1)
    with Store.from_url(target) as there:
        assert there.get(keys[4]) == b"something else"
        assert there.get("kvpersist/p/a/note.txt") == b"of somebody else"


def test_what_a_store_cannot_hold_is_reported(tmp_path: Path) -> None:
    source = f"sqlite://{tmp_path}/from.db"
    with Persister.from_url(source) as persister:
        persister.save("p", "x" * 300, 0, "step", State({}), "completed")
        persister.save("p", "app", 0, "step", State({}), "completed")
    report = copy(source, f"file://{tmp_path}/to")
    assert (report.carried, report.failed) == (1, 1)
    assert "255 bytes" in report.not_carried[0].why


def test_a_failed_record_gives_way_when_the_source_went_on(pair: tuple[str, str]) -> None:
    source, target = pair
    with Persister.from_url(source) as persister:
        persister.save("p", "app", 0, "step", State({"n": 0}), "failed")
        copy(source, target)
        persister.save("p", "app", 0, "step", State({"n": 1}), "completed")
        persister.save("p", "app", 1, "step", State({"n": 2}), "completed")
        report = copy(source, target)
    assert (report.carried, report.failed) == (2, 0)
    assert contents(target) == contents(source)
    # The other way round, what the target has is the better.
    with Persister.from_url(target) as persister:
        persister.save("p", "app", 2, "step", State({"n": 3}), "completed")
    with Persister.from_url(source) as persister:
        persister.save("p", "app", 2, "step", State({"n": 3}), "failed")
    report = copy(source, target)
    assert [each.why.partition(" at ")[0] for each in report.not_carried] == ["the target has other content"]


def test_encrypted_records_go_along_but_not_to_another_namespace(pair: tuple[str, str]) -> None:
    source, target = pair
    kwargs = {"encryption_key": b"k" * 32}
    fill(source, serde_kwargs=kwargs)
    assert copy(source, target).failed == 0
    with Persister.from_url(target, serde_kwargs=kwargs) as persister:
        assert persister.load("p", "a")["state"]["n"] == "other"  # type: ignore[index]
    report = copy(source, target, target_namespace="other")
    assert report.carried == 0
    assert "for its namespace" in report.not_carried[0].why


def test_only_a_page_is_in_memory(pair: tuple[str, str]) -> None:
    source, target = pair
    with Persister.from_url(source, compact_history=False) as persister:
        for number in range(12):
            persister.save("p", "app", number, "step", State({"big": "x" * 2**20}), "completed")
        for number in range(300):
            persister.save("p", "small", number, "step", State({}), "completed")
    pages: list[int] = []
    last = 0

    def progress(report: kvpersist.CopyReport, total: int | None) -> None:
        nonlocal last
        pages.append(report.found - last)
        last = report.found

    copy(source, target, progress=progress)
    assert sum(pages) == 312
    assert pages[:2] == [16, 5]  # nothing is known of their size at first; then, 4 MiB of what came
    assert max(pages) == 256


def test_what_records_are_made_of_is_there_before_them(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = pair
    many(source, 30)
    with Store.from_url(source) as store:
        for app in range(10):
            store.put(f"kvpersist/p/app{app}/!parts/1", b"a part")
    written: list[str] = []
    put = MemoryBackend.put

    def noted(self: MemoryBackend, key: str, value: bytes, mode: Any = "overwrite") -> Step[bool]:
        yield asyncio.sleep(0.002 if "parts" in key else 0)
        done = yield from put(self, key, value, mode)
        written.append(key)
        return done

    monkeypatch.setattr(MemoryBackend, "put", noted)
    assert copy(source, "memory://").carried == 40
    for app in range(10):
        assert "!parts" in next(key for key in written if f"/app{app}/" in key)


def test_an_app_that_goes_on_meanwhile_is_copied_with_its_new_parts(pair: tuple[str, str]) -> None:
    source, target = pair
    chat = {"chat": [f"message {number} " * 40 for number in range(20)]}
    with Persister.from_url(source) as persister:
        for number in range(15):
            persister.save("p", "a", number, "step", State({}), "completed")
        for number in range(7):
            persister.save("p", "b", number, "step", State({**chat, "n": number}), "completed")

        def goes_on(report: kvpersist.CopyReport, total: int | None) -> None:
            if report.found == 16:  # the last of which was the only part of b
                persister.save("p", "b", 7, "step", State({**chat, "n": 7}), "completed")

        assert copy(source, target, progress=goes_on).carried == 15 + 8 + 2
        with Store.from_url(source) as store:
            assert len(store.scan("kvpersist/p/b/!parts/").entries) == 2
    with Persister.from_url(target) as persister:
        assert persister.verify().ok
        assert persister.load("p", "b", 7)["state"].get_all() == {**chat, "n": 7}


def test_in_a_running_loop_it_is_awaited(pair: tuple[str, str]) -> None:
    source, target = pair
    total = fill(source)

    async def go() -> None:
        with pytest.raises(OptionError, match="acopy"):
            copy(source, target)
        assert (await kvpersist.acopy(source, target)).carried == total

    asyncio.run(go())


# From Burr


@pytest.fixture(params=SYNC)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    return request.param, VALUES_OF[request.param](tmp_path) | (
        {"table_name": "burr_state"} if request.param == "SQLitePersister" else {}
    )


def layout_url(name: str, values: dict[str, Any]) -> str:
    if name == "SQLitePersister":
        return "burr+sqlite" + Path(values["db_path"]).as_uri().removeprefix("file")
    if name == "PostgreSQLPersister":
        return f"burr+{servers.postgresql_url()}?table={values['table_name']}"
    if name == "RedisBasePersister":
        return f"burr+{servers.redis_url()}/0?namespace={values['namespace']}"
    return f"burr+{servers.mongodb_url()}/{servers.RUN}?collection={values['collection_name']}"


def test_what_burrs_persisters_have_written_loads_equal(
    burr_made: MakeBurrs, store: tuple[str, dict[str, Any]]
) -> None:
    name, values = store
    burrs = burr_made(name, values)
    burrs.initialize()
    partitions = ["p", "q"] if name != "SQLitePersister" else [None, "p"]
    for partition in partitions:
        for app in ("a", "b/c", "É"):
            for number in range(3):
                state = State(EXAMPLE | {"n": number, "app": app})
                burrs.save(partition, app, number, f"step {number}", state, "failed" if number == 2 else "completed")
    before = rows_of_burr(name, values)
    source = layout_url(name, values)
    with kvpersist.Persister.from_url("memory://burr-of-" + servers.unique()) as ours:
        target = ours._history.backend.url
        assert copy(source, target, dry_run=True).carried == 18
        assert copy(source, target, partition_key=partitions[1]).carried == 9
        report = copy(source, target)
        assert (report.carried, report.already_there, report.failed) == (9, 9, 0)
        for partition in partitions:
            assert sorted(ours.list_app_ids(partition)) == sorted(set(burrs.list_app_ids(partition)))
            for app in ("a", "b/c", "É"):
                for number in range(3):
                    old, new = burrs.load(partition, app, number), ours.load(partition, app, number)
                    assert new is not None
                    for field in ("app_id", "sequence_id", "position", "status"):
                        assert new[field] == old[field]  # type: ignore[literal-required]
                    assert new["state"].get_all() == old["state"].get_all()
                    made = dt.datetime.fromisoformat(new["created_at"])
                    assert abs(dt.datetime.now(dt.timezone.utc) - made) < dt.timedelta(minutes=2)
        again = copy(source, target, serde_kwargs={"serializer": "msgpack", "compression": "gzip"})
        assert (again.carried, again.already_there, again.failed) == (0, 18, 0)
    assert rows_of_burr(name, values) == before


def test_how_many_steps_burrs_persisters_have_written(burr_made: MakeBurrs, store: tuple[str, dict[str, Any]]) -> None:
    name, values = store
    burrs = burr_made(name, values)
    burrs.initialize()
    for number in range(12):
        burrs.save("p", f"app{number % 5}", number, "step", State({}), "completed")
    layout = open_layout(layout_url(name, values), asynchronous=False, options={})
    assert run_body(layout.count()) == 12
    assert values.get("table_name", values.get("namespace", values.get("collection_name"))) in repr(layout)
    assert values.get("password", "not in it") not in repr(layout)
    assert layout.backend is not None
    run_body(layout.backend.close())


def test_burr_redis_without_a_namespace_and_with_strangers(burr_made: MakeBurrs, tmp_path: Path) -> None:
    partition = servers.unique()
    values = VALUES_OF["RedisBasePersister"](tmp_path) | {"namespace": None}
    burrs = burr_made("RedisBasePersister", values)
    burrs.save(partition, "app", 0, "step", State({"n": 1}), "completed")
    stranger = f"{partition}:some:hash"
    with redis.Redis.from_url(servers.redis_url()) as client:
        client.hset(stranger, mapping={"a": "b"})
        report = copy(f"burr+{servers.redis_url()}", f"sqlite://{tmp_path}/to.db", partition_key=partition)
        assert (report.carried, report.failed) == (1, 0)
        client.delete(stranger, partition, f"{partition}:app:0")


def test_two_documents_of_one_step_are_told_apart(burr_made: MakeBurrs, tmp_path: Path) -> None:
    values = VALUES_OF["MongoDBBasePersister"](tmp_path)
    burrs = burr_made("MongoDBBasePersister", values)
    burrs.save("p", "app", 0, "step", State({"n": 1}), "completed")
    (document,) = burrs.collection.find()
    del document["_id"]
    burrs.collection.insert_one({**document, "state": '{"n": 2}'})
    report = copy(layout_url("MongoDBBasePersister", values), f"sqlite://{tmp_path}/to.db")
    assert (report.carried, report.failed) == (1, 1)
    assert "other content" in report.not_carried[0].why


def test_states_that_burr_or_the_serializer_cannot_hold(burr_made: MakeBurrs, tmp_path: Path) -> None:
    values = VALUES_OF["SQLitePersister"](tmp_path) | {"table_name": "burr_state"}
    burrs = burr_made("SQLitePersister", values)
    burrs.initialize()
    burrs.save("p", "good", 0, "step", State({"n": 1}), "completed")
    tagged = {"__burr_serde__": "nobody.knows.this", "x": 1}
    burrs.save("p", "tagged", 0, "step", State({"t": tagged}), "completed")
    burrs.connection.execute("UPDATE burr_state SET state = '{' WHERE app_id = 'tagged'")
    burrs.save("p", "unregistered", 0, "step", State({"t": tagged}), "completed")
    burrs.save("p", "status", 0, "step", State({}), "strange")
    burrs.connection.commit()
    report = copy(layout_url("SQLitePersister", values), f"sqlite://{tmp_path}/to.db")
    assert (report.carried, report.failed) == (1, 3)
    reasons = sorted(report.not_carried)
    assert [each.what.split("'")[3] for each in reasons] == ["status", "tagged", "unregistered"]
    assert "No deserializer registered" in reasons[2].why


def test_tracking_folders(tmp_path: Path) -> None:
    client = kvpersist.LocalTrackingClient("project", str(tmp_path / "burr"))
    app = tracked(client, "clock", "p")
    for _ in range(4):
        app.step()
    back = tracked(client.copy(), "clock", "p", resume=True, sequence_id=1)
    back.step()
    tracked(client.copy(), "other", None).step()
    log = tmp_path / "burr" / "project" / "clock" / "log.jsonl"
    with log.open("a") as lines:
        lines.write('{"type":"end_entry","sequence_id":3,"act')  # the process was killed
    digest = hashlib.sha256(log.read_bytes()).digest()
    source, target = f"burr+tracking://{tmp_path}/burr/project", f"sqlite://{tmp_path}/to.db"
    layout = open_layout(source, asynchronous=False, options={})
    assert run_body(layout.count()) == 7  # what a line that is cut was to be is not known before it is read
    assert repr(layout) == f"the tracking folder {tmp_path}/burr/project"
    report = copy(source, target)
    assert (report.carried, report.failed) == (6, 1)
    assert "line 11" in report.not_carried[0].what
    with Persister.from_url(target) as persister:
        assert persister.load("p", "clock")["sequence_id"] == 2  # type: ignore[index]
        assert persister.load("p", "clock")["state"]["log"] == ["tick", "tock", "tick"]  # type: ignore[index]
        found = [(each.sequence_id, each.set_aside) for each in persister.history("p", "clock", include_set_aside=True)]
        assert found == [(2, False), (1, False), (0, False), (3, True), (2, True)]
        assert persister.list_app_ids(None) == ["other"]
    again = copy(source, target)
    assert (again.carried, again.already_there) == (0, 6)
    assert hashlib.sha256(log.read_bytes()).digest() == digest


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("burr+tracking:///nowhere/at/all", "is not the folder"),
        ("burr+tracking:///tmp?table=x", "has no option 'table'"),
        ("burr+s3://bucket", r"no layout of Burr is known for burr\+s3://"),
        ("burr+sqlite:///tmp/x.db?tabel=x", "did you mean 'table'"),
        ("nothing://x", "no store is known"),
    ],
)
def test_sources_that_mean_nothing(url: str, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        copy(url, "memory://")


# The command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["copy", *arguments])


def test_the_command(pair: tuple[str, str]) -> None:
    source, target = pair
    total = fill(source)
    result = run(source, target, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"{total} records would be carried" in result.output
    assert f"{total // 4} records carried" in run(source, target, "--no-partition").output
    result = run(source, target)
    assert f"{total - total // 4} records carried" in result.output
    assert f"{total // 4} already there, 0 not carried" in result.output
    with Store.from_url(target) as store:
        key = next(iter(everything(store)))
        store.put(key, b"other")
    result = run(source, target)
    assert result.exit_code == 1
    assert f"not carried: {key}: " in result.output
    assert run(source, "memory://", "--partition", "p").exit_code == 0
    result = run(source, target, "--namespace", "typo")
    assert result.exit_code == 1
    assert "nothing was found" in result.output
    result = run("nothing://x", target)
    assert result.exit_code == 1
    assert "Error: no store is known for nothing://" in result.output
    assert run(source, target, "--no-partition", "--partition", "p").exit_code == 2
    assert run(source, target, "--target-options", "[1]").exit_code == 2
    result = run(source, target, "--target-options", json.dumps({"busy_timeuot": 1}))
    assert "did you mean 'busy_timeout'" in result.output


MODULE = """
import pydantic
from burr.core import serde

class Model(pydantic.BaseModel):
    text: str

class Money:
    def __init__(self, cents):
        self.cents = cents

@serde.serialize.register(Money)
def _serialize(value, **_):
    return {serde.KEY: "money", "cents": value.cents}

@serde.deserializer.register("money")
def _deserialize(value, **_):
    return Money(value["cents"])
"""


def test_classes_are_rebuilt_where_they_are_allowed(
    burr_made: MakeBurrs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is told which classes a state may hold and which modules register types with Burr."""
    values = VALUES_OF["SQLitePersister"](tmp_path) | {"table_name": "burr_state"}
    burrs = burr_made("SQLitePersister", values)
    burrs.initialize()
    (tmp_path / "my_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    model = {"__burr_serde__": "pydantic", "__pydantic_class": "my_models.Model", "text": "hi"}
    burrs.save("p", "model", 0, "step", State({"m": [model]}), "completed")
    burrs.save("p", "money", 0, "step", State({"m": {"__burr_serde__": "money", "cents": 5}}), "completed")
    burrs.save("p", "other", 0, "step", State({"m": {**model, "__pydantic_class": "antigravity.fly"}}), "completed")
    arguments = (layout_url("SQLitePersister", values), "file://./to")

    def reasons(*more: str) -> dict[str, str]:
        result = subprocess.run(command(*arguments, *more), check=False, capture_output=True, text=True)
        assert result.returncode == 1
        lines = [line for line in result.stderr.splitlines() if line.startswith("not carried")]
        return {line.split("'")[3]: line for line in lines}

    found = reasons()
    assert "allow that with serde_kwargs={'classes': ['my_models']}" in found["model"]
    assert "No deserializer registered for key: 'money'" in found["money"]
    found = reasons("--import", "my_models", "--serde-kwargs", '{"classes": ["my_models"]}')
    assert found.keys() == {"other"}
    assert "antigravity" in found["other"]
    monkeypatch.syspath_prepend(tmp_path)
    import my_models  # type: ignore[import-not-found]

    for classes in ([my_models.Model], ["my_models"], {"m": my_models.Model}):
        with kvpersist.SQLitePersister(**values, serde_kwargs={"classes": classes}) as persister:
            loaded = persister.load("p", "model")["state"]["m"][0]  # type: ignore[index]
            assert loaded == my_models.Model(text="hi")
            assert persister.load("p", "money")["state"]["m"].cents == 5  # type: ignore[index]
    with kvpersist.SQLitePersister(**values) as persister, pytest.raises(DeserializationError, match="classes"):
        persister.load("p", "model")
    with Persister.from_url("file://./to", serde_kwargs={"classes": ["my_models"]}) as persister:
        assert persister.load("p", "model")["state"]["m"] == [my_models.Model(text="hi")]  # type: ignore[index]


def many(url: str, count: int) -> None:
    with Persister.from_url(url, durable=False) as persister:
        for number in range(count):
            persister.save("p", f"app{number % 10}", number, "step", State({"n": number}), "completed")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvpersist.cli", "copy", *arguments]


def test_it_is_killed_and_goes_on(tmp_path: Path) -> None:
    source, target = f"sqlite://{tmp_path}/from.db", f"sqlite://{tmp_path}/to.db"
    many(source, 3000)
    carried = []
    for _ in range(2):
        process = subprocess.Popen(command(source, target), stdout=subprocess.DEVNULL)
        try:
            wanted = (carried[-1] if carried else 0) + 200
            while process.poll() is None and _count(tmp_path / "to.db") < wanted:
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        carried.append(_count(tmp_path / "to.db"))
    assert 200 <= carried[0] < carried[1]
    assert carried[0] < 3000
    report = copy(source, target)
    assert (report.already_there, report.carried) == (carried[1], 3000 - carried[1])
    assert contents(target) == contents(source)


def _count(path: Path) -> int:
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(path)) as connection, contextlib.suppress(sqlite3.OperationalError):
        return int(connection.execute("SELECT COUNT(*) FROM kvpersist").fetchone()[0])
    return 0


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    source, target = f"sqlite://{tmp_path}/from.db", f"sqlite://{tmp_path}/to.db"
    many(source, 2000)
    parent, child = pty.openpty()
    process = subprocess.Popen(
        command(source, target), stdout=subprocess.PIPE, stderr=child, env={**os.environ, "COLUMNS": "120"}, text=True
    )
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while chunk := os.read(parent, 10000):
            shown += chunk
    os.close(parent)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert "2,000 records carried" in output
    text = shown.decode()
    assert "2000/2000" in text
    assert "/s" in text
    assert "0:00:00" in text


def test_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvpersist.cli import copy as command_module

    monkeypatch.setattr(command_module, "LINE_EVERY", 0.0)
    source, target = f"sqlite://{tmp_path}/from.db", f"sqlite://{tmp_path}/to.db"
    many(source, 200)
    result = run(source, target)
    lines = result.stderr.splitlines()
    assert lines[0].startswith("16")
    assert "/s" in lines[0]
    assert any(line.startswith("200 of 200 records") for line in lines)
    assert "\x1b" not in result.stderr


def requests_of(url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the backend of a URL is asked for from now on."""
    from kvpersist.urls import _backend

    kind = _backend(url.partition("://")[0])
    asked: list[str] = []
    for name in ("get", "put", "replace", "scan", "delete"):
        function = getattr(kind, name)

        def counted(self: Any, *args: Any, function: Any = function, name: str = name, **options: Any) -> Step[Any]:
            if self.url in url:
                asked.append(name)
            return (yield from function(self, *args, **options))

        monkeypatch.setattr(kind, name, counted)
    return asked


def test_what_it_asks_of_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = f"sqlite://{tmp_path}/from.db", f"memory://{servers.unique()}"
    many(source, 1064)
    of_source, of_target = requests_of(source, monkeypatch), requests_of(target, monkeypatch)
    with Store.from_url(target):
        copy(source, target)
        assert sorted(of_source) == ["scan"] * 6  # of 16, of 256 four times, and the rest
        assert sorted(of_target) == ["put"] * 1064 + ["scan"]
        of_target.clear()
        copy(source, target)
        assert sorted(of_target) == ["get"] * 1064 + ["scan"] * 2
    with pytest.raises(OptionError):
        copy(source, target, partition_key=ALL, source_options={"nonsense": 1})
