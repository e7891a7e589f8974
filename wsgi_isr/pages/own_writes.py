"""Read your own writes: who has changed something sees it with the next request, through any process.

Processes may answer from copies for ``coherence`` seconds before they hear of an invalidation. A visitor whose unsafe
request has succeeded gets a cookie for as long, and the process that receives it asks for invalidations first. The
cookie says nothing and opens nothing: a client that makes it up costs one look at the store, as ``coherence=0`` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from werkzeug.http import dump_cookie

#: Its name is in :data:`~wsgi_isr.config.rules.IGNORED_COOKIES`: it is no part of a visitor's identity.
COOKIE = "wsgi_isr_wrote"
#: Seconds beyond ``coherence``: browsers count whole seconds, and requests are under way for a while.
GRACE = 1


class Writes:
    """The cookie of one site.

    :param coherence: for how many seconds a process may not know of an invalidation by another one; 0 where each does.
    """

    def __init__(self, coherence: float) -> None:
        self._seconds = math.ceil(coherence) + GRACE if coherence > 0 else 0

    def wrote(self, environ: Mapping[str, Any]) -> bool:
        """Return whether the visitor has changed something a moment ago."""
        return COOKIE in environ.get("HTTP_COOKIE", "") and self._seconds > 0

    def cookie(self, environ: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the header that says so from now on; nothing where every process knows at once."""
        if not self._seconds:
            return []
        secure = environ.get("wsgi.url_scheme") == "https"
        path = environ.get("SCRIPT_NAME") or "/"
        value = dump_cookie(COOKIE, "1", path=path, secure=secure, httponly=True, samesite="Lax")
        # Without Expires: the clocks of clients differ (RFC 6265, 5.3: Max-Age is enough).
        return [("Set-Cookie", f"{value}; Max-Age={self._seconds}")]
