"""``kvpersist prune``"""

from __future__ import annotations

import datetime as dt
import re

import click

from kvpersist.history import ALL, All
from kvpersist.inspection import escaped
from kvpersist.steps import run
from kvpersist.urls import redacted

from . import options, output

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class _Age(click.ParamType[dt.timedelta | dt.datetime]):
    name = "age"

    def convert(
        self, value: str | dt.timedelta | dt.datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.timedelta | dt.datetime:
        if not isinstance(value, str):
            return value
        written = re.fullmatch(r"([0-9]{1,6})([smhdw])", value)
        if written:
            return dt.timedelta(**{UNITS[written[2]]: int(written[1])})
        try:
            time = dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a span, such as 30d or 12h, nor a date, such as 2026-11-24", param, ctx)
        return time if time.tzinfo else time.replace(tzinfo=dt.timezone.utc)


@click.command()
@options.store()
@options.apps()
@click.option("--keep-last", type=click.IntRange(1), metavar="N", help="Keep the newest N completed records of an app.")
@click.option("--older-than", type=_Age(), help="Remove what is older: a span (30d, 12h) or a date in UTC.")
@click.option("--include-set-aside", is_flag=True, help="Also what a rewind has set aside.")
@options.yes
def prune(
    store: options.Location,
    partition: str | All | None,
    *,
    app_id: str | All,
    keep_last: int | None,
    older_than: dt.timedelta | dt.datetime | None,
    include_set_aside: bool,
    yes: bool,
) -> None:
    """Remove old records.  Asks first.

    The newest completed record of an app is always kept.  Stop it at any time, and run it again to go on.
    """
    if keep_last is None and older_than is None:
        raise click.UsageError("say what may go: --keep-last, --older-than or both")
    where = "all partitions" if partition is ALL else "this partition"
    if app_id is not ALL:
        where = f"the app {escaped(app_id)!r}"
    options.confirm(f"Remove old records of {where} from {redacted(store.url)}?", yes)
    with store.history() as history, output.progress("apps") as show:
        removed = run(
            history.prune(
                partition,
                app_id,
                keep_last=keep_last,
                older_than=older_than,
                include_set_aside=include_set_aside,
                progress=show,
            )
        )
    click.echo(f"{removed:,} records removed")
