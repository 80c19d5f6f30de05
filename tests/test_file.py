"""What is particular to files: the layout people see, what is listed, what a crash leaves."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from burr.core import State

from kvpersist import AsyncStore, InvalidKeyError, Persister, Store, StoreError
from kvpersist.backends import file as module
from kvpersist.testing import Face


@pytest.fixture(params=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Any:
    face = Face(request.param == "async")
    yield face
    face.close()


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of entries of each folder that is listed from now on."""
    sizes: list[int] = []
    scandir = os.scandir

    def counting(path: str) -> Any:
        sizes.append(len(os.listdir(path)))
        return scandir(path)

    monkeypatch.setattr(module.os, "scandir", counting)
    return sizes


def test_a_record_is_one_file_that_people_can_read(tmp_path: Path) -> None:
    with Persister.from_url(f"file://{tmp_path}/state") as persister:
        persister.save("user@x", "Chat", 6, "answer", State({"chat": ["hi"]}), "completed")
    (path,) = [each for each in (tmp_path / "state").rglob("*") if each.is_file() and each.name != ".lock"]
    assert str(path.relative_to(tmp_path / "state")) == (
        "kvpersist/user=40x/!chat/92233720368+/54+/77+/58+/01.6.answer"
    )
    header, payload = path.read_text().splitlines()
    assert json.loads(payload) == {"chat": ["hi"]}
    assert json.loads(header)["position"] == "answer"


@pytest.mark.parametrize("depth", [10, 4000])
def test_no_folder_that_is_listed_grows_with_the_history(
    face: Face, tmp_path: Path, listed: list[int], depth: int
) -> None:
    persister = face.persister(f"file://{tmp_path}?durable=no")
    for number in range(depth):
        persister.save("p", "a", number, "step", State({"n": number}), "completed")
    assert listed == [0]  # the folder of temporary files, when the store was opened
    listed.clear()
    persister.load("p", "a")
    persister.load("p", "a", depth // 2)
    persister.load("p", "absent")
    assert len(listed) == 5 + 5  # the folder of the absent app is not there to be listed
    assert max(listed) <= 100
    listed.clear()
    persister.list_app_ids("p")
    assert listed == [1]


def test_apps_are_listed_at_once(face: Face, tmp_path: Path, listed: list[int]) -> None:
    store = face.store(f"file://{tmp_path}?durable=no")
    for number in range(2500):
        store.put(f"kvpersist/p/app{number}/1", b"x")
    listed.clear()
    assert len(face.persister(f"file://{tmp_path}").list_app_ids("p")) == 2500
    assert listed == [2500]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with Persister.from_url(f"file://{tmp_path}") as persister:
        for number in range(5):
            persister.save("p", "a", number, "step", State({"n": number}), "completed")
        assert list((tmp_path / ".tmp").iterdir()) == []
        persister.delete_app("p", "a")
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", ".tmp"]


def test_stale_temporary_files_are_removed_and_fresh_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / ".tmp").mkdir()
    for name, age in (("stale", 7200), ("fresh", 60)):
        (tmp_path / ".tmp" / name).write_text("half a record")
        os.utime(tmp_path / ".tmp" / name, (time.time() - age,) * 2)
    with Persister.from_url(f"file://{tmp_path}") as persister:
        persister.initialize()
        assert [each.name for each in (tmp_path / ".tmp").iterdir()] == ["fresh"]
        assert persister.list_partitions() == []


def test_durable_writes_sync_the_file_before_its_name_and_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def logged_fsync(descriptor: int) -> None:
        log.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "link", lambda *paths: (log.append("link"), link(*paths)))
    monkeypatch.setattr(os, "replace", lambda *paths: (log.append("rename"), replace(*paths)))
    store = Store.from_url(f"file://{tmp_path}")
    store.put("a/b", b"1", mode="create")
    log.clear()
    store.put("a/c", b"1", mode="create")
    assert log == ["sync file", "link", "sync folder"]
    log.clear()
    store.put("a/c", b"2")
    store.replace("a/c", b"2", b"3")
    assert log == ["sync file", "rename", "sync folder"] * 2
    log.clear()
    store.delete(["a/c"])
    assert log == ["sync folder"]
    log.clear()
    store = Store.from_url(f"file://{tmp_path}?durable=no")
    store.put("a/d", b"1", mode="create")
    store.put("a/d", b"2")
    assert log == ["link", "rename"]


def test_what_a_first_try_left_is_synced_before_a_retry_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record, and folders, of a process that was killed before it could sync them."""
    path = tmp_path / "state" / "kvpersist" / "p" / "a"
    with Persister.from_url(f"file://{tmp_path}/state") as persister:
        persister.save("p", "a", 1, "step", State({}), "completed")
    synced: list[str] = []
    fsync = os.fsync

    def logged(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", logged)
    with Persister.from_url(f"file://{tmp_path}/state") as persister:
        persister.save("p", "a", 1, "step", State({}), "completed")
    folders = [str(path), str(path.parent), str(path.parent.parent), str(tmp_path / "state")]
    assert [each for each in synced if each in folders] == folders
    assert any(each.endswith("+") for each in synced)


def test_folders_are_synced_into_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    synced: list[str] = []
    mkdir, fsync = os.mkdir, os.fsync

    def logged_mkdir(path: str) -> None:
        mkdir(path)
        made.append(path)

    def logged_fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "mkdir", logged_mkdir)
    monkeypatch.setattr(os, "fsync", logged_fsync)
    with Persister.from_url(f"file://{tmp_path}/one/state") as persister:
        persister.save("p", "a", 1, "step", State({}), "completed")
    assert len(made) == 2 + 1 + 3 + 4
    assert {os.path.dirname(each) for each in made} <= set(synced)


def test_a_cancelled_save_is_over_when_its_task_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def slow(*paths: str) -> None:
        time.sleep(0.2)
        link(*paths)

    monkeypatch.setattr(os, "link", slow)

    async def main() -> None:
        store = AsyncStore.from_url(f"file://{tmp_path}?durable=no")
        task = asyncio.create_task(store.put("a", b"1", mode="create"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (tmp_path / "a").exists()

    asyncio.run(main())


def test_what_others_put_there_is_left_alone(tmp_path: Path) -> None:
    store = Store.from_url(f"file://{tmp_path}")
    store.put("a/b", b"1")
    for name in ("README.md", ".hidden", "a/Notes.txt", "a/two words"):
        (tmp_path / name).write_text("mine")
    assert store.scan().entries == [("a/b", None)]
    store.delete(["a/b"])
    assert (tmp_path / "a" / "Notes.txt").exists()


def test_a_root_that_is_removed_is_made_again(tmp_path: Path) -> None:
    store = Store.from_url(f"file://{tmp_path}/state")
    store.put("a", b"1")
    shutil.rmtree(tmp_path / "state")
    store.put("a", b"2")
    assert store.get("a") == b"2"


def test_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kvpersist").symlink_to("/nowhere/at/all")
    with pytest.raises(StoreError, match="a link to somewhere that is not there"):
        Persister.from_url(f"file://{tmp_path}?durable=no").save("p", "a", 1, "step", State({}), "completed")


def test_names_that_are_too_long_are_refused_before_anything_is_written(face: Face, tmp_path: Path) -> None:
    persister = face.persister(f"file://{tmp_path}/state")
    persister.save("p", "a" * 255, 1, "b" * 200, State({}), "completed")
    assert persister.load("p", "a" * 255)["position"] == "b" * 200
    for app_id, position in (("a" * 256, "step"), ("é" * 50, "step"), ("a", "b" * 240)):
        with pytest.raises(InvalidKeyError, match="longer than 255 bytes"):
            persister.save("p", app_id, 1, position, State({}), "completed")
    assert persister.list_app_ids("p") == ["a" * 255]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    persister = Persister.from_url(f"file://{tmp_path}/file/below")
    with pytest.raises(StoreError, match="Not a directory"):
        persister.initialize()
    with pytest.raises(StoreError, match="Not a directory"):
        persister.save("p", "a", 1, "step", State({}), "completed")
    with pytest.raises(StoreError, match="/proc"):
        Persister.from_url("file:///proc/kvpersist").initialize()


def test_a_key_cannot_be_the_start_of_another(tmp_path: Path) -> None:
    store = Store.from_url(f"file://{tmp_path}")
    store.put("a/b", b"1")
    with pytest.raises(InvalidKeyError, match="the start of other keys"):
        store.put("a", b"2", mode="create")
    with pytest.raises(StoreError):
        store.put("a/b/c", b"2")
    assert store.get("a") is None
    assert store.get("a/b/c") is None
    assert store.get("a/b") == b"1"


def test_a_file_system_without_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StoreError, match="no hard links"):
        Store.from_url(f"file://{tmp_path}").put("a", b"1", mode="create")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.from_url(f"file://{tmp_path}")
    store.put("a", b"1")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.put("a", b"2")
    assert store.get("a") == b"1"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_writer_and_a_remover_of_the_same_folder(tmp_path: Path) -> None:
    # A delete removes empty folders while others are about to write into them.
    from concurrent.futures import ThreadPoolExecutor

    store = Store.from_url(f"file://{tmp_path}?durable=no")

    def work(number: int) -> None:
        for _ in range(100):
            assert store.put(f"a/b/c/{number}", b"x", mode="create") is True
            store.delete([f"a/b/c/{number}"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.scan().entries == []
