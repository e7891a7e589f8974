"""Leases: one render of a page in the cluster, and the back-off after a failure.

A lease is a lock in the store with an owner and a deadline. The lock's value is its owner's token, or
:data:`BACKOFF_VALUE` after a failed render. A lock is never deleted blindly, since another process may have acquired a
lapsed lock. Every change is a compare-and-swap on a value that was read and recognised.
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

#: The value of a lock during a back-off, and of a lock that is free.
BACKOFF_VALUE = b"resting"
FREE_VALUE = b"free"

#: Seconds of back-off after a failed render: the first pause, and the longest.
BACKOFF_PAUSE = (1.0, 30.0)
#: Seconds between two attempts to free an orphaned lock.
_FREE_RETRY_PAUSE = 0.5
#: Seconds after the last failure until the store forgets the count of failures in a row.
_STREAK_TTL = 4 * BACKOFF_PAUSE[1]


@dataclass(frozen=True, slots=True)
class Busy:
    """Another process is rendering."""


@dataclass(frozen=True, slots=True)
class BackingOff:
    """The page is in a back-off: the last render failed, and the next attempt is not due yet."""


class Lease:
    """The right to render one page.

    :param ttl: seconds until the lease lapses, unless it is renewed.
    :param owner: the first bytes of the lease's token, for :meth:`Leases.held_by`.
    """

    def __init__(self, leases: Leases, page: str, ttl: float, owner: bytes = b"") -> None:
        self._leases = leases
        self.page = page
        self.ttl = ttl
        # Each attempt has its own token: an abandoned lease may still be freed while the next lease holds the lock.
        self.token = owner + os.urandom(12)
        #: The lease was released, turned into a back-off, or lost: the lock must not be changed any more.
        self.over = False
        # The keep-alive thread and the render's thread both swap the lock. Without mutual exclusion, a renewal during
        # a release could leave the lock behind for a whole ttl.
        self._mutex = threading.Lock()

    def renew(self) -> bool:
        """Restart the ttl, and return whether this lease still holds the lock."""
        with self._mutex:
            return not self.over and self._swap(self.token, self.ttl) is True

    def release(self) -> None:
        """Free the lock, if this lease still holds it."""
        with self._mutex:
            if self.over:
                return
            done = self._swap(FREE_VALUE, 0)
            self.over = True
        if done is None:
            self._leases.orphaned(self)

    def free(self) -> bool:
        """Free an orphaned lock; return ``False`` if the store is unreachable."""
        with self._mutex:
            return self._swap(FREE_VALUE, 0, expected=False) is not None

    def back_off(self, tags_digest: str = "") -> float:
        """Turn the lock into a back-off for the whole cluster, and return its seconds.

        The first back-off is 1 second. Each failure in a row doubles the seconds up to 30, and jitter adds up to a
        quarter. Return 0 if this lease does not hold the lock any more.

        :param tags_digest: the digest of the tag versions of the failed render, for :meth:`Leases.failed_digest`.
        """
        with self._mutex:
            if self.over:
                return 0.0
            failures = self._leases.count_failure(self.page, tags_digest)
            pause = min(BACKOFF_PAUSE[0] * 2.0 ** min(failures - 1, 10), BACKOFF_PAUSE[1]) * random.uniform(1.0, 1.25)
            self._swap(BACKOFF_VALUE, pause)
            self.over = True
            return pause

    def _swap(self, value: bytes, ttl: float, expected: bool = True) -> bool | None:
        """Change the lock if this lease holds it, and return whether it did; ``None`` if the store is unreachable.

        :param expected: the lease should hold the lock. If not, the lease is lost, and an event reports the loss.
        """
        lock = self._leases.lock_of(self.page)
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

    :param lock_of: returns the name of a page's lock.
    :param counter_of: returns the name of a page's counter of failures.
    :param orphaned: called with a lease whose lock may still be in the store, although its render is over or never
        began.
    """

    def __init__(
        self,
        store: Store,
        lock_of: Callable[[str], str],
        counter_of: Callable[[str], str],
        events: Events,
        orphaned: Callable[[Lease], None] = lambda lease: None,
    ) -> None:
        self.store = store
        self.lock_of = lock_of
        self._counter_of = counter_of
        self.events = events
        self.orphaned = orphaned

    def acquire(self, page: str, ttl: float, owner: bytes = b"") -> Lease | Busy | BackingOff:
        """Return the lease, or the reason why there is none.

        :param ttl: seconds.
        :raises StoreError: the store is unreachable.
        """
        lease = Lease(self, page, ttl, owner)
        lock = self.lock_of(page)
        add_error: StoreError | None = None
        try:
            if self.store.add(lock, lease.token, ttl):
                return lease
        except StoreError as error:
            add_error = error
        try:
            held = self.store.get(lock)
        except StoreError:
            if add_error is not None:
                # A paused node applies the queued add when it resumes: the lock would then block all processes.
                self.orphaned(lease)
            raise
        # The reply to an add may be lost, or may answer a retry of the add. The lease's token in the lock is the proof.
        if held == lease.token:
            return lease
        if add_error is not None:
            self.orphaned(lease)
            raise add_error
        return BackingOff() if held == BACKOFF_VALUE else Busy()

    def in_backoff(self, page: str) -> bool:
        """Return whether a page is in a back-off.

        :raises StoreError: the store is unreachable.
        """
        return self.store.get(self.lock_of(page)) == BACKOFF_VALUE

    def held_by(self, page: str, owner: bytes) -> Lease | None:
        """Return the lease of a dead process; ``None`` if the process held no lease.

        :param owner: the first bytes of the lease's token.
        :raises StoreError: the store is unreachable.
        """
        held = self.store.get(self.lock_of(page))
        if not owner or held is None or not held.startswith(owner):
            return None
        lease = Lease(self, page, 0.0)
        lease.token = held
        return lease

    def take_over(self, page: str, ttl: float, owner: bytes = b"") -> Lease | Busy:
        """Return a lease in place of a back-off. A single caller gets the lease; all others get :class:`Busy`.

        :param ttl: seconds.
        :raises StoreError: the store is unreachable.
        """
        lease, lock = Lease(self, page, ttl, owner), self.lock_of(page)
        held = self.store.gets(lock)
        if held is None or held.value != BACKOFF_VALUE:
            return Busy()  # the next attempt finds the lock free, or another process rendering
        try:
            return lease if self.store.cas(lock, lease.token, held.token, ttl) else Busy()
        except StoreError:
            self.orphaned(lease)
            raise

    def count_failure(self, page: str, tags_digest: str = "") -> int:
        """Count a failure, and return how many renders in a row have failed.

        The count only sets the length of a back-off. Several processes that count at once, or an unreachable store,
        make the count approximate.
        """
        try:
            failures = min(self.failures(page), 1000) + 1
            self.store.set(self._counter_of(page), f"{failures} {tags_digest}".encode(), _STREAK_TTL)
        except StoreError:
            return 1
        return failures

    def failures(self, page: str) -> int:
        """Return how many renders in a row have failed.

        :raises StoreError: the store is unreachable.
        """
        count = (self.store.get(self._counter_of(page)) or b"0").partition(b" ")[0]
        return int(count) if count.isdigit() and len(count) < 10 else 0

    def failed_digest(self, page: str) -> str:
        """Return the digest that the last failure was recorded with; empty without one.

        :raises StoreError: the store is unreachable.
        """
        return (self.store.get(self._counter_of(page)) or b"").partition(b" ")[2].decode("ascii", "replace")

    def forget_failures(self, page: str) -> None:
        """Reset the count of failures, and end a back-off, after a successful render.

        A render may succeed during a back-off, because a render ignores the back-off if there is no entry to serve.
        """
        try:
            if self.store.get(self._counter_of(page)) is None:
                return
            self.store.delete(self._counter_of(page))
            lock = self.store.gets(self.lock_of(page))
            if lock is not None and lock.value == BACKOFF_VALUE:
                self.store.cas(self.lock_of(page), FREE_VALUE, lock.token, 0)
        except StoreError:
            pass  # the count and the back-off lapse by themselves


@dataclass(order=True)
class Watch:
    """A render in progress, as the keep-alive thread sees it. Times are monotonic seconds."""

    due: float
    order: int
    lease: Lease | None = field(compare=False)
    deadline: float = field(compare=False)
    overdue: Callable[[], None] = field(compare=False)
    freeing: bool = field(default=False, compare=False)
    over: bool = field(default=False, compare=False)


class LeaseKeepAlive:
    """Renew the leases of renders in progress, and abandon renders that run past their deadline.

    Each process has one daemon thread, started by the first render. Times are monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, events: Events | None = None) -> None:
        self._clock = clock
        self._events = events or Events()
        self._changed = threading.Condition()
        self._watches: list[Watch] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None

    def watch(self, lease: Lease | None, timeout: float, overdue: Callable[[], None]) -> Watch:
        """Keep the lease of a render alive until :meth:`finish`.

        :param timeout: seconds until the deadline.
        :param overdue: called once, if :meth:`finish` is not called in time.
        """
        return self._add(Watch(0, next(self._order), lease, self._clock() + timeout, overdue))

    def let_go(self, lease: Lease) -> None:
        """Free an orphaned lock as soon as the store is reachable. Give up once the lock has lapsed by itself."""
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
        """Stop watching a render, and return whether it ended in time.

        The clock is read once more, because the keep-alive thread may not have run yet. The render may have held the
        GIL, or the whole process may have been paused.
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
        """Release the leases of all renders in progress, because the process ends.

        Other processes then need not wait for the leases to lapse. Results of these renders are not stored.
        """
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
        """Renew, free and abandon what is due. Return the seconds until the next step; ``None`` without one."""
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
            # I/O is outside the lock. A renewal that is too late finds another token, and emits an event.
            try:
                if overdue:
                    watch.overdue()
                elif watch.lease is not None:
                    if not watch.freeing:
                        watch.lease.renew()
                    elif watch.lease.free():
                        self.finish(watch)
            except Exception as error:
                # An error of one lease must not end the thread that keeps all others.
                outcome = "its render goes on, and another process may begin the same one"
                self._events.emit(InternalError("keeping a lease", error, outcome))

    def _next(self, watch: Watch) -> float:
        now = self._clock()
        if watch.freeing:
            return min(watch.deadline, now + _FREE_RETRY_PAUSE)
        if watch.lease is None or watch.lease.over:
            return watch.deadline
        return min(watch.deadline, now + watch.lease.ttl / 3)

    def _begin(self) -> None:
        thread = threading.Thread(target=self._run, name="wsgi-isr-keeper", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no thread can start: leases lapse after their ttl, and finish() finds overdue renders
        self._thread = thread

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            pause = self.tick()
            with self._changed:
                # `_begin` starts this thread and then sets `self._thread`, both under `_changed`. This thread holds
                # `_changed` now, so the attribute is set.
                if self._thread is not me:
                    return
                if not self._watches or self._watches[0].due > self._clock():
                    self._changed.wait(pause)
