"""The filling core: from a key to something to serve, with one render in the cluster.

It knows neither HTTP nor functions. What is to be rendered is a :class:`~.task.Task`, which is bytes on
demand; how, is the ``produce`` that it was given.

``get`` looks up and judges; ``_renew`` has a stale page rendered behind the visitor's back; ``_load`` makes the
visitor wait for the one render; ``refresh`` has one made whatever there is. :mod:`.render` is that render.
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
from . import renderer_pool as remote
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

#: Seconds between two looks at the store for a stale copy that somebody else is renewing.
LOOK_AGAIN = 0.1
#: Seconds between two looks of a visitor who waits: the first pause, and the longest.
WAIT_PAUSE = (0.01, 0.25)
#: Seconds for which a page is not rendered again that its renderer has died of: the first pause, and the longest.
DEADLY = (1.0, 30.0)
#: Seconds that a refresh gives a render that began before it: those that wait meanwhile share the next one.
OLDER_RENDER = 1.0


class Cache(Regenerator):
    """Look-ups and renders of one process.

    :param releases: which release this is, and whose pages it adopts; ``None`` where it adopts none.
    :param threads: of the background. :param queue: jobs that may wait for one.
    :param pause: waits that many seconds. The others are those of :class:`~.render.Regenerator`.
    """

    def __init__(
        self,
        produce: Produce,
        tags_of: Callable[[Task], Sequence[str]],
        store: Store,
        local: Local,
        leases: Leases,
        stamps: TagVersions,
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
        parts = produce, tags_of, store, local, leases, stamps, events
        super().__init__(*parts, uncacheable_ttl=uncacheable_ttl, codec=codec, clock=clock, monotonic=monotonic)
        self._releases = releases
        self._most_coming = max(1, queue // 4)
        self._pause = pause
        self._flights: Flights[Outcome] = Flights()
        #: Pages that renderers died of: the last pause, and its end in monotonic seconds.
        self._crash_backoff: dict[str, tuple[float, float]] = {}
        self._pool = Pool(self._run, self._drop, threads, queue)
        #: Another process that takes jobs, if there is one: called with a job, whether it goes first, how many
        #: seconds it may take, and what is to be called with the word for what came of it (:mod:`.remote`).
        self.elsewhere: Callable[[bytes, bool, float, remote.Done], bool] | None = None

    # Looking up --------------------------------------------------------------------------------------

    def get(
        self,
        task: Task,
        may_serve: Callable[[Content], bool] = lambda content: True,
        *,
        fresh: bool = False,
        waits: bool = True,
    ) -> Answer:
        """What the visitor who asks for ``task`` gets.

        ``may_serve`` says whether a page is for this visitor at all; where it is not, nothing is rendered
        and nobody waits. ``fresh``: it goes into something that is stored itself, so that neither a stale
        one will do nor one that is kept for errors. ``waits``: where there is nothing yet, the visitor has a page
        made; otherwise they are told that it is :class:`Pending`.
        """
        slot, judged = self._look_up(task)
        if fresh and not judged.is_proven_fresh:
            slot = None
        if slot is not None and isinstance(slot.entry.content, Content) and not may_serve(slot.entry.content):
            return Passed("cookie")
        if (slot is None or isinstance(judged.verdict, Missing)) and not waits and self._begin(task):
            return Pending()
        answer = self._load(task, None, fresh=fresh) if slot is None else self._answer(task, slot, judged)
        if isinstance(answer, Served):
            content = answer.slot.entry.content
            if isinstance(content, HitForMiss):
                return Passed(content.reason, personal=answer.personal)
            if isinstance(content, Content) and not may_serve(content):
                return Passed("cookie")
        return answer

    def _answer(self, task: Task, slot: CachedEntry, judged: Judged) -> Answer:
        verdict = judged.verdict
        if isinstance(verdict, Missing):
            return self._load(task, None)
        if isinstance(verdict, Fresh):
            return Served(slot, judged.label("HIT"))
        if isinstance(verdict, Stale):
            self._renew(task, slot)
            return Served(slot, judged.label("STALE"))
        if isinstance(verdict, Uncacheable):
            if verdict.due:
                self._renew(task, slot)
            return Passed(verdict.reason)
        if isinstance(verdict, Expired):
            if self._monotonic() < max(slot.resting_until, self._rests_until(task)):
                return Served(slot, "STALE-IF-ERROR")
            return self._load(task, slot, judged.standing)
        assert_never(verdict)

    def _look_up(self, task: Task) -> tuple[CachedEntry | None, Judged]:
        """The copy here if it will do, else what the store has, else the copy here all the same.

        The epochs come first **[needed]**: whatever is compared after them is at least as new.
        """
        epochs = self._stamps.epochs()
        slot = self._local.get(task.page)
        if slot is not None:
            judged = self._judge(slot, epochs)
            if is_current(judged.verdict):
                return slot, judged
            if isinstance(judged.verdict, (Stale, Uncacheable)) and self._monotonic() < slot.look_at:
                return slot, judged
        is_forgotten = False
        try:
            data = self._store.get(task.page)
            stored = self._read(task, data)
            if stored is None and (slot is None or slot.adopted):
                adopted = self._adopted(task)
                slot, is_forgotten = adopted or slot, adopted is None
            else:
                is_forgotten = data is None
            is_forgotten = is_forgotten and not self._store.is_displaced(task.page)
        except StoreError as error:
            self._events.emit(StoreFailed("get", task.page, error))
            stored = None
        if stored is not None:
            slot = self._local.put(task.page, stored)
        if slot is None:
            return None, Judged(Missing(), Validity.VALID)
        judged = self._judge(slot, epochs)
        if is_forgotten and isinstance(judged.verdict, Stale) and not slot.only_here:
            # The store may have had a later answer, a 404 or a refusal, and forgotten that as well. A copy that is
            # due says nothing about it, and is a fallback for errors only.
            judged = Judged(Expired(slot.entry), judged.standing)
        return slot, judged

    def _adopted(self, task: Task) -> CachedEntry | None:
        """The page of the release before this one, to be served as stale: a new release begins without a
        herd, and without a visitor who waits."""
        if self._releases is None or task.data or (former := self._releases.former_page(task)) is None:
            return None
        entry = self._read(task, self._store.get(former))
        if entry is None or isinstance(entry.content, HitForMiss):
            return None
        slot = self._local.put(task.page, entry)
        slot.adopted = True
        return slot

    def _note_release(self, task: Task, outcome: Outcome) -> None:
        """Note that this release has a page of its own, or has none."""
        if self._releases is None or task.data or not isinstance(outcome, Regenerated):
            return
        content = outcome.slot.entry.content
        try:
            if not isinstance(content, Content) or int(content.status[:3]) in NEGATIVE_STATUSES:
                self._releases.refused(task)
            elif outcome.stored:
                self._releases.stored()
        except StoreError as error:
            self._events.emit(StoreFailed("delete", task.page, error))

    # Stale: nobody waits -----------------------------------------------------------------------------

    def _renew(self, task: Task, slot: CachedEntry) -> None:
        """Have the page rendered in the background, unless this process is at it already, or has just
        found that somebody else is."""
        if self._monotonic() < max(slot.look_at, self._rests_until(task)):
            return
        slot.look_at = self._monotonic() + LOOK_AGAIN * random.uniform(0.5, 1.0)
        self._send_off(task)

    def _send_off(self, task: Task) -> bool:
        """Whether a render of the page is under way in this process, or waits for its turn."""
        flight, leads = self._flights.board(task.page)
        if leads and not self._submit(task._replace(max_lease_wait=0.0, ignore_backoff=False), flight):
            flight.land(Busy())
            return False
        return True

    def _run(self, job: bytes) -> None:
        """A job in a thread of the pool."""
        task = Task.unpack(job)
        flight = self._flights.get(task.flight)
        if flight is not None and flight.claim():
            try:
                self._lead(task, flight, pooled=True)
            except Exception as error:  # ours: the app's are outcomes of the flight
                self._events.emit(InternalError("a background render", error))

    def work(self, task: Task) -> bytes:
        """Do what another process has asked for; the word for what came of it (:mod:`.remote`)."""
        try:
            self._tags_of(task)
        except Unknown:
            return remote.UNKNOWN
        except Exception:
            pass  # a rule's own callable: the render will find out, and have it recorded
        if task.refresh_tag is not None:
            outcome: Outcome | None = self.refresh(task, task.refresh_tag, raises=False)
        else:
            outcome = self._work(task)
        if isinstance(outcome, Regenerated) and outcome.stored:
            return remote.MADE + digest(self._codec.pack(outcome.slot.entry))
        if isinstance(outcome, (Regenerated, AlreadyFresh)):
            return remote.FOUND + digest(self._codec.pack(outcome.slot.entry))
        if isinstance(outcome, BackingOff):
            return remote.BACKOFF
        if isinstance(outcome, Failed):
            return remote.FAILED + outcome.reason.encode()
        return remote.FAILED + b"timeout" if outcome is None else remote.BUSY

    def _work(self, task: Task) -> Outcome | None:
        """What came of a flight that began from now on, or that has led to a page which is still current."""
        asked = self._flights.latest
        until = self._monotonic() + task.timeout + 1
        while True:
            flight, leads = self._flights.board(task.flight)
            if leads and not self._pool.submit(task.pack(), True):
                flight.land(Busy())
            outcome = flight.wait(max(0.0, until - self._monotonic()))
            if (
                flight.number > asked
                or not isinstance(outcome, (Regenerated, AlreadyFresh))
                or self._is_proven(outcome.slot)
            ):
                return outcome

    def worked(self, task: Task, flight: Flight[Outcome], first: bool, word: bytes | None) -> None:
        """Another process has done the job of ``flight``, and this is its word for it; ``None`` where it is too far
        behind: the lease will lapse, and whoever asks next sees to the page.

        The word is for that very flight. One of the same page that began later may be for visitors who came after an
        invalidation, of which that render knew nothing.
        """
        outcome: Outcome = Busy()
        try:
            if word == remote.UNKNOWN and not flight.done and self._pool.submit(task.pack(), first):
                return
            outcome = self._outcome_of(task, word)
        except Exception as error:  # a store that raises what it should not: whoever waits must hear of it all the same
            self._events.emit(InternalError("a render in another process", error))
        # A visitor who could not wait may have begun the same flight here: only a page ends that.
        if isinstance(outcome, (Regenerated, AlreadyFresh)) or flight.claim():
            flight.land(outcome)

    def _died(self, task: Task) -> Failed:
        """A renderer has died of a page. It is not tried at once again, nor in a process that serves: it would die as
        well. The lock of the dead tells all others; here it holds even where the store is away."""
        if len(self._crash_backoff) >= 1024:
            self._crash_backoff.clear()
        pause = min(2 * self._crash_backoff.get(task.page, (DEADLY[0] / 2, 0.0))[0], DEADLY[1])
        self._crash_backoff[task.page] = (pause, self._monotonic() + pause)
        try:
            if (lease := self._leases.of(task.page, task.owner)) is not None:
                lease.rest(self._told_now(task))
        except Exception:  # the store's trouble, or a rule's own callable
            pass  # it lapses by itself
        self._events.emit(RenderFailed(task.page, task.rule, "renderer-died", pause, None, task.text))
        return Failed("renderer-died")

    def _rests_until(self, task: Task) -> float:
        return self._crash_backoff.get(task.page, (0.0, 0.0))[1]

    def _outcome_of(self, task: Task, word: bytes | None) -> Outcome:
        if word == remote.DIED:
            return self._died(task)
        if task.refresh_tag is not None:
            self._stamps.forget()
            self._local.drop_prepared()
        if word == remote.BACKOFF:
            return BackingOff()
        if word is not None and word.startswith(remote.FAILED):
            reason = word.removeprefix(remote.FAILED).decode()
            error = None
            if reason == "undelivered":
                cause = StoreUnavailable("the renderer", "it could not tell other processes")
                error = InvalidationError((), {task.refresh_tag or task.page: cause})
            return Failed(reason, error)
        if word is not None and word.startswith((remote.MADE, remote.FOUND)):
            self._crash_backoff.pop(task.page, None)
            try:
                data = self._store.get(task.page)
            except StoreError as raised:
                self._events.emit(StoreFailed("get", task.page, raised))
                data = None
            if data is not None and (entry := self._read(task, data)) is not None:
                slot = self._local.put(task.page, entry)
                # Only if it is the very page: another node of the store may still have an older one.
                if word == remote.MADE + digest(data):
                    return Regenerated(slot, True)
                return AlreadyFresh(slot, proven=word == remote.FOUND + digest(data))
        return Busy()

    def _drop(self, job: bytes) -> None:
        """A job that will not be run, because the pool stops."""
        flight = self._flights.get(Task.unpack(job).flight)
        if flight is not None and flight.claim():
            flight.land(Busy())

    # Missing, and the visitor does not wait ------------------------------------------------------------

    def _begin(self, task: Task) -> bool:
        """Have the page made in the background, if that can lead to one: after a failure the visitor is to hear
        of it, and not to be told for ever that there will be something in a moment."""
        # Whoever does not wait can ask for many: they get a part of the background, so that renewals have the rest.
        if len(self._flights) >= self._most_coming:
            return False
        try:
            return not self._leases.in_backoff(task.page) and self._send_off(task)
        except StoreError:
            return False

    # Expired, Missing: the visitor waits for the one render -------------------------------------------

    def _load(
        self, task: Task, old: CachedEntry | None, standing: Validity = Validity.VALID, fresh: bool = False
    ) -> Answer:
        """A new page; ``old`` if that fails or takes too long; else what the app itself has to say."""
        until = self._monotonic() + task.wait
        came, pause, again = self._flights.latest, WAIT_PAUSE[0], False
        # A back-off that began before an invalidation says nothing about the page after it.
        task = task._replace(
            invalidated_since_failure=standing is Validity.EXPIRED, ignore_backoff=task.ignore_backoff and old is None
        )
        while True:
            left = max(0.0, until - self._monotonic())
            flight, leads = self._flights.board(task.page)
            if flight.is_led_here:
                return Passed("recursive", missed=True)
            if leads and old is not None and self._submit(task._replace(max_lease_wait=0.0), flight, first=True):
                outcome = flight.wait(task.timeout)
            elif (leads or old is None) and flight.claim():
                # Nothing to fall back on: rendering in the visitor's own thread loses nothing, and an
                # exception of the app takes its natural way to the server.
                leads = True
                outcome = self._lead(task._replace(max_lease_wait=left), flight)
            else:
                outcome = flight.wait(left)
            # Whatever was invalidated before the visitor came, a flight that began after that knows of it.
            is_new = leads or flight.number > came
            if isinstance(outcome, (Regenerated, AlreadyFresh)):
                answer = self._landed(task, outcome, leads, is_new, "EXPIRED" if old else "MISS", fresh)
                if answer is not None:
                    return answer
            elif isinstance(outcome, Failed) and not is_new and self._is_outdated(outcome):
                pass  # what it says is from before we came: another render is due
            elif isinstance(outcome, (Failed, BackingOff)) or (leads and outcome is None):
                break  # it failed, or takes too long
            if self._monotonic() >= until:
                return Passed("lock-timeout", missed=True)
            if isinstance(outcome, Busy) or again:
                self._pause(min(max(0.0, until - self._monotonic()), pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 1.5, WAIT_PAUSE[1])
            again = True
        epochs = self._stamps.epochs()
        if old is not None and not isinstance(self._judge(old, epochs).verdict, Missing):
            old.resting_until = self._monotonic() + LOOK_AGAIN
            # With a node away that holds one of its tags, nobody can know that it was not purged meanwhile.
            proven = self._stamps.reachable(old.entry.proof, epochs)
            return Served(old, "STALE-IF-ERROR" if proven else "DEGRADED")
        if isinstance(outcome, Failed):
            return outcome
        return Passed("back-off" if isinstance(outcome, BackingOff) else "lock-timeout", missed=True)

    def _is_outdated(self, failed: Failed) -> bool:
        """Whether something was invalidated since a render began of whose failure others would be told."""
        return self._stamps.standing(failed.proof, self._stamps.ask()) >= Validity.EXPIRED

    def _submit(self, task: Task, flight: Flight[Outcome], first: bool = False) -> bool:
        """Whether the background has taken a task whose flight was boarded."""
        # What a function raises when it is refreshed is for whoever called; it does not come out of another process.
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
        self, task: Task, outcome: Regenerated | AlreadyFresh, leads: bool, is_new: bool, label: str, fresh: bool
    ) -> Served | None:
        """What a flight has brought, for one of those who waited for it.

        ``is_new``: it began after this visitor came. Any other may have begun before an invalidation that this visitor
        came after: for them it is worth what a look-up would say of it now, which may be nothing. A render that was
        invalidated since is given to those who came before all the same: under a hail of writes, they would wait for
        ever for another.
        """
        judged = self._judge(outcome.slot, self._stamps.epochs())
        verdict = judged.verdict
        suffices = is_new and (isinstance(outcome, Regenerated) or outcome.proven)
        if not suffices and isinstance(verdict, (Expired, Missing)):
            return None
        if not suffices and fresh and not judged.is_proven_fresh:
            return None
        own = leads and isinstance(outcome, Regenerated)
        if not suffices and isinstance(verdict, Stale):
            self._renew(task, outcome.slot)
            return Served(outcome.slot, judged.label("STALE"))
        return Served(
            outcome.slot,
            judged.label(label),
            stored=own and isinstance(outcome, Regenerated) and outcome.stored,
            collapsed=not own,
            hit=False,
            personal=outcome.personal if own and isinstance(outcome, Regenerated) else None,
        )

    # On demand ---------------------------------------------------------------------------------------

    def refresh(self, task: Task, tag: str, *, here: bool = False, raises: bool = True) -> Regenerated | Failed:
        """Render what ``task`` describes, with everything read from now on, and store it.

        A render that began earlier is not enough: it may have read its data before the caller changed them. ``tag``
        is marked as stale, so that every process looks for the new one (empty: that was done already); where rendering
        fails, the old one stays.
        ``here``: in the caller's own thread, which hangs if the render does.

        :raises InvalidationError: the mark could not be delivered, so that others would go on with the old one.
        """
        for way in (None, "", tag):
            under_way = self._flights.get(task._replace(refresh_tag=way).flight)
            if under_way is not None and under_way.is_led_here:
                return Failed("recursive")
        task = task._replace(refresh_tag=tag, max_lease_wait=0.0, ignore_backoff=True)
        until = self._monotonic() + task.timeout + task.wait
        older: Flight[Outcome] | None = None
        while True:
            flight, leads = self._flights.board(task.flight, instead_of=older)
            if not leads and older is None and flight.begun:
                # Whoever comes in the meantime shares the next one, instead of rendering beside it.
                flight.wait(min(OLDER_RENDER, task.wait))
                older = flight
                continue
            # In a thread of the pool: it may hang, and the caller is to hear of that after `timeout`.
            if leads and (here or not self._submit(task, flight, first=True)) and flight.claim():
                self._lead(task, flight)
            outcome = flight.wait(max(0.0, until - self._monotonic()))
            if raises and isinstance(outcome, Failed) and isinstance(outcome.error, InvalidationError):
                raise outcome.error
            if isinstance(outcome, Regenerated):
                # Not ours, if a later render got in first; but nothing at all, if the store did not take it.
                return outcome if outcome.stored or self._is_there(task, outcome.slot.entry) else Failed("not-stored")
            if isinstance(outcome, Failed):
                return outcome
            if self._monotonic() >= until:
                return Failed("lock-timeout")
            older = flight

    def _is_there(self, task: Task, entry: Entry) -> bool:
        """Whether the store has ``entry``, or one that is newer."""
        kept = self.kept(task)
        return kept is not None and (kept == entry or kept.started > entry.started)

    def done(self, task: Task) -> bool:
        """Wait for the render of a page that is under way in this process; whether there was one, and it came to its
        end."""
        flight = self._flights.get(task.flight)
        return flight is not None and flight.wait(task.timeout) is not None

    # The one render ----------------------------------------------------------------------------------

    def _lead(self, task: Task, flight: Flight[Outcome], pooled: bool = False) -> Outcome:
        """Lead ``flight`` to its outcome, waiting for another process's render as the task allows."""
        until = self._monotonic() + task.max_lease_wait
        pause = WAIT_PAUSE[0]
        thread = threading.current_thread()

        def overdue() -> None:
            flight.land(Failed("timeout"))
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
                # Someone else renders. Each further try takes over the lock if it has vanished, and finds
                # the page if it has come.
                self._pause(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 1.5, WAIT_PAUSE[1])
        finally:
            # What ends one visitor's thread (a timeout of their own, a stopping process) is not for the others, and
            # neither is an answer to that visitor alone.
            if isinstance(outcome, Failed) and outcome.reason == "exit":
                flight.land(Busy())
            else:
                flight.land(outcome._replace(personal=None) if isinstance(outcome, Regenerated) else outcome)

    # The end -----------------------------------------------------------------------------------------

    def stop(self, timeout: float) -> bool:
        """Drain the background within ``timeout`` seconds; ``True`` when nothing is left running."""
        drained = self._pool.stop(timeout)
        self._keeper.close()
        return drained
