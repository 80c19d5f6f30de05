"""The ``kvpersist`` command: a group, and a module a command."""

from __future__ import annotations

try:
    import click
    import rich  # noqa: F401  here, so that one message names the extra for both
except ImportError as error:
    raise SystemExit(f'the kvpersist command needs click and rich ({error}): pip install "kvpersist[cli]"') from error

from importlib import import_module
from typing import Any

from kvpersist import __version__
from kvpersist.errors import KvpersistError, StoreError

COMMANDS = (
    "apps",
    "copy",
    "delete",
    "diff",
    "doctor",
    "export",
    "history",
    "prune",
    "rewind",
    "show",
    "stats",
    "tail",
    "ui",
    "verify",
)
"""Each is the command of its name in the module of its name, loaded when it is asked for."""


class _StoreFailed(click.ClickException):
    exit_code = 3


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KvpersistError as error:
            from kvpersist.inspection import escaped

            kind = _StoreFailed if isinstance(error, StoreError) else click.ClickException
            raise kind(escaped(str(error))) from error


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Look at what kvpersist has stored, and work with it.

    The store is named by --url (or an argument, where a command has one), by KVPERSIST_URL, or in a kvpersist.toml.

    Exit codes: 0 if all is well, 1 if something is not (nothing was found, a record cannot be read, you said no), 2 if
    the command was misspelt, 3 if the store cannot be reached, refuses or fails.
    """
