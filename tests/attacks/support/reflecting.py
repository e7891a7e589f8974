"""An app that shows its whole request, and the comparison of two answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.test import run_wsgi_app

from tests.behaviour.origin import Environ
from tests.behaviour.visitor import Seen, make_environ

#: Asks a site: ``Site.visit``, or the same of a cache that trusts its visitors.
Visit = Callable[..., Seen]
#: Headers that differ between two answers with the same page, by its age.
PASSING = frozenset({"age", "date", "cache-control", "x-isr", "cache-status"})


def reflecting(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Show the whole request, in the body and in headers that clients and caches obey."""
    body = environ["wsgi.input"].read(65536)
    given = {name: value for name, value in environ.items() if isinstance(value, (str, bool))}
    page = json.dumps({"given": given, "names": sorted(environ), "body": body.decode("latin-1")}, sort_keys=True)
    host = _one_line(environ.get("HTTP_X_FORWARDED_HOST") or environ.get("HTTP_HOST", ""))
    start_response(
        "200 OK",
        [
            ("Content-Type", _one_line(environ.get("HTTP_ACCEPT") or "text/html")),
            ("Cache-Control", "s-maxage=60"),
            ("Link", f"<http://{host}/style.css>; rel=preload"),
            ("X-Language", _one_line(environ.get("HTTP_ACCEPT_LANGUAGE", ""))),
            ("X-Origin", _one_line(environ.get("HTTP_ORIGIN", ""))),
        ],
    )
    return [page.encode()]


def _one_line(value: str) -> str:
    return "".join(letter for letter in value if letter.isprintable())


def lasting(seen: Seen) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return an answer without the headers that depend on the age of the page."""
    headers = [(name, value) for name, value in seen.headers if name.lower() not in PASSING]
    return seen.status, sorted(headers), seen.body


def everything(seen: Seen) -> str:
    """Return all text of an answer."""
    return f"{seen.status}\n{list(seen.headers)}\n{seen.body.decode('latin-1')}"


def settled(visit: Visit, path: str) -> Seen:
    """Return the page as it is in the cache. The first request for an unlisted page is only noted."""
    return [visit(path) for _ in range(3)][-1]


def trusting(app: Any) -> Visit:
    """Return a broken cache, which keeps the first answer at each path. Attacks must find it out."""
    kept: dict[str, Seen] = {}

    def visit(path: str, **request: Any) -> Seen:
        place = path.partition("?")[0]
        if place not in kept:
            body, status, headers = run_wsgi_app(app, make_environ(path, **request), buffered=True)
            kept[place] = Seen(status, Headers([*headers, ("X-ISR", "HIT")]), b"".join(body))
        return kept[place]

    return visit
