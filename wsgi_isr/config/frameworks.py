"""What a function whose result is kept gets of its framework: the application and its database, and no request.

No framework is imported here that the app has not imported.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, NoReturn

from ..errors import PersonalDataError

#: Where frameworks and middlewares keep the app inside of them.
INSIDE = ("wsgi_app", "app", "application", "wrapped")
_MAX_NESTED = 64

#: What Flask, werkzeug, Quart and Bottle say where there is no request.
_NO_REQUEST = ("request context", "active request")

Surroundings = Callable[[], AbstractContextManager[object]]


def nested(app: Any) -> Iterator[Any]:
    """Yield ``app`` and the apps inside of it, from the outside in: those of middlewares, methods, closures and
    dispatchers."""
    found, seen = deque([app]), {id(app)}
    for _ in range(_MAX_NESTED):
        if not found:
            return
        app = found.popleft()
        yield app
        for inner in directly_in(app):
            if callable(inner) and id(inner) not in seen:
                seen.add(id(inner))
                found.append(inner)


def directly_in(app: Any) -> Iterator[Any]:
    """Yield what may be an app directly inside of ``app``; other things as well."""
    for name in ("__self__", *INSIDE):
        yield _attribute(app, name)
    mounts = _attribute(app, "mounts")  # werkzeug.middleware.dispatcher
    yield from mounts.values() if isinstance(mounts, Mapping) else ()
    closure = _attribute(app, "__closure__")
    for cell in closure if isinstance(closure, tuple) else ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty
            continue


def _attribute(app: Any, name: str) -> Any:
    try:
        return getattr(app, name, None)
    except Exception:  # a proxy for something that there is only in a request, say
        return None


class Application:
    """What the kept functions of one wrapped app are called in: the application of a framework, without a request.

    :param inline: whether that is in the thread that calls, with the connections to databases that it has.
    """

    def __init__(self, app: Any, inline: bool = False) -> None:
        self._inline = inline
        known = [inner for inner in nested(app) if is_flask(inner) or is_django(inner)]
        self._only = known[0] if len(known) == 1 else None
        # Several are mounted beside each other: data is that of the one that is active where it is asked for. An import
        # name alone may be that of two apps that one factory makes.
        self._several = {
            f"{place}:{inner.import_name}": inner for place, inner in enumerate(known) if is_flask(inner) and known[1:]
        }
        #: What a thread that runs several functions has to do before it ends; ``None`` where each needs its own.
        self.at_end = _close_connections if known and all(map(is_django, known)) else None

    def active(self) -> str | None:
        """Return the name of the app that is active here, the same in every process; ``None`` for one that is not
        known.

        It is empty where there is one app, or where no app of Flask is active: what is called there finds none.
        """
        if self._only is None and not self._several:
            return ""
        flask = sys.modules.get("flask")
        if flask is None or not flask.has_app_context():
            return ""
        app = flask.current_app._get_current_object()
        if app is self._only:
            return ""
        return next((name for name, known in self._several.items() if known is app), None)

    def knows(self, name: str) -> bool:
        """Return whether there is an app of this ``name`` (:meth:`active`) here."""
        return not name or name in self._several

    def surroundings(self, name: str) -> Surroundings:
        """Return what a function is to be called in that was asked for in the app of this ``name``."""
        app = self._several[name] if name else self._only
        return nullcontext if app is None else self._surroundings(app)

    def _surroundings(self, app: Any) -> Surroundings:
        # The database connections of Flask's extensions belong to the application context.
        in_flask: Surroundings = app.app_context if is_flask(app) else _no_language if self._inline else _in_django
        return in_flask


def is_flask(app: Any) -> bool:
    """Return whether this is an app of Flask. Of its class: what wraps an app may have the app's attributes."""
    return hasattr(type(app), "wsgi_app") and callable(_attribute(app, "app_context"))


def is_django(app: Any) -> bool:
    """Return whether this is the handler of a Django site."""
    handlers = sys.modules.get("django.core.handlers.base")
    return handlers is not None and isinstance(app, handlers.BaseHandler)


@contextmanager
def _in_django() -> Iterator[None]:
    """As around a request of Django: connections that have died, or are past CONN_MAX_AGE, are not used any more."""
    _close_old_connections()
    try:
        with _no_language():
            yield
    finally:
        _close_old_connections()


def _close_old_connections() -> None:
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            continue  # of a kept function that has called this one
        if connection.settings_dict["CONN_MAX_AGE"] == 0:
            # Another for each function would cost more than the function. It goes with the thread.
            connection.close_at = None
        connection.close_if_unusable_or_obsolete()


def _close_connections() -> None:
    from django.db import connections

    connections.close_all()


def _no_language() -> AbstractContextManager[object]:
    """Where visitors have languages (LocaleMiddleware), that of the moment is no longer the one of the settings."""
    from django.conf import settings
    from django.middleware.locale import LocaleMiddleware
    from django.utils.module_loading import import_string

    chosen = settings.USE_I18N and any(
        isinstance(kind, type) and issubclass(kind, LocaleMiddleware)
        for kind in map(import_string, settings.MIDDLEWARE)
    )
    return _refusing_language() if chosen else nullcontext()


@contextmanager
def _refusing_language() -> Iterator[None]:
    from django.utils.translation import deactivate, trans_real

    trans_real._active.value = _VisitorsLanguage()
    try:
        yield
    finally:
        deactivate()


class _VisitorsLanguage:
    """In the place of Django's translation object: whatever is asked of it is an error."""

    def to_language(self) -> None:
        """Return ``None`` to ``translation.override``, which only remembers it."""
        from django.utils.translation import override

        frame: FrameType | None = sys._getframe(1)
        for _ in range(4):
            if frame is not None and frame.f_code is override.__enter__.__code__:
                return
            frame = frame and frame.f_back
        self.__getattr__("to_language")

    def __getattr__(self, name: str) -> NoReturn:
        raise _NoLanguage(name)


class _NoLanguage(RuntimeError):
    """A function has looked at the language of the visitor."""


def personal(error: Exception, function: str) -> Exception:
    """Return the error to raise for one that a kept function has raised: one that says what to do, where the function
    has looked at a visitor."""
    if isinstance(error, _NoLanguage):
        looked, remedy = (
            "the language of a visitor",
            "pass the language, and use `with translation.override(language):`",
        )
    elif isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_REQUEST):
        looked, remedy = "the request of a visitor", "pass what it needs as an argument"
    elif isinstance(error, AttributeError) and type(error.obj).__name__ == "_AppCtxGlobals":
        looked, remedy = f"flask.g.{error.name} of a visitor's request", "pass what it needs as an argument"
    else:
        return error
    explained = PersonalDataError(function, looked, remedy)
    explained.__cause__ = error
    return explained
