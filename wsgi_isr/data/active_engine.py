"""The engine for the data of a call: that of the app around the call, or the only one of the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from ..cache.invalidation import Invalidator
from ..cache.keyspace import Keyspace
from ..cache.lookup import Cache
from ..cache.tag_versions import TagVersions
from ..events import Events
from .isolation import is_importing


class DataEngine(Protocol):
    """The engine that stores data: one process's share of a store (:class:`~.engine.Engine`)."""

    cache: Cache
    events: Events
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    keyspace: Keyspace
    invalidator: Invalidator
    tag_versions: TagVersions
    profiles: Mapping[str, tuple[float, float]]
    keeps: bool

    def active_app(self) -> str | None:
        """Return the name of the active app; ``None`` if it is not known."""


_request_engine: ContextVar[DataEngine | None] = ContextVar("wsgi_isr_engine", default=None)
_process_engines: Callable[[], Sequence[DataEngine]] = tuple
_is_serving: Callable[[], bool] = bool


@contextmanager
def activate(engine: DataEngine) -> Iterator[None]:
    """Make ``engine`` the engine of all data in this context. The middleware does so around each call of the app."""
    token = _request_engine.set(engine)
    try:
        yield
    finally:
        _request_engine.reset(token)


def set_engine_lookup(find_engines: Callable[[], Sequence[DataEngine]], is_serving: Callable[[], bool]) -> None:
    """Set the engines for data outside of any app: in a script, or in a thread that the app started.

    :param find_engines: returns the engines of this process.
    :param is_serving: returns whether this process answers requests.
    """
    global _process_engines, _is_serving
    _process_engines, _is_serving = find_engines, is_serving


def request_engine() -> DataEngine | None:
    """Return the engine of the app around this call; ``None`` outside of all apps."""
    return _request_engine.get()


def current_engine() -> DataEngine | None:
    """Return the engine for the data of this call.

    Outside of all apps, the engine is the only one of the process. With several engines the result is ``None``: each
    may belong to another tenant.
    """
    if (engine := request_engine()) is not None:
        return engine
    engines = _process_engines()
    return engines[0] if len(engines) == 1 else None


def all_engines() -> Sequence[DataEngine]:
    """Return every engine that may hold a result for this call."""
    return (engine,) if (engine := request_engine()) is not None else _process_engines()


def may_be_in_request() -> bool:
    """Return whether this call may belong to the request of one client.

    A context variable cannot tell: threads of the app, and middlewares around an ISR, run outside of its context. So
    each call in a process that answers requests counts, except during an import.
    """
    return request_engine() is not None or (_is_serving() and not is_importing())
