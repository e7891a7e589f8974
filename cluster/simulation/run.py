"""The loop of events: requests of the followed processes, and their later effects."""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import random
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from wsgi_isr.cache.dispatch import WAIT_PAUSE
from wsgi_isr.cache.entry import Entry
from wsgi_isr.cache.keyspace import Keyspace, tag_name
from wsgi_isr.cache.lease import BackingOff, Busy, Lease, Leases
from wsgi_isr.cache.local_cache import CachedEntry
from wsgi_isr.cache.lookup import RECHECK_PAUSE
from wsgi_isr.cache.tag_versions import TagVersions
from wsgi_isr.cache.verdict import Expired, Fresh, Missing, Stale
from wsgi_isr.events import Events

from .figures import Figures, Invalidation, Records, summarize
from .nodes import Nodes, Tally
from .parameters import LEASE, Parameters
from .process import Outcome, Process, Render, Waiting
from .site import Page, Site, epoch_key, tag_key

_CHUNK = 4096


def simulate(parameters: Parameters, progress: Callable[[float], None] = lambda seconds: None) -> Figures:
    """Simulate a cluster and return its figures.

    :param progress: called with the simulated seconds, once for each.

    The same parameters lead to the same figures. For that, the module ``random`` is seeded, because leases draw their
    jitter from it; its state is restored afterwards.
    """
    before = random.getstate()
    random.seed(parameters.seed)
    try:
        return _Run(parameters, progress).figures()
    finally:
        random.setstate(before)


def invalidations(parameters: Parameters) -> Iterator[tuple[float, int]]:
    """Yield the time and the tag of each invalidation. They depend on the seed alone, not on the followed processes."""
    rng, at = random.Random(parameters.seed + 1), 0.0
    while parameters.invalidations:
        at += rng.expovariate(parameters.invalidations)
        if at >= parameters.duration:
            return
        yield at, rng.randrange(parameters.tags)


class _Run:
    def __init__(self, parameters: Parameters, progress: Callable[[float], None]) -> None:
        self._p = p = parameters
        self._progress = progress
        self._rng = random.Random(p.seed)
        self._invalidations = invalidations(p)
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._nodes = Nodes(p.nodes, self._clock)
        # Counters by origin: followed processes, renders (in any process), invalidations, and uncounted reads.
        self._by_process, self._by_render, self._by_invalidation, self._uncounted = (Tally(p.nodes) for _ in range(4))
        self._nodes.tally = self._uncounted
        self._leases = Leases(self._nodes, Keyspace.lock, Keyspace.failures, Events())
        self._invalidator = TagVersions(self._nodes, tag_key, epoch_key, coherence=0, monotonic=self._clock)
        self._site = Site(p, self._nodes, self._invalidator, self._rng)
        make = (self._nodes, p.local_cache_bytes, p.coherence, self._clock)
        self._processes = [Process(number, *make) for number in range(p.followed)]
        #: Stands for all processes that are not followed.
        self._others = Process(-1, self._nodes, 0, p.coherence, self._clock)
        self._others_share = 1 - p.followed / p.processes
        self._expected = array("L", [0]) * p.pages
        self._invalidated: list[list[float]] = [[] for _ in range(p.tags)]
        self._records = Records(p)

    def _clock(self) -> float:
        return self.now

    def figures(self) -> Figures:
        self._begin()
        self._loop()
        self._nodes.tally = self._uncounted
        records = self._records
        records.slots = sum(len(process.local) for process in self._processes) / len(self._processes)
        return summarize(self._p, records, self._by_process, self._by_render, self._by_invalidation)

    # Time --------------------------------------------------------------------------------------------

    def _at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        if time < self._p.duration:
            heapq.heappush(self._heap, (time, next(self._order), call, arguments))

    def _begin(self) -> None:
        p, site = self._p, self._site
        if self._others_share:
            for number in range(p.pages):
                created = site.created[number]
                due = 0.0
                if created == created:  # not NaN: the page is stored
                    due = math.inf if p.revalidate is None else max(0.0, created + p.revalidate)
                self._expect(number, due)
        self._next_invalidation()
        for second in range(1, math.ceil(p.duration)):
            self._at(second, self._tick)

    def _loop(self) -> None:
        """Handle requests at random times, drawn in chunks; events due before the next request come first."""
        p, rng, heap = self._p, self._rng, self._heap
        rate = p.rate * len(self._processes) / p.processes
        processes, site, request = self._processes, self._site, self._request
        arrival, count = 0.0, len(processes)
        while arrival < p.duration:
            for number in site.popularity.draw(rng, _CHUNK):
                arrival += rng.expovariate(rate)
                while heap and heap[0][0] <= arrival:
                    self._next()
                if arrival >= p.duration:
                    break
                self.now = arrival
                request(processes[int(rng.random() * count)], site[number])
        while heap:
            self._next()
        self.now = p.duration
        self._tick()

    def _next(self) -> None:
        self.now, _, call, arguments = heapq.heappop(self._heap)
        call(*arguments)

    def _tick(self) -> None:
        self._records.tick(self._by_process, self._by_render)
        self._progress(self.now)

    # A request of a followed process: Cache.get, _look_up and _answer ----------------------------------

    def _request(self, process: Process, page: Page) -> None:
        self._nodes.tally = self._by_process
        records, now = self._records, self.now
        records.requests += 1
        polled = process.tag_versions.polled()
        if polled is not process.polled:
            process.polled = polled
            self._notice(process)
        epochs = polled.epochs
        cached = process.local.get(page.key)
        if cached is not None:
            verdict = process.judge(cached, epochs, now)
            if isinstance(verdict, Fresh):
                records.hits += 1
                self._check(page, cached.entry)
                return
            if isinstance(verdict, Stale) and now < cached.recheck_at:
                self._stale(cached.entry)
                return
        entry = page.entry
        self._nodes.read_page(page.place, entry is not None)
        if entry is not None:
            cached = process.local.put(page.key, entry)
        verdict = Missing() if cached is None else process.judge(cached, epochs, now)
        if isinstance(verdict, Fresh):
            assert cached is not None
            records.fetched += 1
            self._check(page, cached.entry)
            return
        if not self._is_current(page):
            page.herd.add(process.number)
            if page.noticed is None:
                page.noticed = now
        if isinstance(verdict, Stale):
            assert cached is not None
            self._revalidate(process, page, cached)
            self._stale(cached.entry)
        elif isinstance(verdict, Expired) and cached is not None and now < cached.backoff_until:
            records.retained += 1
        else:
            self._load(process, page, cached if isinstance(verdict, Expired) else None)

    def _notice(self, process: Process) -> None:
        """Handle a poll of the epochs: the process sees every invalidation so far."""
        invalidations = self._records.invalidations
        while process.seen < len(invalidations):
            invalidations[process.seen].seen(self.now)
            process.seen += 1

    def _check(self, page: Page, entry: Entry) -> None:
        """Record by how long a page that was served as fresh is outdated, if it is."""
        invalidated = self._invalidated[page.tag]
        if invalidated and invalidated[-1] > entry.started:
            first = invalidated[bisect.bisect_right(invalidated, entry.started)]
            self._records.served_outdated(self.now - first)

    def _stale(self, entry: Entry) -> None:
        self._records.stale += 1
        if entry.revalidate is not None and self.now > entry.created + entry.revalidate:
            self._records.beyond.append(self.now - entry.created - entry.revalidate)

    def _is_current(self, page: Page) -> bool:
        """Return whether a page is current by the simulation's own records, which check the stored tag versions."""
        entry = page.entry
        if entry is None or (entry.revalidate is not None and self.now >= entry.created + entry.revalidate):
            return False
        invalidated = self._invalidated[page.tag]
        return not invalidated or entry.started > invalidated[-1]

    # Stale: Cache._revalidate. Expired, Missing: Cache._load and Dispatcher.lead ---------------------

    def _revalidate(self, process: Process, page: Page, cached: CachedEntry) -> None:
        if self.now < cached.recheck_at:
            return
        cached.recheck_at = self.now + RECHECK_PAUSE * self._rng.uniform(0.5, 1.0)
        if page.number not in process.flights:
            self._regenerate(process, page, Waiting([], 0.0, alone=False, ignore_backoff=False))

    def _load(self, process: Process, page: Page, old: CachedEntry | None) -> None:
        self._try(process, page, Waiting([self.now], WAIT_PAUSE[0], alone=old is not None, ignore_backoff=old is None))

    def _try(self, process: Process, page: Page, waiting: Waiting) -> None:
        """Join the render of this process for a page, or try to become the one that renders."""
        flight = process.flights.get(page.number)
        if flight is not None and flight is not waiting:
            flight.visitors += waiting.visitors
            return
        self._nodes.tally = self._by_process
        outcome = self._regenerate(process, page, waiting)
        if outcome is Outcome.RENDERING:
            return
        if outcome is Outcome.BUSY and self.now < waiting.visitors[0] + self._p.wait:
            if not waiting.alone:
                process.flights[page.number] = waiting
            pause = waiting.pause * self._rng.uniform(0.5, 1.0)
            waiting.pause = min(waiting.pause * 1.5, WAIT_PAUSE[1])
            self._at(self.now + pause, self._try, process, page, waiting)
            return
        if outcome is Outcome.BUSY:
            self._records.gave_up += len(waiting.visitors)
        elif outcome is Outcome.BACKING_OFF:
            self._retain(process, page)
        self._land(process, page, waiting)

    def _retain(self, process: Process, page: Page) -> None:
        cached = process.local.get(page.key)
        if cached is not None:
            cached.backoff_until = self.now + RECHECK_PAUSE

    def _land(self, process: Process, page: Page, waiting: Waiting) -> None:
        if process.flights.get(page.number) is waiting:
            del process.flights[page.number]
        if not waiting.visitors:
            return
        self._records.waits.extend(self.now - came for came in waiting.visitors)
        # Cache._landed: the result of the wait is judged once more.
        cached = process.local.get(page.key)
        if cached is not None:
            self._nodes.tally = self._by_process
            process.judge(cached, process.tag_versions.epochs(), self.now)

    # The one render: Regenerator.regenerate and _render ------------------------------------------------

    def _regenerate(self, process: Process, page: Page, waiting: Waiting) -> Outcome:
        nodes, lock = self._nodes, Keyspace.lock(page.key)
        before = nodes.tally
        if nodes.expires(lock) is None and not self._is_current(page):
            nodes.tally = self._by_render  # a render is counted as one, in whichever process it is
        try:
            held = self._leases.acquire(page.key, LEASE)
            if isinstance(held, Busy):
                return Outcome.BUSY
            if isinstance(held, BackingOff) and waiting.alone and self._is_outdated(page):
                held = self._leases.take_over(page.key, LEASE)
            if isinstance(held, Busy):
                return Outcome.BUSY
            if isinstance(held, BackingOff) and not waiting.ignore_backoff:
                return Outcome.BACKING_OFF
            lease = held if isinstance(held, Lease) else None
            nodes.read_page(page.place, page.entry is not None)
            if page.entry is not None:
                counted = nodes.tally
                if process is self._others:  # the look-up has judged the page already, so it is not judged again
                    nodes.tally = self._uncounted
                cached = process.local.put(page.key, page.entry)
                verdict = process.judge(cached, process.tag_versions.epochs(), self.now)
                nodes.tally = counted
                if isinstance(verdict, Fresh):
                    self._release(page, lease)
                    return Outcome.FOUND
            former = [tag for tag, _ in page.entry.snapshot.tags] if page.entry is not None else []
            capture = process.tag_versions.capture([*page.tags, *former])
        finally:
            nodes.tally = before
        page.renders += 1
        page.noticed = self.now if page.noticed is None else page.noticed
        self._records.began += 1
        process.flights[page.number] = waiting
        render = Render(process, page, lease, capture, page.version, self.now, waiting)
        if lease is not None:
            self._keep(render)
        self._at(self.now + self._p.render, self._finish, render)
        return Outcome.RENDERING

    def _is_outdated(self, page: Page) -> bool:
        """Return whether the failed page predates an invalidation, as Cache._is_outdated does."""
        invalidated = self._invalidated[page.tag]
        return bool(invalidated) and invalidated[-1] > page.failed

    def _keep(self, render: Render) -> None:
        """Renew a lease three times in its life, as the LeaseKeepAlive does."""
        due = self.now + LEASE / 3
        if due < render.started + self._p.render:
            self._at(due, self._renew_lease, render)

    def _renew_lease(self, render: Render) -> None:
        self._nodes.tally = self._by_render
        assert render.lease is not None
        if render.lease.renew():
            self._keep(render)

    def _finish(self, render: Render) -> None:
        process, page, lease = render.process, render.page, render.lease
        self._nodes.tally = self._by_render
        if self._p.failing and self._rng.random() < self._p.failing:
            self._records.failed += 1
            page.failed = render.started
            pause = lease.back_off() if lease is not None else 0.0
            self._retain(process, page)
            self._expect(page.number, self.now + pause)
        else:
            snapshot = process.tag_versions.prove(render.capture, page.tags)
            self._nodes.write_page(page.place)
            # Regenerator._put: a late writer loses.
            if page.version == render.version or (page.entry is not None and page.entry.started < render.started):
                page.entry = self._site.entry(page, render.started, self.now, snapshot)
                page.version += 1
                self._records.rendered += 1
                self._close_window(page)
                due = self.now if not self._is_current(page) else math.inf
                self._expect(page.number, min(due, self.now + (self._p.revalidate or math.inf)))
            self._leases.forget_failures(page.key)
            self._nodes.drop(Keyspace.failures(page.key))
            self._release(page, lease)
            assert page.entry is not None
            process.local.put(page.key, page.entry)
        if render.waiting is not None:
            self._land(process, page, render.waiting)

    def _release(self, page: Page, lease: Lease | None) -> None:
        if lease is not None:
            lease.release()
            self._nodes.drop(Keyspace.lock(page.key))

    def _close_window(self, page: Page) -> None:
        others = 0
        if page.noticed is not None and self._others_share:
            each = page.asked / self._p.processes * (self.now - page.noticed)
            unfollowed = self._p.processes - self._p.followed
            others = min(unfollowed, _poisson(self._rng, unfollowed * -math.expm1(-each)))
        self._records.window(page.renders, max(1, len(page.herd) + others))
        page.noticed, page.renders = None, 0
        page.herd.clear()

    # The processes that are not followed ----------------------------------------------------------------

    def _expect(self, number: int, due: float) -> None:
        """Schedule the first request of these processes for the page after ``due``, when it is no longer current."""
        if self._others_share and due < self._p.duration:
            asked = self._p.rate * self._site.popularity.share(number) * self._others_share
            self._replace_request(due + self._rng.expovariate(asked), number)

    def _replace_request(self, time: float, number: int) -> None:
        """Replace the expected request for this page: two would be one visitor too many."""
        self._expected[number] += 1
        self._at(time, self._request_of_others, number, self._expected[number])

    def _request_of_others(self, number: int, expected: int) -> None:
        page = self._site[number]
        if expected != self._expected[number] or self._is_current(page):
            return
        expires = self._nodes.expires(Keyspace.lock(page.key))
        self._nodes.tally = self._uncounted
        self._others.tag_versions.forget()
        self._others.tag_versions.epochs()
        outcome = self._regenerate(self._others, page, Waiting([], 0.0, alone=False, ignore_backoff=page.entry is None))
        if outcome is Outcome.BACKING_OFF and expires is not None:
            self._expect(number, expires)

    # Invalidations -----------------------------------------------------------------------------------------

    def _next_invalidation(self) -> None:
        following = next(self._invalidations, None)
        if following is not None:
            self._at(following[0], self._invalidate, following[1])

    def _invalidate(self, tag: int) -> None:
        p = self._p
        self._nodes.tally = self._by_invalidation
        failed = self._invalidator.invalidate([tag_name(str(tag))], p.mode)
        assert not failed
        if self._others_share:
            for number in self._site.tagged(tag):
                page = self._site.made(number)
                created = self._site.created[number]
                if page is not None:
                    affected = self._is_current(page)
                else:
                    young = p.revalidate is None or self.now < created + p.revalidate  # false, if it is absent
                    affected = created == created and young and not self._invalidated[tag]
                if affected:  # otherwise a request is expected anyway
                    self._expect_after(number)
        self._invalidated[tag].append(self.now)
        self._records.invalidations.append(Invalidation(self.now))
        self._next_invalidation()

    def _expect_after(self, number: int) -> None:
        """Schedule the first request for an invalidated page by a process that has seen the invalidation.

        Within ``coherence``, more and more processes have polled: the rate grows evenly, then stays constant.
        """
        p = self._p
        asked = p.rate * self._site.popularity.share(number) * self._others_share
        due = self._rng.expovariate(1.0)
        if due < asked * p.coherence / 2:
            self._replace_request(self.now + math.sqrt(2 * p.coherence * due / asked), number)
        else:
            self._replace_request(self.now + due / asked + p.coherence / 2, number)


def _poisson(rng: random.Random, mean: float) -> int:
    """Draw a Poisson number; for a large mean, a normal one is close enough."""
    if mean > 200:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    count, left = -1, mean
    while left >= 0:
        left -= rng.expovariate(1.0)
        count += 1
    return count
