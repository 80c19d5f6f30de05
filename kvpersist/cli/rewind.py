"""``kvpersist rewind APP SEQ``"""

from __future__ import annotations

import click

from kvpersist.inspection import escaped
from kvpersist.steps import run
from kvpersist.urls import redacted

from . import options


@click.command()
@options.store()
@options.partition()
@click.argument("app_id", metavar="APP")
@click.argument("sequence_id", metavar="SEQ", type=click.IntRange(0))
@options.yes
def rewind(store: options.Location, partition: str | None, app_id: str, sequence_id: int, *, yes: bool) -> None:
    """Go back to the step SEQ of APP: all newer records are set aside.  Asks first.

    What is set aside is kept, and listed by history --all.
    """
    options.confirm(
        f"Set aside all that is newer than step {sequence_id} of the app {escaped(app_id)!r} in {redacted(store.url)}?",
        yes,
    )
    with store.history() as history:
        moved = run(history.rewind(partition, app_id, sequence_id))
    click.echo(f"{moved:,} records set aside; step {sequence_id} is the newest now")
