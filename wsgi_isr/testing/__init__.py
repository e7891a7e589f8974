"""Tools for tests of cached apps, and of stores.

For apps, there are two fixtures for pytest, which a ``conftest.py`` imports, and the context managers behind them. In
either, :func:`~wsgi_isr.invalidate` succeeds with any configured store, reachable or not::

    from wsgi_isr.testing import fresh_isr, no_isr  # noqa: F401


    def test_a_page_is_cached(fresh_isr):
        assert client.get("/").headers["X-ISR"] == "MISS"
        assert client.get("/").headers["X-ISR"] == "HIT"

Background renders and cached functions run in the thread of the test, within the transaction that the test has begun.
So a stale page is already renewed when the client has the response.

For stores, there is the suite that each store passes (:mod:`.suite`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ..middleware.runtime import StandIn, runtime
from ..stores.base import Store
from ..stores.memory import MemoryStore
from ..stores.null import NullStore

if TYPE_CHECKING:
    from .suite import StoreSuite as StoreSuite
    from .suite import in_processes as in_processes
    from .suite import in_threads as in_threads
    from .suite import needs as needs

__all__ = ["fresh_cache", "fresh_isr", "no_isr", "without_cache"]


@contextmanager
def without_cache() -> Iterator[None]:
    """Run the block without a cache: apps answer with ``X-ISR: BYPASS``, and cached functions are called each time."""
    with _with_stores(lambda _configured: NullStore()):
        yield


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Run the block with an empty cache in memory for each app of this process.

    Apps that share a store share one here as well. All options hold except the store, ``development`` and ``journal``:
    pages are cached under a debug mode, too.
    """
    stores: dict[Any, Store] = {}

    def store_of(configured: Any) -> Store:
        if isinstance(configured, str) and configured.startswith("memory:"):
            return MemoryStore()  # one for each app
        key = configured if isinstance(configured, str) else id(configured)
        return stores.setdefault(key, MemoryStore())

    with _with_stores(store_of):
        yield


@contextmanager
def _with_stores(store_of: Callable[[Any], Store]) -> Iterator[None]:
    outer, runtime.stand_in = runtime.stand_in, StandIn(store_of)
    alone = runtime.exchange_alone(None)
    restore = {isr: isr._begin_with_stand_in() for isr in list(runtime.instances)}
    try:
        with _open_connections():
            yield
    finally:
        runtime.stand_in = outer
        if (inner := runtime.exchange_alone(alone)) is not None:
            inner.close()
        for isr in list(runtime.instances):
            if isr in restore:
                restore[isr]()
            else:  # created in the block, when its module was imported
                isr.close()
                isr._begin_with_stand_in()


def _open_connections() -> AbstractContextManager[None]:
    """Return a context in which requests do not close Django's database connections.

    They may be in the middle of a test's transaction. Django's own test client does the same.
    """
    return _without_close_signals() if "django.db" in sys.modules else nullcontext()


@contextmanager
def _without_close_signals() -> Iterator[None]:
    from django.core.signals import request_finished, request_started
    from django.db import close_old_connections

    connected = [signal for signal in (request_started, request_finished) if signal.disconnect(close_old_connections)]
    try:
        yield
    finally:
        for signal in connected:
            signal.connect(close_old_connections)


try:
    import pytest
except ModuleNotFoundError:  # unittest needs no fixtures
    pass
else:

    @pytest.fixture
    def no_isr() -> Iterator[None]:
        """Disable the cache of all apps: see :func:`without_cache`."""
        with without_cache():
            yield

    @pytest.fixture
    def fresh_isr() -> Iterator[None]:
        """Give each app an empty cache: see :func:`fresh_cache`."""
        with fresh_cache():
            yield


def __getattr__(name: str) -> Any:
    # The suite needs pytest, which an app tested by unittest may lack.
    if name in ("StoreSuite", "in_processes", "in_threads", "needs"):
        from . import suite

        return getattr(suite, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
