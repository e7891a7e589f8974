"""Links that work once: the log line where a blanket rule covers them, and the rule that excludes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Environ, Gate, Origin
from wsgi_isr import Rule

MAGIC = "/magic/abc"


def signs_in(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [HTML, ("Set-Cookie", "session=1")])
    return [b"welcome"]


def test_a_link_that_signs_in_under_a_blanket_rule_is_one_warning(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(revalidate=60)
    for path in (MAGIC, MAGIC, "/magic/def"):
        origin.on(path, signs_in)
        assert site.visit(path).headers["Set-Cookie"] == "session=1"
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "rule '*'" in said
    assert 'write "/magic/<token>": 0' in said


def test_with_the_rule_that_the_warning_names_a_link_is_opened_once(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site({"/magic/<token>": 0}, revalidate=60)
    origin.on(MAGIC, signs_in)
    assert site.visit(MAGIC).headers["Set-Cookie"] == "session=1"
    assert (origin.calls[MAGIC], caplog.records) == (1, [])


# The app is called once for a first visit ------------------------------------------------------------------


class Link:
    """An app whose links work once. ``look`` reads the environ of the request."""

    def __init__(
        self, look: Callable[[Environ], Any] = lambda environ: "", status: str = "200 OK", **headers: str
    ) -> None:
        self.calls = 0
        self.gate: Gate | None = None
        self._look, self._status, self._headers = look, status, headers

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        self.calls += 1
        body = b"used" if self.calls > 1 else b"welcome " + str(self._look(environ)).encode()
        cookie = [("Set-Cookie", "session=1")] if self.calls == 1 else []
        status = self._status if self.calls == 1 else "410 Gone"
        if self.gate is not None:
            self.gate.pass_through()
        head = [HTML, ("Content-Length", str(len(body))), *self._headers.items(), *cookie]
        start_response(status, head)
        return [body]


@pytest.mark.parametrize("status", ["200 OK", "303 See Other"])
def test_a_link_that_works_once_signs_in_its_first_visitor(make_site: MakeSite, status: str) -> None:
    link = Link(status=status, Location="http://example.org/")
    site = make_site(app=link, revalidate=60, watcher="werkzeug")
    seen = site.visit(MAGIC, headers={"User-Agent": "Firefox", "Accept": "text/html"})
    assert (seen.status, seen.body, seen.headers["Set-Cookie"]) == (status, b"welcome ", "session=1")
    assert (seen.label, seen.cache_status) == ("BYPASS", 'wsgi-isr; fwd=bypass; detail="set-cookie"')
    assert link.calls == 1


def test_the_answer_is_for_the_first_visitor_alone(make_site: MakeSite) -> None:
    link, gate = Link(), Gate()
    link.gate = gate
    site = make_site(app=link, revalidate=60, watcher="werkzeug")
    first = site.start_visit(MAGIC)
    gate.wait_until_entered()
    others = [site.start_visit(MAGIC) for _ in range(3)]
    gate.open()
    assert first.result().headers["Set-Cookie"] == "session=1"
    for other in others:
        assert (other.result().body, other.result().headers.get("Set-Cookie")) == (b"used", None)
    assert site.visit(MAGIC).body == b"used"


@pytest.mark.parametrize(
    ("look", "sent"),
    [
        (lambda environ: environ["REMOTE_ADDR"], {}),
        (lambda environ: environ.get("HTTP_ACCEPT_LANGUAGE"), {"Accept-Language": "de"}),
        (lambda environ: environ.get("HTTP_X_COUNTRY"), {"X-Country": "de"}),
        (lambda environ: [name for name in environ if name.startswith("HTTP_")], {"X-Country": "de"}),
    ],
    ids=["address", "language", "any header", "all headers"],
)
def test_an_app_that_looks_at_the_visitor_is_called_with_the_visitors_own_request(
    make_site: MakeSite, look: Callable[[Environ], str], sent: dict[str, str]
) -> None:
    link = Link(look)
    assert make_site(app=link, revalidate=60, watcher="werkzeug").visit(MAGIC, headers=sent).body == b"used"
    assert link.calls == 2


def test_a_look_at_what_the_visitor_has_not_sent_does_not_matter(make_site: MakeSite) -> None:
    link = Link(lambda environ: environ.get("HTTP_ACCEPT_LANGUAGE", "en"))
    seen = make_site(app=link, revalidate=60, watcher="werkzeug").visit(MAGIC, headers={"User-Agent": "Firefox"})
    assert (seen.body, link.calls) == (b"welcome en", 1)


@pytest.mark.parametrize(
    ("headers", "request_headers", "cookie"),
    [
        ([("Vary", "Accept-Language")], {"Accept-Language": "de"}, ""),
        ([("Content-Type", "text/event-stream")], {}, ""),
        ([], {}, "other=1"),
    ],
    ids=["Vary", "stream", "cookie"],
)
def test_an_answer_that_may_be_another_visitors_is_not_given(
    make_site: MakeSite, origin: Origin, headers: Any, request_headers: dict[str, str], cookie: str
) -> None:
    def handler(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Set-Cookie", "a=b"), ("Content-Length", "1"), *headers])
        return [b"%d" % origin.calls[MAGIC]]

    origin.on(MAGIC, handler)
    seen = make_site(revalidate=60, watcher="nobody").visit(MAGIC, headers=request_headers, cookie=cookie)
    assert seen.body == b"2"


def test_an_app_that_looks_at_what_a_middleware_outside_has_noted_is_called_with_that(make_site: MakeSite) -> None:
    link = Link(lambda environ: environ.get("myapp.user", "nobody"))
    site = make_site(app=link, revalidate=60, watcher="werkzeug")
    assert site.visit(MAGIC, extra={"myapp.user": "alice"}).body == b"used"


@pytest.mark.parametrize(
    "request_of",
    [
        {"path": f"{MAGIC}?utm_source=mail"},
        {"path": MAGIC, "headers": {"Host": "EXAMPLE.org"}},
        {"path": MAGIC, "extra": {"HTTP_HOST": "example.org:80"}},
    ],
    ids=["query", "host", "port"],
)
def test_an_app_that_is_asked_for_another_url_is_called_with_that(
    make_site: MakeSite, request_of: dict[str, Any]
) -> None:
    link = Link()
    site = make_site(app=link, revalidate=60, watcher="nobody")
    assert site.visit(**request_of).body == b"used"
    assert link.calls == 2


@pytest.mark.parametrize(
    "header",
    [
        *("X-Request-ID", "X-Correlation-ID", "traceparent", "tracestate", "baggage", "b3", "X-B3-TraceId"),
        *("X-Amzn-Trace-Id", "X-Cloud-Trace-Context", "X-Request-Start", "X-Forwarded-Proto", "X-Real-IP"),
        *("CF-Ray", "CF-Connecting-IP", "CF-IPCountry", "CF-Visitor", "CDN-Loop", "True-Client-IP"),
        *("TE", "Sec-Fetch-Storage-Access", "Sec-Fetch-Site", "Sec-CH-UA"),
    ],
)
def test_a_header_of_a_proxy_or_a_browser_costs_no_second_call(make_site: MakeSite, header: str) -> None:
    link = Link()
    seen = make_site(app=link, revalidate=60, watcher="nobody").visit(MAGIC, headers={header: "1"})
    assert (seen.headers["Set-Cookie"], link.calls) == ("session=1", 1)
    looking = Link(lambda environ: environ.get("HTTP_" + header.upper().replace("-", "_")))
    assert make_site(app=looking, revalidate=60, watcher="nobody").visit(MAGIC, headers={header: "1"}).body == b"used"


@pytest.mark.parametrize("vary", ["Cookie", "Accept-Encoding"])
def test_a_visitor_with_ignored_cookies_alone_is_one_without_cookies(make_site: MakeSite, vary: str) -> None:
    link = Link(lambda environ: environ.get("HTTP_COOKIE", "nobody"), Vary=vary)
    site = make_site(app=link, revalidate=60, watcher="nobody", ignore_cookies=["banner"])
    seen = site.visit(MAGIC, cookie="_ga=GA1.2.3; banner=seen")
    assert (seen.body, seen.headers["Set-Cookie"], link.calls) == (b"welcome nobody", "session=1", 1)


@pytest.mark.parametrize("cookie", ["_ga=1; session=2", "_ga=1; theme=dark"])
def test_a_cookie_that_is_not_ignored_is_the_visitors(make_site: MakeSite, cookie: str) -> None:
    link = Link(lambda environ: environ.get("HTTP_COOKIE", "nobody"))
    site = make_site({"/magic/<token>": Rule(revalidate=60, cookies=["theme"])}, app=link, watcher="nobody")
    assert site.visit(MAGIC, cookie=cookie).body == b"used"


def test_an_answer_for_one_visitor_is_kept_only_if_it_is_small(make_site: MakeSite, origin: Origin) -> None:
    origin.on(MAGIC, lambda environ, start_response: signs_in_with(start_response, [bytes(65537)]))
    origin.on("/magic/small", lambda environ, start_response: signs_in_with(start_response, [bytes(65536)]))
    site = make_site(revalidate=60, watcher="nobody")
    assert (site.visit(MAGIC).body, origin.calls[MAGIC]) == (bytes(65537), 2)
    assert (site.visit("/magic/small").body, origin.calls["/magic/small"]) == (bytes(65536), 1)


def test_an_answer_for_one_visitor_is_kept_only_if_it_comes_in_a_moment(
    make_site: MakeSite, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Time:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

        time = monotonic

    def slow(environ: Environ, start_response: Callable[..., Any]) -> Any:
        yield from signs_in_with(start_response, [b"one", b"two"], lambda: setattr(Time, "now", Time.now + 0.2))

    monkeypatch.setattr("wsgi_isr.pages.capture.time", Time)
    origin.on(MAGIC, slow)
    assert make_site(revalidate=60, watcher="nobody").visit(MAGIC).body == b"onetwo"
    assert origin.calls[MAGIC] == 2


def signs_in_with(
    start_response: Callable[..., Any], chunks: list[bytes], between: Callable[[], Any] = lambda: None
) -> Iterator[bytes]:
    size = str(sum(map(len, chunks)))
    start_response("200 OK", [HTML, ("Content-Length", size), ("Set-Cookie", "session=1")])
    for chunk in chunks:
        between()
        yield chunk


def test_each_kind_of_pages_that_set_cookies_is_named_up_to_a_limit(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(revalidate=60)
    paths = ["/magic/abc", "/magic/def", "/confirm/abc", *(f"/{n}/token" for n in range(40))]
    for path in paths:
        origin.on(path, signs_in)
        site.visit(path)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 16
    assert sum('"/magic/<token>"' in message for message in said) == 1
    assert sum('"/confirm/<token>"' in message for message in said) == 1


def test_head_is_answered_without_the_body(make_site: MakeSite) -> None:
    seen = make_site(app=Link(), revalidate=60, watcher="nobody").visit(MAGIC, method="HEAD")
    assert (seen.body, seen.headers["Content-Length"], seen.headers["Set-Cookie"]) == (b"", "8", "session=1")


def test_a_link_in_flask_signs_in_its_first_visitor(make_site: MakeSite) -> None:
    import flask

    app = flask.Flask(__name__)
    app.secret_key = "not a secret"
    tokens = {"abc"}

    @app.get("/magic/<token>")
    def magic(token: str) -> Any:
        if token not in tokens:
            return "the link was used", 410
        tokens.remove(token)
        flask.session["user"] = "alice"
        return flask.redirect("/")

    site = make_site(revalidate=60, app=app.wsgi_app, watcher="nobody")
    seen = site.visit(MAGIC, headers={"User-Agent": "Firefox", "Accept-Language": "de", "Accept": "*/*"})
    assert (seen.code, seen.headers["Location"]) == (302, "/")
    assert seen.headers["Set-Cookie"].startswith("session=")
