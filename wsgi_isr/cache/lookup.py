"""Look up entries, and regenerate them with one render in the cluster.

The module knows neither HTTP nor cached functions. ``get`` looks up an entry and judges it. ``_revalidate``
regenerates a stale entry in the background. ``_load`` makes the client wait for the one render. ``refresh`` renders
even if the stored entry is fresh. :mod:`.dispatch` leads the flights, and :mod:`.regenerate` runs the render itself.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

from ..errors import InvalidationError, StoreError
from ..events import StoreFailed
from .dispatch import WAIT_PAUSE, Dispatcher
from .entries import Entries, Judged
from .entry import Content, Entry, HitForMiss
from .executor import Executor, Reply, Status
from .lease import BackingOff, Busy
from .local_cache import CachedEntry
from .regenerate import Regenerator
from .single_flight import Flight
from .switch import PASS, SERVE_STALE, SWITCHED_OFF, SWITCHED_STALE
from .tag_versions import Epochs
from .task import AlreadyFresh, Answer, Attempt, Failed, Outcome, Passed, Pending, Regenerated, Served, Task, Unknown
from .verdict import Expired, Fresh, Missing, Stale, Uncacheable, Validity

if sys.version_info >= (3, 11):
    from typing import assert_never
else:  # pragma: no cover
    from typing_extensions import assert_never

#: Seconds between two checks of the store while another process regenerates a stale copy.
RECHECK_PAUSE = 0.1
#: Seconds that a refresh waits for a render in progress. Refreshes that arrive meanwhile share the next render.
REFRESH_JOIN_WAIT = 1.0


class Cache:
    """The look-ups and renders of one process.

    :param renderers: other processes that render in the background; ``None`` without any.
    :param threads: the number of background threads.
    :param queue: the number of jobs that may wait for a thread.
    :param pause: sleeps for a number of seconds.
    """

    def __init__(
        self,
        entries: Entries,
        regenerator: Regenerator,
        *,
        renderers: Executor | None = None,
        threads: int,
        queue: int,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._entries = entries
        self._switch = entries.tag_versions.switch
        self._regenerator = regenerator
        self._dispatcher = Dispatcher(entries, regenerator, renderers, threads=threads, queue=queue, pause=pause)
        self._flights = self._dispatcher.flights
        self._monotonic = entries.monotonic
        #: The trigger of all renders, in a process that renders for no client; ``None`` where each has its own.
        self.trigger: str | None = None
        # Clients that do not wait may ask for many missing pages. The rest of the queue is kept for stale pages.
        self._max_pending = max(1, queue // 4)

    @property
    def dispatcher(self) -> Dispatcher:
        """Return the flights of this process."""
        return self._dispatcher

    # Looking up --------------------------------------------------------------------------------------

    def get(
        self,
        task: Task,
        may_serve: Callable[[Content], bool] = lambda content: True,
        *,
        only_fresh: bool = False,
        may_wait: bool = True,
    ) -> Answer:
        """Return the answer for a client that asks for ``task``.

        :param may_serve: returns whether this client may get a page. If a stored page is refused, the client neither
            waits nor causes a render.
        :param only_fresh: the answer goes into a stored entry, so a stale copy, or a copy kept for errors, is not used.
        :param may_wait: ``True``: the client waits for the render of a missing page. ``False``: the client gets
            :class:`Pending`.
        """
        if self._switch.is_off_here:
            self._switch.mode_for(task.rule)  # tells of the option
            return Passed(SWITCHED_OFF)
        epochs = self._entries.tag_versions.epochs()
        mode = self._switch.mode_for(task.rule, task.data)
        if mode == PASS:
            return Passed(SWITCHED_OFF)
        cached, judged = self._look_up(task, epochs)
        if only_fresh and not judged.is_proven_fresh:
            cached = None
        if cached is not None and isinstance(cached.entry.content, Content) and not may_serve(cached.entry.content):
            return Passed("cookie")
        if (cached is None or isinstance(judged.verdict, Missing)) and not may_wait and self._start_pending(task):
            return Pending()
        if cached is None:
            answer = self._load(task, None, only_fresh=only_fresh, trigger=judged.trigger)
        else:
            answer = self._answer(task, cached, judged, renews=mode != SERVE_STALE)
        if isinstance(answer, Served):
            content = answer.cached.entry.content
            if isinstance(content, HitForMiss):
                return Passed(content.reason, personal=answer.personal)
            if isinstance(content, Content) and not may_serve(content):
                return Passed("cookie")
        return answer

    def kept(self, task: Task) -> Entry | None:
        """Return the stored entry of ``task``, whatever its validity.

        :raises StoreError: the store is unreachable.
        """
        return self._entries.get(task)

    def _look_up(self, task: Task, epochs: Epochs) -> tuple[CachedEntry | None, Judged]:
        """Return the local copy if it suffices, else the stored entry, else the local copy in any case.

        :param epochs: read before this call **[needed]**: every tag version that is compared later is at least as new.
        """
        entries = self._entries
        cached = entries.local.get(task.page)
        if cached is not None:
            judged = entries.judge(cached, epochs)
            if judged.is_current:
                return cached, judged
            if isinstance(judged.verdict, (Stale, Uncacheable)) and self._monotonic() < cached.recheck_at:
                return cached, judged
        may_be_evicted = False
        try:
            data = entries.store.get(task.page)
            stored = entries.unpack(task, data)
            if stored is None and (cached is None or cached.adopted):
                adopted = entries.adopt(task)
                cached, may_be_evicted = adopted or cached, adopted is None
            else:
                may_be_evicted = data is None
            may_be_evicted = may_be_evicted and not entries.store.is_displaced(task.page)
        except StoreError as error:
            entries.events.emit(StoreFailed("get", task.page, error))
            stored = None
        if stored is not None:
            cached = entries.local.put(task.page, stored)
        if cached is None:
            return None, Judged(Missing(), Validity.VALID)
        judged = entries.judge(cached, epochs)
        return cached, judged.without_store(cached) if may_be_evicted else judged

    def _answer(self, task: Task, cached: CachedEntry, judged: Judged, renews: bool) -> Answer:
        """Return the answer that a verdict leads to.

        :param renews: a stale page is rendered again. Otherwise each page that is there is served, whatever its age.
        """
        verdict = judged.verdict
        if not renews and isinstance(verdict, (Stale, Expired)):
            return Served(cached, judged.label("STALE"), detail=SWITCHED_STALE, cause=judged.cause)
        if isinstance(verdict, Missing):
            answer = self._load(task, None, trigger=judged.trigger)
            return answer._replace(cause=judged.cause) if isinstance(answer, Served) else answer
        if isinstance(verdict, Fresh):
            return Served(cached, judged.label("HIT"))
        if isinstance(verdict, Stale):
            self._revalidate(task, cached, judged.trigger)
            return Served(cached, judged.label("STALE"), cause=judged.cause)
        if isinstance(verdict, Uncacheable):
            if verdict.due and renews:
                self._revalidate(task, cached, judged.trigger)
            return Passed(verdict.reason)
        if isinstance(verdict, Expired):
            if self._is_in_backoff(task, cached.backoff_until):
                return Served(cached, "STALE-IF-ERROR", cause=judged.cause)
            answer = self._load(task, cached, judged.validity, trigger=judged.trigger)
            return answer._replace(cause=judged.cause) if isinstance(answer, Served) else answer
        assert_never(verdict)

    def _is_in_backoff(self, task: Task, until: float) -> bool:
        return self._monotonic() < max(until, self._dispatcher.backoff_until(task))

    # Stale: no client waits --------------------------------------------------------------------------

    def _revalidate(self, task: Task, cached: CachedEntry, trigger: str) -> None:
        """Regenerate the page in the background.

        Do nothing during a back-off, or if this process started the same render a moment ago.
        """
        if self._is_in_backoff(task, cached.recheck_at):
            return
        cached.recheck_at = self._monotonic() + RECHECK_PAUSE * random.uniform(0.5, 1.0)
        self._start(task, trigger)

    def _start(self, task: Task, trigger: str = "miss") -> bool:
        """Start a background render, and return whether this process has one in progress or queued."""
        flight, is_leader = self._flights.join_or_create(task.page)
        attempt = Attempt(ignore_backoff=False, trigger=self.trigger or trigger)
        if is_leader and not self._dispatcher.submit(task, attempt, flight):
            flight.set_result(Busy())
            return False
        return True

    # Missing, and the client does not wait -------------------------------------------------------------

    def _start_pending(self, task: Task) -> bool:
        """Start a background render of a missing page, and return whether one is in progress.

        Return ``False`` in a back-off: the client then gets the failure, and not "pending" for ever.
        """
        if len(self._flights) >= self._max_pending:
            return False
        try:
            return not self._regenerator.in_backoff(task) and self._start(task)
        except StoreError:
            return False

    # Expired, Missing: the client waits for the one render --------------------------------------------

    def _load(
        self,
        task: Task,
        old: CachedEntry | None,
        validity: Validity = Validity.VALID,
        only_fresh: bool = False,
        trigger: str = "miss",
    ) -> Answer:
        """Return a new page, or ``old`` if the render fails or takes too long.

        Without a usable ``old``, return the failure or :class:`Passed`.
        """
        until = self._monotonic() + task.limits.wait
        latest, pause, is_repeated = self._flights.latest, WAIT_PAUSE[0], False
        attempt = Attempt(
            ignore_backoff=task.limits.ignore_backoff and old is None,
            # A back-off from before an invalidation does not hold for the page after the invalidation.
            invalidated_since_failure=validity is Validity.EXPIRED,
            trigger=self.trigger or trigger,
        )
        while True:
            left = max(0.0, until - self._monotonic())
            flight, is_leader = self._flights.join_or_create(task.page)
            if flight.is_led_here:
                return Passed("recursive", missed=True)
            if is_leader and old is not None and self._dispatcher.submit(task, attempt, flight, urgent=True):
                outcome = flight.wait(task.limits.timeout)
            elif (is_leader or old is None) and flight.claim():
                # There is no old page, or no executor took the job: the request's own thread renders. An exception of
                # the app propagates to the server as usual.
                is_leader = True
                outcome = self._dispatcher.lead(task, attempt._replace(max_lease_wait=left), flight)
            else:
                outcome = flight.wait(left)
            # A flight that began after the request arrived has seen every invalidation from before the request.
            is_new = is_leader or flight.number > latest
            if isinstance(outcome, (Regenerated, AlreadyFresh)):
                label = "MISS" if old is None else "EXPIRED"
                answer = self._answer_of(task, outcome, is_leader, is_new, label, only_fresh)
                if answer is not None:
                    return answer
            elif isinstance(outcome, Failed) and not is_new and self._is_outdated(outcome):
                pass  # the failure is older than an invalidation before this request: render again
            elif isinstance(outcome, (Failed, BackingOff)) or (is_leader and outcome is None):
                return self._fall_back(old, outcome)  # the render failed, or takes too long
            if self._monotonic() >= until:
                return Passed("lock-timeout", missed=True)
            if isinstance(outcome, Busy) or is_repeated:
                pause = self._dispatcher.wait_a_while(pause, max(0.0, until - self._monotonic()))
            is_repeated = True

    def _answer_of(
        self,
        task: Task,
        outcome: Regenerated | AlreadyFresh,
        is_leader: bool,
        is_new: bool,
        label: str,
        only_fresh: bool,
    ) -> Served | None:
        """Return the answer for a client that waited for a flight; ``None`` if another render is needed.

        An invalidation may have happened between the start of an older flight and the arrival of this client. The
        result of an older flight is therefore judged again, like a looked-up entry. A client gets the result of a new
        flight even if an invalidation followed. Under steady writes the client would otherwise wait for ever.

        :param is_new: the flight began after this client arrived.
        """
        judged = self._entries.judge(outcome.cached, self._entries.tag_versions.epochs())
        verdict = judged.verdict
        suffices = is_new and (isinstance(outcome, Regenerated) or outcome.proven)
        if not suffices and isinstance(verdict, (Expired, Missing)):
            return None
        if not suffices and only_fresh and not judged.is_proven_fresh:
            return None
        if not suffices and isinstance(verdict, Stale):
            self._revalidate(task, outcome.cached, judged.trigger)
            return Served(outcome.cached, judged.label("STALE"), cause=judged.cause)
        own = outcome if is_leader and isinstance(outcome, Regenerated) else None
        return Served(
            outcome.cached,
            judged.label(label),
            stored=own is not None and own.stored,
            collapsed=own is None,
            hit=False,
            personal=own.personal if own is not None else None,
        )

    def _is_outdated(self, failed: Failed) -> bool:
        """Return whether a tag was invalidated since the failed render began: the failure is not shared then."""
        tag_versions = self._entries.tag_versions
        return tag_versions.validity(failed.snapshot, tag_versions.ask()) >= Validity.EXPIRED

    def _fall_back(self, old: CachedEntry | None, outcome: Failed | BackingOff | None) -> Answer:
        """Return ``old`` after a render that failed or takes too long, if it may be served; else the failure."""
        tag_versions = self._entries.tag_versions
        epochs = tag_versions.epochs()
        if old is not None and not isinstance(self._entries.judge(old, epochs).verdict, Missing):
            old.backoff_until = self._monotonic() + RECHECK_PAUSE
            # While a node that holds one of the tags is unreachable, a purge of the copy cannot be ruled out.
            is_proven = tag_versions.reachable(old.entry.snapshot, epochs)
            return Served(old, "STALE-IF-ERROR" if is_proven else "DEGRADED")
        if isinstance(outcome, Failed):
            return outcome
        return Passed("back-off" if isinstance(outcome, BackingOff) else "lock-timeout", missed=True)

    # On demand ---------------------------------------------------------------------------------------

    def refresh(
        self, task: Task, tag: str, *, inline: bool = False, raises: bool = True, owner: bytes = b""
    ) -> Regenerated | Failed:
        """Render ``task`` with data read from now on, store the result, and return it.

        Renders already in progress are not reused: they may have read data from before the caller's change. If
        rendering fails, the old entry stays.

        :param tag: the tag to mark as stale, so that every process looks for the new entry; empty if marked already.
        :param inline: render in the caller's own thread, which hangs if the render does.
        :param raises: raise the error of an undelivered mark, instead of returning the failure.
        :param owner: the start of the lease's token, where another process has asked.
        :raises InvalidationError: the mark could not be delivered: other processes would keep serving the old entry.
        """
        if self._is_led_by_caller(task, tag):
            return Failed("recursive")
        attempt = Attempt(refresh_tag=tag, owner=owner, trigger=self.trigger or "refresh")
        until = self._monotonic() + task.limits.timeout + task.limits.wait
        older: Flight[Outcome] | None = None
        while True:
            flight, is_leader = self._flights.join_or_create(attempt.flight_key(task), instead_of=older)
            if not is_leader and older is None and flight.begun:
                # Refreshes that arrive during this wait share the next render, instead of rendering beside it.
                flight.wait(min(REFRESH_JOIN_WAIT, task.limits.wait))
                older = flight
                continue
            # A thread of the pool renders: the caller gets a result after `timeout` even if the render hangs.
            is_own = is_leader and (inline or not self._dispatcher.submit(task, attempt, flight, urgent=True))
            if is_own and flight.claim():
                self._dispatcher.lead(task, attempt, flight)
            outcome = flight.wait(max(0.0, until - self._monotonic()))
            if raises and isinstance(outcome, Failed) and isinstance(outcome.error, InvalidationError):
                raise outcome.error
            if isinstance(outcome, Regenerated):
                # If this entry is not stored, a later render was stored first, or the store took no entry at all.
                return outcome if outcome.stored or self._is_there(task, outcome.cached.entry) else Failed("not-stored")
            if isinstance(outcome, Failed):
                return outcome
            if self._monotonic() >= until:
                return Failed("lock-timeout")
            older = flight

    def _is_led_by_caller(self, task: Task, tag: str) -> bool:
        """Return whether the caller is a render of the same page: waiting for a refresh would be a deadlock."""
        keys = (Attempt(refresh_tag=each).flight_key(task) for each in (None, "", tag))
        return any(flight.is_led_here for flight in map(self._flights.get, keys) if flight is not None)

    def _is_there(self, task: Task, entry: Entry) -> bool:
        """Return whether the store has ``entry``, or a newer one."""
        stored = self.kept(task)
        return stored is not None and (stored == entry or stored.started > entry.started)

    def done(self, task: Task) -> bool:
        """Wait for the render in progress in this process; return whether there was one and it ended."""
        flight = self._flights.get(task.page)
        return flight is not None and flight.wait(task.limits.timeout) is not None

    # For other processes, and the end ----------------------------------------------------------------

    def run_job(self, task: Task, attempt: Attempt) -> Reply:
        """Run the job of another process, and return the reply."""
        try:
            self._regenerator.tags_of(task)
        except Unknown:
            return Reply(Status.UNKNOWN)
        except Exception:
            pass  # a callable of the rule raised it: the render raises it again, and records it
        outcome: Outcome | None
        if attempt.refresh_tag is not None:
            outcome = self.refresh(task, attempt.refresh_tag, raises=False, owner=attempt.owner)
        else:
            outcome = self._dispatcher.run(task, attempt)
        if isinstance(outcome, (Regenerated, AlreadyFresh)):
            is_stored = isinstance(outcome, Regenerated) and outcome.stored
            return Reply(Status.STORED if is_stored else Status.FOUND, self._entries.digest(outcome.cached.entry))
        if isinstance(outcome, BackingOff):
            return Reply(Status.BACKING_OFF)
        if isinstance(outcome, Busy):
            return Reply(Status.BUSY)
        return Reply(Status.FAILED, reason="timeout" if outcome is None else outcome.reason)

    def stop(self, timeout: float) -> bool:
        """Drain the background jobs within ``timeout`` seconds; return whether no job is left running."""
        drained = self._dispatcher.stop(timeout)
        self._regenerator.close()
        return drained
