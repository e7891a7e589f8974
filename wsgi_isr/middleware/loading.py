"""Wrap apps that are given by name, ``module:attribute``, as servers and commands take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config.frameworks import nested
from ..config.loading import load
from .isr import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def wrap(target: str, rules: Any = None, **options: Any) -> ISR:
    """Wrap the app that ``target`` names, on the command line of a server: ``gunicorn "wsgi_isr:wrap('myapp:app')"``.

    :param target: ``module:attribute``, or ``module:factory()`` for the result of a call.
    :raises ConfigError: the module does not import, the object is no WSGI app, or an option is invalid.
    """
    return ISR(load(target, f"wrap({target!r})"), rules, import_name=target.partition(":")[0], **options)


def isr_of(target: str) -> ISR:
    """Return the :class:`ISR` of the app that ``target`` names.

    The :class:`ISR` may be the app itself, Flask's ``wsgi_app``, or inside of other middlewares. If there is none, wrap
    the app with the options of the environment.

    :raises ConfigError: see :func:`wsgi_isr.config.loading.load`.
    """
    app = load(target, target)
    return find_isr(app) or ISR(app, import_name=target.partition(":")[0])


def app_to_serve(target: str) -> WSGIApplication:
    """Return the app that ``wsgi-isr serve`` runs: the app that ``target`` names.

    An app without an :class:`ISR` is wrapped, with the options of the environment.

    :raises ConfigError: see :func:`wsgi_isr.config.loading.load`.
    """
    app: WSGIApplication = load(target, target)
    return app if find_isr(app) is not None else ISR(app, import_name=target.partition(":")[0])


def find_isr(app: Any) -> ISR | None:
    """Return the :class:`ISR` among an app and the apps that it wraps; ``None`` if there is none."""
    return next((found for found in nested(app) if isinstance(found, ISR)), None)
