"""``kvpersist stats``"""

from __future__ import annotations

import dataclasses

import click
from rich.text import Text

from kvpersist.history import All
from kvpersist.inspection import shown_size, shown_time
from kvpersist.steps import run

from . import options, output


@click.command()
@options.store()
@options.apps()
@options.as_json
def stats(store: options.Location, partition: str | All | None, *, app_id: str | All, as_json: bool) -> None:
    """Count records and bytes, and tell the largest apps.  Reads everything."""
    with store.inspection() as inspection, output.progress("apps") as show:
        found = run(inspection.stats(partition, app_id, progress=lambda so_far: show(so_far.apps, None)))
    if as_json:
        told = dataclasses.asdict(found)
        for each, app in zip(told["largest"], found.largest, strict=True):
            each["per_record"] = app.per_record
        output.print_json(told)
        return
    console = output.console()
    totals = output.table("", " ", numbers=[" "])
    totals.show_header = False
    for name in ("partitions", "apps", "records", "failed", "set_aside", "parts", "unreadable"):
        totals.add_row(Text(name.replace("_", " "), style="bold"), f"{getattr(found, name):,}")
    totals.add_row(Text("stored", style="bold"), shown_size(found.size))
    console.print(totals)
    if found.largest:
        numbers = ("records", "stored", "a record")
        table = output.table("partition", "app", *numbers, "newest (UTC)", numbers=numbers)
        for app in found.largest:
            table.add_row(
                output.shown_id(app.partition_key),
                output.shown_id(app.app_id),
                f"{app.records:,}",
                shown_size(app.size),
                shown_size(app.per_record),
                shown_time(app.last or ""),
            )
        console.print(Text("\nThe largest apps", style="bold"))
        console.print(table)
