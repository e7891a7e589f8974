"""Count what the cache does, in one process: a subscriber that turns events into :class:`~.totals.Totals`.

Every label is from a closed set, from the configuration (rules, nodes), or the name of a function. Clients choose none:
not one path, host, tag, query or user agent is a label.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from ..events import (
    BackgroundFull,
    DataServed,
    Event,
    InternalError,
    Invalidated,
    LeaseLost,
    Rendered,
    RenderEnded,
    RenderFailed,
    RenderStarted,
    Served,
    Unreadable,
)
from ..pages.respond import Hits
from .totals import MAX_LABEL, Durations, InProgress, Renders, Totals, class_of

#: The most rules, and the most functions, with a label of their own.
MAX_RULES = 200
OTHER = "other"
#: The rule of a request that no rule covers, or that was passed on before a rule was looked for.
NO_RULE = "none"

RESULTS = ("HIT", "STALE", "MISS", "EXPIRED", "BYPASS", "STALE-IF-ERROR", "DEGRADED")
DATA_RESULTS = (*RESULTS, "SKIP")
TRIGGERS = ("miss", "time", "tag", "release", "refresh", "prerender")
OUTCOMES = ("stored", "not-stored", "uncacheable", "failed")
MODES = ("stale", "expire", "purge")
KINDS = ("tag", "path", "prefix", "route", "data", "all")
DELIVERIES = ("delivered", "pending", "undelivered")
VERBS = ("get", "get_many", "gets", "set", "add", "cas", "delete")
ANSWERS = ("ok", "failed")
RESTARTS = ("max-renders", "hanging", "killed", "ended")
#: Further counts.
MARKS = ("background_rejected", "leases_lost", "evictions", "unreadable", "internal_errors", "dropped")
#: The reasons of answers. ``status`` and ``vary`` stand for all statuses and header names.
REASONS = frozenset(
    {
        "",
        *("time", "tag", "release"),
        *("method", "authorization", "upgrade", "cookie", "cookie-encoding", "query", "draft", "rule", "no-rule"),
        *("revalidate-0", "host", "url-length", "url-depth", "url-parameters", "url-encoding", "development"),
        *("store-disabled", "internal-error", "set-cookie", "private", "no-store", "no-cache", "vary", "status"),
        *("csp-nonce", "max-body", "event-stream", "self-redirect", "not-asked", "no-app", "lock-timeout", "back-off"),
        *("recursive", "exception", "timeout", "content-length", "renderer-died", "exit", "no-thread", "fetch-error"),
        *("tags", "undelivered", "not-stored", "unstorable", "not-listed", "shell"),
        *("switched-off", "switched-serve-stale"),
    }
)

_OF_PROCESS: weakref.WeakSet[Counts] = weakref.WeakSet()


class Counts:
    """The counts of one app in this process. A child of a fork makes its own.

    :param rules: the patterns of the app's rules, in their order.
    """

    def __init__(self, rules: Iterable[str]) -> None:
        self._rules = {rule: rule[:MAX_LABEL] for rule, _ in zip(rules, range(MAX_RULES), strict=False)}
        self.reset()
        self._methods: dict[type, Callable[[Any], None]] = {
            Served: self._served,
            DataServed: self._data_served,
            RenderStarted: self._started,
            RenderEnded: self._ended,
            Rendered: self._rendered,
            RenderFailed: self._failed,
            Invalidated: self._invalidated,
            BackgroundFull: lambda event: self.mark("background_rejected"),
            LeaseLost: lambda event: self.mark("leases_lost"),
            Unreadable: lambda event: self.mark("unreadable"),
            InternalError: lambda event: self.mark("internal_errors"),
        }
        _OF_PROCESS.add(self)

    def reset(self) -> None:
        """Begin at zero, in the child of a fork: the parent reports its own counts."""
        self._lock = threading.Lock()
        self._hits = {label: Hits() for label in (*self._rules.values(), OTHER)}
        self._functions: dict[str, str] = {}
        self._tables: dict[str, dict[tuple[str, ...], Any]] = {}
        self._running: dict[str, InProgress] = {}
        self._gauges: Callable[[], dict[str, Any]] | None = None

    def hits_of(self, rule: str) -> Hits:
        """Return the counter of a rule's prepared responses, for the hot path."""
        return self._hits[self.label_of(rule)]

    def label_of(self, rule: str) -> str:
        """Return the label of a rule: its pattern, or ``other``."""
        return self._rules.get(rule, OTHER) if rule else NO_RULE

    def count(self, event: Event) -> None:
        """Count an event."""
        method = self._methods.get(type(event))
        if method is not None:
            method(event)

    def mark(self, name: str, number: int = 1) -> None:
        """Count one of :data:`MARKS`."""
        self._add("marks", (name,), number)

    def restarted(self, reason: str) -> None:
        """Count the end of a renderer process, for one of :data:`RESTARTS`."""
        self._add("restarts", (reason,), 1)

    def operated(self, node: str, verb: str, seconds: float, is_answered: bool) -> None:
        """Count an operation of the store."""
        labels = node[:MAX_LABEL], verb if verb in VERBS else OTHER, ANSWERS[not is_answered]
        self._measure("store", labels, seconds)

    def watch(self, gauges: Callable[[], dict[str, Any]]) -> None:
        """Let ``gauges`` complete later totals, in place of an earlier one.

        :param gauges: returns fields of :class:`.Totals`, and the number of ``evictions``.
        """
        before, self._gauges = self._gauges, gauges
        if before is not None:  # the app has begun again, with an empty local cache
            self.mark("evictions", before()["evictions"])

    def totals(self) -> Totals:
        """Return the totals until now."""
        with self._lock:
            tables: dict[str, Any] = {name: dict(table) for name, table in self._tables.items()}
            running = list(self._running.values())
        requests = tables.setdefault("requests", {})
        for label, hits in self._hits.items():
            # The zeros tell readers the rules.
            labels = label, "HIT", ""
            requests[labels] = requests.get(labels, 0) + hits.number
        by_rule: dict[tuple[str, ...], int] = {}
        for each in running:
            by_rule[(each.rule,)] = by_rule.get((each.rule,), 0) + 1
        moment = self._gauges() if self._gauges is not None else {}
        if evictions := moment.pop("evictions", 0):
            marks = tables.setdefault("marks", {})
            marks[("evictions",)] = marks.get(("evictions",), 0) + evictions
        return Totals(**tables, **moment, in_progress=tuple(running), running=by_rule, processes=1)

    # Events --------------------------------------------------------------------------------------------

    def _served(self, event: Served) -> None:
        rule = self.label_of(event.rule)
        reason = event.reason or event.cause
        self._add("requests", (rule, _one_of(RESULTS, event.label), _reason(reason)), 1)
        if event.lock != "none":
            self._measure("waits", (rule,), event.seconds)
        if event.overdue > 0:
            self._measure("overdue", (rule,), event.overdue)

    def _data_served(self, event: DataServed) -> None:
        with self._lock:
            if event.name in self._functions:
                label = self._functions[event.name]
            elif len(self._functions) < MAX_RULES:
                label = self._functions[event.name] = event.name[:MAX_LABEL]
            else:
                label = OTHER
        self._add("data", (label, _one_of(DATA_RESULTS, event.label)), 1)

    def _started(self, event: RenderStarted) -> None:
        if not event.is_data:
            trigger = _one_of(TRIGGERS, event.trigger)
            with self._lock:
                self._running[event.key] = InProgress(self.label_of(event.rule), trigger, time.time())

    def _ended(self, event: RenderEnded) -> None:
        with self._lock:
            self._running.pop(event.key, None)

    def _rendered(self, event: Rendered) -> None:
        outcome = "uncacheable" if event.refused else "stored" if event.stored else "not-stored"
        self._render(event, outcome, int(event.is_changed is False))

    def _failed(self, event: RenderFailed) -> None:
        self._render(event, "failed", 0)

    def _render(self, event: Rendered | RenderFailed, outcome: str, unchanged: int) -> None:
        if event.is_data:
            return
        labels = self.label_of(event.rule), _one_of(TRIGGERS, event.trigger), outcome
        with self._lock:
            table = self._tables.setdefault("renders", {})
            old = table.get(labels, Renders())
            table[labels] = Renders(
                old.number + 1,
                old.seconds + event.seconds,
                old.cpu_seconds + event.cpu_seconds,
                old.unchanged + unchanged,
                _counted(old.classes, event.seconds),
            )

    def _invalidated(self, event: Invalidated) -> None:
        missed = "undelivered" if event.journal is None else "pending"
        for name in event.tags:
            kind = _one_of(KINDS, name.partition(":")[0])
            outcome = missed if name in event.undelivered else "delivered"
            self._add("invalidations", (kind, _one_of(MODES, event.mode), outcome), 1)

    # Under the lock ------------------------------------------------------------------------------------

    def _add(self, table: str, labels: tuple[str, ...], number: int) -> None:
        with self._lock:
            counts = self._tables.setdefault(table, {})
            counts[labels] = counts.get(labels, 0) + number

    def _measure(self, table: str, labels: tuple[str, ...], seconds: float) -> None:
        with self._lock:
            durations = self._tables.setdefault(table, {})
            old = durations.get(labels, Durations())
            durations[labels] = Durations(old.number + 1, old.seconds + seconds, _counted(old.classes, seconds))


def counts_of_process() -> list[Counts]:
    """Return the counts of all apps of this process."""
    return list(_OF_PROCESS)


def _counted(classes: tuple[int, ...], seconds: float) -> tuple[int, ...]:
    number = class_of(seconds)
    return (*classes[:number], classes[number] + 1, *classes[number + 1 :])


def _one_of(known: tuple[str, ...], text: str) -> str:
    return text if text in known else OTHER


def _reason(reason: str) -> str:
    """Return the label of a reason: without the parts that an app chooses."""
    if reason in REASONS:
        return reason
    family = reason.partition("-")[0].partition(":")[0]
    return family if family in ("status", "vary", "tag") else OTHER
