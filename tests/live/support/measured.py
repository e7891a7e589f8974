"""The origin behind the cache, with headers for facts that only the server knows.

``X-Worker``: the process that answered. ``X-Entered`` and ``X-Left``: ``time.monotonic`` when the cache was called and
when it answered. A client could not measure these: its times include the queue in front of a busy server.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from wsgi_isr import wrap

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication


def _measured(cached: WSGIApplication) -> WSGIApplication:
    """Return an app around ``cached`` that sends the headers."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        entered = time.monotonic()

        def measured(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            times = [("X-Entered", repr(entered)), ("X-Left", repr(time.monotonic()))]
            return start_response(status, [*headers, ("X-Worker", str(os.getpid())), *times], *exc_info)

        return cached(environ, measured)

    return app


#: The cache in it takes its options from the environment.
application = _measured(wrap("tests.live.support.origin:origin"))
