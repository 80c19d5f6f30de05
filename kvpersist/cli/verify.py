"""``kvpersist verify``"""

from __future__ import annotations

from typing import Any

import click

from kvpersist.history import All
from kvpersist.inspection import escaped
from kvpersist.steps import run

from . import options, output


@click.command()
@options.store(argument=True)
@options.apps()
@options.as_json
def verify(store: options.Location, partition: str | All | None, *, app_id: str | All, as_json: bool) -> None:
    """Read every record and part below the store at URL.

    Reports records that cannot be read, and parts of compact histories that are missing, broken or needed by
    nothing.  Nothing is changed, and no state is built: checksums, signatures, encryption and compression are checked.
    The exit code is 1 if any record cannot be read.
    """
    with store.history(read_only=True) as history, output.progress("apps") as show:
        report = run(
            history.verify(
                partition,
                app_id,
                build=False,
                progress=show,
            )
        )
    if as_json:
        output.print_json(_as_json(report))
    else:
        click.echo(f"{report.records:,} records, {report.parts:,} parts")
        for what, found in (
            ("cannot be read", report.corrupt_records),
            ("broken part", report.corrupt_parts),
            ("missing part", dict.fromkeys(sorted(report.missing_parts), "")),
            ("part that nothing needs", dict.fromkeys(sorted(report.unreachable_parts), "")),
        ):
            for key, why in found.items():
                click.echo(f"{what}: {escaped(key)}{why and ': '}{escaped(why)}")
        click.echo("all records can be read" if report.ok else "not all records can be read")
    if not report.ok:
        raise SystemExit(1)


def _as_json(report: Any) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "records": report.records,
        "parts": report.parts,
        "corrupt_records": report.corrupt_records,
        "missing_parts": sorted(report.missing_parts),
        "corrupt_parts": report.corrupt_parts,
        "unreachable_parts": sorted(report.unreachable_parts),
    }
