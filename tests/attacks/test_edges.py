"""A CDN that ignores ``Vary``, cookies and hosts, and obeys its header alone: each client gets its own answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from werkzeug.datastructures import Headers
from werkzeug.http import parse_cookie
from werkzeug.test import run_wsgi_app

from tests.attacks.support.attack import Attack, dice, scaled
from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ
from tests.behaviour.visitor import Clock, Seen, Site, make_environ
from tests.support.cdn import FakeCdn
from wsgi_isr import Rule
from wsgi_isr.cdn.headers import DIALECTS, EdgeHeaders

KINDS = list(DIALECTS)
#: Cache-Control of the app. Some of it speaks to shared caches, as if each answer were for all.
CARELESS = ("", "public, max-age=300", "max-age=300", "s-maxage=600", "public", 'no-cache="X-A", max-age=300')
RULES = {
    "/language": Rule(revalidate=60, vary=["Accept-Language"]),
    "/theme": Rule(revalidate=60, cookies=["theme"]),
    "/bypass": Rule(revalidate=60, bypass=lambda environ: "HTTP_X_SPECIAL" in environ),
    "/query": Rule(revalidate=60, query=["page"]),
    "/never": 0,
}
PATHS = ("/same", "/session", "/private", "/sets", "/broken", "/moved", *RULES)


def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Show the part of the request that the page depends on, and say so as an app should."""
    path = environ["PATH_INFO"]
    cookies = parse_cookie(environ)
    session = cookies.get("session", "nobody")
    shown, status = "all", "200 OK"
    careless = CARELESS[len(path) % len(CARELESS)]
    headers = [("Content-Type", "text/plain")]
    if path == "/session":
        shown = session
        headers.append(("Vary", "Cookie"))
    elif path == "/private":
        shown, careless = session, "private, max-age=300"
    elif path == "/sets":
        shown = session
        headers.append(("Set-Cookie", "seen=1"))
    elif path == "/broken":
        shown, status = session, "500 Internal Server Error"
    elif path == "/moved":
        shown, status = environ["wsgi.url_scheme"], "301 Moved Permanently"
        headers.append(("Location", "https://example.org/elsewhere"))
    elif path == "/language":
        shown = environ.get("HTTP_ACCEPT_LANGUAGE", "")
        headers.append(("Vary", "Accept-Language"))
    elif path == "/theme":
        shown = cookies.get("theme", "")
    elif path == "/bypass":
        shown = environ.get("HTTP_X_SPECIAL", "")
    elif path == "/query":
        shown = environ["QUERY_STRING"]
    elif path == "/never":
        shown = session
    if careless:
        headers.append(("Cache-Control", careless))
    start_response(status, headers)
    return [f"{path} {shown}".encode()]


class NaiveCdn:
    """A CDN with a careless configuration: the URL alone is its key, and it knows no Vary, cookie, host or scheme.

    It obeys its own header, then ``Cache-Control``. It bypasses its cache for Authorization, as its documentation and
    ours say.
    """

    def __init__(self, site: Site, kind: str) -> None:
        self._site = site
        self._dialect = DIALECTS[kind]
        self._kept: dict[str, tuple[float, Seen]] = {}
        self.hits = 0

    def visit(self, path: str, **request: Any) -> Seen:
        key = path if self._dialect.knows_query else path.partition("?")[0]
        now = self._site.clock()
        if request.get("method", "GET") == "GET" and "Authorization" not in request.get("headers", {}):
            until, seen = self._kept.get(key, (0.0, None))
            if seen is not None and now < until:
                self.hits += 1
                return seen
            seen = self._site.visit(path, exact_length=False, **request)
            if (seconds := self._seconds(seen.headers)) > 0:
                self._kept[key] = now + seconds, seen
            return seen
        return self._site.visit(path, exact_length=False, **request)

    def _seconds(self, headers: Headers) -> float:
        said = headers.get(self._dialect.control)
        told = said if said is not None else ", ".join(headers.getlist("Cache-Control"))
        words = dict(word.strip().lower().partition("=")[::2] for word in told.split(","))
        if {"no-store", "private"} & {*words}:
            return 0
        lifetime = words.get("s-maxage") or words.get("max-age") or "0"
        return float(lifetime) - float(headers.get("Age", "0"))


def request_of(die: random.Random) -> tuple[str, dict[str, Any]]:
    """Return a random request: path, and the arguments of ``Site.visit``."""
    path = die.choice(PATHS)
    cookies = [f"session=s{die.randrange(5)}"] * die.randrange(2) + [f"theme=t{die.randrange(3)}"] * die.randrange(2)
    headers = {}
    if die.random() < 0.3:
        headers["Accept-Language"] = die.choice(("de", "fr"))
    if die.random() < 0.2:
        headers["X-Special"] = f"x{die.randrange(3)}"
    if die.random() < 0.1:
        headers["Authorization"] = "Basic eDp5"
    if path == "/query" and die.random() < 0.7:
        path += f"?page={die.randrange(3)}"
    request = {"cookie": "; ".join(cookies), "headers": headers, "scheme": die.choice(("http", "https"))}
    return path, request


def assail(site: Site, kind: str, attack: Attack, clock: Clock, name: str) -> NaiveCdn:
    """Send random requests through the CDN, and compare each answer with that of the app alone."""
    cdn, die = NaiveCdn(site, kind), dice(name)
    for _ in range(scaled(400)):
        path, request = request_of(die)
        seen = cdn.visit(path, **request)
        if kind == "bunny" and path.startswith("/query"):
            continue  # its zone needs the setting that the documentation names
        # Pages are one for both schemes (canonical_url). A client with Authorization gets the app's own answer.
        scheme = request["scheme"] if "Authorization" in request["headers"] else "https"
        body, status, _ = run_wsgi_app(app, make_environ(path, **{**request, "scheme": scheme}), buffered=True)
        attack.check((seen.status, seen.body) == (status, b"".join(body)), f"{path} {request}: got {seen.body!r}")
        clock.advance(die.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 20)))
        site.settle()
    return cdn


@pytest.fixture
def make_behind(make_site: MakeSite) -> Callable[[str], Site]:
    def make(kind: str) -> Site:
        fake = FakeCdn(kind)
        fake._server.server_close()
        options = {**fake.options(), "canonical_url": "https://example.org", "journal": False}
        return make_site(RULES, app=app, watcher="nobody", revalidate=60, **options)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_each_client_gets_its_own_answer_through_a_cdn_that_ignores_all_but_its_header(
    make_behind: Callable[[str], Site], attack: Attack, clock: Clock, kind: str
) -> None:
    cdn = assail(make_behind(kind), kind, attack, clock, f"edges {kind}")
    assert cdn.hits > 0
    attack.over("answers")


@pytest.mark.parametrize("kind", KINDS)
def test_the_attack_finds_answers_without_the_refusal(
    make_behind: Callable[[str], Site], clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(EdgeHeaders, "refuse", lambda self, headers: list(headers))
    found = Attack(lambda line: None)
    assail(make_behind(kind), kind, found, clock, f"edges {kind}")
    assert found.leaks
