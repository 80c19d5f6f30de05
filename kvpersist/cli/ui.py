"""``kvpersist ui URL``"""

from __future__ import annotations

import ipaddress
import secrets
import socket

import click

from kvpersist.errors import MissingExtraError
from kvpersist.history import History
from kvpersist.urls import redacted

from . import options


@click.command()
@options.store(argument=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port.  [default: one that is free]")
@click.option("--write", is_flag=True, help="Let the pages rewind and fork.")
def ui(store: options.Location, *, host: str, port: int, write: bool) -> None:
    """Browse the store at URL on a page of this machine, until Ctrl-C.

    The address that is printed holds a token: only who has it gets in.  Nothing can be changed without --write.
    """
    try:
        import uvicorn

        from kvpersist.ui.app import Pages
    except ImportError as error:
        raise MissingExtraError(
            f'the page needs starlette and uvicorn ({error}): pip install "kvpersist[ui]"'
        ) from error
    inspection = store.inspected(asynchronous=True)
    history = None
    if write:
        backend = store.backend(asynchronous=True)
        history = History(backend, namespace=store.namespace, serde=inspection.serde, on_conflict="overwrite")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}: {error.strerror or error}") from error
    with listening:
        port = listening.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        token = secrets.token_urlsafe(32)
        if not _is_loopback(host):
            click.echo(
                f"{host} is not this machine alone: whoever sees the address, which nothing encrypts on its way, "
                "can read the store",
                err=True,
            )
        application = Pages(inspection, history).application(names=frozenset({name}), token=token)
        click.echo(f"{redacted(store.url)} at http://{name}:{port}/?token={token}")
        # No access log: it would hold the token.
        config = uvicorn.Config(application, log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
