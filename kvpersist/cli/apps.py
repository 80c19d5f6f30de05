"""``kvpersist apps``"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import click

from kvpersist.history import ALL, All
from kvpersist.inspection import Inspection, shown_time
from kvpersist.steps import run

from . import options, output

PAGE = 100
"""How many apps are a table."""


@click.command()
@options.store()
@options.partition(every=True)
@click.option("--prefix", default="", help="Only the apps whose id starts with this.")
@click.option("-l", "--long", is_flag=True, help="With the newest record of each: one read an app more.")
@options.as_json
def apps(store: options.Location, partition: str | All | None, *, prefix: str, long: bool, as_json: bool) -> None:
    """List the apps, by partition."""
    columns = ["partition", "app", *(["newest", "position", "status", "time (UTC)"] if long else [])]
    found = 0
    with store.inspection() as inspection:
        listed = every_app(inspection, partition, prefix)
        while page := [*itertools.islice(listed, PAGE)]:
            table = output.table(*columns, numbers=["newest"])
            table.show_header = not found  # the first
            for partition_key, app_id in page:
                found += 1
                newest = None
                if long:
                    records = run(inspection.headers(partition_key, app_id, limit=1)).entries
                    newest = records[0] if records else None
                header = newest and newest.header
                if as_json:
                    named = {"partition_key": partition_key, "app_id": app_id}
                    output.print_json({**named, **({"newest": header and output.header_json(header)} if long else {})})
                    continue
                row = [output.shown_id(partition_key), output.shown_id(app_id)]
                if header:
                    row += [
                        output.shown_id(str(header.sequence_id)),
                        output.shown_id(header.position),
                        output.shown_status(header.status),
                        output.shown_id(shown_time(header.created_at)),
                    ]
                elif newest:
                    row += [output.shown_id(str(newest.record.sequence_id)), output.shown_id("cannot be read")]
                table.add_row(*row)
            if not as_json and table.row_count:
                output.console().print(table)
    if not found:
        click.echo("no apps", err=True)
        raise SystemExit(1)


def every_app(
    inspection: Inspection, partition: str | All | None, prefix: str = ""
) -> Iterator[tuple[str | None, str]]:
    """The apps of a partition or of all, each with its partition key, in key order."""
    after = None
    if partition is ALL:
        while True:
            page = run(inspection.partitions(after=after))
            for each in page.ids:
                yield from every_app(inspection, each, prefix)
            after = page.after
            if after is None:
                return
    while True:
        page = run(inspection.apps(partition, after=after, prefix=prefix))
        yield from ((partition, each) for each in page.ids if each is not None)
        after = page.after
        if after is None:
            return
