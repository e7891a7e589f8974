from __future__ import annotations

import random
import time
import tracemalloc

import pytest

from wsgi_isr.errors import ConfigError
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.testing import StoreSuite, in_processes


class TestSuite(StoreSuite):
    @pytest.fixture(autouse=True)
    def _place(self, clock):
        self.clock = clock

    def make_store(self) -> Store:
        return MemoryStore(clock=self.clock)

    def make_bounded_store(self, max_bytes: int) -> Store:
        return MemoryStore(max_bytes, clock=self.clock)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


def test_a_value_is_missing_from_the_very_moment_its_ttl_has_passed(clock):
    store = MemoryStore(clock=clock)
    store.set("key", b"value", ttl=10)
    clock.advance(9.999)
    assert store.get("key") == b"value"
    clock.advance(0.001)
    assert store.get("key") is None


def test_what_is_past_its_ttl_makes_room_before_what_is_not(clock):
    store = MemoryStore(64 * 1024, clock=clock)
    store.set("old and alive", b"x" * 5000)
    for number in range(10):
        store.set(f"dead:{number}", b"x" * 5000, ttl=10)
    clock.advance(10)
    for number in range(10):
        store.set(f"new:{number}", b"x" * 5000)
    assert store.get("old and alive") is not None
    assert len(store.get_many([f"new:{number}" for number in range(10)]).values) == 10


@pytest.mark.parametrize("verb", ["get", "gets", "get_many"])
def test_every_reading_verb_counts_as_use(verb):
    store = MemoryStore(64 * 1024)
    store.set("read", b"x" * 5000)
    store.set("unread", b"x" * 5000)
    for number in range(30):
        store.set(f"filler:{number}", b"x" * 5000)
        getattr(store, verb)(["read"] if verb == "get_many" else "read")
    assert (store.get("read") is None, store.get("unread") is None) == (False, True)


@pytest.mark.parametrize("size", [0, 100, 1000, 20_000])
def test_the_memory_really_taken_stays_within_the_bound(size):
    chance = random.Random(size)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        store = MemoryStore(2_000_000)
        for _ in range(6_000_000 // (size + 500)):
            store.set(f"{chance.getrandbits(160):040x}", chance.randbytes(size), ttl=60)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # The last part is the dict's own table, and the rounding of the allocator.
    assert 1_000_000 < taken <= 2_000_000 * 1.02


def test_one_value_may_take_a_quarter_of_the_bound():
    store = MemoryStore(1_000_000)
    assert store.max_value == 250_000
    store.set("key", bytes(250_000))
    assert store.get("key") == bytes(250_000)


def test_a_bytearray_that_changes_later_does_not_change_what_is_stored():
    store = MemoryStore()
    value = bytearray(b"value")
    store.set("key", value)
    value[:] = b"other"
    assert store.get("key") == b"value"


def test_a_child_starts_empty():
    store = MemoryStore()
    store.set("key", b"parent")
    assert in_processes(1, lambda _: [store.get("key") is None, store.add("key", b"child")]) == [[True, True]]
    assert store.get("key") == b"parent"


def test_a_child_of_a_fork_in_the_middle_of_a_verb_of_another_thread_is_not_locked_out():
    store = MemoryStore()
    with store._lock:  # the child inherits a lock that no thread there would ever release
        [answers] = in_processes(1, lambda _: [store.add("key", b"child"), store.get("key") == b"child"])
    assert answers == [True, True]


def test_a_token_of_the_parent_is_not_good_in_the_child():
    store = MemoryStore()
    store.set("key", b"value")
    token = store.gets("key").token

    def child(_):
        store.set("key", b"value")
        return store.cas("key", b"late", token)

    assert in_processes(1, child) == [False]


def test_the_time_is_monotonic_unless_another_clock_is_given():
    assert MemoryStore()._clock is time.monotonic


@pytest.mark.parametrize("url", ["memory://host", "memory:///path", "memory://?max_bytes=1000"])
def test_a_url_that_cannot_be_meant_is_refused(url):
    with pytest.raises(ConfigError) as caught:
        MemoryStore.from_url(url)
    assert caught.value.option == "store"
    assert caught.value.remedy
