"""Results: records during a run, figures at its end."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from .nodes import EPOCH, LOCK, PAGE, TAG, Tally
from .parameters import Parameters


class Invalidation:
    """One invalidation, and when the first and the last followed process saw it."""

    __slots__ = ("at", "count", "first", "last")

    def __init__(self, at: float) -> None:
        self.at = at
        self.first = self.last = math.nan
        self.count = 0

    def seen(self, now: float) -> None:
        """Count one more process that has polled; calls come in the order of time."""
        if not self.count:
            self.first = now - self.at
        self.last = now - self.at
        self.count += 1


class Second(NamedTuple):
    """Counts of one second of the simulation, in the whole cluster."""

    at: float
    epoch_reads: float
    page_gets: float
    tag_reads: float
    renders: float


class Records:
    """Counters; request counters are for the followed processes."""

    def __init__(self, parameters: Parameters) -> None:
        self._factor = parameters.processes / parameters.followed
        self.requests = self.hits = self.fetched = self.stale = self.retained = self.gave_up = 0
        self.began = self.rendered = self.failed = 0
        self.outdated_hits, self.outdated_longest = 0, 0.0
        self.beyond = array("d")
        self.waits = array("d")
        self.invalidations: list[Invalidation] = []
        self.renders_of_windows: Counter[int] = Counter()
        self.herds: Counter[int] = Counter()
        self.slots = 0.0
        self.seconds: list[Second] = []
        self._last = Second(0.0, 0.0, 0.0, 0.0, 0.0)

    def served_outdated(self, seconds: float) -> None:
        """Record that a page was served as fresh ``seconds`` after its invalidation."""
        self.outdated_hits += 1
        self.outdated_longest = max(self.outdated_longest, seconds)

    def window(self, renders: int, herd: int) -> None:
        """Record that a new page replaced one that was not current."""
        self.renders_of_windows[renders] += 1
        self.herds[herd] += 1

    def tick(self, by_process: Tally, by_render: Tally) -> None:
        """Record the end of a second."""

        def so_far(kind: int) -> float:
            return self._factor * sum(by_process.reads[kind]) + sum(by_render.reads[kind])

        last, now = self._last, len(self.seconds) + 1.0
        self._last = Second(now, so_far(EPOCH), so_far(PAGE), so_far(TAG), self.began)
        self.seconds.append(Second(now, *(b - a for a, b in zip(last[1:], self._last[1:], strict=True))))


class Spread(NamedTuple):
    """A distribution; ``None`` where there are no values."""

    observed: int
    median: float | None
    p99: float | None
    most: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the distribution of the values."""
        found = sorted(value for value in values if value == value)
        if not found:
            return cls(0, None, None, None)
        return cls(len(found), found[(len(found) - 1) // 2], found[math.ceil(0.99 * len(found)) - 1], found[-1])


class Figures(NamedTuple):
    """Results for a cluster. Rates are per second; lists ``..._per_node`` have one value for each node, in order.

    ``epoch_reads``, ``tag_reads``, ``page_gets`` and ``lock_writes`` count keys. ``trips`` counts commands; one command
    asks for several keys. ``renders_per_window`` maps a number of renders to the number of windows with that many.
    ``beyond`` is how much older than ``revalidate`` a stale page was when it was served.
    ``first_sees`` and ``last_sees`` are the times from an invalidation to the first and the last followed process that
    polls. A process polls when it has a request to answer. ``outdated_longest`` is the longest time after an
    invalidation at which an older page was served as fresh.
    """

    parameters: Parameters
    followed: int
    requests: float
    served_from_l1: float
    served_from_nodes: float
    served_stale: float
    waited: float
    wait: Spread
    gave_up: float
    epoch_reads: float
    epoch_reads_per_node: tuple[float, ...]
    tag_reads: float
    page_gets: float
    page_gets_per_node: tuple[float, ...]
    page_sets: float
    lock_writes: float
    trips: float
    trips_per_node: tuple[float, ...]
    bytes: float
    bytes_per_node: tuple[float, ...]
    renders: float
    renders_in_all: int
    renders_failed: int
    renders_per_window: dict[int, int]
    herd: Spread
    beyond: Spread
    first_sees: Spread
    last_sees: Spread
    outdated_hits: int
    outdated_longest: float
    l1_pages: float
    seconds: tuple[Second, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        found = self._asdict()
        found["parameters"] = {**vars(self.parameters), "mode": self.parameters.mode.value}
        found["seconds"] = [second._asdict() for second in self.seconds]
        for name, value in found.items():
            if isinstance(value, Spread):
                found[name] = value._asdict()
        return found


def summarize(p: Parameters, records: Records, process: Tally, render: Tally, invalidation: Tally) -> Figures:
    """Return figures for the whole cluster, from the counts of followed processes, renders and invalidations."""
    factor, seconds = p.processes / p.followed, p.duration

    def per_node(what: Sequence[int], render: Sequence[int], invalidation: Sequence[int]) -> tuple[float, ...]:
        return tuple((factor * a + b + c) / seconds for a, b, c in zip(what, render, invalidation, strict=True))

    def reads(kind: int) -> tuple[float, ...]:
        return per_node(process.reads[kind], render.reads[kind], invalidation.reads[kind])

    def writes(kind: int) -> tuple[float, ...]:
        return per_node(process.writes[kind], render.writes[kind], invalidation.writes[kind])

    trips = per_node(process.trips, render.trips, invalidation.trips)
    sent = per_node(process.bytes, render.bytes, invalidation.bytes)
    herds = [size for size, count in sorted(records.herds.items()) for _ in range(count)]
    return Figures(
        parameters=p,
        followed=p.followed,
        requests=factor * records.requests / seconds,
        served_from_l1=factor * records.hits / seconds,
        served_from_nodes=factor * records.fetched / seconds,
        served_stale=factor * records.stale / seconds,
        waited=factor * len(records.waits) / seconds,
        wait=Spread.of(records.waits),
        gave_up=factor * records.gave_up / seconds,
        epoch_reads=sum(reads(EPOCH)),
        epoch_reads_per_node=reads(EPOCH),
        tag_reads=sum(reads(TAG)),
        page_gets=sum(reads(PAGE)),
        page_gets_per_node=reads(PAGE),
        page_sets=sum(writes(PAGE)),
        lock_writes=sum(writes(LOCK)),
        trips=sum(trips),
        trips_per_node=trips,
        bytes=sum(sent),
        bytes_per_node=sent,
        renders=records.began / seconds,
        renders_in_all=records.began,
        renders_failed=records.failed,
        renders_per_window=dict(sorted(records.renders_of_windows.items())),
        herd=Spread.of(herds),
        beyond=Spread.of(records.beyond),
        first_sees=Spread.of([one.first for one in records.invalidations]),
        last_sees=Spread.of([one.last for one in records.invalidations]),
        outdated_hits=records.outdated_hits,
        outdated_longest=records.outdated_longest,
        l1_pages=records.slots,
        seconds=tuple(records.seconds),
    )
