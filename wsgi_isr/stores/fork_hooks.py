"""Tell objects that own locks or files about ``fork``, without keeping them alive.

``os.register_at_fork`` has no way back: whatever is registered there lives as long as the process.
So the three hooks are registered once, here, and pass on to a weak set.
"""

from __future__ import annotations

import os
import threading
import weakref


class ForkAware:
    """Override what matters, and call :func:`watch` at the end of ``__init__``. None may raise."""

    def before_fork(self) -> None:
        """In the parent, in the thread that is about to fork."""

    def after_fork_in_parent(self) -> None:
        """In that same thread; also called where the fork failed."""

    def after_fork_in_child(self) -> None:
        """In the child, where that thread is the only one left: every lock another thread held stays
        held for ever, so locks are made anew, not released."""


_lock = threading.RLock()
_watched: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_forking: list[ForkAware] = []
_pid = os.getpid()
_looking: dict[int, threading.Lock] = {}


def watch(it: ForkAware) -> None:
    """From now on, for as long as ``it`` lives, its three methods are called around each fork."""
    with _lock:
        _watched.add(it)


def look() -> None:
    """Call the watched objects in the child of a fork that Python did not see: a server may fork in C."""
    here = os.getpid()
    if _pid != here:
        with _looking.setdefault(here, threading.Lock()):  # by process: the parent may have held its own
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
    # Without _before (a server that forks in C and only announces the child) the list is empty.
    for it in _forking or list(_watched):
        it.after_fork_in_child()
    _forking.clear()
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
