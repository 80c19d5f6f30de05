"""Serializers: a state's fields to bytes and back, exactly; and the way from there to stored bytes.

Which serializer, compression and encryption write is chosen through ``serde_kwargs``; how a record is
read is told by the record, as far as the reader allows it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, Protocol

from .. import __version__, compaction, records
from ..errors import (
    DeserializationError,
    KvpersistError,
    OptionError,
    SerializationError,
    UnsafeSerializerError,
    UntrustedRecordError,
)
from ..keys import RecordId
from ..keys import encode as encode_id
from ..records import Header, Status
from . import compression, protection

MAX_SIZE = 2**30
"""How many bytes a record may decompress to, unless `max_size` says otherwise."""

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

_ABSENT: Any = object()


class Serializer(Protocol):
    """What turns a state into bytes and back.  Any object with these two methods will do.

    It may have a ``name`` (str), which stands in the header of the records it writes and is otherwise made
    of the name of its class.  ``safe = True`` says that `loads` never runs code that the bytes name; without
    it, a record is opened only by a persister that was told to (see `UnsafeSerializerError`).
    """

    def dumps(self, state: dict[str, Any]) -> bytes:
        """The bytes of a state's fields.

        Raises `SerializationError` for a value that `loads` would not return exactly.  A safe serializer
        makes the same bytes for equal states, so that a repeated save can be told from a conflict.
        """

    def loads(self, data: bytes) -> dict[str, Any]:
        """The fields that `dumps` made these bytes of."""


class Sealed(NamedTuple):
    """A record's payload as it was stored, and what it is bound to."""

    where: str
    namespace: str
    head: bytes
    payload: bytes

    @property
    def bound(self) -> bytes:
        return _bound(self.namespace, self.head)


class Serde:
    """How a persister turns states into stored bytes, and back.

    Args:
        serde_kwargs: a mapping with any of

            - ``serializer``: the name of an installed serializer (``"json"`` by default), or an object with
              ``dumps`` and ``loads``.
            - ``compression``: ``"zstd"``, ``"lz4"``, ``"gzip"`` or None; ``compression_level``, an int.
            - ``encryption_key``: bytes, or a mapping of key ids to bytes: the first encrypts, all decrypt.
              ``encryption`` is ``"aes-gcm"`` (the default where there is a key), ``"chacha20-poly1305"``,
              or None to write plaintext and only read what is encrypted.  ``key_wrapper`` wraps keys made
              for the purpose (`protection.KeyWrapper`) instead.
            - ``allow_plaintext``: also read records that are not encrypted, as during a migration.
            - ``signing_key``: bytes, or a mapping of key ids to bytes: the first signs, all verify.
              ``allow_unsigned``: also read records that are not signed.
            - ``allow_unsafe``: names of unsafe serializers whose records may be read besides those of
              `serializer`, such as ``["pickle"]`` after a change to another one.
            - ``max_size``: how many bytes a record may decompress to (1 GiB by default).

            The rest are the serializer's options, and what it does not know is passed on to the functions
            registered with Burr's serde.

    Raises:
        OptionError: for what is not installed, or means nothing.
        MissingExtraError: where an optional dependency is not installed.
    """

    def __init__(self, serde_kwargs: Mapping[str, Any] | None = None) -> None:
        self.serde_kwargs = dict(serde_kwargs or {})
        options = dict(self.serde_kwargs)
        chosen = options.pop("serializer", "json")
        self._compress, self._compression, self.max_size = _compression(options)
        self._encryption = _encryption(options)
        self._reads_plaintext = bool(options.pop("allow_plaintext", False))
        if self._encryption is None or self._encryption.algorithm is None:
            self._reads_plaintext = True
        self._signing = _signing(options)
        self._reads_unsigned = bool(options.pop("allow_unsigned", False)) or self._signing is None
        allow_unsafe = options.get("allow_unsafe", ())
        if isinstance(allow_unsafe, str):
            raise OptionError(f"allow_unsafe must be a list of names, as in allow_unsafe=[{allow_unsafe!r}]")
        for name in allow_unsafe:
            if name not in _serializers():
                raise OptionError(f"allow_unsafe: no serializer {name!r} is installed; installed are {_names()}")
        self._options = options
        _refuse_misspelt(options)
        if isinstance(chosen, str):
            self.writer = _installed(chosen, options)
        elif callable(getattr(chosen, "dumps", None)) and callable(getattr(chosen, "loads", None)):
            self.writer = chosen
        else:
            raise OptionError(f"serializer={chosen!r} has no dumps and loads; installed are {_names()}")
        self.writer_name = _name_of(self.writer)
        self._readers: dict[str, Serializer] = {self.writer_name: self.writer}
        self._allowed_unsafe = {self.writer_name, *allow_unsafe}
        self._coding = {"serializer": self.writer_name}
        if not _is_safe(self.writer):
            self._coding["python"] = PYTHON

    @property
    def options(self) -> dict[str, Any]:
        """What is left for the serializer and for the functions registered with Burr's serde."""
        return self._options

    # Writing

    def dumps(self, state: dict[str, Any]) -> bytes:
        """The payload of a state before compression and encryption."""
        try:
            payload = self.writer.dumps(state)
        except KvpersistError:
            raise
        except Exception as error:
            raise SerializationError(f"{self.writer_name} cannot hold the state: {error!r}", "state") from error
        if not isinstance(payload, bytes):
            raise SerializationError(f"{self.writer_name} made a {type(payload).__name__}, not bytes", "state")
        return payload

    def encode(
        self,
        namespace: str,
        record: RecordId,
        status: Status,
        created_at: str,
        payload: bytes,
        *,
        base: compaction.Base | None = None,
        part: int | None = None,
        like: Header | None = None,
    ) -> bytes:
        """The bytes to store for a record with this payload (from `dumps`).

        With a `base` they hold a patch against that part's payload; with the level of a `part` they are one.  The
        payload may be another record's (from `opened`), whatever its serializer; `like` is that record's header.
        """
        coding: dict[str, Any] = dict(self._coding)
        if like is not None:
            coding = {"serializer": like.serializer} | ({} if like.python is None else {"python": like.python})
        if part is not None:
            coding["part"] = part
        if base is not None:
            coding |= {"compression": compaction.PATCH, "uncompressed_size": len(payload)}
            coding |= {"bases": base.chain, "base_hash": base.digest}
            payload = base.patch(payload)
        elif part is not None:
            coding |= {"compression": "zstd", "uncompressed_size": len(payload)}
            payload = compaction.snapshot(payload)
        elif self._compress is not None and compression.PAYS_FROM <= len(payload) <= self.max_size:
            compressed = self._compress(payload)
            if len(compressed) < len(payload):
                coding |= {"compression": self._compression, "uncompressed_size": len(payload)}
                payload = compressed
        fields: dict[str, str] = {}
        key = b""
        encryption = self._encryption if self._encryption and self._encryption.algorithm else None
        if encryption is not None:
            fields, key = encryption.fields()
            coding |= fields
        if self._signing is not None:
            coding |= self._signing.fields()
        head = records.encode_head(record, status, created_at, __version__, coding)
        if encryption is not None:
            payload = encryption.encrypt(fields, key, payload, _bound(namespace, head))
        signature = self._signing.sign(_bound(namespace, head), payload) if self._signing is not None else None
        return records.encode(head, payload, signature)

    def is_same(self, header: Header, sealed: Sealed, payload: bytes, base: bytes | None = None) -> bool:
        """Whether a stored record has the content of a payload (from `dumps`), however either is written."""
        stored = self.opened(header, sealed, base)
        if header.serializer == self.writer_name and stored == payload:
            return True
        if header.serializer == self.writer_name and _is_safe(self.writer):
            return False  # equal states have equal bytes
        state = self._loads(self._reader(header), header, stored)
        if _is_safe(self.writer):
            try:
                return self.dumps(state) == payload
            except SerializationError:
                return False
        # Other serializers' bytes may depend on more than the state, and so be made in another way to compare.
        canonical: Callable[[dict[str, Any]], bytes] = getattr(self.writer, "canonical", self.dumps)
        return canonical(state) == canonical(self.writer.loads(payload))

    # Reading

    def decode(
        self, namespace: str, data: bytes, key: str, record: RecordId, *, part: bool = False
    ) -> tuple[Header, Sealed]:
        """The header and the payload of the bytes found at `key`, where `record` (or a `part`) must live.

        Raises:
            CorruptRecordError: where they are not that record, whole and unchanged.
            UntrustedRecordError: where it is not signed by one of the signing keys.
        """
        header, head, payload = records.decode(data, key, record, part=part)
        sealed = Sealed(key, namespace, head, payload)
        if self._signing is not None and not (
            self._reads_unsigned and header.signing is None and header.signature is None
        ):
            self._signing.verify(key, header, sealed.bound, payload)
        return header, sealed

    def loads(self, header: Header, sealed: Sealed, base: bytes | None = None) -> dict[str, Any]:
        """The state of a decoded record; `base` is the payload that it is a patch against.

        Raises:
            UnsafeSerializerError: where opening it could run code, and nobody allowed that.
            UntrustedRecordError: where it is not encrypted, or not with one of the encryption keys.
            DeserializationError: where it holds what this reader cannot or may not rebuild.
        """
        reader = self._reader(header)  # an unsafe record is refused before anything is done with it
        return self._loads(reader, header, self.opened(header, sealed, base))

    def shown(self, header: Header, sealed: Sealed, base: bytes | None = None) -> Any:
        """The state of a decoded record as a tree that JSON can hold, without building what it names.

        Values that JSON has no type for are tags, as the serializer ``"json"`` writes them.  Raises as `loads`
        does; also for a serializer of somebody else that is safe, but builds what it reads.
        """
        reader = self._reader(header)
        payload = self.opened(header, sealed, base)
        if not _is_safe(reader):
            raise UnsafeSerializerError(f"{header.id}: a record of {header.serializer} is not opened to be shown")
        try:
            if hasattr(reader, "shown"):
                return reader.shown(payload)
            json: Any = _installed("json", {})
            return json.shown(json.dumps(reader.loads(payload)))
        except Exception as error:
            if isinstance(error, KvpersistError):
                raise
            raise DeserializationError(f"{header.id}: {header.serializer} cannot read the record: {error!r}") from error

    def opened(self, header: Header, sealed: Sealed, base: bytes | None = None) -> bytes:
        """A payload as `dumps` made it."""
        payload = sealed.payload
        if header.encryption is not None:
            if self._encryption is None:
                raise UntrustedRecordError(
                    f"{sealed.where}: the record is encrypted; reading it needs serde_kwargs={{'encryption_key': ...}}"
                )
            payload = self._encryption.decrypt(sealed.where, header, payload, sealed.bound)
        elif not self._reads_plaintext:
            raise UntrustedRecordError(
                f"{sealed.where}: the record is not encrypted; say serde_kwargs={{'allow_plaintext': True}} while "
                "there are records from before encryption"
            )
        if header.compression is not None:
            payload = compression.decompressed(
                header.compression, payload, header.uncompressed_size or 0, self.max_size, base
            )
        return payload

    def _loads(self, reader: Serializer, header: Header, payload: bytes) -> dict[str, Any]:
        of_another = header.python is not None and header.python != PYTHON
        if of_another and getattr(reader, "holds_code", lambda _: False)(payload):
            raise DeserializationError(
                f"{header.id}: the record holds code of Python {header.python}, and this is Python {PYTHON}, which "
                "it could crash; open it with that version"
            )
        try:
            state = reader.loads(payload)
        except Exception as error:
            if of_another:
                raise DeserializationError(
                    f"{header.id}: the record was written by Python {header.python} and cannot be opened by "
                    f"Python {PYTHON}: {error}"
                ) from error
            if isinstance(error, KvpersistError):
                raise
            raise DeserializationError(f"{header.id}: {header.serializer} cannot read the record: {error!r}") from error
        if not isinstance(state, dict):
            raise DeserializationError(f"{header.id}: the record holds a {type(state).__name__}, not a state")
        return state

    def _reader(self, header: Header) -> Serializer:
        name = header.serializer
        reader = self._readers.get(name)
        if reader is None:
            try:
                reader = _installed(name, self._options)
            except OptionError as error:
                raise DeserializationError(
                    f"{header.id}: the record was written by the serializer {name!r}, which is not installed here; "
                    f"installed are {_names()}"
                ) from error
            if not _is_safe(reader) and name not in self._allowed_unsafe:
                raise UnsafeSerializerError(
                    f"{header.id}: the record says that it was written by {name}, and opening it could run any code. "
                    f"If all who can write to the store are trusted, say serde_kwargs={{'allow_unsafe': [{name!r}]}}"
                )
            self._readers[name] = reader
        return reader


def _bound(namespace: str, head: bytes) -> bytes:
    """What encryption and signature are bound to: where the record lives, and its head."""
    return encode_id(namespace).encode() + b"\n" + head


# The options


def _compression(options: dict[str, Any]) -> tuple[Callable[[bytes], bytes] | None, str, int]:
    name, level = options.pop("compression", None), options.pop("compression_level", None)
    max_size = options.pop("max_size", MAX_SIZE)
    if type(max_size) is not int or max_size < 1:
        raise OptionError(f"max_size must be a number of bytes from 1 on, not {max_size!r}")
    if name is None:
        if level is not None:
            raise OptionError("compression_level means nothing without compression")
        return None, "", max_size
    return compression.compressor(name, level), name, max_size


def _encryption(options: dict[str, Any]) -> protection.Encryption | None:
    algorithm = options.pop("encryption", _ABSENT)
    key, wrapper = options.pop("encryption_key", None), options.pop("key_wrapper", None)
    if key is None and wrapper is None:
        if algorithm not in (_ABSENT, None):
            raise OptionError("encryption needs an encryption_key or a key_wrapper")
        return None
    if algorithm is _ABSENT:
        algorithm = "aes-gcm"
    if algorithm is not None and algorithm not in protection.ALGORITHMS:
        raise OptionError(f"no encryption {algorithm!r}; there are {', '.join(protection.ALGORITHMS)} and None")
    if wrapper is not None and not all(callable(getattr(wrapper, name, None)) for name in ("wrap", "unwrap")):
        raise OptionError("the key_wrapper must have the methods wrap and unwrap")
    return protection.Encryption(algorithm, {} if key is None else protection.keys_of("encryption_key", key), wrapper)


def _signing(options: dict[str, Any]) -> protection.Signing | None:
    key = options.pop("signing_key", None)
    return None if key is None else protection.Signing(protection.keys_of("signing_key", key))


_OPTIONS = (
    *("serializer", "compression", "compression_level", "max_size", "encryption", "encryption_key", "key_wrapper"),
    *("allow_plaintext", "signing_key", "allow_unsigned", "allow_unsafe", "classes", "allowlist"),
    *("pickle_kwargs", "pandas_kwargs"),
)


def _refuse_misspelt(options: Mapping[str, Any]) -> None:
    """Unknown options go to Burr, but a key that is almost ``encryption_key`` must not leave records in the clear."""
    import difflib

    for name in options.keys() - set(_OPTIONS):
        close = difflib.get_close_matches(str(name), _OPTIONS, 1, 0.8)
        if close:
            raise OptionError(f"serde_kwargs: there is no option {name!r}; did you mean {close[0]!r}?")


# The serializers


def _name_of(serializer: Any) -> str:
    name = getattr(serializer, "name", None)
    return name if isinstance(name, str) and name else f"{type(serializer).__module__}:{type(serializer).__qualname__}"


def _is_safe(serializer: Any) -> bool:
    return getattr(serializer, "safe", False) is True


def _installed(name: str, options: Mapping[str, Any]) -> Serializer:
    point = _serializers().get(name)
    if point is None:
        raise OptionError(f"no serializer {name!r} is installed; installed are {_names()}")
    serializer: Serializer = point.load()(**options)
    return serializer


@lru_cache(maxsize=1)
def _serializers() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="kvpersist.serializers")}


def _names() -> str:
    return ", ".join(sorted(_serializers()))
