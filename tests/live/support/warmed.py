"""The measured app, which has requested a page from itself before, and left it stale.

Loaded by gunicorn's master (``--preload``), it leaves all that a worker must not inherit: threads, connections, copies
of pages, and a render in progress.
"""

from __future__ import annotations

from werkzeug.test import Client

from .measured import application
from .visitor import SITE
from .waiting import until

_visitor = Client(application)


def _verdict() -> str:
    return _visitor.get("/", base_url=f"http://{SITE}").headers["X-ISR"]


until(lambda: _verdict() == "STALE", "a stale page")

__all__ = ["application"]
