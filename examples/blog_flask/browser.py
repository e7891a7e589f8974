"""A visitor for the story, on ``http.client``: it keeps cookies, follows no redirects and measures times."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from http.cookies import SimpleCookie
from urllib.parse import urlencode

_STAMP = re.compile(r'id="rendered-at" datetime="([^"]+)"')
_CSRF = re.compile(r'name="csrf" value="([^"]+)"')
_ACCOUNT = re.compile(r'id="account">(.*?)</div>', re.DOTALL)
_RENDERED_BY = re.compile(r'id="rendered-by">(\d+)<')
_KEEPS = re.compile(r"(?:^|[, ])(?:max-age|stale-while-revalidate)=(\d+)")


@dataclass(frozen=True)
class Answer:
    """An answer of the blog."""

    status: int
    headers: HTTPMessage
    body: str
    seconds: float

    def __getitem__(self, header: str) -> str:
        return self.headers.get(header, "")

    @property
    def verdict(self) -> str:
        """Return ``HIT``, ``MISS``, ``STALE``, ...: the header ``X-ISR``."""
        return self["X-ISR"]

    @property
    def stamp(self) -> str:
        """Return the time of the render, from the page's footer; later ones sort later."""
        return _first(_STAMP, self.body)

    @property
    def rendered_by(self) -> int:
        """Return the process that rendered the page, from the page's footer."""
        return int(_first(_RENDERED_BY, self.body) or 0)

    @property
    def keeps(self) -> int:
        """Return the seconds after arrival in which a browser may show the page without a request."""
        return sum(map(int, _KEEPS.findall(self["Cache-Control"]))) - int(self["Age"] or 0)

    @property
    def csrf(self) -> str:
        """Return the token in the first form of the page."""
        return _first(_CSRF, self.body)

    @property
    def account(self) -> str:
        """Return the corner of the page that shows the logged-in user."""
        return " ".join(re.sub(r"<[^>]*>", " ", _first(_ACCOUNT, self.body)).split())

    def __str__(self) -> str:
        parts = [
            str(self.status),
            f"X-ISR: {self.verdict or '-'}",
            f"Cache-Status: {self['Cache-Status'] or '-'}",
        ]
        return ", ".join(parts)


class Browser:
    """Open a new connection for each request, so that any worker may answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._cookies: dict[str, str] = {}
        self._kept: dict[str, tuple[Answer, float]] = {}

    def get(self, path: str, **headers: str) -> Answer:
        """Send GET; underscores in the names of headers stand for hyphens."""
        return self._request("GET", path, None, headers)

    def look(self, path: str) -> tuple[int, str]:
        """Return the status of the answer, and the page that a browser shows.

        The status is 0 if the browser sends no request, because its own copy is fresh (RFC 9111, 4.2).
        """
        old, came = self._kept.get(path, (None, 0.0))
        if old is not None and time.monotonic() - came < old.keeps:
            return 0, old.body
        answer = self.get(path, **({} if old is None else {"If_None_Match": old["ETag"]}))
        if answer.status == 304 and old is not None:
            return 304, old.body
        self._kept[path] = answer, time.monotonic()
        return answer.status, answer.body

    def head(self, path: str) -> Answer:
        """Send HEAD."""
        return self._request("HEAD", path, None, {})

    def post(self, path: str, **form: str) -> Answer:
        """POST a form."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._request("POST", path, urlencode(form), headers)

    def log_in(self, login: str, password: str) -> Answer:
        """Log in as a person does: load the form, send it back."""
        return self.post("/login", csrf=self.get("/login").csrf, login=login, password=password)

    def _request(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self._cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        connection = HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            started = time.monotonic()
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            text = response.read().decode()
            seconds = time.monotonic() - started
        finally:
            connection.close()
        for line in response.headers.get_all("Set-Cookie", []):
            for morsel in SimpleCookie(line).values():
                self._cookies[morsel.key] = morsel.value
                if morsel["max-age"] == "0" or not morsel.value:
                    del self._cookies[morsel.key]
        return Answer(response.status, response.headers, text, seconds)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found.group(1) if found else ""
