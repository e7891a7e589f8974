"""A thread that reads the epochs before they lapse, so that no hit waits for a node."""

from __future__ import annotations

import threading
import time

from ..middleware.isr import ISR

#: The part of ``coherence`` after which the epochs are read again. The rest is for the read.
_AHEAD = 0.75
#: Seconds between two reads, at least; seconds for the last one.
_LEAST, _LAST_READ = 0.005, 1.0
#: Seconds for which the epochs are read after the last request. A hit whose epochs have lapsed goes to a thread.
_TRAFFIC = 10.0


class EpochPoll:
    """Read the epochs of an ISR again and again while there is traffic.

    :param isr: whose ``coherence`` is above 0.
    """

    def __init__(self, isr: ISR) -> None:
        self._isr = isr
        self._pause = max(isr.configuration.settings.coherence * _AHEAD, _LEAST)
        self._stopped = threading.Event()
        #: Set by each request. The thread resets it, and reads nothing long after the last request.
        self.has_traffic = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, in the process that serves."""
        self._thread = threading.Thread(target=self._run, name="wsgi-isr-epochs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait a moment for a read in progress: the store will be closed."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_LAST_READ)

    def _run(self) -> None:
        until = 0.0
        while not self._stopped.wait(self._pause):
            now = time.monotonic()
            if self.has_traffic:
                self.has_traffic = False
                until = now + _TRAFFIC
            if now < until:
                self._isr._poll_ahead()
