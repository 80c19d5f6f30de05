"""Compression of payloads: zstd, lz4 and gzip.

A compressed payload says in the record's header how long it is when it is whole, and decompression makes
that many bytes and not one more, whatever the bytes claim.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..compaction import PATCH, unpatch
from ..errors import DeserializationError, MissingExtraError, OptionError

PAYS_FROM = 1024
"""Payloads of fewer bytes are not compressed: there is little to win."""


class Compression(NamedTuple):
    """One kind of compression."""

    levels: range
    default_level: int
    compress: Callable[[bytes, int], bytes]
    decompress: Callable[[bytes, int], bytes]
    """Takes the data and the size of the result."""


def _zstd_compress(data: bytes, level: int) -> bytes:
    compressed: bytes = _module("zstandard", "zstd").ZstdCompressor(level=level).compress(data)
    return compressed


def _zstd_decompress(data: bytes, size: int) -> bytes:
    zstandard = _module("zstandard", "zstd")
    # zstandard makes room for what the frame says, whatever limit it is given.
    if zstandard.get_frame_parameters(data).content_size != size:
        raise ValueError("the frame has another size than the header says")
    whole: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    return whole


def _lz4_compress(data: bytes, level: int) -> bytes:
    compressed: bytes = _module("lz4.frame", "lz4").compress(data, compression_level=level)
    return compressed


def _lz4_decompress(data: bytes, size: int) -> bytes:
    return _drained(_module("lz4.frame", "lz4").LZ4FrameDecompressor(), data, size)


def _gzip_compress(data: bytes, level: int) -> bytes:
    compressor = zlib.compressobj(level, wbits=31)  # a gzip header without a time, so that equal data has equal bytes
    return compressor.compress(data) + compressor.flush()


def _gzip_decompress(data: bytes, size: int) -> bytes:
    return _drained(zlib.decompressobj(wbits=31), data, size)


def _drained(decompressor: Any, data: bytes, size: int) -> bytes:
    whole: bytes = decompressor.decompress(data, size + 1)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the compressed data does not end where it should")
    return whole


COMPRESSIONS = {
    "zstd": Compression(range(-7, 23), 3, _zstd_compress, _zstd_decompress),
    "lz4": Compression(range(-65537, 17), 0, _lz4_compress, _lz4_decompress),
    "gzip": Compression(range(0, 10), 6, _gzip_compress, _gzip_decompress),
}


def compressor(name: Any, level: Any) -> Callable[[bytes], bytes]:
    """What compresses at a level; None is the usual one.  Raises `OptionError` for what there is not."""
    chosen = COMPRESSIONS.get(name) if isinstance(name, str) else None
    if chosen is None:
        raise OptionError(f"no compression {name!r}; there are {', '.join(COMPRESSIONS)} and None")
    if level is None:
        level = chosen.default_level
    if type(level) is not int or level not in chosen.levels:
        raise OptionError(
            f"compression_level must be an int from {chosen.levels[0]} to {chosen.levels[-1]} for {name}, not {level!r}"
        )
    chosen.compress(b"", level)  # a missing extra is an error now, not at the first save
    return lambda data: chosen.compress(data, level)


def decompressed(name: str, data: bytes, size: int, max_size: int, base: bytes | None = None) -> bytes:
    """The payload of a record that says it is compressed and how long it was.

    `base` is the payload that it is a patch against, where it is one.
    """
    if name == PATCH and base is not None:
        decompress: Callable[[bytes, int], bytes] | None = partial(unpatch, base)
    else:
        decompress = COMPRESSIONS[name].decompress if name in COMPRESSIONS else None
    if decompress is None:
        raise DeserializationError(
            f"the record is compressed with {name!r}, which this version of kvpersist does not know; "
            f"it knows {', '.join(COMPRESSIONS)}"
        )
    if size > max_size:
        raise DeserializationError(
            f"the record would take {size:,} bytes when decompressed, and max_size allows {max_size:,}; "
            "raise it in serde_kwargs if the record is yours"
        )
    try:
        whole = decompress(data, size)
    except MissingExtraError:
        raise
    except Exception as error:
        raise DeserializationError(f"the payload is no {name} data of {size:,} bytes: {error}") from error
    if len(whole) != size:
        raise DeserializationError(f"the payload is no {name} data of {size:,} bytes")
    return whole


def _module(name: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{extra} is not installed: pip install 'kvpersist[{extra}]'") from error
