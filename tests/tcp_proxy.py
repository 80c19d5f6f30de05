"""A TCP proxy that counts round trips and injects faults."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from typing import Any, Literal

Fault = Literal["cut before", "cut after", "silence"]


class TCPProxy:
    """Forwards connections to a port on loopback; use it as a context manager.

    A round trip is what a client sends until the server answers.

    Args:
        port: where the server is.
        ignore: says of what a client sends that it counts for nothing, such as a driver's heartbeat.
        tls: with which the proxy serves its clients; the server behind it hears plain text.
    """

    def __init__(
        self,
        port: int,
        *,
        ignore: Callable[[bytes], bool] = lambda data: False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.round_trips = 0
        # Seconds that a client must have been silent before it gets an answer.  A server answers the first commands
        # of a long request while the rest is still being sent; with this, such an answer ends no round trip.
        self.patience = 0.0
        self.connections = 0
        self._fault: Fault | None = None
        self._loud = asyncio.Event()
        self._loud.set()
        self._target = port
        self._ignore = ignore
        self._tls = tls
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> TCPProxy:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self._tls))
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stopped())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def inject(self, fault: Fault | None) -> None:
        """What happens to the next request.

        ``"cut before"``: it does not reach the server.  ``"cut after"``: it does, and the answer is lost.  Either way
        the connection is cut, and all goes well again.  ``"silence"``: nothing gets through until this is called again.
        """
        self._fault = fault
        self._loop.call_soon_threadsafe(self._loud.clear if fault == "silence" else self._loud.set)

    def cut(self) -> None:
        """Cut all connections."""
        self._run(self._cut())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _cut(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _stopped(self) -> None:
        self._server.close()
        await self._cut()
        self._loud.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open.add(writer)
        self.connections += 1
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            self._open.discard(writer)
            writer.transport.abort()
            return
        self._open.add(to_writer)
        # Whether the server has answered what the client sent last, and whether that answer is to be lost.
        state: dict[str, int] = {"answered": True, "lose": False, "sent": 0}
        pumps = [
            asyncio.ensure_future(self._requests(reader, to_writer, state)),
            asyncio.ensure_future(self._answers(to_reader, writer, state)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in (writer, to_writer):
                self._open.discard(each)
                each.transport.abort()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: dict[str, int]
    ) -> None:
        while data := await reader.read(1 << 16):
            if not self._ignore(data):
                if state["answered"]:
                    self.round_trips += 1
                    state.update(answered=False, sent=0)
                state["sent"] += len(data)
                if self._fault == "cut before":
                    self._fault = None
                    return
                if self._fault == "cut after":
                    self._fault = None
                    state["lose"] = True
            await self._loud.wait()
            writer.write(data)
            await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: dict[str, int]) -> None:
        while data := await reader.read(1 << 16):
            if state["lose"]:
                return
            sent = -1
            while self.patience and state["sent"] != sent:
                sent = state["sent"]
                await asyncio.sleep(self.patience)
            state["answered"] = True
            writer.write(data)
            await writer.drain()
