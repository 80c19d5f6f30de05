"""The stores that every contract runs on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import servers
from servers import no_server_is_left_running  # noqa: F401  a fixture

_numbers = itertools.count()


def _path(folder: Path) -> str:
    """An absolute path as it stands in a URL, on Windows too."""
    return "/" + folder.as_posix().lstrip("/")


# A new store gets its tests by one line here: its name, and the URL of a new, empty one.
STORES: dict[str, Callable[[Path], str]] = {
    "memory": lambda folder: f"memory://{folder.name}-{next(_numbers)}",
    "file": lambda folder: f"file://{_path(folder)}/store{next(_numbers)}?durable=no",
    "file-durable": lambda folder: f"file://{_path(folder)}/store{next(_numbers)}",
    "sqlite": lambda folder: f"sqlite://{_path(folder)}/store{next(_numbers)}.db",
    "redis": lambda folder: servers.with_options(servers.redis_url(), prefix=f"{servers.unique()}:"),
    "redis-cluster": lambda folder: servers.with_options(servers.redis_cluster_url(), prefix=f"{servers.unique()}:"),
    "postgresql": lambda folder: servers.with_options(
        servers.postgresql_url(), schema=servers.RUN, table=servers.unique()
    ),
    "mongodb": lambda folder: servers.with_options(
        servers.mongodb_url(), database=servers.RUN, collection=servers.unique()
    ),
}
