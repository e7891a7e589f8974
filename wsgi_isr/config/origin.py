"""The scheme and host of a site."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

#: The maximum length of a URL that is cached, in characters. Browsers and proxies agree on less.
MAX_URL = 8192
#: The maximum length of a host: a name of 255 bytes (RFC 1035, 2.3.4), and a port. Hosts are kept in memory.
MAX_HOST = 261

_DEFAULT_PORT = {"http": ":80", "https": ":443"}


class Site(NamedTuple):
    """The place where an app is served: scheme, host and mount point (the ``SCRIPT_NAME`` of PEP 3333)."""

    scheme: str
    host: str
    script: str = ""


def site_of_url(url: str) -> Site:
    """Return the site of a checked ``canonical_url``."""
    split = urlsplit(url)
    return Site(split.scheme, split.netloc.lower().removesuffix(_DEFAULT_PORT[split.scheme]))
