"""``mongodb://``: one collection in a MongoDB database.

A document is a key and a value, and what the key's first segments name, for the list of apps::

    {"_id": "ns/partition/app/name", "v": <bytes>, "f": "ns/partition/app/"}

Keys are unique since they are the ``_id``.  Writes are acknowledged by a majority of the replica set, with their
journal on disk, and reads see what a majority has, so that an acknowledged save survives a failover.  The driver
retries what a lost connection left open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlencode, urlsplit

from ..errors import MissingExtraError, OptionError, StoreError, StoreUnavailableError
from ..keys import prefix_end, scan_range
from ..steps import Step
from ..urls import redacted
from . import PAGE, Backend, Clients, GivenClient, Mode, Page

try:
    import pymongo
    from bson.codec_options import CodecOptions
    from pymongo import errors
    from pymongo.read_concern import ReadConcern
    from pymongo.read_preferences import ReadPreference
    from pymongo.write_concern import WriteConcern
except ImportError as error:
    raise MissingExtraError('MongoDB needs pymongo 4.16 or newer: pip install "kvpersist[mongodb]"') from error

MAX_DOCUMENT: Final = 16 * 1024 * 1024
"""The most bytes that MongoDB takes in a document."""

_DUPLICATE_KEY = 11000


class MongoDBBackend(Backend):
    """A collection of a MongoDB database, 4.4 or newer.

    Args:
        url: ``mongodb://user:password@host:27017/database?replicaSet=...`` or ``mongodb+srv://``.
        collection: the collection's name.
        database: the database's name; by default the URL's, or else ``kvpersist``.
        timeout: seconds that an operation may take, with all its retries.
        driver_options: all others go to pymongo, such as ``replicaSet`` or ``tlsCAFile``.
    """

    default_port = 27017

    def __init__(
        self,
        url: str,
        *,
        asynchronous: bool = False,
        collection: str = "kvpersist",
        database: str = "",
        timeout: float = 30.0,
        **driver_options: Any,
    ) -> None:
        super().__init__(
            url, asynchronous=asynchronous, collection=collection, database=database, timeout=timeout, **driver_options
        )
        database = database or urlsplit(url).path.strip("/") or "kvpersist"
        _check_name(database, "database", '/\\. "$*<>:|?\0', 63)
        _check_name(collection, "collection", "$\0", 255 - len(database.encode()) - 1)
        if collection.startswith(("system.", ".")) or collection.endswith(".") or ".." in collection:
            raise OptionError(f"{collection!r} cannot be the name of a MongoDB collection")
        self._names = database, collection
        self._timeout = timeout
        self._driver_options = driver_options
        self._index_is_there = False
        self._clients: Clients[Any] | GivenClient[Any] = Clients(
            asynchronous=asynchronous,
            connect=self._connect,
            disconnect=self._disconnect,
            abandon=_abandon,
        )

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool, **options: Any) -> MongoDBBackend:
        """The store behind a `pymongo.MongoClient` or, async, a `pymongo.AsyncMongoClient`."""
        kind: Any = pymongo.AsyncMongoClient if asynchronous else pymongo.MongoClient
        if not isinstance(client, kind):
            raise OptionError(
                f"this needs {'an async' if asynchronous else 'a sync'} client, a pymongo.{kind.__name__}, "
                f"not a {type(client).__module__}.{type(client).__qualname__}"
            )
        unknown = options.keys() - {"collection", "database"}
        if unknown:
            raise OptionError(
                f"a store made of a client has no option {min(unknown)!r}; known are collection, database"
            )
        backend = cls("mongodb://client", asynchronous=asynchronous, **options)
        backend._clients = GivenClient(backend._collection(client))
        return backend

    def open(self) -> Step[None]:
        yield from self._call("find_one", {"_id": ""})

    def close(self) -> Step[None]:
        yield from self._clients.close()

    def get(self, key: str) -> Step[bytes | None]:
        document = yield from self._call("find_one", {"_id": key})
        return None if document is None else bytes(document["v"])

    def get_many(self, keys: Iterable[str]) -> Step[list[bytes | None]]:
        keys = list(keys)
        documents = yield from self._list("find", {"_id": {"$in": keys}})
        found = {document["_id"]: bytes(document["v"]) for document in documents}
        return [found.get(key) for key in keys]

    def put(self, key: str, value: bytes, mode: Mode = "overwrite") -> Step[bool]:
        document = self._document(key, value)
        if mode == "create":
            try:
                yield from self._call("insert_one", document)
            except StoreError as error:
                if isinstance(error.__cause__, errors.DuplicateKeyError):
                    return False
                raise
            return True
        while True:
            try:
                yield from self._call("replace_one", {"_id": key}, document, upsert=True)
            except StoreError as error:
                # Somebody else made it between the look and the write of this upsert.
                if isinstance(error.__cause__, errors.DuplicateKeyError):
                    continue
                raise
            return True

    def put_many(self, entries: Sequence[tuple[str, bytes]]) -> Step[bool]:
        try:
            # In order, and none behind one that is there already.
            yield from self._call("insert_many", [self._document(key, value) for key, value in entries], ordered=True)
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, errors.BulkWriteError) and cause.details["writeErrors"][0]["code"] == _DUPLICATE_KEY:
                return False
            raise
        return True

    def replace(self, key: str, old: bytes, new: bytes | None) -> Step[bool]:
        if new is None:
            result = yield from self._call("delete_one", {"_id": key, "v": old})
            return bool(result.deleted_count)
        document = self._document(key, new)
        result = yield from self._call("replace_one", {"_id": key, "v": old}, document)
        return bool(result.matched_count)

    def scan(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int | None = None,
        values: bool = False,
        delimiter: Literal["/"] | None = None,
    ) -> Step[Page]:
        limit = limit or PAGE
        start, end = scan_range(prefix, after, children=delimiter is not None)
        if not delimiter:
            documents = yield from self._list(
                "find",
                {"_id": {"$gte": start, "$lt": end}},
                projection={"_id": 1, "v": 1} if values else {"_id": 1},
                sort=[("_id", 1)],
                limit=limit,
                # One batch, and no cursor left open behind it.
                batch_size=limit + 1,
            )
            entries = [(each["_id"], bytes(each["v"]) if values else None) for each in documents]
            # A batch also ends at 16 MB, and the driver fetches the next: nothing is missing.
            return Page(entries, entries[-1][0] if len(entries) == limit else None)
        if prefix.count("/") == 2:
            # The server's index scan goes from one value to the next greater one, whatever lies between.
            found = yield from self._list(
                "aggregate",
                [
                    {"$match": {"f": {"$gte": start, "$lt": end}}},
                    {"$sort": {"f": 1}},
                    {"$group": {"_id": "$f"}},
                    {"$sort": {"_id": 1}},
                    {"$limit": limit},
                ],
            )
            names = [each["_id"] for each in found]
        else:
            names = yield from self._children(start, end, len(prefix), limit)
        return Page([(name, None) for name in names], names[-1] if len(names) == limit else None)

    def _children(self, start: str, end: str, skip: int, limit: int) -> Step[list[str]]:
        """Children elsewhere than in a partition, each with a request of its own."""
        names: list[str] = []
        while len(names) < limit:
            document = yield from self._call(
                "find_one", {"_id": {"$gte": start, "$lt": end}}, projection={"_id": 1}, sort=[("_id", 1)]
            )
            if document is None:
                break
            key = document["_id"]
            slash = key.find("/", skip)
            names.append(key if slash < 0 else key[: slash + 1])
            start = f"{key} " if slash < 0 else prefix_end(names[-1])
        return names

    def delete(self, keys: Iterable[str]) -> Step[None]:
        yield from self._call("delete_many", {"_id": {"$in": list(keys)}})

    def _document(self, key: str, value: bytes) -> dict[str, Any]:
        segments = key.split("/", 3)
        folder = key if len(segments) < 4 else "".join(f"{each}/" for each in segments[:3])
        size = len(value) + len(key.encode()) + len(folder.encode()) + 64
        if size > MAX_DOCUMENT:
            raise StoreError(
                f"{key}: the record has {len(value):,} bytes, and MongoDB takes no document of more than "
                f"{MAX_DOCUMENT:,} bytes; nothing was sent. Compression may help: "
                "serde_kwargs={'compression': 'zstd'}"
            )
        return {"_id": key, "v": value, "f": folder}

    def _list(self, method: str, *arguments: Any, **options: Any) -> Step[list[dict[str, Any]]]:
        try:
            cursor = yield from self._call(method, *arguments, **options)
            collection = yield from self._clients.get()
            documents: list[dict[str, Any]] = yield from self._in_time(collection, cursor.to_list())
        except errors.PyMongoError as error:
            raise self._translated(error) from error
        return documents

    def _call(self, method: str, *arguments: Any, **options: Any) -> Step[Any]:
        """The one place where the collection is asked for something."""
        try:
            collection = yield from self._clients.get()
            if not self._index_is_there and not self.read_only:
                yield from self._in_time(collection, collection.create_index("f"))
                self._index_is_there = True
            return (yield from self._in_time(collection, getattr(collection, method)(*arguments, **options)))
        except errors.PyMongoError as error:
            raise self._translated(error) from error

    def _in_time(self, collection: Any, result: Any) -> Step[Any]:
        """What comes of a call, or an end to the waiting: the driver's timeout does not cover the locks of its async
        client, which may wait for each other for ever once a server was lost.  Such a client is given up."""
        if not hasattr(result, "__await__"):
            return (yield result)
        try:
            return (yield _within(2 * self._timeout + 1, result))
        except _Deadlock as error:
            if isinstance(self._clients, Clients):
                self._clients.drop(collection)
                _abandon(collection)
            raise StoreUnavailableError(
                f"{redacted(self.url)}: the driver does not answer, though {self._timeout} s are over"
            ) from error

    def _collection(self, client: Any) -> Any:
        database, collection = self._names
        return client[database].get_collection(
            collection,
            codec_options=CodecOptions(),
            write_concern=WriteConcern("majority", j=True),
            read_concern=ReadConcern("majority"),
            read_preference=ReadPreference.PRIMARY,
        )

    def _connect(self) -> Step[Any]:
        yield from ()
        kind: Any = pymongo.AsyncMongoClient if self.asynchronous else pymongo.MongoClient
        milliseconds = round(self._timeout * 1000)
        given = {
            "timeoutMS": milliseconds,
            "connectTimeoutMS": milliseconds,  # how soon the driver notices that a server is silent
            "serverSelectionTimeoutMS": milliseconds,  # how long closing waits for a server that is gone
            **self._driver_options,
        }
        texts = {name: value for name, value in given.items() if isinstance(value, str)}
        options = {name: value for name, value in given.items() if name not in texts}
        url = self.url if urlsplit(self.url).path else f"{self.url}/"
        try:
            return self._collection(kind(f"{url}?{urlencode(texts)}" if texts else url, **options))
        except (errors.ConfigurationError, TypeError, ValueError) as error:
            raise OptionError(f"{redacted(self.url)}: {error}") from error

    def _disconnect(self, collection: Any) -> Step[None]:
        yield collection.database.client.close()

    def _translated(self, error: errors.PyMongoError) -> StoreError:
        where = redacted(self.url)
        if error.timeout:
            return StoreUnavailableError(f"{where}: no answer within {self._timeout} s: {error}")
        if isinstance(error, (errors.ConnectionFailure, errors.WTimeoutError)):
            return StoreUnavailableError(f"{where}: {error}")
        return StoreError(f"{where}: {error}")


class _Deadlock(Exception):
    """The driver's own timeout has not come."""


async def _within(seconds: float, result: Awaitable[Any]) -> Any:
    task = asyncio.ensure_future(result)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        with contextlib.suppress(RuntimeError):  # the loop was closed
            task.cancel()  # and no waiting for it, which may need the same locks
    if not done:
        raise _Deadlock
    return task.result()


def _abandon(collection: Any) -> None:
    # Its loop was closed, so that nobody can close it any more; without this its destructor reports that.
    collection.database.client._closed = True


def _check_name(name: str, what: str, forbidden: str, longest: int) -> None:
    if not name or len(name.encode()) > longest or any(each in name for each in forbidden):
        raise OptionError(f"{name!r} cannot be the name of a MongoDB {what}")
