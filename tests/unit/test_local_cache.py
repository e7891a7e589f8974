"""L1: bounded by bytes, evicts the least recently used first. No fingerprint leads to an evicted entry."""

from __future__ import annotations

import gc
import tracemalloc
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wsgi_isr.cache.entry import Codec, Content, Entry, HitForMiss
from wsgi_isr.cache.local_cache import MAX_FINGERPRINTS, CachedEntry, Local, _weight
from wsgi_isr.pages.compression import LONGEST, encoded
from wsgi_isr.pages.respond import MOST_VARIANTS, PreparedResponse


def entry(key: str = "k", size: int = 100, number: int = 0) -> Entry:
    content = Content("200 OK", (("X-Number", str(number)),), bytes(size), "e")
    return Entry(key, content, 1.0, 2.0, 60, None)


def test_what_was_put_is_there_and_nothing_else() -> None:
    local = Local(20_000)
    held = entry("a")
    cached = local.put("a", held)
    assert local.get("a") is cached
    assert cached.entry is held
    assert local.get("b") is None
    assert (len(local), local.bytes) == (1, held.size)


def test_a_new_entry_takes_the_place_of_the_old_one_in_a_slot_of_its_own() -> None:
    local = Local(20_000)
    first = local.put("a", entry())
    first.prepared, first.recheck_at = "prepared", 5.0
    second = local.put("a", entry(number=1))
    assert local.get("a") is second
    assert (second.prepared, second.recheck_at) == (None, 0.0)
    assert local.bytes == second.entry.size


def test_the_same_entry_keeps_its_slot_and_what_is_known_of_it() -> None:
    local = Local(20_000)
    cached = local.put("a", entry())
    cached.recheck_at = 5.0
    assert local.put("a", entry()) is cached
    assert local.bytes == cached.entry.size


def test_the_least_recently_used_goes_first() -> None:
    size = entry().size
    local = Local(3 * size)
    for key in "abc":
        local.put(key, entry())
    local.get("a")
    local.put("d", entry())
    assert [key for key in "abcd" if local.get(key)] == ["a", "c", "d"]


def test_a_big_entry_pushes_out_as_many_as_it_needs() -> None:
    size = entry().size
    local = Local(4 * size)
    for key in "abcd":
        local.put(key, entry())
    local.put("e", entry(size=100 + size))
    assert [key for key in "abcde" if local.get(key)] == ["c", "d", "e"]


def test_an_entry_above_the_limit_is_served_but_not_kept_and_pushes_out_nobody() -> None:
    local = Local(20_000)
    local.put("a", entry())
    big = local.put("b", entry(size=20_000))
    assert big.entry.size > 20_000
    assert local.get("b") is None
    assert local.get("a") is not None


def test_an_entry_that_grew_above_the_limit_takes_its_old_copy_along() -> None:
    local = Local(20_000)
    local.put("a", entry())
    local.put("a", entry(size=20_000))
    assert (local.get("a"), local.bytes) == (None, 0)


def test_a_raw_request_leads_straight_to_its_slot() -> None:
    local = Local(20_000)
    cached = local.put("a", entry())
    local.add_alias(("/", ""), "a", cached)
    assert local.fingerprints[("/", "")] is cached


def test_a_slot_that_was_replaced_meanwhile_is_led_to_by_nobody() -> None:
    local = Local(20_000)
    old = local.put("a", entry())
    local.put("a", entry(number=1))
    local.add_alias(("alias",), "a", old)
    assert local.fingerprints == {}


def test_of_many_raw_requests_the_last_few_lead_to_a_copy() -> None:
    local = Local(100_000)
    cached = local.put("a", entry())
    for number in range(100):
        local.add_alias((f"{number}",), "a", cached)
    assert (
        list(local.fingerprints)
        == cached.fingerprints
        == [(f"{number}",) for number in range(100 - MAX_FINGERPRINTS, 100)]
    )


def test_raw_requests_take_the_place_of_their_own_copy_s_alone() -> None:
    local = Local(100_000)
    cached_entries = {key: local.put(key, entry()) for key in "ab"}
    local.add_alias(("b",), "b", cached_entries["b"])
    for number in range(100):
        local.add_alias((f"{number}",), "a", cached_entries["a"])
    assert local.fingerprints[("b",)] is cached_entries["b"]


def test_a_raw_request_in_the_place_of_another_gives_back_what_that_one_weighed() -> None:
    local = Local(100_000)
    cached = local.put("a", entry())
    for number in range(MAX_FINGERPRINTS):
        local.add_alias((f"{number}" * 1_000,), "a", cached)
    before = local.bytes
    for number in range(3 * MAX_FINGERPRINTS):
        local.add_alias((f"{number % 10}" * 999,), "a", cached)
    assert local.bytes == before - MAX_FINGERPRINTS


def test_leading_the_same_request_twice_costs_nothing() -> None:
    local = Local(20_000)
    cached = local.put("a", entry())
    local.add_alias(("alias",), "a", cached)
    before = local.bytes
    local.add_alias(("alias",), "a", cached)
    assert local.bytes == before


def test_a_raw_request_leads_nowhere_once_its_entry_was_pushed_out() -> None:
    size = entry().size
    local = Local(2 * size)
    local.add_alias(("alias",), "a", local.put("a", entry()))
    local.put("b", entry())
    local.put("c", entry())
    assert local.fingerprints == {}


def test_an_invalidation_takes_every_prepared_answer_back_but_keeps_the_copies() -> None:
    local = Local(20_000)
    cached = local.put("a", entry())
    local.add_alias(("alias",), "a", cached)
    cached.prepared = "prepared"
    local.drop_prepared()
    assert cached.prepared is None
    assert local.fingerprints == {("alias",): cached}


def test_probes_count_and_make_room_for_themselves() -> None:
    size = entry().size
    local = Local(2 * size)
    local.put("a", entry())
    cached = local.put("b", entry())
    local.add_alias(("alias",), "b", cached)
    assert local.bytes <= 2 * size


@pytest.mark.parametrize("headers", [0, 6, 60])
@pytest.mark.parametrize("size", [0, 20_000])
@pytest.mark.parametrize("fingerprints", [0, MAX_FINGERPRINTS])
def test_the_bytes_that_are_counted_are_no_less_than_those_that_are_taken(
    headers: int, size: int, fingerprints: int
) -> None:
    key = '["https","example.com","","/blog/%d",[],[],[]]'
    pairs = tuple((f"X-Header-{n}", f"value {n}") for n in range(headers))
    packed = []
    for number in range(200):
        content = Content("200 OK", pairs, bytes(size), "0123456789abcdef")
        packed.append(Codec().pack(Entry(key % number, content, 1.5, 2.5, 60.0, None)))
    # A client may send this: long enough to matter, short enough to be cached.
    url = "/" + "x" * 4_000
    gc.collect()
    tracemalloc.start()
    try:
        local = Local(1 << 30)
        for number, data in enumerate(packed):
            cached = local.put(key % number, Codec().unpack(data, key % number))
            for fingerprint in range(fingerprints):
                local.add_alias((f"{url}{number}.{fingerprint}", f"utm_id={fingerprint}", "GET"), key % number, cached)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(local) == 200
    assert taken <= local.bytes


@pytest.mark.parametrize("headers", [0, 6, 60])
@pytest.mark.parametrize("size", [3, 20_000], ids=["plain", "coded"])
def test_answers_that_are_prepared_for_whatever_visitors_take_count_as_well(headers: int, size: int) -> None:
    pairs = tuple((f"X-Header-{n}", f"value {n}") for n in range(headers))
    plain = Content("200 OK", pairs, bytes(size), "0123456789abcdef")
    packed = Codec().pack(Entry("/", encoded(plain, [("Content-Type", "text/html")]), 1.5, 2.5, 60.0, None))
    names = ["gzip", "br", "zstd", "identity"]
    gc.collect()
    tracemalloc.start()
    try:
        local = Local(1 << 30)
        for number in range(200):
            cached = local.put(str(number), Codec().unpack(packed, "/"))
            assert isinstance(cached.entry.content, Content)
            cached.prepared = PreparedResponse(cached.entry, cached.entry.content, 3.0, 3.0)
            for form in range(2 * MOST_VARIANTS):
                cached.prepared.variant(f"{names[form % 4]}, x{number}.{form}".ljust(LONGEST, "x"))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= local.bytes


KEYS = st.sampled_from("abcde")


class LocalMachine(RuleBasedStateMachine):
    """Random operations against a model that is a plain ordered dict."""

    LIMIT = 24_000

    def __init__(self) -> None:
        super().__init__()
        self.local = Local(self.LIMIT)
        self.known: OrderedDict[str, Entry] = OrderedDict()
        self.cached_entries: list[tuple[str, CachedEntry]] = []
        self.number = 0

    def sync(self) -> None:
        """Check that the least recently used entries were evicted."""
        while len(self.known) > len(self.local):
            self.known.popitem(last=False)

    @rule(key=KEYS, size=st.sampled_from([0, 100, 2_000, 8_000, 20_000, 25_000]), refused=st.booleans())
    def put(self, key: str, size: int, refused: bool) -> None:
        self.number += 1
        new = entry(key, size, self.number)
        if refused:
            new = Entry(key, HitForMiss("private"), 1.0, 2.0, 60, None)
        cached = self.local.put(key, new)
        assert cached.entry == new  # and where it is the same as before, so is the slot
        new = cached.entry
        self.cached_entries.append((key, cached))
        self.known.pop(key, None)
        if new.size <= self.LIMIT:
            self.known[key] = new
        self.sync()

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        cached = self.local.get(key)
        assert (cached and cached.entry) is self.known.get(key)
        if cached:
            self.known.move_to_end(key)

    @rule(fingerprint=st.integers(0, 12), which=st.integers(0, 100))
    def add_alias(self, fingerprint: int, which: int) -> None:
        if self.cached_entries:
            key, cached = self.cached_entries[which % len(self.cached_entries)]
            self.local.add_alias((str(fingerprint), None), key, cached)
            self.sync()

    @invariant()
    def bounded(self) -> None:
        assert 0 <= self.local.bytes <= self.LIMIT

    @invariant()
    def counted(self) -> None:
        kept = self.local._entries.values()
        fingerprints = [fingerprint for cached in kept for fingerprint in cached.fingerprints]
        assert all(len(cached.fingerprints) <= MAX_FINGERPRINTS for cached in kept)
        assert sorted(fingerprints) == sorted(self.local.fingerprints)
        assert self.local.bytes == sum(cached.entry.size for cached in kept) + sum(map(_weight, fingerprints))

    @invariant()
    def probes_lead_only_to_what_is_kept(self) -> None:
        kept = {id(cached) for cached in self.local._entries.values()}
        assert all(id(cached) in kept for cached in self.local.fingerprints.values())

    @invariant()
    def empty_is_empty(self) -> None:
        assert list(self.local._entries) == list(self.known)
        if not self.known:
            assert (self.local.bytes, self.local.fingerprints) == (0, {})


TestLocalMachine = LocalMachine.TestCase
TestLocalMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
