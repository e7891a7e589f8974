"""Which pages exist: what ``paths`` lists, where ``dynamic_params=False`` makes that the whole truth.

A list is what it is. A callable (a query, say) is asked again when somebody asks for a path that it did not list, after
any invalidation, and otherwise every ``negative_ttl`` seconds at the most: what was added is there as soon as a 404 of
the app itself would be gone. Who would have to wait for it for longer than ``wait`` is left to the app.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .events import Broken, Events
from .keys import decoded
from .rules import Policy, RuleSet


class Absent(NamedTuple):
    """The rule lists its pages, and this is none of them; ``ttl`` is how long that holds, in seconds."""

    ttl: float


class _Known(NamedTuple):
    """What was listed, when it was asked for, and the epochs of then. ``paths`` is ``None`` where asking failed."""

    paths: frozenset[str] | None
    asked: float
    epochs: Any


class Listings:
    """The lists of all rules, as one process knows them.

    :param monotonic: seconds.
    """

    def __init__(self, rules: RuleSet, events: Events, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._events = events
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}
        # One each: a query that takes long holds up no other rule's pages.
        self._asking = {name: threading.Lock() for name in rules.policies}
        self._strict = any(policy.lists_all for policy in rules.policies.values())

    def absent(self, environ: dict[str, Any], epochs: Callable[[], Any] | None = None) -> Absent | None:
        """The answer to a request for a page that does not exist, whoever asks.

        :param epochs: as of now: since an invalidation, what was listed before it counts no more. Without it, nothing
            that was listed before counts.
        """
        if not self._strict or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return None
        try:
            path = decoded(environ.get("PATH_INFO", "")) or "/"
        except UnicodeError:
            return None
        policy, _ = self._rules.match(path)
        if not policy.lists_all:
            return None
        known = self._listed(policy, path, epochs)
        if known.paths is None or path in known.paths:
            return None  # where it cannot be found out, the app will know
        # A list that is given stays; a callable is asked again, and may list it then.
        age = self._monotonic() - known.asked if callable(policy.paths) else 0.0
        return Absent(max(0.0, policy.negative_ttl - age))

    def _listed(self, policy: Policy, path: str, epochs: Callable[[], Any] | None) -> _Known:
        known = self._known.get(policy.name)
        if known is not None and known.paths is not None and path in known.paths and epochs is not None:
            return known
        now = epochs() if epochs is not None else None
        if self._counts(policy, known, now):
            assert known is not None
            return known
        # One asks. Meanwhile the others go by what there is, unless something was invalidated since: then they wait.
        is_due = known is not None and epochs is not None and known.epochs == now
        if not self._asking[policy.name].acquire(timeout=0 if is_due else policy.wait):
            return known if known is not None and is_due else _Known(None, 0.0, now)
        try:
            known = self._known.get(policy.name)
            if not self._counts(policy, known, now):
                known = self._known[policy.name] = self._ask(policy, known, now)
            assert known is not None
            return known
        finally:
            self._asking[policy.name].release()

    def _counts(self, policy: Policy, known: _Known | None, epochs: Any) -> bool:
        if known is None or epochs is None:
            return known is not None and known.paths is not None and not callable(policy.paths)
        if known.paths is not None and not callable(policy.paths):
            return True
        return known.epochs == epochs and self._monotonic() < known.asked + policy.negative_ttl

    def _ask(self, policy: Policy, known: _Known | None, epochs: Any) -> _Known:
        try:
            paths = frozenset(listed.path for listed in self._rules.listed(policy))
        except Exception as error:
            # Not asked again at once: it may have taken its time to fail.
            outcome = "the last known list counts; without one, the app answers for every path"
            self._events.emit(Broken(f"rule {policy.name!r}: paths", error, outcome))
            return _Known(known.paths if known is not None else None, self._monotonic(), epochs)
        return _Known(paths, self._monotonic(), epochs)
