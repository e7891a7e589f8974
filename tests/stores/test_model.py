"""The stores against a plain model: any order of verbs, handles, restarts and passing time."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule

from wsgi_isr.stores.base import Store
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.stores.null import NullStore
from wsgi_isr.stores.sqlite.store import SQLiteStore

KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from([b"", b"x", b"y", b"z" * 5000])
TTLS = st.sampled_from([None, None, 0.5, 1.0, 2.5, 10.0])
CAS_TTLS = TTLS | st.just(0)
HANDLES = st.integers(0, 2)


class Entry(NamedTuple):
    value: bytes
    version: int
    expires: float | None


class Seen(NamedTuple):
    """Results of ``gets``: from the model, and from each store."""

    key: str
    version: int
    tokens: tuple[Any, Any]


class StoresAgreeWithTheModel(RuleBasedStateMachine):
    seen = Bundle("seen")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_700_000_000.0
        self.model: dict[str, Entry] = {}
        self.versions = itertools.count()
        self.directory = tempfile.mkdtemp()
        self.memory = MemoryStore(clock=self.clock)
        self.handles = [self.open() for _ in range(3)]

    def clock(self) -> float:
        return self.now

    def open(self) -> SQLiteStore:
        return SQLiteStore(f"{self.directory}/store.db", clock=self.clock)

    def teardown(self) -> None:
        for handle in self.handles:
            handle.close()
        shutil.rmtree(self.directory)

    def live(self, key: str) -> Entry | None:
        entry = self.model.get(key)
        return None if entry is None or (entry.expires is not None and entry.expires <= self.now) else entry

    def write(self, key: str, value: bytes, ttl: float | None) -> None:
        self.model[key] = Entry(value, next(self.versions), None if ttl is None else self.now + ttl)

    def both(self, handle: int) -> tuple[Store, Store]:
        return self.memory, self.handles[handle]

    @rule(handle=HANDLES, key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, handle, key, value, ttl):
        self.write(key, value, ttl)
        for store in self.both(handle):
            store.set(key, value, ttl)

    @rule(handle=HANDLES, key=KEYS, value=VALUES, ttl=TTLS)
    def add(self, handle, key, value, ttl):
        expected = self.live(key) is None
        if expected:
            self.write(key, value, ttl)
        for store in self.both(handle):
            assert store.add(key, value, ttl) is expected

    @rule(handle=HANDLES, key=KEYS)
    def delete(self, handle, key):
        expected = self.live(key) is not None
        self.model.pop(key, None)
        for store in self.both(handle):
            assert store.delete(key) is expected

    @rule(handle=HANDLES, key=KEYS)
    def get(self, handle, key):
        entry = self.live(key)
        for store in self.both(handle):
            assert store.get(key) == (entry and entry.value)

    @rule(handle=HANDLES, keys=st.lists(KEYS, max_size=4))
    def get_many(self, handle, keys):
        expected = {key: entry.value for key in keys if (entry := self.live(key))}
        for store in self.both(handle):
            assert store.get_many(keys) == (expected, {})

    @rule(target=seen, handle=HANDLES, key=KEYS)
    def gets(self, handle, key):
        entry = self.live(key)
        found = [store.gets(key) for store in self.both(handle)]
        if entry is None:
            assert found == [None, None]
            return Seen(key, -1, (None, None))
        assert [each.value for each in found] == [entry.value] * 2
        return Seen(key, entry.version, (found[0].token, found[1].token))

    @rule(handle=HANDLES, what=seen, value=VALUES, ttl=CAS_TTLS)
    def cas(self, handle, what, value, ttl):
        self.swap(handle, what, value, ttl)

    @rule(handle=HANDLES, what=consumes(seen), value=VALUES)
    def cas_at_once(self, handle, what, value):
        """Try one token that may be current, twice in a row. Most tokens above are outdated."""
        self.swap(handle, what, value, None)
        self.swap(handle, what, value, None)

    def swap(self, handle, what, value, ttl):
        entry = self.live(what.key)
        expected = entry is not None and entry.version == what.version
        if expected:
            self.write(what.key, value, ttl)
        for store, token in zip(self.both(handle), what.tokens, strict=True):
            assert store.cas(what.key, value, token, ttl) is expected

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 3.0, 20.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(handle=HANDLES)
    def close(self, handle):
        self.handles[handle].close()

    @rule(handle=HANDLES)
    def restart(self, handle):
        self.handles[handle].close()
        self.handles[handle] = self.open()


class NullIsAlwaysEmpty(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = NullStore()

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def write(self, key, value, ttl):
        self.store.set(key, value, ttl)
        assert self.store.add(key, value, ttl) is True

    @rule(key=KEYS, value=VALUES, token=st.none() | st.integers() | st.binary())
    def never_there(self, key, value, token):
        assert self.store.get(key) is None
        assert self.store.gets(key) is None
        assert self.store.get_many([key]) == ({}, {})
        assert self.store.cas(key, value, token) is False
        assert self.store.delete(key) is False


TestStoresAgreeWithTheModel = StoresAgreeWithTheModel.TestCase
TestStoresAgreeWithTheModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestNullIsAlwaysEmpty = NullIsAlwaysEmpty.TestCase
TestNullIsAlwaysEmpty.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
