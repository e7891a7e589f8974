"""Apps for the event loop of the worker: the same pages from a plain app, from Flask, and behind ``ProxyFix``.

A page shows the text of the file ``LOOPED_FILE``, and its URL as the app sees it. ``POST /write?text`` changes the file
and invalidates all pages. ``/big`` fits no buffer of a socket.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr import ISR, Rule, invalidate

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

BIG = 5_000_000
_URL = ("wsgi.url_scheme", "HTTP_HOST", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")
RULES = {"/<path:name>": Rule(revalidate=3600, tags=["all"], query=["page"])}


def site(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer as the WSGI app."""
    file = Path(os.environ["LOOPED_FILE"])
    if environ["REQUEST_METHOD"] == "POST":
        file.write_text(environ["QUERY_STRING"])
        invalidate(["all"])
    body = f"{file.read_text()} {'|'.join(str(environ.get(name)) for name in _URL)}".encode()
    if environ["PATH_INFO"] == "/big":
        body = body.ljust(BIG, b".")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body] if environ["REQUEST_METHOD"] != "HEAD" else []


def _flask() -> Any:
    from flask import Flask

    app = Flask("looped")
    app.wsgi_app = ISR(site, RULES)  # type: ignore[method-assign]
    return app


def __getattr__(name: str) -> Any:
    if name == "plain":
        made: Any = ISR(site, RULES)
    elif name == "proxied":
        made = ProxyFix(ISR(site, RULES), x_for=1, x_proto=1, x_host=1)
    elif name == "flask":
        made = _flask()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made
    return made
