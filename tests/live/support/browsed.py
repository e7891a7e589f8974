"""A site for browsers: all of its pages and files show a number, which tests change.

In gunicorn, ``application``; in tests, :class:`Numbers`. The two share the directory ``BROWSED_DIRECTORY``. The nginx
in front of it is a :class:`Front`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.load.request import fetch
from cluster.parts.nginx import Balancer
from wsgi_isr import ISR, Rule

from .waiting import until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

APP = "tests.live.support.browsed:application"

HTML, CSS, SCRIPT, IMAGE = "text/html; charset=utf-8", "text/css", "text/javascript", "image/svg+xml"
LINKS = "<title>{number}</title><a id=again href=/{kind}/{name}>x</a><a id=other href=/other/{name}>x</a>"
RELOAD = "<button id=reload onclick='location.reload()'>x</button>"
#: For each first part of the path: content type, further headers, and the body. In the body, ``{kind}`` and ``{name}``
#: are the parts of the path, and ``{number}`` is the number to show.
KINDS: dict[str, tuple[str, list[tuple[str, str]], str]] = {
    "page": (HTML, [], LINKS + RELOAD),
    "other": (HTML, [], "<title>other</title><a id=page href=/page/{name}>x</a>"),
    "whole": (
        HTML,
        [],
        LINKS + RELOAD + "<link rel=stylesheet href=/style/{name}><script src=/script/{name}></script>"
        "<body><img src=/image/{name}>",
    ),
    "style": (CSS, [], "body {{ width: {number}00px }}"),
    "script": (SCRIPT, [], "window.shown = {number}"),
    "image": (IMAGE, [], '<svg xmlns="http://www.w3.org/2000/svg" width="{number}" height="1"/>'),
    # An app's directives for a CDN; for browsers, directives about a view and a file; and a validator of its own.
    "shared": (HTML, [("Cache-Control", "s-maxage=60, stale-while-revalidate=31536000")], LINKS),
    "view": (HTML, [("Cache-Control", "max-age=300")], LINKS),
    "file": (SCRIPT, [("Cache-Control", "public, max-age=31536000, immutable")], "window.shown = {number}"),
    "tagged": (HTML, [("ETag", '"app-{number}"')], LINKS),
}


class Numbers:
    """The data of the site.

    :param directory: of the test.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "numbers"
        self._directory.mkdir()
        self.env = {"BROWSED_DIRECTORY": str(self._directory)}

    def set(self, name: str, number: int) -> None:
        """Change the number of all pages and files with that name, as of their next render."""
        unfinished = self._directory / "unfinished"
        unfinished.write_text(str(number))
        unfinished.replace(self._directory / name)


class Front(Balancer):
    """An nginx that logs its requests."""

    _markers = itertools.count(1)
    _read = 0

    def configuration(self) -> str:
        # One worker logs requests in the order in which they were answered.
        watched = "log_format asked '$request_uri $status';\n    access_log asked asked;"
        return super().configuration().replace("access_log off;", watched)

    def asked(self) -> list[str]:
        """Return path and status of each request since the last call, in order of their paths."""
        marker = f"/marker/{next(self._markers)}"
        fetch(self.port, marker)
        log = self._directory / "asked"
        lines = until(lambda: _up_to(marker, log.read_text().splitlines()[self._read :]), "the marker in nginx's log")
        self._read += len(lines)
        return sorted(line for line in lines[:-1] if not line.startswith("/favicon.ico "))


def _up_to(marker: str, lines: list[str]) -> list[str]:
    found = [number for number, line in enumerate(lines, 1) if line.startswith(f"{marker} ")]
    return lines[: found[0]] if found else []


def site(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """The app behind the cache."""
    _, kind, name = f"{environ['PATH_INFO']}//".split("/", 3)[:3]
    if kind not in KINDS:
        start_response("404 Not Found", [("Content-Type", HTML)])
        return [b"nothing"]
    content_type, headers, text = KINDS[kind]
    path = Path(os.environ["BROWSED_DIRECTORY"]) / name
    number = path.read_text() if path.exists() else "1"
    head = [("Content-Type", content_type), *((header, value.format(number=number)) for header, value in headers)]
    start_response("200 OK", head)
    doctype = "<!doctype html>" if content_type == HTML else ""
    return [(doctype + text.format(kind=kind, name=name, number=number)).encode()]


def __getattr__(name: str) -> ISR:
    if name != "application":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    global application
    application = ISR(site, {"/<kind>/<name>": Rule(revalidate=3600, tags=["{name}"])})
    return application
