"""``kvpersist export FILE``"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from kvpersist.errors import MissingExtraError
from kvpersist.history import ALL, All
from kvpersist.inspection import Inspection, escaped
from kvpersist.steps import run

from . import options, output
from .apps import every_app

BATCH = 16_000_000
"""How many bytes of states become one group of rows in a Parquet file."""


@click.command()
@options.store()
@options.apps()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--format", "kind", type=click.Choice(["jsonl", "parquet"]), help="[default: by the file's name, else jsonl]"
)
@click.option("--latest", is_flag=True, help="The newest record of each app only.")
@click.option("-a", "--all", "include_set_aside", is_flag=True, help="Also what a rewind has set aside.")
def export(
    store: options.Location,
    partition: str | All | None,
    *,
    file: Path,
    app_id: str | All,
    kind: str | None,
    latest: bool,
    include_set_aside: bool,
) -> None:
    """Write records to FILE, a row each, for DuckDB, pandas or Spark; ``-`` is standard output.

    The state is a column of JSON; in JSON Lines it is an object.  FILE appears when all is written.  Records that
    cannot be read, or opened, have no state; they are told of, and the exit code is 1.
    """
    kind = kind or ("parquet" if file.suffix == ".parquet" else "jsonl")
    rows = without = 0
    with store.inspection() as inspection, output.progress("records") as show, _writer(kind, file) as write:
        apps = every_app(inspection, partition) if app_id is ALL else [(partition, app_id)]
        for partition_key, each in apps:
            for row, problem in _rows(inspection, partition_key, each, latest, include_set_aside):
                write(row)
                rows += 1
                show(rows, None)
                if problem is not None:
                    without += 1
                    click.echo(f"no state: {escaped(problem)}", err=True)
    click.echo(f"{rows:,} records", err=True)
    if without or not rows:
        raise SystemExit(1)


def _rows(
    inspection: Inspection, partition_key: Any, app_id: str, latest: bool, include_set_aside: bool
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """An app's records as rows, newest first, and what is wrong with each."""
    after = None
    while True:
        page = run(
            inspection.headers(
                partition_key,
                app_id,
                after=after,
                limit=1 if latest else 64,
                include_set_aside=include_set_aside,
            )
        )
        for each in page.entries:
            state, problem = None, each.error
            if problem is None:
                shown = run(inspection.shown(each))
                if shown is None:
                    continue  # deleted meanwhile
                state, problem = shown.state, shown.note
            header = each.header
            yield (
                {
                    "partition_key": each.record.partition_key,
                    "app_id": each.record.app_id,
                    "sequence_id": each.record.sequence_id,
                    "position": each.record.position,
                    "status": header and header.status,
                    "created_at": header and header.created_at,
                    "serializer": header and header.serializer,
                    "set_aside": each.set_aside,
                    "bytes": each.size,
                    "state": state,
                },
                problem and f"{each.record}: {problem}",
            )
        after = page.after
        if after is None or latest:
            return


@contextlib.contextmanager
def _writer(kind: str, file: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes a row; the file is there when all went well, and else as it was before."""
    if str(file) == "-":
        if kind == "parquet":
            raise click.UsageError("Parquet needs a file")
        yield _json_lines(sys.stdout)
        return
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if kind == "parquet":
            with _parquet(unfinished) as write:
                yield write
        else:
            with unfinished.open("w", encoding="utf-8") as lines:
                yield _json_lines(lines)
        os.replace(unfinished, file)
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _json_lines(lines: TextIO) -> Callable[[dict[str, Any]], None]:
    def write(row: dict[str, Any]) -> None:
        lines.write(json.dumps(row) + "\n")

    return write


@contextlib.contextmanager
def _parquet(file: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError('Parquet needs pyarrow: pip install "kvpersist[parquet]"') from error
    schema = pa.schema(
        [
            ("partition_key", pa.string()),
            pa.field("app_id", pa.string(), nullable=False),
            pa.field("sequence_id", pa.int64(), nullable=False),
            pa.field("position", pa.string(), nullable=False),
            ("status", pa.string()),
            ("created_at", pa.timestamp("us", tz="UTC")),
            ("serializer", pa.string()),
            pa.field("set_aside", pa.bool_(), nullable=False),
            pa.field("bytes", pa.int64(), nullable=False),
            ("state", pa.string()),
        ]
    )
    waiting: list[dict[str, Any]] = []
    size = 0

    def flush() -> None:
        nonlocal size
        if waiting:
            columns = {name: [row[name] for row in waiting] for name in schema.names}
            columns["created_at"] = pa.array(columns["created_at"], pa.string()).cast(pa.timestamp("us", tz="UTC"))
            writer.write_table(pa.table(columns, schema=schema))
            waiting.clear()
            size = 0

    def write(row: dict[str, Any]) -> None:
        nonlocal size
        state = None if row["state"] is None else json.dumps(row["state"])
        waiting.append({**row, "state": state})
        size += len(state or "")
        if size >= BATCH or len(waiting) >= 10_000:
            flush()

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield write
        flush()
