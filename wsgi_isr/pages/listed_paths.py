"""Lists of existing pages: ``paths`` of a rule with ``dynamic_params=False`` is complete.

A fixed list never changes. A callable (a query, say) is asked again for a path that it did not list:

- at once after an invalidation of the path or its rule, if asking takes at most a tenth of the time: random paths have
  tag versions that are new to a process, and they might have been invalidated as well;
- after any other invalidation, at most once a second: each anonymous POST may be one;
- otherwise at most every ``negative_ttl`` seconds, as long as a 404 of the app would be kept.

If the list takes longer than ``lock_timeout``, the app answers.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cache.keyspace import EVERYTHING, route_tag
from ..config.policy import Policy
from ..events import Events, InternalError
from .request_key import MAX_SEGMENTS, PageKey, decoded, tags_of_page

if TYPE_CHECKING:
    from ..config.rule_set import RuleSet

#: Seconds for which a list stays valid after an invalidation of something else.
OTHER_TAGS_AGAIN = 1.0
#: A list stays valid for this many times the time that it took to load, despite invalidations.
LOAD_SHARE = 10
#: The number of tag versions kept for each rule.
MAX_TAG_VERSIONS = 4096

TagVersions = Mapping[str, bytes | None]
"""From a tag to its version; ``None`` if the store has none. Tags on unreachable nodes are left out."""


class Absent(NamedTuple):
    """The rule lists its pages, and this page is not listed.

    :param ttl: seconds for which that is valid.
    :param rule: the pattern of the rule.
    """

    ttl: float
    rule: str = ""


class _Known(NamedTuple):
    """A loaded list, with the time and the epochs of its loading.

    :param paths: ``None`` if loading failed.
    :param asked: monotonic seconds.
    :param seen: tag versions that were read before the list was loaded: the list is newer.
    :param took: seconds that loading took.
    """

    paths: frozenset[str] | None
    asked: float
    epochs: Any
    seen: Mapping[str, bytes] = MappingProxyType({})
    took: float = 0.0


class Listings:
    """The lists of all rules, as one process knows them.

    :param monotonic: monotonic time in seconds.
    :param tag_versions: reads tag versions and writes none; without it, every invalidation concerns every rule.
    """

    def __init__(
        self,
        rules: RuleSet,
        events: Events,
        monotonic: Callable[[], float] = time.monotonic,
        tag_versions: Callable[[Sequence[str]], TagVersions] | None = None,
    ) -> None:
        self._rules = rules
        self._events = events
        self._monotonic = monotonic
        self._tag_versions = tag_versions
        self._known: dict[str, _Known] = {}
        # One lock for each rule: a slow query delays no other rule's pages. A lock is made when it is first needed,
        # after gevent has patched the process, because lists are loaded while it is held.
        self._asking: dict[str, threading.Lock] = {}
        self._strict = any(policy.lists_all for policy in rules.policies.values())

    def absent(self, environ: dict[str, Any], epochs: Callable[[], Any] | None = None) -> Absent | None:
        """Return the answer to a request for a page that does not exist; ``None`` if it may exist.

        :param epochs: returns the current epochs: while they stay, nothing was invalidated. Without it, no earlier
            list is used.
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
            return None  # without a list the app decides
        # A fixed list stays. A callable is asked again and may list the path then.
        age = self._monotonic() - known.asked if callable(policy.paths) else 0.0
        return Absent(max(0.0, policy.negative_ttl - age), policy.name)

    def _listed(self, policy: Policy, path: str, script: str, epochs: Callable[[], Any] | None) -> _Known:
        known = self._known.get(policy.name)
        if known is not None and known.paths is not None and path in known.paths and epochs is not None:
            return known
        # Read the epochs first: tag versions that are read later are at least as new.
        now = epochs() if epochs is not None else None
        tag_versions = functools.cache(lambda: self._read(policy, script, path))
        if self._counts(policy, known, now, tag_versions):
            assert known is not None
            return known
        # One thread loads the list. Other threads use the known list, or wait if it was invalidated since.
        is_due = known is not None and epochs is not None and not self._is_outdated(known, now, tag_versions)
        asking = self._asking.setdefault(policy.name, threading.Lock())
        if not asking.acquire(timeout=0 if is_due else policy.lock_timeout):
            return known if known is not None and is_due else _Known(None, 0.0, now)
        try:
            known = self._known.get(policy.name)
            if not self._counts(policy, known, now, tag_versions):
                seen = _seen(known, tag_versions())  # before loading, so that the list is newer
                known = self._known[policy.name] = self._ask(policy, known, now)._replace(seen=seen)
            assert known is not None
            return known
        finally:
            asking.release()

    def _counts(
        self, policy: Policy, known: _Known | None, epochs: Any, tag_versions: Callable[[], TagVersions]
    ) -> bool:
        if known is None or epochs is None:
            return known is not None and known.paths is not None and not callable(policy.paths)
        if known.paths is not None and not callable(policy.paths):
            return True
        ttl = policy.negative_ttl if known.epochs == epochs else min(OTHER_TAGS_AGAIN, policy.negative_ttl)
        return self._monotonic() < known.asked + ttl and not self._is_outdated(known, epochs, tag_versions)

    def _is_outdated(self, known: _Known, epochs: Any, tag_versions: Callable[[], TagVersions]) -> bool:
        """Return whether a path or its rule may have been invalidated since the list was loaded.

        - A version that is missing and that the list never saw: not invalidated, unless the store has lost it since.
          In that case the list is used for a second more. Otherwise each random path would cause a load.
        - A version that the list saw and that is missing now: lost, and counts as invalidated, once.
        - A version that exists and that the list never saw: invalidated, or that of a path new to this process.
        """
        if known.epochs == epochs:
            return False
        if self._tag_versions is None:
            return True
        changed = {tag for tag, tag_version in tag_versions().items() if known.seen.get(tag) != tag_version}
        if changed & known.seen.keys():
            return True
        return bool(changed) and self._monotonic() >= known.asked + min(OTHER_TAGS_AGAIN, LOAD_SHARE * known.took)

    def _read(self, policy: Policy, script: str, path: str) -> TagVersions:
        """Return the versions of a page's tags, whether the page exists or not."""
        if self._tag_versions is None:
            return {}
        tags = [EVERYTHING, route_tag(policy.name)]
        if path.count("/") <= MAX_SEGMENTS:  # otherwise it is no page of the cache
            key = PageKey("", "", script, path.encode("utf-8").decode("latin-1"))
            try:
                tags = tags_of_page(key, policy, self._rules)
            except Exception:
                pass  # a rule's callable failed for a page that does not exist
        return self._tag_versions(tags)

    def _ask(self, policy: Policy, known: _Known | None, epochs: Any) -> _Known:
        began = self._monotonic()
        paths: frozenset[str] | None
        try:
            paths = frozenset(listed.path for listed in self._rules.listed(policy))
        except Exception as error:
            # Do not load again at once: a load may be slow to fail.
            outcome = "the last known list counts; without one, the app answers for every path"
            self._events.emit(InternalError(f"rule {policy.name!r}: paths", error, outcome))
            paths = known.paths if known is not None else None
        now = self._monotonic()
        return _Known(paths, now, epochs, took=now - began)


def _seen(known: _Known | None, tag_versions: TagVersions) -> Mapping[str, bytes]:
    """Return the versions that a new list is newer than: these, and those of the list before. Drop the oldest."""
    kept = (
        {tag: tag_version for tag, tag_version in known.seen.items() if tag not in tag_versions}
        if known is not None
        else {}
    )
    kept.update((tag, tag_version) for tag, tag_version in tag_versions.items() if tag_version is not None)
    return dict(list(kept.items())[-MAX_TAG_VERSIONS:])
