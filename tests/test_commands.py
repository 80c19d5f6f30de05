"""The commands that look at a store and work on it, as a user calls them."""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet
import pytest
import redis
import servers
from burr.core import State
from click.shell_completion import get_completion_class
from click.testing import CliRunner, Result
from conftest import STORES

from kvpersist import Persister, Store
from kvpersist.backends.sqlite import SQLiteBackend
from kvpersist.cli import COMMANDS, main
from kvpersist.cli.options import Location
from kvpersist.inspection import Inspection

READS = ("apps", "history", "show", "diff", "stats", "verify", "doctor", "export")
Run = Callable[..., Result]


@pytest.fixture(params=["file", "sqlite", "redis", "postgresql", "mongodb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return STORES[request.param](tmp_path)


@pytest.fixture
def kvpersist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in a folder of its own; the exit code is checked."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in [each for each in os.environ if each.startswith("KVPERSIST_") and "TEST" not in each]:
        monkeypatch.delenv(name)

    def run(*arguments: str, code: int = 0, given: str = "") -> Result:
        result = CliRunner().invoke(main, arguments, input=given)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


def fill(url: str, steps: int = 6) -> None:
    chat: list[Any] = []
    with Persister.from_url(url) as persister:
        for number in range(steps):
            chat.append({"role": "user", "text": f"message {number}"})
            status: Any = "failed" if number == 3 else "completed"
            persister.save("p", "chat", number, "ask", State({"chat": [*chat], "n": number}), status)
        persister.save(None, "alone", 1, "ask", State({}), "completed")


def lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_looking(kvpersist: Run, url: str) -> None:
    fill(url)
    on = ("--url", url)
    assert lines(kvpersist("apps", *on, "--json")) == [
        {"partition_key": None, "app_id": "alone"},
        {"partition_key": "p", "app_id": "chat"},
    ]
    assert lines(kvpersist("apps", *on, "--json", "-l", "-p", "p"))[0]["newest"]["sequence_id"] == 5
    assert "chat" in kvpersist("apps", *on, "--prefix", "ch").stdout
    assert "no apps" in kvpersist("apps", *on, "-p", "other", code=1).stderr

    listed = lines(kvpersist("history", *on, "-p", "p", "chat", "--json"))
    assert [(each["sequence_id"], each["status"]) for each in listed][:3] == [
        (5, "completed"),
        (4, "completed"),
        (3, "failed"),
    ]
    page = kvpersist("history", *on, "-p", "p", "chat", "-n", "2", "--before", "5")
    assert [line.split()[0] for line in page.stdout.splitlines()] == ["step", "4", "3"]
    assert "--before 3" in page.stderr
    assert "no record of the app 'chat' without a partition key" in kvpersist("history", *on, "chat", code=1).stderr

    shown = lines(kvpersist("show", *on, "-p", "p", "chat", "2", "--json"))[0]
    assert shown["state"] == {"chat": [{"role": "user", "text": f"message {each}"} for each in range(3)], "n": 2}
    assert '"n": 5' in kvpersist("show", *on, "-p", "p", "chat").stdout
    assert "at the sequence id 9" in kvpersist("show", *on, "-p", "p", "chat", "9", code=1).stderr

    changes = lines(kvpersist("diff", *on, "-p", "p", "chat", "1", "2", "--json"))
    assert [(each["path"], each["kind"]) for each in changes] == [("chat[2]", "added"), ("n", "changed")]
    assert "~ n: 1 -> 2" in kvpersist("diff", *on, "-p", "p", "chat", "1", "2", "--exit-code", code=1).stdout
    assert "no difference" in kvpersist("diff", *on, "-p", "p", "chat", "1", "1", "--exit-code").stderr

    stats = lines(kvpersist("stats", *on, "--json"))[0]
    assert (stats["apps"], stats["records"], stats["failed"], stats["unreadable"]) == (2, 7, 1, 0)
    assert stats["largest"][0]["app_id"] == "chat"
    assert "chat" in kvpersist("stats", *on).stdout
    assert lines(kvpersist("verify", url, "--json"))[0] == {
        "ok": True,
        "records": 7,
        "parts": 0,
        "corrupt_records": {},
        "missing_parts": [],
        "corrupt_parts": {},
        "unreachable_parts": [],
    }


def test_changing(kvpersist: Run, url: str) -> None:
    fill(url, 20)
    app = ("--url", url, "-p", "p", "chat")
    assert "Aborted" in kvpersist("rewind", *app, "15", given="n\n", code=1).stderr
    assert "4 records set aside" in kvpersist("rewind", *app, "15", given="y\n").stdout
    assert "no record" in kvpersist("rewind", *app, "99", "--yes", code=1).stderr
    listed = lines(kvpersist("history", *app, "--all", "--json", "-n", "100"))
    assert [each["sequence_id"] for each in listed if each["set_aside"]] == [19, 18, 17, 16]

    assert "say what may go" in kvpersist("prune", "--url", url, "--yes", code=2).stderr
    assert "neither a span" in kvpersist("prune", "--url", url, "--older-than", "soon", "--yes", code=2).stderr
    assert "0 records removed" in kvpersist("prune", "--url", url, "--older-than", "30d", "-y").stdout
    assert "11 records removed" in kvpersist("prune", "--url", url, "-p", "p", "--keep-last", "5", "-y").stdout
    assert len(lines(kvpersist("history", *app, "--json"))) == 5
    assert (
        "4 records removed"
        in kvpersist(
            "prune", "--url", url, "--older-than", "2999-01-01", "--keep-last", "5", "--include-set-aside", "-y"
        ).stdout
    )

    asked = kvpersist("delete", *app, given="n\n", code=1)
    assert "the newest is step 15" in asked.stderr
    assert "5 records removed" in kvpersist("delete", *app, given="y\n").stdout
    assert "no record of the app" in kvpersist("delete", *app, "--yes", code=1).stderr
    assert [each["app_id"] for each in lines(kvpersist("apps", "--url", url, "--json"))] == ["alone"]


def test_doctor(kvpersist: Run, url: str) -> None:
    fill(url)
    with Store.from_url(url) as store:
        before = store.scan().entries
    told = lines(kvpersist("doctor", url, "--json"))[0]
    assert told["ok"]
    assert {each["what"]: each["requests"] for each in told["checks"]}["a load of the latest"] == 1
    assert "all is well" in kvpersist("doctor", url).stdout
    assert len(lines(kvpersist("doctor", url, "--read-only", "--json"))[0]["checks"]) == 3
    with Store.from_url(url) as store:
        assert store.scan().entries == before


def test_doctor_names_the_missing_right(kvpersist: Run, tmp_path: Path) -> None:
    server = servers.new_redis()
    with redis.Redis(port=server.port) as client:
        client.acl_setuser(
            "reader", enabled=True, passwords=["+hunter2"], categories=["+@read", "+@scripting"], keys=["*"]
        )
    told = kvpersist("doctor", f"redis://reader:hunter2@127.0.0.1:{server.port}", code=1)
    assert "NO" in told.stdout
    assert "write: " in told.stdout
    assert "ermission" in told.stdout
    assert "hunter2" not in told.output
    server.kill()
    gone = kvpersist("doctor", f"redis://reader:hunter2@127.0.0.1:{server.port}", code=3)
    assert "not there" in gone.stdout

    base = servers.postgresql_url()
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute("CREATE ROLE looker LOGIN")
    try:
        url = servers.with_options(base.replace("postgres@", "looker@"), schema=servers.RUN, table=servers.unique())
        told = kvpersist("doctor", url, code=1)
        assert "lacks a right" in told.stdout
    finally:
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute("DROP ROLE looker")


def test_export(kvpersist: Run, url: str, tmp_path: Path) -> None:
    fill(url)
    file = tmp_path / "out.parquet"
    assert "7 records" in kvpersist("export", "--url", url, str(file)).stderr
    rows = pyarrow.parquet.read_table(file).to_pylist()
    assert [row["sequence_id"] for row in rows if row["app_id"] == "chat"] == [5, 4, 3, 2, 1, 0]
    assert json.loads(rows[1]["state"])["n"] == 5
    assert rows[1]["created_at"].tzinfo is not None
    exported = lines(kvpersist("export", "--url", url, "-", "--latest"))
    assert [(row["app_id"], row["state"].get("n")) for row in exported] == [("alone", None), ("chat", 5)]
    with Persister.from_url(url, serde_kwargs={"serializer": "pickle"}) as persister:
        persister.save("p", "pickled", 1, "ask", State({"n": 1}), "completed")
    again = kvpersist("export", "--url", url, str(tmp_path / "out.jsonl"), code=1)
    assert "pickled" in again.stderr
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["state"] for row in written if row["app_id"] == "pickled"] == [None]
    assert sorted(each.name for each in tmp_path.glob("*out*")) == ["out.jsonl", "out.parquet"]
    assert "/dev/null/x" in kvpersist("export", "--url", url, "/dev/null/x", code=1).stderr


def test_what_is_interrupted_goes_on(kvpersist: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite://{tmp_path}/state.db"
    with Persister.from_url(url) as persister:
        for app in range(5):
            for number in range(10):
                persister.save("p", f"app{app}", number, "ask", State({}), "completed")
    calls = 0

    def interrupted(original: Any) -> Any:
        def third(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return original(*arguments)

        return third

    file = tmp_path / "out.jsonl"
    file.write_text("as it was")
    with monkeypatch.context() as patched:
        patched.setattr(Inspection, "shown", interrupted(Inspection.shown))
        assert "Aborted" in kvpersist("export", "--url", url, str(file), code=1).stderr
        calls = 0
        patched.setattr(SQLiteBackend, "delete", interrupted(SQLiteBackend.delete))
        assert "Aborted" in kvpersist("prune", "--url", url, "--keep-last", "1", "-y", code=1).stderr
    assert file.read_text() == "as it was"
    assert [each.name for each in tmp_path.glob("*out*")] == ["out.jsonl"]
    assert "27 records removed" in kvpersist("prune", "--url", url, "--keep-last", "1", "-y").stdout
    assert "5 records" in kvpersist("export", "--url", url, str(file)).stderr


def test_tail(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/state.db"
    command = [sys.executable, "-m", "kvpersist.cli", "tail", "-u", url, "-p", "p", "a", "--json", "--interval", "0.05"]
    with (
        Persister.from_url(url) as persister,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        persister.initialize()
        assert process.stdout is not None

        def next_line() -> tuple[int, str]:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            return told["sequence_id"], told["status"]

        try:
            for number in range(60):
                persister.save("p", "a", number, "ask", State({}), "completed")
            seen = [next_line()]
            while seen[-1][0] < 59:
                seen.append(next_line())
            assert [number for number, _ in seen] == [*range(seen[0][0], 60)]
            for number in range(60, 110):  # more than a look sees at once
                persister.save("p", "a", number, "ask", State({}), "failed" if number == 109 else "completed")
            assert [next_line()[0] for _ in range(50)] == [*range(60, 110)]
            persister.save("p", "a", 109, "ask", State({}), "completed")  # the next try
            assert next_line() == (109, "completed")
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 0


def test_tail_waits_for_a_store_that_is_away() -> None:
    server = servers.new_redis("--appendonly", "yes", "--appendfsync", "always")
    url = f"redis://127.0.0.1:{server.port}?timeout=1"
    command = [sys.executable, "-m", "kvpersist.cli", "tail", "-u", url, "-p", "p", "a", "--interval", "0.05"]
    with (
        Persister.from_url(url) as persister,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            persister.save("p", "a", 1, "ask", State({}), "completed")
            assert process.stdout.readline().split()[:3] == ["1", "ask", "completed"]
            server.kill()
            assert process.stderr.readline().rstrip().endswith("; waiting")
            server.start()
            persister.save("p", "a", 2, "ask", State({}), "failed")
            assert process.stdout.readline().split()[:3] == ["2", "ask", "failed"]
        finally:
            process.kill()


def test_where_the_store_is_written(kvpersist: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {name: f"sqlite://{tmp_path}/{name}.db" for name in ("flag", "variable", "file", "named")}
    for name, url in urls.items():
        with Persister.from_url(url, namespace="of-named" if name == "named" else None) as persister:
            persister.save("of the file", name, 1, "ask", State({}), "completed")

    def app(*arguments: str) -> Any:
        return lines(kvpersist("apps", "--json", *arguments))[0]["app_id"]

    assert "which store?" in kvpersist("apps", code=2).stderr
    Path("kvpersist.toml").write_text(
        f'url = "{urls["file"]}"\npartition = "of the file"\n'
        f'[stores.named]\nurl = "{urls["named"]}"\nnamespace = "of-named"\n'
    )
    assert app() == "file"
    monkeypatch.setenv("KVPERSIST_URL", urls["variable"])
    assert app() == "variable"
    assert app("--url", urls["flag"]) == "flag"
    monkeypatch.delenv("KVPERSIST_URL")
    assert app("--store", "named") == "named"
    monkeypatch.setenv("KVPERSIST_PARTITION", "of nobody")
    assert "no apps" in kvpersist("apps", code=1).stderr
    assert app("--partition", "of the file") == "file"
    assert "no apps" in kvpersist("apps", "--no-partition", code=1).stderr
    monkeypatch.delenv("KVPERSIST_PARTITION")
    monkeypatch.setenv("KVPERSIST_NAMESPACE", "of-named")
    assert "no apps" in kvpersist("apps", code=1).stderr
    monkeypatch.delenv("KVPERSIST_NAMESPACE")
    assert "no apps" in kvpersist("apps", "--no-partition", code=1).stderr
    assert "names no store 'x'" in kvpersist("apps", "--store", "x", code=2).stderr
    Path("kvpersist.toml").write_text('ulr = "x"\n')
    assert "'ulr' means nothing" in kvpersist("apps", code=2).stderr
    Path("kvpersist.toml").write_text("url = \n")
    assert "is no TOML" in kvpersist("apps", code=2).stderr
    assert kvpersist("apps", "--config", "absent.toml", code=2).stderr


def test_a_key_of_the_configuration(kvpersist: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, key = f"sqlite://{tmp_path}/secret.db", b"k" * 32
    with Persister.from_url(url, serde_kwargs={"encryption_key": key}) as persister:
        persister.save(None, "a", 1, "ask", State({"n": "told"}), "completed")
    assert "encrypted" in kvpersist("show", "-u", url, "a", code=1).stdout
    Path("kvpersist.toml").write_text(f'url = "{url}"\nserde_kwargs = {{ encryption_key = "env:STATE_KEY" }}\n')
    assert "STATE_KEY is not set" in kvpersist("show", "a", code=1).stderr
    monkeypatch.setenv("STATE_KEY", base64.b64encode(key).decode())
    assert "told" in kvpersist("show", "a").stdout
    monkeypatch.setenv("STATE_KEY", "hunter2!")
    failed = kvpersist("show", "a", code=1)
    assert "base64" in failed.stderr
    assert "hunter2" not in failed.output
    assert "KEYKEY" not in repr(Location("x", "y", {}, {"encryption_key": b"KEYKEY"}))


def test_what_a_terminal_would_obey_is_escaped(kvpersist: Run, tmp_path: Path) -> None:
    url, nasty = f"sqlite://{tmp_path}/nasty.db", "a\x1b[31m\x9b\u202e[bold]x[/]\r\n"
    with Persister.from_url(url) as persister:
        for number in (1, 2):
            persister.save(nasty, nasty, number, nasty, State({nasty: [nasty, number]}), "completed")
    on = ("-u", url, "-p", nasty)
    for result in (
        kvpersist("apps", "-u", url, "-l"),
        kvpersist("history", *on, nasty),
        kvpersist("show", *on, nasty),
        kvpersist("diff", *on, nasty, "1", "2"),
        kvpersist("stats", "-u", url),
        kvpersist("show", *on, nasty + "x", code=1),
        kvpersist("delete", *on, nasty, given="n\n", code=1),
    ):
        assert not {"\x1b", "\x9b", "\u202e", "\r"} & set(result.output)
        assert "[bold]x[/]" in result.output


def test_secrets_are_not_told(kvpersist: Run) -> None:
    for url in (
        "redis://me:hunter2@127.0.0.1:1",
        "postgresql://me:hunter2@127.0.0.1:1/x?timeout=1",
        "mongodb://me:hunter2@127.0.0.1:1/?timeout=1",
        "nosuch://me:hunter2@host",
        "redis://me:hunter2@host:port",
    ):
        for command in (
            ("apps", "-u", url),
            ("show", "-u", url, "a"),
            ("doctor", url),
            ("delete", "-u", url, "a", "-y"),
        ):
            result = CliRunner().invoke(main, command)
            assert result.exit_code in (1, 3)
            assert "Traceback" not in result.output
            assert "hunter2" not in result.output


def test_ten_thousand_steps_cost_a_page(kvpersist: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite://{tmp_path}/long.db"
    with Persister.from_url(url) as persister:
        persister.save("p", "a", 0, "ask", State({}), "completed")
    with Store.from_url(url) as store:
        ((key, value),) = store.scan(values=True).entries
        assert value is not None
    with sqlite3.connect(tmp_path / "long.db") as connection:
        connection.executemany(
            "INSERT INTO kvpersist VALUES (?, ?)",
            ((key.replace("9223372036854775807.0.", f"{2**63 - 1 - at}.{at}."), value) for at in range(1, 10_000)),
        )
    connection.close()
    calls: list[int | None] = []
    scan = SQLiteBackend.scan

    def counting(self: Any, prefix: str, **options: Any) -> Any:
        calls.append(options.get("limit"))
        return scan(self, prefix, **options)

    monkeypatch.setattr(SQLiteBackend, "scan", counting)
    kvpersist("history", "-u", url, "-p", "p", "a")
    kvpersist("history", "-u", url, "-p", "p", "a", "--before", "5000", code=0)
    kvpersist("show", "-u", url, "-p", "p", "a", code=1)  # its header says another step
    kvpersist("apps", "-u", url, "--json")
    assert calls == [20, 20, 1, 100, 100]


@pytest.mark.parametrize("command", READS)
def test_reading_imports_no_burr(command: str, tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/state.db"
    fill(url)
    arguments = {
        "history": ["-p", "p", "chat"],
        "show": ["-p", "p", "chat"],
        "diff": ["-p", "p", "chat", "1", "2"],
        "export": ["-"],
    }.get(command, [])
    where = [url] if command in ("verify", "doctor") else ["--url", url]
    code = (
        "import sys; from kvpersist.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert 'burr' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, command, *where, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=60
    )


def test_the_shell_completes(tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        environment = {**os.environ, "_KVPERSIST_COMPLETE": f"{shell}_source"}
        script = subprocess.run(
            [str(Path(sys.executable).parent / "kvpersist")],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert "_KVPERSIST_COMPLETE" in script
    kind = get_completion_class("bash")
    assert kind is not None
    completion = kind(main, {}, "kvpersist", "_KVPERSIST_COMPLETE")
    assert {each.value for each in completion.get_completions([], "")} == set(COMMANDS)
    assert "--older-than" in {each.value for each in completion.get_completions(["prune"], "--o")}
