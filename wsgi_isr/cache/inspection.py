"""Look at a page without any effect: no render, no lease, no write, and no use of the copies in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import StoreError
from .dispatch import Dispatcher
from .entries import Entries, Judged
from .entry import HitForMiss, UnreadableEntry
from .keyspace import Keyspace, stored_tag
from .lease import BACKOFF_VALUE, FREE_VALUE
from .local_cache import CachedEntry
from .regenerate import tags_digest_of
from .tag_versions import Capture, Epochs, TagVersion, compare
from .task import Task
from .timeline import Recorder, TimelineEvent, Timelines, merged
from .verdict import Missing, Stale, Uncacheable, Validity


class TagState(NamedTuple):
    """A tag of a page.

    :param name: the name that an invalidation gives, or the stored name where that is not known.
    :param validity: the validity of the page by this tag alone; ``None`` where the node of the tag is away, or where
        the page is not stored.
    :param invalidated: the last recorded invalidations, oldest first.
    """

    name: str
    node: str
    validity: Validity | None
    invalidated: tuple[TimelineEvent, ...]


class Inspection(NamedTuple):
    """The state of a page, as a request of this process would find it.

    :param cached: a copy of the entry that a request would judge; ``None`` without one.
    :param judged: the verdict on it.
    :param source: its place: ``memory``, ``store``, ``previous release``, or empty.
    :param lock: ``free``, ``held``, ``back-off`` or ``unknown``.
    :param counts_backoff: whether the back-off is of a render from after the last invalidation.
    :param failures: the renders in a row that failed.
    :param is_rendering_here: this process renders the page now.
    :param is_in_backoff_here: this process does not try the page again yet.
    :param nodes: the nodes of the store, and whether each answers.
    :param tags: the tags of the page, or those that it would have.
    :param events: the page's own timeline, oldest first.
    :param problem: why the store could not be asked, or why the stored bytes are no page.
    :param at: the Unix time of the look in seconds.
    """

    cached: CachedEntry | None
    judged: Judged
    source: str
    lock: str
    counts_backoff: bool
    failures: int
    is_rendering_here: bool
    is_in_backoff_here: bool
    nodes: tuple[tuple[str, bool], ...]
    tags: tuple[TagState, ...]
    events: tuple[TimelineEvent, ...]
    problem: str
    at: float


_NOTHING = Judged(Missing(), Validity.VALID)


class Inspector:
    """The look-ups of one process without effects.

    :param names: returns the names of a task's tags before its render.
    """

    def __init__(
        self, entries: Entries, dispatcher: Dispatcher, keyspace: Keyspace, timelines: Timelines, recorder: Recorder
    ) -> None:
        self._entries = entries
        self._dispatcher = dispatcher
        self._keyspace = keyspace
        self._timelines = timelines
        self._recorder = recorder

    def inspect(self, task: Task, names: Callable[[], Sequence[str]]) -> Inspection:
        """Return the state of a page.

        :param names: returns the tags that the page has before its render, by their full names.
        """
        entries = self._entries
        store, page = entries.store, task.page
        lock_key, counter_key = Keyspace.lock(page), Keyspace.failures(page)
        own = [page, lock_key, counter_key, Keyspace.timeline(page)]
        epoch_keys = {node: self._keyspace.epoch(node) for node in store.nodes}
        # The epochs are read before the tags **[needed]**: the compared versions are at least as new.
        found = store.get_many([*epoch_keys.values(), *own])
        epochs: dict[str, bytes | None] = {}
        for node, key in epoch_keys.items():
            # A lost epoch proves nothing, as a new one would. Nothing is written here.
            epochs[node] = None if key in found.unreachable else found.values.get(key) or os.urandom(12)
        problem = next((str(error) for key, error in found.unreachable.items() if key == page), "")
        stored = None
        if (data := found.values.get(page)) is not None:
            try:
                stored = entries.codec.unpack(data, task.text, task.data)
            except UnreadableEntry as error:
                problem = f"the stored bytes are no page of this app: {error}"
        cached, judged, source = self._look_up(task, stored and CachedEntry(stored), data is None, epochs)
        lock = found.values.get(lock_key)
        state = "back-off" if lock == BACKOFF_VALUE else "free" if lock in (None, FREE_VALUE) else "held"
        count, _, digest = (found.values.get(counter_key) or b"0").partition(b" ")
        tags = self._tags(cached, names)
        flight = self._dispatcher.flights.get(page)
        now = entries.monotonic()
        until = max(cached.backoff_until if cached is not None else 0.0, self._dispatcher.backoff_until(task))
        timeline = Keyspace.timeline(page)
        events = merged([*self._timelines.read(found.values.get(timeline)), *self._recorder.waiting(timeline)])
        return Inspection(
            cached,
            judged,
            source,
            "unknown" if lock_key in found.unreachable else state,
            state == "back-off" and digest.decode("ascii", "replace") == self._digest(cached, names),
            int(count) if count.isdigit() and len(count) < 10 else 0,
            flight is not None and not flight.done,
            now < until,
            tuple((node, nonce is not None) for node, nonce in epochs.items()),
            tags,
            tuple(events),
            problem,
            entries.clock(),
        )

    def _look_up(
        self, task: Task, stored: CachedEntry | None, is_forgotten: bool, epochs: Epochs
    ) -> tuple[CachedEntry | None, Judged, str]:
        """Return what :meth:`.Cache.get` would judge, in its order: the copy in memory, the store, the last release."""
        entries = self._entries
        held = entries.local.peek(task.page)
        kept = _copy_of(held) if held is not None else None
        if kept is not None:
            judged = entries.judge(kept, epochs)
            may_wait = isinstance(judged.verdict, (Stale, Uncacheable)) and entries.monotonic() < kept.recheck_at
            if judged.is_current or may_wait:
                return kept, judged, "memory"
        if stored is not None:
            if kept is not None and kept.entry == stored.entry:
                return kept, entries.judge(kept, epochs), "store"
            stored.read_tags_at = float("inf")
            return stored, entries.judge(stored, epochs), "store"
        if (kept is None or kept.adopted) and (former := self._former(task)) is not None:
            return former, entries.judge(former, epochs), "previous release"
        if kept is None:
            return None, _NOTHING, ""
        judged = entries.judge(kept, epochs)
        if is_forgotten and not entries.store.is_displaced(task.page):
            judged = judged.without_store(kept)
        return kept, judged, "memory"

    def _former(self, task: Task) -> CachedEntry | None:
        releases = self._entries.releases
        try:
            if releases is None or (name := releases.former_page(task)) is None:
                return None
            data = self._entries.store.get(name)
            entry = self._entries.codec.unpack(data, task.text, task.data) if data is not None else None
        except (StoreError, UnreadableEntry):
            return None
        if entry is None or isinstance(entry.content, HitForMiss):
            return None
        former = CachedEntry(entry)
        former.adopted, former.read_tags_at = True, float("inf")
        return former

    def _digest(self, cached: CachedEntry | None, names: Callable[[], Sequence[str]]) -> str:
        """Return the digest that a failure would be recorded with now (:meth:`.Leases.failed_digest`)."""
        try:
            tags = [stored_tag(name) for name in names()]
        except Exception:  # raised by a rule's own callable
            return ""
        if cached is not None and not cached.adopted:
            tags += [tag for tag, _ in cached.entry.snapshot.tags]
        keys = {tag: self._keyspace.tag(tag) for tag in dict.fromkeys(tags)}
        values = self._entries.store.get_many(list(keys.values())).values
        found = {tag: TagVersion(values[key]) for tag, key in keys.items() if key in values}
        return tags_digest_of(Capture({tag: now.nonces for tag, now in found.items() if now.belongs_to(tag)}, {}))

    def _tags(self, cached: CachedEntry | None, names: Callable[[], Sequence[str]]) -> tuple[TagState, ...]:
        try:
            named = {stored_tag(name): name for name in names()}
        except Exception:  # raised by a rule's own callable
            named = {}
        then = dict(cached.entry.snapshot.tags) if cached is not None else {}
        stored = list(dict.fromkeys([*named, *then]))
        keys = {tag: self._keyspace.tag(tag) for tag in stored}
        records = {tag: self._timelines.key_of_tag(tag) for tag in stored}
        found = self._entries.store.get_many([*keys.values(), *records.values()])
        states = []
        for tag in stored:
            key = keys[tag]
            known = tag in then and key not in found.unreachable
            validity = compare(then[tag], found.values.get(key)) if known else None
            read = self._timelines.read(found.values.get(records[tag]))
            events = (*read, *self._recorder.waiting(records[tag]))
            states.append(TagState(named.get(tag, tag), self._entries.store.node_of(key), validity, events))
        return tuple(states)


def _copy_of(cached: CachedEntry) -> CachedEntry:
    """Return a copy with the same knowledge. Judging the copy changes nothing of the original."""
    copy = CachedEntry(cached.entry)
    for name in ("adopted", "is_unstored", "checked", "recheck_at", "backoff_until"):
        setattr(copy, name, getattr(cached, name))
    copy.read_tags_at = float("inf")
    return copy
