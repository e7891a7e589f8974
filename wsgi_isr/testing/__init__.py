"""For tests of apps that are cached, and of stores.

Of apps: two fixtures for pytest, which a ``conftest.py`` imports, and the context managers that they are made of. In
either, :func:`~wsgi_isr.invalidate` succeeds, whatever store is configured and whether it can be reached::

    from wsgi_isr.testing import fresh_isr, no_isr  # noqa: F401


    def test_a_page_is_cached(fresh_isr):
        assert client.get("/").headers["X-ISR"] == "MISS"
        assert client.get("/").headers["X-ISR"] == "HIT"

Everything is done in the thread of the test, within the transaction that it has begun: renders in the background, and
functions whose results are kept. So a page that is stale has been renewed when its visitor has it.

Of stores: the suite that each one passes (:mod:`.suite`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .. import engine, middleware, process
from ..engine import StandIn
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
    """In here no app of this process is cached (``X-ISR: BYPASS``), and cached functions are called each time."""
    with _in_place_of_stores(lambda _configured: NullStore()):
        yield


@contextmanager
def fresh_cache() -> Iterator[None]:
    """In here each app of this process has a cache of its own, which is empty and in memory.

    Apps with one store have one here as well. Options other than the store hold, but for ``development`` and
    ``journal``: pages are cached under a debug mode, too.
    """
    stores: dict[Any, Store] = {}

    def store_of(configured: Any) -> Store:
        if isinstance(configured, str) and configured.startswith("memory:"):
            return MemoryStore()  # each app's own
        key = configured if isinstance(configured, str) else id(configured)
        return stores.setdefault(key, MemoryStore())

    with _in_place_of_stores(store_of):
        yield


@contextmanager
def _in_place_of_stores(store_of: Callable[[Any], Store]) -> Iterator[None]:
    outer, engine.stand_in = engine.stand_in, StandIn(store_of)
    alone = process.exchange_alone(None)
    restore = {isr: isr._begin_with_stand_in() for isr in list(middleware.instances)}
    try:
        with _kept_connections():
            yield
    finally:
        engine.stand_in = outer
        if (inner := process.exchange_alone(alone)) is not None:
            inner.close()
        for isr in list(middleware.instances):
            if isr in restore:
                restore[isr]()
            else:  # made meanwhile, as its module was imported
                isr.close()
                isr._begin_with_stand_in()


def _kept_connections() -> AbstractContextManager[None]:
    """In here requests do not close Django's database connections, which may be in the middle of a test's transaction.
    Its own test client does the same."""
    return _without_signals() if "django.db" in sys.modules else nullcontext()


@contextmanager
def _without_signals() -> Iterator[None]:
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
except ModuleNotFoundError:  # unittest will do
    pass
else:

    @pytest.fixture
    def no_isr() -> Iterator[None]:
        """No app is cached: see :func:`without_cache`."""
        with without_cache():
            yield

    @pytest.fixture
    def fresh_isr() -> Iterator[None]:
        """Each app has an empty cache: see :func:`fresh_cache`."""
        with fresh_cache():
            yield


def __getattr__(name: str) -> Any:
    # It needs pytest, which those who test an app by unittest may not have.
    if name in ("StoreSuite", "in_processes", "in_threads", "needs"):
        from . import suite

        return getattr(suite, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
