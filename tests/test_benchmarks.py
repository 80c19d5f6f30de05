"""The figures in the README and the documentation are those that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import pairs, report


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_the_figures_of_a_page_are_those_of_the_results(page: Path) -> None:
    text, rows = page.read_text(), report.read()
    assert report.with_figures(text, report.PAGES[page](rows)) == text, "run python -m benchmarks.report"
    # It would be noticed.
    changed = [each._replace(ratio=each.ratio * 2 + 1) for each in rows]
    assert report.with_figures(text, report.PAGES[page](changed)) != text
    digit = re.search(r"\d", text.partition(report.BEGIN)[2])
    assert digit is not None


def test_the_results_say_what_they_were_measured_on() -> None:
    results = json.loads(report.FILE.read_text())
    assert tuple(results["columns"]) == report.Row._fields
    assert {"cpu", "cores", "python", "date", "load_before"} <= results["machine"].keys()
    assert set(report.PACKAGES) == results["versions"].keys()
    assert all(each.low <= each.ratio <= each.high for each in report.read())
    stores = {each.case.partition(",")[0] for each in report.read() if each.benchmark == "stores"}
    assert stores == set(report.STORES)


def test_every_case_is_measured_against_burr() -> None:
    cases = {each.case for each in report.read() if each.benchmark == "stores" and each.b == "Burr"}
    for store in ("Redis", "PostgreSQL"):
        for face in ("sync", "async"):
            for case in report.CASES:
                for what in ("save", "load"):
                    assert f"{store}, {face}, {case}, 1 in flight, {what}" in cases


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    found = pairs.ratio([2.0, 2.0, 9.0, 2.0, 2.0], [1.0, 1.0, 1.0, 2.0, 1.0])
    assert found.median == 2
    assert found.low < 2 < found.high
    assert (found.a_us, found.b_us) == (2e6, 1e6)
    calls: list[str] = []
    times = pairs.in_turn([lambda: calls.append("a"), lambda: calls.append("b")], blocks=2, calls=2)
    assert "".join(calls) == "ab" + "aabbaabb"
    assert [len(each) for each in times] == [2, 2]
