"""``kvpersist copy FROM TO``"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from kvpersist import ALL
from kvpersist.copying import CopyReport
from kvpersist.copying import copy as copy_histories

LINE_EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""


class _JSONObject(click.ParamType[dict[str, Any]]):
    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            parsed = json.loads(value)
        except ValueError as error:
            self.fail(f"is no JSON: {error}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail("is no JSON object", param, ctx)
        return parsed


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--partition", help="Carry this partition only.")
@click.option("--no-partition", is_flag=True, help="Carry only the apps that have no partition key.")
@click.option("--namespace", help="The namespace in FROM, where its URL does not say.  [default: kvpersist]")
@click.option("--target-namespace", help="The namespace in TO, if it is another.")
@click.option("--dry-run", is_flag=True, help="Look at everything, write nothing.")
@click.option(
    "--in-flight", type=click.IntRange(1), default=32, show_default=True, help="Records on their way at once."
)
@click.option("--serde-kwargs", type=_JSONObject(), help="How states of Burr are written.")
@click.option("--source-options", type=_JSONObject(), help="Options of FROM that do not stand in its URL.")
@click.option("--target-options", type=_JSONObject(), help="Options of TO that do not stand in its URL.")
@click.option("--import", "modules", multiple=True, metavar="MODULE", help="Import what registers types with Burr.")
def copy(
    source: str,
    target: str,
    *,
    partition: str | None,
    no_partition: bool,
    namespace: str | None,
    target_namespace: str | None,
    dry_run: bool,
    in_flight: int,
    serde_kwargs: dict[str, Any] | None,
    source_options: dict[str, Any] | None,
    target_options: dict[str, Any] | None,
    modules: tuple[str, ...],
) -> None:
    """Carry histories from the store at the URL FROM to the one at TO.

    FROM may also be what Burr's own persisters have written: burr+sqlite:///state.db?table=burr_state,
    burr+postgresql://..., burr+redis://..., burr+mongodb://... or burr+tracking:///home/me/.burr/project.

    Stop it at any time and run it again: what is in TO already is compared, and not written.  FROM is never
    changed.  The exit code is 1 if anything could not be carried, or if there was nothing.
    """
    if no_partition and partition is not None:
        raise click.UsageError("--partition and --no-partition exclude each other")
    sys.path.insert(0, os.getcwd())
    for module in modules:
        import_module(module)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _Display(console) as display:
        report = copy_histories(
            source,
            target,
            partition_key=None if no_partition else ALL if partition is None else partition,
            namespace=namespace,
            target_namespace=target_namespace,
            serde_kwargs=serde_kwargs,
            source_options=source_options,
            target_options=target_options,
            in_flight=in_flight,
            dry_run=dry_run,
            progress=display.show,
        )
    for what, why in report.not_carried:
        click.echo(f"not carried: {what}: {why}", err=True)
    if report.failed > len(report.not_carried):
        click.echo(f"not carried: {report.failed - len(report.not_carried):,} more", err=True)
    click.echo(_summary(report))
    if not report.found:
        click.echo("nothing was found in this namespace and partition of FROM", err=True)
    if report.failed or not report.found:
        sys.exit(1)


def _summary(report: CopyReport) -> str:
    verb = "would be carried" if report.dry_run else "carried"
    parts = [f"{report.carried:,} records {verb} ({report.bytes / 1e6:,.1f} MB)"]
    parts.append(f"{report.already_there:,} already there")
    parts.append(f"{report.failed:,} not carried")
    if report.only_in_target:
        parts.append(f"{report.only_in_target:,} keys only in TO")
    return f"{', '.join(parts)}; {report.seconds:.1f} s"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


class _Display:
    """A bar on a terminal; lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = (
            Progress(
                TextColumn("copying"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> _Display:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("copy", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, report: CopyReport, total: int | None) -> None:
        """Show how far it is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=report.found, total=total)
            return
        now = time.monotonic()
        if now - self._shown < LINE_EVERY:
            return
        self._shown = now
        rate = report.found / (now - self._started)
        line = f"{report.found:,} of {total or '?':,} records" if total else f"{report.found:,} records"
        left = f", {(total - report.found) / rate:,.0f} s left" if total and rate else ""
        self._console.print(f"{line}, {rate:,.0f}/s{left}")
