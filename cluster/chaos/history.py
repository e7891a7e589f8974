"""The history of readers and admins, and the check for violations of the protocol. Pure: no clock, no processes.

Times are those of ``time.monotonic``, which is one clock for all processes of a machine. A read begins before its
request is sent, and an invalidation is acknowledged after ``invalidate`` has returned. So delays between two processes
never count against the cache.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

#: Labels of answers that claim to be up to date.
FRESH = frozenset({"HIT", "MISS", "EXPIRED", "BYPASS"})
#: The invalidations that an answer must reflect, by its label. A stale page may predate a soft invalidation. A page
#: retained after a failed render may predate a hard one, and its label says so.
KNOWS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(FRESH, frozenset({"stale", "expire", "purge"})),
    "STALE": frozenset({"expire", "purge"}),
    "STALE-IF-ERROR": frozenset({"purge"}),
    "DEGRADED": frozenset({"expire", "purge"}),
}

#: Prefix of the error of a malformed answer; a killed process only leaves unfinished ones.
MALFORMED = "Malformed: "
#: Mark of an internal error in ``Cache-Status``: the cache has passed the request on.
BROKEN = 'detail="internal-error"'


@dataclass(frozen=True, slots=True)
class Read:
    """One answer. ``status`` is 0 where the connection was cut. ``shown`` is the path that the body names, ``versions``
    are the rows on the page, and ``detail`` is its ``Cache-Status``."""

    start: float
    end: float
    status: int
    label: str
    path: str
    port: int = 0
    shown: str = ""
    versions: Mapping[str, int] = field(default_factory=dict)
    error: str = ""
    detail: str = ""

    @classmethod
    def parse(cls, line: bytes) -> Read:
        """Return the read in a line from :mod:`.workload.readers`."""
        return cls.of(*json.loads(line))

    @classmethod
    def of(
        cls, start: float, end: float, status: int, label: str, path: str, port: int, page: Any, detail: str = ""
    ) -> Read:
        """Return a read for an answer. The page in it is JSON text or already parsed."""
        if isinstance(page, bytes):
            try:
                page = json.loads(page)
            except ValueError:
                page = page.decode("utf-8", "replace")
        if isinstance(page, dict) and "versions" in page:
            return cls(start, end, status, label, path, port, page["path"], page["versions"], detail=detail)
        return cls(start, end, status, label, path, port, error=str(page)[:500], detail=detail)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of ``invalidate``; ``error`` is empty where it was acknowledged."""

    start: float
    end: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """Committed versions of rows, and the calls of ``invalidate`` that followed until one was acknowledged."""

    rows: Mapping[str, int]
    mode: str
    attempts: tuple[Attempt, ...]

    @property
    def acknowledged(self) -> float | None:
        """Return when it was acknowledged; ``None`` for never."""
        last = self.attempts[-1]
        return None if last.error else last.end

    @classmethod
    def parse(cls, line: bytes) -> Invalidation:
        """Return the invalidation in a line from :mod:`.workload.admin`."""
        written = json.loads(line)
        return cls(written["rows"], written["mode"], tuple(Attempt(*attempt) for attempt in written["attempts"]))


@dataclass(frozen=True, slots=True)
class Outage:
    """A node that a process may have found unreachable, from ``start`` to ``end``. ``port`` limits this to one
    instance; 0 stands for all."""

    node: str
    start: float
    end: float
    port: int = 0


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The circumstances of a history, which decide about allowed answers.

    :param coherence: seconds that copies may be served without a check.
    :param outages: in these times, answers may be marked as degraded.
    :param node_of: the node of each row's tag.
    :param renders_fail: pages may be retained for errors, such as a visitor's own timeout.
    :param cuts: connections may break, because workers are killed.
    :param dark: in these times no instance lives, so the balancer answers by itself.
    :param patience: seconds after which all visitors get a new page. An old one is then allowed only for want of a
        new one (stale, or retained). The default is for ever.
    :param disturbed: times that do not count for ``patience``, because renders may have been lost.
    :param lifetimes: seconds, by path, after which a page is no longer fresh.
    """

    coherence: float
    outages: Sequence[Outage] = ()
    node_of: Mapping[str, str] = field(default_factory=dict)
    renders_fail: bool = False
    cuts: bool = False
    dark: Sequence[tuple[float, float]] = ()
    patience: float = math.inf
    disturbed: Sequence[tuple[float, float]] = ()
    lifetimes: Mapping[str, float] = field(default_factory=dict)

    def undisturbed(self, at: float, seconds: float) -> float:
        """Return the time since which ``seconds`` undisturbed seconds have passed until ``at``."""
        # The latest end first; overlaps were subtracted already.
        for began, ended in sorted(self.disturbed, key=lambda pair: pair[1], reverse=True):
            quiet = at - ended
            if quiet >= seconds:
                break
            if began < at:
                seconds -= max(0.0, quiet)
                at = began
        return at - seconds


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise, with the read and the invalidation that show it, or with another reason in words."""

    promise: str
    read: Read
    row: str = ""
    invalidation: Invalidation | None = None
    reason: str = ""

    @classmethod
    def of(cls, promise: str, began: float, ended: float, reason: str) -> Violation:
        """Return a violation that no read shows."""
        return cls(promise, Read(began, ended, 0, "", "", error=reason), reason=reason)

    def __str__(self) -> str:
        if self.reason:
            return f"{self.promise}: {self.reason}, at {self.read.end:.6f}"
        text = f"{self.promise}: {self.read.path} on port {self.read.port}, asked at {self.read.start:.6f}"
        text += f", answered at {self.read.end:.6f} with {self.read.status} {self.read.label} {self.read.error}"
        if self.invalidation is not None:
            acknowledged = self.invalidation.acknowledged
            if acknowledged is None:
                committed = self.invalidation.attempts[0].start
                return (
                    f"{text}: row {self.row!r} in version {self.read.versions[self.row]}; version "
                    f"{self.invalidation.rows[self.row]} was committed {self.read.start - committed:.3f} s before"
                )
            before = (self.read.start - acknowledged) * 1000
            text += (
                f": row {self.row!r} in version {self.read.versions[self.row]}; version "
                f"{self.invalidation.rows[self.row]} was acknowledged ({self.invalidation.mode}) at "
                f"{acknowledged:.6f}, {before:.1f} ms before"
            )
        return text


def check(
    reads: Iterable[Read], invalidations: Sequence[Invalidation], circumstances: Circumstances
) -> list[Violation]:
    """Return every read that the protocol forbids, by the worst of its rows."""
    demands = {knows: _Demands(invalidations, knows) for knows in KNOWS.values()}
    commits = _Demands(invalidations, KNOWS["HIT"], committed=True)
    found = []
    for read in reads:
        violation = (
            _plain(read, circumstances)
            or _too_old(read, demands, circumstances)
            or _too_long(read, demands, circumstances)
            or _outlived(read, commits, circumstances)
        )
        if violation is not None:
            found.append(violation)
    return found


def refused(invalidations: Iterable[Invalidation], circumstances: Circumstances) -> list[Violation]:
    """Return every call of ``invalidate`` that failed without an excuse."""
    away = [outage for outage in circumstances.outages if not outage.port]
    return [
        Violation.of("an invalidation is refused only while a node is away", tried.start, tried.end, tried.error)
        for invalidation in invalidations
        for tried in invalidation.attempts
        if tried.error and not any(outage.start <= tried.end and tried.start <= outage.end for outage in away)
    ]


def _plain(read: Read, circumstances: Circumstances) -> Violation | None:
    """Return a violation of an answer that is wrong regardless of invalidations."""
    if read.status == 0:
        if read.error.startswith(MALFORMED):
            return Violation("every answer is well-formed", read)
        return None if circumstances.cuts else Violation("no connection breaks", read)
    if BROKEN in read.detail:
        return Violation("the cache raises no error of its own", read)
    if read.status >= 500:
        # The balancer's own answer has no label.
        if not read.label and any(began <= read.end and read.start <= ended for began, ended in circumstances.dark):
            return None
        return Violation("no 5xx", read)
    if read.status != 200:
        return Violation("every page is there", read)
    if read.label not in KNOWS:
        return Violation("every answer is labelled", read)
    if read.shown != read.path:
        return Violation(f"an answer is for its own request, and not for {read.shown!r}", read)
    if read.label == "DEGRADED" and not _down(read, circumstances):
        return Violation("nothing is degraded while all nodes can be reached", read)
    if not read.versions:
        return Violation("a page shows its rows", read)
    return None


def _too_old(read: Read, demands: Mapping[frozenset[str], _Demands], circumstances: Circumstances) -> Violation | None:
    if read.status != 200:
        return None
    knows = KNOWS[read.label]
    if read.label == "STALE-IF-ERROR" and not circumstances.renders_fail:
        knows = KNOWS["STALE"]
    # An unchecked answer cannot reflect the versions on an unreachable node: with reachable tags unchanged, its age
    # alone decides.
    down = _down(read, circumstances) if read.label in ("DEGRADED", "STALE-IF-ERROR") else frozenset()
    for row, version in read.versions.items():
        if circumstances.node_of.get(row) in down:
            continue
        demanded = demands[knows].at(row, read.start - circumstances.coherence)
        if demanded is not None and version < demanded.rows[row]:
            return Violation(f"{read.label} is not older than what was acknowledged before", read, row, demanded)
    return None


def _too_long(read: Read, demands: Mapping[frozenset[str], _Demands], circumstances: Circumstances) -> Violation | None:
    """Return a violation for an old page that is shown although a new one should exist by now."""
    if read.label not in ("STALE", "STALE-IF-ERROR") or circumstances.patience == math.inf:
        return None
    # _too_old handles pages beyond that limit.
    since = circumstances.undisturbed(read.start - circumstances.coherence, circumstances.patience)
    for row, version in read.versions.items():
        demanded = demands[KNOWS["HIT"]].at(row, since)
        if demanded is not None and version < demanded.rows[row]:
            return Violation(f"{read.label} is shown only until there is a new page", read, row, demanded)
    return None


def _outlived(read: Read, commits: _Demands, circumstances: Circumstances) -> Violation | None:
    """Return a violation for a page that claims to be fresh beyond the lifetime of its path."""
    lifetime = circumstances.lifetimes.get(read.path)
    if read.label != "HIT" or lifetime is None or circumstances.patience == math.inf:
        return None
    since = circumstances.undisturbed(read.start, lifetime + circumstances.patience)
    for row, version in read.versions.items():
        there = commits.at(row, since)
        if there is not None and version < there.rows[row]:
            shown = replace(there, attempts=(replace(there.attempts[0], error="committed"),))
            return Violation("HIT is no older than its page may get", read, row, shown)
    return None


def _down(read: Read, circumstances: Circumstances) -> frozenset[str]:
    """Return the nodes that were unreachable at some moment of a read."""
    return frozenset(
        o.node
        for o in circumstances.outages
        if o.start <= read.end and read.start <= o.end and o.port in (0, read.port)
    )


class _Demands:
    """For each row, the newest version that every process must know at a time; ``committed``: that exists at a time."""

    def __init__(self, invalidations: Iterable[Invalidation], modes: frozenset[str], committed: bool = False) -> None:
        self._times: dict[str, list[float]] = {}
        self._newest: dict[str, list[Invalidation]] = {}
        times = (
            (invalidation.attempts[0].start if committed else invalidation.acknowledged, invalidation)
            for invalidation in invalidations
            if invalidation.mode in modes
        )
        done = [(at, invalidation) for at, invalidation in times if at is not None]
        for acknowledged, invalidation in sorted(done, key=lambda pair: pair[0]):
            for row, version in invalidation.rows.items():
                newest = self._newest.setdefault(row, [])
                # Two admins may be acknowledged in another order than that of their commits.
                newest.append(invalidation if not newest or newest[-1].rows[row] < version else newest[-1])
                self._times.setdefault(row, []).append(acknowledged)

    def at(self, row: str, time: float) -> Invalidation | None:
        """Return the invalidation with the newest version of ``row`` that was acknowledged before ``time``."""
        number = bisect_left(self._times.get(row, []), time)
        return self._newest[row][number - 1] if number else None


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts of a history; a history without hits, for example, would prove little."""

    reads: int
    seconds: float
    labels: Mapping[str, int]
    cut: int
    soon: int
    invalidations: int
    refused: int

    def __str__(self) -> str:
        labels = ", ".join(f"{count} {label}" for label, count in sorted(self.labels.items(), key=lambda p: -p[1]))
        cut = f", {self.cut} cut off" if self.cut else ""
        refused = f" after {self.refused} InvalidationErrors" if self.refused else ""
        return (
            f"{self.reads} reads in {self.seconds:.1f} s ({labels}{cut}), {self.soon} of them of a row that had been "
            f"invalidated within the second before; {self.invalidations} invalidations acknowledged{refused}"
        )


def figures(reads: Sequence[Read], invalidations: Sequence[Invalidation]) -> Figures:
    """Count the events of a history."""
    every = _Demands(invalidations, frozenset({"stale", "expire", "purge"}))
    soon = 0
    for read in reads:
        for row in read.versions:
            last = every.at(row, read.start)
            if last is not None and read.start - (last.acknowledged or 0.0) < 1.0:
                soon += 1
                break
    labels = Counter(read.label for read in reads if read.status == 200)
    seconds = max((read.end for read in reads), default=0.0) - min((read.start for read in reads), default=0.0)
    done = sum(invalidation.acknowledged is not None for invalidation in invalidations)
    refused = sum(bool(attempt.error) for invalidation in invalidations for attempt in invalidation.attempts)
    cut = sum(read.status == 0 for read in reads)
    return Figures(len(reads), seconds, labels, cut, soon, done, refused)


def written(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Return a line for :meth:`Read.parse` or :meth:`Invalidation.parse`."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
