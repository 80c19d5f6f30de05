"""What Burr's own persisters and its tracking client have written, for reading only.

A layout stands on the backend of the store that it is in, so that the connection, the sync and async faces and the
errors are the backend's.  Nothing here writes.

===========  ========================================================================================
SQLite       a table (``burr_state``); the absent partition key is stored as ``""``
PostgreSQL   a table (``burr_state``); a partition key is always text
Redis        a hash ``[namespace:]partition:app:sequence id`` a step, a sorted set a partition
MongoDB      a collection (``mystates``), a document a step
tracking     a folder an app, with ``log.jsonl`` and ``metadata.json``
===========  ========================================================================================
"""

from __future__ import annotations

import abc
import datetime as dt
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qsl, urlencode

import orjson
from burr.core import serde
from burr.core.state import State

from .backends import Backend
from .errors import DeserializationError, OptionError
from .keys import RecordId
from .steps import Step, gather
from .urls import local_path, open_backend, redacted


class BurrRecord(NamedTuple):
    """A step as Burr has stored it."""

    id: RecordId
    status: str
    created_at: dt.datetime
    """With a time zone."""
    state: str
    """The JSON of ``State.serialize()``."""
    set_aside: dt.datetime | None = None
    """When the app went back and took another way than the one this step is on."""

    def fields(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The state's fields, through the functions that are registered with Burr's serde.

        Args:
            options: what `Serde.options` has: ``classes``, ``allow_unsafe``, and what the functions are given.
        """
        given = {name: value for name, value in options.items() if name not in ("classes", "allow_unsafe")}
        try:
            state = json.loads(self.state)
            modules = _needed_modules(state, options)
            if modules:
                given["allowlist"] = modules
            return State.deserialize(state, **given).get_all()
        except Exception as error:  # whatever a registered function raises
            raise DeserializationError(f"{self.id}: Burr cannot rebuild this state: {error}") from error


class Unreadable(NamedTuple):
    """Something that should be a step, and is not."""

    what: str
    why: str


class Layout(abc.ABC):
    """The steps that Burr has stored in one place."""

    backend: Backend | None = None
    """The store that the layout is in, or None for a folder."""

    @abc.abstractmethod
    def load(
        self, partition_key: str | None, app_id: str | None, sequence_id: int | None, include_failed: bool
    ) -> Step[BurrRecord | None]:
        """The step that `Persister.load` is asked for."""

    @abc.abstractmethod
    def list_app_ids(self, partition_key: str | None) -> Step[list[str]]:
        """The apps of a partition, each once."""

    @abc.abstractmethod
    def page(self, after: Any, limit: int) -> Step[tuple[list[BurrRecord | Unreadable], Any]]:
        """About `limit` steps, and what the next page goes on with; None begins, and is the end."""

    @abc.abstractmethod
    def count(self) -> Step[int]:
        """How many steps there are."""


class TableLayout(Layout):
    """The table of Burr's SQL persisters.

    Args:
        backend: the backend of the same database.
        table: the table's name, as it was given to Burr's persister.
    """

    _find: ClassVar[str]
    """The statement that returns the name of a table that is there, quoted."""
    _placeholder: ClassVar[str]
    _columns: ClassVar[str]

    def __init__(self, backend: Any, table: str) -> None:
        self.backend: Any = backend
        self.table = table
        self._name: str | None = None
        self._is_absent = False

    def load(
        self, partition_key: str | None, app_id: str | None, sequence_id: int | None, include_failed: bool
    ) -> Step[BurrRecord | None]:
        where, values = "partition_key = ?", [partition_key or ""]
        order = "created_at DESC, sequence_id DESC"
        if app_id is not None:
            where, order = f"{where} AND app_id = ?", "sequence_id DESC, created_at DESC"
            values.append(app_id)
        if sequence_id is not None:
            where += " AND sequence_id = ?"
            order = "CASE status WHEN 'completed' THEN 0 ELSE 1 END, created_at DESC"
            values.append(sequence_id)  # type: ignore[arg-type]
        elif not include_failed:
            where += " AND status = 'completed'"
        rows = yield from self._select(self._columns, f"WHERE {where} ORDER BY {order} LIMIT 1", values)
        return self._record(rows[0], partition_key) if rows else None

    def list_app_ids(self, partition_key: str | None) -> Step[list[str]]:
        rows = yield from self._select("DISTINCT app_id", "WHERE partition_key = ?", [partition_key or ""])
        return [row[0] for row in rows]

    def page(self, after: Any, limit: int) -> Step[tuple[list[BurrRecord | Unreadable], Any]]:
        # The primary key is (partition_key, app_id, sequence_id, position).
        begin = "WHERE (partition_key, app_id, sequence_id, position) > (?, ?, ?, ?)" if after else ""
        rows = yield from self._select(
            self._columns,
            f"{begin} ORDER BY partition_key, app_id, sequence_id, position LIMIT {limit}",
            after or (),
        )
        last = tuple(rows[-1][:4]) if len(rows) == limit else None
        return [self._record(row, self._partition_key(row[0])) for row in rows], last

    def count(self) -> Step[int]:
        rows = yield from self._select("COUNT(*)", "", ())
        return int(rows[0][0]) if rows else 0

    def _rows(self, statement: str, values: Any) -> Step[list[Any]]:
        raise NotImplementedError

    def _partition_key(self, stored: str) -> str | None:
        return stored

    def _record(self, row: Any, partition_key: str | None) -> BurrRecord:
        _, app_id, sequence_id, position, status, state, created_at = row
        if isinstance(created_at, str):
            created_at = dt.datetime.fromisoformat(created_at)
        return BurrRecord(RecordId(partition_key, app_id, sequence_id, position), status, created_at, state)

    def _select(self, what: str, rest: str, values: Any) -> Step[list[Any]]:
        """Rows of the table; none where there is no such table."""
        if self._name is None and not self._is_absent:
            rows = yield from self._rows(self._find, (self.table,))
            self._name = rows[0][0] if rows else None
            self._is_absent = self._name is None
        if self._is_absent:
            return []
        statement = f"SELECT {what} FROM {self._name} {rest}".replace("?", self._placeholder)
        found: list[Any] = yield from self._rows(statement, tuple(values))
        return found

    def __repr__(self) -> str:
        return f"the table {self.table!r} of {redacted(self.backend.url)}"


class SQLiteLayout(TableLayout):
    """The table of Burr's SQLite persisters."""

    _find = (
        "SELECT '\"' || replace(name, '\"', '\"\"') || '\"' FROM sqlite_master "
        "WHERE type = 'table' AND lower(name) = lower(?)"
    )
    _placeholder = "?"
    _columns = "partition_key, app_id, sequence_id, position, status, state, created_at || '+00:00'"

    def _rows(self, statement: str, values: Any) -> Step[list[Any]]:
        rows: list[Any] = yield from self.backend._read(statement, values)
        return rows

    def _partition_key(self, stored: str) -> str | None:
        # None and "" are both "" there, and None is what Burr's builder uses unless told otherwise.
        return stored or None


class PostgreSQLLayout(TableLayout):
    """The table of Burr's PostgreSQL persisters."""

    # It reads the name as Burr's statements do.
    _find = "SELECT to_regclass(%s)::text"
    _placeholder = "%s"
    # A time without a zone is one of the zone that the server is set to.
    _columns = (
        "partition_key, app_id, sequence_id, position, status, state::text, "
        "created_at AT TIME ZONE current_setting('TimeZone')"
    )

    def _rows(self, statement: str, values: Any) -> Step[list[Any]]:
        rows: list[Any] = yield from self.backend._fetchall(statement, values)
        return rows


class RedisLayout(Layout):
    """The hashes of Burr's Redis persisters.

    Args:
        backend: a Redis backend.
        namespace: as it was given to Burr's persister.
    """

    def __init__(self, backend: Any, namespace: str = "") -> None:
        self.backend: Any = backend
        self._begin = f"{namespace}:" if namespace else ""

    def load(
        self, partition_key: str | None, app_id: str | None, sequence_id: int | None, include_failed: bool
    ) -> Step[BurrRecord | None]:
        if partition_key is None or app_id is None:  # neither can be there
            return None
        if sequence_id is not None:
            return (yield from self._record(f"{self._begin}{partition_key}:{app_id}:{sequence_id}"))
        score = yield from self.backend._command("ZSCORE", f"{self._begin}{partition_key}", app_id)
        newest = -1 if score is None else int(float(score))
        while newest >= 0:
            record = yield from self._record(f"{self._begin}{partition_key}:{app_id}:{newest}")
            if record is None or include_failed or record.status == "completed":
                return record
            newest -= 1
        return None

    def list_app_ids(self, partition_key: str | None) -> Step[list[str]]:
        if partition_key is None:
            return []
        names = yield from self.backend._command("ZRANGE", f"{self._begin}{partition_key}", 0, -1)
        return [name.decode() for name in names]

    def page(self, after: Any, limit: int) -> Step[tuple[list[BurrRecord | Unreadable], Any]]:
        names, after = yield from self._scan(after, limit)
        found = yield from gather((self._record(name) for name in names), limit=64)
        return [record for record in found if record is not None], after

    def count(self) -> Step[int]:
        names, after = yield from self._scan(None, 1000)
        total = len(names)
        while after is not None:
            names, after = yield from self._scan(after, 1000)
            total += len(names)
        return total

    def _scan(self, after: Any, limit: int) -> Step[tuple[list[str], Any]]:
        escaped = "".join(f"\\{each}" if each in r"*?[]\^-" else each for each in self._begin)
        cursor, names = yield from self.backend._command(
            "SCAN", after or 0, "MATCH", f"{escaped}*:*:*", "COUNT", limit, "TYPE", "hash"
        )
        return [name.decode() for name in names], int(cursor) or None

    def _record(self, name: str) -> Step[BurrRecord | None]:
        found = yield from self.backend._command("HGETALL", name)
        fields = {field.decode(): value for field, value in found.items()}
        if not fields.keys() >= {"partition_key", "app_id", "sequence_id", "position", "state", "status", "created_at"}:
            return None  # somebody else's hash
        texts = {field: value.decode() for field, value in fields.items()}
        if name != f"{self._begin}{texts['partition_key']}:{texts['app_id']}:{texts['sequence_id']}":
            return None  # of another namespace
        record = RecordId(texts["partition_key"], texts["app_id"], int(texts["sequence_id"]), texts["position"])
        return BurrRecord(record, texts["status"], dt.datetime.fromisoformat(texts["created_at"]), texts["state"])

    def __repr__(self) -> str:
        return f"the keys '{self._begin}*' of {redacted(self.backend.url)}"


class MongoDBLayout(Layout):
    """The documents of Burr's MongoDB persisters.

    Args:
        backend: a MongoDB backend.
        collection: as it was given to Burr's persister.
    """

    def __init__(self, backend: Any, collection: str) -> None:
        self.backend: Any = backend
        self._name = collection

    def load(
        self, partition_key: str | None, app_id: str | None, sequence_id: int | None, include_failed: bool
    ) -> Step[BurrRecord | None]:
        query: dict[str, Any] = {"partition_key": partition_key}
        order = [("created_at", -1), ("sequence_id", -1)]
        if app_id is not None:
            query["app_id"] = app_id
            order = [("sequence_id", -1), ("created_at", -1)]
        if sequence_id is not None:
            query["sequence_id"] = sequence_id
        elif not include_failed:
            query["status"] = "completed"
        documents = yield from self._find(query, order, 1)
        return self._record(documents[0]) if documents else None

    def list_app_ids(self, partition_key: str | None) -> Step[list[str]]:
        collection = yield from self._collection()
        found: list[str] = yield from self._translating(collection.distinct("app_id", {"partition_key": partition_key}))
        return found

    def page(self, after: Any, limit: int) -> Step[tuple[list[BurrRecord | Unreadable], Any]]:
        query: dict[str, Any] = {"sequence_id": {"$exists": True}}
        if after is not None:
            query["_id"] = {"$gt": after}
        documents = yield from self._find(query, [("_id", 1)], limit)
        return [self._record(each) for each in documents], documents[-1]["_id"] if len(documents) == limit else None

    def count(self) -> Step[int]:
        collection = yield from self._collection()
        total: int = yield from self._translating(collection.count_documents({"sequence_id": {"$exists": True}}))
        return total

    def _collection(self) -> Step[Any]:
        return (yield from self.backend._clients.get()).database[self._name]

    def _find(self, query: dict[str, Any], order: list[Any], limit: int) -> Step[list[Any]]:
        collection = yield from self._collection()
        cursor = collection.find(query, sort=order, limit=limit)
        documents: list[Any] = yield from self._translating(cursor.to_list())
        return documents

    def _translating(self, result: Any) -> Step[Any]:
        from pymongo.errors import PyMongoError

        try:
            return (yield result)
        except PyMongoError as error:
            raise self.backend._translated(error) from error

    def _record(self, document: Any) -> BurrRecord:
        record = RecordId(document["partition_key"], document["app_id"], document["sequence_id"], document["position"])
        created_at = dt.datetime.fromisoformat(document["created_at"])
        return BurrRecord(record, document["status"], created_at, document["state"])

    def __repr__(self) -> str:
        return f"the collection {self._name!r} of {redacted(self.backend.url)}"


class TrackingLayout(Layout):
    """The folder of a project of Burr's ``LocalTrackingClient``.

    An app's partition key is in its ``metadata.json``.  Its log goes on when the app is resumed or goes back, so
    that a sequence id can occur more than once: the last one counts, and what came behind the earlier one is on a
    way that the app has left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(
        self, partition_key: str | None, app_id: str | None, sequence_id: int | None, include_failed: bool
    ) -> Step[BurrRecord | None]:
        yield from ()
        apps = self._apps() if app_id is None else [app_id]
        last: BurrRecord | None = None
        for app in apps:
            if not self._log(app).is_file() or self._partition_key(app) != partition_key:
                continue
            for record in reversed([each for each in self._records(app) if isinstance(each, BurrRecord)]):
                wanted = (
                    include_failed or record.status == "completed"
                    if sequence_id is None
                    else (record.id.sequence_id == sequence_id)
                )
                if wanted and record.set_aside is None:
                    if last is None or record.created_at > last.created_at:
                        last = record
                    break
        return last

    def list_app_ids(self, partition_key: str | None) -> Step[list[str]]:
        yield from ()
        return [app for app in self._apps() if self._partition_key(app) == partition_key]

    def page(self, after: Any, limit: int) -> Step[tuple[list[BurrRecord | Unreadable], Any]]:
        yield from ()
        if after is None:
            after = (record for app in self._apps() for record in self._records(app))
        found = [record for _, record in zip(range(limit), after, strict=False)]
        return found, after if len(found) == limit else None

    def count(self) -> Step[int]:
        yield from ()
        return sum(1 for app in self._apps() for _ in self._ends(app))

    def _apps(self) -> Iterator[str]:
        if not self.folder.is_dir():
            raise OptionError(f"{self.folder} is not the folder of a tracking project")
        for path, folders, files in os.walk(self.folder):
            folders.sort()
            if "log.jsonl" in files:
                yield Path(path).relative_to(self.folder).as_posix()

    def _log(self, app_id: str) -> Path:
        # An id that is no plain path below the folder names no app.
        is_plain = os.path.normpath(app_id) == app_id and not app_id.startswith(("/", "..")) and "\0" not in app_id
        return self.folder / (app_id if is_plain else "no such app") / "log.jsonl"

    def _partition_key(self, app_id: str) -> str | None:
        try:
            metadata = orjson.loads(self._log(app_id).with_name("metadata.json").read_bytes())
        except FileNotFoundError:
            return None
        partition_key: str | None = metadata.get("partition_key")
        return partition_key

    def _ends(self, app_id: str) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
        """The entries at which a step ended, each with where it stands in the log."""
        log = self._log(app_id)
        with log.open("rb") as lines:
            offset = 0
            for number, line in enumerate(lines, 1):
                try:
                    entry = orjson.loads(line)
                    if entry["type"] == "end_entry":
                        yield offset, entry
                except (ValueError, KeyError, TypeError) as error:
                    yield offset, Unreadable(f"{log}, line {number}", f"is no entry of a tracking log: {error}")
                offset += len(line)

    def _records(self, app_id: str) -> Iterator[BurrRecord | Unreadable]:
        """An app's steps, those on ways that it has left among them; in memory is only where they stand."""
        live: list[tuple[int, int, bool]] = []  # sequence id, offset, whether it failed
        left: dict[int, dt.datetime] = {}
        order: list[int] = []
        for offset, entry in self._ends(app_id):
            if isinstance(entry, Unreadable):
                yield entry
                continue
            sequence_id, end = entry["sequence_id"], _local_time(entry["end_time"])
            while live and live[-1][0] >= sequence_id:
                number, where, failed = live.pop()
                if failed and number == sequence_id:
                    order.remove(where)  # it was tried again
                else:
                    left[where] = end
            live.append((sequence_id, offset, entry["exception"] is not None))
            order.append(offset)
        partition_key = self._partition_key(app_id)
        with self._log(app_id).open("rb") as log:
            for offset in order:
                log.seek(offset)
                entry = orjson.loads(log.readline())
                yield BurrRecord(
                    RecordId(partition_key, app_id, entry["sequence_id"], entry["action"]),
                    "completed" if entry["exception"] is None else "failed",
                    _local_time(entry["end_time"]),
                    orjson.dumps(entry["state"]).decode(),
                    left.get(offset),
                )

    def __repr__(self) -> str:
        return f"the tracking folder {self.folder}"


def open_layout(url: str, *, asynchronous: bool, options: Mapping[str, Any]) -> Layout:
    """The layout that a URL names, for reading only.

    ``burr+sqlite:///state.db?table=burr_state``, ``burr+postgresql://user@host/db?table=burr_state``,
    ``burr+redis://host:6379/0?namespace=``, ``burr+mongodb://host/mydatabase?collection=mystates`` and
    ``burr+tracking:///home/me/.burr/project``.  The defaults are those of Burr's persisters.
    """
    base, _, query = url.removeprefix("burr+").partition("?")
    given = {**dict(parse_qsl(query, keep_blank_values=True)), **options}
    scheme = base.partition("://")[0]
    if scheme == "tracking":
        if given:
            raise OptionError(f"burr+tracking:// has no option {min(given)!r}")
        return TrackingLayout(local_path(base))
    kinds: dict[str, tuple[type[Any], str, str]] = {
        "sqlite": (SQLiteLayout, "table", "burr_state"),
        "postgresql": (PostgreSQLLayout, "table", "burr_state"),
        "postgres": (PostgreSQLLayout, "table", "burr_state"),
        "redis": (RedisLayout, "namespace", ""),
        "rediss": (RedisLayout, "namespace", ""),
        "unix": (RedisLayout, "namespace", ""),
        "mongodb": (MongoDBLayout, "collection", "mystates"),
        "mongodb+srv": (MongoDBLayout, "collection", "mystates"),
    }
    if scheme not in kinds:
        known = ", ".join(f"burr+{each}://" for each in [*kinds, "tracking"])
        raise OptionError(f"{redacted(url)}: no layout of Burr is known for burr+{scheme}://; known are {known}")
    kind, option, default = kinds[scheme]
    name = given.pop(option, default)
    texts = {key: value for key, value in given.items() if key not in options}
    rest = {key: value for key, value in given.items() if key in options}
    if scheme == "mongodb" and not base.partition("://")[2].partition("/")[2]:
        rest.setdefault("database", "mydatabase")
    backend = open_backend(f"{base}?{urlencode(texts)}" if texts else base, asynchronous=asynchronous, options=rest)
    backend.read_only = True
    layout: Layout = kind(backend, name)
    return layout


def _needed_modules(state: Any, options: Mapping[str, Any]) -> list[str]:
    """The modules that pydantic models in a state are of, all of them allowed.

    Burr's own plugins import, or run, what a stored value tells them to.  They get only values of what the caller
    allowed by ``classes`` or Burr's allowlist; raises `DeserializationError` for others.
    """
    classes = options.get("classes", ())
    named = [*(classes.values() if isinstance(classes, Mapping) else classes), *options.get("allowlist", ())]
    plugin = sys.modules.get("burr.integrations.serde.pydantic")
    named += getattr(plugin, "_global_allowlist", None) or ()
    allowed_classes = {f"{each.__module__}.{each.__qualname__}" for each in named if isinstance(each, type)}
    allowed_modules = [each for each in named if isinstance(each, str)]
    needed: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, list):
            for each in value:
                look(each)
        elif isinstance(value, dict):
            key = value.get(serde.KEY)
            function = serde.deserializer.func_map.get(key) if isinstance(key, str) else None
            home, _, reader = getattr(function, "__module__", "").rpartition(".")
            if home == "burr.integrations.serde":
                name = str(value.get("__pydantic_class")) if reader == "pydantic" else _LIBRARIES.get(reader, reader)
                module = name.rpartition(".")[0] if reader == "pydantic" else name
                if not (
                    name in allowed_classes
                    or any(module == each or module.startswith(f"{each}.") for each in allowed_modules)
                    or (reader == "pickle" and "pickle" in options.get("allow_unsafe", ()))
                ):
                    way = "'allow_unsafe': ['pickle']" if reader == "pickle" else f"'classes': [{module!r}]"
                    raise DeserializationError(
                        f"it holds a value for Burr's {reader} plugin, {name}; allow that with serde_kwargs={{{way}}}"
                    )
                if reader == "pydantic":
                    needed.add(module)
            for each in value.values():
                look(each)

    look(state)
    return sorted(needed)


_LIBRARIES = {"langchain": "langchain_core"}


def _local_time(text: str) -> dt.datetime:
    # The tracking client writes the time of its machine's zone, without saying which.
    return dt.datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
