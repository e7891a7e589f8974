"""The scheme and host of a site."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

#: Longer than any URL that browsers and proxies agree on; beyond it a request is not for a cache.
MAX_URL = 8192


#: A name of 255 bytes (RFC 1035, 2.3.4), and a port. Hosts are remembered.
MAX_HOST = 261


_DEFAULT_PORT = {"http": ":80", "https": ":443"}


class Site(NamedTuple):
    """Where an app is served: scheme, host, and its mount point (as in a :class:`PageKey`)."""

    scheme: str
    host: str
    script: str = ""


def site_of_url(url: str) -> Site:
    """The site of a checked ``canonical_url``."""
    split = urlsplit(url)
    return Site(split.scheme, split.netloc.lower().removesuffix(_DEFAULT_PORT[split.scheme]))
