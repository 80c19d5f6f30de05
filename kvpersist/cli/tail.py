"""``kvpersist tail APP``"""

from __future__ import annotations

import time

import click

from kvpersist.errors import StoreUnavailableError
from kvpersist.inspection import Inspection, Listed
from kvpersist.steps import run

from . import options, output
from .history import COLUMNS, add, listed_json

PAGE = 20
"""How many records are looked at in one go."""


@click.command()
@options.store()
@options.partition()
@click.argument("app_id", metavar="APP")
@click.option("-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="Begin with this many.")
@click.option("--interval", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Seconds between looks.")
@options.as_json
def tail(
    store: options.Location, partition: str | None, app_id: str, *, lines: int, interval: float, as_json: bool
) -> None:
    """Show the records of APP as they come, until Ctrl-C.

    An app that has none yet is waited for, and so is a store that is away.
    """
    shown: dict[str, str | None] = {}  # the newest records, and when they were made
    oldest = ""  # what sorts behind this key was there before, and is not told of
    begun = away = False
    with store.inspection() as inspection:
        try:
            while True:
                try:
                    if begun:
                        found = _new(inspection, partition, app_id, shown, oldest)
                    else:
                        found = run(inspection.headers(partition, app_id, limit=max(lines, 1))).entries
                        oldest = found[-1].key if found else ""
                except StoreUnavailableError as error:
                    if not begun:
                        raise  # it was never there: the URL may be wrong
                    if not away:
                        click.echo(f"{error}; waiting", err=True)
                    away = True
                else:
                    away = False
                    _print(found[:lines] if not begun else found, as_json)
                    shown.update((each.key, each.header and each.header.created_at) for each in reversed(found))
                    for key in [*shown][: -10 * PAGE]:
                        del shown[key]
                    begun = True
                time.sleep(interval)
        except KeyboardInterrupt:
            return


def _new(
    inspection: Inspection, partition: str | None, app_id: str, known: dict[str, str | None], oldest: str
) -> list[Listed]:
    """The records that are not known, newest first."""
    found: list[Listed] = []
    after = None
    while True:
        page = run(inspection.headers(partition, app_id, after=after, limit=PAGE))
        new = [
            each
            for each in page.entries
            if (each.key, each.header and each.header.created_at) not in known.items()
            and (not oldest or each.key <= oldest)
        ]
        found += new
        after = page.after
        if after is None or len(new) < len(page.entries):
            return found


def _print(found: list[Listed], as_json: bool) -> None:
    if as_json:
        for each in reversed(found):
            output.print_json(listed_json(each))
    elif found:
        table = output.table(*COLUMNS, numbers=["step", "stored"])
        table.show_header = False
        for column, width in zip(table.columns, (8, 20, 9, 23, 9), strict=False):
            column.min_width = width  # the same from one look to the next
        for each in reversed(found):
            add(table, each)
        output.console().print(table)
