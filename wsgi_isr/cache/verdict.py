"""Decide, without I/O, whether an entry may be served and whether a response may be stored.

A look-up ends in one of five verdicts; :class:`Bypass` is decided before it. The name of a class is also the name of
its counter and its value in logs.
"""

from __future__ import annotations

import enum
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..config.lifetime import Lifetime
from .entry import Content, Entry, HitForMiss, Value


class _OfEntry:
    """A verdict on an entry. Not a dataclass: each look-up makes one, and three dataclasses cost 1 ms of the import."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.entry == other.entry

    def __hash__(self) -> int:
        return hash((type(self), self.entry))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.entry!r})"


class Fresh(_OfEntry):
    """The entry is served as it is."""

    __slots__ = ()


class Stale(_OfEntry):
    """The entry is served at once, and regenerated in the background."""

    __slots__ = ()


class Expired(_OfEntry):
    """The entry is too old to be served, except where rendering fails."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no entry to serve: the client waits for the one render."""


class Uncacheable(NamedTuple):
    """The entry is a hit-for-miss: the app answers each request itself.

    :param reason: the reason of the hit-for-miss, a token.
    :param due: a background render is due, to find out whether the page may be stored now.
    """

    reason: str
    due: bool


class Bypass(NamedTuple):
    """The request is not for the cache."""

    reason: str


Verdict = Fresh | Stale | Expired | Missing | Uncacheable
"""The result of a look-up. (:class:`Bypass` is decided before a look-up.)"""


class Validity(enum.IntEnum):
    """The validity of an entry by its tags: the strongest invalidation since before its render.

    A higher value is a stronger invalidation.
    """

    VALID = 1
    UNKNOWN = 2
    """A node that holds one of the tags is unreachable. Age alone decides, and the response is marked."""
    STALE = 3
    EXPIRED = 4
    PURGED = 5


def judge(entry: Entry | None, validity: Validity, now: float) -> Verdict:
    """Return the verdict on an entry.

    :param validity: the validity of the entry.
    :param now: Unix time in seconds.
    """
    if entry is None or validity is Validity.PURGED:
        return Missing()
    age = entry.age(now)
    if isinstance(entry.content, HitForMiss):
        if validity is Validity.EXPIRED:
            return Missing()
        due = validity is Validity.STALE or (entry.revalidate is not None and age >= entry.revalidate)
        return Uncacheable(entry.content.reason, due)
    if validity is Validity.EXPIRED or (entry.expire is not None and age >= entry.expire):
        return Expired(entry)
    if validity is Validity.STALE or (entry.revalidate is not None and age >= entry.revalidate):
        return Stale(entry)
    return Fresh(entry)


#: Seconds for which the store keeps a negative page or a hit-for-miss beyond its lifetime, to be served while it is
#: rendered again.
STORE_GRACE = 60.0


#: The most keys of data that a render remembers.
MAX_USED = 16


class Storable(NamedTuple):
    """A result that may be stored.

    :param keep: seconds after which the store may evict the entry; ``None`` for never. A good page is never evicted by
        age: it is the fallback for errors. A negative one is, or random URLs would fill the store.
    :param tags: the tags that the render itself gave.
    :param carried: the tags of the data that the render used, with the versions that the data carries.
    :param directives: the cache directives of the render, for data that may be returned without being stored.
    :param is_negative: the page does not exist, as with a 404. Clients can ask for any number of these.
    :param source: the origin of the lifetime (:class:`~wsgi_isr.events.Rendered`).
    :param used: the keys of the cached data that the render used.
    """

    content: Content | Value | HitForMiss
    lifetime: Lifetime
    keep: float | None = None
    tags: tuple[str, ...] = ()
    carried: tuple[tuple[str, bytes], ...] = ()
    directives: CacheDirectives | None = None
    is_negative: bool = False
    source: str = ""
    used: tuple[str, ...] = ()


class Failure(NamedTuple):
    """A failed render: the last good page stays.

    :param reason: a token.
    :param content: the app's error response, for a client for which there is no page.
    :param directives: the cache directives of the render, up to the point where it raised ``error``.
    """

    reason: str
    content: Content | Value | None = None
    directives: CacheDirectives | None = None
    error: Exception | None = None


class Personal(NamedTuple):
    """A response that may not be stored, for ``reason``, but fits the client that it was rendered for."""

    reason: str
    content: Content


_TARGETED = "cdn-cache-control"
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2, in lower case

FAILED_STATUSES = frozenset({429, *range(500, 600)})
#: Statuses of pages that do not exist (RFC 9110, 15.5.5 and 15.5.11); they live for ``negative_ttl``.
NEGATIVE_STATUSES = frozenset({404, 410})


@dataclass(slots=True)
class CacheDirectives:
    """The cache directives that the code gave during a render, and the tags of the data that it used.

    Several threads of an app may render one page: ``_changing`` guards the fields that they merge.

    :param asks: the code has asked for a lifetime. Data only limits a lifetime.
    :param carried: the tags of the data, with the versions that the data carries. Where two pieces of data disagree,
        one of them is outdated, and the version is ``b""``, which proves nothing.
    :param failed: the reason of a failed render, a token; the last good entry stays.
    :param used: the keys of the data, the first :data:`MAX_USED` of them.
    :param by_data: the lowest ``revalidate`` that data left.
    """

    tags: list[str] = field(default_factory=list)
    lifetime: Lifetime | None = None
    asks: bool = False
    no_store: bool = False
    carried: dict[str, bytes] = field(default_factory=dict)
    failed: str = ""
    used: dict[str, None] = field(default_factory=dict)
    by_data: float | None = None
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def use(self, entry: Entry, now: float) -> None:
        """Add the tags of cached data that the render uses, and the rest of the data's lifetime."""
        age = entry.age(now)
        # The least is above 0, even for data past its lifetime: 0 would mean that the page is never stored.
        left = [None if limit is None else max(0.001, limit - age) for limit in (entry.revalidate, entry.expire)]
        self.limit(*left)
        with self._changing:
            if left[0] is not None and (self.by_data is None or left[0] < self.by_data):
                self.by_data = left[0]
            if len(self.used) < MAX_USED:
                self.used[entry.key] = None
        self._carry(entry.snapshot.tags)

    def take_over(self, inner: CacheDirectives, carried: Mapping[str, bytes]) -> None:
        """Add the directives and tags of data that was rendered for this page alone.

        :param carried: the tags that the data would be stored with, with their versions.
        """
        self.tags += inner.tags
        self._carry([*carried.items(), *inner.carried.items()])
        if inner.no_store:
            self.no_store = True
        if inner.failed:
            self.failed = inner.failed
        with self._changing:
            self.used |= dict.fromkeys(list(inner.used)[: MAX_USED - len(self.used)])
        if inner.lifetime is not None:
            self.limit(*inner.lifetime)

    def _carry(self, stamped: Iterable[tuple[str, bytes]]) -> None:
        with self._changing:
            for tag, tag_version in stamped:
                self.carried[tag] = tag_version if self.carried.get(tag, tag_version) == tag_version else b""

    def ask(self, revalidate: float | None, expire: float | None) -> None:
        """Ask for storage, for at most so many seconds (``None``: no limit)."""
        self.limit(revalidate, expire)
        self.asks = True

    def limit(self, revalidate: float | None, expire: float | None) -> None:
        """Limit the lifetime to so many seconds, without asking for storage. The lowest limit wins."""
        with self._changing:
            self.lifetime = (self.lifetime or Lifetime(None, None)).lowest(revalidate, expire)
