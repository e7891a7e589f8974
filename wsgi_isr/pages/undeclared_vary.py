"""Detection of request headers that an app reads without declaring them in ``Vary``.

A warning names such headers to site authors: all clients get a page that was rendered without these headers. An answer
that sets a cookie may go to the first client, if the app has read nothing that this client sent.

A subclass of dict with methods that note reads was rejected. PEP 3333 demands a builtin dict, and apps read headers
from copies as well. So the environ gets keys that note reads. A dict compares the key of a lookup with every key of
the same hash. A key with the hash of a name, but equal to none, is called whenever that name is looked up. This relies
on CPython's dicts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from types import FrameType
from typing import Any

#: An app that reads these headers most likely answers differently by them. Headers that apps log (``User-Agent``) are
#: left out.
WATCHED = {
    "HTTP_COOKIE": "cookie",
    "HTTP_ACCEPT_LANGUAGE": "accept-language",
    "HTTP_ACCEPT": "accept",
    "HTTP_HX_REQUEST": "hx-request",
    "HTTP_X_REQUESTED_WITH": "x-requested-with",
}

#: Modules that read a variable of every request, whether the app needs it or not. Some read cookies for a session or
#: token, and send ``Vary: Cookie`` once that is used. The others fill attributes of a request object, or check
#: settings that are mostly empty.
_AUTOMATIC_READERS = {
    "HTTP_COOKIE": frozenset(
        {"flask.sessions", "flask_session.base", "django.contrib.sessions.middleware", "django.middleware.csrf"}
    ),
    "HTTP_USER_AGENT": frozenset({"django.middleware.common"}),
    "REMOTE_ADDR": frozenset({"werkzeug.wrappers.request"}),
}

#: Variables that may differ between clients: headers of browsers, proxies and traces, the address, and those of test
#: clients. The list is fixed: header names that a client invents must not reach a render.
_CLIENT_VARIABLES = frozenset(
    {
        *WATCHED,
        *("REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT", "werkzeug.debug.preserve_context"),
        *(
            f"HTTP_{name}"
            for name in (
                *("B3", "BAGGAGE", "CDN_LOOP"),
                # Cloudflare, "HTTP headers" and "Add visitor location headers"
                *("CF_CONNECTING_IP", "CF_CONNECTING_IPV6", "CF_EW_VIA", "CF_IPCITY", "CF_IPCONTINENT", "CF_IPCOUNTRY"),
                *("CF_IPLATITUDE", "CF_IPLONGITUDE", "CF_METRO_CODE", "CF_POSTAL_CODE", "CF_PSEUDO_IPV4", "CF_RAY"),
                *("CF_REGION", "CF_REGION_CODE", "CF_TIMEZONE", "CF_VISITOR", "CF_WARP_TAG_ID", "CF_WORKER"),
                *("DNT", "FORWARDED", "ORIGIN", "PRIORITY", "REFERER"),
                *("SEC_CH_UA", "SEC_CH_UA_MOBILE", "SEC_CH_UA_PLATFORM"),
                *("SEC_FETCH_DEST", "SEC_FETCH_MODE", "SEC_FETCH_SITE", "SEC_FETCH_STORAGE_ACCESS", "SEC_FETCH_USER"),
                *("SEC_GPC", "TE", "TRACEPARENT", "TRACESTATE", "TRUE_CLIENT_IP"),
                *("UPGRADE_INSECURE_REQUESTS", "USER_AGENT", "VIA", "X_AMZN_TRACE_ID"),
                *("X_B3_FLAGS", "X_B3_PARENTSPANID", "X_B3_SAMPLED", "X_B3_SPANID", "X_B3_TRACEID"),
                *("X_CLOUD_TRACE_CONTEXT", "X_CORRELATION_ID", "X_FORWARDED_FOR", "X_FORWARDED_HOST"),
                *("X_FORWARDED_PORT", "X_FORWARDED_PREFIX", "X_FORWARDED_PROTO", "X_FORWARDED_SCHEME"),
                *("X_FORWARDED_SERVER", "X_REAL_IP", "X_REQUEST_ID", "X_REQUEST_START", "X_SCHEME"),
            )
        ),
    }
)
#: Variables that a render has as well, that no answer depends on, or that the cache handles.
_SHARED_VARIABLES = frozenset(
    {
        *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI"),
        *("HTTP_ACCEPT_ENCODING", "HTTP_CACHE_CONTROL", "HTTP_CONNECTION", "HTTP_HOST", "HTTP_PRAGMA"),
        *("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH"),
    }
)
_SERVER_PREFIXES = ("wsgi.", "SERVER_", "gunicorn.", "uwsgi.", "mod_wsgi.")
#: Stands for all headers: the app has iterated over them.
ALL = "*"

_reads: ContextVar[set[str] | None] = ContextVar("wsgi_isr_looks", default=None)


class _WatchingKey(str):
    """A key that no lookup finds, and that notes lookups of ``name``.

    Its text has a dot, like all keys of a server (PEP 3333, "environ Variables").
    """

    __slots__ = ("automatic_readers", "hash", "name")
    name: str
    hash: int
    automatic_readers: frozenset[str]

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _WatchingKey):
            return str.__eq__(self, other)  # one environ must still equal another
        reads = _reads.get() if other == self.name else None
        if reads is not None and not self._is_automatic(sys._getframe(1)):
            reads.add(self.name)
        return False

    def _is_automatic(self, frame: FrameType) -> bool:
        readers = self.automatic_readers
        return bool(readers) and any(_module(outer) in readers for outer in _frames(frame))

    def __ne__(self, other: object) -> bool:
        return not self == other  # str has a method of its own, which would note nothing

    def __deepcopy__(self, memo: Any) -> _WatchingKey:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # another process notes no lookups


class _CookieKey(_WatchingKey):
    """The key for cookies, which notes iterations, too: werkzeug, and so Flask, finds cookies among all headers."""

    __slots__ = ()

    def startswith(self, *prefix: Any) -> bool:
        if any(map(_is_werkzeugs_cookies, islice(_frames(sys._getframe(1)), 5))):
            self.__eq__(self.name)
        elif (reads := _reads.get()) is not None:
            reads.add(ALL)
        return super().startswith(*prefix)


def _watching_key(name: str) -> _WatchingKey:
    text = f"wsgi_isr.pages.undeclared_vary.{name.removeprefix('HTTP_').lower().replace('_', '-')}"
    key = _CookieKey(text) if name == "HTTP_COOKIE" else _WatchingKey(text)
    key.name, key.hash, key.automatic_readers = name, hash(name), _AUTOMATIC_READERS.get(name, frozenset())
    return key


_WATCHING_KEYS: dict[str, Any] = {_watching_key(name): "" for name in sorted(_CLIENT_VARIABLES)}


@contextmanager
def watched(environ: dict[str, Any]) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """Yield an environ that notes reads, and the set of the names that were read.

    The set also has :data:`ALL` once the app has iterated over all headers.
    """
    reads: set[str] = set()
    # The watching keys come first: an equal key ends a lookup.
    watching = {**_WATCHING_KEYS, **environ}
    token = _reads.set(reads)
    try:
        yield watching, reads
    finally:
        _reads.reset(token)


def depends_on_client(reads: Set[str], client: Mapping[str, Any]) -> bool:
    """Return whether an answer may differ between this client and a client that sends no headers.

    It may if the app has read a variable that the client has, or if the client has a variable that is not watched.
    """
    if ALL in reads:
        return True
    own = {name for name in client if name not in _SHARED_VARIABLES and not name.startswith(_SERVER_PREFIXES)}
    return not own <= _CLIENT_VARIABLES or not own.isdisjoint(reads)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames from the lookup up to the call of the app."""
    while frame is not None and _module(frame) != f"{__package__}.capture":
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> Any:
    return frame.f_globals.get("__name__")


def _is_werkzeugs_cookies(frame: FrameType) -> bool:
    return frame.f_code.co_name == "cookies" and bool(_module(frame) == "werkzeug.sansio.request")
