"""L1: the copies of entries that a process keeps, bounded by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from .entry import Entry

#: Raw requests that lead straight to one copy, at most: spellings of a host are many.
MAX_PROBES = 4
# What a probe takes besides its strings: the tuple, its places in the dict and in the slot's list.
_PROBE_BYTES = 600


class CachedEntry:
    """One entry with what this process knows about it.

    ``ready`` belongs to the face that serves it (an answer prepared for the next moments); it is only
    ever replaced whole, so that the hot path can read it without a lock. ``look_at`` is the monotonic
    time before which the store is not asked again about a stale copy; ``resting_until`` the one before
    which an expired copy is served because its last render failed. ``checked`` is a pair, replaced whole: the
    epochs at which the stamps of the copy were compared last, and the standing that came of it.
    ``adopted``: it belongs to the release before this one, and is stale however fresh it looks.
    ``only_here``: the store did not take it, and so cannot have forgotten it.
    ``read_tags_at``: the monotonic time from which on its tags should be read again, for the store not to evict them.
    """

    __slots__ = (
        "adopted",
        "checked",
        "entry",
        "look_at",
        "only_here",
        "probes",
        "read_tags_at",
        "ready",
        "resting_until",
    )

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.adopted = False
        self.only_here = False
        self.checked: tuple[Any, Any] | None = None
        self.ready: Any = None
        self.look_at = 0.0
        self.resting_until = 0.0
        self.read_tags_at = 0.0
        self.probes: list[tuple[Any, ...]] = []


class Local:
    """The least recently used entries go first.

    ``probes`` maps raw requests to slots; reading it takes no lock. It never holds a slot that was
    replaced or evicted, so the memory it reaches is inside the bound.

    :param max_bytes: the bound; an entry that alone is larger is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._lock = threading.Lock()
        self._slots: OrderedDict[str, CachedEntry] = OrderedDict()
        self.probes: dict[tuple[Any, ...], CachedEntry] = {}
        self.bytes = 0

    def get(self, key: str) -> CachedEntry | None:
        """The slot of ``key``, now the most recently used."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                self._slots.move_to_end(key)
            return slot

    def put(self, key: str, entry: Entry) -> CachedEntry:
        """Keep ``entry`` in place of whatever was here. The same one keeps its slot, and what is known of it.

        Not even an older one is refused: the store is the only truth, clocks differ, and a copy that a
        slow thread puts back over a newer one is stale and looked up again by the next request.
        """
        with self._lock:
            old = self._slots.get(key)
            if old is not None and old.entry == entry:
                self._slots.move_to_end(key)
                return old
            self._drop(key)
            slot = CachedEntry(entry)
            if entry.size <= self._max:
                self._slots[key] = slot
                self._take(entry.size)
            return slot

    def lead(self, probe: tuple[Any, ...], key: str, slot: CachedEntry) -> None:
        """Let the raw request ``probe`` lead straight to ``slot``, while it is the one of ``key``.

        It takes the place of the oldest one, if all are taken. Refusing it instead would let one client take all places
        for as long as the copy lives.
        """
        with self._lock:
            if self._slots.get(key) is not slot or probe in self.probes:
                return
            if len(slot.probes) == MAX_PROBES:
                oldest = slot.probes.pop(0)
                del self.probes[oldest]
                self.bytes -= _weight(oldest)
            slot.probes.append(probe)
            self.probes[probe] = slot
            self._take(_weight(probe))

    def drop_prepared(self) -> None:
        """Take back every prepared answer: this process knows of an invalidation."""
        with self._lock:
            for slot in self.probes.values():
                slot.ready = None

    def __len__(self) -> int:
        return len(self._slots)

    def _drop(self, key: str) -> None:
        slot = self._slots.pop(key, None)
        if slot is not None:
            self.bytes -= slot.entry.size + sum(map(_weight, slot.probes))
            for probe in slot.probes:
                del self.probes[probe]

    def _take(self, size: int) -> None:
        self.bytes += size
        while self.bytes > self._max:
            self._drop(next(iter(self._slots)))


def _weight(probe: tuple[Any, ...]) -> int:
    # It holds what the client sent, which may be as long as a URL can be.
    return _PROBE_BYTES + sum(len(part) + 60 for part in probe if part is not None)
