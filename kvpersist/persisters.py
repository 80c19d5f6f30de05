"""Burr's face: persisters for ``ApplicationBuilder``.

`Persister` is for sync applications (``build()``) and `AsyncPersister` for async ones (``abuild()``).
Both drive the same `History`; nothing is decided here.
"""

from __future__ import annotations

import datetime as dt
import sys
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeVar, cast

from burr.common.types import BaseCopyable
from burr.core.persistence import AsyncBaseStatePersister, BaseStatePersister, PersistedStateData
from burr.core.state import State

from .backends import Backend
from .compaction import GRACE
from .errors import ClosedError, OptionError
from .history import ALL, All, History, OnConflict, Record, Report
from .records import Header, Status
from .serde import Serde
from .steps import arun, run
from .telemetry import Telemetry, observed
from .urls import backend_of_client, open_backend, redacted, split_query

Self = TypeVar("Self", bound="_Face")

_OPTIONS = ("namespace", "serde_kwargs", "on_conflict", "compact_history", "telemetry")
"""What could have been meant by an option that a backend does not know."""


class _Face(BaseCopyable):
    """What the sync and the async persister share: how they are made, copied and sent elsewhere."""

    _asynchronous: bool

    def __init__(
        self,
        backend: Backend,
        *,
        namespace: str = "kvpersist",
        serde_kwargs: Mapping[str, Any] | None = None,
        on_conflict: OnConflict = "error",
        compact_history: bool = True,
    ) -> None:
        if backend.asynchronous is not self._asynchronous:
            raise OptionError(f"{type(self).__name__} needs a backend with asynchronous={self._asynchronous}")
        self._history = History(
            backend,
            namespace=namespace,
            serde=Serde(serde_kwargs),
            on_conflict=on_conflict,
            compact_history=compact_history,
        )
        self._is_copy = False
        self._closed = False

    @classmethod
    def from_url(
        cls: type[Self],
        url: str,
        *,
        namespace: str | None = None,
        serde_kwargs: Mapping[str, Any] | None = None,
        on_conflict: OnConflict | None = None,
        compact_history: bool = True,
        telemetry: bool | Telemetry = False,
        **options: Any,
    ) -> Self:
        """A persister on the store that a URL names.

        Args:
            url: such as ``sqlite:///var/lib/app/state.db``, ``file://./state`` or ``memory://``.  Options may
                stand in its query as well, where an argument wins.
            namespace: what sets these records apart from others in the same store; ``"kvpersist"`` where none
                is given.
            serde_kwargs: the serializer's options; what kvpersist does not know is passed on to the
                functions registered with Burr's serde.
            on_conflict: what to do when a record exists with other content: ``"error"`` raises
                `ConflictError` and is the default, ``"overwrite"`` lets the last writer win, ``"rewind"`` sets
                aside the old record and all later ones.
            compact_history: whether large states (from 4 KiB on, as bytes) are stored as what changed since
                an earlier step, so that a history grows with what is new in it.  False stores each whole.
                What is read may be of both kinds.
            telemetry: True reports each operation to OpenTelemetry and to the logger ``kvpersist``, a
                `Telemetry` as it says; see `observe`.
            options: the backend's own.

        Raises:
            OptionError: for a URL or an option that means nothing.
            MissingExtraError: where the store's driver is not installed.
        """
        base, query = split_query(url)
        settings: dict[str, Any] = {"namespace": "kvpersist", "on_conflict": "error"}
        for name, argument in (("namespace", namespace), ("on_conflict", on_conflict)):
            in_url = query.pop(name, None)
            if argument is not None or in_url is not None:
                settings[name] = in_url if argument is None else argument
        backend = open_backend(
            base,
            asynchronous=cls._asynchronous,
            options=options,
            query=query,
            known=_OPTIONS,
        )
        settings |= {"serde_kwargs": serde_kwargs, "compact_history": compact_history}
        return _made(cls, observed(backend, telemetry), settings)

    @classmethod
    def from_client(
        cls: type[Self],
        client: Any,
        *,
        namespace: str = "kvpersist",
        serde_kwargs: Mapping[str, Any] | None = None,
        on_conflict: OnConflict = "error",
        compact_history: bool = True,
        telemetry: bool | Telemetry = False,
        **options: Any,
    ) -> Self:
        """A persister on a client that you made with the store's driver: redis-py, psycopg or pymongo.

        The client stays yours: `cleanup` does not close it.  Such a persister cannot be pickled.

        Args:
            client: such as ``redis.Redis(...)``, ``psycopg.connect(..., autocommit=True)``, a pool of such
                connections or ``pymongo.MongoClient(...)``; for an `AsyncPersister` its async twin.
            options: the backend's own; the rest is as for `from_url`.

        Raises:
            OptionError: for a client or an option that means nothing.
        """
        backend = backend_of_client(
            client,
            asynchronous=cls._asynchronous,
            options=options,
            known=_OPTIONS,
        )
        settings = {"namespace": namespace, "on_conflict": on_conflict, "compact_history": compact_history}
        return _made(cls, observed(backend, telemetry), {"serde_kwargs": serde_kwargs, **settings})

    def copy(self: Self) -> Self:
        """A persister for another thread or a sub-application, on the same connection.

        Cleaning up a copy leaves the connection to the original.
        """
        twin = _made(type(self), self._open_history.backend, self._settings())
        twin.__dict__.update(self._attributes())
        twin._is_copy = True
        twin._history.share_memory(self._history)
        return twin

    def observe(self: Self, telemetry: bool | Telemetry = True) -> Self:
        """Report each operation to OpenTelemetry and to the logger ``kvpersist`` from now on; returns itself.

        So are those of later copies.  What a class of Burr's name reads of Burr's own tables is not reported.

        Args:
            telemetry: a `Telemetry` for other providers than the process's, or to tell ids; False ends it.

        Raises:
            OptionError: for what is no such thing.
        """
        self._open_history.observe(telemetry)
        return self

    def set_serde_kwargs(self, serde_kwargs: Mapping[str, Any] | None) -> None:
        """Choose how records are written from now on.  What was written before stays readable."""
        self._history.serde = Serde(serde_kwargs)

    def _settings(self) -> dict[str, Any]:
        history = self._history
        return {
            "namespace": history.namespace,
            "serde_kwargs": history.serde.serde_kwargs,
            "on_conflict": history.on_conflict,
            "compact_history": history.compact_history,
        }

    def _attributes(self) -> dict[str, Any]:
        """What a class with a constructor of its own keeps besides; it goes along with copies and pickles."""
        return {}

    @property
    def _open_history(self) -> History:
        if self._closed:
            raise ClosedError(f"{self!r} was cleaned up; make a new one")
        return self._history

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self._history.backend, self._settings()), self._attributes()

    def __repr__(self) -> str:
        history = self._history
        return (
            f"{type(self).__name__}({redacted(history.backend.url)!r}, namespace={history.namespace!r}, "
            f"on_conflict={history.on_conflict!r})"
        )


def _made(kind: type[Self], backend: Backend, settings: dict[str, Any]) -> Self:
    """A persister on a backend, whatever the constructor of its class takes."""
    made = kind.__new__(kind)
    _Face.__init__(made, backend, **settings)
    return made


class Persister(_Face, BaseStatePersister):
    """Saves and loads the state of a sync Burr application.

        persister = Persister.from_url("sqlite://./state.db")
        app = (
            ApplicationBuilder()
            ...
            .initialize_from(persister, resume_at_next_action=True, default_state={}, default_entrypoint="start")
            .with_state_persister(persister)
            .with_identifiers(app_id="chat-1", partition_key="user-1")
            .build()
        )

    One persister may be used by many threads at once, and sent to other processes.
    """

    _asynchronous = False

    def initialize(self) -> None:
        """Make what the store needs.  Not required: the first use does it too."""
        run(self._open_history.backend.open())

    def is_initialized(self) -> bool:
        """True, or the error for which the store cannot be used."""
        self.initialize()
        return True

    def save(
        self,
        partition_key: str | None,
        app_id: str,
        sequence_id: int,
        position: str,
        state: State[Any],
        status: Status,
        **kwargs: Any,
    ) -> None:
        """Store the state after a step.

        Saving the same again is no error, and a failed record gives way to the next try.

        Raises:
            ConflictError: the record exists with other content, and `on_conflict` is ``"error"``.
            SerializationError: a value would not come back exactly; nothing was written.
            InvalidIdError: an id that no record can have; nothing was written.
            StoreError: the store refused or failed.
        """
        status = _status(state, sequence_id, position, status)
        run(self._open_history.save(partition_key, app_id, sequence_id, position, _fields(state), status))

    def load(
        self,
        partition_key: str | None,
        app_id: str | None,
        sequence_id: int | None = None,
        *,
        include_failed: bool = False,
        **kwargs: Any,
    ) -> PersistedStateData | None:
        """The latest completed state of an app, or None.

        Args:
            app_id: None asks for the app that was written last in the partition.
            sequence_id: asks for the state at this point, completed or failed.
            include_failed: lets the latest state be that of a failed step.

        Raises:
            CorruptRecordError: the stored record was cut or changed.
            DeserializationError: it holds what this persister cannot or may not rebuild.
            StoreError: the store refused or failed.
        """
        return _loaded(run(self._open_history.load(partition_key, app_id, sequence_id, include_failed=include_failed)))

    def list_app_ids(self, partition_key: str | None, **kwargs: Any) -> list[str]:
        """The app ids of a partition, in key order."""
        return run(self._open_history.list_app_ids(partition_key))

    def list_partitions(self) -> list[str | None]:
        """The partition keys that have apps, in key order."""
        return run(self._open_history.list_partitions())

    def history(self, partition_key: str | None, app_id: str, *, include_set_aside: bool = False) -> Iterator[Header]:
        """An app's records without their states, newest first; with those a rewind set aside, on request."""
        after: str | None = None
        while True:
            page = run(
                self._open_history.headers(partition_key, app_id, after=after, include_set_aside=include_set_aside)
            )
            yield from page.headers
            after = page.after
            if after is None:
                return

    def rewind(self, partition_key: str | None, app_id: str, sequence_id: int) -> int:
        """Go back to a sequence id: set aside all newer records; returns how many there were.

        Raises:
            InvalidIdError: there is no record to go back to; nothing was changed.
        """
        return run(self._open_history.rewind(partition_key, app_id, sequence_id))

    def fork(self, partition_key: str | None, app_id: str, sequence_id: int, new_app_id: str) -> None:
        """Begin a new app of the partition with the record that another has at a sequence id.

        The state goes over as it is stored, and is not built.

        Raises:
            InvalidIdError: there is no such record.
            ConflictError: the new app has records already; nothing was changed.
        """
        run(self._open_history.fork(partition_key, app_id, sequence_id, new_app_id))

    def delete_app(self, partition_key: str | None, app_id: str) -> int:
        """Remove an app whole; returns how many records there were."""
        return run(self._open_history.delete_app(partition_key, app_id))

    def prune(
        self,
        partition_key: str | All | None = ALL,
        app_id: str | All = ALL,
        *,
        keep_last: int | None = None,
        older_than: dt.timedelta | dt.datetime | None = None,
        include_set_aside: bool = False,
        grace: dt.timedelta = GRACE,
    ) -> int:
        """Remove old records of an app, a partition or (by default) the whole namespace.

        Args:
            keep_last: how many completed records of each app stay, the newest, with the failed ones among
                them; 1 if only `older_than` is given, so that every app can still be resumed.
            older_than: an age, or a time with a time zone; younger records stay.
            include_set_aside: prune also what rewinds set aside, all of it or what is older.
            grace: how long the parts of compact histories stay after nothing was found to need them.  Less than
                the default of one hour is safe only where nothing writes to these apps, and did not within it.

        Returns:
            How many records were removed.
        """
        return run(
            self._open_history.prune(
                partition_key,
                app_id,
                keep_last=keep_last,
                older_than=older_than,
                include_set_aside=include_set_aside,
                grace=grace,
            )
        )

    def sweep(
        self, partition_key: str | All | None = ALL, app_id: str | All = ALL, *, grace: dt.timedelta = GRACE
    ) -> int:
        """Collect the parts of compact histories that no record needs, as `prune` does for the apps it prunes.

        A part that is found so is only marked at first, and removed by a later call once it has been marked for
        the grace period.  Returns how many parts were removed.
        """
        return run(self._open_history.sweep(partition_key, app_id, grace=grace))

    def verify(self, partition_key: str | All | None = ALL, app_id: str | All = ALL) -> Report:
        """Read every record and part, and report which cannot be read, are missing, or are needed by nothing."""
        return run(self._open_history.verify(partition_key, app_id))

    def cleanup(self) -> None:
        """Close the connection.  A persister that was cleaned up raises `ClosedError` when used."""
        if not self._closed and not self._is_copy:
            run(self._history.backend.close())
        self._closed = True

    close = cleanup

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup()


class AsyncPersister(_Face, AsyncBaseStatePersister):
    """Saves and loads the state of an async Burr application; the async twin of `Persister`.

    One persister may be used by many tasks at once, and on more than one event loop.
    """

    _asynchronous = True

    async def initialize(self) -> None:
        """See `Persister.initialize`."""
        await arun(self._open_history.backend.open())

    async def is_initialized(self) -> bool:
        """See `Persister.is_initialized`."""
        await self.initialize()
        return True

    async def save(
        self,
        partition_key: str | None,
        app_id: str,
        sequence_id: int,
        position: str,
        state: State[Any],
        status: Status,
        **kwargs: Any,
    ) -> None:
        """See `Persister.save`."""
        status = _status(state, sequence_id, position, status)
        await arun(self._open_history.save(partition_key, app_id, sequence_id, position, _fields(state), status))

    async def load(
        self,
        partition_key: str | None,
        app_id: str | None,
        sequence_id: int | None = None,
        *,
        include_failed: bool = False,
        **kwargs: Any,
    ) -> PersistedStateData | None:
        """See `Persister.load`."""
        return _loaded(
            await arun(self._open_history.load(partition_key, app_id, sequence_id, include_failed=include_failed))
        )

    async def list_app_ids(self, partition_key: str | None, **kwargs: Any) -> list[str]:
        """See `Persister.list_app_ids`."""
        return await arun(self._open_history.list_app_ids(partition_key))

    async def list_partitions(self) -> list[str | None]:
        """See `Persister.list_partitions`."""
        return await arun(self._open_history.list_partitions())

    async def history(
        self, partition_key: str | None, app_id: str, *, include_set_aside: bool = False
    ) -> AsyncIterator[Header]:
        """See `Persister.history`."""
        after: str | None = None
        while True:
            page = await arun(
                self._open_history.headers(partition_key, app_id, after=after, include_set_aside=include_set_aside)
            )
            for header in page.headers:
                yield header
            after = page.after
            if after is None:
                return

    async def rewind(self, partition_key: str | None, app_id: str, sequence_id: int) -> int:
        """See `Persister.rewind`."""
        return await arun(self._open_history.rewind(partition_key, app_id, sequence_id))

    async def fork(self, partition_key: str | None, app_id: str, sequence_id: int, new_app_id: str) -> None:
        """See `Persister.fork`."""
        await arun(self._open_history.fork(partition_key, app_id, sequence_id, new_app_id))

    async def delete_app(self, partition_key: str | None, app_id: str) -> int:
        """See `Persister.delete_app`."""
        return await arun(self._open_history.delete_app(partition_key, app_id))

    async def prune(
        self,
        partition_key: str | All | None = ALL,
        app_id: str | All = ALL,
        *,
        keep_last: int | None = None,
        older_than: dt.timedelta | dt.datetime | None = None,
        include_set_aside: bool = False,
        grace: dt.timedelta = GRACE,
    ) -> int:
        """See `Persister.prune`."""
        return await arun(
            self._open_history.prune(
                partition_key,
                app_id,
                keep_last=keep_last,
                older_than=older_than,
                include_set_aside=include_set_aside,
                grace=grace,
            )
        )

    async def sweep(
        self, partition_key: str | All | None = ALL, app_id: str | All = ALL, *, grace: dt.timedelta = GRACE
    ) -> int:
        """See `Persister.sweep`."""
        return await arun(self._open_history.sweep(partition_key, app_id, grace=grace))

    async def verify(self, partition_key: str | All | None = ALL, app_id: str | All = ALL) -> Report:
        """See `Persister.verify`."""
        return await arun(self._open_history.verify(partition_key, app_id))

    async def cleanup(self) -> None:
        """See `Persister.cleanup`."""
        if not self._closed and not self._is_copy:
            await arun(self._history.backend.close())
        self._closed = True

    close = cleanup

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cleanup()


def _fields(state: Any) -> Mapping[str, Any]:
    if not isinstance(state, Mapping):
        raise OptionError(f"the state must be a Burr State or another mapping, not a {type(state).__name__}")
    return state


def _status(state: Any, sequence_id: int, position: str, status: Status) -> Status:
    """The status that Burr should have said.

    Burr 0.43 hands over the state from before the action, and calls it completed, where the step ended by something
    that is no `Exception`: a task that was cancelled, Ctrl-C, SystemExit.  An application that is resumed from that
    would skip the action.  That the step did not end shows in its result, which is then None, and in the state's own
    marks: it belongs to this step, and names another as the last one that was completed.

    In an async application Burr does the same for actions that are not ``async def``, though they did complete
    (`Application._astep` keeps the old state in its ``finally``); of that there is only a warning.
    """
    hook = _burr_hook(position) if status == "completed" else None
    if hook is None:
        return status
    is_stale = (
        isinstance(state, State) and state.get("__SEQUENCE_ID") == sequence_id and state.get("__PRIOR_STEP") != position
    )
    if hook["result"] is not None and not is_stale:
        return status
    in_flight = sys.exc_info()[1]
    if hook["action"].is_async() or (in_flight is not None and not isinstance(in_flight, Exception)):
        return "failed"
    warnings.warn(
        f"Burr handed over the state from before the action {position!r}: in an async application its sync "
        "actions are saved without what they did. Make the action 'async def'",
        RuntimeWarning,
        stacklevel=3,
    )
    return status


def _burr_hook(position: str) -> dict[str, Any] | None:
    """What Burr tells the hook that calls `save` at the end of a step, from the hook's frame.

    `save` is told neither the action nor its result; and Burr runs async hooks in a task of their own, where the
    exception that ends the step is out of sight.
    """
    frame = sys._getframe(1).f_back
    for _ in range(5):  # of persisters that wrap ours, too
        if frame is None:
            return None
        if frame.f_code.co_name == "post_run_step":
            found = frame.f_locals
            if "result" in found and getattr(found.get("action"), "name", None) == position:
                return found
        frame = frame.f_back
    return None


def _loaded(record: Record | None) -> PersistedStateData | None:
    if record is None:
        return None
    header = record.header
    return {
        "partition_key": cast(str, header.partition_key),  # Burr's type forgets that it may be None
        "app_id": header.app_id,
        "sequence_id": header.sequence_id,
        "position": header.position,
        "state": State(record.state),
        "created_at": header.created_at,
        "status": header.status,
    }
