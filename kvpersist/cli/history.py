"""``kvpersist history APP``"""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from kvpersist.inspection import Listed, escaped, shown_size, shown_time
from kvpersist.steps import run

from . import options, output

COLUMNS = ("step", "position", "status", "time (UTC)", "stored", "serializer", "")


@click.command()
@options.store()
@options.partition()
@click.argument("app_id", metavar="APP")
@click.option("-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="How many records.")
@click.option("--before", type=click.IntRange(1), metavar="SEQ", help="Those before this sequence id.")
@click.option("-a", "--all", "include_set_aside", is_flag=True, help="Also those that a rewind has set aside.")
@options.as_json
def history(
    store: options.Location,
    partition: str | None,
    app_id: str,
    *,
    limit: int,
    before: int | None,
    include_set_aside: bool,
    as_json: bool,
) -> None:
    """List the records of APP, newest first."""
    with store.inspection() as inspection:
        page = run(
            inspection.headers(
                partition, app_id, before_sequence_id=before, limit=limit, include_set_aside=include_set_aside
            )
        )
    if not page.entries:
        raise click.ClickException(absent(partition, app_id))
    if as_json:
        for each in page.entries:
            output.print_json(listed_json(each))
        return
    table = output.table(*COLUMNS, numbers=["step", "stored"])
    for each in page.entries:
        add(table, each)
    output.console().print(table)
    if page.after is not None:
        click.echo(f"and older ones: --before {page.entries[-1].record.sequence_id}, or a higher --limit", err=True)


def absent(partition: str | None, app_id: str, at: str = "") -> str:
    """What to say of an app that has no record, or none at some place."""
    where = "without a partition key" if partition is None else f"in the partition {escaped(partition)!r}"
    return f"no record{at} of the app {escaped(app_id)!r} {where}; see kvpersist apps, and --partition"


def add(table: Table, listed: Listed) -> None:
    """Add a record to a table of `COLUMNS`."""
    header = listed.header
    table.add_row(
        str(listed.record.sequence_id),
        output.shown_id(listed.record.position),
        output.shown_status(header.status) if header else Text("cannot be read", style="red"),
        shown_time(header.created_at) if header else "",
        shown_size(listed.size),
        escaped(header.serializer) if header else "",
        Text("set aside", style="dim") if listed.set_aside else "",
    )


def listed_json(listed: Listed) -> dict[str, Any]:
    """A record as one object: its header, or why it cannot be read, and what it takes."""
    told: dict[str, Any]
    if listed.header is None:
        told = {**listed.record._asdict(), "error": listed.error, "set_aside": listed.set_aside}
    else:
        told = output.header_json(listed.header)
    return {**told, "key": listed.key, "bytes": listed.size}
