"""A page whose app reads request headers without declaring them by ``Vary`` is reported."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from typing import Any

import flask
import pytest
from werkzeug.datastructures import EnvironHeaders
from werkzeug.wrappers import Request

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule
from wsgi_isr.events import Event, UndeclaredVary
from wsgi_isr.observe.debug import line_of


def strings(environ: Environ) -> dict[str, str]:
    return {name: value for name, value in environ.items() if isinstance(value, str)}


def looked(site: Site, path: str = "/a") -> list[tuple[str, ...]]:
    """Return the headers that the render of a page was reported for."""
    seen: list[Event] = []
    site.isr.subscribe(seen.append)
    assert site.visit(path, cookie="user=alice", headers={"Accept-Language": "de"}).code == 200
    return [event.headers for event in seen if isinstance(event, UndeclaredVary)]


LOOKS: dict[str, Callable[[Environ], str]] = {
    "get": lambda environ: environ.get("HTTP_COOKIE", "nobody"),
    "in": lambda environ: environ.pop("HTTP_COOKIE") if "HTTP_COOKIE" in environ else "nobody",
    "setdefault": lambda environ: environ.setdefault("HTTP_COOKIE", "nobody"),
    "in a copy": lambda environ: dict(environ).get("HTTP_COOKIE", "nobody"),
    "in a deep copy": lambda environ: copy.deepcopy(strings(environ)).get("HTTP_COOKIE", "nobody"),
    "in another copy": lambda environ: {"a": 1, **environ}.get("HTTP_COOKIE", "nobody"),
    "werkzeug's headers": lambda environ: EnvironHeaders(environ).get("Cookie", "nobody"),
    "werkzeug's cookies": lambda environ: "".join(Request(environ).cookies.values()) or "nobody",
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_however_it_looks_for_a_cookie_that_is_noticed_and_the_page_is_as_ever(
    make_site: MakeSite, origin: Origin, look: Callable[[Environ], str]
) -> None:
    origin.on("/a", answer(lambda environ: look(environ).encode()))
    site = make_site(revalidate=60, debug=True)
    assert looked(site) == [("cookie",)]
    seen = site.visit("/a", cookie="user=alice")
    assert (seen.text, seen.label) == ("nobody", "HIT")


@pytest.mark.parametrize("header", ["Accept-Language", "Accept", "HX-Request", "X-Requested-With"])
def test_so_is_a_look_at_another_header_that_changes_pages(make_site: MakeSite, origin: Origin, header: str) -> None:
    name = "HTTP_" + header.upper().replace("-", "_")
    origin.on("/a", answer(lambda environ: environ.get(name, "nothing").encode()))
    assert looked(make_site(revalidate=60, debug=True)) == [(header.lower(),)]


def test_what_is_said_is_nothing_to_be_told_of(make_site: MakeSite, origin: Origin) -> None:
    def show(environ: Environ) -> bytes:
        return " ".join(environ.get(name, "-") for name in ("HTTP_COOKIE", "HTTP_ACCEPT_LANGUAGE")).encode()

    origin.on("/a", answer(show))
    origin.on("/b", answer(show, ("Vary", "Cookie")))
    language = {"vary": ["Accept-Language"]}
    rules = {"/a": Rule(revalidate=60, cookies=["theme"], **language), "/b": Rule(revalidate=60, **language)}
    site = make_site(rules, debug=True)
    assert looked(site) == looked(site, "/b") == []


def test_the_environ_of_a_render_is_the_same_whoever_asks(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(lambda environ: " ".join(sorted(environ)).encode()))
    seen = set()
    for options in ({}, {"debug": True}):
        for cookie in ("", "user=alice"):
            site = make_site(revalidate=60, **options)
            seen.add(site.visit("/a", cookie=cookie, headers={"X-Name": "alice", "Accept": "*/*"}).text)
            clock.advance(61)
            site.visit_and_settle("/a")
            seen.add(site.visit("/a").text)
    assert len(seen) == 1
    assert "X_NAME" not in seen.pop().upper().replace("-", "_")


def test_an_app_may_write_down_what_it_was_asked(make_site: MakeSite, origin: Origin) -> None:
    def write_down(environ: Environ) -> bytes:
        given = strings(environ)
        assert {copy.copy(name): value for name, value in given.items()} == json.loads(json.dumps(given))
        return f"{given}".encode()

    origin.on("/a", answer(write_down))
    assert looked(make_site(revalidate=60, debug=True)) == []


def test_a_page_that_asks_who_is_served_is_not_looking(make_site: MakeSite, origin: Origin) -> None:
    def show(environ: Environ) -> bytes:
        return repr([environ.get(f"HTTP_{name}") for name in ("HOST", "USER_AGENT", "ACCEPT_ENCODING")]).encode()

    origin.on("/a", answer(show))
    assert looked(make_site(revalidate=60, debug=True)) == []


def flask_app(**config: Any) -> Any:
    app = flask.Flask(__name__)
    app.config.update(config)

    @app.get("/theme")
    def theme() -> str:
        return flask.request.cookies.get("theme", "light")

    @app.get("/language")
    def language() -> str:
        return flask.request.accept_languages.best_match(["en", "de"]) or "en"

    @app.get("/plain")
    def plain() -> str:
        return "plain"

    return app.wsgi_app


def test_a_flask_page_is_noticed_that_looks_for_a_language_or_a_cookie_of_its_own(make_site: MakeSite) -> None:
    site = make_site(app=flask_app(), revalidate=60, debug=True)
    assert looked(site, "/language") == [("accept-language",)]
    assert looked(site, "/theme") == [("cookie",)]


def test_the_look_that_flask_takes_for_its_session_on_every_page_does_not_count(make_site: MakeSite) -> None:
    assert looked(make_site(app=flask_app(SECRET_KEY="not a secret"), revalidate=60, debug=True), "/plain") == []


def test_who_reads_all_headers_through_werkzeug_is_not_looking_for_cookies(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(lambda environ: str(sorted(EnvironHeaders(environ).keys())).encode()))
    site = make_site(revalidate=60, debug=True)
    assert looked(site) == []
    assert site.visit("/a").text == "['Host']"


@pytest.mark.parametrize("header", ["Accept", "HX-Request", "X-Requested-With"])
def test_the_first_answer_by_such_a_header_is_a_warning_without_debug(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    name = "HTTP_" + header.upper().replace("-", "_")
    for path in ("/a", "/b"):
        origin.on(path, answer(lambda environ: environ.get(name, "nothing").encode()))
    origin.on("/said", answer(lambda environ: environ.get(name, "nothing").encode(), ("Vary", header)))
    site = make_site({"/said": Rule(revalidate=60, vary=[header])}, revalidate=60)
    site.visit("/said", headers={header: "x"})
    assert caplog.records == []
    for path in ("/a", "/b", "/a"):
        site.visit(path)
    (record,) = caplog.records
    assert f'write vary=["{header}"] in the rule' in record.getMessage()


def test_an_answer_that_is_not_stored_is_no_warning(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    origin.on("/a", answer(lambda environ: environ.get("HTTP_ACCEPT", "").encode(), ("Cache-Control", "private")))
    site = make_site(revalidate=60)
    site.visit("/a")
    site.visit("/a", headers={"Accept": "text/html"})
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_frameworks_themselves_look_at_none_of_these(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    import bottle

    site = make_site(app=flask_app(SECRET_KEY="not a secret"), revalidate=60)
    app = bottle.Bottle()
    app.get("/plain")(lambda: "plain")
    for seen in (site, make_site(app=app, revalidate=60)):
        seen.visit("/plain")
        seen.visit("/none")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_line_in_the_log_says_what_is_missing() -> None:
    line = line_of(UndeclaredVary("isr3:p:1", "/a", ("accept-language", "cookie"), "/a"))
    assert line is not None
    assert "UNSAID" in line
    assert "looked for accept-language, cookie" in line
