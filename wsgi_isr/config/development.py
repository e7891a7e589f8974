"""Whether an app is being developed: then its pages are not cached, as with ``next dev``.

That is so under a development server, a reloader, or a framework's debug mode. Most of it is known when the app is
wrapped, the rest with the first request, which names its server.
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

#: Whether the server of this process has a reloader, as its hooks know (:mod:`.gunicorn`). Set before processes are
#: forked, and inherited.
has_reloader = False

_log = logging.getLogger("wsgi_isr")


class Found(NamedTuple):
    """What development is told by, in words.

    ``is_meant``: the server or a reloader says so; a debug mode alone may have been forgotten in production.
    ``serves``: this process is certain to answer requests; it may be the one that only begins others.
    """

    what: str
    is_meant: bool = True
    serves: bool = True

    def announce(self) -> None:
        """Say so, once in each process."""
        _announce(self)


def development_of(option: str, app: Any, environ: Mapping[str, Any] | None = None) -> Found | None:
    """Return what tells that an app is being developed, so that nothing is cached; ``None`` where nothing does.

    :param option: the option ``development``. :param environ: of a request, if there is one by now.
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
        return Found("flask run is running", serves=not debug)  # debug comes with a reloader, which serves nobody
    return Found(debug, is_meant=False) if debug else None


def is_served_by(environ: Mapping[str, Any], prefixes: str | tuple[str, ...] = tuple(SERVERS)) -> bool:
    """Return whether a request came through a server whose name begins so: by default, one for development."""
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
