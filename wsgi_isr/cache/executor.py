"""Executors: the threads of this process, and other processes, which run jobs in the background."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

from .single_flight import Flight
from .task import Attempt, Outcome, Task


class Job(NamedTuple):
    """A render to run in the background, and the flight that waits for its outcome."""

    task: Task
    attempt: Attempt
    flight: Flight[Outcome]


class Status(enum.Enum):
    """The result of a job in another process."""

    STORED = "stored"
    """The process rendered the page and stored it."""
    FOUND = "found"
    """The page was current already, or a later render was stored first."""
    BUSY = "busy"
    """Another process is rendering."""
    BACKING_OFF = "backing-off"
    """The page is in a back-off."""
    FAILED = "failed"
    """The render failed."""
    UNKNOWN = "unknown"
    """The process cannot render the task, or has not accepted the job in time."""
    DIED = "died"
    """The process accepted the job and died, presumably because of it."""


class Reply(NamedTuple):
    """The reply of another process to a job.

    :param digest: the digest of the stored entry, for ``STORED`` and ``FOUND``.
    :param reason: the reason of the failure, a token.
    """

    status: Status
    digest: bytes = b""
    reason: str = ""


OnDone = Callable[[Reply | None], object]
"""Called once with the reply. ``None``: the job was dropped, it takes too long, or a thread has set the outcome."""


class Executor(Protocol):
    """Run jobs outside of the caller's thread."""

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        """Take a job, and return whether it was taken.

        :param urgent: a client waits for the job: it goes before all jobs that are not urgent.
        :param on_done: called once if the job was taken, in any thread; it must not raise.
        """
        ...


class FirstOf:
    """Submit each job to the first executor that takes it.

    An executor may take a job and reply that it cannot run it. The job then goes to the next executor.
    """

    def __init__(self, *executors: Executor) -> None:
        self._executors = executors

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        """Submit a job, and return whether an executor took it; see :meth:`Executor.submit`."""
        return self._submit(0, job, urgent, on_done)

    def _submit(self, first: int, job: Job, urgent: bool, on_done: OnDone) -> bool:
        for number, executor in enumerate(self._executors[first:], first):
            if executor.submit(job, urgent, functools.partial(self._finish, number + 1, job, urgent, on_done)):
                return True
        return False

    def _finish(self, following: int, job: Job, urgent: bool, on_done: OnDone, reply: Reply | None) -> None:
        is_open = reply is not None and reply.status is Status.UNKNOWN and not job.flight.done
        if not (is_open and self._submit(following, job, urgent, on_done)):
            on_done(reply)
