"""MongoDB, by a stand-in that speaks its protocol unless KVPERSIST_TEST_MONGODB_URL names a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
from server_contract import ServerContract
from servers import Server, new_mongodb, unique


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
