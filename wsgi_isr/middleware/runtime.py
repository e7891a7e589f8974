"""The state of this process that its apps share, and the one hook that a fork calls for it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..cache.courier import courier
from ..engine import Engine
from ..observe.reporter import reporter
from ..stores.base import Store


class StandIn(NamedTuple):
    """The replacement, made by tests, of every store of this process (:mod:`wsgi_isr.testing`).

    :param store_of: returns the replacement of a configured store or its URL.
    """

    store_of: Callable[[Any], Store]


class Runtime:
    """The apps of a process, and the engine for cached data outside of any app.

    :ivar instances: every :class:`~wsgi_isr.ISR` of this process.
    :ivar alone: the engine of a script that only uses cached functions; ``None`` before its first use.
    :ivar stand_in: the replacement of all stores; ``None`` outside of tests.
    :ivar role: the role of this process in timelines, such as ``renderer``; empty where each render has its own.
    """

    def __init__(self) -> None:
        self.instances: weakref.WeakSet[Any] = weakref.WeakSet()  # Any: the module of ISR imports this one
        self.alone: Engine | None = None
        self.stand_in: StandIn | None = None
        self.role = ""
        self._beginning: dict[int, threading.Lock] = {}

    @property
    def beginning(self) -> threading.Lock:
        """Return the lock under which :attr:`alone` is made.

        The lock belongs to a process id and is made at its first use, after gevent has patched the process.
        """
        return self._beginning.setdefault(os.getpid(), threading.Lock())

    @contextmanager
    def acting_as(self, role: str) -> Iterator[None]:
        """Give this process a role in timelines within the block."""
        before, self.role = self.role, role
        try:
            yield
        finally:
            self.role = before

    def exchange_alone(self, other: Engine | None) -> Engine | None:
        """Replace :attr:`alone`, and return the replaced engine."""
        alone, self.alone = self.alone, other
        return alone

    def after_fork_in_child(self) -> None:
        """Drop the parent's threads, flights and locks: the child begins with an empty L1."""
        self._beginning = {}
        self.alone = None
        for isr in self.instances:
            isr._reset_after_fork()
        reporter.after_fork_in_child()
        courier.after_fork_in_child()


runtime = Runtime()
"""The runtime of this process."""


def _before_fork() -> None:
    """End the threads of this process that nothing waits for."""
    reporter.before_fork()
    courier.before_fork()


def _after_fork_in_parent() -> None:
    courier.after_fork_in_parent()
    reporter.after_fork_in_parent()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    # The threads end before the stores take their locks for the fork: hooks that run before a fork are
    # called in reverse order of registration, and :mod:`wsgi_isr.stores.fork_hooks` was imported earlier.
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=runtime.after_fork_in_child,
    )
