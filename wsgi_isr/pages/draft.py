"""Draft mode: an author sees a page before it is published.

A signed, expiring cookie, which scripts cannot read, marks the author. Its holder gets the app's own, uncached
answers, with uncached data, and nothing of them is stored. The cookie is signed *with* the secret and does not contain
it. A holder can look at drafts until the cookie expires, and can do nothing else.
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
#: The number of cookies of this name that are checked in one request.
MAX_COOKIES = 4


class Drafts:
    """Issues and recognises the draft cookies of one site.

    :param secret: the option of this name; without it there is no draft mode.
    :param site: the namespace: a cookie of one site is not valid at another site with the same secret.
    :param clock: Unix time in seconds.
    """

    def __init__(self, secret: str | None, site: str, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._site = site
        self._clock = clock

    def issue(self, max_age: float) -> str:
        """Return a cookie's value, valid for ``max_age`` seconds.

        :raises ConfigError: there is no secret.
        """
        if not self._secret:
            raise ConfigError(
                "secret", "draft mode needs one to sign its cookie", "set WSGI_ISR_SECRET, or give secret="
            )
        return str(self._signer().sign(str(int(self._clock() + max_age))).decode())

    def holds(self, environ: dict[str, Any]) -> bool:
        """Return whether the request carries a valid draft cookie that has not expired."""
        sent = environ.get("HTTP_COOKIE")
        if not self._secret or not sent or COOKIE not in sent:
            return False
        from itsdangerous import BadSignature  # apps without drafts save a millisecond at start

        try:
            values = parse_cookie(sent).getlist(COOKIE)
        except UnicodeError:  # bytes that are no UTF-8
            return False
        # A browser may send two cookies, one of another path. One valid cookie is enough; each check costs a
        # signature.
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
    """The client that the app answers: whether it is in draft mode, and whether it came over TLS.

    Both are false for a render that is not for one client.
    """

    drafts: Drafts
    draft: bool = False
    secure: bool = False


_visitor: ContextVar[Visitor | None] = ContextVar("wsgi_isr_visitor", default=None)


@contextmanager
def answering(visitor: Visitor) -> Iterator[None]:
    """Run the app in this context as an answer to ``visitor``."""
    token = _visitor.set(visitor)
    try:
        yield
    finally:
        _visitor.reset(token)


def is_draft() -> bool:
    """Return whether the current visitor is in draft mode: then show unpublished content."""
    visitor = _visitor.get()
    return visitor is not None and visitor.draft


def enable_draft(response: Any, *, max_age: float = 3600) -> None:
    """Let the visitor who gets ``response`` see drafts for ``max_age`` seconds. Authenticate the visitor first.

    :param response: any object with a ``set_cookie`` like that of Flask, werkzeug, Django or Bottle, or a list of WSGI
        headers.
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
    """End draft mode for the visitor who gets ``response``.

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
