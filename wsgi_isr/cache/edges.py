"""Purge the edges: the caches of a CDN in front of all instances.

An edge answers without asking. So it must lose its copy of a page when a tag of the page is invalidated, and must not
get the old page again.

**The race.** Two kinds of old answers reach an edge after the invalidation in the store:

1. A process answers from its copies for up to ``coherence`` seconds until it sees the invalidation.
2. An answer is on its way: its process has checked it before, and the edge stores it afterwards.

A purge at once would be too early for both: the edge would keep the old page for its whole lifetime. So an invalidation
waits ``coherence`` + :data:`IN_FLIGHT` seconds between store and purge. After the purge, the edge asks processes that
have all seen the invalidation, and it is acknowledged: clients see it at the edge from then on, and at the processes.
(:mod:`wsgi_isr.cdn.headers` refuses answers whose render overlaps an invalidation: a render takes longer than that.)

An answer can take longer than :data:`IN_FLIGHT`: a process is stopped for a moment, a connection is slow. So each purge
is repeated after :data:`LATE` seconds by a thread, together with all others of that time. An answer that takes longer
still stays at the edge for its lifetime. The rejected alternatives: an edge that asks each time is no cache, and no CDN
compares an answer with the purges since it asked.

**A failing edge** is like a failing node: the journal keeps the tags, under the place of the edge, and they are
delivered later. A process that is killed within :data:`LATE` seconds loses the repetition alone.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from ..errors import StoreUnavailable
from ..events import Events, InternalError
from .courier import courier
from .journal import Journal, JournalLine, batches
from .tag_versions import Mode

#: Seconds that an answer may take from its check to the edge, and seconds until a purge is repeated.
IN_FLIGHT, LATE = 0.25, 3.0
#: The most requests between two notes in the journal. A failure repeats no more than these.
_REQUESTS = 8


class Edge(Protocol):
    """A server that takes purges. The core knows no more of a CDN."""

    #: The name of the edge in receipts and in the journal.
    place: str
    #: The most tags of a request.
    batch: int

    @property
    def is_due(self) -> bool:
        """Return whether a call would be sent, and not fail at once."""

    def purge(self, tokens: Sequence[str], is_soft: bool) -> None:
        """Purge tags, and return once the edge has acknowledged.

        :param is_soft: the edge may serve the old page once more while it fetches the new one.
        :raises StoreUnavailable: it has not acknowledged; repeating is safe.
        """

    def close(self) -> None:
        """Close the connection. A later call opens a new one."""


class Missed(NamedTuple):
    """The edges that did not acknowledge.

    :param errors: from the place of an edge to its error.
    :param journal: the path of the file that keeps the tags for all of them; ``None`` if the tags are lost.
    """

    errors: dict[str, StoreUnavailable]
    journal: str | None = None


class _Again(NamedTuple):
    """A purge to repeat.

    :param due: monotonic seconds.
    :param places: the edges that have acknowledged the purge. The journal keeps it for the others.
    """

    due: float
    places: tuple[str, ...]
    names: tuple[str, ...]
    mode: Mode


class Edges:
    """The edges of a site.

    :param token: returns the name of a tag at the edges.
    :param coherence: seconds for which a process may miss an invalidation.
    :param journal: keeps the tags that an edge has missed.
    :param pause: waits that many seconds.
    """

    def __init__(
        self,
        edges: Iterable[Edge],
        token: Callable[[str], str],
        coherence: float,
        namespace: str,
        journal: Journal | None = None,
        events: Events | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._edges = {edge.place: edge for edge in edges}
        self._token = token
        self._wait = coherence + IN_FLIGHT
        self._space = namespace
        self._journal = journal
        self._events = events or Events()
        self._pause = pause
        self._changed = threading.Condition()
        self._again: list[_Again] = []
        self._thread: threading.Thread | None = None
        #: The monotonic time in seconds at which repetitions are due in any case; ``None`` before the end.
        self._ends_at: float | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """Return the names of the edges."""
        return tuple(self._edges)

    def purge(self, names: Sequence[str], mode: Mode) -> Missed:
        """Purge tags that were invalidated in the store a moment ago, and return the edges that missed the purge.

        The call waits until no process serves the old pages (see the head of this module).

        :param names: stored names.
        """
        self._pause(self._wait)
        missed = self._purge(self.places, names, mode)
        self._repeat([place for place in self._edges if place not in missed.errors], names, mode)
        return missed

    def has_news(self, places: Collection[str]) -> bool:
        """Return whether one of these edges may be asked again after its failure."""
        return any(place not in self._edges or self._edges[place].is_due for place in places)

    def replay(self) -> tuple[dict[str, None], dict[str, StoreUnavailable], tuple[str, ...]]:
        """Deliver the tags that the journal keeps for the edges.

        :returns: the delivered names, the others with their errors, and the edges that have failed.
        :raises OSError: the journal cannot be read or written.
        """
        delivered: dict[str, None] = {}
        failed: dict[str, StoreUnavailable] = {}
        away: dict[str, None] = {}
        for place in self._edges if self._journal is not None else ():
            assert self._journal is not None
            for batch in batches(self._journal.lines(self._space, [place])):
                done, missed = self._replay_at(place, batch)
                delivered |= done
                if missed:
                    away[place] = None
                    failed |= missed
                    break
        return delivered, failed, tuple(away)

    def _replay_at(
        self, place: str, lines: Sequence[JournalLine]
    ) -> tuple[dict[str, None], dict[str, StoreUnavailable]]:
        """Deliver lines of one mode to an edge; return the delivered names, and the others with their error.

        The journal notes each part at once: a purge of many tags takes minutes where a request has one tag.
        """
        assert self._journal is not None
        mode = Mode(lines[0].mode)
        names = list(dict.fromkeys(tag for line in lines for tag in line.tags))
        size = self._edges[place].batch * _REQUESTS
        for start in range(0, len(names), size):
            part = names[start : start + size]
            if (error := self._purge_at(place, part, mode)) is not None:
                return dict.fromkeys(names[:start]), dict.fromkeys(names[start:], error)
            self._journal.settle({line.id: part for line in lines})
            young = {tag for line in lines if time.time() - line.since < self._wait + LATE for tag in line.tags}
            self._repeat([place], [name for name in part if name in young], mode)
        return dict.fromkeys(names), {}

    def close(self, timeout: float) -> None:
        """Repeat what is left to repeat within ``timeout`` seconds, at the latest at their end, and disconnect."""
        with self._changed:
            self._ends_at = time.monotonic() + timeout
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread.ident is not None:  # it may not have started yet
            thread.join(timeout + 1)
        for edge in self._edges.values():
            edge.close()

    # One purge ---------------------------------------------------------------------------------------

    def _purge(self, places: Iterable[str], names: Iterable[str], mode: Mode) -> Missed:
        """Purge edges, and keep the tags for those that fail."""
        names = tuple(names)
        errors: dict[str, StoreUnavailable] = {}
        kept: list[bool] = []
        for place in places:
            if (error := self._purge_at(place, names, mode)) is not None:
                errors[place] = error
                kept.append(self._keep(place, names, mode))
        journal = self._journal.path if errors and all(kept) and self._journal is not None else None
        return Missed(errors, journal)

    def _purge_at(self, place: str, names: Iterable[str], mode: Mode) -> StoreUnavailable | None:
        """Purge one edge, and return its error."""
        tokens = list(dict.fromkeys(map(self._token, names)))
        try:
            self._edges[place].purge(tokens, mode is Mode.STALE)
        except StoreUnavailable as error:
            return error
        return None

    def _keep(self, place: str, names: tuple[str, ...], mode: Mode) -> bool:
        """Write tags for one edge to the journal, and return whether it keeps them."""
        if self._journal is None:
            return False
        try:
            self._journal.keep(self._space, names, mode.value, [place], [place] * len(names))
        except OSError as error:
            outcome = f"it does not keep the tags for {place} ({self._journal.describe(error)})"
            self._events.emit(InternalError(f"writing the journal {self._journal.path}", error, outcome))
            return False
        courier.start()  # the thread may not have started before
        return True

    # The repetition ----------------------------------------------------------------------------------

    def _repeat(self, places: Sequence[str], names: Iterable[str], mode: Mode) -> None:
        """Have the purge repeated in :data:`LATE` seconds."""
        repetition = _Again(time.monotonic() + LATE, tuple(places), tuple(names), mode)
        if not (repetition.places and repetition.names):
            return
        with self._changed:
            self._again.append(repetition)
            if self._thread is not None:
                return
            thread = self._thread = threading.Thread(target=self._run, name="wsgi-isr-edges", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            with self._changed:
                self._thread = None
            self._purge_again(self._take(float("inf")))

    def _run(self) -> None:
        try:
            self._repeat_all()
        finally:
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread = None  # after an exception, the next purge starts another thread

    def _repeat_all(self) -> None:
        while True:
            with self._changed:
                if not self._again:
                    self._thread = None
                    return
                due = self._again[0].due if self._ends_at is None else min(self._again[0].due, self._ends_at)
                if (wait := due - time.monotonic()) > 0:
                    self._changed.wait(wait)
                    continue
            self._purge_again(self._take(float("inf") if self._ends_at is not None else time.monotonic()))

    def _take(self, now: float) -> list[_Again]:
        """Return the repetitions that are due, and forget them."""
        with self._changed:
            due = [one for one in self._again if one.due <= now]
            self._again = [one for one in self._again if one.due > now]
        return due

    def _purge_again(self, repetitions: Sequence[_Again]) -> None:
        """Repeat purges, those of one kind together."""
        for place, mode in itertools.product(self._edges, Mode):
            alike = [one for one in repetitions if one.mode is mode and place in one.places]
            if not alike:
                continue
            missed = self._purge([place], dict.fromkeys(name for one in alike for name in one.names), mode)
            if missed.errors and missed.journal is None:
                outcome = "an old page that arrived late stays there for its lifetime"
                self._events.emit(InternalError(f"repeating a purge at {place}", missed.errors[place], outcome))
