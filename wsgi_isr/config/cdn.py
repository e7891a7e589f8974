"""The options of the CDN in front of the app, and their checks.

A mistake is an error at start: a CDN without credentials would keep each page past its invalidation. No message has the
token: errors are logged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigError
from . import options as o

#: An id of an API: it becomes a segment of a URL.
_ZONE = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: A token that fits into a header (RFC 6750, 2.1), and more.
_TOKEN = re.compile(r"[!-~]{1,4096}")


class Product(NamedTuple):
    """The needs of a CDN.

    :param zone: the name of the option ``cdn_zone`` at the CDN; empty where it has none.
    :param url: the URL of the API; empty where ``cdn_purge_url`` names the servers.
    :param needs_token: a purge without a token is refused.
    """

    zone: str
    url: str
    needs_token: bool


PRODUCTS = {
    "cloudflare": Product("the id of the zone", "https://api.cloudflare.com/client/v4", True),
    "fastly": Product("the id of the service", "https://api.fastly.com", True),
    "varnish": Product("", "", False),
    "bunny": Product("the id of the pull zone", "https://api.bunny.net", True),
    "generic": Product("", "", False),
}


class Cdn(NamedTuple):
    """The CDN of an app.

    :param kind: a key of :data:`PRODUCTS`.
    :param urls: the URL of each server that takes purges; one for an API.
    """

    kind: str
    zone: str
    urls: tuple[str, ...]
    token: str

    def __repr__(self) -> str:
        # A traceback with local variables must not show the token.
        return f"Cdn({self.kind!r}, {self.zone!r}, {self.urls!r})"


def cdn_of(kind: str | None, zone: str | None, token: str | None, urls: Sequence[str]) -> Cdn | None:
    """Return the CDN that the options describe; ``None`` where they describe none.

    :raises ConfigError: the options do not fit together, or ``requests`` is missing.
    """
    if kind is None:
        for option, value in (("cdn_zone", zone), ("cdn_token", token), ("cdn_purge_url", urls)):
            if value:
                raise ConfigError(option, "is without effect, as no CDN is named", f"write cdn={'cloudflare'!r}, say")
        return None
    product = PRODUCTS[kind]
    if product.zone and not zone:
        problem, remedy = f"{kind} needs {product.zone}", "set WSGI_ISR_CDN_ZONE, or give cdn_zone="
        raise ConfigError("cdn_zone", problem, remedy)
    if zone and not product.zone:
        raise ConfigError("cdn_zone", f"{zone!r} is without effect: {kind} has no zones", "leave it out")
    if product.needs_token and not token:
        problem = f"{kind} needs a token that may purge"
        raise ConfigError("cdn_token", problem, "set the environment variable WSGI_ISR_CDN_TOKEN")
    if not (urls or product.url):
        problem = f"{kind} needs the URL of each server that takes purges"
        raise ConfigError("cdn_purge_url", problem, 'write cdn_purge_url=["http://10.0.0.5:6082/"]')
    for url in urls:
        if token and url.startswith("http:") and not _is_loopback(url):
            problem = f"the token would go to {url!r} in clear text"
            raise ConfigError("cdn_purge_url", problem, "write https://, or leave out cdn_token")
    if not _has_requests():
        raise ConfigError("cdn", "purges need the library requests", "pip install 'wsgi_isr[requests]'")
    return Cdn(kind, zone or "", tuple(urls) or (product.url,), token or "")


def check_hosts(kind: str | None, hosts: Sequence[str], canonical_url: str | None) -> None:
    """Check that the pages of one host cannot reach the clients of another.

    A page belongs to the host that the app sees. A CDN keeps it for the host that the client names. A client that
    forges a forwarded host makes the two differ.

    :raises ConfigError: neither option lists the hosts, or the CDN keeps one page for all hosts.
    """
    if kind is None or canonical_url:
        return
    if kind == "bunny":
        # The default key of a pull zone is the path alone.
        problem = "bunny keeps one page for all hosts of a pull zone"
        raise ConfigError("canonical_url", problem, 'write canonical_url="https://example.com"')
    if not hosts:
        problem = "with cdn, clients must not be able to invent hosts"
        raise ConfigError("hosts", problem, 'write hosts=["example.com"], or canonical_url="https://example.com"')


def _has_requests() -> bool:
    from importlib.util import find_spec  # an app without a CDN need not load it

    return find_spec("requests") is not None


def _is_loopback(url: str) -> bool:
    import ipaddress  # two milliseconds, which only an app with a token over http needs

    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_zone(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _ZONE.fullmatch(value):
        raise ConfigError(name, f"{value!r} is no id", "write the id as the CDN shows it: letters, digits, - and _")
    return value


def _check_token(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ConfigError(name, "is no token: a token is printable ASCII without spaces", "copy it again from the CDN")
    return value


def _check_urls(name: str, value: Any) -> tuple[str, ...]:
    urls: tuple[str, ...] = o.NAMES.check(name, [value] if isinstance(value, str) else value)
    for url in urls:
        if "@" in url:
            # Without the URL, however it is written: it may have a password.
            raise ConfigError(name, "has a user or a password in the URL", "leave both out, and set cdn_token")
        try:
            parts = urlsplit(url)
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_good, parts = False, urlsplit("")
        if not is_good or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url):
            raise ConfigError(name, f"{url!r} is no URL of a server", "write it like http://10.0.0.5:6082/")
    return urls


CDN = o.choice(*PRODUCTS)
ZONE = o.Kind("id", _check_zone, lambda _name, text: text)
TOKEN = o.Kind("text", _check_token, lambda _name, text: text)
PURGE_URLS = o.Kind("list of URLs", _check_urls, o.NAMES.parse)
