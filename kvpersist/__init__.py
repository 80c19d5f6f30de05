"""State persistence for step-by-step applications, on the store you already have.

    from kvpersist import Persister

    persister = Persister.from_url("sqlite://./state.db")

`Persister` and `AsyncPersister` are Burr persisters; `Store` and `AsyncStore` are the key-value
protocol below them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
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

# Where each public name lives.  They are loaded when first used, so that importing the package is cheap.
_HOMES = {
    "ALL": "history",
    "AsyncPersister": "persisters",
    "AsyncStore": "store",
    "Header": "records",
    "Persister": "persisters",
    "Report": "history",
    "Store": "store",
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
    "AsyncPersister",
    "AsyncStore",
    "ClosedError",
    "ConflictError",
    "CorruptPartError",
    "CorruptRecordError",
    "DeserializationError",
    "Header",
    "InvalidIdError",
    "InvalidKeyError",
    "KvpersistError",
    "MissingExtraError",
    "OptionError",
    "Persister",
    "Report",
    "SerializationError",
    "Store",
    "StoreError",
    "StoreUnavailableError",
    "UnsafeSerializerError",
    "UntrustedRecordError",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
