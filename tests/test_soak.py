"""The soak: that its model rejects what must not be, and a small one of every store."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soak.checker import Event, Operation, after, growth, misfit, violations
from soak.stores import STORES
from soak.worker import Log, read_log

ONE, OTHER = ("one", "completed"), ("other", "completed")
FAILED = ("tried", "failed")


def save(start: float, end: float, content: Any = ONE, seq: int = 1, outcome: str = "ok", **more: Any) -> Event:
    return Event("save", "a", start, math.inf if outcome == "unknown" else end, outcome, seq, content, **more)


def load(start: float, end: float, result: Any, seq: int = 1) -> Event:
    return Event("load", "a", start, end, "ok", seq, result=result)


def latest(start: float, end: float, result: Any) -> Event:
    return Event("latest", "a", start, end, "ok", result=result)


def did(op: str, start: float, end: float, result: Any = None, outcome: str = "ok", **more: Any) -> Event:
    app = "" if op in ("list", "copy") else "a"
    return Event(op, app, start, math.inf if outcome == "unknown" else end, outcome, result=result, **more)


GOOD: dict[str, list[Event]] = {
    "nothing": [],
    "saved and loaded": [save(0, 1), load(2, 3, ONE), latest(4, 5, (1, ONE))],
    "a load beside its save may see it or not": [save(0, 9), load(1, 2, None), load(3, 4, ONE)],
    "of two that race one wins": [save(0, 5), save(1, 4, OTHER, outcome="refused"), load(6, 7, ONE)],
    "the same again": [save(0, 1), save(2, 3), load(4, 5, ONE)],
    "a failed one gives way": [save(0, 1, FAILED), load(2, 3, FAILED), save(4, 5), load(6, 7, ONE)],
    "latest passes over a failed one": [save(0, 1), save(2, 3, FAILED, seq=2), latest(4, 5, (1, ONE))],
    "no answer, and it was never there": [save(0, 0, outcome="unknown"), load(1, 2, None), load(90, 91, None)],
    "no answer, and it came late": [save(0, 0, outcome="unknown"), load(1, 2, None), load(90, 91, ONE)],
    "no answer, and a retry": [save(0, 0, outcome="unknown"), save(2, 3), load(4, 5, ONE)],
    "no answer, and then refused": [
        save(0, 0, outcome="unknown"),
        save(2, 3, OTHER, outcome="refused"),
        load(4, 5, ONE),
    ],
    "overwritten": [save(0, 1), save(2, 3, OTHER, mode="overwrite"), load(4, 5, OTHER)],
    "rewound": [
        save(0, 1),
        save(2, 3, OTHER, seq=2),
        did("rewind", 4, 5, seq=1),
        latest(6, 7, (1, ONE)),
        load(8, 9, None, seq=2),
        save(10, 11, ("new", "completed"), seq=2),
        latest(12, 13, (2, ("new", "completed"))),
        did("aside", 14, 15, [[1, "10:00"], [2, "10:01"], [2, "10:02"]]),
    ],
    "seen while it is being rewound": [
        save(0, 1),
        save(2, 3, OTHER, seq=2),
        did("rewind", 4, 9, seq=1),
        latest(5, 6, (2, OTHER)),
        latest(7, 8, (1, ONE)),
    ],
    "a rewind without an answer": [
        save(0, 1),
        save(2, 3, OTHER, seq=2),
        did("rewind", 4, 0, outcome="unknown", seq=1),
        load(5, 6, OTHER, seq=2),
        load(7, 8, None, seq=2),
    ],
    "rewound by a save": [
        save(0, 1),
        save(2, 3, OTHER, seq=2),
        save(4, 5, ("new", "completed"), mode="rewind"),
        load(6, 7, None, seq=2),
        latest(6, 7, (1, ("new", "completed"))),
    ],
    "pruned": [
        save(0, 1),
        save(2, 3, OTHER, seq=2),
        did("prune", 4, 5, keep=1),
        load(6, 7, None),
        load(6, 7, OTHER, seq=2),
    ],
    "a prune counts completed ones only": [
        save(0, 1),
        save(2, 3, FAILED, seq=2),
        did("prune", 4, 5, keep=1),
        load(6, 7, ONE),
    ],
    "a copy": [save(0, 1), did("copy", 2, 3, {"a": {1: ONE}}), did("copy", 4, 5, {"a": {1: ONE}})],
    "a copy beside a save": [save(0, 5), did("copy", 2, 3, {})],
    "listed": [save(0, 1), did("history", 2, 3, {1: "completed"}), did("list", 2, 3, ["a"])],
    "deleted": [save(0, 1), did("delete", 2, 3), latest(4, 5, None), did("list", 4, 5, [])],
}

BAD: dict[str, tuple[list[Event], str]] = {
    "a lost update": ([save(0, 1), load(2, 3, None)], "read None"),
    "a lost update, by the latest": ([save(0, 1), latest(2, 3, None)], "passed over"),
    "a lost update, by a listing": ([save(0, 1), did("history", 2, 3, {})], "read None"),
    "a lost update, by a copy": ([save(0, 1), did("copy", 2, 3, {})], "read None"),
    "a stale read": (
        [save(0, 1), save(2, 3, OTHER, mode="overwrite"), load(4, 5, ONE)],
        r"read \('one', 'completed'\)",
    ),
    "the latest goes back in time": (
        [save(0, 1), save(2, 3, OTHER, seq=2), latest(4, 5, (2, OTHER)), latest(6, 7, (1, ONE))],
        "sequence id 2: passed over",
    ),
    "back in time, though nobody had the answer": (
        [save(0, 0, outcome="unknown"), load(1, 2, ONE), load(3, 4, None)],
        "read None",
    ),
    "two winners": ([save(0, 5), save(1, 4, OTHER)], "save"),
    "two winners, one behind the other": ([save(0, 1), save(2, 3, OTHER)], "save"),
    "two readers disagree": (
        [save(0, 0, outcome="unknown"), save(0, 0, OTHER, outcome="unknown"), load(1, 2, ONE), load(3, 4, OTHER)],
        "read",
    ),
    "refused without a reason": ([save(0, 1, outcome="refused"), load(2, 3, None)], "refused"),
    "refused for a failed one": ([save(0, 1, FAILED), save(2, 3, outcome="refused")], "refused"),
    "refused for its own retry": ([save(0, 1), save(2, 3, outcome="refused")], "refused"),
    "a resurrected record": (
        [save(0, 1), save(2, 3, OTHER, seq=2), did("rewind", 4, 5, seq=1), load(6, 7, OTHER, seq=2)],
        "sequence id 2: read",
    ),
    "resurrected after a deletion": ([save(0, 1), did("delete", 2, 3), latest(4, 5, (1, ONE))], "read"),
    "a rewind that removes what it went back to": (
        [save(0, 1), save(2, 3, OTHER, seq=2), did("rewind", 4, 5, seq=1), load(6, 7, None)],
        "sequence id 1: read None",
    ),
    "a rewind that loses what it set aside": (
        [save(0, 1), save(2, 3, OTHER, seq=2), did("rewind", 4, 5, seq=1), did("aside", 6, 7, [[1, "10:00"]])],
        "1 states were saved, 0 are kept",
    ),
    "nothing to rewind to, though there is": ([save(0, 1), did("rewind", 2, 3, outcome="absent", seq=1)], "read None"),
    "a prune that keeps too much": (
        [save(0, 1), save(2, 3, OTHER, seq=2), did("prune", 4, 5, keep=1), load(6, 7, ONE)],
        "sequence id 1: read",
    ),
    "a prune that takes too much": (
        [save(0, 1), save(2, 3, OTHER, seq=2), did("prune", 4, 5, keep=2), load(6, 7, None)],
        "sequence id 1: read None",
    ),
    "a failed record called completed": ([save(0, 1, FAILED), did("history", 2, 3, {1: "completed"})], "listed"),
    "the latest passes over a completed one": ([save(0, 1), save(2, 3, seq=2), latest(4, 5, (1, ONE))], "passed over"),
    "an app that is not listed": ([save(0, 1), did("list", 2, 3, [])], "a is missing"),
    "an app that nobody made": ([did("list", 2, 3, ["b"])], "b was never saved"),
    "a record that nobody made": ([latest(2, 3, (7, ONE))], "saved by nobody"),
    "an error that must not be": ([did("load", 2, 3, outcome="broken", problem="boom")], "boom"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_is_accepted(name: str) -> None:
    assert violations(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_rejected(name: str) -> None:
    events, what = BAD[name]
    found = violations(events)
    assert len(found) >= 1
    assert any(re.search(what, each) for each in found), found
    for turned in (events[::-1], sorted(events, key=lambda each: each.end)):  # in whatever order it was logged
        assert violations(turned)


CONTENTS = [ONE, OTHER, FAILED]
OPERATIONS = st.builds(
    Operation,
    st.sampled_from(["save", "overwrite", "refused", "remove", "read", "passed over", "listed"]),
    st.sampled_from([*CONTENTS, None]),
    st.integers(0, 8),
    st.sampled_from([1, 2, 3, 4, math.inf]),
).map(
    lambda each: each._replace(
        end=each.start + each.end, content=each.content or (ONE if each.kind != "read" else None)
    )
)


def in_some_order(operations: list[Operation]) -> bool:
    """Whether all operations fit, by trying every order of every choice of those that may not have happened."""
    certain = [each for each in operations if each.certain]
    maybe = [each for each in operations if not each.certain]
    for count in range(len(maybe) + 1):
        for some in itertools.combinations(maybe, count):
            for order in itertools.permutations([*certain, *some]):
                if any(later.end < earlier.start for earlier, later in itertools.combinations(order, 2)):
                    continue
                state = None
                for each in order:
                    following = after(state, each)
                    if following is None:
                        break
                    (state,) = following
                else:
                    return True
    return False


@settings(max_examples=500, deadline=None)
@given(st.lists(OPERATIONS, max_size=5))
def test_the_checker_says_what_trying_every_order_says(operations: list[Operation]) -> None:
    assert (misfit(operations) is None) is in_some_order(operations)


def test_the_log_of_a_killed_worker_says_what_it_was_about_to_do(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.end(log.begin(save(0, 0)), "ok", None, "")
    log.end(log.begin(did("history", 0, 0)), "ok", {1: "completed"}, "")
    log.end(log.begin(latest(0, 0, None)), "ok", (1, ONE), "")
    log.begin(save(0, 0, OTHER, seq=2))
    with (tmp_path / "log").open("ab") as file:
        file.write(b'{"number": 9, "op": "sa')
    events = read_log(tmp_path / "log")
    assert [each.outcome for each in events] == ["ok", "ok", "ok", "unknown"]
    assert [each.content for each in events] == [ONE, None, None, OTHER]
    assert events[1].result == {1: "completed"}
    assert events[2].result == (1, ONE)
    assert events[3].end == math.inf
    assert violations(events) == []


def test_growth() -> None:
    assert growth([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) is None  # too few to say
    assert growth([0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7]) == 0  # it warms up first
    assert growth([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]) == 6
    assert growth([5, 5, 5, 90, 5, 5, 5, 5, 5, 5, 90, 5]) == 0  # one that stands out is none


def soak(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "soak", "--out", str(folder), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return done.returncode, json.loads((folder / "report.json").read_text())["stores"], done.stdout + done.stderr


def test_a_small_soak_of_every_store(tmp_path: Path) -> None:
    code, stores, text = soak(tmp_path, "--minutes", "0.1", "--round", "6")
    assert code == 0, text
    assert list(stores) == list(STORES)
    for name, report in stores.items():
        assert report["violations"] == []
        for operation in ("save", "load", "latest", "history", "list", "aside", "verify", "copy", "delete"):
            assert report["operations"][operation] > 0, name
        assert report["records"] > 0
        assert name == "memory" or report["faults"], name


def test_a_soak_of_a_store_that_forgets_fails(tmp_path: Path) -> None:
    # So long that each kind of fault comes at least once, in whatever order.
    code, stores, text = soak(tmp_path, "forgetful", "--minutes", "0.25", "--round", "15")
    assert code == 1, text
    assert any("passed over" in each or "read None" in each for each in stores["forgetful"]["violations"])
    assert (tmp_path / "forgetful-round-0").is_dir()
