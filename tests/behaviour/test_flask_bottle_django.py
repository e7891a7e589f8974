"""Real frameworks with their own sessions, wrapped in one line and with no further set-up."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import bottle
import flask
import pytest
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.middleware.csrf import get_token
from django.urls import path
from django.views.decorators.cache import cache_control

from tests.behaviour.conftest import MakeSite
from tests.behaviour.django_settings import configure
from tests.behaviour.visitor import Clock, Seen, Site, all_at_once
from wsgi_isr import Rule


class Browser:
    """A visitor who keeps cookies."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.jar: dict[str, str] = {}

    def ask(self, url: str, **request: Any) -> Seen:
        cookie = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        seen = self.site.visit(url, cookie=cookie, **request)
        for line in seen.headers.getlist("Set-Cookie"):
            name, _, rest = line.strip().partition("=")
            self.jar[name] = rest.partition(";")[0]
            if not self.jar[name].strip('"'):  # each framework's way to delete a cookie
                del self.jar[name]
        return seen


# The three apps do the same: /login/<name>, /me greets, /plain does not greet, /count counts renders.


def flask_app() -> Any:
    app = flask.Flask(__name__)
    app.secret_key = "not a secret"
    renders = {"count": 0}

    @app.get("/login/<name>")
    def login(name: str) -> str:
        flask.session["name"] = name
        flask.flash(f"welcome {name}")
        return "logged in"

    @app.get("/logout")
    def logout() -> str:
        flask.session.clear()
        return "logged out"

    @app.get("/me")
    def me() -> str:
        return f"hello {flask.session.get('name', 'stranger')}"

    @app.get("/members")
    def members() -> str:
        return f"hello {flask.session['name']}"  # a KeyError for anonymous visitors

    @app.get("/flashes")
    def flashes() -> str:
        return ",".join(flask.get_flashed_messages())

    @app.get("/count")
    def count() -> str:
        renders["count"] += 1
        return f"render {renders['count']}"

    @app.get("/query")
    def query() -> str:
        return flask.request.args.get("q", "none")

    @app.get("/url")
    def url() -> str:
        return flask.url_for("me", _external=True)

    @app.get("/away")
    def away() -> Any:
        return flask.redirect("/me", code=301)

    @app.get("/broken")
    def broken() -> str:
        raise RuntimeError("broken")

    @app.get("/stream")
    def stream() -> Any:
        return flask.Response((part for part in ("one ", "two")), mimetype="text/plain")

    @app.get("/file")
    def file() -> Any:
        return flask.send_file(io.BytesIO(b"file" * 1000), mimetype="text/plain", max_age=60)

    @app.route("/form", methods=["GET", "POST"])
    def form() -> Any:
        return flask.request.form.get("text", "empty")

    return app.wsgi_app


def bottle_app() -> Any:
    app = bottle.Bottle()
    secret = "not a secret"
    renders = {"count": 0}

    @app.get("/login/<name>")
    def login(name: str) -> str:
        bottle.response.set_cookie("name", name, secret=secret, path="/")
        return "logged in"

    @app.get("/logout")
    def logout() -> str:
        bottle.response.delete_cookie("name", path="/")
        return "logged out"

    @app.get("/me")
    def me() -> str:
        # Bottle does not declare by itself that a page reads a cookie.
        bottle.response.set_header("Vary", "Cookie")
        return f"hello {bottle.request.get_cookie('name', 'stranger', secret=secret)}"

    @app.get("/me-unsaid")
    def me_unsaid() -> str:
        return f"hello {bottle.request.get_cookie('name', 'stranger', secret=secret)}"

    @app.get("/count")
    def count() -> str:
        renders["count"] += 1
        return f"render {renders['count']}"

    @app.get("/query")
    def query() -> str:
        return bottle.request.query.q or "none"

    @app.get("/url")
    def url() -> str:
        return str(bottle.request.urlparts.geturl()).replace("/url", "/me")

    @app.get("/away")
    def away() -> None:
        bottle.redirect("/me", 301)

    @app.get("/broken")
    def broken() -> str:
        raise RuntimeError("broken")

    @app.get("/stream")
    def stream() -> Any:
        bottle.response.content_type = "text/plain"
        yield "one "
        yield "two"

    @app.get("/file")
    def file() -> Any:
        bottle.response.content_type = "text/plain"
        return io.BytesIO(b"file" * 1000)

    @app.route("/form", method=["GET", "POST"])
    def form() -> str:
        return bottle.request.forms.text or "empty"

    return app


def django_app() -> Any:
    configure()
    DJANGO_RENDERS["count"] = 0
    return get_wsgi_application()


DJANGO_RENDERS = {"count": 0}


def django_login(request: HttpRequest, name: str) -> HttpResponse:
    request.session["name"] = name  # type: ignore[attr-defined]
    return HttpResponse("logged in")


def django_logout(request: HttpRequest) -> HttpResponse:
    request.session.flush()  # type: ignore[attr-defined]
    return HttpResponse("logged out")


def django_me(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"hello {request.session.get('name', 'stranger')}")  # type: ignore[attr-defined]


def django_count(request: HttpRequest) -> HttpResponse:
    DJANGO_RENDERS["count"] += 1
    return HttpResponse(f"render {DJANGO_RENDERS['count']}")


def django_broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("broken")


def django_form(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.POST.get("text", get_token(request)))


@cache_control(private=True)
def django_private(request: HttpRequest) -> HttpResponse:
    return HttpResponse("private")


urlpatterns = [
    path("login/<name>", django_login),
    path("logout", django_logout),
    path("me", django_me),
    path("count", django_count),
    path("query", lambda request: HttpResponse(request.GET.get("q", "none"))),
    path("url", lambda request: HttpResponse(request.build_absolute_uri("/me"))),
    path("away", lambda request: HttpResponse(status=301, headers={"Location": "/me"})),
    path("broken", django_broken),
    path("stream", lambda request: StreamingHttpResponse(iter(["one ", "two"]))),
    path("file", lambda request: FileResponse(io.BytesIO(b"file" * 1000), content_type="text/plain")),
    path("form", django_form),
    path("private", django_private),
]

APPS: dict[str, Callable[[], Any]] = {"flask": flask_app, "bottle": bottle_app, "django": django_app}


@pytest.fixture(params=APPS.values(), ids=APPS)
def site(request: pytest.FixtureRequest, make_site: MakeSite) -> Site:
    """Return each app in turn, wrapped in one line."""
    return make_site(app=request.param(), revalidate=60)


@pytest.fixture
def flask_site(make_site: MakeSite) -> Site:
    return make_site(app=flask_app(), revalidate=60)


@pytest.fixture
def django_site(make_site: MakeSite) -> Site:
    return make_site(app=django_app(), revalidate=60)


@pytest.fixture
def bottle_site(make_site: MakeSite) -> Site:
    return make_site(app=bottle_app(), revalidate=60)


def test_a_page_without_a_session_is_cached(site: Site) -> None:
    seen = [site.visit("/count") for _ in range(3)]
    assert [(visit.text, visit.label) for visit in seen] == [
        ("render 1", "MISS"),
        ("render 1", "HIT"),
        ("render 1", "HIT"),
    ]


def test_a_stale_page_is_rendered_anew_in_the_background(site: Site, clock: Clock) -> None:
    site.visit("/count")
    clock.advance(61)
    assert site.visit_and_settle("/count").text == "render 1"
    assert site.visit("/count").text == "render 2"


def test_a_login_is_never_cached(site: Site) -> None:
    alice, bob = Browser(site), Browser(site)
    for browser, name in ((alice, "alice"), (bob, "bob"), (alice, "alice")):
        seen = browser.ask(f"/login/{name}")
        assert seen.label == "BYPASS"
        assert seen.headers["Set-Cookie"]
    assert alice.jar != bob.jar


def test_visitors_with_a_session_see_their_own_page_and_the_anonymous_that_of_the_cache(site: Site) -> None:
    alice, bob, nobody = Browser(site), Browser(site), Browser(site)
    alice.ask("/login/alice")
    bob.ask("/login/bob")
    for _ in range(50):
        assert alice.ask("/me").text == "hello alice"
        assert nobody.ask("/me").text == "hello stranger"
        assert bob.ask("/me").text == "hello bob"
    assert nobody.ask("/me").label == "HIT"
    assert alice.ask("/me").cache_status == 'wsgi-isr; fwd=bypass; detail="cookie"'


def test_visitors_with_sessions_at_once_see_their_own_page(site: Site) -> None:
    browsers = [Browser(site) for _ in range(6)]
    for number, browser in enumerate(browsers):
        browser.ask(f"/login/v{number}")
    for _ in range(5):
        seen = all_at_once(6, lambda number: browsers[number].ask("/me"))
        assert sorted(visit.text for visit in seen) == [f"hello v{number}" for number in range(6)]


def test_who_logs_in_after_seeing_the_cached_page_sees_their_own(site: Site, clock: Clock) -> None:
    visitor = Browser(site)
    assert visitor.ask("/me").text == "hello stranger"
    visitor.ask("/login/alice")
    assert visitor.ask("/me").text == "hello alice"
    clock.advance(61)
    assert visitor.ask("/me").text == "hello alice"
    site.settle()
    visitor.ask("/logout")
    assert visitor.ask("/me").text == "hello stranger"


def test_a_session_does_not_keep_the_other_pages_from_the_cache(site: Site) -> None:
    alice = Browser(site)
    alice.ask("/login/alice")
    assert [alice.ask("/count").text for _ in range(3)] == ["render 1"] * 3


def test_an_analytics_cookie_is_no_session(site: Site) -> None:
    site.visit("/me")
    seen = site.visit("/me", cookie="_ga=GA1.1.1; _gid=GA1.2")
    assert (seen.text, seen.label) == ("hello stranger", "HIT")


def test_an_undeclared_query_is_the_app_s_business(site: Site) -> None:
    assert site.visit("/query?q=1").text == "1"
    assert site.visit("/query?q=2").text == "2"
    assert site.visit("/query").text == "none"
    assert site.visit("/query?utm_source=x").label == "HIT"


@pytest.mark.parametrize("make", APPS.values(), ids=APPS)
def test_a_declared_query_is_read_by_the_framework(make_site: MakeSite, make: Callable[[], Any]) -> None:
    site = make_site({"/query": Rule(revalidate=60, query=["q"])}, app=make())
    for _ in range(2):
        for q, text in (("%C3%A9+b", "é b"), ("a%26b", "a&b"), ("", "none")):
            assert site.visit(f"/query?q={q}").text in (text, "" if not q else text)


def test_absolute_urls_name_the_host_that_was_asked(site: Site) -> None:
    for host, scheme in (("one.example", "http"), ("two.example:8080", "http"), ("one.example", "https")):
        for _ in range(2):
            seen = site.visit("/url", host=host, scheme=scheme)
            assert seen.text == f"{scheme}://{host}/me"


def test_a_missing_page_is_the_framework_s_404_and_cached_briefly(site: Site, clock: Clock) -> None:
    assert [site.visit("/nowhere").code for _ in range(2)] == [404, 404]
    assert site.visit("/nowhere").label == "HIT"
    clock.advance(11)
    assert site.visit("/nowhere").label != "HIT"


def test_a_permanent_redirect_is_cached(site: Site) -> None:
    # wsgiref's validator wants a Content-Type on it; the frameworks send one.
    seen = [site.visit("/away") for _ in range(2)]
    assert [visit.code for visit in seen] == [301, 301]
    assert seen[1].label == "HIT"
    assert seen[1].headers["Location"].endswith("/me")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_page_of_the_framework_is_passed_on_and_not_stored(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        seen = site.visit("/broken")
        assert seen.code == 500
        assert "stored" not in seen.cache_status
    capfd.readouterr()


def test_a_streamed_page_is_stored_whole(site: Site) -> None:
    assert [site.visit("/stream").text for _ in range(2)] == ["one two"] * 2
    assert site.visit("/stream").headers["Content-Length"] == "7"


def test_a_file_is_stored_whole(site: Site) -> None:
    assert [site.visit("/file").body for _ in range(2)] == [b"file" * 1000] * 2
    assert site.visit("/file").label == "HIT"


def test_a_flask_file_comes_in_parts_as_it_promises(flask_site: Site) -> None:
    for _ in range(2):
        seen = flask_site.visit("/file", headers={"Range": "bytes=2-5"})
        assert (seen.code, seen.body, seen.headers["Content-Range"]) == (206, b"lefi", "bytes 2-5/4000")
    assert flask_site.visit("/file").body == b"file" * 1000


def test_head_of_a_page_is_that_of_get(site: Site) -> None:
    site.visit("/count")
    get, head = site.visit("/count"), site.visit("/count", method="HEAD")
    assert head.body == b""
    assert list(head.headers) == list(get.headers)


def test_a_page_by_etag_is_a_304(site: Site) -> None:
    etag = site.visit("/count").headers["ETag"]
    assert site.visit("/count", headers={"If-None-Match": etag}).code == 304


def test_a_post_reaches_the_framework(make_site: MakeSite) -> None:
    for make in (flask_app, bottle_app):
        site = make_site(app=make(), revalidate=60)
        assert site.visit("/form").text == "empty"
        seen = site.visit("/form", method="POST", body=b"text=hello")
        assert (seen.text, seen.label) == ("hello", "BYPASS")


def test_a_path_that_is_no_utf8_is_the_framework_s_business(site: Site) -> None:
    for _ in range(2):
        assert site.visit("/%FF%FE").code in (400, 404)


def test_a_path_with_accents_reaches_the_framework(site: Site) -> None:
    seen = site.visit("/login/J%C3%BCrgen")
    assert seen.text == "logged in"


# Behaviour of one framework only


def test_flask_flashes_a_message_to_its_visitor_only(flask_site: Site) -> None:
    alice, nobody = Browser(flask_site), Browser(flask_site)
    assert nobody.ask("/flashes").text == ""
    alice.ask("/login/alice")
    assert nobody.ask("/flashes").text == ""
    assert alice.ask("/flashes").text == "welcome alice"
    assert alice.ask("/flashes").text == ""


def test_a_flask_page_that_fails_without_a_session_works_for_who_has_one(flask_site: Site) -> None:
    alice = Browser(flask_site)
    alice.ask("/login/alice")
    for _ in range(2):
        seen = alice.ask("/members")
        assert (seen.code, seen.text) == (200, "hello alice")


def test_flask_says_vary_cookie_on_what_comes_from_the_cache(flask_site: Site) -> None:
    flask_site.visit("/me")
    assert flask_site.visit("/me").headers["Vary"] == "Cookie"


def test_flask_s_own_client_works_on_a_wrapped_app(make_site: MakeSite) -> None:
    app = flask.Flask(__name__)
    app.secret_key = "not a secret"

    @app.get("/<name>")
    def set_name(name: str) -> str:
        flask.session["name"] = name
        return name

    # Flask's client does not close the answer. The validators raise for this.
    app.wsgi_app = make_site(app=app.wsgi_app, revalidate=60, watcher="nobody").isr  # type: ignore[method-assign]
    with app.test_client() as client:
        assert client.get("/alice").text == "alice"
        assert flask.session["name"] == "alice"
        with client.session_transaction() as session:
            assert session["name"] == "alice"


def test_django_s_csrf_token_is_for_one_visitor(django_site: Site) -> None:
    alice, bob = Browser(django_site), Browser(django_site)
    one, two = alice.ask("/form"), bob.ask("/form")
    assert {one.label, two.label} == {"BYPASS"}
    assert alice.jar["csrftoken"] != bob.jar["csrftoken"]


def test_a_django_form_is_accepted_with_its_token(django_site: Site) -> None:
    alice = Browser(django_site)
    token = alice.ask("/form").text
    assert re.fullmatch(r"\w{64}", token)
    seen = alice.ask("/form", method="POST", body=f"text=hello&csrfmiddlewaretoken={token}".encode())
    assert (seen.code, seen.text) == (200, "hello")


def test_a_django_form_is_refused_without_its_token(django_site: Site, caplog: pytest.LogCaptureFixture) -> None:
    alice = Browser(django_site)
    alice.ask("/form")
    assert alice.ask("/form", method="POST", body=b"text=hello").code == 403


def test_django_s_cache_control_private_is_obeyed(django_site: Site) -> None:
    for _ in range(2):
        seen = django_site.visit("/private")
        assert (seen.label, seen.headers["Cache-Control"]) == ("BYPASS", "private")


def test_a_bottle_page_that_does_not_say_that_it_reads_a_cookie_is_the_anonymous_one_for_all(
    bottle_site: Site,
) -> None:
    """Without Vary: Cookie the cache cannot know. The render saw no cookie, so no visitor's data is in it."""
    alice = Browser(bottle_site)
    alice.ask("/login/alice")
    assert {alice.ask("/me-unsaid").text for _ in range(3)} == {"hello stranger"}


def test_a_bottle_page_whose_rule_declares_the_cookie_is_one_for_each(make_site: MakeSite) -> None:
    site = make_site({"/me-unsaid": Rule(revalidate=60, cookies=["name"])}, app=bottle_app())
    alice, bob, nobody = Browser(site), Browser(site), Browser(site)
    alice.ask("/login/alice")
    bob.ask("/login/bob")
    for _ in range(3):
        assert alice.ask("/me-unsaid").text == "hello alice"
        assert bob.ask("/me-unsaid").text == "hello bob"
        assert nobody.ask("/me-unsaid").text == "hello stranger"
    assert bob.ask("/me-unsaid").label == "HIT"
