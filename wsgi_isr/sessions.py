"""Functions for the option ``anonymous``: each recognises visitors whose session identifies no user.

A form with a CSRF token begins a session for each visitor. From then on the visitor sends a cookie, and the app answers
requests for pages that read cookies. These functions read the session, and find visitors who are not logged in:

>>> from flask import Flask
>>> from wsgi_isr import ISR, sessions
>>> app = Flask(__name__)
>>> app.wsgi_app = ISR(app.wsgi_app, revalidate=60, store="memory://", anonymous=sessions.flask(app))

Each function knows its own cookies alone: a visitor with any other cookie is not anonymous. ``personal`` names further
session keys that pages show, such as a cart. A page with a token in it is never stored, not even for anonymous
visitors.

The functions get an environ with a reduced ``HTTP_COOKIE``. The cookies that all pages ignore, and those in the page's
key, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from werkzeug.http import parse_cookie

from .pages.request_key import cookie_pairs

__all__ = ["Anonymous", "django", "flask", "signed_cookie"]

Anonymous = Callable[[Mapping[str, Any]], bool]


def flask(app: Any, *, personal: Collection[str] = ()) -> Anonymous:
    """Return an ``anonymous`` for a Flask app, with or without Flask-Login and Flask-WTF.

    A visitor without a session is anonymous. So is a session without ``_user_id`` and without flashes. A visitor with
    Flask-Login's remember cookie is not anonymous.

    :param app: the Flask app, with any session interface.
    :param personal: further session keys that make a visitor not anonymous.
    """
    personal_keys = {"_user_id", "user_id", "_flashes", *personal}

    def anonymous(environ: Mapping[str, Any]) -> bool:
        name = app.session_interface.get_cookie_name(app)
        if not _sends_only(environ, {name}):
            return False
        session = app.session_interface.open_session(app, app.request_class(dict(environ)))
        return session is not None and personal_keys.isdisjoint(session)

    return anonymous


def django(*, personal: Collection[str] = ()) -> Anonymous:
    """Return an ``anonymous`` for a Django site: sessions without ``_auth_user_id`` and messages are anonymous.

    A session engine with a database asks the database for each such request.

    :param personal: further session keys that make a visitor not anonymous.
    """
    personal_keys = {"_auth_user_id", "_messages", *personal}

    def anonymous(environ: Mapping[str, Any]) -> bool:
        from importlib import import_module

        from django.conf import settings

        # Messages and the language in cookies change pages, so visitors with these cookies are not anonymous.
        if not _sends_only(environ, {settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME}):
            return False
        sent = _cookies(environ).get(settings.SESSION_COOKIE_NAME)
        if sent is None:
            return True
        session = import_module(settings.SESSION_ENGINE).SessionStore(sent)
        return personal_keys.isdisjoint(session.keys())

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

    :param name: the name of the cookie.
    :param secret: the key that signs the cookie.
    :param salt: the salt of the signature.
    :param personal: session keys that make a visitor not anonymous.
    :param max_age: whole seconds for which a signature is valid.
    """
    from itsdangerous import BadData, URLSafeTimedSerializer

    serializer = URLSafeTimedSerializer(secret, salt=salt)
    personal_keys = set(personal)

    def anonymous(environ: Mapping[str, Any]) -> bool:
        if not _sends_only(environ, {name}):
            return False
        sent = _cookies(environ).get(name)
        if sent is None:
            return True
        try:
            session = serializer.loads(sent, max_age=max_age)
        except BadData:
            return False
        return isinstance(session, dict) and personal_keys.isdisjoint(session)

    return anonymous


def _cookies(environ: Mapping[str, Any]) -> Mapping[str, str]:
    return parse_cookie(environ.get("HTTP_COOKIE", ""))


def _sends_only(environ: Mapping[str, Any], names: Collection[str]) -> bool:
    """Return whether a visitor sends no cookies but these, each at most once.

    With two cookies of one name, the app may read the other one.
    """
    sent = [name for name, _ in cookie_pairs(environ.get("HTTP_COOKIE", ""))]
    return len(sent) == len(set(sent)) and set(sent) <= set(names)
