"""How things are printed: for people in tables and colours, for machines as JSON.

Whatever comes from a store is shown with its control characters escaped: it may hold what a terminal obeys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kvpersist.inspection import escaped
from kvpersist.records import Header


def console() -> Console:
    """Standard output; where it is no terminal, nothing is cut to fit one."""
    found = Console(highlight=False, markup=False, emoji=False)
    return found if found.is_terminal else Console(highlight=False, markup=False, emoji=False, width=10_000)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, to be told how many are done and how many there are; nothing without a terminal."""
    errors = Console(stderr=True)
    with Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
        disable=not errors.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: Any) -> None:
    """One value on one line."""
    click.echo(json.dumps(value, ensure_ascii=not _speaks_unicode()))


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def shown_id(text: str | None) -> Text:
    """An id; the absent and the empty one can be told from others."""
    if text is None:
        return Text("none", style="dim italic")
    return Text(escaped(text)) if text else Text('""', style="dim")


def shown_status(status: str) -> Text:
    """The status of a record."""
    return Text(status, style="green" if status == "completed" else "red")


def table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table; the columns of numbers are set to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def tree(value: Any) -> str:
    """A tree as JSON that people read, and a terminal does not obey."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "\n".join(map(escaped, text.split("\n")))


def header_json(header: Header) -> dict[str, Any]:
    """What is known of a record, with the names of its header."""
    return {
        "partition_key": header.partition_key,
        "app_id": header.app_id,
        "sequence_id": header.sequence_id,
        "position": header.position,
        "status": header.status,
        "created_at": header.created_at,
        "serializer": header.serializer,
        "compression": header.compression,
        "encryption": header.encryption,
        "version": header.version,
        "set_aside": header.set_aside,
    }
