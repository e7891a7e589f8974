"""Notify objects of each ``fork``, because they own locks or files.

``os.register_at_fork`` keeps its callables alive as long as the process. Therefore, this module registers three hooks
once, and the hooks call the objects of a weak set.
"""

from __future__ import annotations

import os
import threading
import weakref


class ForkAware:
    """Base of notified objects. Override methods, and call :func:`watch` at the end of ``__init__``.

    The methods must not raise.
    """

    def before_fork(self) -> None:
        """Run in the parent, in the thread that is about to fork."""

    def after_fork_in_parent(self) -> None:
        """Run in the same thread of the parent, even if the fork failed."""

    def after_fork_in_child(self) -> None:
        """Run in the child, where the forking thread is the only one.

        A lock that another thread held stays held for ever. Therefore, replace locks; do not release them.
        """


_lock = threading.RLock()
_watched: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_forking: list[ForkAware] = []
_pid = os.getpid()
_detecting: dict[int, threading.Lock] = {}


def watch(aware: ForkAware) -> None:
    """Call the three methods of ``aware`` around each fork, as long as the object lives."""
    with _lock:
        _watched.add(aware)


def detect_fork() -> None:
    """Notify the objects in a child whose fork Python did not see: a server may fork in C."""
    pid = os.getpid()
    if _pid != pid:
        with _detecting.setdefault(pid, threading.Lock()):  # by process: an inherited lock may be held
            if _pid != pid:
                _after_in_child()


def _before() -> None:
    _lock.acquire()
    _forking[:] = _watched
    for aware in _forking:
        aware.before_fork()


def _after_in_parent() -> None:
    for aware in _forking:
        aware.after_fork_in_parent()
    _forking.clear()
    _lock.release()


def _after_in_child() -> None:
    global _lock, _pid
    _lock = threading.RLock()
    # The list is empty if _before did not run: a server that forks in C may announce the child alone.
    for aware in _forking or list(_watched):
        aware.after_fork_in_child()
    _forking.clear()
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
