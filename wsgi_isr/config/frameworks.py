"""The context of cached functions: the application of the framework with its database, and no request.

This module imports no framework that the app has not imported.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, NoReturn

from ..errors import PersonalDataError

#: Attributes in which frameworks and middlewares keep the inner app.
INNER_ATTRIBUTES = ("wsgi_app", "app", "application", "wrapped")
_MAX_NESTED = 64

#: Texts in the errors that Flask, werkzeug, Quart and Bottle raise outside of a request.
_NO_REQUEST = ("request context", "active request")

Surroundings = Callable[[], AbstractContextManager[object]]


def nested(app: Any) -> Iterator[Any]:
    """Yield ``app`` and the apps inside of it, the outermost first.

    The search covers middlewares, methods, closures and dispatchers.
    """
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
    """Yield the objects directly inside of ``app`` that may be apps."""
    for name in ("__self__", *INNER_ATTRIBUTES):
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
    except Exception:  # such as a proxy without a request
        return None


class Application:
    """The context of the cached functions of one wrapped app.

    :param inline: whether functions run in the calling thread, and use its database connections.
    """

    def __init__(self, app: Any, inline: bool = False) -> None:
        self._inline = inline
        known = [inner for inner in nested(app) if is_flask(inner) or is_django(inner)]
        self._only = known[0] if len(known) == 1 else None
        # If several apps are mounted, data belongs to the app that is active at the call. One factory may make two apps
        # with one import name, so the names contain the position.
        self._several = {
            f"{place}:{inner.import_name}": inner for place, inner in enumerate(known) if is_flask(inner) and known[1:]
        }
        #: The cleanup at the end of a thread that runs several functions; ``None`` if each function cleans up itself.
        self.at_end = _close_connections if known and all(map(is_django, known)) else None

    def active(self) -> str | None:
        """Return the name of the active app, the same in every process; ``None`` for an unknown app.

        The name is empty if only one app is wrapped, or if no app of Flask is active.
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
        """Return whether this process has an app with a name from :meth:`active`."""
        return not name or name in self._several

    def surroundings(self, name: str) -> Surroundings:
        """Return the context for functions that were called in an app.

        :param name: from :meth:`active`.
        """
        app = self._several[name] if name else self._only
        return nullcontext if app is None else self._surroundings(app)

    def _surroundings(self, app: Any) -> Surroundings:
        # The database connections of Flask's extensions belong to the application context.
        in_flask: Surroundings = app.app_context if is_flask(app) else _no_language if self._inline else _in_django
        return in_flask


def is_flask(app: Any) -> bool:
    """Return whether this is an app of Flask.

    Its class decides, because a wrapper may have the attributes of its app.
    """
    return hasattr(type(app), "wsgi_app") and callable(_attribute(app, "app_context"))


def is_django(app: Any) -> bool:
    """Return whether this is the handler of a Django site."""
    handlers = sys.modules.get("django.core.handlers.base")
    return handlers is not None and isinstance(app, handlers.BaseHandler)


@contextmanager
def _in_django() -> Iterator[None]:
    """Run the block as Django runs a request: close connections that are dead or older than ``CONN_MAX_AGE``."""
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
            continue  # a cached function that called this one uses it
        if connection.settings_dict["CONN_MAX_AGE"] == 0:
            # A new connection for each function would cost more than the function. The thread's end closes it.
            connection.close_at = None
        connection.close_if_unusable_or_obsolete()


def _close_connections() -> None:
    from django.db import connections

    connections.close_all()


def _no_language() -> AbstractContextManager[object]:
    """Return a context without a language, if the language depends on visitors (``LocaleMiddleware``)."""
    from django.conf import settings
    from django.middleware.locale import LocaleMiddleware
    from django.utils.module_loading import import_string

    depends_on_visitors = settings.USE_I18N and any(
        isinstance(kind, type) and issubclass(kind, LocaleMiddleware)
        for kind in map(import_string, settings.MIDDLEWARE)
    )
    return _refusing_language() if depends_on_visitors else nullcontext()


@contextmanager
def _refusing_language() -> Iterator[None]:
    from django.utils.translation import deactivate, trans_real

    trans_real._active.value = _VisitorsLanguage()
    try:
        yield
    finally:
        deactivate()


class _VisitorsLanguage:
    """The replacement of Django's translation object. Each use raises."""

    def to_language(self) -> None:
        """Return ``None`` to ``translation.override``, which only stores the result; raise for other callers."""
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
    """A cached function has read the language of a visitor."""


def personal_data_error(error: Exception, function: str) -> Exception:
    """Return ``error``, or a :class:`PersonalDataError` if the function has read data of a visitor.

    :param error: raised by a cached function.
    :param function: its name.
    """
    if isinstance(error, _NoLanguage):
        looked_at, remedy = (
            "the language of a visitor",
            "pass the language, and use `with translation.override(language):`",
        )
    elif isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_REQUEST):
        looked_at, remedy = "the request of a visitor", "pass what it needs as an argument"
    elif isinstance(error, AttributeError) and type(error.obj).__name__ == "_AppCtxGlobals":
        looked_at, remedy = f"flask.g.{error.name} of a visitor's request", "pass what it needs as an argument"
    else:
        return error
    explained = PersonalDataError(function, looked_at, remedy)
    explained.__cause__ = error
    return explained
