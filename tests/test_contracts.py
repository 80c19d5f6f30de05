"""The shipped contract suites, over every store."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import servers
from conftest import STORES

from kvpersist.backends import memory
from kvpersist.testing import BackendContract, PersisterContract
from kvpersist.urls import local_path


@pytest.fixture(params=STORES)
def store_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(store_name: str, tmp_path: Path) -> str:
    return STORES[store_name](tmp_path)


class RawMemory:
    def __init__(self, url: str) -> None:
        self.space = memory._spaces[url.removeprefix("memory://")]

    def read(self, key: str) -> bytes:
        return self.space.values[key]

    def write(self, key: str, value: bytes) -> None:
        self.space.keys.append(key)
        self.space.keys.sort()
        self.space.values[key] = value


class RawFiles:
    """Finds files by the documented layout, with shell tools' means."""

    def __init__(self, url: str) -> None:
        self.root = local_path(url)

    def path(self, key: str) -> Path:
        folder, _, name = key.rpartition("/")
        folders = f"{name[:11]}+/{name[11:13]}+/{name[13:15]}+/{name[15:17]}+"
        return self.root / folder / folders / name[17:]

    def read(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def write(self, key: str, value: bytes) -> None:
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        self.path(key).write_bytes(value)


class RawSQLite:
    def __init__(self, url: str) -> None:
        self.path = local_path(url)

    def read(self, key: str) -> bytes:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute("SELECT value FROM kvpersist WHERE key = ?", (key,)).fetchone()[0]
        finally:
            connection.close()

    def write(self, key: str, value: bytes) -> None:
        connection = sqlite3.connect(self.path)
        try:
            with connection:
                connection.execute("INSERT INTO kvpersist VALUES (?, ?)", (key, value))
        finally:
            connection.close()


RAW = {"memory": RawMemory, "file": RawFiles, "file-durable": RawFiles, "sqlite": RawSQLite, **servers.RAW}


class TestBackend(BackendContract):
    @pytest.fixture
    def raw(self, store: Any, store_name: str, url: str) -> Any:
        return RAW[store_name](url) if store_name in RAW else None

    @pytest.fixture
    def flat_keys(self, store_name: str) -> bool:
        return not store_name.startswith("file")


class TestPersister(PersisterContract):
    pass
