"""What ``visitors.py`` has gunicorn serve: a hot page, and pages that take a tenth of a second to compute and are due
again as soon as they were made.

In the folder ``BENCHMARK_FOLDER``, the file ``renders`` gets a line for each of these: seconds of monotonic time at
which the computing began and ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tests.benchmarks.apps import PAGE
from wsgi_isr import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

FOLDER_VARIABLE = "BENCHMARK_FOLDER"
HOT = "/hot"
#: Several, so that the next one is due while one is made.
BUSY = ("/busy/1", "/busy/2")
#: Seconds of computing.
COMPUTING = 0.1


def _app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(PAGE)))]
    if environ["PATH_INFO"] in BUSY:
        _compute()
    start_response("200 OK", headers)
    return [PAGE]


def _compute() -> None:
    """As a template with many rows does: bytecode, and nothing that would let other threads go on meanwhile."""
    began, used = time.monotonic(), time.thread_time()
    total = 0
    while time.thread_time() - used < COMPUTING:
        for number in range(500):
            total += number * number % 7
    with open(os.path.join(os.environ[FOLDER_VARIABLE], "renders"), "a", encoding="ascii") as file:
        file.write(f"{began} {time.monotonic()}\n")


application = ISR(_app, {HOT: False, "/busy/<page>": 0.001})
