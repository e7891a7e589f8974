"""A client of the demo, with ``http.client``. It keeps cookies, follows no redirects, and measures each answer."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from http.cookies import SimpleCookie
from urllib.parse import urlencode

HOST = "127.0.0.1"
#: The maximum time without progress of an answer, in seconds.
TIMEOUT = 20.0

_NUMBER = re.compile(r'id="renders">(\d+)<')
_GREETING = re.compile(r'id="greeting">([^<]*)<')


@dataclass(frozen=True)
class Answer:
    """An answer. ``seconds`` is the time from the request to the end of the answer."""

    request: str
    status: int
    headers: HTTPMessage
    body: str
    seconds: float

    @property
    def verdict(self) -> str:
        """Return the header ``X-ISR``: ``HIT``, ``MISS``, ``STALE``, ..."""
        return self.headers.get("X-ISR", "")

    @property
    def age(self) -> int | None:
        """Return the header ``Age``, in seconds; ``None`` without it."""
        age = self.headers.get("Age", "")
        return int(age) if age.isdigit() else None

    @property
    def milliseconds(self) -> float:
        """Return :attr:`seconds` in milliseconds."""
        return round(self.seconds * 1000, 1)

    @property
    def render(self) -> int:
        """Return the number of the render, from the page; 0 for an answer that is no page."""
        found = _NUMBER.search(self.body)
        return int(found[1]) if found else 0

    @property
    def greeting(self) -> str:
        """Return the greeting, from the page."""
        found = _GREETING.search(self.body)
        return found[1] if found else ""

    def __str__(self) -> str:
        parts = [self.request, str(self.status)]
        parts += [f"X-ISR: {self.verdict}"] if self.verdict else []
        parts += [f"Age: {self.age}"] if self.age is not None else []
        parts += [f"{self.milliseconds:.0f} ms"]
        parts += [f"render {self.render}"] if self.render else []
        return "  ".join(parts)


class Visitor:
    """A client, at first without cookies. Each request has its own connection, so any worker may answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._cookies: dict[str, str] = {}

    def get(self, path: str) -> Answer:
        """Return the answer to a GET.

        :raises OSError: there is no answer.
        """
        return self._request("GET", path, None, {})

    def post(self, url: str, /, **form: str) -> Answer:
        """Return the answer to a POST of a form.

        :raises OSError: there is no answer.
        """
        return self._request("POST", url, urlencode(form), {"Content-Type": "application/x-www-form-urlencoded"})

    def _request(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Answer:
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        connection = HTTPConnection(HOST, self._port, timeout=TIMEOUT)
        began = time.monotonic()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        seconds = time.monotonic() - began
        for line in response.headers.get_all("Set-Cookie", []):
            self._cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return Answer(f"{method} {path}", response.status, response.headers, text, seconds)
