"""The local cache: the copies of entries in a process, bounded by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from .entry import Entry

#: The most aliases of one entry. An alias is a raw request, and a host has many spellings.
MAX_FINGERPRINTS = 4
# The bytes of an alias besides its strings: the tuple, its places in the dict and in the entry's list.
_ALIAS_BYTES = 600


class CachedEntry:
    """An entry with this process's knowledge about it. Times are monotonic seconds.

    :ivar prepared: the response that the middleware has prepared; replaced whole, so that the hot path reads it without
        a lock.
    :ivar recheck_at: the time before which the store is not asked again about a stale copy.
    :ivar backoff_until: the end of the back-off. Until then an expired copy is served.
    :ivar checked: a pair, replaced whole: the epochs at which the tag versions were last compared, and the validity.
    :ivar adopted: the entry belongs to the previous release, and is stale however fresh it looks.
    :ivar is_unstored: the store did not take the entry, and so cannot have evicted it.
    :ivar read_tags_at: the time from which on the tags should be read again, so that the store does not evict them.
    :ivar fingerprints: the aliases that lead to the entry.
    """

    __slots__ = (
        "adopted",
        "backoff_until",
        "checked",
        "entry",
        "fingerprints",
        "is_unstored",
        "prepared",
        "read_tags_at",
        "recheck_at",
    )

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.adopted = False
        self.is_unstored = False
        self.checked: tuple[Any, Any] | None = None
        self.prepared: Any = None
        self.recheck_at = 0.0
        self.backoff_until = 0.0
        self.read_tags_at = 0.0
        self.fingerprints: list[tuple[Any, ...]] = []


class Local:
    """A cache that evicts the least recently used entry first.

    ``fingerprints`` maps the fingerprints of requests to entries, and is read without a lock. No replaced or evicted
    entry is in it, so that all memory is inside the bound.

    :param max_bytes: the bound; an entry that alone is larger is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, CachedEntry] = OrderedDict()
        self.fingerprints: dict[tuple[Any, ...], CachedEntry] = {}
        self.bytes = 0

    def get(self, key: str) -> CachedEntry | None:
        """Return the entry of ``key``, now the most recently used; ``None`` without one."""
        with self._lock:
            cached = self._entries.get(key)
            if cached is not None:
                self._entries.move_to_end(key)
            return cached

    def put(self, key: str, entry: Entry) -> CachedEntry:
        """Keep ``entry`` in place of the present one, and return it. An equal entry keeps its knowledge.

        Even an older entry is taken: the store alone is authoritative, and clocks differ. A slow thread may put an old
        copy over a newer one. The old copy is stale, and the next request reads the store again.
        """
        with self._lock:
            old = self._entries.get(key)
            if old is not None and old.entry == entry:
                self._entries.move_to_end(key)
                return old
            self._evict(key)
            cached = CachedEntry(entry)
            if entry.size <= self._max:
                self._entries[key] = cached
                self._grow(entry.size)
            return cached

    def add_alias(self, fingerprint: tuple[Any, ...], key: str, cached: CachedEntry) -> None:
        """Add the alias ``fingerprint``, a raw request, to ``cached``, while that is the entry of ``key``.

        If all places are taken, the oldest alias goes. Refusing the new one instead would let one client take all
        places for as long as the copy lives.
        """
        with self._lock:
            if self._entries.get(key) is not cached or fingerprint in self.fingerprints:
                return
            if len(cached.fingerprints) == MAX_FINGERPRINTS:
                oldest = cached.fingerprints.pop(0)
                del self.fingerprints[oldest]
                self.bytes -= _weight(oldest)
            cached.fingerprints.append(fingerprint)
            self.fingerprints[fingerprint] = cached
            self._grow(_weight(fingerprint))

    def drop_prepared(self) -> None:
        """Drop every prepared response, because this process knows of an invalidation."""
        with self._lock:
            for cached in self.fingerprints.values():
                cached.prepared = None

    def __len__(self) -> int:
        return len(self._entries)

    def _evict(self, key: str) -> None:
        cached = self._entries.pop(key, None)
        if cached is not None:
            self.bytes -= cached.entry.size + sum(map(_weight, cached.fingerprints))
            for fingerprint in cached.fingerprints:
                del self.fingerprints[fingerprint]

    def _grow(self, size: int) -> None:
        self.bytes += size
        while self.bytes > self._max:
            self._evict(next(iter(self._entries)))


def _weight(fingerprint: tuple[Any, ...]) -> int:
    # The strings come from the client, and may be as long as a URL can be.
    return _ALIAS_BYTES + sum(len(part) + 60 for part in fingerprint if part is not None)
