"""The app that ``under_gunicorn.py`` runs in gunicorn: the page from L1, and the same answer from a bare function.

The bare function gets the head that ``ISR`` sent in the environment, so that both put the same bytes on the wire.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tests.benchmarks.apps import LIFETIME, PAGE, Site, bare
from wsgi_isr import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

HEADERS_VARIABLE = "BENCHMARK_HEADERS"

isr = ISR(bare(Site()), revalidate=LIFETIME, store="memory://")

_headers = [(name, value) for name, value in json.loads(os.environ.get(HEADERS_VARIABLE, "[]"))]


def same_bytes(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Send this page with these headers, by a minimal WSGI function."""
    start_response("200 OK", _headers)
    return [PAGE]
