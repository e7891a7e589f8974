"""Which pages exist: what ``paths`` lists, where ``dynamic_params=False`` makes that the whole truth.

A list is what it is. A callable (a query, say) is asked again when somebody asks for a path that it did not list, but
not more often than ``negative_ttl``: what was added is there as soon as a 404 of the app itself would be gone.
"""

from __future__ import annotations

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
    paths: frozenset[str]
    asked: float


class Listings:
    """The lists of all rules, as one process knows them. They survive a fork, and take no lock: two threads that
    ask at once do no harm.

    :param monotonic: seconds.
    """

    def __init__(self, rules: RuleSet, events: Events, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._events = events
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}
        self._strict = any(policy.lists_all for policy in rules.policies.values())

    def absent(self, environ: dict[str, Any]) -> Absent | None:
        """The answer to a request for a page that does not exist, whoever asks."""
        if not self._strict or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return None
        try:
            path = decoded(environ.get("PATH_INFO", "")) or "/"
        except UnicodeError:
            return None
        policy, _ = self._rules.match(path)
        return None if self._has(policy, path) else Absent(policy.negative_ttl)

    def _has(self, policy: Policy, path: str) -> bool:
        """Whether the page at a decoded path below the mount point may exist. Where that cannot be found out, it may:
        the app will know."""
        if not policy.lists_all:
            return True
        now, known = self._monotonic(), self._known.get(policy.name)
        if known is not None:
            if path in known.paths:
                return True
            if not callable(policy.paths) or now < known.asked + policy.negative_ttl:
                return False
            # Whoever comes while we ask is told what was known; and what fails is not asked again at once.
            self._known[policy.name] = known._replace(asked=now)
        try:
            paths = frozenset(listed.path for listed in self._rules.listed(policy))
        except Exception as error:
            self._events.emit(Broken(f"rule {policy.name!r}: paths", error))
            return known is None
        self._known[policy.name] = _Known(paths, now)
        return path in paths
