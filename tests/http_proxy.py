"""An HTTP proxy on loopback that counts what passes and, on request, lets it go wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL


@dataclass
class Request:
    """What passed."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    status: int | None = None
    """What was answered, or None where no answer arrived."""


Fault = Callable[["HTTPProxy", web.Request, bytes], Any]


@dataclass
class HTTPProxy:
    """Forwards to `target`, and keeps a list of what it forwarded.

    A fault put into `faults` befalls one request each, in order; `matching` chooses which requests it can befall.
    """

    target: str
    strip: str = ""
    """A prefix that is taken off the path before it is forwarded."""
    delay: float = 0.0
    """Seconds that each answer takes longer."""
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    matching: Callable[[web.Request], bool] = lambda _: True
    rewrite: Callable[[bytes], bytes] = lambda body: body
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.strip}"

    def counted(self) -> list[str]:
        """The methods since the last look, a LIST told from a GET."""
        seen, self.requests[:] = list(self.requests), []
        return [_kind(each) for each in seen]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        entry = Request(request.method, request.path, dict(request.query), dict(request.headers), body)
        self.requests.append(entry)
        try:
            if self.faults and self.matching(request):
                answer = await self.faults.pop(0)(self, request, body)
            else:
                answer = await self.forward(request, body)
        except aiohttp.ClientError:  # the server is not there, or hung up
            answer = None
        if self.delay:
            await asyncio.sleep(self.delay)
        if answer is None:
            if request.transport is not None:  # else the client has gone
                request.transport.abort()
            raise ConnectionResetError
        entry.status = answer.status
        return answer

    async def forward(self, request: web.Request, body: bytes) -> web.Response:
        url = URL(self.target + request.raw_path.removeprefix(self.strip), encoded=True)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        async with self.session.request(
            request.method, url, headers=headers, data=self.rewrite(body) or None, allow_redirects=False
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    @contextmanager
    def running(self) -> Iterator[HTTPProxy]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def start() -> web.AppRunner:
            self.session = aiohttp.ClientSession(
                auto_decompress=False, connector=aiohttp.TCPConnector(limit=0), skip_auto_headers=["Content-Type"]
            )
            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", self.handle)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            return runner

        async def stop(runner: web.AppRunner) -> None:
            await self.session.close()
            await runner.cleanup()

        runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(stop(runner), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()


async def reset(proxy: HTTPProxy, request: web.Request, body: bytes) -> None:
    """The connection breaks before the request arrives."""


async def lose_reply(proxy: HTTPProxy, request: web.Request, body: bytes) -> None:
    """The request arrives and is carried out; its answer does not come back."""
    await proxy.forward(request, body)


async def cut(proxy: HTTPProxy, request: web.Request, body: bytes) -> None:
    """Half of the answer comes back."""
    whole = await proxy.forward(request, body)
    assert isinstance(whole.body, bytes)
    half = web.StreamResponse(status=whole.status, headers=whole.headers)
    half.content_length = len(whole.body)
    await half.prepare(request)
    await half.write(whole.body[: len(whole.body) // 2])


def answer(status: int, code: str = "", message: str = "as the test wants it", **fields: str) -> Fault:
    """An answer in S3's form or, without a code, in Google's; the request does not arrive."""

    async def fault(proxy: HTTPProxy, request: web.Request, body: bytes) -> web.Response:
        if not code:
            error = {"error": {"code": status, "message": message}}
            return web.json_response(error, status=status)
        more = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
        return web.Response(status=status, text=text, content_type="application/xml")

    return fault


def _kind(request: Request) -> str:
    if request.method == "GET" and ("list-type" in request.query or request.path.endswith("/o")):
        return "LIST"
    if request.method == "POST" and "upload" in request.path:
        return "PUT"
    return request.method


_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect", "date", "server"}
