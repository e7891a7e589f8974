"""Look up entries, and regenerate them with one render in the cluster.

The module knows neither HTTP nor functions. A :class:`~.task.Task` describes a render, and packs into bytes. The
``produce`` that the cache was given renders it.

``get`` looks up and judges. ``_revalidate`` regenerates a stale entry in the background. ``_load`` makes the client
wait for the one render. ``refresh`` renders whatever is stored. :mod:`.regenerate` is the render itself.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence

from ..errors import InvalidationError, StoreError, StoreUnavailable
from ..events import BackgroundFull, Events, InternalError, RenderFailed, StoreFailed
from ..stores.base import Store
from . import renderer_pool
from .entry import Codec, Content, Entry, HitForMiss
from .lease import BackingOff, Busy, Leases
from .local_cache import CachedEntry, Local
from .regenerate import Judged, Regenerator, digest, is_current
from .releases import Releases
from .single_flight import Flight, Flights, leading
from .tag_versions import TagVersions
from .task import AlreadyFresh, Answer, Failed, Outcome, Passed, Pending, Produce, Regenerated, Served, Task, Unknown
from .thread_pool import Pool
from .verdict import NEGATIVE_STATUSES, Expired, Fresh, Missing, Stale, Uncacheable, Validity

if sys.version_info >= (3, 11):
    from typing import assert_never
else:  # pragma: no cover
    from typing_extensions import assert_never

#: Seconds between two looks at the store for a stale copy that another process is regenerating.
LOOK_AGAIN = 0.1
#: Seconds between two looks of a client that waits: the first pause, and the longest.
WAIT_PAUSE = (0.01, 0.25)
#: Seconds of back-off after a render killed its process: the first pause, and the longest.
DEADLY = (1.0, 30.0)
#: Seconds that a refresh waits for a render in progress. Refreshes that arrive meanwhile share the next render.
OLDER_RENDER = 1.0


class Cache(Regenerator):
    """The look-ups and renders of one process.

    The other parameters are those of :class:`~.regenerate.Regenerator`.

    :param releases: the release of this process, and the one whose pages it adopts; ``None`` where it adopts none.
    :param threads: the number of background threads.
    :param queue: the number of jobs that may wait for a thread.
    :param pause: sleeps for a number of seconds.
    """

    def __init__(
        self,
        produce: Produce,
        tags_of: Callable[[Task], Sequence[str]],
        store: Store,
        local: Local,
        leases: Leases,
        tag_versions: TagVersions,
        events: Events,
        *,
        releases: Releases | None = None,
        threads: int,
        queue: int,
        uncacheable_ttl: float,
        codec: Codec,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = produce, tags_of, store, local, leases, tag_versions, events
        super().__init__(*parts, uncacheable_ttl=uncacheable_ttl, codec=codec, clock=clock, monotonic=monotonic)
        self._releases = releases
        self._most_coming = max(1, queue // 4)
        self._pause = pause
        self._flights: Flights[Outcome] = Flights()
        #: Pages whose render killed its process: the last pause in seconds, and its end in monotonic seconds.
        self._crash_backoff: dict[str, tuple[float, float]] = {}
        self._pool = Pool(self._run, self._drop, threads, queue)
        #: Hands a job to another process (:mod:`.renderer_pool`); ``None`` where no process takes jobs. Arguments: the
        #: job, whether it is urgent, the seconds that it may take, and a callback for the reply.
        self.elsewhere: Callable[[bytes, bool, float, renderer_pool.Done], bool] | None = None

    # Looking up --------------------------------------------------------------------------------------

    def get(
        self,
        task: Task,
        may_serve: Callable[[Content], bool] = lambda content: True,
        *,
        fresh: bool = False,
        waits: bool = True,
    ) -> Answer:
        """Return the answer for a client that asks for ``task``.

        :param may_serve: whether this client may get a page. Where it may not, there is neither a render nor a wait.
        :param fresh: the result goes into a stored entry. A stale copy, or one kept for errors, is not used.
        :param waits: where nothing is stored, the client waits for a render. Otherwise it gets :class:`Pending`.
        """
        cached, judged = self._look_up(task)
        if fresh and not judged.is_proven_fresh:
            cached = None
        if cached is not None and isinstance(cached.entry.content, Content) and not may_serve(cached.entry.content):
            return Passed("cookie")
        if (cached is None or isinstance(judged.verdict, Missing)) and not waits and self._begin(task):
            return Pending()
        answer = self._load(task, None, fresh=fresh) if cached is None else self._answer(task, cached, judged)
        if isinstance(answer, Served):
            content = answer.cached.entry.content
            if isinstance(content, HitForMiss):
                return Passed(content.reason, personal=answer.personal)
            if isinstance(content, Content) and not may_serve(content):
                return Passed("cookie")
        return answer

    def _answer(self, task: Task, cached: CachedEntry, judged: Judged) -> Answer:
        verdict = judged.verdict
        if isinstance(verdict, Missing):
            return self._load(task, None)
        if isinstance(verdict, Fresh):
            return Served(cached, judged.label("HIT"))
        if isinstance(verdict, Stale):
            self._revalidate(task, cached)
            return Served(cached, judged.label("STALE"))
        if isinstance(verdict, Uncacheable):
            if verdict.due:
                self._revalidate(task, cached)
            return Passed(verdict.reason)
        if isinstance(verdict, Expired):
            if self._monotonic() < max(cached.backoff_until, self._backoff_until(task)):
                return Served(cached, "STALE-IF-ERROR")
            return self._load(task, cached, judged.validity)
        assert_never(verdict)

    def _look_up(self, task: Task) -> tuple[CachedEntry | None, Judged]:
        """Return the local copy if it suffices, else the stored entry, else the local copy all the same.

        The epochs are read first **[needed]**: every tag version that is compared later is at least as new.
        """
        epochs = self._tag_versions.epochs()
        cached = self._local.get(task.page)
        if cached is not None:
            judged = self._judge(cached, epochs)
            if is_current(judged.verdict):
                return cached, judged
            if isinstance(judged.verdict, (Stale, Uncacheable)) and self._monotonic() < cached.look_at:
                return cached, judged
        is_forgotten = False
        try:
            data = self._store.get(task.page)
            stored = self._read(task, data)
            if stored is None and (cached is None or cached.adopted):
                adopted = self._adopted(task)
                cached, is_forgotten = adopted or cached, adopted is None
            else:
                is_forgotten = data is None
            is_forgotten = is_forgotten and not self._store.is_displaced(task.page)
        except StoreError as error:
            self._events.emit(StoreFailed("get", task.page, error))
            stored = None
        if stored is not None:
            cached = self._local.put(task.page, stored)
        if cached is None:
            return None, Judged(Missing(), Validity.VALID)
        judged = self._judge(cached, epochs)
        if is_forgotten and isinstance(judged.verdict, Stale) and not cached.only_here:
            # The store may have evicted a later answer as well, a 404 or a hit-for-miss. A stale copy does not rule
            # that out, and is a fallback for errors only.
            judged = Judged(Expired(cached.entry), judged.validity)
        return cached, judged

    def _adopted(self, task: Task) -> CachedEntry | None:
        """Return the page of the previous release, to be served as stale; ``None`` without one.

        A new release thus starts without a thundering herd, and no client waits.
        """
        if self._releases is None or task.data or (former := self._releases.former_page(task)) is None:
            return None
        entry = self._read(task, self._store.get(former))
        if entry is None or isinstance(entry.content, HitForMiss):
            return None
        cached = self._local.put(task.page, entry)
        cached.adopted = True
        return cached

    def _note_release(self, task: Task, outcome: Outcome) -> None:
        """Record whether this release has stored a page, or refuses it."""
        if self._releases is None or task.data or not isinstance(outcome, Regenerated):
            return
        content = outcome.cached.entry.content
        try:
            if not isinstance(content, Content) or int(content.status[:3]) in NEGATIVE_STATUSES:
                self._releases.refused(task)
            elif outcome.stored:
                self._releases.stored()
        except StoreError as error:
            self._events.emit(StoreFailed("delete", task.page, error))

    # Stale: no client waits --------------------------------------------------------------------------

    def _revalidate(self, task: Task, cached: CachedEntry) -> None:
        """Regenerate the page in the background.

        Do nothing in a back-off, or where this process has asked for the same a moment ago.
        """
        if self._monotonic() < max(cached.look_at, self._backoff_until(task)):
            return
        cached.look_at = self._monotonic() + LOOK_AGAIN * random.uniform(0.5, 1.0)
        self._send_off(task)

    def _send_off(self, task: Task) -> bool:
        """Start a background render, and return whether this process has one in progress or queued."""
        flight, is_leader = self._flights.join_or_create(task.page)
        if is_leader and not self._submit(task._replace(max_lease_wait=0.0, ignore_backoff=False), flight):
            flight.set_result(Busy())
            return False
        return True

    def _run(self, job: bytes) -> None:
        """Run a job in a thread of the pool."""
        task = Task.unpack(job)
        flight = self._flights.get(task.flight)
        if flight is not None and flight.claim():
            try:
                self._lead(task, flight, pooled=True)
            except Exception as error:  # an error of this package: the app's errors are outcomes of the flight
                self._events.emit(InternalError("a background render", error))

    def work(self, task: Task) -> bytes:
        """Run the task of another process, and return the reply (:mod:`.renderer_pool`)."""
        try:
            self._tags_of(task)
        except Unknown:
            return renderer_pool.UNKNOWN
        except Exception:
            pass  # raised by a rule's own callable: the render raises it again, and records it
        if task.refresh_tag is not None:
            outcome: Outcome | None = self.refresh(task, task.refresh_tag, raises=False)
        else:
            outcome = self._work(task)
        if isinstance(outcome, Regenerated) and outcome.stored:
            return renderer_pool.MADE + digest(self._codec.pack(outcome.cached.entry))
        if isinstance(outcome, (Regenerated, AlreadyFresh)):
            return renderer_pool.FOUND + digest(self._codec.pack(outcome.cached.entry))
        if isinstance(outcome, BackingOff):
            return renderer_pool.BACKOFF
        if isinstance(outcome, Failed):
            return renderer_pool.FAILED + outcome.reason.encode()
        return renderer_pool.FAILED + b"timeout" if outcome is None else renderer_pool.BUSY

    def _work(self, task: Task) -> Outcome | None:
        """Return the outcome of a flight that begins from now on, or of one whose page is still current."""
        asked = self._flights.latest
        until = self._monotonic() + task.timeout + 1
        while True:
            flight, is_leader = self._flights.join_or_create(task.flight)
            if is_leader and not self._pool.submit(task.pack(), True):
                flight.set_result(Busy())
            outcome = flight.wait(max(0.0, until - self._monotonic()))
            if (
                flight.number > asked
                or not isinstance(outcome, (Regenerated, AlreadyFresh))
                or self._is_proven(outcome.cached)
            ):
                return outcome

    def worked(self, task: Task, flight: Flight[Outcome], first: bool, reply: bytes | None) -> None:
        """Set the result of ``flight`` from the reply of another process.

        The reply is for this flight alone. Clients of a later flight may have arrived after an invalidation that the
        render missed.

        :param reply: the reply; ``None`` where it takes too long. The lease then lapses, and the next request renders.
        """
        outcome: Outcome = Busy()
        try:
            if reply == renderer_pool.UNKNOWN and not flight.done and self._pool.submit(task.pack(), first):
                return
            outcome = self._outcome_of(task, reply)
        except Exception as error:  # a store raises an undeclared error: the waiting threads still need a result
            self._events.emit(InternalError("a render in another process", error))
        # A client that could not wait may have claimed the flight in this process: only a page ends such a flight.
        if isinstance(outcome, (Regenerated, AlreadyFresh)) or flight.claim():
            flight.set_result(outcome)

    def _died(self, task: Task) -> Failed:
        """Back off after a render that killed its process, and return the failure.

        No serving process retries the render: it would die as well. The lock of the dead process becomes the back-off
        of the cluster. In this process the back-off holds even where the store is unreachable.
        """
        if len(self._crash_backoff) >= 1024:
            self._crash_backoff.clear()
        pause = min(2 * self._crash_backoff.get(task.page, (DEADLY[0] / 2, 0.0))[0], DEADLY[1])
        self._crash_backoff[task.page] = (pause, self._monotonic() + pause)
        try:
            if (lease := self._leases.of(task.page, task.owner)) is not None:
                lease.back_off(self._current_tags_digest(task))
        except Exception:  # raised by the store, or by a rule's own callable
            pass  # the lock lapses by itself
        self._events.emit(RenderFailed(task.page, task.rule, "renderer-died", pause, None, task.text))
        return Failed("renderer-died")

    def _backoff_until(self, task: Task) -> float:
        return self._crash_backoff.get(task.page, (0.0, 0.0))[1]

    def _outcome_of(self, task: Task, reply: bytes | None) -> Outcome:
        if reply == renderer_pool.DIED:
            return self._died(task)
        if task.refresh_tag is not None:
            self._tag_versions.forget()
            self._local.drop_prepared()
        if reply == renderer_pool.BACKOFF:
            return BackingOff()
        if reply is not None and reply.startswith(renderer_pool.FAILED):
            reason = reply.removeprefix(renderer_pool.FAILED).decode()
            error = None
            if reason == "undelivered":
                cause = StoreUnavailable("the renderer", "it could not tell other processes")
                error = InvalidationError((), {task.refresh_tag or task.page: cause})
            return Failed(reason, error)
        if reply is not None and reply.startswith((renderer_pool.MADE, renderer_pool.FOUND)):
            self._crash_backoff.pop(task.page, None)
            try:
                data = self._store.get(task.page)
            except StoreError as raised:
                self._events.emit(StoreFailed("get", task.page, raised))
                data = None
            if data is not None and (entry := self._read(task, data)) is not None:
                cached = self._local.put(task.page, entry)
                # Only for the same digest: another node of the store may still have an older page.
                if reply == renderer_pool.MADE + digest(data):
                    return Regenerated(cached, True)
                return AlreadyFresh(cached, proven=reply == renderer_pool.FOUND + digest(data))
        return Busy()

    def _drop(self, job: bytes) -> None:
        """Set a busy result for a job that is dropped because the pool stops."""
        flight = self._flights.get(Task.unpack(job).flight)
        if flight is not None and flight.claim():
            flight.set_result(Busy())

    # Missing, and the client does not wait ---------------------------------------------------------------

    def _begin(self, task: Task) -> bool:
        """Start a background render of a missing page, and return whether one is in progress.

        Return ``False`` in a back-off: the client then gets the failure, and not "pending" for ever.
        """
        # A client that does not wait can ask for many pages. A part of the queue is left for regenerating stale ones.
        if len(self._flights) >= self._most_coming:
            return False
        try:
            return not self._leases.in_backoff(task.page) and self._send_off(task)
        except StoreError:
            return False

    # Expired, Missing: the client waits for the one render --------------------------------------------

    def _load(
        self, task: Task, old: CachedEntry | None, validity: Validity = Validity.VALID, fresh: bool = False
    ) -> Answer:
        """Return a new page; ``old`` if the render fails or takes too long; else the failure, or :class:`Passed`."""
        until = self._monotonic() + task.wait
        came, pause, again = self._flights.latest, WAIT_PAUSE[0], False
        # A back-off that began before an invalidation says nothing about the page after it.
        task = task._replace(
            invalidated_since_failure=validity is Validity.EXPIRED, ignore_backoff=task.ignore_backoff and old is None
        )
        while True:
            left = max(0.0, until - self._monotonic())
            flight, is_leader = self._flights.join_or_create(task.page)
            if flight.is_led_here:
                return Passed("recursive", missed=True)
            if is_leader and old is not None and self._submit(task._replace(max_lease_wait=0.0), flight, first=True):
                outcome = flight.wait(task.timeout)
            elif (is_leader or old is None) and flight.claim():
                # There is no fallback: rendering in the request's own thread loses nothing. An exception of the app
                # propagates to the server as usual.
                is_leader = True
                outcome = self._lead(task._replace(max_lease_wait=left), flight)
            else:
                outcome = flight.wait(left)
            # A flight that began after the request arrived has seen every invalidation from before the request.
            is_new = is_leader or flight.number > came
            if isinstance(outcome, (Regenerated, AlreadyFresh)):
                answer = self._landed(task, outcome, is_leader, is_new, "EXPIRED" if old else "MISS", fresh)
                if answer is not None:
                    return answer
            elif isinstance(outcome, Failed) and not is_new and self._is_outdated(outcome):
                pass  # the failure is older than an invalidation before this request: render again
            elif isinstance(outcome, (Failed, BackingOff)) or (is_leader and outcome is None):
                break  # the render failed, or takes too long
            if self._monotonic() >= until:
                return Passed("lock-timeout", missed=True)
            if isinstance(outcome, Busy) or again:
                self._pause(min(max(0.0, until - self._monotonic()), pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 1.5, WAIT_PAUSE[1])
            again = True
        epochs = self._tag_versions.epochs()
        if old is not None and not isinstance(self._judge(old, epochs).verdict, Missing):
            old.backoff_until = self._monotonic() + LOOK_AGAIN
            # While a node that holds one of the tags is unreachable, a purge of the copy cannot be ruled out.
            proven = self._tag_versions.reachable(old.entry.snapshot, epochs)
            return Served(old, "STALE-IF-ERROR" if proven else "DEGRADED")
        if isinstance(outcome, Failed):
            return outcome
        return Passed("back-off" if isinstance(outcome, BackingOff) else "lock-timeout", missed=True)

    def _is_outdated(self, failed: Failed) -> bool:
        """Return whether a tag was invalidated since the failed render began: the failure is not shared then."""
        return self._tag_versions.validity(failed.snapshot, self._tag_versions.ask()) >= Validity.EXPIRED

    def _submit(self, task: Task, flight: Flight[Outcome], first: bool = False) -> bool:
        """Hand a task to another process or to the pool, and return whether one of them took it."""
        # A refreshed function may raise, and its caller needs the exception: no exception crosses processes.
        if self.elsewhere is not None and not (task.data and task.refresh_tag is not None):
            handed = task._replace(owner=os.urandom(12))
            done = functools.partial(self.worked, handed, flight, first)
            if self.elsewhere(handed.pack(), first, task.timeout + task.wait, done):
                flight.send()
                return True
        if self._pool.submit(task.pack(), first):
            return True
        self._events.emit(BackgroundFull(task.page))
        return False

    def _landed(
        self, task: Task, outcome: Regenerated | AlreadyFresh, is_leader: bool, is_new: bool, label: str, fresh: bool
    ) -> Served | None:
        """Return the answer for a client that waited for a flight; ``None`` where another render is due.

        An older flight may have begun before an invalidation that this client arrived after. Its result is judged again
        like a look-up. A client gets the result of a new flight even if an invalidation followed. Under steady writes
        the client would otherwise wait for ever.

        :param is_new: the flight began after this client arrived.
        """
        judged = self._judge(outcome.cached, self._tag_versions.epochs())
        verdict = judged.verdict
        suffices = is_new and (isinstance(outcome, Regenerated) or outcome.proven)
        if not suffices and isinstance(verdict, (Expired, Missing)):
            return None
        if not suffices and fresh and not judged.is_proven_fresh:
            return None
        own = is_leader and isinstance(outcome, Regenerated)
        if not suffices and isinstance(verdict, Stale):
            self._revalidate(task, outcome.cached)
            return Served(outcome.cached, judged.label("STALE"))
        return Served(
            outcome.cached,
            judged.label(label),
            stored=own and isinstance(outcome, Regenerated) and outcome.stored,
            collapsed=not own,
            hit=False,
            personal=outcome.personal if own and isinstance(outcome, Regenerated) else None,
        )

    # On demand ---------------------------------------------------------------------------------------

    def refresh(self, task: Task, tag: str, *, here: bool = False, raises: bool = True) -> Regenerated | Failed:
        """Render ``task`` with data read from now on, store the result, and return it.

        Renders already in progress are not reused: they may have read data from before the caller's change. Where
        rendering fails, the old entry stays.

        :param tag: marked as stale, so that every process looks for the new entry; empty where it was marked already.
        :param here: render in the caller's own thread, which hangs if the render does.
        :param raises: raise an undelivered mark, instead of returning it.
        :raises InvalidationError: the mark could not be delivered: other processes would keep serving the old entry.
        """
        for way in (None, "", tag):
            under_way = self._flights.get(task._replace(refresh_tag=way).flight)
            if under_way is not None and under_way.is_led_here:
                return Failed("recursive")
        task = task._replace(refresh_tag=tag, max_lease_wait=0.0, ignore_backoff=True)
        until = self._monotonic() + task.timeout + task.wait
        older: Flight[Outcome] | None = None
        while True:
            flight, is_leader = self._flights.join_or_create(task.flight, instead_of=older)
            if not is_leader and older is None and flight.begun:
                # Refreshes that arrive during this wait share the next render, instead of rendering beside it.
                flight.wait(min(OLDER_RENDER, task.wait))
                older = flight
                continue
            # The pool renders, since a render may hang: the caller gets a result after `timeout` even then.
            if is_leader and (here or not self._submit(task, flight, first=True)) and flight.claim():
                self._lead(task, flight)
            outcome = flight.wait(max(0.0, until - self._monotonic()))
            if raises and isinstance(outcome, Failed) and isinstance(outcome.error, InvalidationError):
                raise outcome.error
            if isinstance(outcome, Regenerated):
                # Not stored by us: either a later render was stored first, or the store took no entry at all.
                return outcome if outcome.stored or self._is_there(task, outcome.cached.entry) else Failed("not-stored")
            if isinstance(outcome, Failed):
                return outcome
            if self._monotonic() >= until:
                return Failed("lock-timeout")
            older = flight

    def _is_there(self, task: Task, entry: Entry) -> bool:
        """Return whether the store has ``entry``, or a newer one."""
        kept = self.kept(task)
        return kept is not None and (kept == entry or kept.started > entry.started)

    def done(self, task: Task) -> bool:
        """Wait for the render in progress in this process; return whether there was one and it ended."""
        flight = self._flights.get(task.flight)
        return flight is not None and flight.wait(task.timeout) is not None

    # The one render ----------------------------------------------------------------------------------

    def _lead(self, task: Task, flight: Flight[Outcome], pooled: bool = False) -> Outcome:
        """Set the result of ``flight``, and return it. Wait for another process's render as the task allows."""
        until = self._monotonic() + task.max_lease_wait
        pause = WAIT_PAUSE[0]
        thread = threading.current_thread()

        def overdue() -> None:
            flight.set_result(Failed("timeout"))
            if pooled:
                self._pool.write_off(thread)

        outcome: Outcome = Busy()
        try:
            while True:
                with leading(flight):
                    outcome = self.regenerate(task, overdue)
                self._note_release(task, outcome)
                left = until - self._monotonic()
                if not isinstance(outcome, Busy) or left <= 0:
                    return outcome
                # Another process renders. Each further try takes the lock if it is gone, and finds the page if it
                # is stored.
                self._pause(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 1.5, WAIT_PAUSE[1])
        finally:
            # The end of the leader's thread (its own timeout, a stopping process) does not end the followers. An answer
            # for the leader's client alone is not shared.
            if isinstance(outcome, Failed) and outcome.reason == "exit":
                flight.set_result(Busy())
            else:
                flight.set_result(outcome._replace(personal=None) if isinstance(outcome, Regenerated) else outcome)

    # The end -----------------------------------------------------------------------------------------

    def stop(self, timeout: float) -> bool:
        """Drain the background within ``timeout`` seconds; return whether no job is left running."""
        drained = self._pool.stop(timeout)
        self._keeper.close()
        return drained
