"""From an answer to WSGI: status, headers, conditional requests, HEAD.

Everything about an entry that does not depend on the request is prepared once and kept beside its copy
(:class:`Ready`), until the second of its age, or the entry, is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from werkzeug.http import is_resource_modified, quote_etag

from .entry import Content, Entry
from .fill import Served

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

#: RFC 9211: our name in ``Cache-Status``.
NAME = "wsgi-isr"
#: One year, in seconds: what "until invalidated" is called towards a CDN, as in Next.js.
YEAR = 31536000

# RFC 9110, 15.4.5: what a 304 repeats of the answer that it stands for. Our own headers are added to these.
_IN_304 = frozenset({"content-location", "last-modified", "vary"})


class Ready:
    """An answer to a plain GET, prepared. Times are monotonic seconds: ``over`` is when its ``Age`` or its
    entry is over; until ``until`` it may be sent without asking whether it was invalidated."""

    __slots__ = ("body", "headers", "over", "status", "until")

    def __init__(self, entry: Entry, content: Content, now: float, monotonic: float) -> None:
        self.status = content.status
        self.headers = headers_of(entry, content, "HIT", f"{NAME}; hit", now)
        self.body = content.body
        over = entry.created + math.floor(entry.age(now)) + 1
        if entry.revalidate is not None:
            over = min(over, entry.created + entry.revalidate)
        self.over = monotonic + over - now
        self.until = float("-inf")


def headers_of(entry: Entry, content: Content, label: str, cache_status: str, now: float) -> list[tuple[str, str]]:
    """All headers of a stored page.

    ``Cache-Control`` is for shared caches downstream (RFC 9111, 5.2.2.10; RFC 5861, 3). With a true ``Age``
    they count from our render, not from their fetch; an answer past its time gives them none at all, so
    that staleness never adds up.
    """
    return [
        *content.headers,
        ("Content-Length", str(len(content.body))),
        ("ETag", quote_etag(content.etag)),
        ("Age", str(int(entry.age(now)))),
        ("Cache-Control", _cache_control(entry, label)),
        ("Cache-Status", cache_status),
        ("X-ISR", label),
    ]


def _cache_control(entry: Entry, label: str) -> str:
    if label in ("STALE", "ERROR-RETAINED", "DEGRADED"):
        return "s-maxage=0"
    if entry.revalidate is None:
        return f"s-maxage={YEAR}"
    fresh = int(entry.revalidate)
    window = (YEAR if entry.expire is None else int(entry.expire)) - fresh
    return f"s-maxage={fresh}, stale-while-revalidate={max(0, window)}"


def cache_status(found: Served, now: float) -> str:
    """The ``Cache-Status`` of a page that we serve (RFC 9211, 2)."""
    entry, label = found.slot.entry, found.label
    if label == "HIT":
        return f"{NAME}; hit"
    left = 0 if entry.revalidate is None else min(0, math.floor(entry.revalidate - entry.age(now)))
    if label == "ERROR-RETAINED":
        return f"{NAME}; fwd=stale; ttl={left}; detail=error-retained"
    if found.hit:
        return f"{NAME}; hit; ttl={left}; detail={label.lower()}"
    said = f"{NAME}; fwd={'stale' if label == 'EXPIRED' else 'uri-miss'}"
    said += "; stored" if found.stored else ""
    said += "; collapsed" if found.collapsed else ""
    return said + ("; detail=degraded" if label == "DEGRADED" else "")


def send_page(
    environ: dict[str, Any],
    start_response: StartResponse,
    content: Content,
    headers: list[tuple[str, str]],
) -> Iterable[bytes]:
    """A page, or 304 where the visitor has it (RFC 9110, 13.2.2); without a body for HEAD."""
    if _has_it(environ, content):
        first_own = len(content.headers) + 1  # Content-Length is not repeated
        kept = [(name, value) for name, value in content.headers if name.lower() in _IN_304]
        start_response("304 Not Modified", kept + headers[first_own:])
        return []
    start_response(content.status, headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [content.body]


def _has_it(environ: dict[str, Any], content: Content) -> bool:
    # Only a 200 is compared (RFC 9110, 13.2.1). Range is not served from here, and may be ignored (14.2).
    asked = "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MODIFIED_SINCE" in environ
    if not asked or not content.status.startswith("200"):
        return False
    modified = next((value for name, value in content.headers if name.lower() == "last-modified"), None)
    try:
        return not is_resource_modified(environ, quote_etag(content.etag), last_modified=modified)
    except (ValueError, OverflowError):  # a date that no calendar has, from a visitor or from the app
        return False


def send_failure(
    environ: dict[str, Any], start_response: StartResponse, content: Content, reason: str
) -> Iterable[bytes]:
    """What the app had to say when it failed, untouched but for our two headers."""
    headers = [
        *(pair for pair in content.headers if pair[0].lower() != "content-length"),
        ("Content-Length", str(len(content.body))),
        ("Cache-Status", f'{NAME}; fwd=uri-miss; detail="{reason}"'),
        ("X-ISR", "MISS"),
    ]
    start_response(content.status, headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [content.body]


def pass_on(
    app: WSGIApplication,
    environ: dict[str, Any],
    start_response: StartResponse,
    status: str,
    label: str,
    notice: Callable[[str, list[tuple[str, str]]], None] | None = None,
) -> Iterable[bytes]:
    """The app itself, with the visitor's own environ; its iterable goes to the server untouched, so that
    ``close()``, ``wsgi.file_wrapper`` and streaming are between the two of them.

    ``notice`` is shown the app's status line and headers before the server is.
    """

    def own_start_response(status_line: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        if notice is not None:
            notice(status_line, headers)
        return start_response(status_line, [*headers, ("Cache-Status", status), ("X-ISR", label)], *exc_info)

    return app(environ, own_start_response)
