"""One render in the cluster: a lock with an owner and a deadline, and the back-off after a failure.

A lock's value is its owner's token, or :data:`RESTING` while nobody may render because the last
render failed. It is never deleted blindly: every change is a compare-and-swap on a value that was
read and recognised, because by then a lock that lapsed may be somebody else's.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import StoreError
from ..events import Events, InternalError, LeaseLost, StoreFailed
from ..stores.base import Store

BACKOFF = b"resting"
_FREE = b"free"

#: Seconds: the first pause after a failed render, and the longest.
BACK_OFF = (1.0, 30.0)
#: Seconds between two attempts to free a lock that nobody needs.
_FREE_AGAIN = 0.5
#: A streak of failures is forgotten this long after the last one.
_STREAK = 4 * BACK_OFF[1]


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else is rendering."""


@dataclass(frozen=True, slots=True)
class BackingOff:
    """The last render failed a moment ago; the next attempt is not due yet."""


class Lease:
    """The right to render one page, for ``ttl`` seconds unless it is renewed.

    :param owner: begins its token, for :meth:`Leases.of`.
    """

    def __init__(self, leases: Leases, page: str, ttl: float, owner: bytes = b"") -> None:
        self._leases = leases
        self.page = page
        self.ttl = ttl
        # Each attempt has one of its own: one that was given up may still be freed when the next has the lock.
        self.token = owner + os.urandom(12)
        #: It was given back, left in place as a back-off, or lost: not ours to change any more.
        self.over = False
        # The keeper's thread and the render's own both change the lock in the store. Their swaps take turns,
        # or a renewal could slip into a release and leave the lock behind for a whole ttl.
        self._turn = threading.Lock()

    def renew(self) -> bool:
        """Begin the ttl anew, if the lock is still ours."""
        with self._turn:
            return not self.over and self._swap(self.token, self.ttl) is True

    def release(self) -> None:
        """Let the next one in, if the lock is still ours."""
        with self._turn:
            if self.over:
                return
            done = self._swap(_FREE, 0)
            self.over = True
        if done is None:
            self._leases.orphaned(self)

    def free(self) -> bool:
        """The same for a lock that nobody holds any more; ``False`` where the store cannot be asked."""
        with self._turn:
            return self._swap(_FREE, 0, expected=False) is not None

    def rest(self, of: str = "") -> float:
        """After a failure: leave the lock in place as a back-off for the whole cluster. ``of`` says what has failed,
        for :meth:`Leases.failed`.

        Returns its seconds: 1, doubled with each failure in a row up to 30, with a quarter of jitter; 0
        where the lock is not ours any more.
        """
        with self._turn:
            if self.over:
                return 0.0
            failures = self._leases.count_failure(self.page, of)
            pause = min(BACK_OFF[0] * 2.0 ** min(failures - 1, 10), BACK_OFF[1]) * random.uniform(1.0, 1.25)
            self._swap(BACKOFF, pause)
            self.over = True
            return pause

    def _swap(self, value: bytes, ttl: float, expected: bool = True) -> bool | None:
        """Whether the lock was ours and is changed; ``None`` where the store cannot be asked.

        ``expected``: that it is ours; where it is not, the lease was lost.
        """
        lock = self._leases.keyed(self.page)
        try:
            held = self._leases.store.gets(lock)
            if held is not None and held.value == self.token and self._leases.store.cas(lock, value, held.token, ttl):
                return True
        except StoreError as error:
            self._leases.events.emit(StoreFailed("cas", lock, error))
            return None
        if expected:
            self.over = True
            self._leases.events.emit(LeaseLost(self.page))
        return False


class Leases:
    """Locks in a store, one for each page.

    :param keyed: the name of a page's lock. :param counted: the name of its counter of failures.
    """

    def __init__(
        self, store: Store, keyed: Callable[[str], str], counted: Callable[[str], str], events: Events
    ) -> None:
        self.store = store
        self.keyed = keyed
        self._counted = counted
        self.events = events
        #: Told of a lease whose lock may be in the store although nobody needs it any more.
        self.orphaned: Callable[[Lease], None] = lambda lease: None

    def acquire(self, page: str, ttl: float, owner: bytes = b"") -> Lease | Busy | BackingOff:
        """The lease, or who is in the way.

        :raises StoreError: the store cannot be asked; there is no lease to be had.
        """
        lease = Lease(self, page, ttl, owner)
        lock = self.keyed(page)
        doubt: StoreError | None = None
        try:
            if self.store.add(lock, lease.token, ttl):
                return lease
        except StoreError as error:
            doubt = error
        try:
            held = self.store.get(lock)
        except StoreError:
            if doubt is not None:
                # A paused node applies what was queued when it goes on, and this lock would lock out everybody.
                self.orphaned(lease)
            raise
        # The answer to an add may be lost, or be the one to its repetition: our token is the proof.
        if held == lease.token:
            return lease
        if doubt is not None:
            self.orphaned(lease)
            raise doubt
        return BackingOff() if held == BACKOFF else Busy()

    def in_backoff(self, page: str) -> bool:
        """Whether nobody may render because the last render failed. :raises StoreError: it cannot be asked."""
        return self.store.get(self.keyed(page)) == BACKOFF

    def of(self, page: str, owner: bytes) -> Lease | None:
        """The lease that ``owner`` has, for whoever knows that it died with it.

        :raises StoreError: the store cannot be asked.
        """
        held = self.store.get(self.keyed(page))
        if not owner or held is None or not held.startswith(owner):
            return None
        lease = Lease(self, page, 0.0)
        lease.token = held
        return lease

    def take_over(self, page: str, ttl: float, owner: bytes = b"") -> Lease | Busy:
        """The lease in place of a back-off; of several who want that, one gets it.

        :raises StoreError: the store cannot be asked.
        """
        lease, lock = Lease(self, page, ttl, owner), self.keyed(page)
        held = self.store.gets(lock)
        if held is None or held.value != BACKOFF:
            return Busy()  # whoever tries again finds it free, or somebody rendering
        try:
            return lease if self.store.cas(lock, lease.token, held.token, ttl) else Busy()
        except StoreError:
            self.orphaned(lease)
            raise

    def count_failure(self, page: str, of: str = "") -> int:
        """How many renders in a row failed, this one included. Approximate where several count at
        once, or where the store is away: it only sets the length of a pause."""
        try:
            failures = min(self.failures(page), 1000) + 1
            self.store.set(self._counted(page), f"{failures} {of}".encode(), _STREAK)
        except StoreError:
            return 1
        return failures

    def failures(self, page: str) -> int:
        """How many renders in a row failed until now. :raises StoreError: the store cannot be asked."""
        count = (self.store.get(self._counted(page)) or b"0").partition(b" ")[0]
        return int(count) if count.isdigit() and len(count) < 10 else 0

    def failed(self, page: str) -> str:
        """What the last one was a render ``of``; empty where it said nothing, or did not fail.

        :raises StoreError: the store cannot be asked.
        """
        return (self.store.get(self._counted(page)) or b"").partition(b" ")[2].decode("ascii", "replace")

    def forget_failures(self, page: str) -> None:
        """After a success the next failure is the first again, and a back-off that a visitor without any
        page to see has rendered through is over."""
        try:
            if self.store.get(self._counted(page)) is None:
                return
            self.store.delete(self._counted(page))
            lock = self.store.gets(self.keyed(page))
            if lock is not None and lock.value == BACKOFF:
                self.store.cas(self.keyed(page), _FREE, lock.token, 0)
        except StoreError:
            pass  # both lapse by themselves


@dataclass(order=True)
class Watch:
    """A render under way, as its keeper sees it."""

    due: float
    order: int
    lease: Lease | None = field(compare=False)
    deadline: float = field(compare=False)
    overdue: Callable[[], None] = field(compare=False)
    freeing: bool = field(default=False, compare=False)
    over: bool = field(default=False, compare=False)


class LeaseKeepAlive:
    """Renews the leases of renders under way, and gives up those that run past their deadline.

    One daemon thread for each process, begun with the first render. Times are monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, events: Events | None = None) -> None:
        self._clock = clock
        self._events = events or Events()
        self._changed = threading.Condition()
        self._watches: list[Watch] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    def watch(self, lease: Lease | None, timeout: float, overdue: Callable[[], None]) -> Watch:
        """Look after a render. ``overdue`` is called once, if :meth:`finish` does not come in time."""
        return self._add(Watch(0, next(self._order), lease, self._clock() + timeout, overdue))

    def let_go(self, lease: Lease) -> None:
        """Free an orphaned lock as soon as the store can be reached, until it would have lapsed anyway."""
        self._add(Watch(0, next(self._order), lease, self._clock() + lease.ttl, lambda: None, freeing=True))

    def _add(self, watch: Watch) -> Watch:
        watch.due = self._next(watch)
        with self._changed:
            heapq.heappush(self._watches, watch)
            if self._thread is None:
                self._begin()
            self._changed.notify()
        return watch

    def finish(self, watch: Watch) -> bool:
        """The render is over; ``False`` where it took too long.

        The clock is asked once more: the keeper's thread may not have had its turn yet, after a render
        that kept the interpreter to itself, or after the whole process was stopped for a while.
        """
        with self._changed:
            if watch.over:
                return False
            watch.over = True
            self._watches.remove(watch)
            heapq.heapify(self._watches)
        if self._clock() < watch.deadline:
            return True
        watch.overdue()
        return False

    def close(self) -> None:
        """The process ends: give back the leases of renders that will not come to their end in it, so
        that others need not wait for them to lapse. What such a render still makes is not stored."""
        with self._changed:
            watches, self._watches = self._watches, []
            for watch in watches:
                watch.over = True
            self._thread = None
            self._changed.notify()
        for watch in watches:
            if watch.lease is not None:
                watch.lease.release()

    def tick(self) -> float | None:
        """Do what is due; seconds until there is more to do, ``None`` for nothing in sight."""
        while True:
            with self._changed:
                if not self._watches:
                    return None
                watch = self._watches[0]
                now = self._clock()
                if watch.due > now:
                    return watch.due - now
                if overdue := now >= watch.deadline:
                    heapq.heappop(self._watches)
                    watch.over = True
                else:
                    watch.due = self._next(watch)
                    heapq.heapreplace(self._watches, watch)
            # I/O outside the lock. A renewal that comes too late finds another token and says so.
            try:
                if overdue:
                    watch.overdue()
                elif watch.lease is not None:
                    if not watch.freeing:
                        watch.lease.renew()
                    elif watch.lease.free():
                        self.finish(watch)
            except Exception as error:
                # One lease less is bad; no keeper for all the others would be worse.
                outcome = "its render goes on, and another process may begin the same one"
                self._events.emit(InternalError("keeping a lease", error, outcome))

    def _next(self, watch: Watch) -> float:
        now = self._clock()
        if watch.freeing:
            return min(watch.deadline, now + _FREE_AGAIN)
        if watch.lease is None or watch.lease.over:
            return watch.deadline
        return min(watch.deadline, now + watch.lease.ttl / 3)

    def _begin(self) -> None:
        thread = threading.Thread(target=self._run, name="wsgi-isr-keeper", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no thread to be had: leases lapse after their ttl, and finish() finds out what took too long
        self._thread = thread

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            pause = self.tick()
            with self._changed:
                # Until its starter has said so, it is not yet `self._thread`; the lock sees to the order.
                if self._thread is not me:
                    return
                if not self._watches or self._watches[0].due > self._clock():
                    self._changed.wait(pause)
