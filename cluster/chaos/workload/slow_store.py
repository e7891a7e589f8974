"""A slow store: the time between two steps of the protocol is long enough for faults to fall into it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from wsgi_isr.stores.base import Many, Store, Token, Versioned

#: Longest pause before a command, in seconds.
LONGEST = 0.04


class SlowStore(Store):
    """Another store, with pauses. The opener of the other store closes it; ``close`` here does nothing."""

    def __init__(self, store: Store, pause: Callable[[float], None] = time.sleep) -> None:
        self._store = store
        self._sleep = pause
        self.max_value = store.max_value
        self.nodes, self.scheme, self.remote = store.nodes, store.scheme, store.remote

    def _pause(self) -> None:
        if random.random() < 0.5:
            self._sleep(random.uniform(0.0, LONGEST))

    def node_of(self, key: str) -> str:
        return self._store.node_of(key)

    def get(self, key: str) -> bytes | None:
        self._pause()
        return self._store.get(key)

    def get_many(self, keys: Sequence[str]) -> Many:
        self._pause()
        return self._store.get_many(keys)

    def gets(self, key: str) -> Versioned | None:
        self._pause()
        return self._store.gets(key)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._pause()
        self._store.set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._pause()
        return self._store.add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._pause()
        return self._store.cas(key, value, token, ttl)

    def delete(self, key: str) -> bool:
        self._pause()
        return self._store.delete(key)

    def close(self) -> None:
        pass
