"""L1: bounded by bytes, keeps what is asked for again. No fingerprint leads to an evicted entry."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from wsgi_isr.cache.entry import Codec, Content, Entry, HitForMiss
from wsgi_isr.cache.local_cache import _GHOST_BYTES, MAX_FINGERPRINTS, CachedEntry, Local, _weight
from wsgi_isr.pages.compression import MAX_CACHED, encoded
from wsgi_isr.pages.respond import MAX_VARIANTS, PreparedResponse


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


def kept(local: Local, keys: str) -> str:
    """Return those of ``keys`` that are kept, without a use of them."""
    return "".join(key for key in keys if local._of(key))


def test_an_entry_that_was_asked_for_stays_and_the_oldest_other_goes() -> None:
    size = entry().size
    local = Local(3 * size + 1000)
    for key in "abc":
        local.put(key, entry())
    local.get("a")
    local.put("d", entry())
    assert kept(local, "abcd") == "acd"


def test_a_big_entry_pushes_out_as_many_as_it_needs() -> None:
    size = entry().size
    local = Local(4 * size + 1000)
    for key in "abcd":
        local.put(key, entry())
    local.put("e", entry(size=100 + size))
    assert kept(local, "abcde") == "cde"


def test_a_crawler_that_asks_for_each_page_once_evicts_nothing_that_visitors_ask_for() -> None:
    local = Local(20 * entry().size)
    for key in "abcdefgh":
        local.put(key, entry())
        local.get(key)
    for number in range(1000):
        local.put(f"crawled {number}", entry())
    assert kept(local, "abcdefgh") == "abcdefgh"


def test_an_entry_that_comes_back_soon_is_kept_before_newer_ones() -> None:
    local = Local(20 * entry().size)
    for number in range(30):
        local.put(f"filler {number}", entry())
    local.put("back", entry())
    for number in range(25):
        local.put(f"later {number}", entry())
    assert local._of("back") is None
    local.put("back", entry())
    for number in range(100):
        local.put(f"last {number}", entry())
    assert local._of("back") is not None


def test_a_page_that_visitors_no_longer_ask_for_makes_room_at_last() -> None:
    local = Local(10 * entry().size)
    for key in "abcdefgh":
        local.put(key, entry())
        for _ in range(10):
            local.get(key)
    for _turn in range(2):
        for number in range(400):
            local.put(f"new {number}", entry())
            local.get(f"new {number}")
    assert kept(local, "abcdefgh") == ""


def test_a_regenerated_page_keeps_its_place_and_its_uses() -> None:
    local = Local(20 * entry().size)
    local.put("a", entry())
    local.get("a")
    local.put("a", entry(number=1))
    for number in range(100):
        local.put(f"crawled {number}", entry())
    assert local._of("a") is not None


def test_remembered_keys_count_and_are_fewer_than_the_entries() -> None:
    local = Local(10 * entry().size)
    for number in range(1000):
        local.put(f"{number}", entry())
    assert 0 < len(local._ghosts) <= len(local)
    assert local.bytes == len(local) * entry().size + len(local._ghosts) * _GHOST_BYTES


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
            for form in range(2 * MAX_VARIANTS):
                cached.prepared.variant(f"{names[form % 4]}, x{number}.{form}".ljust(MAX_CACHED, "x"))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= local.bytes


KEYS = st.sampled_from("abcde")


class LocalMachine(RuleBasedStateMachine):
    """Random operations: an entry that is kept is the last one that was put."""

    LIMIT = 40_000

    def __init__(self) -> None:
        super().__init__()
        self.local = Local(self.LIMIT)
        self.last: dict[str, Entry] = {}
        self.cached_entries: list[tuple[str, CachedEntry]] = []
        self.number = 0

    @rule(key=KEYS, size=st.sampled_from([0, 100, 2_000, 8_000, 33_000, 40_000]), refused=st.booleans())
    def put(self, key: str, size: int, refused: bool) -> None:
        self.number += 1
        new = entry(key, size, self.number)
        if refused:
            new = Entry(key, HitForMiss("private"), 1.0, 2.0, 60, None)
        is_new = self.local._of(key) is None
        cached = self.local.put(key, new)
        assert cached.entry == new
        self.last[key] = cached.entry
        self.cached_entries.append((key, cached))
        if new.size > self.LIMIT:
            assert self.local._of(key) is None
        # A regenerated page keeps its place, and may be the oldest. A huge page may be the only one to evict.
        elif is_new and new.size < self.LIMIT // 4:
            assert self.local._of(key) is cached

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        cached = self.local.get(key)
        assert cached is None or cached.entry is self.last[key]

    @rule(fingerprint=st.integers(0, 12), which=st.integers(0, 100))
    def add_alias(self, fingerprint: int, which: int) -> None:
        if self.cached_entries:
            key, cached = self.cached_entries[which % len(self.cached_entries)]
            self.local.add_alias((str(fingerprint), None), key, cached)

    @property
    def kept(self) -> list[CachedEntry]:
        return [*self.local._small.values(), *self.local._main.values()]

    @invariant()
    def bounded(self) -> None:
        assert 0 <= self.local.bytes <= self.LIMIT
        assert not self.local._small.keys() & self.local._main.keys()
        assert not self.local._ghosts.keys() & (self.local._small.keys() | self.local._main.keys())

    @invariant()
    def counted(self) -> None:
        fingerprints = [fingerprint for cached in self.kept for fingerprint in cached.fingerprints]
        assert all(len(cached.fingerprints) <= MAX_FINGERPRINTS for cached in self.kept)
        assert sorted(fingerprints) == sorted(self.local.fingerprints)
        weights = sum(cached.entry.size for cached in self.kept) + sum(map(_weight, fingerprints))
        assert weights == sum(cached.weight for cached in self.kept)
        assert self.local.bytes == weights + _GHOST_BYTES * len(self.local._ghosts)
        assert self.local._small_bytes == sum(cached.weight for cached in self.local._small.values())

    @invariant()
    def fingerprints_lead_only_to_what_is_kept(self) -> None:
        kept = {id(cached) for cached in self.kept}
        assert all(id(cached) in kept for cached in self.local.fingerprints.values())

    @invariant()
    def empty_is_empty(self) -> None:
        if not len(self.local):
            assert (self.local.bytes, self.local.fingerprints) == (0, {})


TestLocalMachine = LocalMachine.TestCase
TestLocalMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
