"""gunicorn hooks: ``gunicorn -c python:wsgi_isr.gunicorn myapp:app``, or imported into a config file of your own.

A worker that stops drains its background renders first. Nothing else is needed: an :class:`~wsgi_isr.ISR`
starts its threads and connections with its first request, so with ``--preload`` none is inherited.
"""

from __future__ import annotations

from typing import Any

from .process import close_all


def worker_exit(server: Any, worker: Any) -> None:
    """Called by gunicorn in a worker that has served its last request."""
    close_all()
