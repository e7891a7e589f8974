"""``memory://[?max_bytes=N]``: one process, bounded by bytes, least recently used out first."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import ConfigError, ValueTooLarge
from .base import Many, Store, Token, Versioned
from .forks import ForkAware, watch
from .urls import take_apart

#: Bytes that CPython needs for an item beside the bytes of key and value (objects, table slots);
#: measured with tracemalloc, rounded up. A test holds it against the real figure.
ITEM_OVERHEAD = 432

#: The least and the usual ``max_bytes``.
SMALLEST = 64 * 1024
MAX_BYTES = 64 * 1024 * 1024


class _Item(NamedTuple):
    value: bytes
    token: int
    expires: float | None
    size: int


class MemoryStore(ForkAware, Store):
    """Bytes in a dict.

    :param max_bytes: what keys, values and their bookkeeping may take together, at least 64 KiB. One
        value may take a quarter of it (and at most :attr:`Store.max_value`), so that no page can push
        out everything else.
    :param clock: seconds; any zero.
    :raises ConfigError: for a smaller ``max_bytes``.

    A child starts empty after ``fork``: what it inherited could only grow apart from the parent's.
    """

    shared = False

    def __init__(self, max_bytes: int = MAX_BYTES, *, clock: Callable[[], float] = time.monotonic) -> None:
        if max_bytes < SMALLEST:
            raise ConfigError("store", f"max_bytes={max_bytes} is too small", f"write {SMALLEST} or more")
        self.max_bytes = max_bytes
        self.max_value = min(Store.max_value, max_bytes // 4)
        self._clock = clock
        # Counted on in children and after everything was dropped: a token is never handed out twice.
        self._tokens = itertools.count(1)
        self._start_empty()
        watch(self)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._items: OrderedDict[str, _Item] = OrderedDict()  # least recently used first
        self._writes = 0  # since everything past its ttl was removed
        self._bytes = 0

    after_fork_in_child = _start_empty

    @classmethod
    def from_url(cls, url: str) -> MemoryStore:
        """``memory://``, with ``?max_bytes=`` or without."""
        parts = take_apart(url, options=("max_bytes",))
        if parts.host or parts.path:
            raise ConfigError("store", "memory:// takes neither host nor path", "write memory://")
        return cls(parts.whole("max_bytes", MAX_BYTES))

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
            self._drop(key)
            return True

    def close(self) -> None:
        """Nothing to let go of; the values stay."""

    # Below here the lock is held.

    def _live(self, key: str) -> _Item | None:
        item = self._items.get(key)
        if item is not None and item.expires is not None and item.expires <= self._clock():
            self._drop(key)
            return None
        return item

    def _use(self, key: str) -> _Item | None:
        item = self._live(key)
        if item is not None:
            self._items.move_to_end(key)
        return item

    def _drop(self, key: str) -> None:
        self._bytes -= self._items.pop(key).size

    def _put(self, key: str, value: bytes, ttl: float | None) -> None:
        if key in self._items:
            self._drop(key)
        expires = None if ttl is None else self._clock() + ttl
        item = _Item(bytes(value), next(self._tokens), expires, len(key) + len(value) + ITEM_OVERHEAD)
        self._items[key] = item
        self._bytes += item.size
        self._writes += 1
        if self._bytes > self.max_bytes:
            self._make_room()

    def _make_room(self) -> None:
        """What is past its ttl goes first, however recently it was used. Looking at every item for that
        is worth it once in as many writes; a heap of deadlines would take a quarter more memory."""
        if self._writes >= len(self._items):
            self._writes = 0
            for key in list(self._items):
                self._live(key)
        while self._bytes > self.max_bytes:
            _, item = self._items.popitem(last=False)
            self._bytes -= item.size

    def _refuse_large(self, key: str, value: bytes) -> None:
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)
