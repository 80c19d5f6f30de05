"""What must hold where the wheel is installed, run there: python -I installed.py [EXTRA].

Without an extra, what needs one must say so.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import logging
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from burr.core import ApplicationBuilder, State, action

import kvpersist
from kvpersist import AsyncPersister, AsyncStore, MissingExtraError, Persister, Store, Telemetry

FOLDER = tempfile.TemporaryDirectory()
KEY = bytes(range(32))


@action(reads=["n"], writes=["n"])
def count(state: State) -> State:
    return state.update(n=state["n"] + 1)


def quick_start(url: str) -> None:
    """The application of the README: it is run, closed and goes on where it was."""
    for steps in (2, 3):
        with Persister.from_url(url) as persister:
            app = (
                ApplicationBuilder()
                .with_actions(count=count)
                .with_transitions(("count", "count"))
                .initialize_from(
                    persister, resume_at_next_action=True, default_state={"n": 0}, default_entrypoint="count"
                )
                .with_state_persister(persister)
                .with_identifiers(app_id="chat-1", partition_key="user-1")
                .build()
            )
            for _ in range(steps):
                app.step()
    with Persister.from_url(url) as persister:
        loaded = persister.load("user-1", "chat-1")
        assert loaded is not None
        assert loaded["state"]["n"] == 5
        assert [header.sequence_id for header in persister.history("user-1", "chat-1")] == [4, 3, 2, 1, 0]


def round_trip(value: Any, **serde_kwargs: Any) -> Any:
    with Persister.from_url("memory://", compact_history=False, serde_kwargs=serde_kwargs) as persister:
        persister.save("p", "a", 1, "ask", State({"value": value}), "completed")
        loaded = persister.load("p", "a")
        assert loaded is not None
        return loaded["state"]["value"]


def both_faces(url: str) -> None:
    """The driver is there; no server is asked for anything."""
    Store.from_url(url).close()

    async def asynchronously() -> None:
        await AsyncStore.from_url(url).close()

    asyncio.run(asynchronously())


def of_sqlite() -> None:
    async def asynchronously() -> None:
        async with AsyncPersister.from_url(f"sqlite://{FOLDER.name}/async.db") as persister:
            await persister.save("p", "a", 1, "ask", State({"n": 1}), "completed")
            assert (await persister.load("p", "a"))["state"]["n"] == 1

    asyncio.run(asynchronously())


def of_pandas() -> None:
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:  # nobody has a frame to save without it
        raise MissingExtraError("kvpersist[pandas]") from error
    frame = pandas.DataFrame({"a": [1, 2], "b": ["x", None]})
    pandas.testing.assert_frame_equal(round_trip(frame), frame)


def command(*arguments: str) -> str:
    """What the kvpersist command prints."""
    (point,) = [point for point in entry_points(group="console_scripts") if point.name == "kvpersist"]
    try:
        main = point.load()
    except SystemExit as error:
        raise MissingExtraError(str(error)) from error
    with redirect_stdout(io.StringIO()) as printed:
        try:
            main(arguments, standalone_mode=False)
        except Exception as error:
            if "kvpersist[" not in str(error):
                raise
            raise MissingExtraError(str(error)) from error
    return printed.getvalue()


def of_cli() -> None:
    assert "verify" in command("--help")
    assert "chat-1" in command("apps", "--url", f"file://{FOLDER.name}/states", "--json")


def of_parquet() -> None:
    file = Path(FOLDER.name, "states.parquet")
    command("export", "--url", f"file://{FOLDER.name}/states", str(file))
    assert file.read_bytes().startswith(b"PAR1")


def of_ui() -> None:
    """The pages are served, with their templates."""
    arguments = [sys.executable, "-I", "-m", "kvpersist.cli", "ui", f"file://{FOLDER.name}/states"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        _, at, address = server.stdout.readline().strip().partition(" at ")
        if not at:
            raise MissingExtraError(server.communicate()[1])
        try:
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            with browser.open(address, timeout=30) as page:
                assert b"user-1" in page.read()
        finally:
            server.terminate()
            server.communicate()


def of_fsspec() -> None:
    with Store.from_url("fsspec+memory://here") as store:
        store.put("a", b"1")
        assert store.get("a") == b"1"


def of_cloudpickle() -> None:
    assert round_trip(lambda n: n + 1, serializer="cloudpickle")(1) == 2


def of_otel() -> None:
    provider = MagicMock()
    with Persister.from_url("memory://", telemetry=Telemetry(tracer_provider=provider)) as persister:
        persister.save("p", "a", 1, "ask", State({"n": 1}), "completed")
    names = [call.args[0] for call in provider.get_tracer().start_span.call_args_list]
    assert names[:2] == ["kvpersist save", "create"], names


def of_testing() -> None:
    importlib.import_module("kvpersist.testing")


EXTRAS: dict[str, Callable[[], Any]] = {
    "sqlite": of_sqlite,
    "cloudpickle": of_cloudpickle,
    "encryption": lambda: round_trip(1, encryption_key=KEY),
    "lz4": lambda: round_trip("text" * 1000, compression="lz4"),
    "zstd": lambda: round_trip("text" * 1000, compression="zstd"),
    "pandas": of_pandas,
    "s3": lambda: both_faces("s3://bucket/prefix"),
    "gcs": lambda: both_faces("gs://bucket/prefix"),
    "fsspec": of_fsspec,
    "redis": lambda: both_faces("redis://localhost"),
    "postgresql": lambda: both_faces("postgresql://localhost/db"),
    "mongodb": lambda: both_faces("mongodb://localhost/db"),
    "cli": of_cli,
    "parquet": of_parquet,
    "ui": of_ui,
    "otel": of_otel,
    "testing": of_testing,
}
"""What each extra must make possible; "all" is all of those that run in production."""

OF_ALL = EXTRAS.keys() - {"pandas", "testing"}
IN_THE_CORE = {"zstd"}
ON_TOP = {"parquet": "cli", "ui": "cli"}  # what is not there at all without another extra


def what_is_missing(function: Callable[[], Any]) -> str:
    try:
        function()
    except MissingExtraError as error:
        return str(error)
    return "nothing"


def main(extra: str) -> None:
    logging.disable()
    assert version("kvpersist") == kvpersist.__version__
    assert Path(kvpersist.__file__).parent.parent.name == "site-packages", kvpersist.__file__
    for group in ("kvpersist.backends", "kvpersist.clients", "kvpersist.serializers"):
        ours = [point for point in entry_points(group=group) if point.value.startswith("kvpersist.")]
        assert ours, group
    quick_start(f"sqlite://{FOLDER.name}/state.db")
    quick_start(f"file://{FOLDER.name}/states")
    quick_start("memory://quick-start")
    for name in OF_ALL if extra == "all" else IN_THE_CORE | {extra} - {""}:
        EXTRAS[name]()
    if extra == "cli":
        for name in ON_TOP:
            assert f"kvpersist[{name}]" in what_is_missing(EXTRAS[name])
    if not extra:
        for name in EXTRAS.keys() - IN_THE_CORE:
            said = what_is_missing(EXTRAS[name])
            assert f"kvpersist[{ON_TOP.get(name, name)}]" in said, f"without its extra, {name} says {said!r}"


if __name__ == "__main__":
    main("".join(sys.argv[1:]))
