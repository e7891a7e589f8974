"""Which pages exist: what ``paths`` lists, where ``dynamic_params=False`` makes that the whole truth.

A list is what it is. A callable (a query, say) is asked again for a path that it did not list:

- at once after an invalidation that concerns the path or its rule, as long as asking takes up no more than a tenth of
  the time: random paths have stamps that are new to a process, and might have been invalidated as well;
- after any other invalidation, which each anonymous POST may be, once a second at most;
- otherwise every ``negative_ttl`` seconds at most, as soon as a 404 of the app itself would be gone.

Who would have to wait for it for longer than ``lock_timeout`` is left to the app.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ..cache.keyspace import EVERYTHING, route_tag
from ..config.rules import Policy, RuleSet
from ..events import Events, InternalError
from .request_key import MAX_SEGMENTS, PageKey, decoded, tags_of_page

#: Seconds for which a list counts after an invalidation of something else.
ELSEWHERE = 1.0
#: A list counts for so many times the time that it took to ask for it, whatever may have been invalidated.
SHARE = 10
#: Stamps that are remembered for each rule.
MOST_STAMPS = 4096

TagVersions = Mapping[str, bytes | None]
"""From a tag to its stamp; ``None`` where the store has none. Tags that cannot be asked for are left out."""


class Absent(NamedTuple):
    """The rule lists its pages, and this is none of them; ``ttl`` is how long that holds, in seconds."""

    ttl: float


class _Known(NamedTuple):
    """What was listed, when it was asked for, and the epochs of then. ``paths`` is ``None`` where asking failed.

    ``seen`` are stamps that were read before it was asked for: the list is newer than they are. ``took``: seconds.
    """

    paths: frozenset[str] | None
    asked: float
    epochs: Any
    seen: Mapping[str, bytes] = MappingProxyType({})
    took: float = 0.0


class Listings:
    """The lists of all rules, as one process knows them.

    :param monotonic: seconds.
    :param stamps: reads the stamps of tags, and writes none; without it, every invalidation concerns every rule.
    """

    def __init__(
        self,
        rules: RuleSet,
        events: Events,
        monotonic: Callable[[], float] = time.monotonic,
        stamps: Callable[[Sequence[str]], TagVersions] | None = None,
    ) -> None:
        self._rules = rules
        self._events = events
        self._monotonic = monotonic
        self._stamps = stamps
        self._known: dict[str, _Known] = {}
        # One each: a query that takes long holds up no other rule's pages.
        # Made where it is first needed: gevent has patched the process by then, and lists are asked for under it.
        self._asking: dict[str, threading.Lock] = {}
        self._strict = any(policy.lists_all for policy in rules.policies.values())

    def absent(self, environ: dict[str, Any], epochs: Callable[[], Any] | None = None) -> Absent | None:
        """The answer to a request for a page that does not exist, whoever asks.

        :param epochs: as of now: while they stay, nothing was invalidated. Without it, nothing that was listed before
            counts.
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
        known = self._listed(policy, path, environ.get("SCRIPT_NAME", ""), epochs)
        if known.paths is None or path in known.paths:
            return None  # where it cannot be found out, the app will know
        # A list that is given stays; a callable is asked again, and may list it then.
        age = self._monotonic() - known.asked if callable(policy.paths) else 0.0
        return Absent(max(0.0, policy.negative_ttl - age))

    def _listed(self, policy: Policy, path: str, script: str, epochs: Callable[[], Any] | None) -> _Known:
        known = self._known.get(policy.name)
        if known is not None and known.paths is not None and path in known.paths and epochs is not None:
            return known
        # The epochs first: stamps that are read after them are at least as new.
        now = epochs() if epochs is not None else None
        stamps = functools.cache(lambda: self._read(policy, script, path))
        if self._counts(policy, known, now, stamps):
            assert known is not None
            return known
        # One asks. Meanwhile the others go by what there is, unless it was invalidated since: then they wait.
        is_due = known is not None and epochs is not None and not self._is_outdated(known, now, stamps)
        asking = self._asking.setdefault(policy.name, threading.Lock())
        if not asking.acquire(timeout=0 if is_due else policy.lock_timeout):
            return known if known is not None and is_due else _Known(None, 0.0, now)
        try:
            known = self._known.get(policy.name)
            if not self._counts(policy, known, now, stamps):
                seen = _seen(known, stamps())  # before the list is asked for: then it is newer
                known = self._known[policy.name] = self._ask(policy, known, now)._replace(seen=seen)
            assert known is not None
            return known
        finally:
            asking.release()

    def _counts(self, policy: Policy, known: _Known | None, epochs: Any, stamps: Callable[[], TagVersions]) -> bool:
        if known is None or epochs is None:
            return known is not None and known.paths is not None and not callable(policy.paths)
        if known.paths is not None and not callable(policy.paths):
            return True
        ttl = policy.negative_ttl if known.epochs == epochs else min(ELSEWHERE, policy.negative_ttl)
        return self._monotonic() < known.asked + ttl and not self._is_outdated(known, epochs, stamps)

    def _is_outdated(self, known: _Known, epochs: Any, stamps: Callable[[], TagVersions]) -> bool:
        """Return whether a path or its rule may have been invalidated since the list was asked for.

        A tag that is missing and that the list never saw was not invalidated, unless the store has lost it since:
        then the list counts for a second more. Anything else would let random paths have it asked for each time. A
        tag that the list did see and that is missing now was lost, and counts as invalidated, once. One that is there
        and that the list never saw may have been invalidated, or be that of a path which nobody had asked for here.
        """
        if known.epochs == epochs:
            return False
        if self._stamps is None:
            return True
        changed = {tag for tag, stamp in stamps().items() if known.seen.get(tag) != stamp}
        if changed & known.seen.keys():
            return True
        return bool(changed) and self._monotonic() >= known.asked + min(ELSEWHERE, SHARE * known.took)

    def _read(self, policy: Policy, script: str, path: str) -> TagVersions:
        """Return the stamps of the tags that a page has, whether there is such a page or not."""
        if self._stamps is None:
            return {}
        tags = [EVERYTHING, route_tag(policy.name)]
        if path.count("/") <= MAX_SEGMENTS:  # otherwise it is no page of the cache
            key = PageKey("", "", script, path.encode("utf-8").decode("latin-1"))
            try:
                tags = tags_of_page(key, policy, self._rules)
            except Exception:
                pass  # a rule's own callable, for a page that does not exist
        return self._stamps(tags)

    def _ask(self, policy: Policy, known: _Known | None, epochs: Any) -> _Known:
        began = self._monotonic()
        paths: frozenset[str] | None
        try:
            paths = frozenset(listed.path for listed in self._rules.listed(policy))
        except Exception as error:
            # Not asked again at once: it may have taken its time to fail.
            outcome = "the last known list counts; without one, the app answers for every path"
            self._events.emit(InternalError(f"rule {policy.name!r}: paths", error, outcome))
            paths = known.paths if known is not None else None
        now = self._monotonic()
        return _Known(paths, now, epochs, took=now - began)


def _seen(known: _Known | None, stamps: TagVersions) -> Mapping[str, bytes]:
    """Return what a new list is newer than: these stamps, and those of the list before. The oldest are forgotten."""
    kept = {tag: stamp for tag, stamp in known.seen.items() if tag not in stamps} if known is not None else {}
    kept.update((tag, stamp) for tag, stamp in stamps.items() if stamp is not None)
    return dict(list(kept.items())[-MOST_STAMPS:])
