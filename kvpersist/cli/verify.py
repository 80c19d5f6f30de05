"""``kvpersist verify URL``"""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

from kvpersist import ALL, Persister


@click.command()
@click.argument("url")
@click.option("--partition", help="Look at this partition only.")
@click.option("--app", "app_id", help="Look at this app of the partition only.")
@click.option("--namespace", help="The namespace, where the URL does not say.  [default: kvpersist]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def verify(url: str, *, partition: str | None, app_id: str | None, namespace: str | None, as_json: bool) -> None:
    """Read every record and part below the store at URL.

    Reports records that cannot be read, and parts of compact histories that are missing, broken or needed by
    nothing.  Nothing is changed.  The exit code is 1 if any record cannot be loaded.
    """
    if app_id is not None and partition is None:
        raise click.UsageError("--app needs --partition")
    with Persister.from_url(url, namespace=namespace) as persister:
        report = persister.verify(
            ALL if partition is None else partition,
            ALL if app_id is None else app_id,
        )
    if as_json:
        click.echo(json.dumps(_as_json(report)))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(f"{report.records:,} records, {report.parts:,} parts")
        for what, found in (
            ("cannot be read", report.corrupt_records),
            ("broken part", report.corrupt_parts),
            ("missing part", dict.fromkeys(sorted(report.missing_parts), "")),
            ("part that nothing needs", dict.fromkeys(sorted(report.unreachable_parts), "")),
        ):
            for key, why in found.items():
                console.print(f"{what}: {key}{why and ': '}{why}")
        console.print("all records can be loaded" if report.ok else "not all records can be loaded")
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
