"""A circuit breaker: send no commands to a node between its failure and its next answer."""

from __future__ import annotations

import logging
import math
import random
import threading
import weakref
from collections.abc import Callable

_log = logging.getLogger("wsgi_isr.store")

#: The pause before the first probe, and the maximum between two, in seconds. A failed probe doubles the pause.
PAUSES = (0.05, 2.0)
#: A node that fails again within this time, in seconds, starts with twice its last pause.
STABLE_AFTER = 10.0


class Breaker:
    """The breaker of a node, open from a failure until a probe succeeds.

    The probes of a node run in one daemon thread (a greenlet, under gevent), never in a request. A hanging probe takes
    a quarter of a second, every two seconds. In a worker that serves one request at a time, it would delay one client
    in nine.

    :param name: the name of the node, for the log.
    :param probe: a bound method that returns if the node answers, and raises otherwise.
    :param clock: seconds since any moment.
    :param wait: waits for an event, at most so many seconds; returns whether the event happened.
    :param kind: the kind of the server, for the log.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], None],
        clock: Callable[[], float],
        wait: Callable[[threading.Event, float], bool] = lambda stop, seconds: stop.wait(seconds),
        kind: str = "store",
    ) -> None:
        self._kind = kind
        self._name = name
        self._probe = weakref.WeakMethod(probe)  # weak, so that the probe keeps no unused store alive
        self._clock = clock
        self._wait = wait
        self._closed_at = -math.inf
        self._pause = PAUSES[0]
        self.forget()

    def forget(self) -> None:
        """Close the breaker in the child of a fork, and replace its lock."""
        self._lock = threading.Lock()  # no thread waits inside it
        self._stop: threading.Event | None = None
        #: The last failure; ``None`` while the breaker is closed.
        self.cause: str | None = None

    def trip(self, cause: str) -> None:
        """Open the breaker after a failure of the node."""
        with self._lock:
            if self.cause is not None:
                return
            is_repeated = self._clock() - self._closed_at < STABLE_AFTER
            self._pause = min(2 * self._pause, PAUSES[1]) if is_repeated else PAUSES[0]
            stop = self._stop = threading.Event()
            self.cause = cause
        if not is_repeated:
            _log.warning("%s node %s is not used until it answers again: %s", self._kind, self._name, cause)
        prober = threading.Thread(target=self._run, args=(stop,), name=f"wsgi-isr-probe-{self._name}", daemon=True)
        try:
            prober.start()
        except RuntimeError:  # no more threads, or the interpreter shuts down: calls go to the node
            self._close(stop)

    def stop(self) -> None:
        """Close the breaker, and end the probes."""
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
                    _log.info("%s node %s answers again", self._kind, self._name)
                return
            del probe

    def _failed(self, stop: threading.Event, cause: str) -> None:
        with self._lock:
            if self._stop is stop:
                self.cause = cause

    def _close(self, stop: threading.Event) -> bool:
        with self._lock:
            if self._stop is not stop:  # the breaker was stopped; another failure may have opened it again
                return False
            self._stop = None
            self._closed_at = self._clock()
            self.cause = None
            return True
