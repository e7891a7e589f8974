"""One worker process: what it keeps and has seen, with the real L1 and the real control plane.

The way of a request is that of :class:`wsgi_isr.cache.lookup.Cache`, whose methods are named here; Cache itself would
wait, and time is not to pass in here.
"""

from __future__ import annotations

from collections.abc import Callable

from wsgi_isr.cache.local_cache import CachedEntry, Local
from wsgi_isr.cache.tag_versions import Epochs, Polled, TagVersions
from wsgi_isr.cache.verdict import Validity, Verdict, judge
from wsgi_isr.stores.base import Store

from .site import epoch_key, tag_key


class Waiting:
    """Visitors of one process who wait for a page, and when each of them came; none, for a background render.

    ``alone``: they have an old page to fall back on, and look again each for themselves (``Cache._obtain``).
    """

    __slots__ = ("alone", "ignore_backoff", "pause", "visitors")

    def __init__(self, visitors: list[float], pause: float, alone: bool, ignore_backoff: bool) -> None:
        self.visitors = visitors
        self.pause = pause
        self.alone = alone
        self.ignore_backoff = ignore_backoff


class Process:
    """A worker. ``seen``: how many of all invalidations it has noticed."""

    __slots__ = ("flights", "local", "number", "polled", "seen", "stamps")

    def __init__(
        self, number: int, store: Store, local_cache_bytes: int, coherence: float, clock: Callable[[], float]
    ) -> None:
        self.number = number
        self.local = Local(local_cache_bytes)
        self.stamps = TagVersions(store, tag_key, epoch_key, coherence=coherence, monotonic=clock)
        self.polled: Polled | None = None
        self.seen = 0
        self.flights: dict[int, Waiting] = {}

    def judge(self, slot: CachedEntry, epochs: Epochs, now: float) -> Verdict:
        """``Cache._judge``: stamps are compared once for each vector of epochs."""
        checked = slot.checked
        if checked is not None and (checked[0] is epochs or checked[0] == epochs):
            standing: Validity = checked[1]
        else:
            since = checked[0] if checked is not None and checked[1] is Validity.VALID else {}
            standing = self.stamps.standing(slot.entry.proof, epochs, since)
            if checked is not None and checked[1] >= Validity.EXPIRED:
                standing = max(standing, checked[1])
            slot.checked = (epochs, standing)
        return judge(slot.entry, standing, now)
