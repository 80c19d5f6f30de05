"""The key layout: injective, newest first, safe on every store."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvpersist import InvalidIdError, InvalidKeyError, keys
from kvpersist.testing.persister import HOSTILE_IDS

# Ids made of what is likely to be confused, and any text at all.
IDS = st.one_of(
    st.sampled_from(HOSTILE_IDS),
    st.text("aA=!%/.\\0-_ ~\0é", max_size=6),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
SEQUENCE_IDS = st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 20), st.just(2**63 - 1))
RECORDS = st.builds(keys.RecordId, st.none() | IDS, IDS, SEQUENCE_IDS, IDS)


@given(IDS, RECORDS)
def test_a_record_is_found_again_from_its_key(namespace: str, record: keys.RecordId) -> None:
    key = keys.record_key(namespace, record)
    assert keys.parse(key) == (namespace, record)
    app = keys.app_prefix(namespace, record.partition_key, record.app_id)
    assert key.startswith(app)
    assert app.startswith(keys.partition_prefix(namespace, record.partition_key))
    assert keys.ids_of(app) == (record.partition_key, record.app_id)


@given(RECORDS, RECORDS)
@example(keys.RecordId(None, "a", 1, "p"), keys.RecordId("", "a", 1, "p"))
@example(keys.RecordId("a", "b/c", 1, "p"), keys.RecordId("a/b", "c", 1, "p"))
@example(keys.RecordId("A", "a", 1, "p"), keys.RecordId("a", "a", 1, "p"))
@example(keys.RecordId("é", "a", 1, "p"), keys.RecordId(unicodedata.normalize("NFD", "é"), "a", 1, "p"))
def test_two_records_never_share_a_key(one: keys.RecordId, other: keys.RecordId) -> None:
    same = keys.record_key("n", one) == keys.record_key("n", other)
    assert same is (one == other)
    # Nor where the file system folds case or normalises, as those of macOS and Windows do.
    folded = [unicodedata.normalize("NFC", keys.record_key("n", each)).casefold() for each in (one, other)]
    assert (folded[0] == folded[1]) is (one == other)


@given(RECORDS, SEQUENCE_IDS)
def test_ascending_order_is_newest_first(record: keys.RecordId, sequence_id: int) -> None:
    other = record._replace(sequence_id=sequence_id)
    by_key = sorted([record, other], key=lambda each: keys.record_key("n", each))
    by_age = sorted([record, other], key=lambda each: -each.sequence_id)
    assert by_key == by_age


@given(RECORDS)
def test_what_belongs_to_an_app_sorts_behind_its_records(record: keys.RecordId) -> None:
    app = keys.app_prefix("n", record.partition_key, record.app_id)
    assert keys.record_key("n", record) < app + keys.SET_ASIDE


@given(IDS, RECORDS)
def test_keys_are_safe_on_every_store(namespace: str, record: keys.RecordId) -> None:
    key = keys.record_key(namespace, record)
    keys.check(key)
    segments = key.split("/")
    assert len(segments) == 4
    for segment in segments:
        assert re.fullmatch(r"[a-z0-9!=_-][a-z0-9!=_.-]*", segment)
        assert segment.split(".")[0] not in {"con", "prn", "aux", "nul", "com1", "lpt1"}
    for segment in segments[:3]:
        assert "." not in segment


@given(st.text("abAB01=!/.-_%~ é", max_size=12) | st.from_regex(r"[0-9]{19}\.[0-9]+\.[a-z=!]+", fullmatch=True))
def test_only_what_encode_writes_is_decoded(segment: str) -> None:
    try:
        decoded = keys.decode(segment)
    except InvalidKeyError:
        return
    assert keys.encode(decoded) == segment


@given(st.from_regex(r"[0-9]{17,20}\.0?[0-9]{1,19}\.[a-z=!0-9]+", fullmatch=True) | st.text())
def test_only_records_names_are_parsed(name: str) -> None:
    parsed = keys.parse_name(name)
    assert parsed is None or keys.record_name(*parsed) == name
    assert keys.parse(f"n/p/{name}") is None
    assert keys.parse(f"n/p/a/b/{name}") is None


@pytest.mark.parametrize(
    ("text", "segment"),
    [
        ("chat-1_x", "chat-1_x"),
        ("3f2b1c9e-aaaa-bbbb", "3f2b1c9e-aaaa-bbbb"),
        ("User", "!user"),
        ("a/b", "a=2fb"),
        ("v1.2", "v1=2e2"),
        ("é", "=c3=a9"),
        ("", "=empty"),
        (None, "=none"),
        ("=none", "=3dnone"),
        ("nul", "=6eul"),
        ("null", "null"),
    ],
)
def test_the_written_form(text: str | None, segment: str) -> None:
    # Pinned: keys written by one version are looked up by all later ones.
    assert keys.encode(text) == segment


def test_the_whole_key() -> None:
    record = keys.RecordId("user@example.com", "chat-1", 6, "answer")
    assert keys.record_key("kvpersist", record) == "kvpersist/user=40example=2ecom/chat-1/9223372036854775801.6.answer"


@pytest.mark.parametrize("segment", ["=ff", "a=2fb=c3", "9=41", "=none=", "a.b"])
def test_a_segment_that_no_id_has_is_no_records(segment: str) -> None:
    name = keys.record_name(6, "answer")
    with pytest.raises(InvalidKeyError, match="is not a key segment"):
        keys.decode(segment)
    assert keys.parse(f"{segment}/p/a/{name}") is None
    assert keys.parse(f"n/{segment}/a/{name}") is None
    assert keys.parse_name(f"{keys.sequence_name(6)}{segment}") is None


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidIdError, match="lone surrogate"):
        keys.encode("a\ud800")


@given(st.text("az!-./0=_", max_size=6), st.none() | st.text("az!-./0=_", max_size=8), st.booleans())
def test_scan_ranges_hold_what_starts_with_the_prefix(prefix: str, after: str | None, children: bool) -> None:
    start, end = keys.scan_range(prefix, after, children=children)
    for key in [prefix + "!", prefix + "z", prefix + "a/b", "a", "z/z", (after or "") + "/x", (after or "") + "0"]:
        # A child stands for its keys; text that is no child of this prefix does not.
        child = children and after is not None and after.endswith("/") and after.startswith(prefix)
        inside = key.startswith(prefix) and (after is None or (key > after and not (child and key.startswith(after))))
        assert (start <= key < end) is inside
