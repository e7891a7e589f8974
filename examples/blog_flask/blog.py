"""Assemble the blog. No module here or below knows that pages are cached."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

from flask import Flask, render_template
from werkzeug.exceptions import HTTPException, InternalServerError
from werkzeug.wrappers import Response

from . import accounts, db, faults, pages, text


def create_app(**config: object) -> Flask:
    """Return the blog without a cache.

    :param config: overrides of the options below; the environment sets each as ``BLOG_<NAME>``.

        ``DB``: the database file, created and filled if missing (``.blog/blog.sqlite3``);
        ``SLOW``: additional seconds that ``/stats`` takes (0.5);
        ``REVALIDATE``: seconds for which ``/stats`` is fresh (5);
        ``TIMEOUT``: seconds after which a render of ``/stats`` is given up, and its lease ends (3);
        ``SECRET_KEY``: signs sessions (by default a random key, kept in the database);
        ``FAULTS``: a directory of files that control :mod:`.faults` (off).
    :raises ValueError: an option has an invalid value.
    """
    app = Flask(__name__)
    app.config.from_mapping(DB=".blog/blog.sqlite3", SLOW=0.5, REVALIDATE=5, TIMEOUT=3, FAULTS="")
    app.config.from_prefixed_env("BLOG")
    app.config.update(config)
    app.config.update(
        DB=Path(app.config["DB"]).absolute(),
        SLOW=_seconds(app, "SLOW"),
        REVALIDATE=_seconds(app, "REVALIDATE"),
        TIMEOUT=_seconds(app, "TIMEOUT"),
        MAX_CONTENT_LENGTH=256 * 1024,
        SESSION_COOKIE_NAME="blog_session",
        SESSION_COOKIE_SAMESITE="Lax",
    )
    if app.config["TIMEOUT"] <= app.config["SLOW"]:
        raise ValueError("BLOG_TIMEOUT must be longer than BLOG_SLOW, or /stats would never be finished")
    db.ensure(app.config["DB"])
    app.secret_key = str(app.config["SECRET_KEY"] or db.secret_key(app.config["DB"]))

    app.teardown_appcontext(db.close)
    app.register_blueprint(pages.blueprint)
    app.register_blueprint(accounts.blueprint)
    app.register_error_handler(HTTPException, _sorry)
    app.register_error_handler(InternalServerError, _broken)
    app.context_processor(_footer)
    app.context_processor(accounts.for_templates)
    app.add_template_filter(text.paragraphs)
    app.add_template_filter(text.plural)
    app.add_template_filter(_day, "day")
    if app.config["FAULTS"]:
        faults.install(app, Path(app.config["FAULTS"]))
    return app


def _seconds(app: Flask, name: str) -> float:
    value = app.config[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 3600:
        raise ValueError(f"BLOG_{name} must be a number of seconds from 0 to 3600, not {value!r}")
    return float(value)


def _footer() -> dict[str, object]:
    return {"rendered_at": datetime.now(timezone.utc), "rendered_by": os.getpid()}


def _day(moment: str) -> str:
    """Return ``4 March 2024`` for ``2024-03-04T09:00:00Z``."""
    date = datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S%z")
    return f"{date.day} {date:%B %Y}"


def _sorry(error: HTTPException) -> Response | tuple[str, int]:
    if error.code is None or error.code < 400:  # a redirect of the routing
        return error.get_response()
    return render_template("error.html", error=error), error.code


def _broken(_error: InternalServerError) -> tuple[str, int]:
    # Use neither the session nor the database: one of them may be broken.
    return render_template("broken.html"), 500
