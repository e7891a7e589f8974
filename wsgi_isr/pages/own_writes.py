"""Read your own writes: a client that has changed something sees it with its next request, in any process.

Processes may serve copies for ``coherence`` seconds before they see an invalidation. A client whose unsafe request has
succeeded gets a cookie for that time. A process that receives the cookie asks the store for invalidations first. The
cookie carries no information and no rights: a forged one costs one look at the store, as ``coherence=0`` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from werkzeug.http import dump_cookie

#: The name is in :data:`~wsgi_isr.config.ignored_names.IGNORED_COOKIES`: the cookie does not identify a visitor.
COOKIE = "wsgi_isr_wrote"
#: Seconds beyond ``coherence``: browsers count whole seconds, and requests take time.
GRACE = 1


class Writes:
    """The cookie of one site.

    :param coherence: seconds for which a process may miss an invalidation by another process; 0 if none may.
    """

    def __init__(self, coherence: float) -> None:
        self._seconds = math.ceil(coherence) + GRACE if coherence > 0 else 0

    def wrote(self, environ: Mapping[str, Any]) -> bool:
        """Return whether the client has just changed something."""
        return COOKIE in environ.get("HTTP_COOKIE", "") and self._seconds > 0

    def cookie(self, environ: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the header that sets the cookie; empty if every process sees invalidations at once."""
        if not self._seconds:
            return []
        secure = environ.get("wsgi.url_scheme") == "https"
        path = environ.get("SCRIPT_NAME") or "/"
        value = dump_cookie(COOKIE, "1", path=path, secure=secure, httponly=True, samesite="Lax")
        # Without Expires: the clocks of clients differ (RFC 6265, 5.3: Max-Age is enough).
        return [("Set-Cookie", f"{value}; Max-Age={self._seconds}")]
