"""The processes of an app deliver what its journal keeps, without a request and without an operator.

One daemon thread of a process looks after all journals of its apps. It starts with the app, so that the successor of a
killed worker delivers what that worker has kept. While a journal is empty, it costs one ``stat`` every :data:`LOOK`
seconds.

**Fork.** No thread is inherited, and a master of workers (``gunicorn --preload``) has none when it forks. The thread
ends before each fork and starts again in the child; in the parent it starts again only if that serves requests itself.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .stores.base import Store

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


class Courier:
    """The thread of a process.

    :param spread: draws from a range of factors for a pause.
    """

    def __init__(self, spread: random.Random | None = None) -> None:
        self._spread = spread or random.Random()
        self._attended: weakref.WeakSet[Attended] = weakref.WeakSet()
        self._reported: weakref.WeakSet[Attended] = weakref.WeakSet()
        self._is_off = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def attend(self, app: Attended) -> None:
        """Look after the journal of ``app`` from now on, for as long as it lives."""
        with self._lock:
            self._attended.add(app)
            self._start()

    def dismiss(self, app: Attended, timeout: float) -> None:
        """Leave the journal of ``app`` alone; the thread ends with the last one, within ``timeout`` seconds."""
        with self._lock:
            self._attended.discard(app)
            thread = self._end() if not self._attended else None
        _join(thread, timeout)

    @contextmanager
    def off(self) -> Iterator[None]:
        """In here no thread starts in this process; in a child that is forked in here, none ever starts."""
        before, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = before

    def start(self) -> None:
        """Start the thread, if there is a journal and no thread yet."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._is_off or self._thread is not None or not self._attended:
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name=NAME, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or the interpreter is shutting down; the next request tries again
            self._thread = None

    def _end(self) -> threading.Thread | None:
        thread, self._thread = self._thread, None
        self._stop.set()
        return thread

    def _run(self, stop: threading.Event) -> None:
        pause = FIRST
        while not stop.wait(pause * self._spread.uniform(0.75, 1.25)):
            pause = AGAIN if self.round(stop) else LOOK

    def round(self, stop: threading.Event | None = None) -> bool:
        """Deliver for every app once; return whether anything is left."""
        left = False
        with self._lock:
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
        with self._lock:
            thread = self._end()
            apps = list(self._attended)
        _join(thread, _BEFORE_FORK)
        for app in apps:
            if thread is not None and not app.is_serving:
                app._store.close()  # a connection for what was delivered until now would be of no more use

    def after_fork_in_parent(self) -> None:
        """A master that has loaded the app for its workers serves no request; what it delivered would take a
        connection that nothing else needs."""
        with self._lock:
            if any(app.is_serving for app in self._attended):
                self._start()

    def after_fork_in_child(self) -> None:
        """In the child, where no other thread is left."""
        self._begin_anew()
        # In a worker that gevent is about to patch, a thread would be one of the system, and its sockets would belong
        # to it alone. There a hook of gunicorn calls start(), or the first request does.
        if "gevent.monkey" not in sys.modules:
            self._start()


def _join(thread: threading.Thread | None, timeout: float) -> None:
    if thread is not None and thread is not threading.current_thread():
        thread.join(timeout)


courier = Courier()
"""That of this process."""
