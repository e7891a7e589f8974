"""Evictions of a full store: pages first, control keys last, and both within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsgi_isr.cache.keyspace import SLOTS, Keyspace
from wsgi_isr.cache.tag_versions import TagVersion
from wsgi_isr.stores.base import CONTROL_SHARE, Store
from wsgi_isr.stores.memory import MAX_BYTES, MemoryStore
from wsgi_isr.stores.sqlite.store import SQLiteStore

MakeStore = Callable[[int], Store]

SMALL = 1 << 20
KEYS = Keyspace("site")
TAGS = [KEYS.tag(f"tag:{number}") for number in range(50)]


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    opened: list[Store] = []

    def make(max_bytes: int) -> Store:
        memory = request.param == "memory"
        store = MemoryStore(max_bytes) if memory else SQLiteStore(tmp_path / "store.db", max_bytes=max_bytes)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


def fill_with_pages(store: Store, count: int) -> None:
    for number in range(count):
        store.set(KEYS.page(str(number)), bytes(10_000))


def test_tags_outlive_any_number_of_pages_although_they_are_not_read(make_store: MakeStore) -> None:
    store = make_store(SMALL)
    for tag in TAGS:
        store.set(tag, b"tag")
    store.set(KEYS.epoch("local"), b"epoch")
    fill_with_pages(store, 400)
    assert len(store.get_many(TAGS).values) == len(TAGS)
    assert store.get(KEYS.epoch("local")) == b"epoch"
    assert store.get(KEYS.page("0")) is None
    assert store.get(KEYS.page("399")) is not None


def test_tags_leave_room_for_pages(make_store: MakeStore) -> None:
    store = make_store(SMALL)
    fill_with_pages(store, 30)
    for number in range(4000):
        store.set(KEYS.tag(f"tag:{number}"), bytes(60))
    assert all(store.get(KEYS.page(str(number))) is not None for number in range(30))
    assert store.get(KEYS.tag("tag:0")) is None
    assert store.get(KEYS.tag("tag:3999")) is not None


def test_of_the_tags_the_least_recently_used_go_first(make_store: MakeStore) -> None:
    store = make_store(SMALL)
    for tag in TAGS:
        store.set(tag, b"tag")
    for number in range(4000):
        store.set(KEYS.tag(f"filler:{number}"), bytes(60))
        if number % 100 == 0:
            store.get_many(TAGS[:25])
    assert len(store.get_many(TAGS[:25]).values) == 25
    assert store.get_many(TAGS[25:]).values == {}


def test_a_page_that_is_removed_makes_room_for_as_many_others(make_store: MakeStore) -> None:
    store = make_store(SMALL)
    for _ in range(5):
        fill_with_pages(store, 50)
        for number in range(50):
            store.delete(KEYS.page(str(number)))
        for tag in TAGS:
            store.set(tag, b"tag")
            store.delete(tag)
    fill_with_pages(store, 50)
    assert all(store.get(KEYS.page(str(number))) is not None for number in range(50))


def test_every_slot_fits_into_a_memory_store_of_the_usual_size() -> None:
    store = MemoryStore()
    for number in range(65536):
        tag = f"slot:{number:04x}"
        store.set(KEYS.tag(tag), TagVersion.fresh(tag))
    assert len(store._control.items) == 65536 == sum(map(len, SLOTS.values()))
    assert store._control.bytes < MAX_BYTES * CONTROL_SHARE
