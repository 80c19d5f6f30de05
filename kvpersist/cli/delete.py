"""``kvpersist delete APP``"""

from __future__ import annotations

import click

from kvpersist.inspection import escaped, shown_time
from kvpersist.steps import run
from kvpersist.urls import redacted

from . import options
from .history import absent


@click.command()
@options.store()
@options.partition()
@click.argument("app_id", metavar="APP")
@options.yes
def delete(store: options.Location, partition: str | None, app_id: str, *, yes: bool) -> None:
    """Remove all records of APP, those set aside among them.  Asks first."""
    with store.history(read_only=True) as history:
        newest = run(history.headers(partition, app_id)).headers
    if newest:
        at = f"the newest is step {newest[0].sequence_id} of {shown_time(newest[0].created_at)} UTC"
        options.confirm(f"Remove the app {escaped(app_id)!r} from {redacted(store.url)}? ({at})", yes)
    with store.history() as history:
        removed = run(history.delete_app(partition, app_id))
    if not removed:
        raise click.ClickException(absent(partition, app_id))
    click.echo(f"{removed:,} records removed")
