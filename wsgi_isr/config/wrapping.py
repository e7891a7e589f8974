"""Wrap an app: check that it is one, load its configuration, and compute its identity."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import ConfigError
from .frameworks import is_flask
from .settings import Config
from .source import release_of, state_folder

_log = logging.getLogger("wsgi_isr")

#: The length of a site's name in a job for renderer processes, in bytes.
SITE_BYTES = 16


def check_app(app: Any, option: str = "app", called: str = "") -> None:
    """Return if this can be a WSGI app.

    :param option: the place that errors name.
    :param called: the call of a factory that is given in place of the app.
    :raises ConfigError: it is none, as far as that shows without calling it.
    """
    name = getattr(app, "__qualname__", "") or repr(app)
    if not callable(app):
        raise ConfigError(option, f"{app!r} is not a WSGI application", "wrap what your server would call")
    if isinstance(app, type):
        # PEP 3333 allows a class, whose instances are the results of the app.
        if not hasattr(app, "__iter__"):
            raise ConfigError(option, f"{name} is a class, not a WSGI application", f"wrap an object: {name}(...)")
        return
    try:
        # A decorator such as werkzeug's Request.application takes other arguments than its inner function.
        signature = inspect.signature(app, follow_wrapped=False)
    except (TypeError, ValueError):  # a function in C, for example
        return
    try:
        signature.bind({}, None)
    except TypeError:
        problem = f"{name}{signature} does not take environ and start_response, so it is no WSGI application"
        remedy = f"if it makes one, call it: {called or f'{name}()'}"
        raise ConfigError(option, problem, remedy) from None


def advise(app: Any) -> None:
    """Log, once in each process, what the flask command needs if an app of Flask is wrapped from outside."""
    if is_flask(app):
        _tell_of_flask()


@functools.lru_cache
def _tell_of_flask() -> None:
    _log.warning(
        "ISR wraps a Flask object, which the flask command does not find any more; if you use that command, write "
        "app.wsgi_app = ISR(app.wsgi_app, ...)"
    )


def configured(app: Any, rules: Any, options: Mapping[str, Any], module: str) -> Config:
    """Return the configuration of an app, with its release and its state directory.

    :param app: ``None`` for a script that wraps none.
    :param module: the module that wraps it.
    :raises ConfigError: see :meth:`Config.load`.
    """
    config = Config.load(rules, options)
    settings, folder = config.settings, state_folder(app, module)
    if settings.release == "auto":
        settings = replace(settings, release=release_of(app, module, os.environ))
    elif settings.release is None:
        settings = replace(settings, release="")
    if not config.names_store:
        settings = replace(settings, store=f"sqlite:///{quote(os.path.join(folder, 'store.db'))}")
    return replace(config, settings=settings, folder=folder)


def app_digest(config: Config, app: Any) -> bytes:
    """Return the identity of a wrapped app, in every process that runs the same code.

    Each release of the app has its own identity. It does not depend on the order in which apps were wrapped: the order
    differs between processes that have found different numbers of tenants.
    """
    settings, owner = config.settings, getattr(app, "__self__", app)
    name = f"{type(owner).__module__}:{type(owner).__qualname__}:{getattr(app, '__qualname__', '')}"
    what = (name, str(getattr(owner, "import_name", "")), str(getattr(app, "__module__", "")))
    told = repr((what, settings.namespace, settings.release, settings.canonical_url, sorted(config.rules.policies)))
    return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=SITE_BYTES).digest()


class Wrapper:
    """Base of an object that replaces the app it wraps: it has the attributes of the app besides its own.

    A public name of the class cannot be set. Any other public name belongs to the app, and is set there. Names that
    begin with an underscore belong to the wrapper alone: copying, pickling and the like look them up.
    """

    if not TYPE_CHECKING:  # a misspelt name in this package must stay an error of its types

        def __getattr__(self, name: str) -> Any:
            app = self.__dict__.get("_app")
            if name.startswith("_") or app is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(app, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if self._is_app_s(name, f"{name} = ..."):
                app = self._app
                try:
                    setattr(app, name, value)
                    return
                except AttributeError:
                    if hasattr(type(app), name):
                        raise
            # A method, such as Flask's wsgi_app, has no attributes of its own: this object stores them.
            object.__setattr__(self, name, value)

        def __delattr__(self, name: str) -> None:
            if self._is_app_s(name, name) and name not in self.__dict__:
                delattr(self._app, name)
            else:
                object.__delattr__(self, name)

        def _is_app_s(self, name: str, change: str) -> bool:
            if name.startswith("_") or self.__dict__.get("_app") is None:
                return False
            if hasattr(type(self), name):
                remedy = f"choose another name, or write app.app.{change} to change the app inside"
                raise ConfigError(f"ISR.{name}", "is a name of ISR itself, and cannot be changed", remedy)
            return True
