"""Load an object by its name, ``module:attribute``, as servers and commands take it."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import ConfigError
from .wrapping import check_app


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
