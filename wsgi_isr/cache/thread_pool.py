"""A bounded pool of background threads that run jobs.

The first job starts a thread (after a fork, never before it). Threads are daemons: a non-daemon thread would stall the
exit of a gunicorn worker. ``concurrent.futures`` is no alternative: its executors refuse work while their process shuts
down.

The pool stops in this order. New jobs are refused. Waiting jobs are dropped: their pages stay stale, and the next
request starts a render again. Running jobs get until the deadline, and after that end with the process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

J = TypeVar("J")

#: Called with the result of a job, or with ``None`` where the job is dropped.
OnDone = Callable[[Any], object]


def _ignore(result: object) -> None:
    """Do nothing with the result of a job."""


class Pool(Generic[J]):
    """Run jobs in background threads.

    :param run: called with each job; it must not raise.
    :param threads: the most threads; with 0, :meth:`submit` runs the job itself.
    :param queue: the most jobs that wait.
    """

    def __init__(self, run: Callable[[J], object], threads: int, queue: int) -> None:
        self._run = run
        self._threads = threads
        self._queue = queue
        self._changed = threading.Condition()
        self._jobs: deque[tuple[J, OnDone]] = deque()
        self._idle = 0
        self._alive: set[threading.Thread] = set()
        self._written_off: set[threading.Thread] = set()
        self._stopping = False

    def submit(self, job: J, urgent: bool = False, on_done: OnDone = _ignore) -> bool:
        """Take a job; return ``False`` where the queue is full, no thread can start, or the pool is stopping.

        :param urgent: the job is urgent, because a client waits for it: it goes before all jobs in the queue.
        :param on_done: called once with the result of the job, or with ``None`` if the stopping pool drops it; it must
            not raise.
        """
        with self._changed:
            if self._stopping or len(self._jobs) >= self._queue:
                return False
            if self._threads:
                return self._take((job, on_done), urgent)
        on_done(self._run(job))
        return True

    def _take(self, job: tuple[J, OnDone], urgent: bool) -> bool:
        if urgent:
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)
        if self._idle < len(self._jobs):
            self._grow()
        if not self._alive:  # no thread could start: the job would never run
            self._jobs.remove(job)
            return False
        self._changed.notify()
        return True

    def write_off(self, thread: threading.Thread) -> None:
        """Replace a thread that is stuck in a job past its deadline.

        At most as many threads are replaced as the pool has. Beyond that the app hangs everywhere, and more threads
        would hang as well. Jobs are then refused until a thread ends its job.
        """
        with self._changed:
            if thread in self._alive:
                self._alive.discard(thread)
                self._written_off.add(thread)
                if self._jobs:
                    self._grow()

    def stop(self, timeout: float) -> bool:
        """Stop in the order above; return whether all jobs have ended within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._stopping = True
            dropped = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        for _, on_done in dropped:
            on_done(None)
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
            except RuntimeError:  # the system has no more threads, or the interpreter is shutting down
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
                job, on_done = self._jobs.popleft()
            on_done(self._run(job))
            del job, on_done
