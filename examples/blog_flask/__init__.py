"""A blog in Flask with a real database, cached by ``wsgi_isr`` in one line.

``app`` is created at its first access (``examples.blog_flask:app`` on gunicorn's command line), so that importing this
package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    app: Flask


def __getattr__(name: str) -> Flask:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    global app
    app = _wrapped()
    return app


def _wrapped() -> Flask:
    from wsgi_isr import ISR, Rule

    from .blog import create_app
    from .caching import RULES, invalidate_with

    app = create_app()
    stats = Rule(revalidate=app.config["REVALIDATE"], render_timeout=app.config["TIMEOUT"], tags=["posts"])
    app.wsgi_app = ISR(app.wsgi_app, {**RULES, "/stats": stats}, revalidate=60)
    invalidate_with(app.logger)
    return app
