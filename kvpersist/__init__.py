"""State persistence for step-by-step applications, on the store you already have.

    from kvpersist import Persister

    persister = Persister.from_url("sqlite://./state.db")

`Persister` and `AsyncPersister` are Burr persisters; `Store` and `AsyncStore` are the key-value
protocol below them.  The classes of Burr (`SQLitePersister` and the others) are here under their names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .burr import (
        AsyncFilePersister,
        AsyncFsspecPersister,
        AsyncGCSPersister,
        AsyncInMemoryPersister,
        AsyncMongoDBBasePersister,
        AsyncMongoDBPersister,
        AsyncPostgreSQLPersister,
        AsyncRedisBasePersister,
        AsyncRedisPersister,
        AsyncS3Persister,
        AsyncSQLitePersister,
        FilePersister,
        FsspecPersister,
        GCSPersister,
        InMemoryPersister,
        MongoDBBasePersister,
        MongoDBPersister,
        PostgreSQLPersister,
        RedisBasePersister,
        RedisPersister,
        S3Persister,
        SQLitePersister,
        SQLLitePersister,
    )
    from .copying import CopyReport, NotCarried, acopy, copy
    from .errors import (
        ClosedError,
        ConflictError,
        CorruptPartError,
        CorruptRecordError,
        DeserializationError,
        InvalidIdError,
        InvalidKeyError,
        KvpersistError,
        MissingExtraError,
        OptionError,
        SerializationError,
        StoreError,
        StoreUnavailableError,
        UnsafeSerializerError,
        UntrustedRecordError,
    )
    from .history import ALL, Report
    from .persisters import AsyncPersister, Persister
    from .records import Header
    from .store import AsyncStore, Store
    from .telemetry import Telemetry
    from .tracking import LocalTrackingClient

# Where each public name lives.  They are loaded when first used, so that importing the package is cheap.
_HOMES = {
    "ALL": "history",
    "AsyncPersister": "persisters",
    "AsyncStore": "store",
    "Header": "records",
    "Persister": "persisters",
    "Report": "history",
    "Store": "store",
    "Telemetry": "telemetry",
    "LocalTrackingClient": "tracking",
    **dict.fromkeys(["CopyReport", "NotCarried", "acopy", "copy"], "copying"),
    **dict.fromkeys(
        [
            "AsyncFilePersister",
            "AsyncFsspecPersister",
            "AsyncGCSPersister",
            "AsyncInMemoryPersister",
            "AsyncMongoDBBasePersister",
            "AsyncMongoDBPersister",
            "AsyncPostgreSQLPersister",
            "AsyncRedisBasePersister",
            "AsyncRedisPersister",
            "AsyncS3Persister",
            "AsyncSQLitePersister",
            "FilePersister",
            "FsspecPersister",
            "GCSPersister",
            "InMemoryPersister",
            "MongoDBBasePersister",
            "MongoDBPersister",
            "PostgreSQLPersister",
            "RedisBasePersister",
            "RedisPersister",
            "S3Persister",
            "SQLLitePersister",
            "SQLitePersister",
        ],
        "burr",
    ),
    **dict.fromkeys(
        [
            "ClosedError",
            "ConflictError",
            "CorruptPartError",
            "CorruptRecordError",
            "DeserializationError",
            "InvalidIdError",
            "InvalidKeyError",
            "KvpersistError",
            "MissingExtraError",
            "OptionError",
            "SerializationError",
            "StoreError",
            "StoreUnavailableError",
            "UnsafeSerializerError",
            "UntrustedRecordError",
        ],
        "errors",
    ),
}

__all__ = [
    "ALL",
    "AsyncFilePersister",
    "AsyncFsspecPersister",
    "AsyncGCSPersister",
    "AsyncInMemoryPersister",
    "AsyncMongoDBBasePersister",
    "AsyncMongoDBPersister",
    "AsyncPersister",
    "AsyncPostgreSQLPersister",
    "AsyncRedisBasePersister",
    "AsyncRedisPersister",
    "AsyncS3Persister",
    "AsyncSQLitePersister",
    "AsyncStore",
    "ClosedError",
    "ConflictError",
    "CopyReport",
    "CorruptPartError",
    "CorruptRecordError",
    "DeserializationError",
    "FilePersister",
    "FsspecPersister",
    "GCSPersister",
    "Header",
    "InMemoryPersister",
    "InvalidIdError",
    "InvalidKeyError",
    "KvpersistError",
    "LocalTrackingClient",
    "MissingExtraError",
    "MongoDBBasePersister",
    "MongoDBPersister",
    "NotCarried",
    "OptionError",
    "Persister",
    "PostgreSQLPersister",
    "RedisBasePersister",
    "RedisPersister",
    "Report",
    "S3Persister",
    "SQLLitePersister",
    "SQLitePersister",
    "SerializationError",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "Telemetry",
    "UnsafeSerializerError",
    "UntrustedRecordError",
    "acopy",
    "copy",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
