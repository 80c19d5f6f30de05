"""``kvpersist stats``"""

from __future__ import annotations

import dataclasses

import click
from rich.text import Text

from kvpersist.history import ALL, All
from kvpersist.inspection import Stats
from kvpersist.steps import run

from . import options, output


@click.command()
@options.store()
@options.partition(every=True)
@click.option("--app", "app_id", help="This app of the partition only.")
@options.as_json
def stats(store: options.Location, partition: str | All | None, *, app_id: str | None, as_json: bool) -> None:
    """Count records and bytes, and tell the largest apps.  Reads everything."""
    if app_id is not None and partition is ALL:
        raise click.UsageError("--app needs --partition or --no-partition")
    with store.inspection() as inspection, output.progress("apps") as bar:
        task = bar.add_task("apps", total=None)

        def show(so_far: Stats) -> None:
            bar.update(task, completed=so_far.apps)

        found = run(inspection.stats(partition, ALL if app_id is None else app_id, progress=show))
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
    totals.add_row(Text("stored", style="bold"), output.shown_size(found.size))
    console.print(totals)
    if found.largest:
        numbers = ("records", "stored", "a record")
        table = output.table("partition", "app", *numbers, "newest (UTC)", numbers=numbers)
        for app in found.largest:
            table.add_row(
                output.shown_id(app.partition_key),
                output.shown_id(app.app_id),
                f"{app.records:,}",
                output.shown_size(app.size),
                output.shown_size(app.per_record),
                output.shown_time(app.last or ""),
            )
        console.print(Text("\nThe largest apps", style="bold"))
        console.print(table)
