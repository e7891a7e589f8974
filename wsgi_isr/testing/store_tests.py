"""The base of the tests in the suite of stores: the store under test and its keys."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from ..stores.base import Store

_Test = TypeVar("_Test", bound=Callable[..., None])


def needs(*flags: str) -> Callable[[_Test], _Test]:
    """Mark a test that applies only if these attributes of :class:`StoreSuite` are true; ``stores`` by default."""

    def mark(test: _Test) -> _Test:
        test.__dict__["needs"] = flags
        return test

    return mark


class StoreTests:
    """The attributes and methods that the tests of a store use; authors of stores override those above ``store``."""

    #: Another process that opens the same store sees the same values.
    shared = False
    #: Values remain after every handle was closed.
    persistent = False
    #: ``False`` for a store that keeps nothing.
    stores = True
    #: The shortest ttl, in seconds, that has certainly not passed when the next verb runs.
    shortest_ttl = 1.0

    def make_store(self) -> Store:
        """Return a new handle; if ``shared`` or ``persistent``, on the same values during one test."""
        raise NotImplementedError

    def make_bounded_store(self, max_bytes: int) -> Store:
        """Return a handle on an empty store that holds at most so many bytes of keys and values."""
        pytest.skip("the store has no bound of its own")

    def advance(self, seconds: float) -> None:
        """Let time pass for the store."""
        time.sleep(seconds)

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        """Yield the store under test."""
        self._opened: list[Store] = []
        self._prefix = f"suite:{secrets.token_hex(8)}:"
        yield self.another()
        for store in self._opened:
            store.close()

    def bounded(self, max_bytes: int) -> Store:
        """Return a handle on a bounded store, closed at the end of the test."""
        store = self.make_bounded_store(max_bytes)
        self._opened.append(store)
        return store

    def another(self) -> Store:
        """Return another handle, closed at the end of the test."""
        store = self.make_store()
        self._opened.append(store)
        return store

    def key(self, name: str = "key") -> str:
        """Return a key that only this test uses."""
        return self._prefix + name

    def let_expire(self) -> None:
        """Let time pass until a value with the shortest ttl has expired."""
        self.advance(2 * self.shortest_ttl)

    def token(self, store: Store, name: str = "key") -> Any:
        """Return the token of the value under a key."""
        found = store.gets(self.key(name))
        assert found is not None
        return found.token
