"""A reader of format 1, written from docs/format.md alone: the standard library, zstandard, and nothing of kvpersist.

    python format_reader.py FOLDER

prints a line of JSON for each record below the folder of a ``file://`` store, parts undone.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

MAX = 2**63 - 1
RESERVED = {"con", "prn", "aux", "nul", *(f"{each}{n}" for each in ("com", "lpt") for n in range(10))}


class Malformed(Exception):
    pass


def need(condition: object, what: str) -> None:
    if not condition:
        raise Malformed(what)


def escape(text: str | None) -> str:
    if text is None:
        return "=none"
    if text == "":
        return "=empty"
    if text in RESERVED:
        return f"={ord(text[0]):02x}{text[1:]}"
    written = ""
    for byte in text.encode():
        character = chr(byte)
        if re.fullmatch("[a-z0-9_-]", character):
            written += character
        elif re.fullmatch("[A-Z]", character):
            written += "!" + character.lower()
        else:
            written += f"={byte:02x}"
    return written


def unescape(segment: str) -> str | None:
    if segment == "=none":
        return None
    if segment == "=empty":
        return ""
    need(re.fullmatch(r"(?:[a-z0-9_-]|![a-z]|=[0-9a-f]{2})+", segment), segment)
    data = re.sub(
        r"!([a-z])|=([0-9a-f]{2})",
        lambda found: found[1].upper() if found[1] else chr(int(found[2], 16)),
        segment,
    ).encode("latin-1")
    text = data.decode()
    need(escape(text) == segment, f"{segment} is not what would be written")
    return text


def key_of(path: Path, root: Path) -> str:
    """A key from the path of its file: the folders of digits are a name's beginning."""
    return re.sub(r"\+/", "", path.relative_to(root).as_posix())


def split(value: bytes) -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """The header, the head, the signature's text and the payload, the checksum checked."""
    line, newline, payload = value.partition(b"\n")
    need(newline and line.startswith(b'{"kvpersist":'), "no record")
    found = re.fullmatch(rb'(.*?)((?:,"signature":"[0-9a-f]{64}")?),"checksum":"([0-9a-f]{64})"\}', line, re.DOTALL)
    assert found is not None, "no checksum at the end"
    need(hashlib.sha256(found[1] + found[2] + payload).hexdigest().encode() == found[3], "checksum")
    header = json.loads(line)
    need(header["kvpersist"] == 1, "format")
    return header, found[1], found[2], payload


def record_name(sequence_id: int, rest: str) -> str:
    return f"{MAX - sequence_id:019d}.{sequence_id}{rest}"


def undo(header: dict[str, Any], payload: bytes, base: bytes | None) -> bytes:
    need("encryption" not in header, "encrypted")
    kind = header.get("compression")
    if kind is None:
        return payload
    size = header["uncompressed_size"]
    if kind == "gzip":
        data = gzip.decompress(payload)
    else:
        need(kind in ("zstd", "zstd-patch"), f"compression {kind}")
        need((kind == "zstd-patch") == (base is not None), "a patch needs a base")
        need(zstandard.frame_content_size(payload) == size, "content size")
        dictionary = (
            None if base is None else zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        )
        data = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=2**31).decompress(payload)
    need(len(data) == size, "size")
    return data


def payload_of(app: str, value: bytes, values: dict[str, bytes], *, signing_key: bytes | None = None) -> bytes:
    """The payload of a record, by its parts where it has some."""
    header, head, signature, payload = split(value)
    if signing_key is not None:
        bound = escape_of_namespace(app) + b"\n" + head + b"\n" + payload
        expected = hmac.new(signing_key, bound, hashlib.sha256).hexdigest()
        need(header["signing"] == "hmac-sha256" and signature == b',"signature":"%s"' % expected.encode(), "signature")
    chain = [(header, payload)]
    names = header.get("bases") or []
    digest = header.get("base_hash")
    for number, name in enumerate(names):
        sequence_id = name.partition(".")[0]
        part = values[f"{app}!parts/{MAX - int(sequence_id):019d}.{name}"]
        need(hashlib.sha256(part).hexdigest() == digest, "base_hash")
        of_part, _, _, stored = split(part)
        partition_key, app_id = (unescape(each) for each in app.split("/")[1:3])
        need(of_part.get("part") in (1, 2, 3), "no part")
        need((of_part["partition_key"], of_part["app_id"]) == (partition_key, app_id), "the place of a part")
        need((of_part["sequence_id"], of_part["position"]) == (int(sequence_id), ""), "the place of a part")
        need(of_part["status"] == "completed", "the status of a part")
        need((of_part.get("bases") or []) == names[number + 1 :], "the bases of a part")
        digest = of_part.get("base_hash")
        chain.append((of_part, stored))
    base: bytes | None = None
    for each, stored in reversed(chain):
        base = undo(each, stored, base)
    assert base is not None
    return base


def escape_of_namespace(app: str) -> bytes:
    return app.partition("/")[0].encode()


def records(root: Path, signing_key: bytes | None = None) -> Iterator[dict[str, Any]]:
    files = [
        path
        for path in root.rglob("*")
        if path.is_file() and not any(each.startswith(".") for each in path.relative_to(root).parts)
    ]
    values = {key_of(path, root): path.read_bytes() for path in files}
    for key in sorted(values, key=str.encode):
        namespace, partition, app_id, *folders, name = key.split("/")
        app = f"{namespace}/{partition}/{app_id}/"
        if folders == ["condemned"]:
            need(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", values[key].decode()), "a time")
            need(key.replace("/condemned/", "/!parts/") in values, "a marker is for a part")
            continue
        header = split(values[key])[0]
        if folders == ["!parts"]:
            found = re.fullmatch(r"(\d{19})\.(\d+)(\.[0-9a-f]{32})?", name)
            assert found is not None, name
            need(name == record_name(int(found[2]), found[3] or ""), name)
            need(header.get("part"), "a part says so")
            continue
        if folders:
            need(folders[0] == "set-aside" and len(folders) == 2, key)
            need(re.fullmatch(r"\d{19}-[0-9a-f]{8}", folders[1]), key)
        need(header.get("part") is None, "a record is no part")
        complement, written, position = name.split(".", 2)
        sequence_id = int(written)
        need(complement == f"{MAX - sequence_id:019d}" and written == str(sequence_id), name)
        ids = (unescape(partition), unescape(app_id), sequence_id, unescape(position))
        need(ids == tuple(header[each] for each in ("partition_key", "app_id", "sequence_id", "position")), "place")
        payload = payload_of(app, values[key], values, signing_key=signing_key)
        yield {
            "namespace": unescape(namespace),
            "ids": ids,
            "status": header["status"],
            "created_at": header["created_at"],
            "set_aside": bool(folders),
            "bases": len(header.get("bases") or []),
            "state": json.loads(payload) if header["serializer"] == "json" else None,
        }


if __name__ == "__main__":
    for record in records(Path(sys.argv[1]), sys.argv[2].encode() if sys.argv[2:] else None):
        print(json.dumps(record))
