"""Detect whether an app is being developed: its pages are then not cached, as with ``next dev``.

A development server, a reloader or a framework's debug mode shows it. Most of these are known when the app is wrapped.
The rest is known with the first request, which names its server.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from .frameworks import is_django, is_flask, nested

#: Servers for development, as ``SERVER_SOFTWARE`` of a request names them.
SERVERS = {"Werkzeug/": "werkzeug's development server", "WSGIServer/": "wsgiref's server"}
#: Variables that reloaders set in the process that serves.
_RELOADERS = {
    "WERKZEUG_RUN_MAIN": ("werkzeug", "werkzeug's reloader"),
    "RUN_MAIN": ("django", "Django's reloader"),
    "BOTTLE_CHILD": ("bottle", "Bottle's reloader"),
}
#: Programs whose option ``--reload`` starts a reloader.
_WITH_RELOAD = ("gunicorn", "granian", "hypercorn", "pserve", "uvicorn", "wsgi-isr")

#: Whether the server of this process has a reloader, as its hooks know (:mod:`wsgi_isr.gunicorn`). Set before processes
#: are forked, and inherited.
has_reloader = False

_log = logging.getLogger("wsgi_isr")


class Found(NamedTuple):
    """The sign of development, in words.

    ``is_meant``: a server or a reloader gives it; a debug mode alone may have been forgotten in production. ``serves``:
    this process certainly answers requests; otherwise it may be one that only starts others.
    """

    what: str
    is_meant: bool = True
    serves: bool = True

    def announce(self) -> None:
        """Log the sign, once in each process."""
        _announce(self)


def development_of(option: str, app: Any, environ: Mapping[str, Any] | None = None) -> Found | None:
    """Return the sign that an app is being developed, so that nothing is cached; ``None`` without a sign.

    :param option: the option ``development``.
    :param environ: of a request, if there is one yet.
    """
    if option != "auto":
        return Found('development="bypass"') if option == "bypass" else None
    for prefix, server in SERVERS.items():
        if environ is not None and is_served_by(environ, prefix):
            return Found(f"{server} is running")
    for variable, (module, reloader) in _RELOADERS.items():
        if os.environ.get(variable) and module in sys.modules:
            return Found(f"{reloader} is running")
    if has_reloader or _has_reload_option() or any(map(_is_gunicorn_reloader, threading.enumerate())):
        return Found("the server has a reloader (--reload)")
    debug = _debug_mode(app)
    if "runserver" in sys.argv[1:2] and "django" in sys.modules:
        return Found("manage.py runserver is running")
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true" and "run" in sys.argv[1:]:
        # debug comes with a reloader, whose process serves no requests
        return Found("flask run is running", serves=not debug)
    return Found(debug, is_meant=False) if debug else None


def is_served_by(environ: Mapping[str, Any], prefixes: str | tuple[str, ...] = tuple(SERVERS)) -> bool:
    """Return whether the name of a request's server has one of the prefixes; by default, of development servers."""
    name = environ.get("SERVER_SOFTWARE")
    return isinstance(name, str) and name.startswith(prefixes)


def _has_reload_option() -> bool:
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    if program == "__main__.py":  # python -m
        program = os.path.basename(os.path.dirname(sys.argv[0]))
    return "--reload" in sys.argv and program.startswith(_WITH_RELOAD)


def _is_gunicorn_reloader(thread: threading.Thread) -> bool:
    return type(thread).__module__ == "gunicorn.reloader"


def _debug_mode(app: Any) -> str:
    for inner in nested(app):
        if is_flask(inner) and getattr(inner, "debug", False):
            return "Flask's debug mode is on (FLASK_DEBUG, app.debug)"
        if (is_django(inner) or (app is None and _is_set_up())) and sys.modules["django.conf"].settings.DEBUG:
            return "Django's debug mode is on (DEBUG in its settings)"
        if type(inner).__module__ == "bottle" and sys.modules["bottle"].DEBUG:
            return "Bottle's debug mode is on"
    return ""


def _is_set_up() -> bool:
    conf = sys.modules.get("django.conf")
    return conf is not None and bool(conf.settings.configured)


@functools.lru_cache
def _announce(found: Found) -> None:
    if found.is_meant:
        _log.warning(
            "development: %s, so pages are not cached (X-ISR: BYPASS) and invalidating does nothing; to try the cache, "
            "set WSGI_ISR_DEVELOPMENT=cache",
            found.what,
        )
    else:
        _log.warning(
            "NO PAGE IS CACHED, and invalidating does nothing: %s; in production, switch it off; to cache pages all "
            "the same, set WSGI_ISR_DEVELOPMENT=cache",
            found.what,
        )
