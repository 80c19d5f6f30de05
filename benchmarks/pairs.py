"""Timing in pairs: two pieces of code in turn, A B A B ..., so that a machine's moods fall on both."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple


class Ratio(NamedTuple):
    """How much longer A takes than B: the median of the pairs, and the spread of its middle half."""

    median: float
    low: float
    high: float
    a_us: float
    b_us: float

    def __str__(self) -> str:
        return f"{self.median:6.2f} ({self.low:.2f} to {self.high:.2f})  {self.a_us:9.1f} us : {self.b_us:9.1f} us"


def compare(a: Callable[[], object], b: Callable[[], object], *, pairs: int = 15, calls: int = 100) -> Ratio:
    """The time of a call of `a` relative to a call of `b`, from blocks of calls in turn."""
    for _ in range(max(1, calls // 10)):
        a(), b()
    times = []
    for _ in range(pairs):
        start = time.perf_counter()
        for _ in range(calls):
            a()
        middle = time.perf_counter()
        for _ in range(calls):
            b()
        times.append(((middle - start) / calls, (time.perf_counter() - middle) / calls))
    ratios = [one / other for one, other in times]
    low, median, high = statistics.quantiles(ratios, n=4)
    a_us, b_us = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return Ratio(median, low, high, a_us, b_us)


def row(what: str, ratio: Ratio, aim: float | None = None) -> None:
    """Print a line of a table: what, the ratio, the absolute times, and the aim with whether it was reached."""
    verdict = "" if aim is None else f"   aim {aim:g}: {'reached' if ratio.median <= aim else 'MISSED'}"
    print(f"{what:58} {ratio}{verdict}", flush=True)


def heading(title: str, *packages: str) -> None:
    """Print what the figures below were measured on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("kvpersist", *packages))
    print(f"\n{title}\n  Python {sys.version.split()[0]}, {platform.machine()}, {versions}")
    print("  ratio of A to B: median of the pairs (middle half), then the times of A and B\n")
