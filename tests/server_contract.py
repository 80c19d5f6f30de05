"""What every store on a server must do: one round trip an operation, and no acknowledged save lost to any fault."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Iterator
from typing import Any

import pytest
from burr.core import State
from servers import Server, unique
from tcp_proxy import TCPProxy

from kvpersist import ALL, AsyncPersister, ConflictError, OptionError, Persister, StoreError, StoreUnavailableError
from kvpersist.testing.faces import Face, FaceFixtures

NO_HANG = 30
"""Seconds in which whatever has a timeout of a second or two must have ended, on a machine however slow."""


class SharedStoreContract(FaceFixtures):
    """Needs a fixture `server`, of the module's scope and with its data on disk, and the methods below."""

    def url(self, port: int) -> str:
        """The store on the server at a port, with a timeout of a second or two."""
        raise NotImplementedError

    def client(self, url: str, *, asynchronous: bool) -> Any:
        """A client of the driver for this address."""
        raise NotImplementedError

    @pytest.fixture
    def place(self) -> dict[str, Any]:
        """The options that name a new, empty place on the server."""
        raise NotImplementedError

    # Races

    def test_two_processes_race_for_300_saves(self, server: Server, place: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(2)
        queue = context.Queue()
        racers = [
            context.Process(target=race, args=(self.url(server.port), place, name, barrier, queue))
            for name in ("one", "other")
        ]
        for racer in racers:
            racer.start()
        won = dict(queue.get(timeout=60) for _ in racers)
        for racer in racers:
            racer.join()
        assert sorted(won["one"] + won["other"]) == list(range(300))
        with Persister.from_url(self.url(server.port), **place) as persister:
            for name, numbers in won.items():
                for number in numbers:
                    assert persister.load("p", f"app{number}", number)["state"]["n"] == name
            assert len(persister.list_app_ids("p")) == 300

    def test_deleting_while_others_save(self, face: Face, server: Server, place: dict[str, Any]) -> None:
        persister = face.persister(self.url(server.port), **place)
        store = face.store(self.url(server.port), **place)
        for attempt in range(30):
            going, coming = f"n/p{attempt}/a/1", f"n/p{attempt}/a/2"
            store.put(going, b"x")
            results = at_once(face, store, [("delete", [going]), ("put", coming, b"y")])
            assert results == [None, True]
            assert store.scan(f"n/p{attempt}/", delimiter="/").entries == [(f"n/p{attempt}/a/", None)]
            assert store.get(coming) == b"y"
            results = at_once(face, store, [("delete", [coming]), ("delete", [coming])])
            assert results == [None, None]
        assert store.scan("", delimiter="/").entries == []
        assert persister.prune(ALL, keep_last=1) == 0

    # Clients that are handed in

    def test_a_client_can_be_handed_in(self, face: Face, server: Server, place: dict[str, Any]) -> None:
        kind = AsyncPersister if face.asynchronous else Persister
        client = self.opened(face, self.url(server.port))
        persister = face.adopt(kind.from_client(client, **place))
        persister.initialize()
        persister.save("p", "a", 1, "step", state(1), "completed")
        assert persister.load("p", "a")["state"]["n"] == 1
        with pytest.raises(StoreError, match="made of a client"):
            pickle.dumps(persister._target if face.asynchronous else persister)
        persister.cleanup()
        twin = face.adopt(kind.from_client(client, **place))  # the client is as it was
        assert twin.load("p", "a")["state"]["n"] == 1
        with pytest.raises(OptionError, match="'colour'"):
            kind.from_client(client, colour="red")
        other = Persister if face.asynchronous else AsyncPersister
        with pytest.raises(OptionError, match="client"):
            other.from_client(client)
        self.closed(face, client)

    def opened(self, face: Face, url: str) -> Any:
        client = self.client(url, asynchronous=face.asynchronous)
        return face.loop.run_until_complete(client) if hasattr(client, "__await__") else client

    def closed(self, face: Face, client: Any) -> None:
        close = getattr(type(client), "aclose", type(client).close)
        result = close(client)
        if face.asynchronous:
            face.loop.run_until_complete(result)


class ServerContract(SharedStoreContract):
    """The whole, for a server that a proxy can stand before."""

    ignore = staticmethod(lambda data: False)
    """What the proxy does not count."""
    huge_load = 1
    """The round trips of a load of a megabyte."""

    @pytest.fixture
    def proxy(self, server: Server) -> Iterator[TCPProxy]:
        with TCPProxy(server.port, ignore=self.ignore) as proxy:
            yield proxy

    @pytest.fixture
    def persister(self, proxy: TCPProxy, face: Face, place: dict[str, Any]) -> Any:
        return self.warm(face.persister(self.url(proxy.port), **place))

    def warm(self, persister: Any) -> Any:
        # What is made once: a connection, an index, a prepared statement.
        persister.save("warm", "up", 1, "step", state(1), "completed")
        persister.load("warm", "up")
        persister.load("warm", "up", 1)
        persister.list_app_ids("warm")
        return persister

    # Round trips

    @pytest.mark.parametrize("depth", [10, 1000])
    def test_an_operation_is_one_round_trip(
        self, proxy: TCPProxy, face: Face, place: dict[str, Any], depth: int
    ) -> None:
        persister = self.warm(face.persister(self.url(proxy.port), timeout=30, compact_history=False, **place))

        def counted(method: str, *arguments: Any, trips: int = 1) -> Any:
            before = proxy.round_trips
            result = getattr(persister, method)(*arguments)
            assert proxy.round_trips - before == trips, method
            return result

        face.at_once(
            persister,
            "save",
            [("p", f"app{number % 3}", number, "step", state(number), "completed") for number in range(depth)],
        )
        counted("save", "p", "app0", depth, "step", state("new"), "completed")
        proxy.patience = 0.5
        counted("save", "p", "app0", depth + 1, "step", state("x" * 1_000_000), "completed")
        proxy.patience = 0.0
        assert counted("load", "p", "app0", trips=self.huge_load)["sequence_id"] == depth + 1
        assert counted("load", "p", "app0", depth)["state"]["n"] == "new"
        assert counted("load", "p", "app0", 3)["state"]["n"] == 3
        assert counted("load", "p", "app0", depth + 2) is None
        assert counted("load", "p", "no such app") is None
        assert counted("list_app_ids", "p") == ["app0", "app1", "app2"]

    def test_a_compact_history_saves_in_one_round_trip_and_loads_in_two(
        self, proxy: TCPProxy, face: Face, place: dict[str, Any]
    ) -> None:
        persister = self.warm(face.persister(self.url(proxy.port), timeout=30, **place))
        texts = [f"message {number} " * 40 for number in range(60)]
        for number in range(15):
            persister.save("p", "a", number, "step", state(texts[: 30 + number]), "completed")
        for number in range(15, 29):  # with a part at 21 and at 28
            before = proxy.round_trips
            persister.save("p", "a", number, "step", state(texts[: 30 + number]), "completed")
            assert proxy.round_trips - before == 1, number
        fresh = self.warm(face.persister(self.url(proxy.port), timeout=30, **place))
        fresh.load("p", "a", 0)  # PostgreSQL prepares a statement at its first use, which is one more
        for number in (28, 20, 7):
            before = proxy.round_trips
            assert fresh.load("p", "a", number)["state"]["n"] == texts[: 30 + number]
            assert proxy.round_trips - before <= 2, number

    # Faults

    @pytest.mark.parametrize("fault", ["cut before", "cut after"])
    @pytest.mark.parametrize("earlier", [None, "failed"])
    def test_a_save_whose_connection_is_cut(
        self, persister: Any, proxy: TCPProxy, fault: Any, earlier: str | None
    ) -> None:
        if earlier:
            persister.save("p", "a", 1, "step", state(0), earlier)
        proxy.inject(fault)
        persister.save("p", "a", 1, "step", state(1), "completed")
        persister.save("p", "a", 1, "step", state(1), "completed")
        with pytest.raises(ConflictError):
            persister.save("p", "a", 1, "step", state(2), "completed")
        assert persister.load("p", "a")["state"]["n"] == 1
        assert len(list(persister.history("p", "a"))) == 1

    @pytest.mark.parametrize("fault", ["cut before", "cut after"])
    def test_reads_and_deletions_whose_connection_is_cut(self, persister: Any, proxy: TCPProxy, fault: Any) -> None:
        persister.save("p", "a", 1, "step", state(1), "completed")
        proxy.inject(fault)
        assert persister.load("p", "a")["state"]["n"] == 1
        proxy.inject(fault)
        assert persister.list_app_ids("p") == ["a"]
        proxy.cut()
        assert persister.load("p", "a", 1)["state"]["n"] == 1
        proxy.inject(fault)
        persister.prune(keep_last=1)
        assert persister.delete_app("p", "a") == 1
        assert persister.list_app_ids("p") == []

    def test_silence_ends_with_the_timeout(self, persister: Any, proxy: TCPProxy) -> None:
        persister.save("p", "a", 1, "step", state(1), "completed")
        proxy.inject("silence")
        for operation in (
            lambda: persister.save("p", "a", 2, "step", state(2), "completed"),
            lambda: persister.load("p", "a"),
        ):
            before = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                operation()
            assert time.monotonic() - before < NO_HANG
        proxy.inject(None)
        proxy.cut()
        persister.save("p", "a", 2, "step", state(2), "completed")
        assert [header.sequence_id for header in persister.history("p", "a")] == [2, 1]

    def test_a_server_that_is_killed_and_restarted(self, face: Face, server: Server, place: dict[str, Any]) -> None:
        persister = face.persister(self.url(server.port), **place)
        for number in range(50):
            persister.save("p", "a", number, "step", state(number), "completed")
        server.kill()
        with pytest.raises(StoreUnavailableError):
            persister.save("p", "a", 50, "step", state(50), "completed")
        with pytest.raises(StoreUnavailableError):
            persister.load("p", "a")
        server.start()
        persister.save("p", "a", 50, "step", state(50), "completed")
        assert [header.sequence_id for header in persister.history("p", "a")] == list(range(50, -1, -1))

    def test_a_server_that_hangs(self, face: Face, server: Server, place: dict[str, Any]) -> None:
        persister = face.persister(self.url(server.port), **place)
        persister.save("p", "a", 1, "step", state(1), "completed")
        server.pause()
        try:
            before = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                persister.save("p", "a", 2, "step", state(2), "completed")
            with pytest.raises(StoreUnavailableError):
                face.persister(self.url(server.port), **place).load("p", "a")
            assert time.monotonic() - before < NO_HANG
        finally:
            server.resume()
        persister.save("p", "a", 2, "step", state(2), "completed")
        assert persister.load("p", "a")["sequence_id"] == 2

    def test_no_server(self, face: Face) -> None:
        from servers import free_port

        with pytest.raises(StoreUnavailableError) as caught:
            face.persister(self.url(free_port())).load("p", "a")
        assert caught.value.__cause__ is not None


def at_once(face: Face, store: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
    """Different methods of one store at the same time."""

    class Caller:
        _target: Any

    caller = Caller()
    target = store._target if face.asynchronous else store
    caller._target = caller
    caller.call = lambda method, *arguments: getattr(target, method)(*arguments)  # type: ignore[attr-defined]
    return face.at_once(caller, "call", calls)


def race(url: str, place: dict[str, Any], name: str, barrier: Any, queue: Any) -> None:
    """Save 300 records that another process saves too; tell which of them were won."""
    won = []
    with Persister.from_url(url, **place) as persister:
        persister.initialize()
        for number in range(300):
            if number % 10 == 0:
                barrier.wait(60)
            try:
                persister.save("p", f"app{number}", number, "step", state(name), "completed")
                won.append(number)
            except ConflictError:
                pass
    queue.put((name, won))


def state(value: Any) -> State[Any]:
    return State({"n": value})


__all__ = ["ServerContract", "state", "unique"]
