"""The decision whether a fetch goes through the data cache. Pure: no I/O, and no ``requests``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from . import codec

#: Names of headers that may carry credentials. In a call, these may be the credentials of one client.
_CREDENTIALS = re.compile(r"auth|cookie|token|secret|session|passw|credential|signature|key$", re.IGNORECASE)


class FetchCall(NamedTuple):
    """A call of a session, as far as it decides about the cache.

    :param method: in upper case.
    :param url: with the parameters of the call and of the session.
    :param headers: those of the call.
    :param options: further arguments of ``requests`` that become part of the key.
    :param revalidate: the lifetime of the answer, from the call or from the session.
    :param has_body: the call sends data.
    :param has_credentials: the call has ``auth``, ``cookies`` or ``cert``.
    """

    method: str
    url: str
    headers: Mapping[Any, Any]
    options: Mapping[str, Any]
    revalidate: float | str | bool
    no_store: bool = False
    streams: bool = False
    has_body: bool = False
    has_credentials: bool = False
    has_hooks: bool = False
    has_proxies: bool = False


def bypass_reason(call: FetchCall) -> str | None:
    """Return why a call goes around the cache, as a token; ``None`` if it goes through the cache."""
    if call.method != "GET":
        return "method"
    if call.no_store:
        return "no-store"
    if call.revalidate == 0 and call.revalidate is not False:
        return "revalidate-0"
    if call.streams:
        return "stream"
    if call.has_body:
        return "body"
    if call.has_credentials or has_user(call.url) or any(map(_may_be_credentials, call.headers.items())):
        return "authorization"
    if call.has_hooks:
        return "hooks"
    if call.has_proxies:
        return "proxies"
    return None if _can_be_key([call.headers, call.options]) else "unencodable"


def has_user(url: str) -> bool:
    """Return whether a URL holds the name of a user (RFC 3986, 3.2.1)."""
    return "@" in url and "@" in urlsplit(url).netloc


def without_user(url: str) -> str:
    """Return a URL without the name and password of a user, for logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if has_user(url) else url


def _may_be_credentials(header: tuple[Any, Any]) -> bool:
    name, value = header
    text = name.decode("latin-1") if isinstance(name, bytes) else str(name)
    return value is not None and _CREDENTIALS.search(text) is not None


def _can_be_key(value: Any) -> bool:
    try:
        codec.encode(value)
    except codec.Unencodable:
        return False
    return True
