"""Header fields of an app's answer, and the ones that a stored page keeps.

Directives for browsers are kept as the app sent them. Directives for shared caches apply to this cache and are not
sent on. Fields about one single answer would be wrong in all others, so they are dropped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from werkzeug.http import parse_date

#: Cache-Control for revalidation at each request. A 304 has no body.
ASK_EACH_TIME = "max-age=0, must-revalidate"

#: Fields about one single answer: its request, its trace or its time. The README has this list; ``*`` stands for any
#: end.
OF_ONE_ANSWER = (
    *("X-Request-ID", "X-Correlation-ID", "Request-Id", "X-Amz-Request-Id", "X-Amzn-RequestId", "X-Ms-Request-Id"),
    *("X-Runtime", "X-Response-Time", "X-Process-Time", "Server-Timing", "Date"),
    *("traceparent", "tracestate", "traceresponse", "b3", "X-B3-*", "X-Trace-Id", "X-Datadog-*", "Sentry-Trace"),
    *("Uber-Trace-Id", "X-Amzn-Trace-Id", "X-Cloud-Trace-Context"),
    *("CF-Ray", "X-Amz-Cf-Id", "Fly-Request-Id", "X-Vercel-Id"),
)

# Lifetimes and tags for shared caches alone: RFC 9213 (each cache may have its own field), the Edge Architecture, and
# fields that one product reads before Cache-Control.
_FOR_SHARED_CACHES = frozenset(
    {
        *("cache-tag", "edge-cache-tag", "surrogate-key", "surrogate-control", "edge-control"),
        *("x-accel-expires", "x-litespeed-cache-control", "x-litespeed-tag"),
    }
)
_FOR_ALL_CACHES = frozenset({"cache-control", "expires", "pragma"})

# Fields that each response gets anew, and fields about one connection (RFC 9110, 7.6.1). Only parts of Cache-Control
# and ETag are kept.
_MADE_ANEW = frozenset(
    {
        *("age", "cache-control", "cache-status", "content-length", "etag", "pragma", "x-isr"),
        *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    }
)
_SINGLE = frozenset(name.lower() for name in OF_ONE_ANSWER if not name.endswith("*"))
_SINGLE_BEGINS = tuple(name[:-1].lower() for name in OF_ONE_ANSWER if name.endswith("*"))

# RFC 9111, 5.2: a directive is a token, and may have a token or a quoted string as its value.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_DIRECTIVE = re.compile(rf'({_TOKEN})\s*(?:=\s*({_TOKEN}|"(?:[^"\\]|\\.)*"))?')
# A part between commas; a quoted string may contain commas.
_MEMBER = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')

_TO_SHARED_CACHES = frozenset({"s-maxage", "proxy-revalidate"})
#: With any of these a browser need not guess a lifetime.
_SAY_HOW_LONG = frozenset({"max-age", "no-store", "no-cache"})
#: These qualify a lifetime and mean nothing without one (RFC 8246, 2; RFC 5861, 3 and 4).
_QUALIFY = frozenset({"immutable", "stale-while-revalidate", "stale-if-error"})

# RFC 9110, 8.8.3; W/ marks a weak tag.
_STRONG_ETAG = re.compile(r'"([!#-~\x80-\xff]+)"')

Headers = Sequence[tuple[str, str]]


def is_for_shared_caches(name: str) -> bool:
    """Return whether a field is for shared caches alone."""
    lower = name.lower()
    return lower in _FOR_SHARED_CACHES or lower.endswith("cdn-cache-control")


def is_for_caches(name: str) -> bool:
    """Return whether a field tells caches, browsers included, how long to keep an answer."""
    return name.lower() in _FOR_ALL_CACHES or is_for_shared_caches(name)


def is_of_one_answer(name: str) -> bool:
    """Return whether a field is about one single answer (:data:`OF_ONE_ANSWER`)."""
    lower = name.lower()
    return lower in _SINGLE or lower.startswith(_SINGLE_BEGINS)


def kept(headers: Headers) -> list[tuple[str, str]]:
    """Return the fields that a stored page keeps; ``Cache-Control`` for browsers is the last."""
    said: list[str] = []
    expires, fields = False, []
    for name, value in headers:
        lower = name.lower()
        if lower == "cache-control":
            said.append(value)
        elif lower in _MADE_ANEW or is_for_shared_caches(name) or is_of_one_answer(name):
            continue
        else:
            # RFC 9111, 5.3: an invalid date is in the past. Not all caches know that, so it counts as no lifetime.
            expires = expires or (lower == "expires" and date_of(value) is not None)
            fields.append((name, value))
    if cache_control := for_browsers(", ".join(said), expires):
        fields.append(("Cache-Control", cache_control))
    return fields


def for_browsers(cache_control: str, expires: bool = False) -> str:
    """Return the ``Cache-Control`` for browsers, in place of the app's; empty for none.

    Directives for browsers and unknown ones are kept as sent; unreadable ones are dropped. Without a lifetime a
    browser would guess one (RFC 9111, 4.2.2), or trust ``stale-while-revalidate``. So it is told to revalidate each
    time.

    :param expires: whether the app's ``Expires`` gives a lifetime.
    """
    directives = [one for one in _directives(cache_control) if one.name not in _TO_SHARED_CACHES]
    if expires or any(one.name in _SAY_HOW_LONG for one in directives):
        return ", ".join(one.text for one in directives)
    return _asking(directives)


def ask_each_time(headers: Headers) -> list[tuple[str, str]]:
    """Return the fields of a stale page, without any lifetime for browsers.

    ``max-age`` overrides ``Expires`` (RFC 9111, 5.3). A cache that knows ``Expires`` alone would use it, so it is
    dropped.
    """
    fields, said = [], ""
    for name, value in headers:
        lower = name.lower()
        if lower == "cache-control":
            said = value
        elif lower != "expires":
            fields.append((name, value))
    return [*fields, ("Cache-Control", _asked_each_time(said))]


def strong_etag(headers: Headers) -> str:
    """Return the app's entity tag without quotes; empty if there is no strong one."""
    given = [value.strip() for name, value in headers if name.lower() == "etag"]
    found = _STRONG_ETAG.fullmatch(given[0]) if len(given) == 1 else None
    return found[1] if found else ""


class _Directive(NamedTuple):
    """One directive: its name in lower case, and the text as it was sent."""

    name: str
    text: str


def _directives(cache_control: str) -> Iterable[_Directive]:
    for member in _MEMBER.findall(cache_control):
        text = member.strip()
        if found := _DIRECTIVE.fullmatch(text):
            name, value = found[1].lower(), found[2] or ""
            # Browsers differ about a lifetime that is no number (RFC 9111, 4.2.1): some guess, others revalidate.
            if name != "max-age" or (value.isascii() and value.isdigit()):
                yield _Directive(name, text)


@functools.lru_cache(256)
def _asked_each_time(cache_control: str) -> str:
    return _asking([one for one in _directives(cache_control) if one.name != "max-age"])


def _asking(directives: Iterable[_Directive]) -> str:
    texts = [one.text for one in directives if one.name not in _QUALIFY and one.name != "must-revalidate"]
    return ", ".join([*texts, ASK_EACH_TIME])


def date_of(value: str | None) -> datetime | None:
    """Return the time in a header; ``None`` if it is no date (RFC 9110, 5.6.7)."""
    try:
        return parse_date(value)
    except OverflowError:  # an impossible year
        return None
