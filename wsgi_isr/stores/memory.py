"""The store of one process, limited in bytes: ``memory://[?max_bytes=N]``.

The least recently used pages are evicted first, control keys last.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import ConfigError, ValueTooLarge
from .base import CONTROL_SHARE, Many, Store, Token, Versioned, is_control
from .fork_hooks import ForkAware, watch
from .urls import parse_store_url

#: Bytes of an item in CPython besides key and value (objects, table slots), measured with tracemalloc and rounded up. A
#: test compares the number with a measurement.
ITEM_OVERHEAD = 432

#: The minimum and the default of ``max_bytes``.
SMALLEST = 64 * 1024
MAX_BYTES = 64 * 1024 * 1024


class _Item(NamedTuple):
    value: bytes
    token: int
    expires: float | None
    size: int


class _LRU:
    """Items in the order of their last use, the least recently used first."""

    def __init__(self) -> None:
        self.items: OrderedDict[str, _Item] = OrderedDict()
        self.bytes = 0

    def put(self, key: str, item: _Item) -> None:
        if key in self.items:
            self.drop(key)
        self.items[key] = item
        self.bytes += item.size

    def drop(self, key: str) -> None:
        self.bytes -= self.items.pop(key).size

    def shrink(self, max_bytes: float) -> None:
        """Evict until the items take no more than ``max_bytes``."""
        while self.bytes > max_bytes and self.items:
            self.drop(next(iter(self.items)))


class MemoryStore(ForkAware, Store):
    """Bytes in a dict.

    :param max_bytes: the maximum of keys, values and their overhead together, at least 64 KiB. One value takes at most
        a quarter of it, and at most :attr:`Store.max_value`, so one page cannot evict all others. Control keys take at
        most :data:`~.base.CONTROL_SHARE` of it, and are evicted after all pages.
    :param clock: seconds since any moment.
    :raises ConfigError: ``max_bytes`` is too small.

    The store is empty in the child of a ``fork``: an inherited copy would diverge from the parent's.
    """

    shared = False
    scheme = "memory"
    location = "memory://"

    def __init__(self, max_bytes: int = MAX_BYTES, *, clock: Callable[[], float] = time.monotonic) -> None:
        if max_bytes < SMALLEST:
            raise ConfigError("store", f"max_bytes={max_bytes} is too small", f"write max_bytes={SMALLEST} or more")
        self.max_bytes = max_bytes
        self.max_value = min(Store.max_value, max_bytes // 4)
        self._clock = clock
        # Children continue the count, and no item resets it: no token is returned twice.
        self._tokens = itertools.count(1)
        self._start_empty()
        watch(self)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._pages = _LRU()
        self._control = _LRU()
        self._writes = 0  # since the last search for expired items

    after_fork_in_child = _start_empty

    @property
    def size(self) -> int:
        """Return the bytes of all keys and values with their overhead."""
        return self._pages.bytes + self._control.bytes

    @classmethod
    def from_url(cls, url: str) -> MemoryStore:
        """Return the store for ``memory://[?max_bytes=N]``.

        :raises ConfigError: the URL has other parts.
        """
        parts = parse_store_url(url, options=("max_bytes",))
        if parts.host or parts.path:
            raise ConfigError("store", "memory:// takes neither host nor path", "write memory://")
        return cls(parts.integer("max_bytes", MAX_BYTES))

    def get(self, key: str) -> bytes | None:
        with self._lock:
            item = self._use(key)
        return item and item.value

    def get_many(self, keys: Sequence[str]) -> Many:
        with self._lock:
            found = {key: item.value for key in keys if (item := self._use(key))}
        return Many(found, {})

    def gets(self, key: str) -> Versioned | None:
        with self._lock:
            item = self._use(key)
        return item and Versioned(item.value, item.token)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._refuse_large(key, value)
        with self._lock:
            self._put(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        with self._lock:
            if self._live(key):
                return False
            self._put(key, value, ttl)
            return True

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        with self._lock:
            item = self._live(key)
            if item is None or item.token != token:
                return False
            self._put(key, value, ttl)
            return True

    def delete(self, key: str) -> bool:
        with self._lock:
            if self._live(key) is None:
                return False
            self._lru(key).drop(key)
            return True

    def close(self) -> None:
        """Do nothing. The values stay."""

    # The callers of the methods below hold the lock.

    def _lru(self, key: str) -> _LRU:
        return self._control if is_control(key) else self._pages

    def _live(self, key: str) -> _Item | None:
        lru = self._lru(key)
        item = lru.items.get(key)
        if item is not None and item.expires is not None and item.expires <= self._clock():
            lru.drop(key)
            return None
        return item

    def _use(self, key: str) -> _Item | None:
        item = self._live(key)
        if item is not None:
            self._lru(key).items.move_to_end(key)
        return item

    def _put(self, key: str, value: bytes, ttl: float | None) -> None:
        expires = None if ttl is None else self._clock() + ttl
        item = _Item(bytes(value), next(self._tokens), expires, len(key) + len(value) + ITEM_OVERHEAD)
        self._lru(key).put(key, item)
        self._writes += 1
        self._control.shrink(self.max_bytes * CONTROL_SHARE)
        if self.size > self.max_bytes:
            self._make_room()

    def _make_room(self) -> None:
        """Evict pages: first all expired ones, then the least recently used.

        The search for expired pages reads all pages, so it runs once in as many writes. A heap of deadlines would take
        a quarter more memory.
        """
        if self._writes >= len(self._pages.items):
            self._writes = 0
            for key in list(self._pages.items):
                self._live(key)
        self._pages.shrink(self.max_bytes - self._control.bytes)

    def _refuse_large(self, key: str, value: bytes) -> None:
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)
