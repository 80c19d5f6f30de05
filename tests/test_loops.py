"""On an event loop that is not asyncio's own: uvloop, which many servers run on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import servers
import uvloop
from burr.core import State
from conftest import STORES

from kvpersist import AsyncPersister, AsyncStore


@pytest.mark.parametrize("name", list(STORES))
def test_a_history(name: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncPersister.from_url(STORES[name](tmp_path)) as persister:
            for number in range(10):
                state = State({"n": number, "text": "x" * 100_000})
                await persister.save("p", "a", number, "step", state, "completed")
            loaded = await asyncio.gather(*(persister.load("p", "a", number) for number in range(10)))
            assert [each["state"]["n"] for each in loaded if each] == list(range(10))
            saves = (persister.save("p", f"b{n}", 0, "step", State({"n": n}), "completed") for n in range(40))
            await asyncio.gather(*saves)
            assert len(await persister.list_app_ids("p")) == 41

    uvloop.run(main())


def _kill(name: str, url: str) -> None:
    """End all connections of the server but our own."""
    if name == "redis":
        with redis.Redis.from_url(url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )


@pytest.mark.parametrize("name", ["redis", "postgresql"])
def test_connections_that_end_and_calls_that_are_cancelled(name: str) -> None:
    server: Any = servers.new_redis() if name == "redis" else servers.new_postgresql()
    url = f"redis://127.0.0.1:{server.port}" if name == "redis" else servers._postgresql_url(server.port)

    async def main() -> None:
        async with AsyncStore.from_url(url, timeout=5) as store:
            await store.put("a/b", b"x")
            await store.put("a/c", b"y" * 3_000_000)
            for _ in range(10):
                await asyncio.to_thread(_kill, name, url)
                assert await store.get("a/b") == b"x"
                reading = asyncio.ensure_future(store.get("a/c"))
                await asyncio.sleep(0.001)
                reading.cancel()
                await asyncio.wait([reading])
                assert await store.get("a/b") == b"x"
                assert await store.get("a/c") == b"y" * 3_000_000

    try:
        uvloop.run(main())
    finally:
        server.kill()
