"""Decisions, without I/O: what an entry is worth now, and what of an answer may be stored.

A look-up ends in one of six verdicts. The word of the verdict is the class, the counter and the log
field.
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


@dataclass(frozen=True, slots=True)
class Fresh:
    """Serve it; nothing else to do."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Stale:
    """Serve it at once, and have it rendered anew in the background."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Expired:
    """Too old to be served while a new one can be had; kept for when rendering fails."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Missing:
    """Nothing to serve: the visitor waits for the one render."""


class Uncacheable(NamedTuple):
    """The app's answer may not be shared: each visitor gets the app's answer to their own request.

    ``due``: it is time to find out, in the background, whether that is still so.
    """

    reason: str
    due: bool


class Bypass(NamedTuple):
    """This request is not for the cache."""

    reason: str


Verdict = Fresh | Stale | Expired | Missing | Uncacheable
"""How a look-up ends. (:class:`Bypass` is decided before there is anything to look up.)"""


class Validity(enum.IntEnum):
    """What has happened to an entry's tags since before its render; the higher, the stronger."""

    VALID = 1
    UNKNOWN = 2
    """A node that holds one of its tags cannot be asked. Time alone decides, and the answer is marked."""
    STALE = 3
    EXPIRED = 4
    PURGED = 5


def judge(entry: Entry | None, standing: Validity, now: float) -> Verdict:
    """What ``entry`` is worth at ``now`` (seconds of Unix time)."""
    if entry is None or standing is Validity.PURGED:
        return Missing()
    age = entry.age(now)
    if isinstance(entry.content, HitForMiss):
        if standing is Validity.EXPIRED:
            return Missing()
        due = standing is Validity.STALE or (entry.revalidate is not None and age >= entry.revalidate)
        return Uncacheable(entry.content.reason, due)
    if standing is Validity.EXPIRED or (entry.expire is not None and age >= entry.expire):
        return Expired(entry)
    if standing is Validity.STALE or (entry.revalidate is not None and age >= entry.revalidate):
        return Stale(entry)
    return Fresh(entry)


class Storable(NamedTuple):
    """May be stored for this long; past ``keep`` seconds the store may forget it, ``None`` for never.
    ``tags`` are those that the render itself asked for; ``carried`` those of the data it used, with the
    stamps that the data carries. ``said``: what was said meanwhile, of data that may be handed out without being kept.
    ``is_negative``: it says that there is nothing, as a 404 does; clients can ask for any number of these.

    A good page is kept however old it is: it is what there is when rendering fails. What only says
    that there is nothing goes by itself, or random URLs would fill the store.
    """

    content: Content | Value | HitForMiss
    lifetime: Lifetime
    keep: float | None = None
    tags: tuple[str, ...] = ()
    carried: tuple[tuple[str, bytes], ...] = ()
    said: CacheDirectives | None = None
    is_negative: bool = False


class Failure(NamedTuple):
    """Not an answer but an accident: the last good page stays.

    ``content`` is what the app had to say, for a visitor who has nothing else to see; ``said`` what it said about that,
    or before it raised ``error``.
    """

    reason: str
    content: Content | Value | None = None
    said: CacheDirectives | None = None
    error: Exception | None = None


class Personal(NamedTuple):
    """An answer that may not be stored, for ``reason``, but suits the client on whose behalf it was made."""

    reason: str
    content: Content


_TARGETED = "cdn-cache-control"
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2, in lower case

FAILED_STATUSES = frozenset({429, *range(500, 600)})
#: Statuses that say that there is nothing; they live for ``negative_ttl`` (RFC 9110, 15.5.5 and 15.5.11).
NEGATIVE_STATUSES = frozenset({404, 410})


@dataclass(slots=True)
class CacheDirectives:
    """What the code that makes a page has said about it while it did, and the data that it used.

    ``carried``: the tags of that data with the stamps that the data carries. Where two pieces of data
    disagree, one of them is outdated, and nothing is proven: ``b""``. ``asks``: the code has asked for a lifetime; data
    only limits one. ``failed``: why it is an accident, and the last good one stays. Several threads of an app may make
    one page.
    """

    tags: list[str] = field(default_factory=list)
    lifetime: Lifetime | None = None
    asks: bool = False
    no_store: bool = False
    carried: dict[str, bytes] = field(default_factory=dict)
    failed: str = ""
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def use(self, entry: Entry, now: float) -> None:
        """A piece of data went in: its tags, and what is left of its lifetime."""
        age = entry.age(now)
        # Even when it is over by now: 0 would mean that nothing made of it is ever kept.
        left = [None if limit is None else max(0.001, limit - age) for limit in (entry.revalidate, entry.expire)]
        self.limit(*left)
        self._carry(entry.proof.tags)

    def take_over(self, inner: CacheDirectives, carried: Mapping[str, bytes]) -> None:
        """Something went in that was made for it alone: all that was said of that, and the tags that it would have
        been kept under."""
        self.tags += inner.tags
        self._carry([*carried.items(), *inner.carried.items()])
        if inner.no_store:
            self.no_store = True
        if inner.failed:
            self.failed = inner.failed
        if inner.lifetime is not None:
            self.limit(*inner.lifetime)

    def _carry(self, stamped: Iterable[tuple[str, bytes]]) -> None:
        with self._changing:
            for tag, stamp in stamped:
                self.carried[tag] = stamp if self.carried.get(tag, stamp) == stamp else b""

    def ask(self, revalidate: float | None, expire: float | None) -> None:
        """Let it be kept, for at most so many seconds."""
        self.limit(revalidate, expire)
        self.asks = True

    def limit(self, revalidate: float | None, expire: float | None) -> None:
        """Let it be kept for at most so many seconds, if it is kept at all. The lowest limit wins."""
        with self._changing:
            self.lifetime = (self.lifetime or Lifetime(None, None)).lowest(revalidate, expire)
