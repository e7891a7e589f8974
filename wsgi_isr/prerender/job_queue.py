"""Run the jobs of a prerender in threads: postpone some, and give up renders that hang."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..cache.thread_pool import Pool
from ..pages.resolver import Page
from .report import Problem

#: Seconds between two checks for renders past their deadline, and between two calls of ``progress``.
TICK = 0.1
#: Seconds before the postponed jobs run again.
RETRY_INTERVAL = 0.25
#: The maximum number of linking pages that a failure names.
MAX_LINKED = 5

Progress = Callable[[int, int, str], object]
"""Called with the number of finished jobs, the number of all jobs so far, and the path of a running job."""


class Result(NamedTuple):
    """The outcome of a job: ``rendered``, ``there``, ``asset``, ``page``, ``skipped`` or ``failed``.

    :param reason: why the job was skipped or failed.
    """

    outcome: str
    reason: str = ""


@dataclass(eq=False)
class Job:
    """One page, or one file that a page needs (``page`` is ``None``).

    A postponed job runs again until ``retry_for`` seconds after the end of its first run.
    """

    path: str
    page: Page | None
    retry_for: float = 0.0
    linked: list[str] = field(default_factory=list)
    result: Result | None = None
    # `deadline` and `retry_until` are monotonic seconds. Past the deadline, the queue gives up the thread of the job.
    deadline: float = float("inf")
    retry_until: float | None = None
    thread: threading.Thread | None = None

    @property
    def problem(self) -> Problem:
        """Return the entry of this job in the report."""
        return Problem(self.path, self.result.reason if self.result is not None else "", tuple(self.linked))

    def note_link(self, linked: str | None) -> None:
        """Note a page that links to this one."""
        if linked is not None and linked not in self.linked and len(self.linked) < MAX_LINKED:
            self.linked.append(linked)


class JobQueue:
    """Run jobs in the threads of a pool, until all jobs are done. Several threads may add jobs.

    :param run: returns the result of a job; ``None`` postpones the job. ``run`` must not raise.
    :param threads: the maximum number of jobs that run at once.
    :param monotonic: the clock, in seconds.
    :param pause: sleeps for a number of seconds.
    """

    def __init__(
        self,
        run: Callable[[Job], Result | None],
        threads: int,
        monotonic: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        self._run = run
        self._threads = threads
        self._monotonic = monotonic
        self._pause = pause
        self._pool = Pool(self._work, threads, sys.maxsize)
        # A plain attribute, because a signal handler sets it. An Event has a lock, and the signal may have interrupted
        # the code that holds this lock.
        self.stopping = False
        # The condition guards all attributes below.
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._waiting = 0
        self._running: dict[Job, None] = {}
        self._postponed: list[Job] = []
        self._dropped = 0
        self._hanging = 0
        self._hung_everywhere = 0

    def stop(self) -> None:
        """Start no more jobs; those in progress end. A signal's handler may call this."""
        self.stopping = True

    def close(self) -> None:
        """Drop the waiting jobs, and take no more jobs."""
        self._pool.stop(0)

    def add(self, job: Job) -> None:
        """Take a job, which runs as soon as a thread is free."""
        with self._changed:
            self._jobs.append(job)
            self._submit(job)

    def jobs(self) -> list[Job]:
        """Return all jobs that were added."""
        with self._changed:
            return list(self._jobs)

    @property
    def hung_everywhere(self) -> int:
        """Return the number of hanging jobs if they stopped the queue, else 0."""
        return self._hung_everywhere

    def join(self, progress: Progress) -> None:
        """Wait until all jobs are done, or until those in progress end after :meth:`stop`."""
        while True:
            if self.stopping:
                self.close()
            with self._changed:
                busy = bool(self._waiting or self._running)
                if not busy and (self.stopping or not self._postponed):
                    break
                if busy:
                    self._changed.wait(TICK)
                late = [job for job in self._running if self._monotonic() >= job.deadline]
            for job in late:
                self._give_up(job)
            if not busy:
                self._retry()
            self._report(progress)
        self._report(progress)

    def _report(self, progress: Progress) -> None:
        with self._changed:
            total = len(self._jobs)
            done = total - self._waiting - len(self._running) - len(self._postponed) - self._dropped
            job = next(iter(self._running), None)
        progress(done, total, job.path if job is not None else "")

    def _retry(self) -> None:
        """Submit the postponed jobs again."""
        self._pause(RETRY_INTERVAL)
        with self._changed:
            postponed, self._postponed = self._postponed, []
            for job in postponed:
                self._submit(job)

    def _submit(self, job: Job) -> None:
        """Submit a job to the pool; the caller holds the lock."""
        self._waiting += 1
        if not self._pool.submit(job, on_done=self._drop):
            self._waiting -= 1
            self._dropped += 1

    def _give_up(self, job: Job) -> None:
        """Give up a job past its deadline: another thread replaces its thread."""
        with self._changed:
            if job not in self._running:
                return  # the job has just ended
            del self._running[job]
            job.result = Result("failed", "timeout")
            self._hanging += 1
            # The pool replaces at most as many threads as it began with: no thread is left then.
            all_hang = self._hanging >= 2 * self._threads
        if job.thread is not None:
            self._pool.write_off(job.thread)
        if all_hang:
            self._hung_everywhere = self._hanging
            self.stop()

    def _drop(self, has_run: bool | None) -> None:
        """Count a job that the stopping pool has dropped."""
        if has_run:
            return
        with self._changed:
            self._waiting -= 1
            self._dropped += 1
            self._changed.notify_all()

    def _work(self, job: Job) -> bool:
        """Run one job, in a thread of the pool, and return ``True``."""
        with self._changed:
            self._waiting -= 1
            if self.stopping:
                self._dropped += 1
                self._changed.notify_all()
                return True
            job.thread = threading.current_thread()
            self._running[job] = None
        self._end(job, self._run(job))
        return True

    def _end(self, job: Job, result: Result | None) -> None:
        with self._changed:
            self._running.pop(job, None)
            job.deadline = float("inf")
            if job.result is not None:
                self._hanging -= 1  # its thread was given up before
            elif result is not None:
                job.result = result
            else:
                self._postpone(job)
            self._changed.notify_all()

    def _postpone(self, job: Job) -> None:
        """Keep a job for another run, or let it fail; the caller holds the lock."""
        now = self._monotonic()
        if job.retry_until is None:
            job.retry_until = now + job.retry_for
        if now < job.retry_until:
            self._postponed.append(job)
        else:
            job.result = Result("failed", "another process still renders it, or its last render failed a moment ago")
