"""``kvpersist diff APP A B``"""

from __future__ import annotations

import json
from typing import Any

import click
from rich.text import Text

from kvpersist import inspection as inspecting
from kvpersist.inspection import escaped

from . import options, output
from .show import found

LONGEST = 200
"""How much of a value is shown, in characters; ``--full`` shows all."""
SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


@click.command()
@options.store()
@options.partition()
@click.argument("app_id", metavar="APP")
@click.argument("before", metavar="A", type=click.IntRange(0))
@click.argument("after", metavar="B", type=click.IntRange(0))
@click.option("--full", is_flag=True, help=f"Show values whole, not their first {LONGEST} characters.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if there is a difference.")
@options.as_json
def diff(
    store: options.Location,
    partition: str | None,
    app_id: str,
    *,
    before: int,
    after: int,
    full: bool,
    exit_code: bool,
    as_json: bool,
) -> None:
    """Show what differs in the state of APP between the steps A and B.

    Types count: 1, 1.0 and true are three values.
    """
    with store.inspection() as inspection:
        records = [found(inspection, partition, app_id, each) for each in (before, after)]
    for record in records:
        if record.note is not None:
            raise click.ClickException(escaped(record.note))
    changes = inspecting.diff(records[0].state, records[1].state)
    if as_json:
        for change in changes:
            output.print_json(change._asdict())
    else:
        console = output.console()
        for change in changes:
            sign, style = SIGNS[change.kind]
            line = Text(f"{sign} {escaped(change.path)}", style=style)
            values = [change.before, change.after]
            shown = values[:1] if change.kind == "removed" else values[1:] if change.kind == "added" else values
            line.append(f": {' -> '.join(_shown(value, full) for value in shown)}", style="default")
            console.print(line, soft_wrap=True)
        if not changes:
            click.echo("no difference", err=True)
    if changes and exit_code:
        raise SystemExit(1)


def _shown(value: Any, full: bool) -> str:
    text = escaped(json.dumps(value, ensure_ascii=False))
    if full or len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}... ({len(text):,} characters)"
