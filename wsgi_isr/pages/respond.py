"""Responses to WSGI from stored pages: status, headers, conditional requests, HEAD.

Everything about an entry that does not depend on the request is prepared once and kept beside its copy
(:class:`PreparedResponse`). It is valid for the current second of the page's age, and not beyond the entry's lifetime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

from werkzeug.datastructures import Range
from werkzeug.http import is_resource_modified, parse_range_header, quote_etag

from ..cache.entry import Content, Entry
from ..cache.task import Served
from ..config.options import Shell
from .compression import MAX_CACHED, chosen
from .response_headers import ASK_EACH_TIME, ask_each_time, is_for_caches

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: RFC 9211: the cache's name in ``Cache-Status``.
NAME = "wsgi-isr"

NOT_MODIFIED = "304 Not Modified"
# A 304 repeats these headers of the 200 (RFC 9110, 15.4.5), the cache's own, and those for a CDN: it would keep the
# lifetime and the tags of its old copy.
_IN_304 = frozenset(
    {
        *("cache-control", "content-location", "etag", "expires", "last-modified", "vary"),
        *("age", "cache-status", "x-isr"),
        *("cdn-cache-control", "cloudflare-cdn-cache-control", "surrogate-control"),
        *("cache-tag", "cdn-tag", "surrogate-key", "xkey"),
    }
)
Headers = list[tuple[str, str]]
#: Labels of pages that are stale, or not proven to be fresh.
_OLD = frozenset({"STALE", "STALE-IF-ERROR", "DEGRADED"})


class Synthetic(NamedTuple):
    """A response that the cache makes itself."""

    status: str
    content_type: str
    body: bytes


NOT_FOUND = Synthetic(
    "404 Not Found",
    "text/html; charset=utf-8",
    b"<!doctype html>\n<html lang=en><title>404 Not Found</title><h1>Not Found</h1>\n",
)


#: Headers of the shell that a client sees during a render: the browser asks for the page in a second.
SHELL_HEADERS = [
    ("Cache-Control", "no-store"),
    ("Refresh", "1"),
    ("Cache-Status", f"{NAME}; fwd=uri-miss; detail=shell"),
    ("X-ISR", "MISS"),
]


#: Headers of the 404 for a page that its rule does not list. The page may exist in a moment.
ABSENT_HEADERS = [
    ("Cache-Control", ASK_EACH_TIME),
    ("Cache-Status", f"{NAME}; hit; detail=not-listed"),
    ("X-ISR", "HIT"),
]


def shell_of(fallback: Any, environ: dict[str, Any]) -> Synthetic:
    """Return the ``fallback`` of a rule for one client. Exceptions of a callable pass through.

    :raises TypeError: the callable returned no page.
    """
    made = fallback(environ) if callable(fallback) else fallback
    if isinstance(made, Shell):
        return Synthetic("200 OK", made.content_type, made.body)
    body = made.encode() if isinstance(made, str) else made
    if not isinstance(body, bytes):
        raise TypeError(f"the fallback returned {type(made).__name__}, not bytes")
    return Synthetic("200 OK", "text/html; charset=utf-8", body)


#: The number of values of ``Accept-Encoding`` for which a response is prepared.
MAX_VARIANTS = 8
#: The number of variants and 304s whose bytes a server keeps, counted by the size of an entry.
MAX_WIRES = 4


class Hits:
    """A number of hits that the hot path counts, shared by all pages of a rule.

    ``hits.number += 1`` needs no lock: CPython switches threads only at calls and at jumps backwards (since 3.10).
    """

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Variant(NamedTuple):
    """A prepared response in one coding.

    :param etag: a client whose ``If-None-Match`` equals it gets a 304; ``None`` if no 304 may be sent.
    :param unchanged: the headers of the 304.
    """

    headers: list[tuple[str, str]]
    body: bytes
    etag: str | None
    unchanged: list[tuple[str, str]]


class PreparedResponse:
    """A prepared response to a plain GET: ``variants`` by ``Accept-Encoding``.

    It belongs to the record of the ``switch`` that it was prepared under, and is not sent under another one.

    Times are monotonic seconds. At ``over`` its ``Age`` or its entry has expired. Until ``until`` it may be sent
    without asking for invalidations. ``wires`` is for a server, which keeps the bytes of each variant there.

    :param looked_up: the time of the last look-up of the entry; by default now.
    :param finish: returns headers at a time (seconds of Unix time) with the fields for a CDN. A response for a later
        time needs the same function; ``None`` without a CDN.
    :param hits: counts the requests that are answered with it.
    """

    __slots__ = (
        "_entry",
        "_made",
        "_now",
        "finish",
        "hits",
        "looked_up",
        "over",
        "status",
        "switch",
        "until",
        "variants",
        "wires",
    )

    def __init__(
        self,
        entry: Entry,
        content: Content,
        now: float,
        monotonic: float,
        looked_up: float | None = None,
        finish: Callable[[Headers, float], Headers] | None = None,
        switch: object = None,
        hits: Hits | None = None,
    ) -> None:
        self.switch = switch
        self.status = content.status
        self.looked_up = monotonic if looked_up is None else looked_up
        self.hits = hits or Hits()
        self.wires: dict[Any, Any] = {}
        self.variants: dict[str | None, Variant] = {}
        self._entry, self._now, self.finish = entry, now, finish
        self._made: dict[str, Variant] = {}
        over = entry.created + math.floor(entry.age(now)) + 1
        if entry.revalidate is not None:
            over = min(over, entry.created + entry.revalidate)
        self.over = monotonic + over - now
        self.until = float("-inf")

    def variant(self, accepted: str | None) -> Variant:
        """Return the response for one ``Accept-Encoding``; prepare it on first use."""
        assert isinstance(self._entry.content, Content)
        content = chosen(self._entry.content, accepted or "")
        made = self._made.get(content.etag)
        if made is None:
            headers = headers_of(self._entry, content, "HIT", f"{NAME}; hit", self._now)
            if self.finish is not None:
                headers = self.finish(headers, self._now)
            etag = quote_etag(content.etag) if _is_compared(content) else None
            made = self._made[content.etag] = Variant(headers, content.body, etag, _unchanged(headers))
        if len(self.variants) < MAX_VARIANTS and len(accepted or "") <= MAX_CACHED:
            self.variants[accepted] = made
        return made


def headers_of(entry: Entry, content: Content, label: str, cache_status: str, now: float) -> list[tuple[str, str]]:
    """Return all headers of a stored page.

    ``Age`` is true, so the ``max-age`` that an app gives browsers counts from the render (RFC 9111, 4.2.3). A stale
    answer carries no lifetime, so that staleness never adds up.
    """
    return [
        *(ask_each_time(content.headers) if label in _OLD else content.headers),
        ("Content-Length", str(len(content.body))),
        ("ETag", quote_etag(content.etag)),
        ("Age", str(int(entry.age(now)))),
        ("Cache-Status", cache_status),
        ("X-ISR", label),
    ]


def cache_status(found: Served, now: float) -> str:
    """Return the ``Cache-Status`` of a page from the cache (RFC 9211, 2)."""
    entry, label = found.cached.entry, found.label
    if label == "HIT":
        return f"{NAME}; hit"
    left = 0 if entry.revalidate is None else min(0, math.floor(entry.revalidate - entry.age(now)))
    if label == "STALE-IF-ERROR":
        return f"{NAME}; fwd=stale; ttl={left}; detail=stale-if-error"
    if found.hit:
        return f"{NAME}; hit; ttl={left}; detail={found.detail or label.lower()}"
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
    """Send a page, a 304 if the client has it (RFC 9110, 13.2.2), or the requested range; for HEAD, without a body."""
    if _has_it(environ, content):
        start_response(NOT_MODIFIED, _unchanged(headers))
        return []
    if environ["REQUEST_METHOD"] == "HEAD":
        start_response(content.status, headers)
        return []
    if "HTTP_RANGE" in environ and (asked := _range(environ, content)) is not None:
        length = len(content.body)
        part = asked.range_for_length(length)
        others = [pair for pair in headers if pair[0] != "Content-Length"]
        if part is None:
            # A cache that kept the 416 would send it to all clients: Vary does not cover Range.
            said = [pair for pair in others if not is_for_caches(pair[0])]
            own = [("Content-Length", "0"), ("Content-Range", f"bytes */{length}"), ("Cache-Control", "no-store")]
            start_response("416 Range Not Satisfiable", said + own)
            return []
        start, stop = part
        own = [("Content-Length", str(stop - start)), ("Content-Range", f"bytes {start}-{stop - 1}/{length}")]
        start_response("206 Partial Content", others + own)
        return [content.body[start:stop]]
    start_response(content.status, headers)
    return [content.body]


def _range(environ: dict[str, Any], content: Content) -> Range | None:
    """Return the requested range of a page; ``None`` if the whole page is the answer (RFC 9110, 14.2).

    Ranges are served for content that the app itself serves in ranges, and for video and audio. Players refuse a film
    without ranges, and downloads resume. Other pages are always sent whole.
    """
    headers = {name.lower(): value for name, value in content.headers}
    in_parts = headers.get("accept-ranges") == "bytes"
    if not content.status.startswith("200") or not (in_parts or headers.get("content-type", "")[:6] in _PLAYED):
        return None
    if "HTTP_IF_RANGE" in environ:
        # 13.1.5: the same representation, by a strong tag or by an exact date.
        valid = (quote_etag(content.etag), headers.get("last-modified"))
        if environ["HTTP_IF_RANGE"].strip() not in valid:
            return None
    try:
        asked = parse_range_header(environ["HTTP_RANGE"])
    except ValueError:
        return None
    # Several ranges need multipart/byteranges, which few clients understand.
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return None
    start, stop = asked.ranges[0]
    # 14.1.2: a suffix longer than the page selects all of it.
    return Range("bytes", [(max(start, -len(content.body)), stop)])


_PLAYED = ("video/", "audio/")


def _unchanged(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for pair in headers if pair[0].lower() in _IN_304]


def _is_compared(content: Content) -> bool:
    # RFC 9110, 13.2.1.
    return content.status.startswith("200")


def _has_it(environ: dict[str, Any], content: Content) -> bool:
    asked = "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MODIFIED_SINCE" in environ
    if not asked or not _is_compared(content):
        return False
    modified = next((value for name, value in content.headers if name.lower() == "last-modified"), None)
    try:
        return not is_resource_modified(environ, quote_etag(content.etag), last_modified=modified)
    except (ValueError, OverflowError):  # an impossible date, from a client or from the app
        return False


def app_headers(reason: str, missed: bool) -> list[tuple[str, str]]:
    """Return the cache's two headers for an answer of the app (RFC 9211, 2.2).

    :param missed: the cache has no page to serve; otherwise the request goes around the cache.
    """
    status = f'{NAME}; fwd={"uri-miss" if missed else "bypass"}; detail="{reason}"'
    return [("Cache-Status", status), ("X-ISR", "MISS" if missed else "BYPASS")]


def send_as_is(
    environ: dict[str, Any], start_response: StartResponse, content: Content, own: list[tuple[str, str]]
) -> Iterable[bytes]:
    """Send the app's answer unchanged, except for the headers of the cache."""
    headers = [
        *(pair for pair in content.headers if pair[0].lower() != "content-length"),
        ("Content-Length", str(len(content.body))),
        *own,
    ]
    start_response(content.status, headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [content.body]


def send_own(
    environ: dict[str, Any], start_response: StartResponse, own: Synthetic, headers: list[tuple[str, str]]
) -> Iterable[bytes]:
    """Send a response that the cache made itself."""
    own_headers = [("Content-Type", own.content_type), ("Content-Length", str(len(own.body)))]
    start_response(own.status, own_headers + headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [own.body]


class _Files:
    """Instances of a class, or single objects by identity, since their ``__eq__`` may do anything."""

    def __init__(self, kind: type | None) -> None:
        self._kind = kind
        self._single: list[Any] = []

    def add(self, file: Any) -> None:
        """Add an object."""
        self._single.append(file)

    def __contains__(self, item: object) -> bool:
        if self._kind is not None:
            return isinstance(item, self._kind)
        return any(item is file for file in self._single)


def own_files(environ: dict[str, Any]) -> Container[Any]:
    """Return the objects that the server's ``wsgi.file_wrapper`` makes for the app from now on.

    The server sends such an object itself if it gets back the same object (PEP 3333, "Optional Platform-Specific File
    Handling").
    """
    wrapper = environ.get("wsgi.file_wrapper")
    made = _Files(wrapper if isinstance(wrapper, type) else None)
    if wrapper is not None and not isinstance(wrapper, type):

        def record(*arguments: Any) -> Any:
            file = wrapper(*arguments)
            made.add(file)
            return file

        environ["wsgi.file_wrapper"] = record
    return made


class StreamingBody:
    """A body whose parts the app makes one by one, each inside ``enter()``."""

    def __init__(self, body: Iterable[bytes], enter: Callable[[], AbstractContextManager[None]]) -> None:
        self._body = body
        self._enter = enter
        self._parts: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._enter():
            if self._parts is None:
                self._parts = iter(self._body)
            return next(self._parts)

    def close(self) -> None:
        """Call the app's ``close()`` whenever the server calls this one (PEP 3333, "Specification Details")."""
        if hasattr(self._body, "close"):
            with self._enter():
                self._body.close()
