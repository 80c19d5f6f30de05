"""``python -m soak --minutes 30``: soak all stores at once, or those that are named; exit code 1 on a violation."""

from __future__ import annotations

import argparse
import json
import platform
import secrets
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import run
from .stores import FORGETFUL, STORES

DRIVERS = ("apache-burr", "redis", "psycopg", "pymongo", "s3fs", "gcsfs")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("stores", nargs="*", metavar="STORE", help=f"of {', '.join(STORES)}; all by default")
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--round", type=float, default=15, help="seconds of work between inspections (default: 15)")
    parser.add_argument("--seed", help="for the same work and the same faults in the same order; a new one by default")
    parser.add_argument("--out", type=Path, default=Path(".soak"), help="where report.json and failed rounds go")
    arguments = parser.parse_args()
    names = arguments.stores or list(STORES)
    if unknown := set(names) - set(STORES) - set(FORGETFUL):
        parser.error(f"no such store: {', '.join(sorted(unknown))}")
    seed = arguments.seed or secrets.token_hex(4)
    print(f"seed {seed}: {', '.join(names)}, {arguments.minutes:g} minutes", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    run.CONTEXT.set_forkserver_preload(["soak.run"])
    started = time.time()
    running = {}
    for name in names:
        ours, theirs = run.CONTEXT.Pipe(duplex=False)
        task = (name, arguments.minutes * 60, arguments.round, seed, arguments.out, theirs)
        process = run.CONTEXT.Process(target=run.main, args=task, name=name)
        process.start()
        theirs.close()
        running[name] = process, ours
    reports: dict[str, Any] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for name, (process, pipe) in running.items():
            try:
                reports[name] = pipe.recv()
            except EOFError:
                reports[name] = {"violations": ["its process has died"]}
            process.join()
    finally:
        for process, _ in running.values():
            if process.is_alive():  # this was interrupted: they stop their workers and servers
                process.terminate()
    result = {
        "seed": seed,
        "minutes": arguments.minutes,
        "seconds_taken": round(time.time() - started, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("kvpersist", *DRIVERS)},
        "allowed_growth": run.ALLOWED,
        "stores": reports,
    }
    (arguments.out / "report.json").write_text(json.dumps(result, indent=1))
    print(table(reports))
    for name, report in reports.items():
        for violation in report["violations"][:20]:
            print(f"VIOLATION {name}: {violation}")
    count = sum(len(report["violations"]) for report in reports.values())
    print(f"\n{count} violations; seed {seed}, {arguments.out / 'report.json'}")
    return 1 if count else 0


def table(reports: dict[str, Any]) -> str:
    """The reports as a table in Markdown."""
    lines = [
        "| store | rounds | operations | records checked | faults | no answer | refused | longest, s | violations |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, report in reports.items():
        outcomes = report.get("outcomes", {})
        cells = [
            report.get("rounds", 0),
            sum(report.get("operations", {}).values()),
            report.get("records", 0),
            sum(report.get("faults", {}).values()),
            outcomes.get("unknown", 0),
            outcomes.get("refused", 0),
            round(report.get("longest", 0)),
            len(report["violations"]),
        ]
        lines.append(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
