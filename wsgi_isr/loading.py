"""Load apps by name, as servers and commands do: ``module:attribute``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .config.frameworks import nested
from .config.wrapping import check_app
from .errors import ConfigError
from .middleware import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def load(target: str, option: str) -> Any:
    """Return the WSGI app that ``target`` names.

    :param target: ``module:attribute``, or ``module:factory()`` for the result of a call.
    :param option: the option that errors name.
    :raises ConfigError: the module does not import, or the object is no WSGI app.
    """
    module_name, colon, attribute = target.partition(":")
    if not module_name or not colon or not attribute:
        raise ConfigError(option, f"{target!r} is not module:attribute", "write myapp:app")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        remedy = "install it, or start in the directory that contains it"
        raise ConfigError(option, f"does not import: {error}", remedy) from error
    for name in attribute.removesuffix("()").split("."):
        if not hasattr(found, name):
            raise ConfigError(option, f"{module_name} has no {attribute!r}", "name the WSGI app in that module")
        found = getattr(found, name)
    if attribute.endswith("()"):
        try:
            found = found()
        except Exception as error:
            raise ConfigError(
                option,
                f"the factory raised {error!r}",
                f"see where: python -c 'import {module_name}; {module_name}.{attribute}'",
            ) from error
    check_app(found, option, f"{target}()")
    return found


def wrap(target: str, rules: Any = None, **options: Any) -> ISR:
    """Wrap the app that ``target`` names, on the command line of a server: ``gunicorn "wsgi_isr:wrap('myapp:app')"``.

    :param target: ``module:attribute``, or ``module:factory()`` for the result of a call.
    :raises ConfigError: the module does not import, the object is no WSGI app, or an option is invalid.
    """
    return ISR(load(target, f"wrap({target!r})"), rules, import_name=target.partition(":")[0], **options)


def wrapped(target: str) -> ISR:
    """Return the :class:`ISR` of the app that ``target`` names.

    The :class:`ISR` may be the app itself, Flask's ``wsgi_app``, or inside of other middlewares. If there is none, wrap
    the app with the options of the environment.

    :raises ConfigError: see :func:`load`.
    """
    app = load(target, target)
    return find_isr(app) or ISR(app, import_name=target.partition(":")[0])


def served(target: str) -> WSGIApplication:
    """Return the app that ``wsgi-isr serve`` runs: the app that ``target`` names.

    An app without an :class:`ISR` is wrapped, with the options of the environment.

    :raises ConfigError: see :func:`load`.
    """
    app: WSGIApplication = load(target, target)
    return app if find_isr(app) is not None else ISR(app, import_name=target.partition(":")[0])


def find_isr(app: Any) -> ISR | None:
    """Return the :class:`ISR` among an app and the apps that it wraps; ``None`` if there is none."""
    return next((found for found in nested(app) if isinstance(found, ISR)), None)
