"""MongoDB, by a stand-in that speaks its protocol unless KVPERSIST_TEST_MONGODB_URL names a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
import servers
from pymongo import monitoring
from server_contract import ServerContract, state
from servers import Server, new_mongodb, unique

from kvpersist import OptionError, StoreError, StoreUnavailableError
from kvpersist.steps import arun
from kvpersist.testing.faces import Face, FaceFixtures


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = new_mongodb()
    yield server
    server.kill()


class TestMongoDB(ServerContract):
    ignore = staticmethod(lambda data: b"\x10hello\x00" in data or b"\x10ismaster\x00" in data)

    @pytest.fixture
    def place(self) -> dict[str, Any]:
        return {"collection": unique()}

    def url(self, port: int) -> str:
        return f"mongodb://127.0.0.1:{port}/?directConnection=true&timeout=2"

    def client(self, url: str, *, asynchronous: bool) -> Any:
        kind: Any = pymongo.AsyncMongoClient if asynchronous else pymongo.MongoClient
        return kind(url.partition("?")[0])


def test_a_driver_whose_tasks_wait_for_each_other_is_given_up(server: Server) -> None:
    face = Face(True)
    persister = face.persister(f"mongodb://127.0.0.1:{server.port}/?timeout=0.5", collection=unique())
    persister.save("p", "a", 1, "step", state(1), "completed")
    clients = persister._target._history.backend._clients
    collection = face.loop.run_until_complete(arun(clients.get()))
    lock = collection.database.client._topology._lock
    face.loop.run_until_complete(lock.acquire())  # as pymongo 4.20 does to itself, in a soak that loses servers
    with pytest.raises(StoreUnavailableError, match="the driver does not answer"):
        persister.load("p", "a")
    assert persister.load("p", "a")["state"]["n"] == 1
    lock.release()
    face.loop.run_until_complete(collection.database.client.close())
    face.close()


class TestCollections(FaceFixtures):
    @pytest.fixture
    def url(self) -> str:
        return servers.with_options(servers.mongodb_url(), database=servers.RUN)

    @pytest.mark.parametrize(
        "name", ["a.b", "two words", "'; db.dropDatabase(); //", "日本語", 'a"b', "a{b}", "x" * 150]
    )
    def test_any_name_of_a_collection(self, face: Face, url: str, name: str) -> None:
        name = f"{unique()}{name}"
        persister = face.persister(url, collection=name)
        persister.save("p", "a", 1, "step", state(name), "completed")
        assert persister.load("p", "a")["state"]["n"] == name
        with pymongo.MongoClient(servers.mongodb_url()) as client:
            assert client[servers.RUN][name].count_documents({}) == 1

    @pytest.mark.parametrize("name", ["", "a$b", "a\0b", "system.users", ".a", "a.", "a..b", "x" * 256])
    def test_what_is_no_name_of_a_collection_is_refused(self, face: Face, url: str, name: str) -> None:
        with pytest.raises(OptionError, match="cannot be the name"):
            face.store(url, collection=name)

    @pytest.mark.parametrize("name", ["a b", "a/b", "a.b", "a$b", "x" * 64])
    def test_what_is_no_name_of_a_database_is_refused(self, face: Face, name: str) -> None:
        with pytest.raises(OptionError, match="cannot be the name"):
            face.store(servers.mongodb_url(), database=name)

    def test_the_database_can_stand_in_the_url(self, face: Face) -> None:
        name = f"{servers.RUN}_url"
        base, _, query = servers.mongodb_url().partition("?")
        store = face.store(f"{base.rstrip('/')}/{name}?{query}")
        store.put("a", b"x")
        with pymongo.MongoClient(servers.mongodb_url()) as client:
            assert client[name]["kvpersist"].find_one({"_id": "a"}) == {"_id": "a", "v": b"x", "f": "a"}
            client.drop_database(name)

    def test_what_is_too_large_is_an_error_before_it_is_sent(self, face: Face, url: str) -> None:
        persister = face.persister(url, collection=unique(), compact_history=False)
        persister.save("p", "a", 1, "step", state("x" * 15_000_000), "completed")
        assert len(persister.load("p", "a")["state"]["n"]) == 15_000_000
        with pytest.raises(StoreError, match=r"the record has 17,000,\d\d\d bytes.* 16,777,216 bytes"):
            persister.save("p", "a", 2, "step", state("x" * 17_000_000), "completed")
        assert persister.load("p", "a")["sequence_id"] == 1

    def test_writes_are_acknowledged_by_a_majority_and_reads_see_it(self, face: Face, url: str) -> None:
        listener = Recorder()
        store = face.store(url, collection=unique(), event_listeners=[listener])
        store.put("n/p/a/1", b"x", "create")
        store.put("n/p/a/1", b"x")
        store.replace("n/p/a/1", b"x", b"y")
        store.get("n/p/a/1")
        store.scan("n/p/a/")
        store.scan("n/p/", delimiter="/")
        store.delete(["n/p/a/1"])
        by_name: dict[str, list[dict[str, Any]]] = {}
        for command in listener.commands:
            by_name.setdefault(next(iter(command)), []).append(command)
        for name in ("insert", "update", "delete"):
            for command in by_name[name]:
                assert {**command["writeConcern"]} == {"w": "majority", "j": True}
        for name in ("find", "aggregate"):
            for command in by_name[name]:
                assert command["readConcern"]["level"] == "majority"
        assert sorted(by_name) == ["aggregate", "createIndexes", "delete", "find", "insert", "update"]

    def test_driver_options(self, face: Face, url: str) -> None:
        store = face.store(f"{url}&appName=mine&retryWrites=false", maxPoolSize=3, collection=unique())
        store.put("a", b"x")
        with pytest.raises(OptionError, match="colour"):
            face.store(url, colour=["red"]).get("a")

    def test_no_error_tells_the_password(self, face: Face) -> None:
        store = face.store(f"mongodb://me:wr0ng@127.0.0.1:{servers.free_port()}/?timeout=0.2")
        with pytest.raises(StoreUnavailableError) as caught:
            store.get("a")
        assert "wr0ng" not in f"{caught.value}{caught.value.__cause__}{store!r}"
        with pytest.raises(OptionError) as refused:
            face.store("mongodb://me:wr0ng/x@host/").get("a")
        assert "wr0ng" not in f"{refused.value}{refused.value.__cause__}"


class Recorder(monitoring.CommandListener):
    """Remembers the commands that the driver sends."""

    def __init__(self) -> None:
        self.commands: list[dict[str, Any]] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.commands.append(dict(event.command))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass
