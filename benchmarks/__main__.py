"""``python -m benchmarks``: all of them, or those named, as in ``python -m benchmarks core stores``.

What was measured goes to benchmarks/results/results.json; ``python -m benchmarks.report`` makes tables and pictures of
it.  ``--quick`` measures less of everything, to try it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time

from . import report

ALL = ["core", "serializers", "object_stores", "stores", "compaction"]


# Whether malloc gives large pieces of memory back to the system is otherwise a matter of luck, here and in the servers;
# where it does, taking them again is three quarters of the time in which PostgreSQL hands over a megabyte.
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def main() -> None:
    if not KEPT_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], {**os.environ, **KEPT_MEMORY})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}")
    parser.add_argument("--quick", action="store_true", help="measure less of the stores, and keep nothing")
    arguments = parser.parse_args()
    names = arguments.names or ALL
    about = report.machine()
    started = time.monotonic()
    for name in names:
        measure = importlib.import_module(f"benchmarks.{name}").main
        measure(quick=arguments.quick) if name == "stores" else measure()
        if not arguments.quick:
            report.write(about, names[: names.index(name) + 1])
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
