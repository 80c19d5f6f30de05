"""The error tree: everything `kvpersist` raises on purpose is a `KvpersistError`.

Where Python has a built-in exception of the same meaning, ours is one of those too, so that
``except ValueError`` around bad input goes on working.  The exception of a driver is always the
``__cause__`` of ours.
"""

from __future__ import annotations


class KvpersistError(Exception):
    """The base of all errors of this library."""


# What the caller asked for cannot be asked for.  Raised before anything is written.


class OptionError(KvpersistError, ValueError):
    """A URL, an option or an argument that means nothing here."""


class MissingExtraError(KvpersistError, ImportError):
    """A store or serializer whose optional dependency is not installed; the message names the extra."""


class InvalidIdError(KvpersistError, ValueError):
    """A partition key, app id, sequence id, position or status that no record can have."""


class InvalidKeyError(KvpersistError, ValueError):
    """A key outside the protocol's alphabet, or one that this store cannot hold."""


class ClosedError(KvpersistError, RuntimeError):
    """Used after `cleanup()` or `close()`."""


# The value cannot be stored, or the stored bytes cannot be trusted.


class SerializationError(KvpersistError, TypeError):
    """A value that would not come back exactly as it went in.

    `path` is where it stands in the state, as in ``state['chat'][3]``.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message, path)
        self.path = path

    def __str__(self) -> str:
        return str(self.args[0])


class DeserializationError(KvpersistError, ValueError):
    """A record that is whole, but holds something this reader cannot or may not rebuild."""


class UnsafeSerializerError(DeserializationError):
    """A record that names a serializer this persister was not configured to open."""


class UntrustedRecordError(DeserializationError):
    """A record that this persister's keys do not vouch for: not encrypted or signed with one of them.

    It may have been changed, moved or forged by somebody, or the key may be the wrong one.
    """


class CorruptRecordError(KvpersistError, ValueError):
    """Stored bytes that are no whole record: cut, changed, moved, or of a format not known here."""


class CorruptPartError(CorruptRecordError):
    """A record of a compact history one of whose parts is missing, cut or changed.

    `part` is the part's key, and `missing` says whether there is nothing at all.
    """

    def __init__(self, message: str, part: str, *, missing: bool = False) -> None:
        super().__init__(message, part, missing)
        self.part = part
        self.missing = missing

    def __str__(self) -> str:
        return str(self.args[0])


# What the store did, or would not do.


class ConflictError(KvpersistError):
    """The record exists with other content; nothing was changed."""


class StoreError(KvpersistError):
    """The store refused or failed; the driver's exception is the `__cause__`."""


class StoreUnavailableError(StoreError, ConnectionError):
    """The store could not be reached, or did not answer in time; trying again may help."""


class AccessDeniedError(StoreError, PermissionError):
    """The store did not accept the credentials, or they do not allow this; trying again will not help."""
