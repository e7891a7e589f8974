"""Report the counts of a process: to the recorder of its instance, or without one to the history in the store.

Each process has one daemon thread for all of its apps, started by the first request. As the courier does, it ends
before each fork, and a child makes its own with its first request. Nothing waits for it: a report that does not go out
is added to the next one.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from typing import Protocol

from ..config.settings import Config
from ..stores.base import Store
from . import aggregate
from .counts import Counts
from .history import History, Minutes
from .totals import Totals

_log = logging.getLogger("wsgi_isr")

NAME = "wsgi-isr-counts"
#: Seconds between two reports.
EVERY = 1.0
#: The attempts at a last report, and the seconds between two of them: the queue of the recorder may be full.
_LAST, _LAST_PAUSE = 10, 0.02
#: Seconds that a fork waits for the thread to end.
_BEFORE_FORK = 0.5


class Reported(Protocol):
    """An app whose counts are reported."""

    _store: Store
    _counts: Counts
    _app_digest: bytes

    @property
    def configuration(self) -> Config:
        """Return the configuration of the app."""


class _Desk:
    """The state of one app in the reports.

    :ivar sent: the totals that the recorder has.
    :ivar minutes: the history, without a recorder.
    """

    def __init__(self) -> None:
        self.sent = Totals()
        self.minutes: Minutes | None = None


class Reporter:
    """The thread that reports the counts of a process."""

    def __init__(self) -> None:
        self._resumes = False
        #: An app that is closed may begin again: the desk stays, so that no count is reported twice.
        self._apps: weakref.WeakKeyDictionary[Reported, _Desk] = weakref.WeakKeyDictionary()
        self._attended: weakref.WeakSet[Reported] = weakref.WeakSet()
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        #: The lock of the reports: made at its first use, after gevent has patched the process.
        self._locks: dict[int, threading.Lock] = {}
        self._sender = os.urandom(8)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._apps.clear()
        self._attended.clear()

    @property
    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def attend(self, app: Reported) -> None:
        """Report the counts of ``app`` from now on."""
        if self._pid != os.getpid():  # a server that forks in C may not have told Python
            self._forget()
        self._apps.setdefault(app, _Desk())
        self._attended.add(app)
        if aggregate.folder is not None or (app._store.keeps and app._store.shared):
            self._start()

    def dismiss(self, app: Reported) -> None:
        """Send the last report of ``app``. The thread ends with the last app."""
        if self._pid != os.getpid() or app not in self._apps:
            return
        if aggregate.folder is not None:
            with self._lock:
                for _ in range(_LAST):
                    if self._send(app, self._apps[app], is_last=True):
                        break
                    time.sleep(_LAST_PAUSE)
        self._attended.discard(app)
        if not self._attended:
            self._end(None)

    def report(self) -> None:
        """Report the counts of every app once."""
        with self._lock:
            for app in list(self._attended):
                desk = self._apps[app]
                if aggregate.folder is not None:
                    self._send(app, desk, is_last=False)
                else:
                    self._write(app, desk)

    def _send(self, app: Reported, desk: _Desk, is_last: bool) -> bool:
        """Send a report to the recorder; return whether it was sent."""
        if (place := aggregate.recorded_at()) is None:
            return False
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)  # gevent does not know MSG_DONTWAIT, and would wait
        now = app._counts.totals()
        for part in aggregate.parts_of(app._app_digest, self._sender, now.since(desk.sent), is_last):
            if not aggregate.send(self._socket, place, part):
                app._counts.mark("dropped")
                return False
            desk.sent = desk.sent.merge(part.totals.counts())
        return True

    def _write(self, app: Reported, desk: _Desk) -> None:
        """Write a record of the history, if one is due."""
        if not (app._store.keeps and app._store.shared):
            return
        if desk.minutes is None:
            settings = app.configuration.settings
            desk.minutes = Minutes(History(app._store, settings.namespace, settings.signing_key), "process")
        if desk.minutes.is_due():
            try:
                desk.minutes.write(app._counts.totals())
            except Exception as error:  # of the store: the next record has these counts as well
                _log.debug("no record in the history: %s", error)

    # The thread ----------------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None and (self._thread.ident is None or self._thread.is_alive()):
                return
            self._stop = threading.Event()
            thread = self._thread = threading.Thread(target=self._run, args=(self._stop,), name=NAME, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            self._thread = None

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(EVERY):
            try:
                self.report()
            except Exception:
                _log.debug("counts are not reported", exc_info=True)

    def _end(self, timeout: float | None) -> bool:
        """Ask the thread to end, and wait for it at most ``timeout`` seconds; return whether there was one."""
        thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None and timeout and thread.ident is not None and thread is not threading.current_thread():
            thread.join(timeout)
        return thread is not None

    def before_fork(self) -> None:
        """End the thread. Called in the parent, in the thread that is about to fork."""
        self._resumes = self._pid == os.getpid() and self._end(_BEFORE_FORK)

    def after_fork_in_parent(self) -> None:
        """Start the thread again."""
        if self._resumes:
            self._start()

    def after_fork_in_child(self) -> None:
        """Begin anew with the first request of the child."""
        if self._socket is not None:
            self._socket.close()
        self._forget()


reporter = Reporter()
"""The reporter of this process."""
