"""Decisions, without I/O: what an entry is worth now, and what of an answer may be stored.

A look-up ends in one of six verdicts. The word of the verdict is the class, the counter and the log
field.
"""

from __future__ import annotations

import enum
import hashlib
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

from ..config.rules import Policy
from ..pages.response_headers import date_of, is_for_caches, is_of_one_answer, kept, strong_etag
from .entry import Content, Entry, Lifetime, Refusal, Value


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


class Standing(enum.IntEnum):
    """What has happened to an entry's tags since before its render; the higher, the stronger."""

    VALID = 1
    UNPROVEN = 2
    """A node that holds one of its tags cannot be asked. Time alone decides, and the answer is marked."""
    SOFT = 3
    HARD = 4
    PURGED = 5


def judge(entry: Entry | None, standing: Standing, now: float) -> Verdict:
    """What ``entry`` is worth at ``now`` (seconds of Unix time)."""
    if entry is None or standing is Standing.PURGED:
        return Missing()
    age = entry.age(now)
    if isinstance(entry.content, Refusal):
        if standing is Standing.HARD:
            return Missing()
        due = standing is Standing.SOFT or (entry.revalidate is not None and age >= entry.revalidate)
        return Uncacheable(entry.content.reason, due)
    if standing is Standing.HARD or (entry.expire is not None and age >= entry.expire):
        return Expired(entry)
    if standing is Standing.SOFT or (entry.revalidate is not None and age >= entry.revalidate):
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

    content: Content | Value | Refusal
    lifetime: Lifetime
    keep: float | None = None
    tags: tuple[str, ...] = ()
    carried: tuple[tuple[str, bytes], ...] = ()
    said: Asked | None = None
    is_negative: bool = False


class Failure(NamedTuple):
    """Not an answer but an accident: the last good page stays.

    ``content`` is what the app had to say, for a visitor who has nothing else to see; ``said`` what it said about that,
    or before it raised ``error``.
    """

    reason: str
    content: Content | Value | None = None
    said: Asked | None = None
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
class Asked:
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

    def take_over(self, inner: Asked, carried: Mapping[str, bytes]) -> None:
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


def admit(
    status: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    policy: Policy,
    asked: Asked | None = None,
    *,
    now: float,
) -> Storable | Refusal | Failure:
    """Return what becomes of an app's complete answer to a canonical request.

    :param now: seconds of Unix time.
    """
    asked = asked or Asked()
    lower = [(name.lower(), value) for name, value in headers]
    code = int(status[:3])
    # Several visitors may wait for one failure.
    known = [(name, value) for name, value in headers if not is_of_one_answer(name)]
    if code in FAILED_STATUSES:
        # With a Set-Cookie it is one visitor's answer, not to be handed to those who joined the wait.
        shareable = not any(name == "set-cookie" for name, _ in lower)
        return Failure(f"status-{code}", Content(status, tuple(known), body, "") if shareable else None)
    if reason := refuse(code, headers, policy):
        return Refusal(reason)
    for name, value in lower:
        if name == "content-length" and value.strip() != str(len(body)):
            return Failure("content-length")
    if asked.no_store:
        return Refusal("no-store")
    if asked.failed:
        # Whatever the app says of how long it may be kept: it did not know.
        known = [(name, value) for name, value in known if not is_for_caches(name)]
        return Failure(asked.failed, Content(status, (*known, ("Cache-Control", "no-store")), body, ""))
    in_headers = _asked(lower) or (_for_everybody(lower, now) if policy.lifetime is None else None)
    if policy.lifetime is None and in_headers is None and not asked.asks:
        return Refusal("not-asked")
    lifetime = _lowest(policy.lifetime, asked.lifetime, in_headers)
    assert lifetime is not None
    if policy.lifetime is None and policy.expire is not None:
        lifetime = lifetime.lowest(policy.expire, policy.expire)
    if not _directives(lower).keys().isdisjoint(("must-revalidate", "proxy-revalidate")):
        # RFC 9111, 4.2.4: then not even for a moment may it be served stale.
        lifetime = lifetime.lowest(None, lifetime.revalidate)
    keep = None
    if code in NEGATIVE_STATUSES:
        # What is not there may be there in a moment: no second of grace, and no place in the store.
        lifetime = lifetime.lowest(policy.negative_ttl, policy.negative_ttl)
        keep = policy.negative_ttl + 60
    if lifetime.revalidate == 0:
        return Refusal("revalidate-0")
    fields = kept(headers)
    varies = _list(lower, "vary")
    # What makes a different page here does so for every cache downstream (RFC 9110, 12.5.5).
    if undeclared := [name for name in policy.declares if name.lower() not in varies]:
        fields.append(("Vary", ", ".join(undeclared)))
    etag = strong_etag(headers) or hashlib.blake2b(body, digest_size=12).hexdigest()
    content = Content(status, tuple(fields), body, etag, "cookie" in varies)
    named = [tag.strip() for name, value in headers if name.lower() == "cache-tag" for tag in value.split(",")]
    tags = dict.fromkeys([*asked.tags, *filter(None, named)])
    carried = tuple(asked.carried.items())
    return Storable(content, lifetime, keep, tuple(tags), carried, is_negative=keep is not None)


def refuse(code: int, headers: Sequence[tuple[str, str]], policy: Policy) -> str:
    """Why an answer with this head may not be stored, as a token; empty where it may, or where it is a
    failure. Known as soon as the app has called ``start_response``, before it has sent its body."""
    lower = [(name.lower(), value) for name, value in headers]
    if code in FAILED_STATUSES:
        return ""
    # First, because it is the reason to be told about, whatever else there is.
    if any(name == "set-cookie" for name, _ in lower):
        return "set-cookie"
    if code not in policy.statuses:
        return f"status-{code}"
    # RFC 9213, 2.2: where the targeted field is present, it is the one that counts for a shared cache.
    directives = _directives(lower).keys()
    # RFC 9111, 5.2.2.4, 5.2.2.5 and 5.2.2.7. A field list ("private=X-Name") refuses the whole: it is never
    # worth the risk to take it apart.
    for directive in ("no-store", "private", "no-cache"):
        if directive in directives:
            return directive
    for header in _list(lower, "vary"):
        if header not in policy.varies_on and header not in ("accept-encoding", "cookie"):
            return f"vary-{header}" if _TOKEN.fullmatch(header) and header != "*" else "vary-any"
    for name, value in lower:
        if name == "content-type" and value.lower().startswith("text/event-stream"):
            return "event-stream"  # it has no end
        if name == "content-security-policy" and "'nonce-" in value.lower():
            return "csp-nonce"  # good for one answer (CSP 3, 7.1): whoever knows it may run scripts in the next one
        if name == "content-length" and (_delta(value) or 0) > policy.max_body:
            return "max-body"
    return ""


def varies(headers: Sequence[tuple[str, str]]) -> set[str]:
    """The lower-case names of the request headers by which an answer is said to vary."""
    return set(_list([(name.lower(), value) for name, value in headers], "vary"))


def _lowest(*lifetimes: Lifetime | None) -> Lifetime | None:
    given = [lifetime for lifetime in lifetimes if lifetime is not None]
    if not given:
        return None
    return reduce(lambda one, other: one.lowest(other.revalidate, other.expire), given)


def _asked(lower: Sequence[tuple[str, str]]) -> Lifetime | None:
    """Return the lifetime that an app asks a shared cache for.

    ``CDN-Cache-Control`` (RFC 9213) before ``Cache-Control``; ``s-maxage`` (RFC 9111, 5.2.2.10) with
    ``stale-while-revalidate`` (RFC 5861, 3). ``max-age`` alone speaks to browsers: a rule is not shortened by it.
    """
    for header, names in ((_TARGETED, ("s-maxage", "max-age")), ("cache-control", ("s-maxage",))):
        directives = _directives_of(lower, header)
        for name in names:
            seconds = _delta(directives.get(name))
            if seconds is not None:
                window = _delta(directives.get("stale-while-revalidate"))
                return Lifetime(seconds, None if window is None else seconds + window)
    return None


def _for_everybody(lower: Sequence[tuple[str, str]], now: float) -> Lifetime | None:
    """Return the lifetime that an answer has for any cache: ``max-age``, or else ``Expires`` (RFC 9111, 4.2.1). None is
    ever guessed (4.2.2)."""
    directives = _directives_of(lower, "cache-control")
    seconds = _delta(directives.get("max-age"))
    window = _delta(directives.get("stale-while-revalidate"))
    header = dict(lower)
    if seconds is None and "expires" in header:
        # 5.3: what is no date has expired.
        expires, date = date_of(header["expires"]), date_of(header.get("date"))
        seconds = expires.timestamp() - (date.timestamp() if date else now) if expires else 0.0
    if seconds is None:
        return None
    seconds = max(0.0, seconds - (_delta(header.get("age")) or 0.0))
    return Lifetime(seconds, None if window is None else seconds + window)


def _directives(lower: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What a shared cache is told. RFC 9213, 2.2: where the targeted field is present and can be read, it is the
    one that counts."""
    return _directives_of(lower, _TARGETED) or _directives_of(lower, "cache-control")


def _directives_of(lower: Sequence[tuple[str, str]], header: str) -> dict[str, str]:
    parts = [part.partition("=") for part in _list(lower, header)]
    directives = {name.strip(): value for name, _, value in parts}
    readable = all(map(_TOKEN.fullmatch, directives))
    return directives if readable or header != _TARGETED else {}


def _delta(text: str | None) -> float | None:
    text = (text or "").strip().strip('"')
    # RFC 9111, 1.2.2: beyond 2**31 counts as 2**31. isdigit() alone would let other scripts' digits in, and
    # int() refuses more of them than anybody can mean.
    return float(min(int(text.lstrip("0")[:12] or "0"), 2**31)) if text.isascii() and text.isdigit() else None


def _list(lower: Sequence[tuple[str, str]], field: str) -> list[str]:
    return [part.strip().lower() for name, value in lower if name == field for part in value.split(",") if part.strip()]
