"""Notify objects that own locks or files of ``fork``, without keeping them alive.

``os.register_at_fork`` cannot unregister: its callables live as long as the process. Therefore, this module registers
three hooks once, which call the objects of a weak set.
"""

from __future__ import annotations

import os
import threading
import weakref


class ForkAware:
    """Base of objects that are notified: override methods, and call :func:`watch` at the end of ``__init__``.

    The methods must not raise.
    """

    def before_fork(self) -> None:
        """Run in the parent, in the thread that is about to fork."""

    def after_fork_in_parent(self) -> None:
        """Run in the same thread of the parent, also after a fork that failed."""

    def after_fork_in_child(self) -> None:
        """Run in the child, where the forking thread is the only one.

        A lock that another thread held stays held for ever. Therefore, replace locks by new ones; do not release them.
        """


_lock = threading.RLock()
_watched: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_forking: list[ForkAware] = []
_pid = os.getpid()
_looking: dict[int, threading.Lock] = {}


def watch(it: ForkAware) -> None:
    """Call the three methods of ``it`` around each fork, as long as ``it`` lives."""
    with _lock:
        _watched.add(it)


def look() -> None:
    """Notify the watched objects in a child whose fork Python did not see: a server may fork in C."""
    here = os.getpid()
    if _pid != here:
        with _looking.setdefault(here, threading.Lock()):  # by process: the child may have inherited a held lock
            if _pid != here:
                _after_in_child()


def _before() -> None:
    _lock.acquire()
    _forking[:] = _watched
    for it in _forking:
        it.before_fork()


def _after_in_parent() -> None:
    for it in _forking:
        it.after_fork_in_parent()
    _forking.clear()
    _lock.release()


def _after_in_child() -> None:
    global _lock, _pid
    _lock = threading.RLock()
    # Without _before (a server that forks in C and only announces the child), the list is empty.
    for it in _forking or list(_watched):
        it.after_fork_in_child()
    _forking.clear()
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
