"""The standard library's documentation as a site: rendered by pydoc, served by Bottle, cached by ``wsgi_isr``.

``app`` is created at its first access (``examples.pydoc_bottle:app`` on gunicorn's command line), so that importing
this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgi_isr import ISR

    app: ISR


def __getattr__(name: str) -> ISR:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    global app
    from wsgi_isr import ISR

    from .caching import RULES
    from .site import site

    app = ISR(site, RULES)
    return app
