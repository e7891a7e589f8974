"""The name of an app, for warnings and for its records in a store."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

from .frameworks import directly_in, is_django, is_flask, nested


def name_of(app: Any, wrapped_in: str = "") -> str:
    """Return a name that is unique to an app, and the same in all releases and processes.

    :param wrapped_in: ``module:attribute``, or the module that wraps the app. By default, the module that calls this
        package. It distinguishes two objects of one class.
    """
    where = module_name(wrapped_in or caller())
    try:
        return _name_of(app, where)
    except Exception:  # an app may be any object, with attributes that raise
        return f"{type(app).__module__}:{type(app).__qualname__} in {where}"


def _name_of(app: Any, where: str) -> str:
    for inner in nested(app):
        if is_flask(inner):
            return f"flask:{inner.name}"
        if is_django(inner):
            from django.conf import settings

            return f"django:{getattr(settings, 'WSGI_APPLICATION', None) or settings.ROOT_URLCONF}"
    while _is_middleware(app) and (inner := next(filter(callable, directly_in(app)), None)) is not None:
        app = inner
    owner = getattr(app, "__self__", app)
    named = owner if hasattr(owner, "__qualname__") else type(owner)
    name = f"{module_name(named.__module__)}:{named.__qualname__}"
    # A function of a module is one app. An object, or an inner function, may be one of several.
    is_unique = named is owner and "<locals>" not in name and "<lambda>" not in name
    return name if is_unique else f"{name} in {where}"


def _is_middleware(app: Any) -> bool:
    """Return whether ``app`` is a middleware of Python or werkzeug, with the actual app inside."""
    kind = app if hasattr(app, "__qualname__") else type(app)
    top = str(kind.__module__).partition(".")[0]
    return top == "werkzeug" or (top != "__main__" and top in sys.stdlib_module_names)


def module_name(name: str) -> str:
    """Return the name of a module; for ``__main__``, the name by which other modules would import the script."""
    if name != "__main__":
        return name
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    return os.path.splitext(os.path.basename(getattr(main, "__file__", None) or name))[0]


def caller() -> str:
    """Return the name of the module that called this package; empty if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if str(name).partition(".")[0] != __name__.partition(".")[0]:
            return str(name)
        frame = frame.f_back
    return ""
