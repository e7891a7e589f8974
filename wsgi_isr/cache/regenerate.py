"""Regenerate an entry: take the lease, look again, capture, produce, prove, store.

The order is the protocol. ``tests/model`` shows the error that each missing step leads to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..config.lifetime import Lifetime
from ..errors import InvalidationError, StoreError
from ..events import (
    InternalError,
    Invalidated,
    Refused,
    Rendered,
    RenderEnded,
    RenderFailed,
    RenderStarted,
    StoreFailed,
)
from ..stores.base import Token
from .entries import Entries, digest
from .entry import Content, Entry, HitForMiss, TagSnapshot
from .keyspace import is_given, stored_tag
from .lease import BackingOff, Busy, Lease, LeaseKeepAlive, Leases
from .tag_versions import ABSENT, Capture, Mode
from .task import AlreadyFresh, Attempt, Failed, Outcome, Produce, Product, Regenerated, Task
from .timeline import rendering_as
from .verdict import NEGATIVE_STATUSES, STORE_GRACE, Failure, Personal, Storable


class _Begin(NamedTuple):
    """The begin of a render, for its events.

    :param monotonic: monotonic seconds.
    :param cpu: seconds of the CPU time of ``thread``, which renders.
    """

    trigger: str
    monotonic: float
    cpu: float
    thread: int

    def cpu_seconds(self) -> float:
        """Return the CPU time since the begin in seconds; 0 in another thread."""
        return time.thread_time() - self.cpu if threading.get_ident() == self.thread else 0.0


class _Render(NamedTuple):
    """A render in progress.

    :param lease: ``None`` where the store is unreachable, or another process renders as well.
    :param current: the entry in the store before the render.
    :param token: the token of that entry.
    :param known: the tags that were known before the render.
    :param capture: the versions of these tags, and of the tags of the current entry.
    :param started: Unix time in seconds at the start.
    """

    task: Task
    lease: Lease | None
    current: Entry | None
    token: Token | None
    known: Sequence[str]
    capture: Capture
    started: float
    begin: _Begin

    def failed(self, failure: Failure, error: BaseException | None) -> Failed:
        """Return a failure with the tag snapshot from before the render.

        The snapshot covers the content of the failure: that may be from before an invalidation.
        """
        shows = failure.content is not None or failure.directives is not None
        snapshot = self.capture.snapshot(self.known) if shows else TagSnapshot()
        return Failed(failure.reason, error, failure.content, failure.directives, snapshot)


class _Packed(NamedTuple):
    """A result as an entry, ready to be stored for ``ttl`` seconds. The other fields are those of its product."""

    entry: Entry
    data: bytes
    ttl: float | None
    source: str = ""
    used: tuple[str, ...] = ()


class Regenerator:
    """The renders of one process.

    :param produce: renders a task; an exception is a failed render.
    :param tags_of: returns the tags of a task that are known before its render. It raises :class:`~.task.Unknown` for a
        task that this process cannot render.
    :param uncacheable_ttl: the lifetime of a hit-for-miss in seconds.
    """

    def __init__(
        self,
        entries: Entries,
        leases: Leases,
        keep_alive: LeaseKeepAlive,
        produce: Produce,
        tags_of: Callable[[Task], Sequence[str]],
        uncacheable_ttl: float,
    ) -> None:
        self._entries = entries
        self._leases = leases
        self._keep_alive = keep_alive
        self._produce = produce
        self.tags_of = tags_of
        self._uncacheable_ttl = uncacheable_ttl
        self._emit = entries.events.emit

    def regenerate(self, task: Task, attempt: Attempt, overdue: Callable[[], None] = lambda: None) -> Outcome:
        """Render and store the page, unless another process is rendering it or has just done so.

        :param overdue: called once, from another thread, if the render runs past its timeout.
        """
        lease = self._acquire(task, attempt)
        if isinstance(lease, (Busy, BackingOff)):
            return lease
        try:
            with rendering_as(attempt.role):
                outcome = self._render_unless_current(task, attempt, lease, overdue)
        finally:
            if lease is not None:
                lease.release()
        self._record_release(task, outcome)
        return outcome

    def in_backoff(self, task: Task) -> bool:
        """Return whether the page of ``task`` is in a back-off.

        :raises StoreError: the store is unreachable.
        """
        return self._leases.in_backoff(task.page)

    def back_off(self, task: Task, owner: bytes) -> None:
        """Turn the lock of a process that has died into a back-off.

        :param owner: the start of the lock's token.
        """
        try:
            if (lease := self._leases.held_by(task.page, owner)) is not None:
                lease.back_off(self._current_tags_digest(task))
        except Exception:  # raised by the store, or by a rule's own callable
            pass  # the lock lapses by itself

    def close(self) -> None:
        """Release the leases of all renders in progress: their results are not stored."""
        self._keep_alive.close()

    # The lease ---------------------------------------------------------------------------------------

    def _acquire(self, task: Task, attempt: Attempt) -> Lease | Busy | BackingOff | None:
        """Return the lease, or the reason why the page is not rendered; ``None`` to render without a lease."""
        try:
            lease = self._leases.acquire(task.page, task.limits.lease, attempt.owner)
        except StoreError as error:
            # Without the store there is no lease: the only limit left is one flight in each process.
            self._emit(StoreFailed("add", task.page, error))
            return None
        if isinstance(lease, Busy):
            return lease if attempt.refresh_tag is None else None
        if isinstance(lease, BackingOff):
            if attempt.invalidated_since_failure and (taken := self._take_over_backoff(task, attempt)) is not None:
                return taken
            return None if attempt.ignore_backoff else lease
        return lease

    def _take_over_backoff(self, task: Task, attempt: Attempt) -> Lease | Busy | None:
        """Return the lease in place of the back-off; ``None`` where the back-off counts.

        A back-off counts unless the page was invalidated after the failure that it followed.
        """
        try:
            if self._leases.failed_digest(task.page) == self._current_tags_digest(task):
                return None
            return self._leases.take_over(task.page, task.limits.lease, attempt.owner)
        except Exception as error:  # raised by the store or by a rule's own callable: the back-off counts
            self._emit(StoreFailed("gets", task.page, error))
            return None

    def _current_tags_digest(self, task: Task) -> str:
        """Return the digest that a failure would be recorded with, for a render that began now."""
        current, _ = self._entries.gets(task)
        return tags_digest_of(self._entries.tag_versions.capture(_with_tags_of(current, self.tags_of(task))))

    def _mark(self, tag: str) -> dict[str, StoreError]:
        """Mark a tag as stale in every process, before a refresh captures its tag versions.

        The lease is held, so that no other process answers the mark with a render.

        :returns: the tags that were not delivered, each with its error.
        """
        undelivered = self._entries.tag_versions.invalidate([stored_tag(tag)], Mode.STALE)
        self._entries.local.drop_prepared()
        self._emit(Invalidated((tag,), Mode.STALE.value, tuple(undelivered)))
        return undelivered

    # The render --------------------------------------------------------------------------------------

    def _render_unless_current(
        self, task: Task, attempt: Attempt, lease: Lease | None, overdue: Callable[[], None]
    ) -> Outcome:
        """Render the page, unless it is current by now.

        Race: this worker saw a stale page, another worker rendered, stored and released, then this worker took the
        lease. Without this look, the page would be rendered twice in one window.
        """
        if attempt.refresh_tag and (undelivered := self._mark(attempt.refresh_tag)):
            return Failed("undelivered", InvalidationError((), undelivered))
        current, token = self._entries.gets(task)
        if current is not None:
            cached = self._entries.local.put(task.page, current)
            if attempt.refresh_tag is None and self._entries.is_current_now(cached):
                return AlreadyFresh(cached)
        begin = _Begin(attempt.trigger, self._entries.monotonic(), time.thread_time(), threading.get_ident())
        begun = RenderStarted(task.page, task.rule, attempt.trigger, task.text, task.data)
        self._emit(begun._replace(is_background=bool(attempt.owner), trace=attempt.trace))
        try:
            return self._render(task, lease, current, token, begin, overdue)
        finally:
            self._emit(RenderEnded(task.page))

    def _render(
        self,
        task: Task,
        lease: Lease | None,
        current: Entry | None,
        token: Token | None,
        begin: _Begin,
        overdue: Callable[[], None],
    ) -> Outcome:
        started = self._entries.clock()
        try:
            # Before any data is read **[needed]**: capture the version of every tag that is known by now.
            known = self.tags_of(task)
            capture = self._entries.tag_versions.capture(_with_tags_of(current, known))
        except Exception as raised:  # raised by a rule's own callable
            self._back_off(task, lease, begin, "tags", raised)
            return Failed("tags")
        render = _Render(task, lease, current, token, known, capture, started, begin)
        product = self._produce_in_time(render, overdue)
        if isinstance(product, Failed):
            return product
        created, produced = self._entries.clock(), self._entries.monotonic()
        personal = product if isinstance(product, Personal) else None
        packed = self._pack(render, self._storable(task, product), created)
        if isinstance(packed, Failed):
            return packed
        return self._store(render, packed, produced, personal)

    def _produce_in_time(
        self, render: _Render, overdue: Callable[[], None]
    ) -> Storable | HitForMiss | Personal | Failed:
        """Return the product of a render; :class:`.Failed` if it failed or ended past its timeout."""
        task, lease = render.task, render.lease
        tags_digest = tags_digest_of(render.capture)

        def give_up() -> None:
            self._back_off(task, lease, render.begin, "timeout", None, tags_digest)
            overdue()

        watch = self._keep_alive.watch(lease, task.limits.timeout, give_up)
        error: BaseException | None = None
        product: Product
        try:
            product = self._produce(task)
            error = product.error if isinstance(product, Failure) else None
        except BaseException as raised:  # of any kind: the threads that wait for this flight need an outcome
            error, product = raised, Failure("exception")
        if not self._keep_alive.finish(watch):
            # The result is too late to be stored, but a client that has waited may still get it.
            return render.failed(_late(product), error)
        if error is not None and not isinstance(error, Exception):
            return Failed("exit", error)  # the process is stopping: not a failure of the page
        if isinstance(product, Failure):
            self._back_off(task, lease, render.begin, product.reason, error, tags_digest)
            return render.failed(product, error)
        return product

    def _storable(self, task: Task, product: Storable | HitForMiss | Personal) -> Storable:
        """Return the product as it is stored: in place of a page that may not be stored, a hit-for-miss."""
        if isinstance(product, Storable):
            return product
        self._emit(Refused(task.page, task.rule, product.reason, task.text))
        ttl = self._uncacheable_ttl
        return Storable(HitForMiss(product.reason), Lifetime(ttl, None), ttl + STORE_GRACE)

    def _pack(self, render: _Render, product: Storable, created: float) -> _Packed | Failed:
        """Return the entry of a product with its proof; :class:`.Failed` if it cannot be stored.

        :param created: the end of the render, in seconds of Unix time.
        """
        task, content, lifetime = render.task, product.content, product.lifetime
        try:
            tags, carried = [*render.known, *product.tags], dict(product.carried)
            mints, absent = _mints(product, render.current)
            snapshot = self._entries.tag_versions.prove(render.capture, tags, carried, mints, absent)
            times = render.started, created, lifetime.revalidate, lifetime.expire
            entry = Entry(task.text, content, *times, snapshot)
            data = self._entries.codec.pack(entry)
            if len(data) > self._entries.store.max_value and isinstance(content, Content) and content.coded:
                # The page may fit without its other content codings.
                entry = entry._replace(content=content._replace(coded=()))
                data = self._entries.codec.pack(entry)
        except Exception as raised:  # a header or a tag is not text
            self._back_off(task, render.lease, render.begin, "unstorable", raised, tags_digest_of(render.capture))
            return Failed("unstorable", None, content if isinstance(content, Content) else None)
        return _Packed(entry, data, product.keep, product.source, product.used)

    def _store(self, render: _Render, packed: _Packed, produced: float, personal: Personal | None) -> Regenerated:
        """Store an entry, end the back-off, and return the outcome.

        :param produced: monotonic seconds at the end of the render.
        """
        task, entry, begin = render.task, packed.entry, render.begin
        winner, stored = self._put(render, packed)
        now = self._entries.monotonic()
        self._emit(
            Rendered(
                task.page,
                now - begin.monotonic,
                stored,
                task.text,
                storing=now - produced,
                revalidate=entry.revalidate,
                refused=isinstance(entry.content, HitForMiss),
                rule=task.rule,
                trigger=begin.trigger,
                cpu_seconds=begin.cpu_seconds(),
                is_changed=_is_changed(render.current, entry),
                is_data=task.data,
                source=packed.source,
                data=packed.used,
            )
        )
        self._leases.forget_failures(task.page)
        cached = self._entries.local.put(task.page, winner)
        cached.is_unstored = winner is entry and not stored
        return Regenerated(cached, stored, personal)

    def _put(self, render: _Render, packed: _Packed) -> tuple[Entry, bool]:
        """Store an entry by compare-and-swap.

        A late writer loses to an entry whose render started later, unless the later entry has the worse validity.

        :returns: the entry to serve, and whether the given entry was stored.
        """
        task, store, token = render.task, self._entries.store, render.token
        entry, data, ttl = packed[:3]
        try:
            for _ in range(8):
                if token is None:
                    done = store.add(task.page, data, ttl)
                else:
                    done = store.cas(task.page, data, token, ttl)
                if done:
                    return entry, True
                theirs, token = self._entries.gets(task)
                # Clocks differ between machines: the later start counts only unless our entry has the better validity.
                if (
                    theirs is not None
                    and theirs.started >= entry.started
                    and not self._entries.is_better(entry, theirs)
                ):
                    return theirs, False
        except StoreError as error:
            self._emit(StoreFailed("cas", task.page, error))
        return entry, False

    def _record_release(self, task: Task, outcome: Outcome) -> None:
        """Record whether this release has stored a page, or refuses it."""
        releases = self._entries.releases
        if releases is None or task.data or not isinstance(outcome, Regenerated):
            return
        content = outcome.cached.entry.content
        try:
            if not isinstance(content, Content) or int(content.status[:3]) in NEGATIVE_STATUSES:
                releases.refuse(task)
            elif outcome.stored:
                releases.record()
        except StoreError as error:
            self._emit(StoreFailed("delete", task.page, error))
        except Exception as error:  # a store raises an undeclared error: the page is rendered all the same
            self._emit(InternalError("recording a release", error))

    def _back_off(
        self,
        task: Task,
        lease: Lease | None,
        begin: _Begin,
        reason: str,
        error: BaseException | None,
        tags_digest: str = "",
    ) -> None:
        """Turn the lease of a failed render into a back-off, and emit the failure."""
        pause = lease.back_off(tags_digest) if lease is not None else 0.0
        spent = self._entries.monotonic() - begin.monotonic, begin.cpu_seconds()
        failed = RenderFailed(task.page, task.rule, reason, pause, error, task.text, begin.trigger, *spent)
        self._emit(failed._replace(is_data=task.data))


def _is_changed(before: Entry | None, now: Entry) -> bool | None:
    """Return whether a page has another ETag than the page before; ``None`` if one of them is no page."""
    if before is None or not (isinstance(before.content, Content) and isinstance(now.content, Content)):
        return None
    return before.content.etag != now.content.etag


def _with_tags_of(current: Entry | None, tags: Sequence[str]) -> list[str]:
    """Return the tags that are known before a render, those of the current entry included."""
    return [*tags, *(tag for tag, _ in current.snapshot.tags)] if current is not None else list(tags)


def _late(product: Product) -> Failure:
    """Return a product that came too late as a failure."""
    if isinstance(product, Failure):
        return product._replace(reason="timeout")
    if isinstance(product, Storable) and not isinstance(product.content, HitForMiss):
        return Failure("timeout", product.content, product.directives)
    return Failure("timeout")


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


def tags_digest_of(capture: Capture) -> str:
    """Return a digest of the captured tag versions: it differs before and after an invalidation."""
    known: Mapping[str, bytes] = capture.known
    return digest(b"".join(known[tag] for tag in sorted(known))).hex()
