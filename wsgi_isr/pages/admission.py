"""Admission: which answers of an app may be stored, and for how long (RFC 9111, RFC 5861, RFC 9213)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce

from ..cache.entry import Content, HitForMiss
from ..cache.verdict import (
    _TARGETED,
    _TOKEN,
    FAILED_STATUSES,
    NEGATIVE_STATUSES,
    STORE_GRACE,
    CacheDirectives,
    Failure,
    Storable,
)
from ..config.lifetime import Lifetime
from ..config.policy import Policy
from .response_headers import date_of, is_for_caches, is_of_one_answer, kept, strong_etag


def admit(
    status: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    policy: Policy,
    asked: CacheDirectives | None = None,
    *,
    now: float,
) -> Storable | HitForMiss | Failure:
    """Return the result of an app's complete answer to a canonical request: storable, hit-for-miss or failure.

    :param now: Unix time in seconds.
    """
    asked = asked or CacheDirectives()
    lower = [(name.lower(), value) for name, value in headers]
    code = int(status[:3])
    # Several requests may wait for one failure.
    known = [(name, value) for name, value in headers if not is_of_one_answer(name)]
    if code in FAILED_STATUSES:
        # An answer with Set-Cookie is for one client. Requests that joined the flight must not get it.
        shareable = not any(name == "set-cookie" for name, _ in lower)
        return Failure(f"status-{code}", Content(status, tuple(known), body, "") if shareable else None)
    if reason := refuse(code, headers, policy):
        return HitForMiss(reason)
    for name, value in lower:
        if name == "content-length" and value.strip() != str(len(body)):
            return Failure("content-length")
    if asked.no_store:
        return HitForMiss("no-store")
    if asked.failed:
        # The app's lifetime is dropped: the app did not know of the failure.
        known = [(name, value) for name, value in known if not is_for_caches(name)]
        return Failure(asked.failed, Content(status, (*known, ("Cache-Control", "no-store")), body, ""))
    in_headers = _asked(lower) or (_for_everybody(lower, now) if policy.lifetime is None else None)
    if policy.lifetime is None and in_headers is None and not asked.asks:
        return HitForMiss("not-asked")
    lifetime = _lowest(policy.lifetime, asked.lifetime, in_headers)
    assert lifetime is not None
    if policy.lifetime is None and policy.expire is not None:
        lifetime = lifetime.lowest(policy.expire, policy.expire)
    source = _source(policy.lifetime, in_headers, asked, lifetime)
    if not _directives(lower).keys().isdisjoint(("must-revalidate", "proxy-revalidate")):
        # RFC 9111, 4.2.4: such an answer may never be served stale.
        lifetime = lifetime.lowest(None, lifetime.revalidate)
    keep = None
    if code in NEGATIVE_STATUSES:
        # A missing page may exist in a moment: no grace, and no long place in the store.
        lifetime = lifetime.lowest(policy.negative_ttl, policy.negative_ttl)
        keep = policy.negative_ttl + STORE_GRACE
        source = "negative_ttl"
    if lifetime.revalidate == 0:
        return HitForMiss("revalidate-0")
    fields = kept(headers)
    varies = _list(lower, "vary")
    # A header that selects a page here does so for every downstream cache (RFC 9110, 12.5.5).
    if undeclared := [name for name in policy.declares if name.lower() not in varies]:
        fields.append(("Vary", ", ".join(undeclared)))
    etag = strong_etag(headers) or hashlib.blake2b(body, digest_size=12).hexdigest()
    content = Content(status, tuple(fields), body, etag, "cookie" in varies)
    named = [tag.strip() for name, value in headers if name.lower() == "cache-tag" for tag in value.split(",")]
    tags = dict.fromkeys([*asked.tags, *filter(None, named)])
    carried = tuple(asked.carried.items())
    used = tuple(asked.used)
    return Storable(content, lifetime, keep, tuple(tags), carried, None, keep is not None, source, used)


def refuse(code: int, headers: Sequence[tuple[str, str]], policy: Policy) -> str:
    """Return why an answer with this head may not be stored, as a token; empty if it may, or if it is a failure.

    The reason is known as soon as the app has called ``start_response``, before it has sent its body.
    """
    lower = [(name.lower(), value) for name, value in headers]
    if code in FAILED_STATUSES:
        return ""
    # Set-Cookie comes first: operators must learn of it, whatever other reasons there are.
    if any(name == "set-cookie" for name, _ in lower):
        return "set-cookie"
    if code not in policy.statuses:
        return f"status-{code}"
    # RFC 9213, 2.2: a targeted field, if present, replaces Cache-Control for a shared cache.
    directives = _directives(lower).keys()
    # RFC 9111, 5.2.2.4, 5.2.2.5 and 5.2.2.7. A field list ("private=X-Name") refuses the whole answer: storing parts
    # of an answer is not worth the risk.
    for directive in ("no-store", "private", "no-cache"):
        if directive in directives:
            return directive
    for header in _list(lower, "vary"):
        if header not in policy.varies_on and header not in ("accept-encoding", "cookie"):
            return f"vary-{header}" if _TOKEN.fullmatch(header) and header != "*" else "vary-any"
    for name, value in lower:
        if name == "content-type" and value.lower().startswith("text/event-stream"):
            return "event-stream"  # an event stream does not end
        if name == "content-security-policy" and "'nonce-" in value.lower():
            return "csp-nonce"  # valid for one answer (CSP 3, 7.1): a client that knows it may run scripts in the next
        if name == "content-length" and (_delta(value) or 0) > policy.max_body:
            return "max-body"
    return ""


def varies(headers: Sequence[tuple[str, str]]) -> set[str]:
    """Return the lower-case names of the request headers in an answer's ``Vary``."""
    return set(_list([(name.lower(), value) for name, value in headers], "vary"))


def _lowest(*lifetimes: Lifetime | None) -> Lifetime | None:
    given = [lifetime for lifetime in lifetimes if lifetime is not None]
    if not given:
        return None
    return reduce(lambda one, other: one.lowest(other.revalidate, other.expire), given)


def _source(rule: Lifetime | None, header: Lifetime | None, asked: CacheDirectives, result: Lifetime) -> str:
    """Return the origin of the lowest ``revalidate``; of two equal ones, the more general origin."""
    for name, lifetime in (("rule", rule), ("header", header)):
        if lifetime is not None and lifetime.revalidate == result.revalidate:
            return name
    return "data" if asked.by_data == result.revalidate and asked.by_data is not None else "code"


def _asked(lower: Sequence[tuple[str, str]]) -> Lifetime | None:
    """Return the lifetime that an app asks a shared cache for.

    ``CDN-Cache-Control`` (RFC 9213) comes before ``Cache-Control``; ``s-maxage`` (RFC 9111, 5.2.2.10) goes with
    ``stale-while-revalidate`` (RFC 5861, 3). ``max-age`` alone speaks to browsers and does not shorten a rule.
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
    """Return the lifetime that an answer has for any cache: ``max-age``, or else ``Expires`` (RFC 9111, 4.2.1).

    A lifetime is never guessed (4.2.2).
    """
    directives = _directives_of(lower, "cache-control")
    seconds = _delta(directives.get("max-age"))
    window = _delta(directives.get("stale-while-revalidate"))
    header = dict(lower)
    if seconds is None and "expires" in header:
        # 5.3: an invalid date counts as expired.
        expires, date = date_of(header["expires"]), date_of(header.get("date"))
        seconds = expires.timestamp() - (date.timestamp() if date else now) if expires else 0.0
    if seconds is None:
        return None
    seconds = max(0.0, seconds - (_delta(header.get("age")) or 0.0))
    return Lifetime(seconds, None if window is None else seconds + window)


def _directives(lower: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the directives for a shared cache.

    RFC 9213, 2.2: the targeted field, if present and readable, replaces ``Cache-Control``.
    """
    return _directives_of(lower, _TARGETED) or _directives_of(lower, "cache-control")


def _directives_of(lower: Sequence[tuple[str, str]], header: str) -> dict[str, str]:
    parts = [part.partition("=") for part in _list(lower, header)]
    directives = {name.strip(): value for name, _, value in parts}
    readable = all(map(_TOKEN.fullmatch, directives))
    return directives if readable or header != _TARGETED else {}


def _delta(text: str | None) -> float | None:
    text = (text or "").strip().strip('"')
    # RFC 9111, 1.2.2: values beyond 2**31 count as 2**31. isdigit() alone would accept digits of other scripts, and
    # int() refuses very long numbers.
    return float(min(int(text.lstrip("0")[:12] or "0"), 2**31)) if text.isascii() and text.isdigit() else None


def _list(lower: Sequence[tuple[str, str]], field: str) -> list[str]:
    return [part.strip().lower() for name, value in lower if name == field for part in value.split(",") if part.strip()]
