"""What the commands have in common: which store, which partition, and where that is written.

A value is looked for on the command line, then in the environment, then in ``kvpersist.toml``::

    url = "sqlite://./state.db"
    partition = "user-1"

    [stores.production]
    url = "postgresql://app@db.example.com/app"
    options = { schema = "state" }
    serde_kwargs = { encryption_key = "env:STATE_KEY" }
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from kvpersist.backends import Backend
from kvpersist.errors import OptionError
from kvpersist.history import ALL, All, History
from kvpersist.inspection import Inspection
from kvpersist.serde import Serde
from kvpersist.steps import run
from kvpersist.urls import open_place, split_query

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

F = TypeVar("F", bound=Callable[..., Any])

CONFIG = Path("kvpersist.toml")
KNOWN = ("url", "namespace", "partition", "options", "serde_kwargs")
KEYS = ("encryption_key", "signing_key")
SETTINGS = f"{__name__}.settings"


@dataclass
class Location:
    """A store, and how what it holds is read."""

    url: str
    namespace: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    serde_kwargs: dict[str, Any] = field(default_factory=dict, repr=False)

    @contextmanager
    def inspection(self) -> Iterator[Inspection]:
        """The store, to be looked at."""
        inspection = self.inspected()
        try:
            yield inspection
        finally:
            run(inspection.close())

    def inspected(self, *, asynchronous: bool = False) -> Inspection:
        """The store, to be looked at and closed."""
        backend = self.backend(asynchronous=asynchronous)
        return Inspection(backend, namespace=self.namespace, serde=Serde(self.serde_kwargs))

    @contextmanager
    def history(self, *, read_only: bool = False) -> Iterator[History]:
        """The store, to be changed."""
        backend = self.backend()
        backend.read_only = read_only
        try:
            yield History(backend, namespace=self.namespace, serde=Serde(self.serde_kwargs), on_conflict="overwrite")
        finally:
            run(backend.close())

    def backend(self, *, asynchronous: bool = False) -> Backend:
        """The store itself, not connected yet."""
        backend, _ = open_place(self.url, asynchronous=asynchronous, options=self.options)
        return backend


def store(*, argument: bool = False) -> Callable[[F], F]:
    """Options that name a store; the command gets a `Location` as ``store``."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(
            *, url: str | None, name: str | None, namespace: str | None, config: Path | None, **rest: Any
        ) -> Any:
            return command(store=_located(url, namespace, _settings(config, name), named=name is not None), **rest)

        declared: Any = wrapped
        for option in (
            click.option("--config", type=click.Path(path_type=Path), envvar="KVPERSIST_CONFIG", help=_CONFIG_HELP),
            click.option("--namespace", envvar="KVPERSIST_NAMESPACE", help="The namespace.  [default: kvpersist]"),
            click.option("--store", "name", envvar="KVPERSIST_STORE", help="A store of the configuration file."),
            click.argument("url", required=False, metavar="[URL]", envvar="KVPERSIST_URL")
            if argument
            else click.option("-u", "--url", envvar="KVPERSIST_URL", help="The store, as for Persister.from_url."),
        ):
            declared = option(declared)
        wrapper: F = declared
        return wrapper

    return decorate


_CONFIG_HELP = "The configuration file.  [default: kvpersist.toml in this folder, if there is one]"


def partition(*, every: bool = False) -> Callable[[F], F]:
    """Options that name a partition; the command gets its key as ``partition``.

    Where none is given it is the one that the configuration file names, and otherwise the absent key, None; or `ALL`,
    with `every`.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(*, partition: str | None, no_partition: bool, **rest: Any) -> Any:
            if no_partition and _given(partition):
                raise click.UsageError("--partition and --no-partition exclude each other")
            chosen: str | All | None = partition
            if no_partition:
                chosen = None
            elif partition is None:
                chosen = _configured_partition(click.get_current_context(), ALL if every else None)
            return command(partition=chosen, **rest)

        what = "all partitions" if every else "no partition key"
        declared: Any = click.option("--no-partition", is_flag=True, help="The apps that have no partition key.")(
            click.option("-p", "--partition", envvar="KVPERSIST_PARTITION", help=f"The partition.  [default: {what}]")(
                wrapped
            )
        )
        wrapper: F = declared
        return wrapper

    return decorate


def apps() -> Callable[[F], F]:
    """Options that name an app, a partition or (by default) everything; the command gets ``partition``, ``app_id``."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(*, partition: str | All | None, app_id: str | None, **rest: Any) -> Any:
            if app_id is not None and partition is ALL:
                raise click.UsageError("--app needs --partition or --no-partition")
            return command(partition=partition, app_id=ALL if app_id is None else app_id, **rest)

        chosen: Any = click.option("--app", "app_id", help="This app of the partition only.")(wrapped)
        wrapper: F = partition(every=True)(chosen)
        return wrapper

    return decorate


def _given(partition: str | None) -> bool:
    source = click.get_current_context().get_parameter_source("partition")
    return partition is not None and source is click.core.ParameterSource.COMMANDLINE


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, yes: bool) -> None:
    """Ask, unless that was answered on the command line; a no ends the command."""
    if not yes:
        click.confirm(question, abort=True, err=True)


def _located(url: str | None, namespace: str | None, settings: dict[str, Any], *, named: bool) -> Location:
    options, serde_kwargs = {}, {}
    if url is None or named:
        url = url or settings.get("url")
        options, serde_kwargs = dict(settings.get("options", {})), dict(settings.get("serde_kwargs", {}))
    if url is None:
        raise click.UsageError(
            "which store? Give its URL (--url, or the argument where there is one), KVPERSIST_URL or a kvpersist.toml"
        )
    for key in KEYS:
        if key in serde_kwargs:
            serde_kwargs[key] = _secret(key, serde_kwargs[key])
    in_url = split_query(url)[1].get("namespace")
    return Location(url, namespace or in_url or settings.get("namespace") or "kvpersist", options, serde_kwargs)


def _settings(config: Path | None, name: str | None) -> dict[str, Any]:
    """What the configuration file says of a store; it is read once a command."""
    kept: dict[str, Any] = click.get_current_context().meta
    if SETTINGS not in kept:
        kept[SETTINGS] = _read(config, name)
    settings: dict[str, Any] = kept[SETTINGS]
    return settings


def _read(config: Path | None, name: str | None) -> dict[str, Any]:
    path = config or CONFIG
    if config is None and not path.is_file():
        if name is not None:
            raise click.UsageError(f"there is no {CONFIG} here that would name the store {name!r}")
        return {}
    try:
        read: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} is no TOML: {error}") from None
    stores = read.pop("stores", {})
    if name is not None:
        if name not in stores:
            raise click.UsageError(f"{path} names no store {name!r}; it names {', '.join(sorted(stores)) or 'none'}")
        read = {**{key: read[key] for key in ("namespace", "partition") if key in read}, **stores[name]}
    unknown = read.keys() - set(KNOWN)
    if unknown:
        raise click.UsageError(f"{path}: {min(unknown)!r} means nothing; known are {', '.join(KNOWN)} and stores")
    return read


def _configured_partition(context: click.Context, default: All | None) -> str | All | None:
    config, name = context.params.get("config"), context.params.get("name")
    found: str | None = _settings(config, name).get("partition")
    return default if found is None else found


def _secret(name: str, given: Any) -> Any:
    """A key as bytes: written in base64, here or in the environment variable that ``env:NAME`` names."""
    if isinstance(given, dict):
        return {key_id: _secret(name, each) for key_id, each in given.items()}
    text = str(given)
    if text.startswith("env:"):
        variable = text.removeprefix("env:")
        if variable not in os.environ:
            raise OptionError(f"{name}: the environment variable {variable} is not set")
        text = os.environ[variable]
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise OptionError(f"{name} must be written in base64") from None
