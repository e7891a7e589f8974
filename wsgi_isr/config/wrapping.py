"""The parts of wrapping an app: check the app, load its configuration, compute its digest, forward its attributes."""

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

#: The length of :func:`app_digest`, in bytes.
APP_DIGEST_BYTES = 16


def check_app(app: Any, option: str = "app", called: str = "") -> None:
    """Check, without a call, that ``app`` can be a WSGI app.

    :param option: the option that errors name.
    :param called: the call to write if ``app`` is a factory.
    :raises ConfigError: ``app`` is no WSGI app.
    """
    name = getattr(app, "__qualname__", "") or repr(app)
    if not callable(app):
        raise ConfigError(option, f"{app!r} is not a WSGI application", "wrap the object that your server calls")
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
        problem = f"{name}{signature} does not take environ and start_response, so it is not a WSGI application"
        remedy = f"if it returns one, write {called or f'{name}()'}"
        raise ConfigError(option, problem, remedy) from None


def warn_of_flask_command(app: Any) -> None:
    """Log, once in each process, that the flask command does not find a wrapped ``Flask`` object."""
    if is_flask(app):
        _warn_of_flask_command()


@functools.lru_cache
def _warn_of_flask_command() -> None:
    _log.warning(
        "ISR wraps a Flask object, which the flask command does not find any more; if you use that command, write "
        "app.wsgi_app = ISR(app.wsgi_app, ...)"
    )


def configured(app: Any, rules: Any, options: Mapping[str, Any], module: str) -> Config:
    """Return the configuration of an app, with its release and its state directory.

    :param app: ``None`` for a script that wraps no app.
    :param module: the module that wraps the app.
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
    """Return a digest that names a wrapped app in jobs for renderer processes.

    The digest is the same in every process that runs the same code, and another one in each release. The order of
    wrapping does not count: it differs between processes that have found different numbers of tenants.
    """
    settings, owner = config.settings, getattr(app, "__self__", app)
    name = f"{type(owner).__module__}:{type(owner).__qualname__}:{getattr(app, '__qualname__', '')}"
    attributes = (name, str(getattr(owner, "import_name", "")), str(getattr(app, "__module__", "")))
    identity = repr(
        (attributes, settings.namespace, settings.release, settings.canonical_url, sorted(config.rules.policies))
    )
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=APP_DIGEST_BYTES).digest()


class Wrapper:
    """Base of an object that replaces an app. The object has its own attributes, and those of the app.

    A public name of the class cannot be set. Any other public name is set on the app. Names that begin with an
    underscore belong to the wrapper alone, because copying and pickling look them up.
    """

    if not TYPE_CHECKING:  # mypy must still find misspelt names in this package

        def __getattr__(self, name: str) -> Any:
            app = self.__dict__.get("_app")
            if name.startswith("_") or app is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(app, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if self._belongs_to_app(name, f"{name} = ..."):
                app = self._app
                try:
                    setattr(app, name, value)
                    return
                except AttributeError:
                    if hasattr(type(app), name):
                        raise
            # A method, such as Flask's wsgi_app, takes no attributes: this object stores them.
            object.__setattr__(self, name, value)

        def __delattr__(self, name: str) -> None:
            if self._belongs_to_app(name, name) and name not in self.__dict__:
                delattr(self._app, name)
            else:
                object.__delattr__(self, name)

        def _belongs_to_app(self, name: str, change: str) -> bool:
            if name.startswith("_") or self.__dict__.get("_app") is None:
                return False
            if hasattr(type(self), name):
                remedy = f"use another name, or write app.app.{change} to change the app inside"
                raise ConfigError(f"ISR.{name}", "this attribute of ISR cannot be changed", remedy)
            return True
