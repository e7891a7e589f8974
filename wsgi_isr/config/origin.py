"""The scheme and host of a site."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

#: Longer than any URL that browsers and proxies agree on; a longer URL is not cached.
MAX_URL = 8192


#: A name of 255 bytes (RFC 1035, 2.3.4), and a port. Hosts are kept in memory, so their length is limited.
MAX_HOST = 261


_DEFAULT_PORT = {"http": ":80", "https": ":443"}


class Site(NamedTuple):
    """The place where an app is served: scheme, host, and its mount point (as in a :class:`PageKey`)."""

    scheme: str
    host: str
    script: str = ""


def site_of_url(url: str) -> Site:
    """Return the site of a checked ``canonical_url``."""
    split = urlsplit(url)
    return Site(split.scheme, split.netloc.lower().removesuffix(_DEFAULT_PORT[split.scheme]))
