"""Redis and Valkey, alone, as a cluster and behind Sentinel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from server_contract import ServerContract
from servers import Server, new_redis, unique

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = new_redis(*DURABLE)
    yield server
    server.kill()


class TestRedis(ServerContract):
    @pytest.fixture
    def place(self) -> dict[str, Any]:
        return {"prefix": f"{unique()}:"}

    def url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}?timeout=1"

    def client(self, url: str, *, asynchronous: bool) -> Any:
        return (redis.asyncio if asynchronous else redis).Redis.from_url(url.partition("?")[0], decode_responses=True)
