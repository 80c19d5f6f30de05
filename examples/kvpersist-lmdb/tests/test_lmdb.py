"""The contract suites of kvpersist on LMDB, and what is LMDB's own."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import kvpersist_lmdb
import pytest

from kvpersist import InvalidKeyError, Persister, Store, StoreError
from kvpersist.testing import BackendContract, Face, PersisterContract


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"lmdb://{tmp_path.as_posix()}/state.lmdb"


class RawLMDB:
    """The database as another program sees it."""

    def __init__(self, path: Path) -> None:
        self.environment = kvpersist_lmdb._environments[str(path)]  # a process can have but one

    def read(self, key: str) -> Any:
        with self.environment.begin() as reading:
            return reading.get(key.encode())

    def write(self, key: str, value: bytes) -> None:
        with self.environment.begin(write=True) as writing:
            writing.put(key.encode(), value)


class TestBackend(BackendContract):
    @pytest.fixture
    def raw(self, store: Any, tmp_path: Path) -> RawLMDB:
        store.put("a/b", b"x")
        store.delete(["a/b"])
        return RawLMDB(tmp_path / "state.lmdb")

    def test_a_key_that_lmdb_cannot_hold_is_refused(self, store: Any) -> None:
        assert store.put("k" * 511, b"x") is True
        with pytest.raises(InvalidKeyError, match="511 bytes"):
            store.put("k" * 512, b"x")

    def test_a_full_database_says_so_and_serves_on(self, face: Face, url: str) -> None:
        store = face.store(url, map_size=2**20)
        store.put("a", b"x")
        with pytest.raises(StoreError, match="map_size=1048576"):
            store.put("b", b"x" * 2**21)
        assert store.get("a") == b"x"
        assert store.put("b", b"x") is True

    def test_what_cannot_be_opened_says_so(self, face: Face, url: str, tmp_path: Path) -> None:
        (tmp_path / "state.lmdb").write_bytes(b"something else" * 1000)
        with pytest.raises(StoreError, match="cannot be opened"):
            face.store(url).get("a")
        with pytest.raises(StoreError, match="cannot be opened"):
            face.store(f"{url}.new", map_size=-1).get("a")


class TestPersister(PersisterContract):
    pass


def _save_hundred(url: str, worker: int) -> None:
    with Persister.from_url(url) as persister:
        for number in range(100):
            persister.save("p", f"app{worker}", number, "step", {"n": number}, "completed")


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_share_a_database(url: str, method: str) -> None:
    with Store.from_url(url) as store:
        store.put("a", b"x")  # so that it is open in the parent
        context: Any = multiprocessing.get_context(method)
        workers = [context.Process(target=_save_hundred, args=(url, worker)) for worker in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
    with Persister.from_url(url) as persister:
        assert persister.list_app_ids("p") == ["app0", "app1"]
        assert [persister.load("p", f"app{worker}")["sequence_id"] for worker in range(2)] == [99, 99]
