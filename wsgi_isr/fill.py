"""The filling core: from a key to something to serve, with one render in the cluster.

It knows neither HTTP nor functions. What is to be rendered is a :class:`Task`, which is bytes on
demand; how, is the ``produce`` that it was given.

``get`` looks up and judges; ``_renew`` has a stale page rendered behind the visitor's back;
``_obtain`` makes the visitor wait for the one render; ``regenerate`` is that render.
"""

from __future__ import annotations

import functools
import hashlib
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from . import entry as codec
from . import remote
from .entry import Content, Entry, Lifetime, Proof, Refusal, Value
from .errors import InvalidationError, StoreError, StoreUnavailable
from .events import (
    BackgroundFull,
    Broken,
    Events,
    Invalidated,
    Refused,
    Rendered,
    RenderFailed,
    StoreFailed,
    Unreadable,
)
from .flight import Flight, Flights
from .freshness import Asked, Expired, Failure, Fresh, Missing, Stale, Standing, Storable, Uncacheable, Verdict, judge
from .lease import BackingOff, Busy, Keeper, Lease, Leases
from .local import Local, Slot
from .stamps import Capture, Epochs, Mode, Stamps
from .stores.base import Store, Token
from .worker import Pool

if sys.version_info >= (3, 11):
    from typing import assert_never
else:  # pragma: no cover
    from typing_extensions import assert_never

#: Seconds between two looks at the store for a stale copy that somebody else is renewing.
LOOK_AGAIN = 0.1
#: Seconds between two looks of a visitor who waits: the first pause, and the longest.
WAIT_PAUSE = (0.01, 0.25)
#: Seconds that a refresh gives a render that began before it: those that wait meanwhile share the next one.
OLDER_RENDER = 1.0


#: Reasons that no accident has: the app speaks of whether the page is to be stored.
DELIBERATE = frozenset({"no-store", "private", "no-cache", "revalidate-0", "not-asked"})
#: How often in a row another reason may be one.
ACCIDENTS = 2


class Unknown(LookupError):
    """This process cannot make it: a function, say, that only the process that asks has defined."""


class Task(NamedTuple):
    """What to render, described by bytes, so that a thread or another process can do it as well.

    ``page`` is the name in the store, ``text`` the key's text, ``rule`` the policy's name, or for data the
    function's (``data`` tells which); ``timeout``,
    ``wait`` and ``lease`` are its seconds. ``patience``: how long to wait for somebody else's render,
    0 in the background. ``anyway``: where there is nothing to serve, render even during a back-off.
    ``refreshes``: a tag that is marked as stale once the lock is held, so that no copy anywhere is taken for new (empty
    where that was done already); then it is rendered whatever there is, and whoever else is at it. ``outdated``: the
    page was invalidated, and a back-off from before that does not hold up a render.
    """

    page: str
    text: str
    rule: str
    timeout: float
    wait: float
    lease: float
    patience: float = 0.0
    anyway: bool = True
    data: bool = False
    refreshes: str | None = None
    outdated: bool = False

    @property
    def flight(self) -> str:
        """What it is called among the flights of a process. Nobody joins a refresh who does not want one: it is
        a render more."""
        return self.page if self.refreshes is None else f"{self.page}:refresh{':marks' * bool(self.refreshes)}"

    def pack(self) -> bytes:
        """The task as bytes."""
        packed: bytes = msgpack.packb(self)
        return packed

    @classmethod
    def unpack(cls, job: bytes) -> Task:
        """The reverse of :meth:`pack`."""
        return cls(*msgpack.unpackb(job))


Product = Storable | Refusal | Failure
Produce = Callable[[Task], Product]


# How a flight ends -----------------------------------------------------------------------------------


class Made(NamedTuple):
    """We rendered; ``entry`` is what is to be served now (not ours, if a later render got in first)."""

    slot: Slot
    stored: bool


class Found(NamedTuple):
    """Somebody else had rendered in the meantime."""

    slot: Slot


class Failed(NamedTuple):
    """The render raised ``error``, or its answer is a failure, or it ran past its timeout.

    ``content`` is what there is all the same, ``said`` what was said of it, and ``stamps`` are those of its tags from
    before it was made.
    """

    reason: str
    error: BaseException | None = None
    content: Content | Value | None = None
    said: Asked | None = None
    stamps: tuple[tuple[str, bytes], ...] = ()


Outcome = Made | Found | Failed | Busy | BackingOff


# What a visitor gets ---------------------------------------------------------------------------------


class Served(NamedTuple):
    """A page. ``label`` is the word of ``X-ISR``; ``stored``: rendered and stored for this very request;
    ``collapsed``: for another one, whose render this one waited for (RFC 9211, 2.7); ``hit``: not rendered now."""

    slot: Slot
    label: str
    stored: bool = False
    collapsed: bool = False
    hit: bool = True


class PassedOn(NamedTuple):
    """The app's own answer to the visitor's own request. ``missed``: for want of a page, not by rule.
    ``key``, ``written`` and ``draft`` belong to the face: the page that would be kept if the app asks for it, the
    one that a successful write invalidates, and whether it is for somebody who sees drafts."""

    reason: str
    missed: bool = False
    key: Any = None
    written: Any = None
    draft: bool = False


class Coming(NamedTuple):
    """Nothing yet: it is being made in the background, and the visitor is somebody who does not wait."""


Answer = Served | PassedOn | Failed | Coming


class Judged(NamedTuple):
    """A verdict, and the standing that led to it. They travel together: another thread may judge the same
    copy by other epochs in between."""

    verdict: Verdict
    standing: Standing

    @property
    def is_proven_fresh(self) -> bool:
        """Fit to go into something that is stored, and shown as new."""
        return isinstance(self.verdict, (Fresh, Uncacheable)) and self.standing is not Standing.UNPROVEN

    def label(self, word: str) -> str:
        """The word for ``X-ISR``, unless the copy could not be proven."""
        return "DEGRADED" if self.standing is Standing.UNPROVEN else word


class Fill:
    """Look-ups and renders of one process.

    :param produce: renders a task; an exception from it is a failed render.
    :param tags_of: the tags that a task's page has before it is rendered.
    :param adopts: the name that a task's page had in the release before this one, if that is to be used.
    :param clock: Unix time in seconds, comparable between processes (ages).
    :param monotonic: seconds for durations. :param pause: waits that many seconds.
    """

    def __init__(
        self,
        produce: Produce,
        tags_of: Callable[[Task], Sequence[str]],
        store: Store,
        local: Local,
        leases: Leases,
        stamps: Stamps,
        events: Events,
        *,
        adopts: Callable[[Task], str | None] = lambda task: None,
        threads: int,
        queue: int,
        uncacheable_ttl: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._produce = produce
        self._tags_of = tags_of
        self._adopts = adopts
        self._store = store
        self._local = local
        self._leases = leases
        self._stamps = stamps
        self._events = events
        self._uncacheable_ttl = uncacheable_ttl
        self._most_coming = max(1, queue // 4)
        self._clock = clock
        self._monotonic = monotonic
        self._pause = pause
        self._flights: Flights[Outcome] = Flights()
        self._keeper = Keeper(monotonic, events)
        leases.orphaned = self._keeper.let_go
        self._pool = Pool(self._run, self._drop, threads, queue)
        #: Another process that takes jobs, if there is one: called with a job, whether it goes first, how many
        #: seconds it may take, and what is to be called with the word for what came of it (:mod:`.remote`).
        self.elsewhere: Callable[[bytes, bool, float, remote.Done], bool] | None = None

    # Looking up --------------------------------------------------------------------------------------

    def get(
        self,
        task: Task,
        suits: Callable[[Content], bool] = lambda content: True,
        *,
        fresh: bool = False,
        waits: bool = True,
    ) -> Answer:
        """What the visitor who asks for ``task`` gets.

        ``suits`` says whether a page is for this visitor at all; where it is not, nothing is rendered
        and nobody waits. ``fresh``: it goes into something that is stored itself, so that neither a stale
        one will do nor one that is kept for errors. ``waits``: where there is nothing yet, the visitor has a page
        made; otherwise they are told that it is :class:`Coming`.
        """
        slot, judged = self._look_up(task)
        if fresh and not judged.is_proven_fresh:
            slot = None
        if slot is not None and isinstance(slot.entry.content, Content) and not suits(slot.entry.content):
            return PassedOn("cookie")
        if (slot is None or isinstance(judged.verdict, Missing)) and not waits and self._begin(task):
            return Coming()
        answer = self._obtain(task, None, fresh=fresh) if slot is None else self._answer(task, slot, judged)
        if isinstance(answer, Served):
            content = answer.slot.entry.content
            if isinstance(content, Refusal):
                return PassedOn(content.reason)
            if isinstance(content, Content) and not suits(content):
                return PassedOn("cookie")
        return answer

    def _answer(self, task: Task, slot: Slot, judged: Judged) -> Answer:
        verdict = judged.verdict
        if isinstance(verdict, Missing):
            return self._obtain(task, None)
        if isinstance(verdict, Fresh):
            return Served(slot, judged.label("HIT"))
        if isinstance(verdict, Stale):
            self._renew(task, slot)
            return Served(slot, judged.label("STALE"))
        if isinstance(verdict, Uncacheable):
            if verdict.due:
                self._renew(task, slot)
            return PassedOn(verdict.reason)
        if isinstance(verdict, Expired):
            if self._monotonic() < slot.resting_until:
                return Served(slot, "ERROR-RETAINED")
            return self._obtain(task, slot, judged.standing)
        assert_never(verdict)

    def _look_up(self, task: Task) -> tuple[Slot | None, Judged]:
        """The copy here if it will do, else what the store has, else the copy here all the same.

        The epochs come first **[needed]**: whatever is compared after them is at least as new.
        """
        epochs = self._stamps.epochs()
        slot = self._local.get(task.page)
        if slot is not None:
            judged = self._judge(slot, epochs)
            if _is_current(judged.verdict):
                return slot, judged
            if isinstance(judged.verdict, (Stale, Uncacheable)) and self._monotonic() < slot.look_at:
                return slot, judged
        try:
            stored = self._read(task, self._store.get(task.page))
            if stored is None and slot is None:
                slot = self._adopted(task)
        except StoreError as error:
            self._events.emit(StoreFailed("get", task.page, error))
            stored = None
        if stored is not None:
            slot = self._local.put(task.page, stored)
        return slot, self._judge(slot, epochs) if slot is not None else Judged(Missing(), Standing.VALID)

    def _judge(self, slot: Slot, epochs: Epochs) -> Judged:
        """What a copy is worth; its stamps are compared once for each vector of epochs."""
        checked = slot.checked
        if checked is not None and (checked[0] is epochs or checked[0] == epochs):
            standing: Standing = checked[1]
        else:
            standing = self._stamps.standing(slot.entry.proof, epochs)
            if checked is not None and checked[1] >= Standing.HARD:
                # Nonces are never used again: what was invalid once is so for ever, and stays so when the
                # node that knew it goes away.
                standing = max(standing, checked[1])
            if standing is not Standing.UNPROVEN or not self._stamps.reachable(slot.entry.proof, epochs):
                # One answer that was lost on the way says nothing about the next: that is not remembered.
                slot.checked = (epochs, standing)
        verdict = judge(slot.entry, standing, self._clock())
        return Judged(Stale(slot.entry) if slot.adopted and isinstance(verdict, Fresh) else verdict, standing)

    def _adopted(self, task: Task) -> Slot | None:
        """The page of the release before this one, to be served as stale: a new release begins without a
        herd, and without a visitor who waits."""
        former = self._adopts(task)
        if former is None:
            return None
        entry = self._read(task, self._store.get(former))
        if entry is None or isinstance(entry.content, Refusal):
            return None
        slot = self._local.put(task.page, entry)
        slot.adopted = True
        return slot

    def _read(self, task: Task, data: bytes | None) -> Entry | None:
        """Unreadable counts as missing, and is said."""
        if data is None:
            return None
        try:
            return codec.unpack(data, task.text)
        except codec.UnreadableEntry as error:
            self._events.emit(Unreadable(task.page, str(error)))
            return None

    # Stale: nobody waits -----------------------------------------------------------------------------

    def _renew(self, task: Task, slot: Slot) -> None:
        """Have the page rendered in the background, unless this process is at it already, or has just
        found that somebody else is."""
        if self._monotonic() < slot.look_at:
            return
        slot.look_at = self._monotonic() + LOOK_AGAIN * random.uniform(0.5, 1.0)
        self._send_off(task)

    def _send_off(self, task: Task) -> bool:
        """Whether a render of the page is under way in this process, or waits for its turn."""
        flight, leads = self._flights.board(task.page)
        if leads and not self._submit(task._replace(patience=0.0, anyway=False), flight):
            flight.land(Busy())
            return False
        return True

    def _run(self, job: bytes) -> None:
        """A job in a thread of the pool."""
        task = Task.unpack(job)
        flight = self._flights.get(task.flight)
        if flight is not None and flight.claim():
            try:
                self._fly(task, flight, pooled=True)
            except Exception as error:  # ours: the app's are outcomes of the flight
                self._events.emit(Broken("a background render", error))

    def work(self, task: Task) -> bytes:
        """Do what another process has asked for; the word for what came of it (:mod:`.remote`)."""
        try:
            self._tags_of(task)
        except Unknown:
            return remote.UNKNOWN
        except Exception:
            pass  # a rule's own callable: the render will find out, and have it recorded
        leads = True
        if task.refreshes is not None:
            outcome: Outcome | None = self.refresh(task, task.refreshes, raises=False)
        else:
            flight, leads = self._flights.board(task.flight)
            if leads and not self._pool.submit(task.pack(), True):
                flight.land(Busy())
            outcome = flight.wait(task.timeout + 1)
        # A render that began before we were asked may be older than what whoever asks must not miss.
        if isinstance(outcome, Made) and outcome.stored and leads:
            return remote.MADE + _digest(codec.pack(outcome.slot.entry))
        if isinstance(outcome, (Made, Found)):
            return remote.FOUND
        if isinstance(outcome, BackingOff):
            return remote.RESTING
        if isinstance(outcome, Failed):
            return remote.FAILED + outcome.reason.encode()
        return remote.FAILED + b"timeout" if outcome is None else remote.BUSY

    def worked(self, task: Task, flight: Flight[Outcome], first: bool, word: bytes | None) -> None:
        """Another process has done the job of ``flight``, and this is its word for it; ``None`` where it has died of
        it, or is too far behind: the lease will lapse, and whoever asks next sees to the page.

        The word is for that very flight. One of the same page that began later may be for visitors who came after an
        invalidation, of which that render knew nothing.
        """
        outcome: Outcome = Busy()
        try:
            if word == remote.UNKNOWN and not flight.landed and self._pool.submit(task.pack(), first):
                return
            outcome = self._outcome_of(task, word)
        except Exception as error:  # a store that raises what it should not: whoever waits must hear of it all the same
            self._events.emit(Broken("a render in another process", error))
        # A visitor who could not wait may have begun the same flight here: only a page ends that.
        if isinstance(outcome, (Made, Found)) or flight.claim():
            flight.land(outcome)

    def _outcome_of(self, task: Task, word: bytes | None) -> Outcome:
        if task.refreshes is not None:
            self._stamps.forget()
            self._local.unready()
        if word == remote.RESTING:
            return BackingOff()
        if word is not None and word.startswith(remote.FAILED):
            reason = word.removeprefix(remote.FAILED).decode()
            error = None
            if reason == "undelivered":
                cause = StoreUnavailable("the renderer", "it could not tell other processes")
                error = InvalidationError((), {task.refreshes or task.page: cause})
            return Failed(reason, error)
        if word is not None and word.startswith((remote.MADE, remote.FOUND)):
            try:
                data = self._store.get(task.page)
            except StoreError as raised:
                self._events.emit(StoreFailed("get", task.page, raised))
                data = None
            if data is not None and (entry := self._read(task, data)) is not None:
                slot = self._local.put(task.page, entry)
                # Only if it is the very page: another node of the store may still have an older one.
                return Made(slot, True) if word == remote.MADE + _digest(data) else Found(slot)
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
            return not self._leases.resting(task.page) and self._send_off(task)
        except StoreError:
            return False

    # Expired, Missing: the visitor waits for the one render -------------------------------------------

    def _obtain(self, task: Task, old: Slot | None, standing: Standing = Standing.VALID, fresh: bool = False) -> Answer:
        """A new page; ``old`` if that fails or takes too long; else what the app itself has to say."""
        until = self._monotonic() + task.wait
        pause = WAIT_PAUSE[0]
        # A back-off that began before an invalidation says nothing about the page after it.
        task = task._replace(outdated=standing is Standing.HARD, anyway=task.anyway and old is None)
        while True:
            left = max(0.0, until - self._monotonic())
            flight, leads = self._flights.board(task.page)
            if leads and old is not None and self._submit(task._replace(patience=0.0), flight, first=True):
                outcome = flight.wait(task.timeout)
            elif (leads or old is None) and flight.claim():
                # Nothing to fall back on: rendering in the visitor's own thread loses nothing, and an
                # exception of the app takes its natural way to the server.
                leads = True
                outcome = self._fly(task._replace(patience=left), flight)
            else:
                outcome = flight.wait(left)
            if isinstance(outcome, (Made, Found)):
                answer = self._landed(task, outcome, leads, "EXPIRED" if old else "MISS", fresh)
                if answer is not None:
                    return answer
            elif isinstance(outcome, Failed) and not leads and self._is_outdated(outcome):
                pass  # what it says is from before we came: another render is due
            elif isinstance(outcome, (Failed, BackingOff)) or (leads and outcome is None):
                break  # it failed, or takes too long
            if self._monotonic() >= until:
                return PassedOn("waited", missed=True)
            if isinstance(outcome, Busy):
                self._pause(min(max(0.0, until - self._monotonic()), pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 1.5, WAIT_PAUSE[1])
        epochs = self._stamps.epochs()
        if old is not None and not isinstance(self._judge(old, epochs).verdict, Missing):
            old.resting_until = self._monotonic() + LOOK_AGAIN
            # With a node away that holds one of its tags, nobody can know that it was not purged meanwhile.
            proven = self._stamps.reachable(old.entry.proof, epochs)
            return Served(old, "ERROR-RETAINED" if proven else "DEGRADED")
        return outcome if isinstance(outcome, Failed) else PassedOn("waited", missed=True)

    def _is_outdated(self, failed: Failed) -> bool:
        """Whether something was invalidated since a failed render began that has something to show all the same."""
        if failed.content is None:
            return False
        return self._stamps.standing(Proof(failed.stamps), self._stamps.epochs()) >= Standing.HARD

    def _submit(self, task: Task, flight: Flight[Outcome], first: bool = False) -> bool:
        """Whether the background has taken a task whose flight was boarded."""
        job = task.pack()
        # What a function raises when it is refreshed is for whoever called; it does not come out of another process.
        if self.elsewhere is not None and not (task.data and task.refreshes is not None):
            done = functools.partial(self.worked, task, flight, first)
            if self.elsewhere(job, first, task.timeout + task.wait, done):
                flight.send()
                return True
        if self._pool.submit(job, first):
            return True
        self._events.emit(BackgroundFull(task.page))
        return False

    def _landed(self, task: Task, outcome: Made | Found, leads: bool, label: str, fresh: bool) -> Served | None:
        """What a flight has brought, for one of those who waited for it.

        Its leader came before it began. Whoever boarded later may have come after an invalidation that it
        does not know of: for them it is worth what a look-up would say of it now, which may be nothing. So may a leader
        for whom somebody else's render was found, in this process or in a renderer, where it was under way already.
        """
        judged = self._judge(outcome.slot, self._stamps.epochs())
        verdict = judged.verdict
        own = leads and isinstance(outcome, Made)
        if not own and isinstance(verdict, (Expired, Missing)):
            return None
        if not own and fresh and not judged.is_proven_fresh:
            return None
        if not own and isinstance(verdict, Stale):
            self._renew(task, outcome.slot)
            return Served(outcome.slot, judged.label("STALE"))
        return Served(
            outcome.slot,
            judged.label(label),
            stored=isinstance(outcome, Made) and outcome.stored and leads,
            collapsed=not own,
            hit=False,
        )

    # On demand ---------------------------------------------------------------------------------------

    def refresh(self, task: Task, tag: str, *, here: bool = False, raises: bool = True) -> Made | Failed:
        """Render what ``task`` describes, with everything read from now on, and store it.

        A render that began earlier is not enough: it may have read its data before the caller changed them. ``tag``
        is marked as stale, so that every process looks for the new one (empty: that was done already); where rendering
        fails, the old one stays.
        ``here``: in the caller's own thread, which hangs if the render does.

        :raises InvalidationError: the mark could not be delivered, so that others would go on with the old one.
        """
        task = task._replace(refreshes=tag, patience=0.0, anyway=True)
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
                self._fly(task, flight)
            outcome = flight.wait(max(0.0, until - self._monotonic()))
            if raises and isinstance(outcome, Failed) and isinstance(outcome.error, InvalidationError):
                raise outcome.error
            if isinstance(outcome, Made):
                # Not ours, if a later render got in first; but nothing at all, if the store did not take it.
                is_kept = outcome.stored or self.kept(task) == outcome.slot.entry
                return outcome if is_kept else Failed("not-stored")
            if isinstance(outcome, Failed):
                return outcome
            if self._monotonic() >= until:
                return Failed("waited")
            older = flight

    def landed(self, task: Task) -> bool:
        """Wait for the render of a page that is under way in this process; whether there was one, and it came to its
        end."""
        flight = self._flights.get(task.flight)
        return flight is not None and flight.wait(task.timeout) is not None

    def kept(self, task: Task) -> Entry | None:
        """What the store has for ``task``, whatever it is worth. :raises StoreError: it cannot be asked."""
        return self._read(task, self._store.get(task.page))

    # The one render ----------------------------------------------------------------------------------

    def _fly(self, task: Task, flight: Flight[Outcome], pooled: bool = False) -> Outcome:
        """Lead ``flight`` to its outcome, waiting for another process's render as the task allows."""
        until = self._monotonic() + task.patience
        pause = WAIT_PAUSE[0]
        thread = threading.current_thread()

        def overdue() -> None:
            flight.land(Failed("timeout"))
            if pooled:
                self._pool.write_off(thread)

        outcome: Outcome = Busy()
        try:
            while True:
                outcome = self.regenerate(task, overdue)
                left = until - self._monotonic()
                if not isinstance(outcome, Busy) or left <= 0:
                    return outcome
                # Someone else renders. Each further try takes over the lock if it has vanished, and finds
                # the page if it has come.
                self._pause(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 1.5, WAIT_PAUSE[1])
        finally:
            # What ends one visitor's thread (a timeout of their own, a stopping process) is not for the others.
            own = isinstance(outcome, Failed) and outcome.reason == "exit"
            flight.land(Busy() if own else outcome)

    def regenerate(self, task: Task, overdue: Callable[[], None] = lambda: None) -> Outcome:
        """Render and store the page, if nobody else does and nobody just did.

        ``overdue`` is called once, from another thread, if the render runs past its timeout.
        """
        lease: Lease | Busy | BackingOff | None
        try:
            lease = self._leases.acquire(task.page, task.lease)
        except StoreError as error:
            # No store, no lock: one flight in each process is what is left.
            self._events.emit(StoreFailed("add", task.page, error))
            lease = None
        if isinstance(lease, Busy):
            if task.refreshes is None:
                return lease
            lease = None
        if isinstance(lease, BackingOff):
            if task.outdated and (taken := self._past_back_off(task)) is not None:
                lease = taken
            elif not task.anyway:
                return lease
            else:
                lease = None
        if isinstance(lease, Busy):
            return lease
        try:
            if task.refreshes and (undelivered := self._mark(task.refreshes)):
                return Failed("undelivered", InvalidationError((), undelivered))
            # Look again. We saw a stale page; another worker rendered, stored and released; then we got
            # the lock. Without this look we would render a second time in one window.
            current, token = self._gets(task)
            if current is not None:
                slot = self._local.put(task.page, current)
                # Only what is proven: a page that cannot be is no reason not to render one.
                judged = self._judge(slot, self._stamps.epochs())
                proven = _is_current(judged.verdict) and judged.standing is not Standing.UNPROVEN
                if proven and task.refreshes is None:
                    return Found(slot)
            return self._render(task, lease, current, token, overdue)
        finally:
            if lease is not None:
                lease.release()

    def _past_back_off(self, task: Task) -> Lease | Busy | None:
        """Where the last failure was one of the page before it was invalidated, the lease in place of the back-off."""
        try:
            current, _ = self._gets(task)
            failed, now = self._leases.failed(task.page), self._stamps.capture(self._tags(task, current)).known
            return None if failed == _told(now) else self._leases.take_over(task.page, task.lease)
        except Exception as error:  # the store's trouble, or a rule's own callable: then the back-off counts
            self._events.emit(StoreFailed("gets", task.page, error))
            return None

    def _tags(self, task: Task, current: Entry | None) -> list[str]:
        """Those that can be known before a render, those of the last one included."""
        return [*self._tags_of(task), *(tag for tag, _ in current.proof.tags)] if current else list(self._tags_of(task))

    def _mark(self, tag: str) -> dict[str, StoreError]:
        """Before a refresh captures its stamps: what there is now is stale, in every process. The lock is held, so
        that nobody renders for it meanwhile. Returns what could not be delivered."""
        undelivered = self._stamps.invalidate([tag], Mode.STALE)
        self._local.unready()
        self._events.emit(Invalidated((tag,), Mode.STALE.value, tuple(undelivered)))
        return undelivered

    def _gets(self, task: Task) -> tuple[Entry | None, Token | None]:
        try:
            held = self._store.gets(task.page)
        except StoreError as error:
            self._events.emit(StoreFailed("gets", task.page, error))
            return None, None
        return (None, None) if held is None else (self._read(task, held.value), held.token)

    def _render(
        self, task: Task, lease: Lease | None, current: Entry | None, token: Token | None, overdue: Callable[[], None]
    ) -> Outcome:
        started, began = self._clock(), self._monotonic()

        try:
            # Before any data is read **[needed]**: the stamps of every tag that can be known by now.
            known = self._tags_of(task)
            capture = self._stamps.capture(self._tags(task, current))
        except Exception as raised:  # a rule's own callable
            self._failed(task, lease, "tags", raised)
            return Failed("tags")
        of = _told(capture.known)

        def give_up() -> None:
            self._failed(task, lease, "timeout", None, of)
            overdue()

        watch = self._keeper.watch(lease, task.timeout, give_up)
        error: BaseException | None = None
        product: Product
        try:
            product = self._produce(task)
        except BaseException as raised:  # whatever it is, whoever waits for this flight must hear of it
            error, product = raised, Failure("exception")
        if not self._keeper.finish(watch):
            # Too late to be stored, but good enough for a visitor who has waited all the same.
            if isinstance(product, Failure):
                return _failed(product._replace(reason="timeout"), error, known, capture)
            late = product.content if isinstance(product, Storable) else None
            return Failed("timeout", error, late if isinstance(late, Content) else None)
        if error is not None and not isinstance(error, Exception):
            return Failed("exit", error)  # the process is being stopped; that is not the page's fault
        now = self._clock()
        if isinstance(product, Refusal) and current is not None and self._is_accident(task, product, current):
            product = Failure(product.reason)
        if isinstance(product, Failure):
            self._failed(task, lease, product.reason, error, of)
            return _failed(product, error, known, capture)
        if isinstance(product, Refusal):
            self._events.emit(Refused(task.page, task.rule, product.reason, task.text))
            product = Storable(product, Lifetime(self._uncacheable_ttl, None), self._uncacheable_ttl + 60)
        lifetime = product.lifetime
        try:
            proof = self._stamps.prove(capture, [*known, *product.tags], dict(product.carried))
            entry = Entry(task.text, product.content, started, now, lifetime.revalidate, lifetime.expire, proof)
            packed = codec.pack(entry)
        except Exception as raised:  # a header or a tag that is no text after all
            self._failed(task, lease, "unstorable", raised, of)
            return Failed("unstorable", None, product.content if isinstance(product.content, Content) else None)
        winner, stored = self._put(task, entry, packed, token, product.keep)
        self._events.emit(Rendered(task.page, self._monotonic() - began, stored, task.text))
        self._leases.forget_failures(task.page)
        return Made(self._local.put(task.page, winner), stored)

    def _is_accident(self, task: Task, refusal: Refusal, current: Entry) -> bool:
        """Whether a page that was cacheable a moment ago is not to be given up for an answer that may not be stored.

        What an app says of its page on purpose is taken at its word, and so is anything once it comes for the third
        time in a row, or the page may no longer be served anyway (expired).
        """
        if refusal.reason in DELIBERATE or isinstance(current.content, Refusal):
            return False
        try:
            if self._leases.failures(task.page) >= ACCIDENTS:
                return False
        except StoreError:
            pass
        return isinstance(self._judge(Slot(current), self._stamps.epochs()).verdict, Stale)

    def _is_better(self, ours: Entry, theirs: Entry) -> bool:
        epochs = self._stamps.epochs()
        return self._stamps.standing(ours.proof, epochs) < self._stamps.standing(theirs.proof, epochs)

    def _failed(self, task: Task, lease: Lease | None, reason: str, error: BaseException | None, of: str = "") -> None:
        pause = lease.rest(of) if lease is not None else 0.0
        self._events.emit(RenderFailed(task.page, task.rule, reason, pause, error, task.text))

    def _put(
        self, task: Task, entry: Entry, packed: bytes, token: Token | None, keep: float | None
    ) -> tuple[Entry, bool]:
        """Store by compare-and-swap; a late writer loses to a page whose render started after its own, unless
        that one is worse proven.

        Returns what is to be served, and whether our entry was stored.
        """
        try:
            for _ in range(8):
                if token is None:
                    done = self._store.add(task.page, packed, keep)
                else:
                    done = self._store.cas(task.page, packed, token, keep)
                if done:
                    return entry, True
                theirs, token = self._gets(task)
                # Clocks differ between machines: that theirs started later counts unless ours is better proven.
                if theirs is not None and theirs.started >= entry.started and not self._is_better(entry, theirs):
                    return theirs, False
        except StoreError as error:
            self._events.emit(StoreFailed("cas", task.page, error))
        return entry, False

    # The end -----------------------------------------------------------------------------------------

    def stop(self, timeout: float) -> bool:
        """Drain the background within ``timeout`` seconds; ``True`` when nothing is left running."""
        drained = self._pool.stop(timeout)
        self._keeper.close()
        return drained


def _told(stamps: Mapping[str, bytes]) -> str:
    """What tells a render before an invalidation from one after it."""
    return _digest(b"".join(stamps[tag] for tag in sorted(stamps))).hex()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _failed(failure: Failure, error: BaseException | None, known: Sequence[str], capture: Capture) -> Failed:
    """With the stamps from before: what it has to show may be from before an invalidation."""
    shows = failure.content is not None or failure.said is not None
    stamps = tuple((tag, capture.known[tag]) for tag in known) if shows else ()
    return Failed(failure.reason, error, failure.content, failure.said, stamps)


def _is_current(verdict: Verdict) -> bool:
    return isinstance(verdict, Fresh) or (isinstance(verdict, Uncacheable) and not verdict.due)
