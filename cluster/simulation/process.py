"""One worker process: its cached entries, seen epochs and renders, with the real L1 and the real control plane.

Requests take the same path as in :class:`wsgi_isr.cache.lookup.Cache`, whose methods are named here. Cache itself would
wait in real time; a simulation must not.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from wsgi_isr.cache.lease import Lease
from wsgi_isr.cache.local_cache import CachedEntry, Local
from wsgi_isr.cache.tag_versions import Capture, Epochs, Polled, TagVersions
from wsgi_isr.cache.verdict import Validity, Verdict, judge
from wsgi_isr.stores.base import Store

from .site import Page, epoch_key, tag_key


class Waiting:
    """Visitors of one process who wait for a page, and their arrival times; none for a background render.

    ``alone``: the visitors have an old page to fall back on, and each looks again separately (``Cache._load``).
    """

    __slots__ = ("alone", "ignore_backoff", "pause", "visitors")

    def __init__(self, visitors: list[float], pause: float, alone: bool, ignore_backoff: bool) -> None:
        self.visitors = visitors
        self.pause = pause
        self.alone = alone
        self.ignore_backoff = ignore_backoff


class Process:
    """A worker. ``seen``: how many of all invalidations it has noticed."""

    __slots__ = ("flights", "local", "number", "polled", "seen", "tag_versions")

    def __init__(
        self, number: int, store: Store, local_cache_bytes: int, coherence: float, clock: Callable[[], float]
    ) -> None:
        self.number = number
        self.local = Local(local_cache_bytes)
        self.tag_versions = TagVersions(store, tag_key, epoch_key, coherence=coherence, monotonic=clock)
        self.polled: Polled | None = None
        self.seen = 0
        self.flights: dict[int, Waiting] = {}

    def judge(self, cached: CachedEntry, epochs: Epochs, now: float) -> Verdict:
        """Judge an entry as ``Cache._judge`` does: tag versions are compared once for each vector of epochs."""
        checked = cached.checked
        if checked is not None and (checked[0] is epochs or checked[0] == epochs):
            validity: Validity = checked[1]
        else:
            since = checked[0] if checked is not None and checked[1] is Validity.VALID else {}
            validity = self.tag_versions.validity(cached.entry.snapshot, epochs, since)
            if checked is not None and checked[1] >= Validity.EXPIRED:
                validity = max(validity, checked[1])
            cached.checked = (epochs, validity)
        return judge(cached.entry, validity, now)


class Outcome(enum.Enum):
    """The result of an attempt to render."""

    RENDERING = enum.auto()
    FOUND = enum.auto()
    BUSY = enum.auto()
    BACKING_OFF = enum.auto()


class Render(NamedTuple):
    """A render in progress; ``version`` is that of the entry that it replaces."""

    process: Process
    page: Page
    lease: Lease | None
    capture: Capture
    version: int
    started: float
    waiting: Waiting | None
