"""A page that shows the last post, behind four workers that take turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wsgi_isr import ISR

POSTED = Path(os.environ["LIVE_POSTED"])


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Store the query of a POST to /, and show it to a GET."""
    if environ["REQUEST_METHOD"] == "POST":
        beside = POSTED.with_suffix(f".{os.getpid()}")
        beside.write_text(environ["QUERY_STRING"])
        beside.replace(POSTED)
        start_response("303 See Other", [("Location", "/"), ("X-Pid", str(os.getpid()))])
        return [b""]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [POSTED.read_bytes()]


cached = ISR(app, {"/": 600}, coherence=1.0)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Add the id of the worker to the answer."""

    def with_pid(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        return start_response(status, [*headers, ("X-Worker", str(os.getpid()))], *rest)

    return cached(environ, with_pid)
