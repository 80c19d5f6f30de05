"""What a user can get wrong in a URL or an option, and what the error says."""

from __future__ import annotations

import os
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
        ("file:///tmp/x?durable=maybe", {}, "durable='maybe' in the URL is no bool"),
        ("sqlite:///tmp/x.db?busy_timeout=soon", {}, "busy_timeout='soon' in the URL is no float"),
        ("file://host/x", {}, "names the host 'host'"),
        ("file://", {}, "names no path"),
        ("file:///tmp/a#b", {}, "must be written %23"),
        ("memory://x/y", {}, "a memory store has a name and no path"),
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
    for namespace in ("", None, 3):
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
        ("redis://user:pa:ss@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:p%40ss@host", "redis://:***@host"),
        ("postgresql://u:p@ss@host/db", "postgresql://u:***@host/db"),
        ("s3://bucket/prefix?secret=x&region=eu&api_key=y", "s3://bucket/prefix?secret=***&region=eu&api_key=***"),
        ("file:///a/b@c:d", "file:///a/b@c:d"),
        ("memory://name", "memory://name"),
    ],
)
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert urls.redacted(url) == shown


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
