"""The way of a request from gunicorn's callable to an ISR, if nothing on it changes a response.

An event loop may answer for the app only then. Any other callable on the way may see each request, or change the
answer: a middleware for sessions or files, a monitor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

from ..middleware.isr import ISR

#: Classes whose ``__call__`` only calls an attribute: its module, name and attribute.
_FORWARDING = (("flask.app", "Flask", "wsgi_app"), ("bottle", "Bottle", "wsgi"))
#: A class that changes the environ, as the fields of a proxy say, and not the response.
_PROXY_FIX = ("werkzeug.middleware.proxy_fix", "ProxyFix", "app")
#: The fields that it reads.
PROXY_FIELDS = frozenset(f"HTTP_X_FORWARDED_{name}" for name in ("FOR", "PROTO", "HOST", "PORT", "PREFIX"))


class CallPath:
    """The way from a WSGI callable to an ISR.

    :raises LookupError: there is no such way, and the message names the reason.
    """

    def __init__(self, app: Any) -> None:
        #: Callables on the way: the object, its class's ``__call__``, the attribute that it calls and the value of it.
        self._steps: list[tuple[Any, Any, str, Any]] = []
        self._fixes: list[Callable[[dict[str, Any], Any], Any]] = []
        while not _is_exactly(app, "wsgi_isr.middleware.isr", "ISR"):
            attribute = next((way[2] for way in _FORWARDING if _is_exactly(app, *way[:2])), None)
            if _is_exactly(app, *_PROXY_FIX[:2]) and type(app).__name__ == _PROXY_FIX[1]:
                attribute = _PROXY_FIX[2]
                self._fixes.append(_Alone(app))
            if attribute is None or attribute not in vars(app):
                shown = f"{type(app).__module__}.{type(app).__qualname__}"
                raise LookupError(f"{shown} stands between gunicorn and the ISR, or there is no ISR")
            inner = vars(app)[attribute]
            self._steps.append((app, type(app).__call__, attribute, inner))
            app = inner
        self.isr: ISR = app
        self._call = type(app).__call__

        #: Fields of a proxy change the environ on the way.
        self.is_fixed = bool(self._fixes)

    def still_leads(self) -> bool:
        """Return whether no callable was put on the way since."""
        if type(self.isr).__call__ is not self._call:
            return False
        for holder, call, attribute, inner in self._steps:
            if vars(holder).get(attribute) is not inner or type(holder).__call__ is not call:
                return False
        return True

    def fix(self, environ: dict[str, Any]) -> None:
        """Change an environ as the callables on the way do."""
        for fix in self._fixes:
            fix(environ, None)


def _is_exactly(app: Any, module: str, name: str) -> bool:
    """Return whether an app is an instance of a class with that class's own ``__call__``."""
    kind = getattr(sys.modules.get(module), name, None)
    if not isinstance(kind, type) or not issubclass(type(app), kind):
        return False
    call = vars(kind).get("__call__")
    # A monitor may have put another function in its place, under the same name.
    is_own = type(call) is FunctionType and call.__code__.co_filename == sys.modules[module].__file__
    return is_own and type(app).__call__ is call


class _Alone:
    """A ``ProxyFix`` without the app behind it, and with its settings of the moment."""

    def __init__(self, proxy_fix: Any) -> None:
        self._proxy_fix = proxy_fix
        self._call = type(proxy_fix).__call__

    def __call__(self, environ: dict[str, Any], start_response: Any) -> None:
        self._call(self, environ, start_response)

    def app(self, environ: dict[str, Any], start_response: Any) -> tuple[bytes, ...]:
        """Return nothing, in the place of the app."""
        return ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._proxy_fix, name)
