"""The kvpersist command, run as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from burr.core import State

from kvpersist import Persister, Store


def kvpersist(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvpersist.cli", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_verify(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/state.db"
    with Persister.from_url(url) as persister:
        for number in range(20):
            persister.save("p", "a", number, "step", State({"text": f"{number} and more " * 1000}), "completed")
    whole = kvpersist("verify", url)
    assert whole.returncode == 0, whole.stderr
    assert "20 records, 3 parts" in whole.stdout
    assert "all records can be read" in whole.stdout
    with Store.from_url(url) as store:
        parts = [key for key, _ in store.scan("kvpersist/p/a/").entries if "!parts" in key]
        record = next(key for key, _ in store.scan("kvpersist/p/a/").entries if key.endswith(".19.step"))
        store.delete(parts[:1])  # what 14 to 19 are written against
        store.put(record, b"nonsense")
    broken = kvpersist("verify", url, "--json", "--partition", "p", "--app", "a")
    assert broken.returncode == 1
    report = json.loads(broken.stdout)
    assert report["missing_parts"] == parts[:1]
    assert record in report["corrupt_records"]
    assert report["ok"] is False
    shown = kvpersist("verify", url)
    assert shown.returncode == 1
    assert f"missing part: {parts[0]}" in shown.stdout
    assert f"cannot be read: {record}: " in shown.stdout


def test_mistakes_of_the_command_line(tmp_path: Path) -> None:
    assert "--app needs --partition" in kvpersist("verify", "memory://", "--app", "a").stderr
    unknown = kvpersist("verify", "nosuch://user:hunter2@host")
    assert unknown.returncode == 1
    assert "no store is known for nosuch://" in unknown.stderr
    assert "hunter2" not in unknown.stderr
