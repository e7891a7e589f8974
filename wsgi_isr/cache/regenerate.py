"""The one render: under the lock, look again, capture, produce, prove, store.

In this order: each step is one of the protocol's, and what goes wrong without it is in ``tests/model``.
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

#: When the tags of a copy that is being served are looked at, whether the epochs have changed or not: in times of the
#: seconds after which a tag is read again.
READ_TAGS_EVERY = 1.5
#: No epochs.
_NEVER: Epochs = MappingProxyType({})


class Judged(NamedTuple):
    """A verdict, and the standing that led to it. They travel together: another thread may judge the same
    copy by other epochs in between."""

    verdict: Verdict
    standing: Validity

    @property
    def is_proven_fresh(self) -> bool:
        """Fit to go into something that is stored, and shown as new."""
        return isinstance(self.verdict, (Fresh, Uncacheable)) and self.standing is not Validity.UNKNOWN

    def label(self, word: str) -> str:
        """The word for ``X-ISR``, unless the copy could not be proven."""
        return "DEGRADED" if self.standing is Validity.UNKNOWN else word


class Regenerator:
    """The renders of one process.

    :param produce: renders a task; an exception from it is a failed render.
    :param tags_of: the tags that a task's page has before it is rendered.
    :param uncacheable_ttl: seconds for which it is remembered that a page may not be stored.
    :param codec: how entries are stored.
    :param clock: Unix time in seconds, comparable between processes (ages). :param monotonic: seconds for durations.
    """

    def __init__(
        self,
        produce: Produce,
        tags_of: Callable[[Task], Sequence[str]],
        store: Store,
        local: Local,
        leases: Leases,
        stamps: TagVersions,
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
        self._stamps = stamps
        self._events = events
        self._uncacheable_ttl = uncacheable_ttl
        self._codec = codec
        self._clock = clock
        self._monotonic = monotonic
        self._keeper = LeaseKeepAlive(monotonic, events)
        leases.orphaned = self._keeper.let_go

    def _judge(self, slot: CachedEntry, epochs: Epochs) -> Judged:
        """What a copy is worth; its stamps are compared once for each vector of epochs."""
        checked = slot.checked
        if checked is not None and (checked[0] is epochs or checked[0] == epochs):
            standing: Validity = checked[1]
        else:
            since = checked[0] if checked is not None and checked[1] is Validity.VALID else _NEVER
            standing = self._stamps.standing(slot.entry.proof, epochs, since)
            if checked is not None and checked[1] >= Validity.EXPIRED:
                # Nonces are never used again: what was invalid once is so for ever, and stays so when the
                # node that knew it goes away.
                standing = max(standing, checked[1])
            if standing is not Validity.UNKNOWN or not self._stamps.reachable(slot.entry.proof, epochs):
                # One answer that was lost on the way says nothing about the next: that is not remembered.
                slot.checked = (epochs, standing)
        self._keep_alive(slot)
        verdict = judge(slot.entry, standing, self._clock())
        return Judged(Stale(slot.entry) if slot.adopted and isinstance(verdict, Fresh) else verdict, standing)

    def _keep_alive(self, slot: CachedEntry) -> None:
        now = self._monotonic()
        if now >= slot.read_tags_at:
            self._stamps.keep_alive(slot.entry.proof)
            slot.read_tags_at = now + self._stamps.read_again * READ_TAGS_EVERY * random.uniform(0.75, 1.0)

    def _read(self, task: Task, data: bytes | None) -> Entry | None:
        """Unreadable counts as missing, and is said."""
        if data is None:
            return None
        try:
            return self._codec.unpack(data, task.text, task.data)
        except UnreadableEntry as error:
            self._events.emit(Unreadable(task.page, str(error)))
            return None

    def kept(self, task: Task) -> Entry | None:
        """What the store has for ``task``, whatever it is worth. :raises StoreError: it cannot be asked."""
        return self._read(task, self._store.get(task.page))

    def regenerate(self, task: Task, overdue: Callable[[], None] = lambda: None) -> Outcome:
        """Render and store the page, if nobody else does and nobody just did.

        ``overdue`` is called once, from another thread, if the render runs past its timeout.
        """
        lease: Lease | Busy | BackingOff | None
        try:
            lease = self._leases.acquire(task.page, task.lease, task.owner)
        except StoreError as error:
            # No store, no lock: one flight in each process is what is left.
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
            # Look again. We saw a stale page; another worker rendered, stored and released; then we got
            # the lock. Without this look we would render a second time in one window.
            current, token = self._gets(task)
            if current is not None:
                slot = self._local.put(task.page, current)
                if task.refresh_tag is None and self._is_proven(slot):
                    return AlreadyFresh(slot)
            return self._render(task, lease, current, token, overdue)
        finally:
            if lease is not None:
                lease.release()

    def _is_proven(self, slot: CachedEntry) -> bool:
        """Return whether a copy is current, with all that was invalidated until now. A copy that cannot be proven is no
        reason not to render.

        Polled epochs may be older than an invalidation that a waiting visitor came after. The copy would not do for
        that visitor, who would come back at once for another look.
        """
        for epochs in (self._stamps.epochs, self._stamps.ask):
            judged = self._judge(slot, epochs())
            if not is_current(judged.verdict) or judged.standing is Validity.UNKNOWN:
                return False
        return True

    def _past_back_off(self, task: Task) -> Lease | Busy | None:
        """Where the last failure was one of the page before it was invalidated, the lease in place of the back-off."""
        try:
            if self._leases.failed(task.page) == self._told_now(task):
                return None
            return self._leases.take_over(task.page, task.lease, task.owner)
        except Exception as error:  # the store's trouble, or a rule's own callable: then the back-off counts
            self._events.emit(StoreFailed("gets", task.page, error))
            return None

    def _told_now(self, task: Task) -> str:
        """What a render that began now would be one ``of`` if it failed."""
        current, _ = self._gets(task)
        return _told(self._stamps.capture(self._tags(task, current)).known)

    def _tags(self, task: Task, current: Entry | None) -> list[str]:
        """Those that can be known before a render, those of the last one included."""
        return [*self._tags_of(task), *(tag for tag, _ in current.proof.tags)] if current else list(self._tags_of(task))

    def _mark(self, tag: str) -> dict[str, StoreError]:
        """Before a refresh captures its stamps: what there is now is stale, in every process. The lock is held, so
        that nobody renders for it meanwhile. Returns what could not be delivered."""
        undelivered = self._stamps.invalidate([stored_tag(tag)], Mode.STALE)
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
            # Before any data is read **[needed]**: the stamps of every tag that can be known by now.
            known = self._tags_of(task)
            capture = self._stamps.capture(self._tags(task, current))
        except Exception as raised:  # a rule's own callable
            self._failed(task, lease, "tags", raised)
            return Failed("tags")
        of = _told(capture.known)

        def give_up() -> None:
            self._failed(task, lease, "timeout", None, of)
            overdue()

        watch = self._keeper.watch(lease, task.timeout, give_up)
        error: BaseException | None = None
        product: Product
        try:
            product = self._produce(task)
            error = product.error if isinstance(product, Failure) else None
        except BaseException as raised:  # whatever it is, whoever waits for this flight must hear of it
            error, product = raised, Failure("exception")
        if not self._keeper.finish(watch):
            # Too late to be stored, but good enough for a visitor who has waited all the same.
            late = product if isinstance(product, Failure) else Failure("timeout")
            if isinstance(product, Storable) and not isinstance(product.content, HitForMiss):
                late = Failure("timeout", product.content, product.said)
            return _failed(late._replace(reason="timeout"), error, known, capture)
        if error is not None and not isinstance(error, Exception):
            return Failed("exit", error)  # the process is being stopped; that is not the page's fault
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
            proof = self._stamps.prove(capture, [*known, *product.tags], dict(product.carried), mints, absent)
            entry = Entry(task.text, product.content, started, now, lifetime.revalidate, lifetime.expire, proof)
            packed = self._codec.pack(entry)
            if len(packed) > self._store.max_value and isinstance(entry.content, Content) and entry.content.coded:
                # There may be room for the page, if not for all its codings.
                entry = replace(entry, content=entry.content._replace(coded=()))
                packed = self._codec.pack(entry)
        except Exception as raised:  # a header or a tag that is no text after all
            self._failed(task, lease, "unstorable", raised, of)
            return Failed("unstorable", None, product.content if isinstance(product.content, Content) else None)
        winner, stored = self._put(task, entry, packed, token, product.keep)
        over = self._monotonic()
        refused = isinstance(product.content, HitForMiss)
        self._events.emit(
            Rendered(task.page, over - began, stored, task.text, over - made, lifetime.revalidate, refused)
        )
        self._leases.forget_failures(task.page)
        slot = self._local.put(task.page, winner)
        slot.only_here = winner is entry and not stored
        return Regenerated(slot, stored, personal)

    def _is_better(self, ours: Entry, theirs: Entry) -> bool:
        epochs = self._stamps.epochs()
        return self._stamps.standing(ours.proof, epochs) < self._stamps.standing(theirs.proof, epochs)

    def _failed(self, task: Task, lease: Lease | None, reason: str, error: BaseException | None, of: str = "") -> None:
        pause = lease.rest(of) if lease is not None else 0.0
        self._events.emit(RenderFailed(task.page, task.rule, reason, pause, error, task.text))

    def _put(
        self, task: Task, entry: Entry, packed: bytes, token: Token | None, keep: float | None
    ) -> tuple[Entry, bool]:
        """Store by compare-and-swap; a late writer loses to a page whose render started after its own, unless
        that one is worse proven.

        Returns what is to be served, and whether our entry was stored.
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
                # Clocks differ between machines: that theirs started later counts unless ours is better proven.
                if theirs is not None and theirs.started >= entry.started and not self._is_better(entry, theirs):
                    return theirs, False
        except StoreError as error:
            self._events.emit(StoreFailed("cas", task.page, error))
        return entry, False


def _mints(product: Storable, current: Entry | None) -> tuple[Callable[[str], bool], bytes]:
    """Return which tags come into being with an answer, and the stamp of those that do not.

    Clients can ask for any number of pages that are not there, or not for the cache. Such an answer brings none into
    being, unless it is one that is asked for again: then those of a fixed number. A 404 is proven by the epochs alone,
    since a tag may have been evicted after an invalidation. A refusal shows nothing old: it is held against the tag,
    should that come into being.
    """
    if isinstance(product.content, HitForMiss):
        return lambda tag: False, ABSENT
    if not product.is_negative:
        return lambda tag: True, b""
    return lambda tag: current is not None and not is_given(tag), b""


def _told(stamps: Mapping[str, bytes]) -> str:
    """What tells a render before an invalidation from one after it."""
    return digest(b"".join(stamps[tag] for tag in sorted(stamps))).hex()


def digest(data: bytes) -> bytes:
    """What tells one stored page from another."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _failed(failure: Failure, error: BaseException | None, known: Sequence[str], capture: Capture) -> Failed:
    """With the proof from before: what it has to show, or what is made of its failure, may be from before an
    invalidation."""
    shows = failure.content is not None or failure.said is not None
    return Failed(
        failure.reason, error, failure.content, failure.said, capture.proof(known) if shows else TagSnapshot()
    )


def is_current(verdict: Verdict) -> bool:
    """Whether there is nothing to be done about a copy."""
    return isinstance(verdict, Fresh) or (isinstance(verdict, Uncacheable) and not verdict.due)
