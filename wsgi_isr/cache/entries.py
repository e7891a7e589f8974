"""Read the entries of a store and the copies of this process, and judge them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

from ..errors import StoreError
from ..events import Events, StoreFailed, Unreadable
from ..stores.base import Store, Token
from .entry import Codec, Entry, HitForMiss, UnreadableEntry
from .local_cache import CachedEntry, Local
from .releases import Releases
from .tag_versions import Epochs, TagVersions
from .task import Task
from .verdict import Expired, Fresh, Stale, Uncacheable, Validity, Verdict, judge

#: The tags of a served copy are read even while the epochs stay. The pause is this factor times
#: :attr:`.TagVersions.read_again`.
READ_TAGS_EVERY = 1.5
#: No epochs.
_NEVER: Epochs = MappingProxyType({})


class Judged(NamedTuple):
    """A verdict, and the validity that led to it.

    Both travel together, because another thread may judge the same copy by other epochs in between.

    :param cause: why the copy is not fresh: ``time``, ``tag:`` and the stored name of a tag, or ``release``; empty for
        a fresh copy, and without any copy.
    """

    verdict: Verdict
    validity: Validity
    cause: str = ""

    @property
    def is_current(self) -> bool:
        """Return whether the copy needs no render."""
        return isinstance(self.verdict, Fresh) or (isinstance(self.verdict, Uncacheable) and not self.verdict.due)

    @property
    def trigger(self) -> str:
        """Return why a render follows: the kind of the cause, or ``miss``."""
        return self.cause.partition(":")[0] or "miss"

    @property
    def is_proven_fresh(self) -> bool:
        """Return whether the copy may go into a stored entry, which is then served as fresh."""
        return isinstance(self.verdict, (Fresh, Uncacheable)) and self.validity is not Validity.UNKNOWN

    def without_store(self, cached: CachedEntry) -> Judged:
        """Return the verdict on a copy in memory that the store does not have.

        The store may have evicted a later answer as well, a 404 or a hit-for-miss. A stale copy does not rule that out,
        and is a fallback for errors only.
        """
        if isinstance(self.verdict, Stale) and not cached.is_unstored:
            return self._replace(verdict=Expired(cached.entry))
        return self

    def label(self, reply: str) -> str:
        """Return the value of ``X-ISR``: ``reply``, or ``DEGRADED`` where the validity is unknown."""
        return "DEGRADED" if self.validity is Validity.UNKNOWN else reply


class Entries:
    """The entries of a store, and the copies of this process.

    :param codec: packs and unpacks entries.
    :param clock: Unix time in seconds, comparable between processes (ages).
    :param monotonic: monotonic seconds, for durations.
    :param releases: the release of this process, and the one whose pages it adopts; ``None`` where it adopts none.
    """

    def __init__(
        self,
        store: Store,
        local: Local,
        tag_versions: TagVersions,
        codec: Codec,
        events: Events,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        releases: Releases | None = None,
    ) -> None:
        self.store = store
        self.local = local
        self.tag_versions = tag_versions
        self.codec = codec
        self.events = events
        self.clock = clock
        self.monotonic = monotonic
        self.releases = releases

    # Reading -----------------------------------------------------------------------------------------

    def get(self, task: Task) -> Entry | None:
        """Return the stored entry of ``task``, whatever its validity.

        :raises StoreError: the store is unreachable.
        """
        return self.unpack(task, self.store.get(task.page))

    def gets(self, task: Task) -> tuple[Entry | None, Token | None]:
        """Return the stored entry and its token. An unreachable store counts as empty, and emits an event."""
        try:
            held = self.store.gets(task.page)
        except StoreError as error:
            self.events.emit(StoreFailed("gets", task.page, error))
            return None, None
        return (None, None) if held is None else (self.unpack(task, held.value), held.token)

    def unpack(self, task: Task, data: bytes | None) -> Entry | None:
        """Return the entry in ``data``. Unreadable bytes count as missing, and emit an event."""
        if data is None:
            return None
        try:
            return self.codec.unpack(data, task.text, task.data)
        except UnreadableEntry as error:
            self.events.emit(Unreadable(task.page, str(error)))
            return None

    def digest(self, entry: Entry) -> bytes:
        """Return the digest of an entry's bytes in the store, which tells it from other entries."""
        return digest(self.codec.pack(entry))

    def adopt(self, task: Task) -> CachedEntry | None:
        """Return the page of the previous release, to be served as stale; ``None`` without one.

        A new release thus starts without a thundering herd, and no client waits.

        :raises StoreError: the store is unreachable.
        """
        if self.releases is None or task.data or (former := self.releases.former_page(task)) is None:
            return None
        entry = self.unpack(task, self.store.get(former))
        if entry is None or isinstance(entry.content, HitForMiss):
            return None
        cached = self.local.put(task.page, entry)
        cached.adopted = True
        return cached

    # Judging -----------------------------------------------------------------------------------------

    def judge(self, cached: CachedEntry, epochs: Epochs) -> Judged:
        """Return the verdict on a copy. Its tag versions are compared once for each vector of epochs."""
        checked = cached.checked
        if checked is not None and (checked[0] is epochs or checked[0] == epochs):
            validity: Validity = checked[1]
            by = cached.invalid_by
        else:
            since = checked[0] if checked is not None and checked[1] is Validity.VALID else _NEVER
            validity, by = self.tag_versions.compared(cached.entry.snapshot, epochs, since)
            if checked is not None and checked[1] >= Validity.EXPIRED:
                # Nonces are never reused: an invalid copy stays invalid, even when the node that proved it becomes
                # unreachable.
                validity, by = max(validity, checked[1]), by or cached.invalid_by
            if validity is not Validity.UNKNOWN or not self.tag_versions.reachable(cached.entry.snapshot, epochs):
                # A single lost reply, with all nodes reachable, is not remembered: the next read may succeed.
                cached.invalid_by = by
                cached.checked = (epochs, validity)
        self.keep_tags_alive(cached, self.monotonic())
        verdict = judge(cached.entry, validity, self.clock())
        if isinstance(verdict, Fresh):
            return Judged(Stale(cached.entry), validity, "release") if cached.adopted else Judged(verdict, validity)
        return Judged(verdict, validity, f"tag:{by}" if validity >= Validity.STALE else "time")

    def keep_tags_alive(self, cached: CachedEntry, now: float) -> None:
        """Have the tags of a served copy read with the next epochs, if that is due. The store is not asked here."""
        if now >= cached.read_tags_at:
            self.tag_versions.keep_alive(cached.entry.snapshot)
            cached.read_tags_at = now + self.tag_versions.read_again * READ_TAGS_EVERY * random.uniform(0.75, 1.0)

    def is_current_now(self, cached: CachedEntry) -> bool:
        """Return whether a copy is current, all invalidations until now included.

        A copy of unknown validity does not save a render. The epochs are read anew: polled epochs may be older than an
        invalidation that a waiting client arrived after. Such a client would reject the copy and ask again at once.
        """
        for epochs in (self.tag_versions.epochs, self.tag_versions.ask):
            judged = self.judge(cached, epochs())
            if not judged.is_current or judged.validity is Validity.UNKNOWN:
                return False
        return True

    def is_better(self, ours: Entry, theirs: Entry) -> bool:
        """Return whether ``ours`` has the better validity."""
        epochs = self.tag_versions.epochs()
        return self.tag_versions.validity(ours.snapshot, epochs) < self.tag_versions.validity(theirs.snapshot, epochs)


def digest(data: bytes) -> bytes:
    """Return a digest that tells one stored entry from another."""
    return hashlib.blake2b(data, digest_size=16).digest()
