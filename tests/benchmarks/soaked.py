"""The app that ``soak.py`` runs: pages that are renewed all the time, in a cache that is soon full."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wsgi_isr import ISR, Rule

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: Pages that are known, and the tag of one.
KNOWN, TAG = "/known/%d", "row:%d"
#: Bytes of L1: full, and evicting, long before the first half is over.
LOCAL_BYTES = 1024 * 1024


def _site(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    path, status, headers = environ["PATH_INFO"], "200 OK", [("Content-Type", "text/html; charset=utf-8")]
    if environ["REQUEST_METHOD"] == "POST":
        status = "303 See Other"
        headers.append(("Location", path))
    elif path.startswith("/missing/"):
        status = "404 Not Found"
    elif path.startswith("/broken/"):
        status = "503 Service Unavailable"
    elif path.startswith("/private/"):
        headers.append(("Set-Cookie", "session=1"))
    start_response(status, headers)
    return [b"<p>%s</p>\n" % path.encode("latin-1") * 100]


application = ISR(
    _site,
    {"/known/<number>": Rule(revalidate=0.5, tags=["row:{number}"]), "/<path:page>": 60},
    local_cache_bytes=LOCAL_BYTES,
)
