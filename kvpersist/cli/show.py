"""``kvpersist show APP [SEQ]``"""

from __future__ import annotations

import click
from rich.text import Text

from kvpersist.inspection import Inspection, Shown, escaped, shown_size, shown_time
from kvpersist.steps import run

from . import options, output
from .history import absent


@click.command()
@options.store()
@options.partition()
@click.argument("app_id", metavar="APP")
@click.argument("sequence_id", metavar="[SEQ]", type=click.IntRange(0), required=False)
@click.option("--position", help="The one of this position, where a sequence id has several.")
@options.as_json
def show(
    store: options.Location,
    partition: str | None,
    app_id: str,
    *,
    sequence_id: int | None,
    position: str | None,
    as_json: bool,
) -> None:
    """Show a record of APP with its state: the one at the sequence id SEQ, or the newest.

    A value that JSON has no type for is shown as it is stored, as in {"$kv": "datetime", "value": ...}.  Nothing is
    built or run: pickles are told of, and not opened.
    """
    with store.inspection() as inspection:
        shown = found(inspection, partition, app_id, sequence_id, position)
    header = shown.header
    if as_json:
        told = {**output.header_json(header), "key": shown.key, "bytes": shown.size}
        output.print_json({**told, "state": shown.state, "note": shown.note})
    else:
        console = output.console()
        table = output.table("", "")
        table.show_header = False
        for name, value in (
            ("partition", output.shown_id(header.partition_key)),
            ("app", output.shown_id(header.app_id)),
            ("step", Text(str(header.sequence_id))),
            ("position", output.shown_id(header.position)),
            ("status", output.shown_status(header.status)),
            ("time (UTC)", Text(shown_time(header.created_at))),
            ("stored", Text(f"{shown_size(shown.size)}, {escaped(header.serializer)}")),
        ):
            table.add_row(Text(name, style="bold"), value)
        console.print(table)
        if shown.note is None:
            console.print(output.tree(shown.state), soft_wrap=True)
        else:
            console.print(Text(escaped(shown.note), style="yellow"), soft_wrap=True)
    if shown.note is not None:
        raise SystemExit(1)


def found(
    inspection: Inspection,
    partition: str | None,
    app_id: str,
    sequence_id: int | None,
    position: str | None = None,
) -> Shown:
    """A record, or an error that says what there is not."""
    shown = run(inspection.record(partition, app_id, sequence_id, position))
    if shown is None:
        at = "" if sequence_id is None else f" at the sequence id {sequence_id}"
        at += "" if position is None else f" and the position {escaped(position)!r}"
        raise click.ClickException(absent(partition, app_id, at))
    return shown
