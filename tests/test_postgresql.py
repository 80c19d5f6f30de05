"""PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from server_contract import ServerContract
from servers import Server, new_postgresql, unique


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = new_postgresql()
    yield server
    server.kill()


class TestPostgreSQL(ServerContract):
    @pytest.fixture
    def place(self) -> dict[str, Any]:
        return {"table": unique()}

    def url(self, port: int) -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/postgres?timeout=1"

    def client(self, url: str, *, asynchronous: bool) -> Any:
        kind: Any = psycopg.AsyncConnection if asynchronous else psycopg.Connection
        return kind.connect(url.partition("?")[0], autocommit=True)
