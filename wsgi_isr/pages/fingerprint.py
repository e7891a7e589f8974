"""The fingerprint of a request: the parts that decide whether a prepared response answers it.

Two requests with one fingerprint get one response, apart from ``Accept-Encoding`` and ``If-None-Match``, which choose
among its variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The variables of a fingerprint (PEP 3333, "environ Variables"), in its order. The URL comes first.
VARIABLES = (
    "PATH_INFO",
    "QUERY_STRING",
    "HTTP_HOST",
    "SCRIPT_NAME",
    "wsgi.url_scheme",
    "REQUEST_METHOD",
    "HTTP_COOKIE",
    "HTTP_AUTHORIZATION",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_RANGE",
    "HTTP_UPGRADE",
    "REMOTE_USER",
    "AUTH_TYPE",
)
_QUERY, _HOST, _METHOD = (VARIABLES.index(name) for name in ("QUERY_STRING", "HTTP_HOST", "REQUEST_METHOD"))
_PLAIN = ("GET", *(None,) * (len(VARIABLES) - _METHOD - 1))

Fingerprint = tuple[Any, ...]


def fingerprint_of(environ: Mapping[str, Any]) -> Fingerprint:
    """Return the values of :data:`VARIABLES`, ``None`` for a missing one.

    The tuple is spelled out because each hit builds one: a loop over the names would take three times as long.
    """
    get = environ.get
    return (
        get("PATH_INFO"),
        get("QUERY_STRING"),
        get("HTTP_HOST"),
        get("SCRIPT_NAME"),
        get("wsgi.url_scheme"),
        environ["REQUEST_METHOD"],
        get("HTTP_COOKIE"),
        get("HTTP_AUTHORIZATION"),
        get("HTTP_IF_MODIFIED_SINCE"),
        get("HTTP_RANGE"),
        get("HTTP_UPGRADE"),
        get("REMOTE_USER"),
        get("AUTH_TYPE"),
    )


def is_plain(fingerprint: Fingerprint) -> bool:
    """Return whether the request is a GET with a host, and without anything that could change its answer."""
    return fingerprint[_METHOD:] == _PLAIN and bool(fingerprint[_HOST])


def query_of(fingerprint: Fingerprint) -> str | None:
    """Return the raw query of the request."""
    query: str | None = fingerprint[_QUERY]
    return query
