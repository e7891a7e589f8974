"""The processes of an app deliver what its journal keeps, without a request and without an operator.

One daemon thread of a process looks after all journals of its apps. It starts with the app, so that the successor of a
killed worker delivers what that worker has kept. While a journal is empty, it costs one ``stat`` every :data:`LOOK`
seconds.

**Fork.** No thread is inherited, and a master of workers (``gunicorn --preload``) has none when it forks. The thread
ends before each fork and starts again in the child; in the parent it starts again only if that serves requests itself.
A server that forks in C (uWSGI) may not tell Python. So thread and lock belong to a process id. A child makes its own.

**gevent.** It patches a worker after the fork. A greenlet that yields while it holds a lock from before the patch stops
the whole worker. So the lock is made where it is first needed, and no thread starts while it is held.
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

#: Seconds between two looks at a journal that was empty, between two attempts while something is kept, and before the
#: first look. Each is drawn anew from 0.75 to 1.25 times that, so that processes do not come all at once.
LOOK, AGAIN, FIRST = 2.0, 1.0, 1.0
#: Seconds that a fork waits for the thread to end.
_BEFORE_FORK = 0.5

NAME = "wsgi-isr-journal"


class Attended(Protocol):
    """An app with a journal."""

    _store: Store

    @property
    def is_serving(self) -> bool:
        """Whether this process answers requests for it."""

    def deliver_kept(self) -> bool:
        """Deliver what the journal keeps; return whether anything is left."""


class _Own:
    """The thread of one process, and the lock around it. No child inherits them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.stop = threading.Event()

    @property
    def has_thread(self) -> bool:
        """Whether the thread runs, or is about to."""
        return self.thread is not None and (self.thread.ident is None or self.thread.is_alive())

    def end(self) -> threading.Thread | None:
        """Ask the thread to end, and return it."""
        thread, self.thread = self.thread, None
        self.stop.set()
        return thread


class Courier:
    """The thread of a process.

    :param spread: draws from a range of factors for a pause.
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
        """Leave the journal of ``app`` alone; the thread ends with the last one, within ``timeout`` seconds."""
        own = self._own
        with own.lock:
            self._attended.discard(app)
            thread = own.end() if not self._attended else None
        _join(thread, timeout)

    @contextmanager
    def off(self) -> Iterator[None]:
        """In here no thread starts in this process; in a child that is forked in here, none ever starts."""
        before, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = before

    @property
    def is_at_work(self) -> bool:
        """Return whether this process delivers journals of its apps by itself."""
        return not self._is_off and bool(self._attended)

    def start(self) -> None:
        """Start the thread, if there is a journal and no thread that runs."""
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
        """Deliver for every app once; return whether anything is left."""
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
        """In the parent, in the thread that is about to fork."""
        own = self._own
        with own.lock:
            thread = own.end()
            apps = list(self._attended)
        _join(thread, _BEFORE_FORK)
        for app in apps:
            if thread is not None and not app.is_serving:
                app._store.close()  # a connection for what was delivered until now would be of no more use

    def after_fork_in_parent(self) -> None:
        """A master that has loaded the app for its workers serves no request; what it delivered would take a
        connection that nothing else needs."""
        with self._own.lock:
            serves = any(app.is_serving for app in self._attended)
        if serves:
            self.start()

    def after_fork_in_child(self) -> None:
        """In the child, where no other thread is left."""
        self._by_process = {}
        # In a worker that gevent is about to patch, a thread would be one of the system, and its sockets would belong
        # to it alone. There a hook of gunicorn calls start(), or the first request does.
        if "gevent.monkey" not in sys.modules:
            self.start()


def _join(thread: threading.Thread | None, timeout: float) -> None:
    if thread is not None and thread.ident is not None and thread is not threading.current_thread():
        thread.join(timeout)


courier = Courier()
"""That of this process."""
