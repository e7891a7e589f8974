"""Regenerate an entry: take the lease, look again, capture, produce, prove, store.

The order is the protocol. ``tests/model`` shows the error that each missing step leads to.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from ..config.lifetime import Lifetime
from ..errors import InvalidationError, StoreError
from ..events import Events, Invalidated, Refused, Rendered, RenderFailed, StoreFailed, Unreadable
from ..stores.base import Store, Token
from .entry import Codec, Content, Entry, HitForMiss, TagSnapshot, UnreadableEntry
from .keyspace import is_given, stored_tag
from .lease import BackingOff, Busy, Lease, LeaseKeepAlive, Leases
from .local_cache import CachedEntry, Local
from .tag_versions import ABSENT, Capture, Epochs, Mode, TagVersions
from .task import AlreadyFresh, Failed, Outcome, Produce, Product, Regenerated, Task
from .verdict import Failure, Fresh, Personal, Stale, Storable, Uncacheable, Validity, Verdict, judge

#: The tags of a served copy are read even while the epochs stay. The pause is this factor times
#: :attr:`.TagVersions.read_again`.
READ_TAGS_EVERY = 1.5
#: No epochs.
_NEVER: Epochs = MappingProxyType({})


class Judged(NamedTuple):
    """A verdict, and the validity that led to it.

    Both travel together, because another thread may judge the same copy by other epochs in between.
    """

    verdict: Verdict
    validity: Validity

    @property
    def is_proven_fresh(self) -> bool:
        """Return whether the copy may go into a stored entry, which is then served as fresh."""
        return isinstance(self.verdict, (Fresh, Uncacheable)) and self.validity is not Validity.UNKNOWN

    def label(self, reply: str) -> str:
        """Return the value of ``X-ISR``: ``reply``, or ``DEGRADED`` where the validity is unknown."""
        return "DEGRADED" if self.validity is Validity.UNKNOWN else reply


class Regenerator:
    """The renders of one process.

    :param produce: renders a task; an exception is a failed render.
    :param tags_of: returns the tags of a task that are known before its render.
    :param uncacheable_ttl: the lifetime of a hit-for-miss in seconds.
    :param codec: packs and unpacks entries.
    :param clock: Unix time in seconds, comparable between processes (ages).
    :param monotonic: monotonic seconds, for durations.
    """

    def __init__(
        self,
        produce: Produce,
        tags_of: Callable[[Task], Sequence[str]],
        store: Store,
        local: Local,
        leases: Leases,
        tag_versions: TagVersions,
        events: Events,
        *,
        uncacheable_ttl: float,
        codec: Codec,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._produce = produce
        self._tags_of = tags_of
        self._store = store
        self._local = local
        self._leases = leases
        self._tag_versions = tag_versions
        self._events = events
        self._uncacheable_ttl = uncacheable_ttl
        self._codec = codec
        self._clock = clock
        self._monotonic = monotonic
        self._keeper = LeaseKeepAlive(monotonic, events)
        leases.orphaned = self._keeper.let_go

    def _judge(self, cached: CachedEntry, epochs: Epochs) -> Judged:
        """Return the verdict on a copy. Its tag versions are compared once for each vector of epochs."""
        checked = cached.checked
        if checked is not None and (checked[0] is epochs or checked[0] == epochs):
            validity: Validity = checked[1]
        else:
            since = checked[0] if checked is not None and checked[1] is Validity.VALID else _NEVER
            validity = self._tag_versions.validity(cached.entry.snapshot, epochs, since)
            if checked is not None and checked[1] >= Validity.EXPIRED:
                # Nonces are never reused: an invalid copy stays invalid, even when the node that proved it becomes
                # unreachable.
                validity = max(validity, checked[1])
            if validity is not Validity.UNKNOWN or not self._tag_versions.reachable(cached.entry.snapshot, epochs):
                # A single lost reply, with all nodes reachable, is not remembered: the next read may succeed.
                cached.checked = (epochs, validity)
        self._keep_alive(cached)
        verdict = judge(cached.entry, validity, self._clock())
        return Judged(Stale(cached.entry) if cached.adopted and isinstance(verdict, Fresh) else verdict, validity)

    def _keep_alive(self, cached: CachedEntry) -> None:
        now = self._monotonic()
        if now >= cached.read_tags_at:
            self._tag_versions.keep_alive(cached.entry.snapshot)
            cached.read_tags_at = now + self._tag_versions.read_again * READ_TAGS_EVERY * random.uniform(0.75, 1.0)

    def _read(self, task: Task, data: bytes | None) -> Entry | None:
        """Return the entry in ``data``. Unreadable bytes count as missing, and emit an event."""
        if data is None:
            return None
        try:
            return self._codec.unpack(data, task.text, task.data)
        except UnreadableEntry as error:
            self._events.emit(Unreadable(task.page, str(error)))
            return None

    def kept(self, task: Task) -> Entry | None:
        """Return the stored entry of ``task``, whatever its validity.

        :raises StoreError: the store is unreachable.
        """
        return self._read(task, self._store.get(task.page))

    def regenerate(self, task: Task, overdue: Callable[[], None] = lambda: None) -> Outcome:
        """Render and store the page, unless another process is rendering it or has just done so.

        :param overdue: called once, from another thread, if the render runs past its timeout.
        """
        lease: Lease | Busy | BackingOff | None
        try:
            lease = self._leases.acquire(task.page, task.lease, task.owner)
        except StoreError as error:
            # Without the store there is no lease: the only limit left is one flight in each process.
            self._events.emit(StoreFailed("add", task.page, error))
            lease = None
        if isinstance(lease, Busy):
            if task.refresh_tag is None:
                return lease
            lease = None
        if isinstance(lease, BackingOff):
            if task.invalidated_since_failure and (taken := self._past_back_off(task)) is not None:
                lease = taken
            elif not task.ignore_backoff:
                return lease
            else:
                lease = None
        if isinstance(lease, Busy):
            return lease
        try:
            if task.refresh_tag and (undelivered := self._mark(task.refresh_tag)):
                return Failed("undelivered", InvalidationError((), undelivered))
            # Look again. Race: this worker saw a stale page, another worker rendered, stored and released, then this
            # worker took the lease. Without this look, the page would be rendered twice in one window.
            current, token = self._gets(task)
            if current is not None:
                cached = self._local.put(task.page, current)
                if task.refresh_tag is None and self._is_proven(cached):
                    return AlreadyFresh(cached)
            return self._render(task, lease, current, token, overdue)
        finally:
            if lease is not None:
                lease.release()

    def _is_proven(self, cached: CachedEntry) -> bool:
        """Return whether a copy is current, all invalidations until now included.

        A copy of unknown validity does not save a render. The epochs are read anew: polled epochs may be older than an
        invalidation that a waiting client arrived after. Such a client would reject the copy and ask again at once.
        """
        for epochs in (self._tag_versions.epochs, self._tag_versions.ask):
            judged = self._judge(cached, epochs())
            if not is_current(judged.verdict) or judged.validity is Validity.UNKNOWN:
                return False
        return True

    def _past_back_off(self, task: Task) -> Lease | Busy | None:
        """Return the lease in place of the back-off; ``None`` where the back-off counts.

        A back-off counts unless the page was invalidated after the failure that it followed.
        """
        try:
            if self._leases.failed(task.page) == self._current_tags_digest(task):
                return None
            return self._leases.take_over(task.page, task.lease, task.owner)
        except Exception as error:  # raised by the store or by a rule's own callable: the back-off counts
            self._events.emit(StoreFailed("gets", task.page, error))
            return None

    def _current_tags_digest(self, task: Task) -> str:
        """Return the digest that a failure would be recorded with, for a render that began now."""
        current, _ = self._gets(task)
        return _tags_digest(self._tag_versions.capture(self._tags(task, current)).known)

    def _tags(self, task: Task, current: Entry | None) -> list[str]:
        """Return the tags that are known before a render, those of the current entry included."""
        return (
            [*self._tags_of(task), *(tag for tag, _ in current.snapshot.tags)] if current else list(self._tags_of(task))
        )

    def _mark(self, tag: str) -> dict[str, StoreError]:
        """Mark a tag as stale in every process, before a refresh captures its tag versions.

        The lease is held, so that no other process answers the mark with a render.

        :returns: the tags that were not delivered, each with its error.
        """
        undelivered = self._tag_versions.invalidate([stored_tag(tag)], Mode.STALE)
        self._local.drop_prepared()
        self._events.emit(Invalidated((tag,), Mode.STALE.value, tuple(undelivered)))
        return undelivered

    def _gets(self, task: Task) -> tuple[Entry | None, Token | None]:
        try:
            held = self._store.gets(task.page)
        except StoreError as error:
            self._events.emit(StoreFailed("gets", task.page, error))
            return None, None
        return (None, None) if held is None else (self._read(task, held.value), held.token)

    def _render(
        self, task: Task, lease: Lease | None, current: Entry | None, token: Token | None, overdue: Callable[[], None]
    ) -> Outcome:
        started, began = self._clock(), self._monotonic()

        try:
            # Before any data is read **[needed]**: capture the version of every tag that is known by now.
            known = self._tags_of(task)
            capture = self._tag_versions.capture(self._tags(task, current))
        except Exception as raised:  # raised by a rule's own callable
            self._failed(task, lease, "tags", raised)
            return Failed("tags")
        of = _tags_digest(capture.known)

        def give_up() -> None:
            self._failed(task, lease, "timeout", None, of)
            overdue()

        watch = self._keeper.watch(lease, task.timeout, give_up)
        error: BaseException | None = None
        product: Product
        try:
            product = self._produce(task)
            error = product.error if isinstance(product, Failure) else None
        except BaseException as raised:  # of any kind: the threads that wait for this flight need an outcome
            error, product = raised, Failure("exception")
        if not self._keeper.finish(watch):
            # The result is too late to be stored, but a client that has waited may still get it.
            late = product if isinstance(product, Failure) else Failure("timeout")
            if isinstance(product, Storable) and not isinstance(product.content, HitForMiss):
                late = Failure("timeout", product.content, product.said)
            return _failed(late._replace(reason="timeout"), error, known, capture)
        if error is not None and not isinstance(error, Exception):
            return Failed("exit", error)  # the process is stopping: not a failure of the page
        now, made = self._clock(), self._monotonic()
        if isinstance(product, Failure):
            self._failed(task, lease, product.reason, error, of)
            return _failed(product, error, known, capture)
        personal = product if isinstance(product, Personal) else None
        if isinstance(product, Personal):
            product = HitForMiss(product.reason)
        if isinstance(product, HitForMiss):
            self._events.emit(Refused(task.page, task.rule, product.reason, task.text))
            product = Storable(product, Lifetime(self._uncacheable_ttl, None), self._uncacheable_ttl + 60)
        lifetime = product.lifetime
        try:
            mints, absent = _mints(product, current)
            snapshot = self._tag_versions.prove(capture, [*known, *product.tags], dict(product.carried), mints, absent)
            entry = Entry(task.text, product.content, started, now, lifetime.revalidate, lifetime.expire, snapshot)
            packed = self._codec.pack(entry)
            if len(packed) > self._store.max_value and isinstance(entry.content, Content) and entry.content.coded:
                # The page may fit without its other content codings.
                entry = replace(entry, content=entry.content._replace(coded=()))
                packed = self._codec.pack(entry)
        except Exception as raised:  # a header or a tag is not text
            self._failed(task, lease, "unstorable", raised, of)
            return Failed("unstorable", None, product.content if isinstance(product.content, Content) else None)
        winner, stored = self._put(task, entry, packed, token, product.keep)
        over = self._monotonic()
        refused = isinstance(product.content, HitForMiss)
        self._events.emit(
            Rendered(task.page, over - began, stored, task.text, over - made, lifetime.revalidate, refused)
        )
        self._leases.forget_failures(task.page)
        cached = self._local.put(task.page, winner)
        cached.only_here = winner is entry and not stored
        return Regenerated(cached, stored, personal)

    def _is_better(self, ours: Entry, theirs: Entry) -> bool:
        epochs = self._tag_versions.epochs()
        return self._tag_versions.validity(ours.snapshot, epochs) < self._tag_versions.validity(theirs.snapshot, epochs)

    def _failed(self, task: Task, lease: Lease | None, reason: str, error: BaseException | None, of: str = "") -> None:
        pause = lease.back_off(of) if lease is not None else 0.0
        self._events.emit(RenderFailed(task.page, task.rule, reason, pause, error, task.text))

    def _put(
        self, task: Task, entry: Entry, packed: bytes, token: Token | None, keep: float | None
    ) -> tuple[Entry, bool]:
        """Store an entry by compare-and-swap.

        A late writer loses to an entry whose render started later, unless the later entry has the worse validity.

        :returns: the entry to serve, and whether the given entry was stored.
        """
        try:
            for _ in range(8):
                if token is None:
                    done = self._store.add(task.page, packed, keep)
                else:
                    done = self._store.cas(task.page, packed, token, keep)
                if done:
                    return entry, True
                theirs, token = self._gets(task)
                # Clocks differ between machines: the later start counts only unless our entry has the better validity.
                if theirs is not None and theirs.started >= entry.started and not self._is_better(entry, theirs):
                    return theirs, False
        except StoreError as error:
            self._events.emit(StoreFailed("cas", task.page, error))
        return entry, False


def _mints(product: Storable, current: Entry | None) -> tuple[Callable[[str], bool], bytes]:
    """Return which missing tags a result creates, and the version of a tag that it does not create.

    Clients can ask for any number of pages that do not exist or are uncacheable: their first result creates no tags. A
    404 that is rendered again creates the tags whose number is bounded. The epochs alone prove the other tags of a 404,
    since a tag may have been evicted after an invalidation. A hit-for-miss shows no old data: it is valid until
    the tag is created.
    """
    if isinstance(product.content, HitForMiss):
        return lambda tag: False, ABSENT
    if not product.is_negative:
        return lambda tag: True, b""
    return lambda tag: current is not None and not is_given(tag), b""


def _tags_digest(tag_versions: Mapping[str, bytes]) -> str:
    """Return a digest of tag versions: it differs before and after an invalidation."""
    return digest(b"".join(tag_versions[tag] for tag in sorted(tag_versions))).hex()


def digest(data: bytes) -> bytes:
    """Return a digest that tells one stored entry from another."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _failed(failure: Failure, error: BaseException | None, known: Sequence[str], capture: Capture) -> Failed:
    """Return a failure with the tag snapshot from before the render.

    The snapshot covers the content of the failure: that may be from before an invalidation.
    """
    shows = failure.content is not None or failure.said is not None
    return Failed(
        failure.reason, error, failure.content, failure.said, capture.snapshot(known) if shows else TagSnapshot()
    )


def is_current(verdict: Verdict) -> bool:
    """Return whether a copy needs no render."""
    return isinstance(verdict, Fresh) or (isinstance(verdict, Uncacheable) and not verdict.due)
