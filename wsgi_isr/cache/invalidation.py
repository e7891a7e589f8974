"""Invalidate tags, return a receipt, and deliver what a journal keeps."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from ..config import options as o
from ..errors import ConfigError, InvalidationError, StoreError
from ..events import Delivered, Events, InternalError, Invalidated
from ..stores.base import Store
from . import keyspace
from .app_records import Registry, advice, unpurged
from .courier import courier
from .edges import Edges
from .journal import Journal, batches
from .keyspace import Keyspace
from .tag_versions import Mode, TagVersions
from .timeline import MAX_TEXT, current_actor

#: Seconds after which a process delivers although another process has the lock: that process may be stopped (SIGSTOP).
_MAX_LOCK_WAIT = 3.0
#: Seconds after which a journal is read again, although neither file nor nodes have changed: old lines may be due to be
#: dropped.
_REREAD_PAUSE = 60.0
#: Seconds between two reports of a journal that cannot be read.
_REPORT_PAUSE = 60.0


class Receipt(NamedTuple):
    """The acknowledgement of an invalidation.

    No request that starts from now on gets an older page as fresh. For copies in other processes this holds after
    ``coherence`` seconds. Pages with ``pending`` names are excepted: a node was unreachable, and the journal keeps the
    names.

    :param tags: the stored names of all tags (``tag:posts``, ``path:/blog/a``).
    :param mode: the mode of the invalidation.
    :param seconds: the duration.
    :param replayed: the names that the journal had kept from earlier calls, and that were delivered now.
    :param store: the absolute location of the store.
    :param namespace: the namespace.
    :param nodes: the nodes that hold one of the tags, and the edges of a CDN.
    :param acknowledged: the nodes among them that have answered.
    :param failures: the pending names, each with its error.
    :param journal: the path of the file that keeps the pending names.
    :param warnings: reasons why the invalidation may have reached no page, and what to write.
    :param notes: reasons why there was nothing to do.
    """

    tags: tuple[str, ...]
    mode: str
    seconds: float
    replayed: tuple[str, ...] = ()
    store: str = ""
    namespace: str = ""
    nodes: tuple[str, ...] = ()
    acknowledged: tuple[str, ...] = ()
    failures: tuple[tuple[str, StoreError], ...] = ()
    journal: str | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pending(self) -> tuple[str, ...]:
        """Return the stored names that a node or an edge has missed.

        The journal keeps them. A process of the app delivers them once the node is back.
        """
        return tuple(name for name, _ in self.failures)

    def raise_for_pending(self) -> None:
        """Return where no name is pending.

        :raises InvalidationError: a name is pending; the error gives the pending names and the journal.
        """
        if undelivered := dict(self.failures):
            delivered = tuple(name for name in self.tags if name not in undelivered)
            raise InvalidationError(delivered, undelivered, self.journal)


def tag_names(
    tags: Iterable[str] = (),
    paths: Iterable[str] = (),
    routes: Iterable[str] = (),
    prefixes: Iterable[str] = (),
    everything: bool = False,
    rules: Collection[str] | None = None,
) -> list[str]:
    """Return the stored names of the tags to invalidate.

    :param rules: the patterns that ``routes`` are checked against; ``None`` where the process does not know them.
    :raises ConfigError: no tag is named, or an option is impossible.
    """
    for option, value in (("tags", tags), ("paths", paths), ("routes", routes), ("prefixes", prefixes)):
        if isinstance(value, (str, bytes)):
            raise ConfigError(option, f"{value!r} is not a list", f"write {option}=[{value!r}]")
    names = [keyspace.EVERYTHING] if everything else []
    for tag in tags:
        if not isinstance(tag, str) or not tag:
            raise ConfigError("tags", f"{tag!r} is not a tag", "give non-empty strings")
        names.append(keyspace.tag_name(tag))
    names += [keyspace.path_tag(o.parse_path(path, "paths")) for path in paths]
    names += [keyspace.prefix_tag(o.parse_path(path, "prefixes")) for path in prefixes]
    for pattern in routes:
        if rules is not None and pattern not in rules:
            known = ", ".join(sorted(rules))
            raise ConfigError("routes", f"{pattern!r} is the pattern of no rule", f"one of: {known}")
        names.append(keyspace.route_tag(pattern))
    if not names:
        raise ConfigError("invalidate", "nothing to invalidate was named", "give tags, paths, routes or prefixes")
    return list(dict.fromkeys(names))


def check_mode(mode: str) -> Mode:
    """Return the mode of that name.

    :raises ConfigError: there is no such mode.
    """
    if mode not in {known.value for known in Mode}:
        raise ConfigError("mode", f"{mode!r} is not possible", "one of: stale, expire, purge")
    return Mode(mode)


class _Round(NamedTuple):
    """The last delivery from a journal.

    :param change_token: the change token of the journal before the delivery.
    :param keys: a key on each node that the delivery did not reach.
    :param edges: the edges that it did not reach.
    :param over: the monotonic time in seconds from which on the journal is read again in any case.
    """

    change_token: object
    keys: tuple[str, ...]
    edges: tuple[str, ...]
    over: float


class Invalidator:
    """Invalidate tags in one store and namespace.

    :param journal: keeps undelivered names.
    :param after: called after each attempt, delivered or not, so that the process reads its epochs again.
    :param registry: the apps that have used the namespace, for warnings.
    :param is_own: an app of this process has the store and the namespace.
    :param is_known: returns whether this process serves that app: a warning of a wrong store is needless then.
    :param edges: the edges of a CDN, which are purged after the store.
    """

    def __init__(
        self,
        store: Store,
        namespace: str,
        journal: Journal | None = None,
        events: Events | None = None,
        after: Callable[[], None] = lambda: None,
        registry: Registry | None = None,
        is_own: bool = False,
        is_known: Callable[[], bool] = lambda: False,
        edges: Edges | None = None,
    ) -> None:
        self._names = Keyspace(namespace)
        # coherence=0: no polled epochs are used here.
        self._tag_versions = TagVersions(
            store, self._names.tag, self._names.epoch, coherence=0, monotonic=time.monotonic
        )
        self._store = store
        self._space = namespace
        self.journal = journal
        self._events = events or Events()
        self._after = after
        self._registry = registry
        self._is_own = is_own
        self._is_known = is_known
        self._edges = edges
        self._last: _Round | None = None
        #: The ids of lines of other node lists that were delivered to this store.
        self._delivered_foreign: set[str] = set()
        #: The monotonic time since which another process has the delivery lock; ``None`` where none has.
        self._locked_since: float | None = None
        #: The monotonic time of the next report of a journal that cannot be read.
        self._next_report_at = float("-inf")

    def invalidate(self, names: Iterable[str], mode: str = "expire", actor: str | None = None) -> Receipt:
        """Invalidate tags, and return the receipt once they are acknowledged, or kept on the disk.

        :param names: stored names.
        :param actor: the person or program that asks for it, for timelines.
        :raises InvalidationError: a name was not delivered, and no journal keeps it.
        :raises ConfigError: there is no such mode.
        """
        wanted, actor = check_mode(mode), str(actor or current_actor())[:MAX_TEXT]
        began = time.monotonic()
        names = tuple(dict.fromkeys(names))
        if not self._store.keeps:
            return self._without_store(names, wanted, began, actor)
        # Read before the invalidation, which creates keys itself.
        apps = self._registry.apps() if self._registry is not None and not self._is_known() else None
        given = [name for name in names if name.startswith(keyspace.tag_name(""))]
        absent = self._tag_versions.missing(given) if given else []
        try:
            undelivered = self._deliver(names, wanted)
        finally:
            self._after()
        journal = self._keep(tuple(undelivered), mode) if undelivered else None
        is_lost = bool(undelivered) and journal is None
        nodes = {name: self._store.node_of(self._names.tag(name)) for name in names}
        missed = {nodes[name] for name in undelivered}
        if self._edges is not None:
            at_edges = self._edges.purge(names, wanted)
            missed.update(at_edges.errors)
            is_lost = is_lost or (bool(at_edges.errors) and at_edges.journal is None)
            journal = journal or at_edges.journal
            for error in at_edges.errors.values():
                undelivered = {**dict.fromkeys(names, error), **undelivered}
        found = [
            *advice(names, absent, apps, self._store, self._space, self._is_own),
            *unpurged(apps, self._edges is not None),
        ]
        loud, quiet = (tuple(one.text for one in found if one.is_quiet is kind) for kind in (False, True))
        is_attended = self._is_own and courier.is_at_work
        journal = None if is_lost else journal
        self._events.emit(Invalidated(names, mode, tuple(undelivered), journal, loud, quiet, is_attended, actor))
        if is_lost:
            delivered = tuple(name for name in names if name not in undelivered)
            raise InvalidationError(delivered, undelivered)
        concerned = (*dict.fromkeys(nodes.values()), *(self._edges.places if self._edges is not None else ()))
        return Receipt(
            names,
            mode,
            time.monotonic() - began,
            # The names from earlier calls are delivered last, now that the store is known to be reachable.
            () if undelivered else self._replay_quietly(),
            self._store.location,
            self._space,
            concerned,
            tuple(node for node in concerned if node not in missed),
            tuple(undelivered.items()),
            journal,
            (*loud, *quiet),
        )

    def _without_store(self, names: tuple[str, ...], mode: Mode, began: float, actor: str) -> Receipt:
        """Invalidate tags where the store keeps nothing: edges may have pages from before."""
        self._after()
        receipt = Receipt(names, mode.value, 0.0, store=self._store.location, namespace=self._space)
        if self._edges is None:
            self._events.emit(Invalidated(names, mode.value, actor=actor))
            return receipt._replace(notes=(f"{receipt.store} keeps nothing: there is nothing to invalidate",))
        missed, places = self._edges.purge(names, mode), self._edges.places
        undelivered: dict[str, StoreError] = {}
        for error in missed.errors.values():
            undelivered.update(dict.fromkeys(names, error))
        is_attended = self._is_own and courier.is_at_work
        event = Invalidated(names, mode.value, tuple(undelivered), missed.journal, is_attended=is_attended, actor=actor)
        self._events.emit(event)
        if undelivered and missed.journal is None:
            raise InvalidationError((), undelivered)
        return receipt._replace(
            seconds=time.monotonic() - began,
            nodes=places,
            acknowledged=tuple(place for place in places if place not in missed.errors),
            failures=tuple(undelivered.items()),
            journal=missed.journal,
        )

    def purge_edges(self, names: Sequence[str], mode: Mode) -> None:
        """Purge the edges alone: the store has the news already.

        :raises InvalidationError: an edge was not reached, and no journal keeps the names.
        """
        if (error := self._purge_edges(names, mode)) is not None:
            raise InvalidationError((), dict.fromkeys(names, error))

    def _purge_edges(self, names: Sequence[str], mode: Mode) -> StoreError | None:
        """Purge the edges, and return the error of one that has missed it, unless the journal keeps the names."""
        missed = self._edges.purge(names, mode) if self._edges is not None else None
        if missed is None or not missed.errors:
            return None
        is_attended = self._is_own and courier.is_at_work
        undelivered = tuple(names)
        self._events.emit(Invalidated(undelivered, mode.value, undelivered, missed.journal, is_attended=is_attended))
        return next(iter(missed.errors.values())) if missed.journal is None else None

    def close(self, timeout: float) -> None:
        """Finish the purges of the edges within ``timeout`` seconds."""
        if self._edges is not None:
            self._edges.close(timeout)

    def _deliver(self, names: Iterable[str], mode: Mode) -> dict[str, StoreError]:
        """Invalidate tags, and return the names that were not delivered, each with its error."""
        stored = {name: keyspace.stored_tag(name) for name in names}
        failed = self._tag_versions.invalidate(stored.values(), mode)
        return {name: failed[tag] for name, tag in stored.items() if tag in failed}

    def _keep(self, names: tuple[str, ...], mode: str) -> str | None:
        """Write names to the journal, and return its path; ``None`` where no journal keeps them."""
        if self.journal is None:
            return None
        try:
            nodes = [self._place_of(name) for name in names]
            self.journal.keep(self._space, names, mode, self._store.places, nodes)
        except OSError as error:
            outcome = f"it does not keep the undelivered tags ({self.journal.describe(error)})"
            self._events.emit(InternalError(f"writing the journal {self.journal.path}", error, outcome))
            return None
        courier.start()  # the thread may not have started before
        return self.journal.path

    def _place_of(self, name: str) -> str:
        """Return the place of the store that has a tag."""
        place = f"{self._store.scheme}://{self._store.node_of(self._names.tag(name))}"
        return place if place in self._store.places else self._store.places[0]

    @property
    def _has_targets(self) -> bool:
        """Return whether there is anything that an invalidation reaches."""
        return self._store.keeps or self._edges is not None

    # The journal ---------------------------------------------------------------------------------------

    def replay(self) -> tuple[str, ...]:
        """Deliver the names that the journal keeps. Undelivered names stay there.

        :returns: the names of the tags that were delivered.
        :raises InvalidationError: a tag was not delivered.
        :raises OSError: the journal cannot be read or written.
        """
        delivered, failed = self._replay()
        if failed:
            raise InvalidationError(delivered, failed, self.journal.path if self.journal is not None else None)
        return delivered

    def deliver_kept(self) -> bool:
        """Deliver the names that the journal keeps, unless another process of this machine does so already.

        So a node that is back is not asked by all processes at once.

        :returns: whether any name is left.
        """
        if self.journal is None or not self._has_targets or self.journal.is_empty():
            return False
        if (last := self._last) is not None and not self._has_news(last):
            return bool(last.keys or last.edges)
        try:
            with self.journal.delivery_lock() as is_ours:
                now = time.monotonic()
                if is_ours:
                    self._locked_since = None
                elif self._locked_since is None:
                    self._locked_since = now
                if not is_ours and now - (self._locked_since or now) < _MAX_LOCK_WAIT:
                    return True
                return bool(self._replay()[1])
        except OSError as error:
            if (now := time.monotonic()) >= self._next_report_at:
                self._next_report_at = now + _REPORT_PAUSE
                self._cannot_replay(error, "it is tried again")
            return True

    def _has_news(self, last: _Round) -> bool:
        """Return whether there is a reason to deliver again: the file has changed, or a node may be back."""
        assert self.journal is not None
        if time.monotonic() >= last.over or self.journal.change_token() != last.change_token:
            return True
        if self._edges is not None and self._edges.has_news(last.edges):
            return True
        return not all(map(self._store.is_displaced, last.keys))

    def _replay_quietly(self) -> tuple[str, ...]:
        """Deliver kept names after an invalidation, and return them.

        Do nothing where another process delivers, or where nothing has changed since the last failure.
        """
        if self.journal is None or self.journal.is_empty():
            return ()
        if self._last is not None and not self._has_news(self._last):
            return ()
        try:
            with self.journal.delivery_lock() as is_ours:
                return self._replay()[0] if is_ours else ()
        except OSError as error:
            self._cannot_replay(error, "the next invalidation tries it again")
            return ()

    def _cannot_replay(self, error: OSError, outcome: str) -> None:
        assert self.journal is not None
        self._events.emit(InternalError(f"replaying the journal {self.journal.path}", error, outcome))

    def _replay(self) -> tuple[tuple[str, ...], dict[str, StoreError]]:
        """Deliver the kept names; return those delivered, and those not delivered, each with its error."""
        if self.journal is None or not self._has_targets:
            return (), {}
        delivered: dict[str, None] = {}
        failed: dict[str, StoreError] = {}
        change_token = self.journal.change_token()
        places, place_of = self._store.places, functools.cache(self._place_of)
        lines = self.journal.lines(self._space, places) if self._store.keeps else []
        own = {line.id: line.settled_by(places, place_of) for line in lines}
        # A line of another node list is delivered to this store once as well. Only a store that has the tags on the
        # node that missed them settles the line.
        known = self._delivered_foreign
        todo = [line for line in lines if own[line.id] or line.id not in known]
        todo = [line.without({*line.tags} - own[line.id]) if line.id in known else line for line in todo]
        self._delivered_foreign = {line.id for line in lines if len(own[line.id]) < len(line.tags)}
        for batch in batches(todo):
            tags = dict.fromkeys(tag for line in batch for tag in line.tags)
            undelivered = self._deliver(tags, Mode(batch[0].mode))
            settled = {line.id: [tag for tag in own[line.id] if tag not in undelivered] for line in batch}
            failed |= {tag: undelivered[tag] for line in batch for tag in own[line.id] if tag in undelivered}
            if any(settled.values()):
                tags = dict.fromkeys(tag for line in batch for tag in line.tags if tag in settled[line.id])
                # The edges lost their copies before, but may have fetched old pages since.
                if (error := self._purge_edges(tuple(tags), Mode(batch[0].mode))) is not None:
                    failed |= dict.fromkeys(tags, error)
                    continue
                delivered |= tags
                self.journal.settle(settled)
        away = {place_of(tag): self._names.tag(tag) for tag in failed}
        failed_edges: tuple[str, ...] = ()
        if self._edges is not None:
            at_edges, missed, failed_edges = self._edges.replay()
            delivered, failed = delivered | at_edges, failed | missed
        self._last = _Round(change_token, tuple(away.values()), failed_edges, time.monotonic() + _REREAD_PAUSE)
        if delivered:
            self._after()
        if delivered or failed:
            self._events.emit(Delivered(tuple(delivered), tuple(failed), self.journal.path))
        return tuple(delivered), failed
