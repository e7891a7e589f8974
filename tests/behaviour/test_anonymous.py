"""Anonymous visitors with cookies: consent banners, and sessions that only hold a form's token."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import flask_login
import flask_wtf
import pytest
from django.contrib.auth import SESSION_KEY
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.test import override_settings
from django.urls import path
from itsdangerous import URLSafeTimedSerializer

from tests.behaviour.conftest import MakeSite
from tests.behaviour.django_settings import configure
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.test_flask_bottle_django import Browser
from tests.behaviour.visitor import Site
from wsgi_isr import sessions
from wsgi_isr.config.ignored_names import IGNORED_COOKIES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "options.md"

# The list of cookies that no page looks at ------------------------------------------------------------------


def test_the_list_of_ignored_cookies_is_sorted_and_in_the_reference() -> None:
    assert list(IGNORED_COOKIES) == sorted(set(IGNORED_COOKIES), key=str.lower)
    shown = PAGE.read_text("utf-8").partition("<!-- cookies:start -->")[2].partition("<!-- cookies:end -->")[0]
    assert re.findall(r"`([^`]+)`", shown) == list(IGNORED_COOKIES)


@pytest.mark.parametrize(
    "cookie",
    [
        *(
            "_ga_X1=1",
            "CookieConsent={stamp:1}",
            "OptanonConsent=a=b&c",
            "cookieconsent_status=dismiss",
            "euconsent-v2=x",
        ),
        *("__cf_bm=1", "cf_clearance=1", "__stripe_mid=1", "_fbp=fb.1", "_hjSession_1=1", "mp_abc_mixpanel=1"),
        "_ga=1; CookieConsent=1; __cf_bm=2",
    ],
)
def test_visitors_with_cookies_of_scripts_and_banners_get_the_page_of_everybody(
    make_site: MakeSite, origin: Origin, cookie: str
) -> None:
    origin.on("/a", answer(b"page", ("Vary", "Cookie")))
    site = make_site(revalidate=60, ignore_cookies=["more"])
    site.visit("/a")
    assert site.visit("/a", cookie=f"{cookie}; more=1").label == "HIT"
    assert site.visit("/a", cookie=f"{cookie}; session=alice").label == "BYPASS"


def test_anonymous_is_asked_about_the_cookies_in_question_alone(make_site: MakeSite, origin: Origin) -> None:
    asked: list[str] = []

    def anonymous(environ: Any) -> bool:
        asked.append(environ["HTTP_COOKIE"])
        return "user" not in environ["HTTP_COOKIE"]

    origin.on("/a", answer(b"page", ("Vary", "Cookie")))
    site = make_site(revalidate=60, cookies=["theme"], anonymous=anonymous)
    labels = [
        site.visit("/a", cookie=cookie).label for cookie in ("", "_ga=1", "theme=", "s=1; _ga=1; theme=", "s=1;user=2")
    ]
    assert labels == ["MISS", "HIT", "MISS", "HIT", "BYPASS"]
    assert [sent.replace(" ", "") for sent in asked] == ["s=1", "s=1;user=2"]


def test_an_anonymous_that_raises_costs_speed_and_no_more(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(lambda environ: environ.get("HTTP_COOKIE", "nobody").encode(), ("Vary", "Cookie")))
    site = make_site(revalidate=60, anonymous=lambda environ: 1 / 0)
    assert site.visit("/a").text == "nobody"
    assert site.visit("/a", cookie="session=alice").text == "session=alice"


# Flask-Login and Flask-WTF, Django --------------------------------------------------------------------------------


class User(flask_login.UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


def make_flask(make_site: MakeSite, **options: Any) -> Site:
    """Return a site with a user's name, or a form with a token, on its pages."""
    app = flask.Flask(__name__)
    app.secret_key = "not a secret"
    flask_wtf.CSRFProtect(app)
    manager = flask_login.LoginManager(app)
    manager.user_loader(User)

    @app.get("/login/<name>")
    def login(name: str) -> str:
        flask_login.login_user(User(name))
        return "logged in"

    @app.get("/")
    @app.get("/page/<int:number>")
    def page(number: int = 0) -> str:
        user = flask_login.current_user
        return f"page {number} for {user.id if user.is_authenticated else 'everybody'}"

    @app.get("/form")
    def form() -> str:
        return f"token {flask_wtf.csrf.generate_csrf()}"

    @app.get("/notice")
    def notice() -> str:
        flask.flash("saved")
        return "noted"

    @app.get("/flashes")
    def flashes() -> str:
        return ",".join(flask.get_flashed_messages())

    if options.pop("helped", False):
        options["anonymous"] = sessions.flask(app)
    return make_site({"/login/<name>": 0, "/notice": 0}, revalidate=60, app=app.wsgi_app, watcher="nobody", **options)


def django_login(request: HttpRequest, name: str) -> HttpResponse:
    request.session[SESSION_KEY] = name
    return HttpResponse("logged in")


def django_page(request: HttpRequest, number: int = 0) -> HttpResponse:
    return HttpResponse(f"page {number} for {request.session.get(SESSION_KEY, 'everybody')}")


def django_form(request: HttpRequest) -> HttpResponse:
    request.session["seen"] = True
    return HttpResponse(f"token {get_token(request)}")


urlpatterns = [
    path("login/<str:name>", django_login),
    path("", django_page),
    path("page/<int:number>", django_page),
    path("form", django_form),
]


def make_django(make_site: MakeSite, **options: Any) -> Site:
    if options.pop("helped", False):
        options["anonymous"] = sessions.django()
    app = get_wsgi_application()
    return make_site({"/login/<name>": 0}, revalidate=60, app=app, watcher="nobody", **options)


@pytest.fixture(params=["flask", "django"])
def make(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return ``make(make_site)``, which makes a site of one framework."""
    if request.param == "flask":
        yield make_flask
        return
    configure()
    with override_settings(ROOT_URLCONF=__name__):
        yield make_django


def hits(site: Site, browser: Browser) -> int:
    labels = [browser.ask(f"/page/{number}").label for number in range(6)]
    assert set(labels) <= {"HIT", "BYPASS"}
    return labels.count("HIT")


@pytest.mark.parametrize(("helped", "after"), [(False, 0), (True, 6)])
def test_of_visitors_who_have_seen_a_form_so_many_pages_are_hits(
    make_site: MakeSite, make: Any, helped: bool, after: int
) -> None:
    site, stranger = make(make_site, helped=helped), None
    for number in range(6):
        site.visit(f"/page/{number}")
    stranger = Browser(site)
    assert hits(site, stranger) == 6
    assert stranger.ask("/form").text.startswith("token ")
    assert stranger.jar
    assert hits(site, stranger) == after


def test_a_token_is_never_in_a_stored_page(make_site: MakeSite, make: Any) -> None:
    site = make(make_site, helped=True)
    tokens = [Browser(site).ask("/form").text for _ in range(5)]
    assert len(set(tokens)) == 5


def test_two_users_and_a_stranger_at_once_get_their_own_pages(make_site: MakeSite, make: Any) -> None:
    site, chance = make(make_site, helped=True), random.Random(1)
    browsers = {name: Browser(site) for name in ("alice", "bob", "everybody")}
    for name in ("alice", "bob"):
        browsers[name].ask(f"/login/{name}")
    labels: list[str] = []
    for _ in range(1000):
        name = chance.choice(sorted(browsers))
        if chance.random() < 0.1:
            browsers[name].ask("/form")
            continue
        seen = browsers[name].ask(f"/page/{chance.randrange(5)}")
        assert re.fullmatch(rf"page \d for {name}", seen.text), (name, seen.text)
        if name == "everybody":
            labels.append(seen.label)
        else:
            assert seen.label == "BYPASS"
    assert labels.count("HIT") >= len(labels) - 5


def test_a_visitor_for_whom_there_is_a_flash_gets_it(make_site: MakeSite) -> None:
    site = make_flask(make_site, helped=True)
    browser = Browser(site)
    site.visit("/flashes")
    browser.ask("/notice")
    assert browser.ask("/flashes").text == "saved"
    assert browser.ask("/flashes").text == ""


@pytest.mark.parametrize("cookie", ["remember_token=alice|abc", "theme=dark", "session=a; session=b"])
def test_any_other_cookie_is_somebody_s(make_site: MakeSite, cookie: str) -> None:
    site = make_flask(make_site, helped=True)
    browser = Browser(site)
    browser.ask("/form")
    site.visit("/page/1")
    session = f"session={browser.jar['session']}"
    assert site.visit("/page/1", cookie=session).label == "HIT"
    assert site.visit("/page/1", cookie=f"{session}; {cookie}").label == "BYPASS"


@pytest.mark.parametrize("make_one", [sessions.flask, sessions.django])
def test_other_keys_of_a_session_can_be_somebody_s(make_one: Any) -> None:
    app = flask.Flask(__name__)
    app.secret_key = "not a secret"
    configure()
    arguments = (app,) if make_one is sessions.flask else ()
    plain, strict = make_one(*arguments), make_one(*arguments, personal=["cart"])
    if make_one is sessions.flask:
        serializer = app.session_interface.get_signing_serializer(app)  # type: ignore[attr-defined]
        cookie = f"session={serializer.dumps({'cart': [1]})}"
    else:
        from django.contrib.sessions.backends.signed_cookies import SessionStore

        store = SessionStore()
        store["cart"] = [1]
        store.save()
        cookie = f"sessionid={store.session_key}"
    environ: Environ = {"HTTP_COOKIE": cookie, "REQUEST_METHOD": "GET", "wsgi.url_scheme": "http", "SERVER_NAME": "a"}
    assert (plain(environ), strict(environ)) == (True, False)


def test_a_signed_cookie_without_a_user_is_nobody_s() -> None:
    serializer = URLSafeTimedSerializer("secret", salt="cookie-session")
    anonymous = sessions.signed_cookie("s", "secret")

    def judged(session: Any, more: str = "") -> bool:
        return anonymous({"HTTP_COOKIE": f"s={serializer.dumps(session)}{more}"})

    assert judged({"csrf": "token"})
    assert anonymous({"HTTP_COOKIE": ""})
    assert not judged({"user_id": 1})
    assert not judged(["no", "session"])
    assert not judged({}, "; other=1")
    assert not anonymous({"HTTP_COOKIE": "s=forged"})
