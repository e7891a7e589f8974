"""Detect development. During development, pages are not cached, as with ``next dev``.

The signs are a development server, a reloader and a framework's debug mode. Most signs are visible when the app is
wrapped. The name of the server is known from the first request on.
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
#: Environment variables that reloaders set in the serving process. Each variable counts only if a module is loaded.
#: By variable: the name of this module, and the name of the reloader for messages.
_RELOADERS = {
    "WERKZEUG_RUN_MAIN": ("werkzeug", "werkzeug's reloader"),
    "RUN_MAIN": ("django", "Django's reloader"),
    "BOTTLE_CHILD": ("bottle", "Bottle's reloader"),
}
#: Programs whose option ``--reload`` starts a reloader.
_WITH_RELOAD = ("gunicorn", "granian", "hypercorn", "pserve", "uvicorn", "wsgi-isr")

#: Whether the server has a reloader. The hooks in :mod:`wsgi_isr.gunicorn` set it before they fork, and children
#: inherit it.
has_reloader = False

_log = logging.getLogger("wsgi_isr")


class DevelopmentSign(NamedTuple):
    """A sign that the app is being developed.

    :param text: the sign, for messages.
    :param is_deliberate: ``False`` for a debug mode alone, which may have been forgotten in production.
    :param serves_requests: ``False`` if this process may be just the parent of the serving process.
    """

    text: str
    is_deliberate: bool = True
    serves_requests: bool = True

    def announce(self) -> None:
        """Log the sign, once in each process."""
        _announce(self)


def development_of(option: str, app: Any, environ: Mapping[str, Any] | None = None) -> DevelopmentSign | None:
    """Return the sign that an app is being developed; ``None`` if there is none.

    :param option: the option ``development``.
    :param environ: the environ of a request; ``None`` before the first request.
    """
    if option != "auto":
        return DevelopmentSign('development="bypass"') if option == "bypass" else None
    for prefix, server in SERVERS.items():
        if environ is not None and is_served_by(environ, prefix):
            return DevelopmentSign(f"{server} is running")
    for variable, (module, reloader) in _RELOADERS.items():
        if os.environ.get(variable) and module in sys.modules:
            return DevelopmentSign(f"{reloader} is running")
    if has_reloader or _has_reload_option() or any(map(_is_gunicorn_reloader, threading.enumerate())):
        return DevelopmentSign("the server has a reloader (--reload)")
    debug = _debug_mode(app)
    if "runserver" in sys.argv[1:2] and "django" in sys.modules:
        return DevelopmentSign("manage.py runserver is running")
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true" and "run" in sys.argv[1:]:
        # With debug, this may be the reloader's process, which serves no requests.
        return DevelopmentSign("flask run is running", serves_requests=not debug)
    return DevelopmentSign(debug, is_deliberate=False) if debug else None


def is_served_by(environ: Mapping[str, Any], prefixes: str | tuple[str, ...] = tuple(SERVERS)) -> bool:
    """Return whether the name of the server begins with one of the prefixes, by default those of :data:`SERVERS`."""
    name = environ.get("SERVER_SOFTWARE")
    return isinstance(name, str) and name.startswith(prefixes)


def _has_reload_option() -> bool:
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    if program == "__main__.py":  # python -m PACKAGE
        program = os.path.basename(os.path.dirname(sys.argv[0]))
    return "--reload" in sys.argv and program.startswith(_WITH_RELOAD)


def _is_gunicorn_reloader(thread: threading.Thread) -> bool:
    return type(thread).__module__ == "gunicorn.reloader"


def _debug_mode(app: Any) -> str:
    """Return the debug mode that is on, as text for messages; empty if none is on."""
    for inner in nested(app):
        if is_flask(inner) and getattr(inner, "debug", False):
            return "Flask's debug mode is on (FLASK_DEBUG, app.debug)"
        if (is_django(inner) or (app is None and _has_django())) and sys.modules["django.conf"].settings.DEBUG:
            return "Django's debug mode is on (DEBUG in its settings)"
        if type(inner).__module__ == "bottle" and sys.modules["bottle"].DEBUG:
            return "Bottle's debug mode is on"
    return ""


def _has_django() -> bool:
    conf = sys.modules.get("django.conf")
    return conf is not None and bool(conf.settings.configured)


@functools.lru_cache
def _announce(sign: DevelopmentSign) -> None:
    if sign.is_deliberate:
        _log.warning(
            "development: %s, so pages are not cached (X-ISR: BYPASS) and invalidating does nothing; to try the cache, "
            "set WSGI_ISR_DEVELOPMENT=cache",
            sign.text,
        )
    else:
        _log.warning(
            "NO PAGE IS CACHED, and invalidating does nothing: %s; in production, switch it off; to cache pages all "
            "the same, set WSGI_ISR_DEVELOPMENT=cache",
            sign.text,
        )
