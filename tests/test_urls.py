"""What a user can get wrong in a URL or an option, and what the error says."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvpersist import AsyncPersister, AsyncStore, MissingExtraError, OptionError, Persister, Store, urls
from kvpersist.backends.memory import MemoryBackend


@pytest.mark.parametrize("face", [Persister, AsyncPersister, Store, AsyncStore])
@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("nosuch://x", {}, r"no store is known for nosuch://; known are .*file://.*memory://.*sqlite://"),
        ("/tmp/x", {}, "has no scheme; known are"),
        ("", {}, "has no scheme"),
        (7, {}, "must be a str, not int"),
        ("file:///tmp/x", {"durabel": True}, "file has no option 'durabel'; did you mean 'durable'"),
        ("sqlite:///tmp/x.db?tabel=x", {}, "did you mean 'table'"),
        ("memory://", {"qqq": 1}, "memory has no option 'qqq'; known are"),
        ("file:///tmp/x?durable=maybe", {}, "durable='maybe' must be a bool"),
        ("sqlite:///tmp/x.db?busy_timeout=soon", {}, "busy_timeout='soon' must be a float"),
        ("file://host/x", {}, "names a host"),
        ("file://", {}, "names no path"),
        ("file:///tmp/a#b", {}, "must be written %23"),
        ("memory://x/y", {}, "a memory store has a name and no path"),
        ("file:///", {}, "is the root of the disk"),
        ("sqlite:///tmp/x.db?table=a#b", {}, "must be written %23"),
        ("file:///tmp/a\nb", {}, "control characters"),
        ("sqlite://[x/y.db", {}, "is not a URL"),
        ("file:///tmp/\ud800", {}, "is not a URL"),
        ("file:///tmp/x", {"durable": "no"}, "durable='no' must be a bool"),
        ("sqlite:///tmp/x.db", {"table": 3}, "table=3 must be a str"),
        ("sqlite:///tmp/x.db", {"busy_timeout": "5"}, "busy_timeout='5' must be a float"),
        ("sqlite:///tmp/x.db?busy_timeout=nan", {}, "from 0 to 1,000,000"),
        ("sqlite:///tmp/x.db?busy_timeout=-1", {}, "from 0 to 1,000,000"),
    ],
)
def test_mistakes_are_told_before_anything_happens(face: Any, url: Any, options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        face.from_url(url, **options)


def test_options_of_the_persister() -> None:
    with pytest.raises(OptionError, match="did you mean 'on_conflict'"):
        Persister.from_url("memory://", on_conflicts="error")
    with pytest.raises(OptionError, match="one of error, overwrite, rewind, not 'merge'"):
        Persister.from_url("memory://", on_conflict="merge")  # type: ignore[arg-type]
    for namespace in ("", 3):
        with pytest.raises(OptionError, match="namespace"):
            Persister.from_url("memory://", namespace=namespace)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="asynchronous=False"):
        Persister(MemoryBackend("memory://", asynchronous=True))
    with pytest.raises(OptionError, match="asynchronous=True"):
        AsyncStore(MemoryBackend("memory://"))


def test_an_argument_wins_over_the_query(tmp_path: Path) -> None:
    backend = urls.open_backend(
        f"sqlite://{tmp_path}/x.db?table=one&busy_timeout=2&durable=no",
        asynchronous=False,
        options={"table": "two"},
    )
    assert backend.options == {"table": "two", "busy_timeout": 2.0, "durable": False}


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file:////a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:///a/../b/", "/b"),
        ("file:///a%20b/%C3%A9%23", "/a b/é#"),
        ("file://./a", f"{os.getcwd()}/a"),
        ("file://../a", f"{os.path.dirname(os.getcwd())}/a"),
        ("file://~/a", f"{os.path.expanduser('~')}/a"),
        ("file:a/b", f"{os.getcwd()}/a/b"),
    ],
)
def test_paths_of_files(url: str, path: str) -> None:
    assert str(urls.local_path(url)) == path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pa:ss@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:p%40ss@host", "redis://***@host"),
        ("redis://user:pa/ss@host", "redis://***@host"),
        ("redis://user:pa?ss@host", "redis://***@host"),
        ("https://TOKEN@host", "https://***@host"),
        ("redis:user:pw@host", "redis:***@host"),
        ("redis://h/0#password=x", "redis://h/0#***"),
        ("postgresql://u:p@ss@host/db", "postgresql://***@host/db"),
        ("s3://bucket/prefix?secret=x&pwd=p&%70ass=y", "s3://bucket/prefix?secret=***&pwd=***&%70ass=***"),
        ("x://h?user=a;password=x", "x://h?user=***"),
        ("file:///a/b@c:d", "file:///a/b@c:d"),
        ("memory://name", "memory://name"),
    ],
)
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert urls.redacted(url) == shown


@pytest.mark.parametrize(
    "url", ["sqlite://admin:hunter2@dbhost/x.db", "nosuch://u:hunter2@h", "memory://u:hunter2@h/x", "x:u:hunter2@x"]
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(OptionError) as caught:
        Store.from_url(url)
    assert "hunter2" not in str(caught.value)


def test_no_repr_shows_a_password() -> None:
    for face in (Persister, Store):
        assert "hunter2" not in repr(face.from_url("memory://user:hunter2@host"))


def test_options_of_the_persister_in_the_query() -> None:
    persister = Persister.from_url("memory://?namespace=mine&on_conflict=rewind")
    assert "namespace='mine', on_conflict='rewind'" in repr(persister)
    persister = Persister.from_url("memory://?namespace=mine&on_conflict=rewind", on_conflict="error")
    assert "namespace='mine', on_conflict='error'" in repr(persister)
    with pytest.raises(OptionError, match="not 'maybe'"):
        Persister.from_url("memory://?on_conflict=maybe")


def test_a_relative_url_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for url in ("sqlite://./a%20b.db", "file://./a%20b"):
        monkeypatch.chdir(tmp_path / "one")
        store = Store.from_url(url)
        store.put("a", b"1")
        monkeypatch.chdir(tmp_path / "two")
        twin = Store(pickle.loads(pickle.dumps(store.backend)))
        assert twin.get("a") == b"1"
        store.close()
        twin.close()
    assert list((tmp_path / "two").iterdir()) == []


def test_a_missing_driver_names_the_extra(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; sys.modules['aiosqlite'] = None\n"
        "from kvpersist import AsyncPersister, Persister, MissingExtraError\n"
        "Persister.from_url(sys.argv[1]).initialize()\n"
        "try: asyncio.run(AsyncPersister.from_url(sys.argv[1]).initialize())\n"
        "except MissingExtraError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, f"sqlite://{tmp_path}/x.db"], check=True, capture_output=True, text=True
    )
    assert result.stdout == 'async SQLite needs aiosqlite: pip install "kvpersist[sqlite]"\n'
    assert issubclass(MissingExtraError, ImportError)


def test_a_backend_of_somebody_else_is_found(tmp_path: Path) -> None:
    """An installed distribution with an entry point is all it takes."""
    info = tmp_path / "other-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[kvpersist.backends]\nother = other_store:Other\nlost = no_such_module:X\n")
    (tmp_path / "other_store.py").write_text(
        "from kvpersist.backends.memory import MemoryBackend\n"
        "class Other(MemoryBackend):\n"
        "    def __init__(self, url, *, asynchronous=False, size: int = 1):\n"
        "        super().__init__(url, asynchronous=asynchronous)\n"
        "        self.size = size\n"
    )
    script = (
        "from kvpersist import MissingExtraError, Store\n"
        "store = Store.from_url('other://x?size=7')\n"
        "store.put('a', b'1')\n"
        "print(store.get('a'), store.backend.size, store)\n"
        "try: Store.from_url('lost://x')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    one, other = result.stdout.splitlines()
    assert one == "b'1' 7 Store('other://x')"
    assert other.startswith("lost:// needs a package that is not installed (No module named 'no_such_module')")
    assert other.endswith("see other, which brings lost://")
