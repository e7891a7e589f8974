"""Draft mode: who writes a page sees it before everybody else does.

A signed, expiring cookie that scripts cannot read. Its holder gets the app's own, uncached answers, cached data
included, and nothing of them is stored. The cookie is made *with* the secret, not *of* it: who has one can look at
drafts until it expires, and can do nothing else.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from werkzeug.http import dump_cookie, parse_cookie

from ..config import options as o
from ..errors import ConfigError

COOKIE = "wsgi_isr_draft"
#: Cookies of this name that are looked at in one request.
MAX_COOKIES = 4


class Drafts:
    """Issues and recognises the cookies of one site.

    :param secret: the option of this name; without it there is no draft mode.
    :param site: the namespace: a cookie of one site is worth nothing to another one with the same secret.
    :param clock: Unix time in seconds.
    """

    def __init__(self, secret: str | None, site: str, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._site = site
        self._clock = clock

    def issue(self, max_age: float) -> str:
        """A cookie's value, good for ``max_age`` seconds. :raises ConfigError: there is no secret."""
        if not self._secret:
            raise ConfigError(
                "secret", "draft mode needs one to sign its cookie", "set WSGI_ISR_SECRET, or give secret="
            )
        return str(self._signer().sign(str(int(self._clock() + max_age))).decode())

    def holds(self, environ: dict[str, Any]) -> bool:
        """Whether the request carries a cookie of ours that has not expired."""
        sent = environ.get("HTTP_COOKIE")
        if not self._secret or not sent or COOKIE not in sent:
            return False
        from itsdangerous import BadSignature  # not worth a millisecond of the start of those without drafts

        try:
            values = parse_cookie(sent).getlist(COOKIE)
        except UnicodeError:  # bytes that are no text
            return False
        # It may be sent twice, by a page of another path: any of them will do. Each costs a signature.
        for value in values[:MAX_COOKIES]:
            try:
                expires = int(self._signer().unsign(value))
            except (BadSignature, ValueError, UnicodeError):
                continue
            if self._clock() < expires:
                return True
        return False

    def _signer(self) -> Any:
        from itsdangerous import Signer

        return Signer(
            self._secret or "", salt=f"wsgi_isr.draft:{self._site}", key_derivation="hmac", digest_method=hashlib.sha256
        )


class Visitor(NamedTuple):
    """Who the app answers: whether they hold a draft cookie, and whether they came over TLS. Who is nobody in
    particular does neither."""

    drafts: Drafts
    draft: bool = False
    secure: bool = False


_visitor: ContextVar[Visitor | None] = ContextVar("wsgi_isr_visitor", default=None)


@contextmanager
def answering(visitor: Visitor) -> Iterator[None]:
    """In here the app answers ``visitor``."""
    token = _visitor.set(visitor)
    try:
        yield
    finally:
        _visitor.reset(token)


def is_draft() -> bool:
    """Whether the visitor who is being answered is in draft mode: show what is not published yet."""
    visitor = _visitor.get()
    return visitor is not None and visitor.draft


def enable_draft(response: Any, *, max_age: float = 3600) -> None:
    """Let the visitor who gets ``response`` see drafts for ``max_age`` seconds. Find out first who they are.

    :param response: anything with a ``set_cookie`` like that of Flask, werkzeug, Django or Bottle, or a list of
        WSGI headers.
    :raises ConfigError: there is no ``secret``, or no visitor; or ``max_age`` is below a second.
    :raises TypeError: no cookie can be set on ``response``.
    """
    visitor = _visitor.get()
    if visitor is None:
        raise ConfigError("enable_draft", "no visitor is being answered", "call it in a view of an app inside of ISR")
    if o.PERIOD.check("enable_draft: max_age", max_age) < 1:
        raise ConfigError("enable_draft: max_age", f"{max_age!r} is not possible", "give seconds, 1 or more")
    _set_cookie(response, visitor.drafts.issue(max_age), max_age)


def disable_draft(response: Any) -> None:
    """Let the visitor who gets ``response`` see what everybody sees.

    :raises TypeError: see :func:`enable_draft`.
    """
    _set_cookie(response, "", 0)


def _set_cookie(response: Any, value: str, max_age: float) -> None:
    visitor = _visitor.get()
    secure = visitor is not None and visitor.secure
    how: dict[str, Any] = {"max_age": int(max_age), "path": "/", "secure": secure, "httponly": True, "samesite": "Lax"}
    if hasattr(response, "set_cookie"):
        response.set_cookie(COOKIE, value, **how)
    elif isinstance(response, list):
        response.append(("Set-Cookie", dump_cookie(COOKIE, value, **how)))
    else:
        raise TypeError(f"{type(response).__name__} has no set_cookie(); give a response, or a list of headers")
