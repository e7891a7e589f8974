"""Visitors who carry a session and are nobody in particular: ready functions for the option ``anonymous``.

A form with a token against forgery begins a session for each visitor. From then on they carry a cookie, and pages that
look at cookies are passed on to the app. These functions find out that the session says nothing of them:

>>> from flask import Flask
>>> from wsgi_isr import ISR, sessions
>>> app = Flask(__name__)
>>> app.wsgi_app = ISR(app.wsgi_app, revalidate=60, store="memory://", anonymous=sessions.flask(app))

Each answers for its own cookies alone: a visitor with any other one is not anonymous. What pages show of a session
besides, a cart say, is named by ``personal``. A page with a token in it is never stored, whoever asks.

The functions get an environ whose ``HTTP_COOKIE`` has only the cookies in question: neither those that no page looks at
nor those that are part of the page's key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from werkzeug.http import parse_cookie

from .pages.request_key import cookie_pairs

__all__ = ["Anonymous", "django", "flask", "signed_cookie"]

Anonymous = Callable[[Mapping[str, Any]], bool]


def flask(app: Any, *, personal: Collection[str] = ()) -> Anonymous:
    """Return an ``anonymous`` for a Flask app, with Flask-Login and Flask-WTF or without.

    A session without ``_user_id`` and without flashes is nobody's, and so is none at all. A cookie by which Flask-Login
    remembers users is somebody's.

    :param app: the Flask app, whatever its session interface.
    :param personal: more keys of its sessions that make a visitor somebody.
    """
    keys = {"_user_id", "user_id", "_flashes", *personal}

    def anonymous(environ: Mapping[str, Any]) -> bool:
        name = app.session_interface.get_cookie_name(app)
        if not _only(environ, {name}):
            return False
        session = app.session_interface.open_session(app, app.request_class(dict(environ)))
        return session is not None and keys.isdisjoint(session)

    return anonymous


def django(*, personal: Collection[str] = ()) -> Anonymous:
    """Return an ``anonymous`` for a Django site: a session without ``_auth_user_id`` and without messages is nobody's.

    With a session engine that keeps sessions in a database, each such request asks it.

    :param personal: more keys of its sessions that make a visitor somebody.
    """
    keys = {"_auth_user_id", "_messages", *personal}

    def anonymous(environ: Mapping[str, Any]) -> bool:
        from importlib import import_module

        from django.conf import settings

        # Without the cookies of Django's messages and languages: who has one of them is to see it.
        if not _only(environ, {settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME}):
            return False
        sent = _cookies(environ).get(settings.SESSION_COOKIE_NAME)
        return sent is None or keys.isdisjoint(import_module(settings.SESSION_ENGINE).SessionStore(sent).keys())

    return anonymous


def signed_cookie(
    name: str,
    secret: str,
    *,
    salt: str = "cookie-session",
    personal: Collection[str] = ("user_id", "_user_id", "user", "_flashes"),
    max_age: int | None = None,
) -> Anonymous:
    """Return an ``anonymous`` for sessions that are JSON in a cookie, signed by ``itsdangerous``.

    :param name: of the cookie.
    :param secret: the key that signs it.
    :param salt: the salt of that.
    :param personal: keys of a session that make a visitor somebody.
    :param max_age: whole seconds for which a signature is good.
    """
    from itsdangerous import BadData, URLSafeTimedSerializer

    serializer = URLSafeTimedSerializer(secret, salt=salt)
    keys = set(personal)

    def anonymous(environ: Mapping[str, Any]) -> bool:
        if not _only(environ, {name}):
            return False
        sent = _cookies(environ).get(name)
        if sent is None:
            return True
        try:
            session = serializer.loads(sent, max_age=max_age)
        except BadData:
            return False
        return isinstance(session, dict) and keys.isdisjoint(session)

    return anonymous


def _cookies(environ: Mapping[str, Any]) -> Mapping[str, str]:
    return parse_cookie(environ.get("HTTP_COOKIE", ""))


def _only(environ: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a visitor sends no cookies but these, each at most once: of two, an app may read the other one."""
    sent = [name for name, _ in cookie_pairs(environ.get("HTTP_COOKIE", ""))]
    return len(sent) == len(set(sent)) and set(sent) <= set(names)
