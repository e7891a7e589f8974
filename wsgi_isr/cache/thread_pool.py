"""The background: a bounded pool of threads that run jobs.

A job is bytes, so that it can be handed to another process just as well. Threads are started when
the first job comes (after a fork, never before it) and are daemons: a non-daemon thread would stall
the exit of a gunicorn worker, and an executor refuses work while its process shuts down.

Stopping, in this order: no more jobs are taken; jobs that wait are dropped (their pages stay stale, and
whoever asks next begins anew); jobs that run get until the deadline; what still runs then is left to
die with the process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class Pool:
    """Runs jobs in up to ``threads`` threads, with up to ``queue`` more waiting.

    :param threads: without any, a job runs where it is submitted.
    :param run: called with each job; it must not raise.
    :param drop: called with each job that was taken but will not be run.
    """

    def __init__(self, run: Callable[[bytes], None], drop: Callable[[bytes], None], threads: int, queue: int) -> None:
        self._run = run
        self._drop = drop
        self._threads = threads
        self._queue = queue
        self._changed = threading.Condition()
        self._jobs: deque[bytes] = deque()
        self._idle = 0
        self._alive: set[threading.Thread] = set()
        self._written_off: set[threading.Thread] = set()
        self._stopping = False

    def submit(self, job: bytes, first: bool = False) -> bool:
        """Take a job, before all that wait where somebody waits for it (``first``); ``False`` where there is
        no room, or the pool is stopping."""
        with self._changed:
            if self._stopping or len(self._jobs) >= self._queue:
                return False
            if self._threads:
                return self._take(job, first)
        self._run(job)
        return True

    def _take(self, job: bytes, first: bool) -> bool:
        if first:
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)
        if self._idle < len(self._jobs):
            self._grow()
        if not self._alive:  # and none to be had: nobody would ever run it
            self._jobs.remove(job)
            return False
        self._changed.notify()
        return True

    def write_off(self, thread: threading.Thread) -> None:
        """``thread`` is stuck in a job that nobody waits for any more: let another take its place.

        At most as many are replaced as the pool has threads; beyond that the app hangs everywhere, more
        threads would only hang with it, and jobs are refused until one of them comes back.
        """
        with self._changed:
            if thread in self._alive:
                self._alive.discard(thread)
                self._written_off.add(thread)
                if self._jobs:
                    self._grow()

    def stop(self, timeout: float) -> bool:
        """Stop in the order above; ``True`` when nothing runs any more after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._stopping = True
            dropped = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for job in dropped:
            self._drop(job)
        with self._changed:
            while self._alive or self._written_off:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def _grow(self) -> None:
        if len(self._alive) < self._threads and len(self._alive) + len(self._written_off) < 2 * self._threads:
            thread = threading.Thread(target=self._work, name="wsgi-isr-render", daemon=True)
            self._alive.add(thread)
            try:
                thread.start()
            except RuntimeError:  # the system has no more, or the interpreter is shutting down
                self._alive.discard(thread)

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                while not self._jobs and not self._stopping and me in self._alive:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                if not self._jobs or me not in self._alive:
                    self._alive.discard(me)
                    self._written_off.discard(me)
                    self._changed.notify_all()
                    return
                job = self._jobs.popleft()
            self._run(job)
