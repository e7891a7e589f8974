"""The apps that benchmarks run in servers: the page from L1, from other caches, from a file, and from a bare function.

The bare function gets the head that ``ISR`` sent in the environment, so that both put the same bytes on the wire. Each
app is made when a server asks for it: an app of another framework would be memory of each worker.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.apps import LIFETIME, PAGE, Site, bare, django, flask
from wsgi_isr import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

HEADERS_VARIABLE = "BENCHMARK_HEADERS"

_headers = [(name, value) for name, value in json.loads(os.environ.get(HEADERS_VARIABLE, "[]"))]


def same_bytes(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Send this page with these headers, by a minimal WSGI function."""
    start_response("200 OK", _headers)
    return [PAGE]


def _whitenoise() -> WSGIApplication:
    """Return the page as a static file that WhiteNoise serves."""
    from whitenoise import WhiteNoise

    global _folder
    _folder = tempfile.TemporaryDirectory()  # the file is there as long as the process
    file = Path(_folder.name, "blog", "served")
    file.parent.mkdir()
    file.write_bytes(PAGE)
    return WhiteNoise(same_bytes, root=_folder.name)


_MAKERS: dict[str, Callable[[], WSGIApplication]] = {
    "isr": lambda: ISR(bare(Site()), revalidate=LIFETIME, store="memory://"),
    "flask_caching": lambda: flask(Site(), cached=True),
    "django_cache": lambda: django(Site(), cached=True),
    "whitenoise": _whitenoise,
}


def __getattr__(name: str) -> WSGIApplication:
    if name not in _MAKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = globals()[name] = _MAKERS[name]()
    return app
