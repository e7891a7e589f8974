"""Leave a node alone after a failure, until it answers again."""

from __future__ import annotations

import logging
import math
import random
import threading
import weakref
from collections.abc import Callable

_log = logging.getLogger("wsgi_isr.store")

#: Seconds before the first probe; the most seconds between two. The pause doubles after each failed probe.
PAUSES = (0.05, 2.0)
#: A node that fails again within so many seconds starts with twice its last pause.
QUIET = 10.0


class Breaker:
    """Open from the first failure until a probe succeeds.

    The probe runs in a daemon thread (a greenlet, under gevent), one for each node that is down. It never runs in a
    request. In a worker that serves one request at a time, a hanging probe would delay one client in nine: it takes a
    quarter of a second, every two seconds.

    :param probe: a bound method; returns if the node answers, raises otherwise.
    :param name: the node's, for the log.
    :param clock: seconds; any zero.
    :param wait: waits so many seconds for the event; returns whether it happened.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], None],
        clock: Callable[[], float],
        wait: Callable[[threading.Event, float], bool] = lambda stop, seconds: stop.wait(seconds),
    ) -> None:
        self._name = name
        self._probe = weakref.WeakMethod(probe)  # weak: the probe must not keep an unused store alive
        self._clock = clock
        self._wait = wait
        self._closed = -math.inf
        self._pause = PAUSES[0]
        self.forget()

    def forget(self) -> None:
        """Close the breaker, as at the beginning, with a new lock: for the child of a fork."""
        self._lock = threading.Lock()  # no thread waits while it holds the lock
        self._stop: threading.Event | None = None
        #: The last failure, while open.
        self.cause: str | None = None

    def trip(self, cause: str) -> None:
        """Open after a failure of the node."""
        with self._lock:
            if self.cause is not None:
                return
            often = self._clock() - self._closed < QUIET
            self._pause = min(2 * self._pause, PAUSES[1]) if often else PAUSES[0]
            stop = self._stop = threading.Event()
            self.cause = cause
        if not often:
            _log.warning("memcached node %s is left alone until it answers again: %s", self._name, cause)
        prober = threading.Thread(target=self._run, args=(stop,), name=f"wsgi-isr-probe-{self._name}", daemon=True)
        try:
            prober.start()
        except RuntimeError:  # no more threads, or the interpreter shuts down: each call tries the node itself
            self._close(stop)

    def stop(self) -> None:
        """Close the breaker, and end the probe."""
        stop, self._stop = self._stop, None
        if stop is not None:
            self.cause = None
            stop.set()

    def _run(self, stop: threading.Event) -> None:
        pause = self._pause
        while not self._wait(stop, pause * random.uniform(0.75, 1.25)):
            probe = self._probe()
            if probe is None:
                return
            try:
                probe()
            except Exception as error:
                pause = min(2 * pause, PAUSES[1])
                self._failed(stop, f"{type(error).__name__}: {error}")
            else:
                self._pause = pause
                if self._close(stop):
                    _log.info("memcached node %s answers again", self._name)
                return
            del probe

    def _failed(self, stop: threading.Event, cause: str) -> None:
        with self._lock:
            if self._stop is stop:
                self.cause = cause

    def _close(self, stop: threading.Event) -> bool:
        with self._lock:
            if self._stop is not stop:  # the breaker was stopped, and may be open again after another failure
                return False
            self._stop = None
            self._closed = self._clock()
            self.cause = None
            return True
