"""The local cache: the copies of entries in a process, bounded by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from .entry import Entry

#: The most fingerprints of one entry: a host has many spellings, and a query several orders.
MAX_FINGERPRINTS = 4
#: The most uses that are counted: as many times an entry is spared when the main queue has no room.
MAX_USES = 3
#: The most entries that one call spares. Otherwise all look-ups would wait while the whole queue goes around.
MAX_SPARED = 64
#: The part of the memory that the small queue may take while the main queue has entries.
SMALL_SHARE = 0.1
# The bytes of a remembered key: measured with keys of pages, which are 70 characters long.
_GHOST_BYTES = 256
# The bytes of a fingerprint besides its strings: the tuple, its places in the dict and in the entry's list.
_FINGERPRINT_BYTES = 600


class CachedEntry:
    """An entry with this process's knowledge about it. Times are monotonic seconds.

    :ivar prepared: the response that the middleware has prepared; replaced whole, so that the hot path reads it without
        a lock.
    :ivar recheck_at: the time before which the store is not asked again about a stale copy.
    :ivar backoff_until: the end of the back-off. Until then an expired copy is served.
    :ivar checked: a pair, replaced whole: the epochs at which the tag versions were last compared, and the validity.
    :ivar invalid_by: the stored name of the tag that made the entry invalid; empty without one.
    :ivar adopted: the entry belongs to the previous release, and is stale however fresh it looks.
    :ivar is_unstored: the store did not take the entry, and so cannot have evicted it.
    :ivar read_tags_at: the time from which on the tags should be read again, so that the store does not evict them.
    :ivar uses: how often the entry was asked for lately, at most :data:`MAX_USES`.
    :ivar weight: the bytes of the entry and of its fingerprints.
    :ivar fingerprints: the fingerprints of requests that lead to the entry.
    """

    __slots__ = (
        "adopted",
        "backoff_until",
        "checked",
        "entry",
        "fingerprints",
        "invalid_by",
        "is_unstored",
        "prepared",
        "read_tags_at",
        "recheck_at",
        "uses",
        "weight",
    )

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.weight = entry.size
        self.uses = 0
        self.adopted = False
        self.is_unstored = False
        self.checked: tuple[Any, Any] | None = None
        self.invalid_by = ""
        self.prepared: Any = None
        self.recheck_at = 0.0
        self.backoff_until = 0.0
        self.read_tags_at = 0.0
        self.fingerprints: list[tuple[Any, ...]] = []


class Local:
    """A cache in memory that keeps the pages that are asked for again: S3-FIFO (Yang et al., SOSP 2023).

    A new entry enters a small queue, a tenth of the memory. An entry that is asked for again there moves on to the main
    queue. Any other entry leaves, and its key is remembered: if the entry comes back soon, it enters the main queue at
    once. So a crawler that asks for each page once evicts nothing that visitors ask for. The benchmark "eviction"
    compares the policy with others.

    ``fingerprints`` maps the fingerprints of requests to entries, and is read without a lock. No replaced or evicted
    entry is in it, so that all memory is inside the bound.

    :param max_bytes: the bound; an entry that alone is larger is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._lock = threading.Lock()
        self._small: OrderedDict[str, CachedEntry] = OrderedDict()
        self._main: OrderedDict[str, CachedEntry] = OrderedDict()
        self._small_bytes = 0
        #: The keys that left the small queue last.
        self._ghosts: OrderedDict[str, None] = OrderedDict()
        self.fingerprints: dict[tuple[Any, ...], CachedEntry] = {}
        self.bytes = 0
        #: The number of entries that left for lack of room.
        self.evictions = 0

    def get(self, key: str) -> CachedEntry | None:
        """Return the entry of ``key``, and count the use; ``None`` without one.

        Responses sent by fingerprint are not counted. Each is prepared again after a second at the latest, and that
        look-up is.
        """
        with self._lock:
            cached = self._of(key)
            if cached is not None and cached.uses < MAX_USES:
                cached.uses += 1
            return cached

    def peek(self, key: str) -> CachedEntry | None:
        """Return the entry of ``key`` without a count of the use; ``None`` without one."""
        with self._lock:
            return self._of(key)

    def put(self, key: str, entry: Entry) -> CachedEntry:
        """Keep ``entry`` in place of the present one, and return it. An equal entry keeps its knowledge.

        Even an older entry is taken: the store alone is authoritative, and clocks differ. A slow thread may put an old
        copy over a newer one. The old copy is stale, and the next request reads the store again.
        """
        with self._lock:
            old = self._of(key)
            if old is not None and old.entry == entry:
                return old
            cached = CachedEntry(entry)
            if cached.weight > self._max:
                self._drop(key)
            elif old is not None:
                self._replace(key, old, cached)
            else:
                self._add(key, cached)
            self._make_room()
            return cached

    def add_alias(self, fingerprint: tuple[Any, ...], key: str, cached: CachedEntry) -> None:
        """Let ``fingerprint`` lead to ``cached``, while that is the entry of ``key``.

        If all places are taken, the oldest fingerprint goes. Refusing the new one instead would let one client take all
        places for as long as the copy lives.
        """
        with self._lock:
            if self._of(key) is not cached or fingerprint in self.fingerprints:
                return
            if len(cached.fingerprints) == MAX_FINGERPRINTS:
                oldest = cached.fingerprints.pop(0)
                del self.fingerprints[oldest]
                cached.weight -= _weight(oldest)
                self._count(key, -_weight(oldest))
            cached.fingerprints.append(fingerprint)
            self.fingerprints[fingerprint] = cached
            cached.weight += _weight(fingerprint)
            self._count(key, _weight(fingerprint))
            self._make_room()

    def drop_prepared(self) -> None:
        """Drop every prepared response, because this process knows of an invalidation."""
        with self._lock:
            for cached in self.fingerprints.values():
                cached.prepared = None

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    # Under the lock ------------------------------------------------------------------------------------

    def _of(self, key: str) -> CachedEntry | None:
        return self._main.get(key) or self._small.get(key)

    def _add(self, key: str, cached: CachedEntry) -> None:
        if key in self._ghosts:
            del self._ghosts[key]
            self.bytes -= _GHOST_BYTES
            self._main[key] = cached
        else:
            self._small[key] = cached
        self._count(key, cached.weight)

    def _replace(self, key: str, old: CachedEntry, cached: CachedEntry) -> None:
        """Put a regenerated page in the place of its old copy: its uses are those of the page."""
        self._forget_fingerprints(old)
        cached.uses = old.uses
        (self._main if key in self._main else self._small)[key] = cached
        self._count(key, cached.weight - old.weight)

    def _count(self, key: str, more: int) -> None:
        self.bytes += more
        if key in self._small:
            self._small_bytes += more

    def _drop(self, key: str) -> None:
        cached = self._of(key)
        if cached is not None:
            self._count(key, -cached.weight)
            self._small.pop(key, None)
            self._main.pop(key, None)
            self._forget_fingerprints(cached)

    def _forget_fingerprints(self, cached: CachedEntry) -> None:
        for fingerprint in cached.fingerprints:
            del self.fingerprints[fingerprint]

    def _make_room(self) -> None:
        spared = 0
        while self.bytes > self._max:
            # A single entry of the small queue is the newest one of all, and stays.
            if len(self._ghosts) >= len(self):
                self._forget_ghost()
            elif not self._main or (self._small_bytes > SMALL_SHARE * self._max and len(self._small) > 1):
                self._leave_small()
            else:
                spared += self._leave_main(is_spared=spared < MAX_SPARED)
        while len(self._ghosts) > len(self):
            self._forget_ghost()

    def _forget_ghost(self) -> None:
        self._ghosts.popitem(last=False)
        self.bytes -= _GHOST_BYTES

    def _leave_small(self) -> None:
        key, cached = next(iter(self._small.items()))
        if cached.uses:
            del self._small[key]
            self._small_bytes -= cached.weight
            cached.uses = 0
            self._main[key] = cached
        else:
            self._drop(key)
            self.evictions += 1
            self._ghosts[key] = None
            self.bytes += _GHOST_BYTES

    def _leave_main(self, is_spared: bool) -> bool:
        """Evict the oldest entry of the main queue, unless it was used and may be spared; return whether it was."""
        key, cached = next(iter(self._main.items()))
        if cached.uses and is_spared:
            cached.uses -= 1
            self._main.move_to_end(key)
            return True
        self._drop(key)
        self.evictions += 1
        return False


def _weight(fingerprint: tuple[Any, ...]) -> int:
    # The strings come from the client, and may be as long as a URL can be.
    return _FINGERPRINT_BYTES + sum(len(part) + 60 for part in fingerprint if part is not None)
