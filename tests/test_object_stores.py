"""S3 and GCS: the shipped contracts on every server, and what is particular to object stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from object_servers import SERVERS, ObjectServer, object_servers

from kvpersist.testing import BackendContract, PersisterContract

__all__ = ["object_servers"]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, object_servers: Callable[[str], ObjectServer]) -> ObjectServer:
    return object_servers(request.param)


@pytest.fixture
def url(server: ObjectServer) -> str:
    return server.url()


class OnServers:
    @pytest.fixture
    def options(self, server: ObjectServer) -> dict[str, Any]:
        return {"storage_options": server.storage_options}


class TestBackend(OnServers, BackendContract):
    pass


class TestPersister(OnServers, PersisterContract):
    pass
