"""The two drivers, and the clients that bodies use."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvpersist import ClosedError
from kvpersist.backends import Clients
from kvpersist.steps import Step, arun, gather, run


class Client:
    """Doubles a number; a negative one is an error.  Sync or async, as drivers are."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous

    def double(self, number: int) -> Any:
        return self._double_later(number) if self.asynchronous else self._double(number)

    def _double(self, number: int) -> int:
        if number < 0:
            raise ValueError(number)
        return 2 * number

    async def _double_later(self, number: int) -> int:
        await asyncio.sleep(0)
        return self._double(number)


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param == "async")


@pytest.fixture
def drive(client: Client) -> Callable[[Step[Any]], Any]:
    return (lambda body: asyncio.run(arun(body))) if client.asynchronous else run


def test_a_body_gets_what_its_client_returns(client: Client, drive: Any) -> None:
    def body() -> Step[int]:
        four = yield client.double(2)
        plain = yield "a value that needs no waiting"
        assert plain == "a value that needs no waiting"
        return (yield from quadrupled(four))

    def quadrupled(number: int) -> Step[int]:
        return (yield client.double((yield client.double(number))))

    assert drive(body()) == 16


def test_an_exception_arrives_at_the_yield(client: Client, drive: Any) -> None:
    cleaned = []

    def body() -> Step[str]:
        try:
            yield client.double(-1)
        except ValueError:
            cleaned.append(1)
        try:
            yield client.double(-2)
        finally:
            cleaned.append(2)
        return "not reached"

    with pytest.raises(ValueError, match="-2"):
        drive(body())
    assert cleaned == [1, 2]


def test_a_group_gives_its_results_in_order(client: Client, drive: Any) -> None:
    def one(number: int) -> Step[int]:
        return (yield client.double(number))

    def body() -> Step[Any]:
        with pytest.raises(ValueError, match="-1"):
            yield from gather(one(number) for number in (1, -1, 2))
        nothing = yield from gather([])
        return nothing, (yield from gather((one(number) for number in range(100)), limit=7))

    assert drive(body()) == ([], [2 * number for number in range(100)])


def test_a_group_keeps_to_its_limit_and_is_concurrent() -> None:
    running, most = 0, 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    def one() -> Step[None]:
        yield work()

    def body() -> Step[Any]:
        return (yield from gather((one() for _ in range(30)), limit=5))

    asyncio.run(arun(body()))
    assert most == 5


def test_the_first_failure_cancels_the_rest_of_a_group() -> None:
    ended = []

    def slow() -> Step[None]:
        try:
            yield asyncio.sleep(60)
        finally:
            ended.append("slow")

    def failing() -> Step[None]:
        yield asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        asyncio.run(arun(gather([slow(), failing(), slow()])))
    assert ended == ["slow", "slow"]


def test_cancellation_reaches_the_body() -> None:
    seen = []

    def body() -> Step[None]:
        try:
            yield asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        task = asyncio.create_task(arun(body()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert seen == ["cancelled"]


def test_a_coroutine_that_is_dropped_closes_its_body() -> None:
    closed = []

    def body() -> Step[None]:
        try:
            yield asyncio.sleep(60)
        finally:
            closed.append(True)

    async def main() -> None:
        coroutine = arun(body())
        coroutine.send(None)
        coroutine.close()

    asyncio.run(main())
    assert closed == [True]


def test_a_coroutine_that_is_dropped_in_a_group_closes_its_bodies() -> None:
    closed = []

    def slow() -> Step[None]:
        try:
            yield asyncio.sleep(60)
        finally:
            closed.append(True)

    async def main() -> None:
        coroutine = arun(gather([slow(), slow()]))
        coroutine.send(None)
        await asyncio.sleep(0)
        coroutine.close()
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert closed == [True, True]


# Clients


class Log:
    def __init__(self) -> None:
        self.connected: list[str] = []
        self.disconnected: list[str] = []
        self.abandoned: list[str] = []

    def clients(self, asynchronous: bool, fail: int = 0) -> Clients[str]:
        failures = iter(range(fail))

        def connect() -> Step[str]:
            if asynchronous:
                yield asyncio.sleep(0.001)
            if next(failures, None) is not None:
                raise ConnectionError("cannot connect")
            self.connected.append(f"client {len(self.connected)}")
            return self.connected[-1]

        def disconnect(client: str) -> Step[None]:
            yield
            self.disconnected.append(client)

        return Clients(asynchronous=asynchronous, connect=connect, disconnect=disconnect, abandon=self.abandoned.append)


def test_threads_share_one_client() -> None:
    log = Log()
    clients = log.clients(asynchronous=False)
    barrier = threading.Barrier(8)
    got = []

    def work() -> None:
        barrier.wait()
        got.append(run(clients.get()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["client 0"] * 8
    run(clients.close())
    assert log.disconnected == ["client 0"]
    with pytest.raises(ClosedError):
        run(clients.get())


def test_tasks_of_a_loop_share_one_client_and_loops_do_not() -> None:
    log = Log()
    clients = log.clients(asynchronous=True)

    async def main() -> list[str]:
        return await asyncio.gather(*(arun(clients.get()) for _ in range(8)))

    assert asyncio.run(main()) == ["client 0"] * 8
    assert asyncio.run(main()) == ["client 1"] * 8
    assert log.abandoned == ["client 0"]  # its loop is closed

    async def closing() -> None:
        await arun(clients.get())
        await arun(clients.close())
        with pytest.raises(ClosedError):
            await arun(clients.get())

    asyncio.run(closing())
    assert log.abandoned == ["client 0", "client 1"]
    assert log.disconnected == ["client 2"]


def test_closing_lets_go_of_the_clients_of_other_loops() -> None:
    log = Log()
    clients = log.clients(asynchronous=True)
    other = asyncio.new_event_loop()
    other.run_until_complete(arun(clients.get()))

    async def main() -> None:
        await arun(clients.get())
        await arun(clients.close())

    asyncio.run(main())
    assert (log.abandoned, log.disconnected) == (["client 0"], ["client 1"])
    other.close()


def test_a_cancelled_waiter_leaves_the_client_to_the_others() -> None:
    log = Log()
    clients = log.clients(asynchronous=True)

    async def main() -> str:
        first = asyncio.create_task(arun(clients.get()))
        second = asyncio.create_task(arun(clients.get()))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(main()) == "client 0"
    assert log.connected == ["client 0"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failed_connection_is_tried_again(asynchronous: bool) -> None:
    clients = Log().clients(asynchronous, fail=1)

    async def main() -> str:
        with pytest.raises(ConnectionError):
            await arun(clients.get())
        return await arun(clients.get())

    if asynchronous:
        assert asyncio.run(main()) == "client 0"
    else:
        with pytest.raises(ConnectionError):
            run(clients.get())
        assert run(clients.get()) == "client 0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_gets_a_client_of_its_own() -> None:
    log = Log()
    clients = log.clients(asynchronous=False)
    assert run(clients.get()) == "client 0"
    child = os.fork()
    if child == 0:
        gc.collect()
        os._exit(0 if run(clients.get()) == "client 1" and not log.disconnected and not log.abandoned else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert run(clients.get()) == "client 0"
