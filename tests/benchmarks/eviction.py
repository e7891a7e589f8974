"""Hits in L1 of a site with 100,000 pages: S3-FIFO, which L1 uses, against three other policies.

The requests follow Zipf's law. In half of the runs a crawler sends each fifth request, and asks for every page in turn.
Sizes are log-normal with a mean of 40 KB, in all codings together. The benchmark drives the real
:class:`~wsgi_isr.cache.local_cache.Local`; the other policies are models of a few lines.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from tests.benchmarks.report import Budget, Report, Row, Table, ratio
from wsgi_isr.cache.entry import Content, Entry
from wsgi_isr.cache.local_cache import Local

MIB = 1024 * 1024


class Size(NamedTuple):
    """The pages of the site, the requests, the requests before the count begins, and the sizes of L1 in MiB."""

    pages: int = 100_000
    requests: int = 300_000
    warm: int = 120_000
    megabytes: tuple[int, ...] = (16, 64, 256)


FULL, QUICK = Size(), Size(2_000, 6_000, 2_000, (2,))
OURS, LRU, CLOCK, TINY_LFU = "S3-FIFO (L1)", "LRU", "CLOCK", "W-TinyLFU"


class Policy(Protocol):
    """An eviction policy."""

    def ask(self, page: int, size: int) -> bool:
        """Return whether ``page`` is kept. If not, keep it from now on."""


class Ours:
    """L1 itself."""

    def __init__(self, most: int) -> None:
        self._local = Local(most)

    def ask(self, page: int, size: int) -> bool:
        key = str(page)
        if self._local.get(key) is not None:
            return True
        self._local.put(key, _entry(key, size - _EMPTY))
        return False


def _entry(key: str, length: int) -> Entry:
    return Entry(key, Content("200 OK", (), _Length(length), "e"), 0.0, 0.0, None, None)


class _Length(bytes):
    """A body without bytes that has a length: 100,000 real bodies would not fit into memory."""

    def __new__(cls, _length: int) -> _Length:
        return super().__new__(cls)

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


_EMPTY = _entry("100000", 0).size


class Lru:
    """Evict the least recently used."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._pages: OrderedDict[int, int] = OrderedDict()

    def ask(self, page: int, size: int) -> bool:
        if page in self._pages:
            self._pages.move_to_end(page)
            return True
        self._pages[page] = size
        self._bytes += size
        while self._bytes > self._most:
            self._bytes -= self._pages.popitem(last=False)[1]
        return False


class Clock:
    """Evict the oldest that was not used since the last look at it."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._pages: OrderedDict[int, int] = OrderedDict()
        self._used: set[int] = set()

    def ask(self, page: int, size: int) -> bool:
        if page in self._pages:
            self._used.add(page)
            return True
        self._pages[page] = size
        self._bytes += size
        while self._bytes > self._most:
            oldest, weight = next(iter(self._pages.items()))
            if oldest in self._used:
                self._used.discard(oldest)
                self._pages.move_to_end(oldest)
            else:
                del self._pages[oldest]
                self._bytes -= weight
        return False


class TinyLfu:
    """A window of 1 %, and a segmented LRU that admits what was asked for more often (Einziger et al., 2017)."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._window: OrderedDict[int, int] = OrderedDict()
        self._probation: OrderedDict[int, int] = OrderedDict()
        self._protected: OrderedDict[int, int] = OrderedDict()
        self._counts: dict[int, int] = {}
        self._asked = 0
        self._bytes = [0, 0, 0]

    def ask(self, page: int, size: int) -> bool:
        self._count(page)
        for queue in (self._window, self._protected):
            if page in queue:
                queue.move_to_end(page)
                return True
        if page in self._probation:
            self._promote(page)
            return True
        self._window[page] = size
        self._bytes[0] += size
        while self._bytes[0] > 0.01 * self._most:
            self._admit(*self._window.popitem(last=False))
        return False

    def _count(self, page: int) -> None:
        self._counts[page] = min(15, self._counts.get(page, 0) + 1)
        self._asked += 1
        if self._asked > 10 * max(100, len(self._window) + len(self._probation) + len(self._protected)):
            self._asked //= 2
            self._counts = {page: count >> 1 for page, count in self._counts.items() if count > 1}

    def _promote(self, page: int) -> None:
        size = self._probation.pop(page)
        self._protected[page] = size
        self._bytes[1] -= size
        self._bytes[2] += size
        while self._bytes[2] > 0.8 * 0.99 * self._most:
            self._demote()

    def _demote(self) -> None:
        page, size = self._protected.popitem(last=False)
        self._probation[page] = size
        self._bytes[1] += size
        self._bytes[2] -= size

    def _admit(self, page: int, size: int) -> None:
        self._bytes[0] -= size
        while self._bytes[1] + self._bytes[2] + size > 0.99 * self._most:
            if not self._probation:
                self._demote()
            victim, weight = next(iter(self._probation.items()))
            if self._counts.get(page, 0) <= self._counts.get(victim, 0):
                return
            del self._probation[victim]
            self._bytes[1] -= weight
        self._probation[page] = size
        self._bytes[1] += size


POLICIES: dict[str, Callable[[int], Policy]] = {OURS: Ours, LRU: Lru, CLOCK: Clock, TINY_LFU: TinyLfu}


def run(size: Size) -> Report:
    shares: dict[str, list[float]] = {label: [] for label in POLICIES}
    lines = []
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for alpha, crawled, megabytes, requests in _runs(size):
        for label, policy in POLICIES.items():
            shares[label].append(_hits(policy(megabytes * MIB), requests, size.warm))
        crawler = ", a crawler" if crawled else ""
        for label, found in shares.items():
            points = series.setdefault(f"Zipf {alpha:g}{crawler}", {}).setdefault(label, [])
            points.append((float(megabytes), found[-1]))
        last = "  ".join(f"{label} {found[-1]:.1f}" for label, found in shares.items())
        lines.append(f"  {megabytes} MiB, Zipf {alpha:g}{crawler}: {last}")
    table = Table(
        f"hits in L1, {size.pages:,} pages", "% of the requests", [Row(*pair) for pair in shares.items()], LRU, 1
    )
    return Report(
        [table],
        [
            Budget("times the hits of LRU", ratio(table.row(OURS), table.row(LRU)), 1.1, True),
            Budget("times the hits of W-TinyLFU", ratio(table.row(OURS), table.row(TINY_LFU)), 0.97, True),
        ],
        ["each run:\n" + "\n".join(lines)],
        series,
    )


def _runs(size: Size) -> Iterator[tuple[float, bool, int, list[tuple[int, int]]]]:
    """Yield each run: the exponent of Zipf's law, whether a crawler is there, the MiB of L1, and the requests."""
    for alpha, crawled in itertools.product((0.8, 1.0), (False, True)):
        requests = list(_requests(size, alpha, crawled))
        for megabytes in size.megabytes:
            yield alpha, crawled, megabytes, requests


def _requests(size: Size, alpha: float, crawled: bool) -> Iterator[tuple[int, int]]:
    """Yield the page of each request, and its bytes in L1."""
    dice = random.Random(1)
    ranks = list(itertools.accumulate(1 / (rank + 1) ** alpha for rank in range(size.pages)))
    pages = list(range(size.pages))
    dice.shuffle(pages)
    sizes = [int(min(200_000.0, dice.lognormvariate(10.2, 0.8))) + _EMPTY for _ in range(size.pages)]
    crawler = itertools.cycle(range(size.pages))
    for number in range(size.requests):
        is_crawler = crawled and number % 5 == 0
        page = next(crawler) if is_crawler else pages[bisect.bisect_left(ranks, dice.random() * ranks[-1])]
        yield page, sizes[page]


def _hits(policy: Policy, requests: list[tuple[int, int]], warm: int) -> float:
    """Return the percentage of hits after the first ``warm`` requests."""
    hits = [policy.ask(page, size) for page, size in requests]
    return 100 * sum(hits[warm:]) / len(hits[warm:])
