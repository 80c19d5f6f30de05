"""Encryption and signatures: what keeps a record secret, and what shows that nobody else made it.

Both are bound to where the record lives (its namespace, partition, app, sequence id and position) and to
its whole header, so a record that is moved, renamed or given another header is refused.  Keys never stand
in an error or a repr.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import MissingExtraError, OptionError, StoreError, UntrustedRecordError
from ..records import Header

ALGORITHMS = {"aes-gcm": ("AESGCM", (16, 24, 32)), "chacha20-poly1305": ("ChaCha20Poly1305", (32,))}
SIGNING = "hmac-sha256"

_NONCE = 12
_RECORDS_A_DATA_KEY = 2**20
_UNWRAPPED = 256


class KeyWrapper(Protocol):
    """Envelope encryption: what wraps the keys that records are encrypted with, such as a KMS.

    It may be called from many threads at once, and must be picklable if the persister is to be sent to
    other processes.
    """

    def wrap(self, key: bytes) -> bytes:
        """The key in a form that may be stored."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """The key that `wrap` was given; any exception where it is not one of this wrapper's."""


class Encryption:
    """Encrypts payloads with one key, and decrypts them with any of several.

    Args:
        algorithm: one of `ALGORITHMS`; None only decrypts.
        keys: key ids to keys, the first of which encrypts; the id ``""`` is not written into records.
        wrapper: encrypts with keys made here and wrapped by it, instead of with the first of `keys`.
    """

    def __init__(self, algorithm: str | None, keys: Mapping[str, bytes], wrapper: KeyWrapper | None) -> None:
        _ciphers()
        self.algorithm = algorithm
        self._keys = keys
        self._wrapper = wrapper
        self._data_key: tuple[bytes, str] = (b"", "")
        self._records_left = 0
        self._unwrapped: OrderedDict[str, bytes] = OrderedDict()
        for number, (key_id, key) in enumerate(keys.items()):
            writes = number == 0 and wrapper is None
            purpose = algorithm if algorithm and writes else "aes-gcm"  # the others may be from before
            lengths = ALGORITHMS[purpose][1]
            if len(key) not in lengths:
                raise OptionError(
                    f"the encryption key{key_id and f' {key_id!r}'} must have {' or '.join(map(str, lengths))} bytes "
                    f"for {purpose}, not {len(key)}; os.urandom(32) makes one"
                )

    def fields(self) -> tuple[dict[str, str], bytes]:
        """What stands in the header of the next record, and the key to encrypt it with."""
        assert self.algorithm is not None
        fields = {"encryption": self.algorithm, "nonce": base64.b64encode(os.urandom(_NONCE)).decode()}
        if self._wrapper is not None:
            if self._records_left <= 0:
                key = os.urandom(32)
                try:
                    self._data_key = key, base64.b64encode(self._wrapper.wrap(key)).decode()
                except Exception as error:
                    raise StoreError("the key_wrapper could not wrap a key; nothing was written") from error
                self._records_left = _RECORDS_A_DATA_KEY
            self._records_left -= 1
            key, fields["wrapped_key"] = self._data_key
        else:
            key_id, key = next(iter(self._keys.items()))
            if key_id:
                fields["key_id"] = key_id
        return fields, key

    def encrypt(self, fields: Mapping[str, str], key: bytes, payload: bytes, bound: bytes) -> bytes:
        """The encrypted payload of a record, for what `fields` returned."""
        cipher, nonce = _cipher(fields["encryption"], key), base64.b64decode(fields["nonce"])
        encrypted: bytes = cipher.encrypt(nonce, payload, bound)
        return encrypted

    def decrypt(self, where: str, header: Header, payload: bytes, bound: bytes) -> bytes:
        """The payload of a record with this header."""
        if header.encryption not in ALGORITHMS:
            raise UntrustedRecordError(
                f"{where}: the record is encrypted with {header.encryption!r}, which is not known here"
            )
        key = self._key(where, header.key_id, header.wrapped_key)
        from cryptography.exceptions import InvalidTag

        try:
            nonce = base64.b64decode(header.nonce or "", validate=True)
            plain: bytes = _cipher(header.encryption, key).decrypt(nonce, payload, bound)
        except (InvalidTag, ValueError) as error:  # a ValueError for a key or nonce of another length
            raise UntrustedRecordError(
                f"{where}: the record does not decrypt: it was encrypted with another key, or changed, or moved here"
            ) from error
        return plain

    def _key(self, where: str, key_id: str | None, wrapped: str | None) -> bytes:
        if wrapped is None:
            key = self._keys.get(key_id or "")
            if key is None:
                known = ", ".join(repr(each) for each in self._keys) or "none"
                raise UntrustedRecordError(
                    f"{where}: the record is encrypted with the key {key_id or ''!r}, and this persister has {known}"
                )
            return key
        if self._wrapper is None:
            raise UntrustedRecordError(f"{where}: the record's key is wrapped, and this persister has no key_wrapper")
        key = self._unwrapped.get(wrapped)
        if key is None:
            try:
                key = self._wrapper.unwrap(base64.b64decode(wrapped, validate=True))
            except Exception as error:
                raise UntrustedRecordError(f"{where}: the key_wrapper cannot unwrap the record's key") from error
            if len(self._unwrapped) >= _UNWRAPPED:
                self._unwrapped.popitem(last=False)
            self._unwrapped[wrapped] = key
        return key


class Signing:
    """Signs records with one key, and verifies them with any of several."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = keys
        for key_id, key in keys.items():
            if len(key) < 16:
                raise OptionError(
                    f"the signing key{key_id and f' {key_id!r}'} must have 16 bytes or more, not {len(key)}; "
                    "os.urandom(32) makes one"
                )

    def fields(self) -> dict[str, str]:
        """What stands in the header of the next record."""
        key_id = next(iter(self._keys))
        return {"signing": SIGNING, **({"signing_key_id": key_id} if key_id else {})}

    def sign(self, bound: bytes, payload: bytes) -> str:
        """The signature, in hex."""
        return _mac(next(iter(self._keys.values())), bound, payload)

    def verify(self, where: str, header: Header, bound: bytes, payload: bytes) -> None:
        """Raise `UntrustedRecordError` unless the signature is that of one of the keys."""
        if header.signing is None or header.signature is None:
            raise UntrustedRecordError(
                f"{where}: the record is not signed; say serde_kwargs={{'allow_unsigned': True}} while there are "
                "records from before signing"
            )
        key_id = header.signing_key_id or ""
        key = self._keys.get(key_id) if header.signing == SIGNING else None
        if key is None:
            raise UntrustedRecordError(
                f"{where}: the record is signed with the {header.signing} key {key_id!r}, which this persister has not"
            )
        if not hmac.compare_digest(_mac(key, bound, payload), header.signature):
            raise UntrustedRecordError(
                f"{where}: the signature is wrong: the record was signed with another key, or changed, or moved here"
            )


def keys_of(option: str, given: Any) -> dict[str, bytes]:
    """The keys of an option: bytes, or key ids to bytes."""
    keys = dict(given) if isinstance(given, Mapping) else {"": given}
    if not keys or not all(type(key_id) is str and isinstance(key, (bytes, bytearray)) for key_id, key in keys.items()):
        raise OptionError(
            f"{option} must be bytes, or a mapping of key ids (str) to bytes, the first of which is for writing; "
            "bytes.fromhex or base64.b64decode make bytes of text"
        )
    return {key_id: bytes(key) for key_id, key in keys.items()}


def _mac(key: bytes, bound: bytes, payload: bytes) -> str:
    # The header holds no newline, so no byte can move between it and the payload.
    inner = hmac.new(key, bound, hashlib.sha256)
    inner.update(b"\n")
    inner.update(payload)
    return inner.hexdigest()


def _cipher(algorithm: str, key: bytes) -> Any:
    return getattr(_ciphers(), ALGORITHMS[algorithm][0])(key)


def _ciphers() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError as error:
        raise MissingExtraError("encryption needs cryptography: pip install 'kvpersist[encryption]'") from error
    return aead
