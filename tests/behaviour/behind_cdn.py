"""Answers for a CDN: the fields of each, and the purged tags."""

from __future__ import annotations

from tests.behaviour.visitor import Seen
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.config.cdn import PRODUCTS

KINDS = list(PRODUCTS)
#: The fields of each CDN: for the lifetime, and for tags.
FIELDS = {
    "cloudflare": ("Cloudflare-CDN-Cache-Control", "Cache-Tag"),
    "fastly": ("Surrogate-Control", "Surrogate-Key"),
    "varnish": ("CDN-Cache-Control", "xkey"),
    "bunny": ("CDN-Cache-Control", "CDN-Tag"),
    "generic": ("CDN-Cache-Control", "Cache-Tag"),
}
ALL_FIELDS = {field for pair in FIELDS.values() for field in pair}
URL = "https://example.org"


def tokens(*names: str) -> set[str]:
    return {Keyspace("default").edge_token(name) for name in names}


def kept_for(seen: Seen, kind: str = "generic") -> str:
    """Return the lifetime at the edge; ``no-store`` where the edge must not keep the answer."""
    control, tags = FIELDS[kind]
    said = seen.headers.getlist(control)
    assert len(said) == 1, seen.headers
    if "no-store" in said[0]:
        assert tags not in seen.headers
        assert "private" in ", ".join(seen.headers.getlist("Cache-Control"))
        return "no-store"
    assert seen.headers[tags]
    assert "private" not in seen.headers["Cache-Control"]
    return said[0]
