"""The app of ``posts.py``: two hot pages, each of which shows the number of POSTs to its URL.

A POST is answered with a redirect to the page. In the folder ``BENCHMARK_FOLDER``, a file of each page grows by a byte
with each POST, and another one with each render.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.apps import PAGE
from tests.benchmarks.cores import take_cores
from wsgi_isr import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

FOLDER_VARIABLE = "BENCHMARK_FOLDER"
#: Seconds of CPU time that a render takes, by path.
COSTS = {"/cheap": 0.0002, "/dear": 0.02}
#: Digits of the number at the begin of a page.
WIDTH = 12


class Counts:
    """Counters that all processes share."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def add(self, what: str, path: str) -> None:
        """Count one. A write of one byte needs no lock, and takes a microsecond."""
        descriptor = os.open(self._file(what, path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)

    def of(self, what: str, path: str) -> int:
        """Return the count."""
        try:
            return self._file(what, path).stat().st_size
        except FileNotFoundError:
            return 0

    def _file(self, what: str, path: str) -> Path:
        return self._folder / f"{what}{path.replace('/', '-')}"


def shown_by(page: bytes) -> int:
    """Return the number of POSTs that a page shows."""
    return int(page[:WIDTH])


def bare(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer a POST with a redirect, and a GET with the page."""
    counts, path = Counts(os.environ[FOLDER_VARIABLE]), environ["PATH_INFO"]
    if environ["REQUEST_METHOD"] == "POST":
        counts.add("posts", path)
        start_response("303 See Other", [("Location", path), ("Content-Length", "0")])
        return []
    body = f"{counts.of('posts', path):{WIDTH}}".encode() + PAGE[WIDTH:]
    over = time.thread_time() + COSTS.get(path, 0)
    while time.thread_time() < over:
        pass
    if environ["REQUEST_METHOD"] == "GET":
        counts.add("renders", path)
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


if FOLDER_VARIABLE in os.environ:
    take_cores()
cached = ISR(bare, dict.fromkeys(COSTS, False))
