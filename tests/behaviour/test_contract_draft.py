"""Draft mode: an editor in it sees pages that are not cached. Other visitors see nothing of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any

import bottle
import flask
import pytest
from django.http import HttpResponse
from werkzeug.wrappers import Response

from tests.behaviour.conftest import MakeSite
from tests.behaviour.django_settings import configure
from tests.behaviour.origin import HTML, Environ, Origin, answer
from tests.behaviour.visitor import Clock, Seen, Site
from wsgi_isr import ConfigError, Rule, cached, disable_draft, enable_draft, is_draft
from wsgi_isr.events import InternalError
from wsgi_isr.stores.memory import MemoryStore

SECRET = "known to the servers only"

Make = Callable[[], Any]
Send = Callable[[Any, Environ, Callable[..., Any]], Iterable[bytes]]


def as_app(response: Any, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Return an app of a werkzeug response, which is a WSGI app."""
    sent: Iterable[bytes] = response(environ, start_response)
    return sent


def with_cookies(response: Any, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Return a response as Django's handler sends it."""
    headers = [*response.items(), *(("Set-Cookie", morsel.OutputString()) for morsel in response.cookies.values())]
    start_response("200 OK", headers)
    return [response.content]


def of_bottle(response: Any, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Return a response as Bottle sends it."""
    start_response(response.status_line, response.headerlist)
    return [b"ok"]


def with_headers(response: Any, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", response)
    return [b"ok"]


def django_response() -> HttpResponse:
    configure()
    return HttpResponse(b"ok")


RESPONSES: dict[str, tuple[Make, Send]] = {
    "Flask": (lambda: flask.Response("ok"), as_app),
    "werkzeug": (lambda: Response("ok"), as_app),
    "Django": (django_response, with_cookies),
    "Bottle": (lambda: bottle.HTTPResponse("ok"), of_bottle),
    "WSGI headers": (lambda: [HTML], with_headers),
}

every_response = pytest.mark.parametrize(("make", "send"), RESPONSES.values(), ids=RESPONSES)


class Editor:
    """A visitor who keeps cookies, like a browser."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.jar: dict[str, str] = {}

    def ask(self, path: str, **request: Any) -> Seen:
        cookie = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        seen = self.site.visit_and_settle(path, cookie=cookie, **request)
        for line in seen.headers.getlist("Set-Cookie"):
            name, morsel = next(iter(SimpleCookie(line).items()))
            self.jar[name] = morsel.value
            if morsel["max-age"] == "0" or "1970" in morsel["expires"]:
                del self.jar[name]
        return seen


def with_draft(origin: Origin, make: Make = RESPONSES["WSGI headers"][0], send: Send = with_headers) -> None:
    """Add pages that let their visitor into draft mode and out of it."""

    def page(change: Callable[[Any], None]) -> Any:
        def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
            response = make()
            change(response)
            return send(response, environ, start_response)

        return handler

    origin.on("/in", page(lambda response: enable_draft(response, max_age=600)))
    origin.on("/out", page(disable_draft))


def editor_of(site: Site, origin: Origin) -> Editor:
    """Return a visitor in draft mode."""
    with_draft(origin)
    editor = Editor(site)
    editor.ask("/in")
    assert editor.jar
    return editor


# In and out -----------------------------------------------------------------------------------------------


@every_response
def test_a_response_of_any_framework_lets_in_and_out(
    make_site: MakeSite, origin: Origin, make: Make, send: Send
) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    with_draft(origin, make, send)
    site.visit("/a")
    editor = Editor(site)
    assert editor.ask("/a").label == "HIT"
    editor.ask("/in")
    seen = editor.ask("/a")
    assert (seen.label, seen.body) == ("BYPASS", b"/a v2")
    editor.ask("/out")
    assert editor.jar == {}
    seen = editor.ask("/a")
    assert (seen.label, seen.body) == ("HIT", b"/a v1")


@every_response
def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(
    make_site: MakeSite, origin: Origin, make: Make, send: Send
) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    with_draft(origin, make, send)
    (line,) = site.visit("/in").headers.getlist("Set-Cookie")
    attributes = {part.strip().partition("=")[0].lower() for part in line.split(";")[1:]}
    assert "httponly" in attributes
    assert "samesite" in attributes
    assert re.search(r"path=/(;|$)", line, re.IGNORECASE)


def test_the_cookie_ends_when_draft_mode_does(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    with_draft(origin)
    (line,) = site.visit("/in").headers.getlist("Set-Cookie")
    assert re.search(r"max-age=600(;|$)", line, re.IGNORECASE)


def test_what_no_cookie_can_be_set_on_is_a_type_error(make_site: MakeSite, origin: Origin) -> None:
    site, raised = make_site(revalidate=60, secret=SECRET), []

    def page(environ: Environ) -> bytes:
        for response in ("text", None, 5, object()):
            for change in (enable_draft, disable_draft):
                with pytest.raises(TypeError):
                    change(response)
                raised.append(response)
        return b"tried"

    origin.on("/in", answer(page))
    assert site.visit("/in", method="POST").body == b"tried"
    assert len(raised) == 8


def test_without_a_secret_there_is_no_draft_mode(make_site: MakeSite, origin: Origin) -> None:
    site, raised = make_site(revalidate=60), []

    def page(environ: Environ) -> bytes:
        headers: list[tuple[str, str]] = []
        with pytest.raises(ConfigError, match="secret") as error:
            enable_draft(headers)
        raised.append(error)
        return repr(headers).encode()

    origin.on("/in", answer(page))
    assert site.visit("/in", method="POST").body == b"[]"
    assert raised


def test_the_secret_comes_from_the_environment_too(
    make_site: MakeSite, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSGI_ISR_SECRET", SECRET)
    site = make_site(revalidate=60)
    assert editor_of(site, origin).ask("/a").label == "BYPASS"


# Signed, expiring -------------------------------------------------------------------------------------------


def test_a_cookie_is_good_for_every_instance_with_the_same_secret(make_site: MakeSite, origin: Origin) -> None:
    one, two = (make_site(revalidate=60, secret=SECRET) for _ in range(2))
    editor = editor_of(one, origin)
    editor.site = two
    assert editor.ask("/a").label == "BYPASS"


def test_a_cookie_that_was_not_signed_here_counts_for_nothing(make_site: MakeSite, origin: Origin) -> None:
    site, other = make_site(revalidate=60, secret=SECRET), make_site(revalidate=60, secret=SECRET + "!")
    editor = editor_of(other, origin)
    site.visit("/a")
    editor.site = site
    assert editor.ask("/a").body == b"/a v1"


def test_a_cookie_ends_though_a_browser_keeps_it(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=3600, secret=SECRET)
    editor = editor_of(site, origin)
    site.visit("/a")
    clock.advance(590)
    assert editor.ask("/a").label == "BYPASS"
    clock.advance(20)
    assert editor.ask("/a").label == "HIT"


def test_a_wrong_cookie_makes_no_page_uncached(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    name = next(iter(editor_of(site, origin).jar))
    site.visit("/a")
    for value in ("", "x", "x.y.z", "%00", "a" * 4000, '"'):
        seen = site.visit("/a", cookie=f"{name}={value}")
        assert (seen.label, seen.body) == ("HIT", b"/a v1"), value


def test_a_draft_cookie_that_is_no_utf8_makes_no_page_uncached(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    name = next(iter(editor_of(site, origin).jar))
    site.visit("/a")
    seen = site.visit("/a", cookie=f"{name}=\xff\xfe")
    assert (seen.label, seen.body, site.happened(InternalError)) == ("HIT", b"/a v1", [])


def test_another_cookie_that_is_no_utf8_makes_no_page_uncached(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    site.visit("/a")
    seen = site.visit("/a", cookie="theme=\xff\xfe")
    assert (seen.label, seen.body, site.happened(InternalError)) == ("HIT", b"/a v1", [])


# Drafts are seen and not stored ------------------------------------------------------------------------------


def test_the_app_sees_the_editor_s_own_request_and_knows_of_draft_mode(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    origin.on("/a", answer(lambda environ: b"draft" if is_draft() else b"published"))
    assert site.visit("/a").body == b"published"
    editor = editor_of(site, origin)
    editor.jar["theme"] = "dark"
    assert editor.ask("/a").body == b"draft"
    assert "theme=dark" in origin.last("/a")["HTTP_COOKIE"]
    assert site.visit("/a").body == b"published"


@pytest.mark.parametrize("revalidate", [60, 0, False])
def test_nothing_that_an_editor_sees_is_stored(make_site: MakeSite, origin: Origin, revalidate: Any) -> None:
    site = make_site({"/a": Rule(revalidate=revalidate, query=["q"])}, revalidate=60, secret=SECRET)
    origin.on("/a", answer(lambda environ: b"draft" if is_draft() else b"published"))
    editor = editor_of(site, origin)
    for path in ("/a", "/a?q=1", "/b"):
        for method in ("GET", "HEAD"):
            assert editor.ask(path, method=method).label == "BYPASS"
    assert site.visit("/b").label == ("MISS")
    assert site.visit("/a").body == b"published"
    assert site.visit("/a?q=1").body == b"published"


def test_every_visit_of_an_editor_is_new_and_no_cache_keeps_it(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    editor = editor_of(site, origin)
    assert [editor.ask("/a").body for _ in range(3)] == [b"/a v1", b"/a v2", b"/a v3"]
    seen = editor.ask("/a")
    assert "s-maxage" not in seen.directives
    assert "draft" in seen.cache_status


def test_an_editor_neither_renews_nor_spoils_the_stored_page(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    origin.on("/a", answer(lambda environ: f"{'draft' if is_draft() else 'published'}".encode()))
    site.visit("/a")
    editor = editor_of(site, origin)
    clock.advance(60)
    editor.ask("/a")
    assert site.visit_and_settle("/a").label == "STALE"  # the editor's request did not renew the page
    assert site.visit("/a").body == b"published"


def test_an_editor_beside_a_cold_render_gets_neither_it_nor_gives_theirs(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    editor = editor_of(site, origin)
    gate = origin.hold("/a")
    visitor = site.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    assert editor.ask("/a").body == b"/a v2"
    gate.open()
    assert visitor.result().body == b"/a v1"
    assert site.visit("/a").body == b"/a v1"


def test_an_editor_sees_pages_that_paths_do_not_list(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(
        {"/p/<slug>": Rule(revalidate=60, paths=["/p/a"], dynamic_params=False)}, revalidate=60, secret=SECRET
    )
    editor = editor_of(site, origin)
    assert site.visit("/p/unpublished").code == 404
    assert editor.ask("/p/unpublished").code == 200
    assert site.visit("/p/unpublished").code == 404


def test_an_editor_gets_no_shell(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, fallback=b"a moment", secret=SECRET)
    editor = editor_of(site, origin)
    seen = editor.ask("/a")
    assert (seen.label, seen.body) == ("BYPASS", b"/a v1")


# Data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
def test_data_inside_is_bypassed_as_well(make_site: MakeSite, origin: Origin, clock: Clock, depth: int) -> None:
    site, calls = make_site(revalidate=60, secret=SECRET), Counter[str]()

    @cached(tags=["posts"])
    def inner() -> str:
        calls["inner"] += 1
        return f"{'draft' if is_draft() else 'published'} {calls['inner']}"

    @cached(tags=["posts"])
    def outer() -> str:
        return inner()

    show = inner if depth == 1 else outer
    origin.on("/a", answer(lambda environ: show().encode()))
    assert site.visit("/a").body == b"published 1"
    editor = editor_of(site, origin)
    assert [editor.ask("/a").body for _ in range(2)] == [b"draft 2", b"draft 3"]
    # Nothing of the draft was stored.
    site.isr.invalidate(paths=["/a"])
    assert site.visit("/a").body == b"published 1"


def test_cold_data_that_an_editor_asked_for_is_not_kept(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store, calls = MemoryStore(clock=clock), Counter[str]()
    site = make_site(revalidate=60, secret=SECRET, store=store)

    @cached
    def data() -> str:
        calls["data"] += 1
        return "draft" if is_draft() else "published"

    origin.on("/a", answer(lambda environ: data().encode()))
    assert editor_of(site, origin).ask("/a").body == b"draft"
    assert site.visit("/a").body == b"published"
    assert calls["data"] == 2


def test_data_in_a_lazy_body_is_bypassed_as_well(make_site: MakeSite, origin: Origin) -> None:
    site, calls = make_site(revalidate=60, secret=SECRET), Counter[str]()

    @cached
    def data() -> str:
        calls["data"] += 1
        return f"{'draft' if is_draft() else 'published'} {calls['data']}"

    def stream(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [HTML])
        yield b"<"
        yield data().encode()

    origin.on("/a", stream)
    assert site.visit("/a").body == b"<published 1"
    assert editor_of(site, origin).ask("/a").body == b"<draft 2"
    assert site.visit("/a").body == b"<published 1"


def test_nobody_is_in_draft_mode_outside_of_a_request() -> None:
    assert is_draft() is False
