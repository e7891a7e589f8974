"""``memory://[?max_bytes=N]``: one process, bounded by bytes, least recently used out first."""

from __future__ import annotations

import heapq
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

#: Bytes that CPython needs for an item beside key and value (objects, table slots, deadline);
#: measured with tracemalloc, rounded up. A test holds it against the real figure.
ITEM_OVERHEAD = 512

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
        self._deadlines: list[tuple[float, int, str]] = []  # a heap; some are of items written over since
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
        if expires is not None:
            self._remember(expires, item.token, key)
        if self._bytes > self.max_bytes:
            self._make_room()

    def _remember(self, expires: float, token: int, key: str) -> None:
        heapq.heappush(self._deadlines, (expires, token, key))
        # A key that is written again and again leaves a deadline each time; do not let them pile up.
        if len(self._deadlines) > 2 * len(self._items) + 64:
            items = self._items.items()
            self._deadlines = [(it.expires, it.token, key) for key, it in items if it.expires is not None]
            heapq.heapify(self._deadlines)

    def _make_room(self) -> None:
        """What is past its ttl goes first, however recently it was used."""
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, token, key = heapq.heappop(self._deadlines)
            item = self._items.get(key)
            if item is not None and item.token == token:
                self._drop(key)
        while self._bytes > self.max_bytes:
            _, item = self._items.popitem(last=False)
            self._bytes -= item.size

    def _refuse_large(self, key: str, value: bytes) -> None:
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)
