"""Timing in turn: pieces of code one after the other, A B C A B C ..., so that a machine's moods fall on all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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


Times = list[float]
"""Seconds that a call took, of each block."""


def in_turn(functions: Sequence[Callable[[], object]], *, blocks: int, calls: int) -> list[Times]:
    """The times of some functions, from blocks of calls in turn; first each is called some times for nothing."""
    for function in functions:
        for _ in range(max(1, calls // 10)):
            function()
    times: list[Times] = [[] for _ in functions]
    for _ in range(blocks):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            found.append((time.perf_counter() - start) / calls)
    return times


def ratio(a: Times, b: Times) -> Ratio:
    """One's times to another's, block by block."""
    low, median, high = statistics.quantiles([one / other for one, other in zip(a, b, strict=True)], n=4)
    return Ratio(median, low, high, statistics.median(a) * 1e6, statistics.median(b) * 1e6)


def compare(a: Callable[[], object], b: Callable[[], object], *, pairs: int = 15, calls: int = 100) -> Ratio:
    """The time of a call of `a` relative to a call of `b`."""
    return ratio(*in_turn([a, b], blocks=pairs, calls=calls))
