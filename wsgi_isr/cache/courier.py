"""Deliver the invalidations in an app's journal from its processes, without a request and without an operator.

Each process has one daemon thread for all journals of its apps. The thread starts with the app: the successor of a
killed worker delivers the lines that the worker kept. An empty journal costs one ``stat`` every :data:`LOOK`
seconds.

**Fork.** No thread is inherited, and a master of workers (``gunicorn --preload``) has none when it forks. The thread
ends before each fork, and starts again in the child. In the parent the thread starts again only if the parent serves
requests itself. A server that forks in C (uWSGI) may not tell Python. So thread and lock belong to a process id, and a
child makes its own.

**gevent.** gevent patches a worker after the fork. A greenlet that yields while it holds a lock from before the patch
stops the whole worker. So the lock is made at its first use, and no thread starts while the lock is held.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ..stores.base import Store

_log = logging.getLogger("wsgi_isr")

#: Seconds between looks at an empty journal, between attempts while a line is kept, and before the first look.
#: Each pause is drawn anew from 0.75 to 1.25 times that, so that processes do not act all at once.
LOOK, AGAIN, FIRST = 2.0, 1.0, 1.0
#: Seconds that a fork waits for the thread to end.
_BEFORE_FORK = 0.5

NAME = "wsgi-isr-journal"


class Attended(Protocol):
    """An app with a journal."""

    _store: Store

    @property
    def is_serving(self) -> bool:
        """Return whether this process answers requests for the app."""

    def deliver_kept(self) -> bool:
        """Deliver the names that the journal keeps; return whether any name is left."""


class _Own:
    """The thread of one process, and the lock that guards it. No child inherits them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.stop = threading.Event()

    @property
    def has_thread(self) -> bool:
        """Return whether the thread runs, or is about to run."""
        return self.thread is not None and (self.thread.ident is None or self.thread.is_alive())

    def end(self) -> threading.Thread | None:
        """Ask the thread to end, and return it."""
        thread, self.thread = self.thread, None
        self.stop.set()
        return thread


class Courier:
    """The thread that delivers the journals of a process.

    :param spread: draws the factor of each pause.
    """

    def __init__(self, spread: random.Random | None = None) -> None:
        self._spread = spread or random.Random()
        self._attended: weakref.WeakSet[Attended] = weakref.WeakSet()
        self._reported: weakref.WeakSet[Attended] = weakref.WeakSet()
        self._is_off = False
        self._by_process: dict[int, _Own] = {}

    @property
    def _own(self) -> _Own:
        here = os.getpid()
        # setdefault is atomic: all threads of a process get the same one.
        return self._by_process.get(here) or self._by_process.setdefault(here, _Own())

    def attend(self, app: Attended) -> None:
        """Look after the journal of ``app`` from now on, for as long as it lives."""
        with self._own.lock:
            self._attended.add(app)
        self.start()

    def dismiss(self, app: Attended, timeout: float) -> None:
        """Stop delivering the journal of ``app``. The thread ends with the last app, within ``timeout`` seconds."""
        own = self._own
        with own.lock:
            self._attended.discard(app)
            thread = own.end() if not self._attended else None
        _join(thread, timeout)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Prevent the thread within the block; in a child that is forked within the block, for ever."""
        before, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = before

    @property
    def is_at_work(self) -> bool:
        """Return whether this process delivers the journals of its apps by itself."""
        return not self._is_off and bool(self._attended)

    def start(self) -> None:
        """Start the thread, if there is a journal and no running thread."""
        own = self._own
        with own.lock:
            if self._is_off or not self._attended or own.has_thread:
                return
            own.stop = threading.Event()
            thread = own.thread = threading.Thread(target=self._run, args=(own.stop,), name=NAME, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is shutting down: the next kept line tries again
            with own.lock:
                if own.thread is thread:
                    own.thread = None

    def _run(self, stop: threading.Event) -> None:
        pause = FIRST
        while not stop.wait(pause * self._spread.uniform(0.75, 1.25)):
            pause = AGAIN if self.round(stop) else LOOK

    def round(self, stop: threading.Event | None = None) -> bool:
        """Deliver for every app once; return whether any name is left."""
        left = False
        with self._own.lock:
            apps = list(self._attended)
        for app in apps:
            if (stop is not None and stop.is_set()) or app not in self._attended:
                continue
            try:
                left = app.deliver_kept() or left
            except Exception:
                left = True
                if app not in self._reported:
                    self._reported.add(app)
                    _log.exception("internal error: delivering a journal failed; it is tried again, and reported once")
        return left

    # Around a fork -------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """End the thread. Called in the parent, in the thread that is about to fork."""
        own = self._own
        with own.lock:
            thread = own.end()
            apps = list(self._attended)
        _join(thread, _BEFORE_FORK)
        for app in apps:
            if thread is not None and not app.is_serving:
                app._store.close()  # only the deliveries needed the connection

    def after_fork_in_parent(self) -> None:
        """Start the thread in a parent that serves requests.

        A master that has loaded the app for its workers serves none: only deliveries would need a connection there.
        """
        with self._own.lock:
            serves = any(app.is_serving for app in self._attended)
        if serves:
            self.start()

    def after_fork_in_child(self) -> None:
        """Start the thread in the child, where no other thread is left."""
        self._by_process = {}
        # gevent is about to patch this worker: the thread would be a system thread, and its sockets of no use to
        # greenlets. A hook of gunicorn or the first request calls start() in such a worker.
        if "gevent.monkey" not in sys.modules:
            self.start()


def _join(thread: threading.Thread | None, timeout: float) -> None:
    if thread is not None and thread.ident is not None and thread is not threading.current_thread():
        thread.join(timeout)


courier = Courier()
"""The courier of this process."""
