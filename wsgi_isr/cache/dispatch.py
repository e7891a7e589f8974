"""Lead the flights of a process: in the caller's thread, in a background thread, or in another process."""

from __future__ import annotations

import functools
import os
import random
import threading
from collections.abc import Callable

from ..errors import InvalidationError, StoreError, StoreUnavailable
from ..events import BackgroundFull, InternalError, RenderFailed, StoreFailed
from .entries import Entries, digest
from .executor import Executor, FirstOf, Job, Reply, Status
from .lease import BackingOff, Busy
from .regenerate import Regenerator
from .single_flight import Flight, Flights, leading
from .switch import PASS, SERVE_STALE, SWITCHED_OFF
from .task import AlreadyFresh, Attempt, Failed, Outcome, Regenerated, Task
from .thread_pool import Pool

#: Seconds between two checks for a page that another process renders: the first pause, and the longest.
WAIT_PAUSE = (0.01, 0.25)
#: Seconds of back-off after a render killed its process: the first pause, and the longest.
CRASH_PAUSE = (1.0, 30.0)
#: The maximum number of pages whose crash back-off a process remembers.
_MAX_CRASHED = 1024


class CrashBackoff:
    """The back-offs of pages whose renders killed renderer processes.

    :param monotonic: returns monotonic seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        #: By page: the last pause in seconds, and its end in monotonic seconds.
        self._pauses: dict[str, tuple[float, float]] = {}

    def back_off(self, page: str) -> float:
        """Begin a back-off, and return its length in seconds. Each crash in a row doubles the length, up to a limit."""
        if len(self._pauses) >= _MAX_CRASHED:
            self._pauses.clear()
        last, _ = self._pauses.get(page, (CRASH_PAUSE[0] / 2, 0.0))
        pause = min(2 * last, CRASH_PAUSE[1])
        self._pauses[page] = (pause, self._monotonic() + pause)
        return pause

    def until(self, page: str) -> float:
        """Return the monotonic time at which the back-off of a page ends; 0 without one."""
        return self._pauses.get(page, (0.0, 0.0))[1]

    def forget(self, page: str) -> None:
        """End the back-off of a page, because a process has rendered it."""
        self._pauses.pop(page, None)


class Dispatcher:
    """The flights of a process, and the executors that lead them.

    :param renderers: other processes that take jobs; ``None`` without any.
    :param threads: the number of background threads.
    :param queue: the number of jobs that may wait for a thread.
    :param pause: sleeps for a number of seconds.
    """

    def __init__(
        self,
        entries: Entries,
        regenerator: Regenerator,
        renderers: Executor | None,
        *,
        threads: int,
        queue: int,
        pause: Callable[[float], None],
    ) -> None:
        self._entries = entries
        self._regenerator = regenerator
        self._pause = pause
        self._monotonic = entries.monotonic
        self._emit = entries.events.emit
        self._crash_backoff = CrashBackoff(entries.monotonic)
        self.flights: Flights[Outcome] = Flights()
        self._threads: Pool[Job] = Pool(self._run, threads, queue)
        self._executor: Executor = FirstOf(*filter(None, (renderers,)), self._threads)

    # Leading in the caller's thread --------------------------------------------------------------------

    def lead(self, task: Task, attempt: Attempt, flight: Flight[Outcome], pooled: bool = False) -> Outcome:
        """Render, set the result of ``flight``, and return the result.

        If another process is rendering, wait for at most ``attempt.max_lease_wait`` seconds.

        :param pooled: the caller is a thread of the pool. The pool replaces the thread if the render hangs.
        """
        until = self._monotonic() + attempt.max_lease_wait
        pause = WAIT_PAUSE[0]
        thread = threading.current_thread()

        def overdue() -> None:
            flight.set_result(Failed("timeout"))
            if pooled:
                self._threads.write_off(thread)

        outcome: Outcome = Busy()
        try:
            while True:
                with leading(flight):
                    outcome = self._regenerator.regenerate(task, attempt, overdue)
                left = until - self._monotonic()
                if not isinstance(outcome, Busy) or left <= 0:
                    return outcome
                # Another process renders. The next try acquires the lock if it is free, and finds the page if it is
                # stored.
                pause = self.wait_a_while(pause, left)
        finally:
            # If the leader's thread exits (its own timeout, a stopping process), the followers try again. An answer for
            # the leader's client alone is not shared.
            if isinstance(outcome, Failed) and outcome.reason == "exit":
                flight.set_result(Busy())
            else:
                flight.set_result(outcome._replace(personal=None) if isinstance(outcome, Regenerated) else outcome)

    def wait_a_while(self, pause: float, left: float) -> float:
        """Sleep for about ``pause`` seconds, at most ``left``, and return the next pause."""
        self._pause(min(left, pause * random.uniform(0.5, 1.0)))
        return min(pause * 1.5, WAIT_PAUSE[1])

    # Leading in the background -------------------------------------------------------------------------

    def submit(self, task: Task, attempt: Attempt, flight: Flight[Outcome], urgent: bool = False) -> bool:
        """Hand a flight to another process or to a thread, and return whether one of them took it.

        :param urgent: a client waits.
        """
        # A renderer keeps the owner that came with the job: if it dies, that process finds the lock.
        owner = attempt.owner or os.urandom(12)
        trace = attempt.trace or self._entries.events.trace()
        job = Job(task, attempt._replace(owner=owner, trace=trace), flight)
        # The caller of a refreshed function needs its exception, which cannot cross processes: a thread runs the job.
        executor = self._threads if task.data and attempt.refresh_tag is not None else self._executor
        if executor.submit(job, urgent, functools.partial(self._finish, job)):
            return True
        self._emit(BackgroundFull(task.page))
        return False

    def run(self, task: Task, attempt: Attempt) -> Outcome | None:
        """Return the outcome of a flight that begins from now on, or of an older flight with a current page.

        A thread of this process renders. Return ``None`` if the render takes too long.
        """
        latest = self.flights.latest
        until = self._monotonic() + task.limits.timeout + 1
        while True:
            flight, is_leader = self.flights.join_or_create(attempt.flight_key(task))
            if is_leader:
                job = Job(task, attempt, flight)
                if not self._threads.submit(job, True, functools.partial(self._finish, job)):
                    flight.set_result(Busy())
            outcome = flight.wait(max(0.0, until - self._monotonic()))
            if flight.number > latest or not isinstance(outcome, (Regenerated, AlreadyFresh)):
                return outcome
            if self._entries.is_current_now(outcome.cached):
                return outcome

    def backoff_until(self, task: Task) -> float:
        """Return the monotonic time at which the crash back-off of a page ends; 0 without one."""
        return self._crash_backoff.until(task.page)

    def stop(self, timeout: float) -> bool:
        """Drain the background jobs within ``timeout`` seconds; return whether no job is left running."""
        return self._threads.stop(timeout)

    def _run(self, job: Job) -> None:
        """Run a job in a thread of the pool."""
        if job.flight.claim():
            try:
                if self._is_switched_off(job):
                    job.flight.set_result(Failed(SWITCHED_OFF))
                    return
                self.lead(job.task, job.attempt, job.flight, pooled=True)
            except Exception as error:  # an error of this package: the app's errors are outcomes of the flight
                self._emit(InternalError("a background render", error))

    def _is_switched_off(self, job: Job) -> bool:
        """Return whether the switch forbids a render that was queued before. A refresh is always rendered."""
        if job.attempt.refresh_tag is not None:
            return False
        tag_versions = self._entries.tag_versions
        tag_versions.epochs()  # a renderer process may not have read the switch for long
        mode = tag_versions.switch.mode_for(job.task.rule, job.task.data)
        return mode == PASS or (mode == SERVE_STALE and self._entries.local.get(job.task.page) is not None)

    def _finish(self, job: Job, reply: Reply | None) -> None:
        """Set the result of a job's flight from the reply.

        The reply is for this flight alone. Clients of a later flight may have arrived after an invalidation that the
        render missed. Without a reply in time, the other process's lease lapses, and the next request renders.
        """
        if reply is None and job.flight.done:  # a thread has set the result
            return
        outcome: Outcome = Busy()
        try:
            outcome = self._outcome_of(job, reply)
        except Exception as error:  # a store raises an undeclared error: the waiting threads still need a result
            self._emit(InternalError("a render in another process", error))
        # A client that cannot wait may have claimed the flight. The client then sets the result, unless the other
        # process has a page.
        if isinstance(outcome, (Regenerated, AlreadyFresh)) or job.flight.claim():
            job.flight.set_result(outcome)

    def _outcome_of(self, job: Job, reply: Reply | None) -> Outcome:
        """Translate a reply into the outcome of the flight, and return the outcome."""
        task, refresh_tag = job.task, job.attempt.refresh_tag
        if reply is not None and reply.status is Status.DIED:
            return self._died(job)
        if refresh_tag is not None:
            self._entries.tag_versions.forget()
            self._entries.local.drop_prepared()
        if reply is None:
            return Busy()
        if reply.status is Status.BACKING_OFF:
            return BackingOff()
        if reply.status is Status.FAILED:
            error = None
            if reply.reason == "undelivered":
                cause = StoreUnavailable("the renderer", "it could not deliver the mark to other processes")
                error = InvalidationError((), {refresh_tag or task.page: cause})
            return Failed(reply.reason, error)
        if reply.status in (Status.STORED, Status.FOUND):
            self._crash_backoff.forget(task.page)
            return self._stored(task, reply)
        return Busy()

    def _died(self, job: Job) -> Failed:
        """Back off after a render that killed its process, and return the failure.

        No serving process retries the render: the serving process would die as well. The lock of the dead process
        becomes the back-off of the cluster. In this process the back-off holds even if the store is unreachable.
        """
        task = job.task
        pause = self._crash_backoff.back_off(task.page)
        self._regenerator.back_off(task, job.attempt.owner)
        failed = RenderFailed(task.page, task.rule, "renderer-died", pause, None, task.text)
        self._emit(failed._replace(trigger=job.attempt.trigger, is_data=task.data))
        return Failed("renderer-died")

    def _stored(self, task: Task, reply: Reply) -> Outcome:
        """Return the outcome with the stored entry that another process has reported."""
        try:
            data = self._entries.store.get(task.page)
        except StoreError as error:
            self._emit(StoreFailed("get", task.page, error))
            return Busy()
        if data is None or (entry := self._entries.unpack(task, data)) is None:
            return Busy()
        cached = self._entries.local.put(task.page, entry)
        # Another node of the store may still have an older page. Only an equal digest proves that this entry is the
        # reported one.
        is_same = reply.digest == digest(data)
        if is_same and reply.status is Status.STORED:
            return Regenerated(cached, True)
        return AlreadyFresh(cached, proven=is_same and reply.status is Status.FOUND)
