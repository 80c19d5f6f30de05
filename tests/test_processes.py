"""Several processes on one store: races have one winner, and a killed writer leaves only whole records."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from burr.core import State

from kvpersist import Persister
from kvpersist.testing import Face

STORES = {"file": "file://{}/store?durable=no", "file-durable": "file://{}/store", "sqlite": "sqlite://{}/state.db"}


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return STORES[request.param].format(tmp_path)


RACER = """
import sys, time
from kvpersist import ConflictError, Persister
from burr.core import State
url, me, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
persister = Persister.from_url(url)
for number in range(rounds):
    print(number, flush=True)
    start = float(sys.stdin.readline())
    while time.monotonic() < start:
        pass
    try:
        persister.save("p", "a", number, "step", State({"by": me}), "completed")
    except ConflictError:
        print("lost", flush=True)
    else:
        print("won", flush=True)
persister.cleanup()
"""


def test_of_two_processes_that_race_on_a_save_one_wins(url: str) -> None:
    rounds = 300
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, url, me, str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for me in ("one", "other")
    ]
    winners = []
    for number in range(rounds):
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == f"{number}\n"
        start = time.monotonic() + 0.002
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"{start}\n")
        results = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
        assert sorted(results) == ["lost", "won"]
        winners.append(("one", "other")[results.index("won")])
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0
    with Persister.from_url(url) as persister:
        for number, winner in enumerate(winners):
            loaded = persister.load("p", "a", number)
            assert loaded is not None
            assert loaded["state"]["by"] == winner


WRITER = """
import os, sys
from kvpersist import Persister
from burr.core import State
_, url, number, path = sys.argv
persister = Persister.from_url(url)
acknowledged = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = int(number)
while True:
    persister.save("p", "a", number, "step", State({"n": number, "text": "x" * 20_000}), "completed")
    os.write(acknowledged, b"%d\\n" % number)
    number += 1
"""

# Imports once, and then forks a process that runs the writer for each line of its input.
FORK_SERVER = """
import os, sys
import kvpersist.persisters, kvpersist.backends.file, kvpersist.backends.sqlite
writer = compile(sys.argv[1], "writer", "exec")
while line := sys.stdin.readline():
    child = os.fork()
    if child == 0:
        sys.argv = ["writer", *line.split()]
        exec(writer, {"__name__": "__main__"})
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def test_a_killed_process_leaves_whole_records_and_all_that_were_acknowledged(url: str, tmp_path: Path) -> None:
    kills = 200
    random.seed(7)
    saved = -1
    fork_server = subprocess.Popen(
        [sys.executable, "-c", FORK_SERVER, WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert fork_server.stdin is not None
    assert fork_server.stdout is not None
    with Persister.from_url(url) as persister:
        for kill in range(kills):
            path = tmp_path / f"acknowledged-{kill}"
            fork_server.stdin.write(f"{url} {saved + 1} {path}\n")
            worker = int(fork_server.stdout.readline())
            while not path.exists() or not path.stat().st_size:
                time.sleep(0.0005)
            time.sleep(random.uniform(0, 0.01))
            os.kill(worker, signal.SIGKILL)
            assert fork_server.stdout.readline() == "gone\n"
            acknowledged = int(path.read_text().split()[-1])
            latest = persister.load("p", "a")
            assert latest is not None
            # What was acknowledged is there; one more may be, whose acknowledgement was on its way.
            saved = latest["sequence_id"]
            assert acknowledged <= saved <= acknowledged + 1
        headers = list(persister.history("p", "a"))  # decodes, and so checks, every record
        assert [header.sequence_id for header in headers] == list(range(saved, -1, -1))
        assert saved >= kills - 1
    fork_server.stdin.close()
    assert fork_server.wait(30) == 0
    fork_server.stdout.close()


@pytest.mark.parametrize("face_name", ["sync", "async"])
def test_many_threads_on_one_persister_lose_nothing(face_name: str, tmp_path: Path) -> None:
    for template in (*STORES.values(), "memory://"):
        if "durable" not in template and "file" in template:
            continue  # the same code as with durable=no, but for the waiting
        face = Face(face_name == "async")
        persister: Any = face.persister(template.format(tmp_path))
        saves = [
            ("p", f"app{writer}", number, "step", State({"n": number, "by": writer}), "completed")
            for number in range(500)
            for writer in range(8)
        ]
        assert face.at_once(persister, "save", saves) == [None] * 4000
        for writer in range(8):
            app = f"app{writer}"
            assert [header.sequence_id for header in persister.history("p", app)] == list(range(499, -1, -1))
            assert persister.load("p", app, 250)["state"]["by"] == writer
        face.close()
