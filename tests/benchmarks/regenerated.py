"""The app that ``visitors.py`` runs in gunicorn: a hot page, and large pages of the pydoc example.

A large page takes a tenth of a second of CPU time, and is due again as soon as it was rendered. In the folder
``BENCHMARK_FOLDER``, the file ``renders`` gets a line for each of these renders: seconds of monotonic time at its begin
and its end.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from examples.pydoc_bottle.site import site
from tests.benchmarks.apps import PAGE
from tests.benchmarks.cores import take_cores
from wsgi_isr import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

FOLDER_VARIABLE = "BENCHMARK_FOLDER"
#: Seconds for :func:`sys.setswitchinterval`; empty for Python's default.
INTERVAL_VARIABLE = "BENCHMARK_SWITCH_INTERVAL"
HOT = "/hot"
#: Several, so that the next one is due while one is made.
BUSY = ("/module/asyncio", "/module/ssl", "/module/socket")
#: The same pages, which are never due again.
KEPT = tuple(f"/kept{path}" for path in BUSY)


def _app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    if environ["PATH_INFO"] in KEPT:
        return site({**environ, "PATH_INFO": environ["PATH_INFO"].removeprefix("/kept")}, start_response)
    if environ["PATH_INFO"] in BUSY:
        began = time.monotonic()
        body = list(site(environ, start_response))
        with open(os.path.join(os.environ[FOLDER_VARIABLE], "renders"), "a", encoding="ascii") as file:
            file.write(f"{began} {time.monotonic()}\n")
        return body
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(PAGE)))])
    return [PAGE]


if FOLDER_VARIABLE in os.environ:
    take_cores()
if os.environ.get(INTERVAL_VARIABLE):
    sys.setswitchinterval(float(os.environ[INTERVAL_VARIABLE]))
application = ISR(_app, {HOT: False, "/module/<name>": 0.001, "/kept/module/<name>": False})
