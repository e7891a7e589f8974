"""The codec of cache entries: decoding returns the encoded entry, or raises."""

from __future__ import annotations

import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsgi_isr.cache.entry import SCHEMA, Codec, Content, Entry, HitForMiss, TagSnapshot, UnreadableEntry, Value
from wsgi_isr.config.lifetime import Lifetime

CODEC = Codec()
NAMES = st.text("!#$%&'*+-.^_`|~019AZaz", min_size=1, max_size=20)
# Headers are bytes held as latin-1.
VALUES = st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]) | st.just("\t"), max_size=20)
SECONDS = st.floats(0, 2**40) | st.integers(0, 2**40)

CONTENTS = st.builds(
    Content,
    status=st.sampled_from(["200 OK", "404 Not Found", "301 Moved"]),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=5).map(tuple),
    body=st.binary(max_size=200),
    etag=st.text("0123456789abcdef", max_size=24),
    reads_cookies=st.booleans(),
    coded=st.lists(st.tuples(st.sampled_from(["br", "gzip"]), st.binary(max_size=50)), max_size=2).map(tuple),
)
NONCES = st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=12)), max_size=3).map(tuple)
ENTRIES = st.builds(
    Entry,
    key=st.text(max_size=40),
    content=CONTENTS | st.builds(HitForMiss, NAMES) | st.builds(Value, st.binary(max_size=200)),
    started=SECONDS,
    created=SECONDS,
    revalidate=st.none() | SECONDS,
    expire=st.none() | SECONDS,
    snapshot=st.builds(TagSnapshot, tags=NONCES, valid_at=NONCES),
)

PAGE = Entry(
    '["https","example.com","","/"]',
    Content(
        "200 OK",
        (("Content-Type", "text/html"), ("X-Name", "\t\xff")),
        b"<p>\x00hello</p>",
        "0f1e",
        True,
        (("br", b"\x00br"), ("gzip", b"\xffgzip")),
    ),
    1_700_000_000.25,
    1_700_000_001.5,
    60,
    None,
    TagSnapshot((("all", b"stamp"), ("tag:post", b"")), (("node", b"nonce"),)),
)
VALUE = Entry("f", Value(b"\x92\x01\x02"), 1.0, 2.0, None, None)
REFUSED = Entry("[]", HitForMiss("set-cookie"), 1.0, 2.0, 60.0, None)


@given(ENTRIES)
def test_what_was_packed_comes_out_equal(entry: Entry) -> None:
    again = CODEC.unpack(CODEC.pack(entry), entry.key, isinstance(entry.content, Value))
    assert again == entry
    assert again.size == entry.size
    if isinstance(again.content, Content):
        assert isinstance(again.content.headers, tuple)
        assert all(isinstance(pair, tuple) for pair in again.content.headers)
        assert type(again.content.body) is bytes


@pytest.mark.parametrize("entry", [PAGE, REFUSED, VALUE], ids=["page", "refusal", "value"])
def test_a_value_cut_off_anywhere_is_unreadable(entry: Entry) -> None:
    data = CODEC.pack(entry)
    for length in range(len(data)):
        with pytest.raises(UnreadableEntry):
            CODEC.unpack(data[:length], entry.key, isinstance(entry.content, Value))


@pytest.mark.parametrize("entry", [PAGE, REFUSED, VALUE], ids=["page", "refusal", "value"])
def test_a_single_flipped_bit_anywhere_makes_a_value_unreadable(entry: Entry) -> None:
    data = CODEC.pack(entry)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(UnreadableEntry):
                CODEC.unpack(bytes(damaged), entry.key, isinstance(entry.content, Value))


def test_bytes_behind_the_end_make_a_value_unreadable() -> None:
    with pytest.raises(UnreadableEntry, match="checksum"):
        CODEC.unpack(CODEC.pack(PAGE) + b"\x00", PAGE.key)


@given(st.binary(max_size=80))
def test_bytes_from_elsewhere_are_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableEntry):
        CODEC.unpack(data, "[]")


def test_the_value_of_another_key_is_unreadable() -> None:
    with pytest.raises(UnreadableEntry, match="another key"):
        CODEC.unpack(CODEC.pack(PAGE), REFUSED.key)


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, 255])
def test_a_value_of_another_schema_is_unreadable_and_says_which(schema: int) -> None:
    data = bytes([schema]) + CODEC.pack(PAGE)[1:]
    with pytest.raises(UnreadableEntry, match=f"schema {schema}"):
        CODEC.unpack(data, PAGE.key)


TIMES = [1.0, 2.0, None, None]


def sealed(value: Any) -> bytes:
    """Return bytes with a right checksum, so that only their structure can be wrong."""
    packed: bytes = msgpack.packb(value)
    return bytes([SCHEMA]) + zlib.crc32(packed).to_bytes(4, "big") + packed


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "text",
        [],
        {},
        ["[]"],
        ["[]", "page", [], TIMES, [], []],
        ["[]", "page", None, TIMES, [], []],
        ["[]", "page", ["200 OK", [["only a name"]], b"", "", False], TIMES, [], []],
        ["[]", "refusal", [], TIMES, [], []],
        ["[]", "refusal", ["a", "b"], TIMES, [], []],
        ["[]", "refusal", ["set-cookie"], TIMES[1:], [], []],
        ["[]", "refusal", ["set-cookie"], TIMES, []],
        ["[]", "refusal", ["set-cookie"], TIMES, [["only a tag"]], []],
        ["[]", "refusal", ["set-cookie"], TIMES, [], [], "more"],
        ["[]", "refusal", ["set-cookie"], None, [], []],
        ["[]", "value", [], TIMES, [], []],
        ["[]", "value", [b"a", b"b"], TIMES, [], []],
        ["[]", "data", ["200 OK", [], b"", "", False], TIMES, [], []],
    ],
)
def test_a_whole_value_of_another_shape_is_unreadable(value: Any) -> None:
    for is_data in (False, True):
        with pytest.raises(UnreadableEntry):
            CODEC.unpack(sealed(value), "[]", is_data)


def test_data_in_the_place_of_a_page_is_unreadable_and_the_other_way_round() -> None:
    for entry, is_data in ((VALUE, False), (PAGE, True)):
        with pytest.raises(UnreadableEntry, match="another kind"):
            CODEC.unpack(CODEC.pack(entry), entry.key, is_data)
    assert CODEC.unpack(CODEC.pack(REFUSED), "[]", True) == CODEC.unpack(CODEC.pack(REFUSED), "[]") == REFUSED


@pytest.mark.parametrize(
    "content",
    [
        PAGE.content._replace(status="200\r\nSet-Cookie: a=b"),
        PAGE.content._replace(headers=(("X-Name", "a\0"),)),
        PAGE.content._replace(headers=(("X Name", "a"),)),
        PAGE.content._replace(etag='"'),
        HitForMiss("two words"),
    ],
)
def test_nothing_is_packed_that_would_be_unreadable(content: Any) -> None:
    with pytest.raises(ValueError, match="impossible"):
        CODEC.pack(Entry("[]", content, 1.0, 2.0, 60.0, None))


@settings(max_examples=50)
@given(ENTRIES, st.floats(0, 2**41))
def test_age_is_never_negative_whatever_the_clocks_say(entry: Entry, now: float) -> None:
    assert entry.age(now) == max(0, now - entry.created)


@pytest.mark.parametrize(
    ("one", "other", "lowest"),
    [
        ((60, None), (None, None), (60, None)),
        ((None, None), (60, 600), (60, 600)),
        ((60, 600), (10, 7200), (10, 600)),
        ((60, 600), (3600, 300), (60, 300)),
        ((None, None), (None, None), (None, None)),
        ((0, 5), (60, 600), (0, 5)),
    ],
)
def test_the_lowest_of_two_lifetimes_takes_the_lower_of_each(one: Any, other: Any, lowest: Any) -> None:
    assert Lifetime(*one).lowest(*other) == Lifetime(*lowest)
    assert Lifetime(*other).lowest(*one) == Lifetime(*lowest)


# Signed -------------------------------------------------------------------------------------------------

KEY = "a key of more than 16 characters"
SIGNED = Codec(KEY, "shop")


@given(ENTRIES)
def test_a_signed_entry_comes_out_equal(entry: Entry) -> None:
    again = SIGNED.unpack(SIGNED.pack(entry), entry.key, isinstance(entry.content, Value))
    assert again == entry


def test_the_same_entry_has_the_same_signature_in_every_process() -> None:
    assert Codec(KEY, "shop").pack(PAGE) == SIGNED.pack(PAGE)


@pytest.mark.parametrize(
    "other",
    [Codec(), Codec("another key of as many characters", "shop"), Codec(KEY, "blog"), Codec(KEY)],
    ids=["no key", "another key", "another namespace", "no namespace"],
)
def test_an_entry_of_another_signer_is_unreadable(other: Codec) -> None:
    with pytest.raises(UnreadableEntry, match="signature"):
        SIGNED.unpack(other.pack(PAGE), PAGE.key)
    with pytest.raises(UnreadableEntry, match=r"signature|checksum"):
        other.unpack(SIGNED.pack(PAGE), PAGE.key)


def test_a_single_flipped_bit_anywhere_makes_a_signed_value_unreadable() -> None:
    data = SIGNED.pack(PAGE)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(UnreadableEntry):
                SIGNED.unpack(bytes(damaged), PAGE.key)


def test_a_signed_entry_cut_off_anywhere_is_unreadable() -> None:
    data = SIGNED.pack(PAGE)
    for length in range(len(data)):
        with pytest.raises(UnreadableEntry):
            SIGNED.unpack(data[:length], PAGE.key)


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    sealed_list = SIGNED.seal(b"\x90", "sites")
    assert bytes(SIGNED.unseal(sealed_list, "sites")) == b"\x90"
    with pytest.raises(UnreadableEntry, match="signature"):
        SIGNED.unseal(sealed_list, "entry")
    with pytest.raises(UnreadableEntry, match="signature"):
        SIGNED.unseal(SIGNED.pack(PAGE), "sites")
