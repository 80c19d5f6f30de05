"""Burr's local tracking client, as a loader that keeps the contract.

    from kvpersist import LocalTrackingClient      # was: from burr.tracking import LocalTrackingClient

It tracks as Burr's does.  What it loads is the latest *completed* step of the app in the partition that was asked for,
and it lists the apps of a partition; Burr's returns any partition's app, and lists none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from burr.core.persistence import PersistedStateData

from .burr import loaded
from .burr_layouts import TrackingLayout
from .errors import MissingExtraError
from .steps import run

try:
    from burr.tracking.client import LocalTrackingClient as _LocalTrackingClient
except ImportError as error:
    raise MissingExtraError('tracking needs pydantic: pip install "apache-burr[tracking-client]"') from error


class LocalTrackingClient(_LocalTrackingClient):
    """Tracks to a folder a project, and loads from it.

    It takes Burr's arguments: `project` is the project's name, `storage_dir` where the folders of the projects are, and
    `serde_kwargs` is given to the functions that are registered with Burr's serde.
    """

    def copy(self) -> LocalTrackingClient:
        """A client of the same project, for another application."""
        return type(self)(self.project_id, self.raw_storage_dir, self.serde_kwargs)

    def load(
        self,
        partition_key: str | None,
        app_id: str | None,
        sequence_id: int | None = None,
        *,
        include_failed: bool = False,
        **kwargs: Any,
    ) -> PersistedStateData | None:
        """The state of an app as it was tracked, or None; see `Persister.load`."""
        if not self._layout.folder.is_dir():
            return None  # nothing has been tracked yet
        record = run(self._layout.load(partition_key, app_id, sequence_id, include_failed))
        if record is None:
            return None
        found = loaded(record, self.serde_kwargs)
        # Burr's leaves out what the state says of its own application, but for the sequence id.
        internal = [field for field in found["state"] if field.startswith("__")]
        found["state"] = found["state"].wipe(delete=internal).update(__SEQUENCE_ID=record.id.sequence_id)
        return found

    def list_app_ids(self, partition_key: str | None, **kwargs: Any) -> list[str]:
        """The tracked apps of a partition."""
        return run(self._layout.list_app_ids(partition_key)) if self._layout.folder.is_dir() else []

    @property
    def _layout(self) -> TrackingLayout:
        return TrackingLayout(Path(self.storage_dir).absolute())
