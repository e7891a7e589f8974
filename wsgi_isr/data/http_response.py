"""Responses of fetches as data: their stored form, and the statuses that are stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import requests
from requests.cookies import cookiejar_from_dict
from requests.structures import CaseInsensitiveDict

from ..cache.context import cache_life, fail, no_store
from ..cache.verdict import NEGATIVE_STATUSES, STORE_GRACE

#: The version of :class:`StoredResponse`. Increase it when the name, the fields or their meaning change.
SCHEMA = 2
#: Statuses that are stored; others are errors, or belong to one request.
STORED_STATUSES = frozenset({200, 203, 204, 300, 301, 308, 404, 410})
#: Seconds for which a 404 or 410 is stored, at most.
NEGATIVE_TTL = 10.0
#: Bytes; larger bodies are returned and not stored.
MAX_BODY = 8 << 20

_COOKIES = ("set-cookie", "set-cookie2")


@dataclass(frozen=True)
class StoredResponse:
    """A response as data. Entries hold the name of this class, so that a move needs another :data:`SCHEMA`.

    :param history: the redirects that led to it, without their bodies.
    """

    status: int
    reason: Any
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    encoding: str | None
    elapsed: timedelta
    history: tuple[StoredResponse, ...] = ()

    @classmethod
    def of(cls, response: requests.Response, is_redirect: bool = False) -> StoredResponse:
        """Return the part of a response that can be stored. Cookies are personal, and left out.

        :param is_redirect: leave out the body and the history, too.
        """
        return cls(
            response.status_code,
            response.reason,
            response.url,
            tuple((name, text) for name, text in response.headers.items() if name.lower() not in _COOKIES),
            b"" if is_redirect else response.content or b"",
            response.encoding,
            response.elapsed,
            () if is_redirect else tuple(cls.of(redirect, is_redirect=True) for redirect in response.history),
        )

    def restore(self) -> requests.Response:
        """Return a new response of ``requests``, for one caller."""
        request = requests.PreparedRequest()
        request.method, request.url, request.headers = "GET", self.url, CaseInsensitiveDict()
        response = requests.Response()
        # As requests itself restores a pickled response.
        response.__setstate__(
            {
                "_content": self.body,
                "status_code": self.status,
                "headers": CaseInsensitiveDict(self.headers),
                "url": self.url,
                "history": [redirect.restore() for redirect in self.history],
                "encoding": self.encoding,
                "reason": self.reason,
                "cookies": cookiejar_from_dict({}),
                "elapsed": self.elapsed,
                "request": request,
            }
        )
        return response


def unstorable_reason(response: StoredResponse) -> str:
    """Return why a response must not be stored, as a token; empty if it may be."""
    if response.status not in STORED_STATUSES:
        return f"status-{response.status}"
    return "max-body" if len(response.body) > MAX_BODY else ""


def store_ttl(response: StoredResponse) -> float | None:
    """Return the seconds after which the store may drop a response; ``None`` for never.

    A stored 404 or 410 must expire. Otherwise, random URLs would fill the store.
    """
    return NEGATIVE_TTL + STORE_GRACE if response.status in NEGATIVE_STATUSES else None


def apply_status(status: int) -> None:
    """Apply the status of a response to the page that uses it.

    :param status: 0 if there was no response.
    """
    if status in NEGATIVE_STATUSES:
        cache_life(NEGATIVE_TTL, NEGATIVE_TTL)
    elif status in STORED_STATUSES:
        return
    elif 0 < status < 400:
        no_store()
    else:
        # no_store() would replace an expired page, and lose the last good one.
        fail(f"fetch-{status or 'error'}")
