"""Behind a CDN: the answers that it may keep, for how long, and under which tags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.behaviour.behind_cdn import ALL_FIELDS, FIELDS, KINDS, URL, kept_for, tokens
from tests.behaviour.conftest import MakeSite
from tests.behaviour.nodes import Nodes
from tests.behaviour.origin import Origin, answer, failing
from tests.behaviour.visitor import Clock, Conversation, Site, make_environ
from tests.support.cdn import FakeCdn
from wsgi_isr import InvalidationError, Rule, cache_tag


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_behind(make_site: MakeSite, tmp_path: Path) -> Any:
    def make(kind: str, rules: Any = None, **options: Any) -> Site:
        fake = FakeCdn(kind)
        fake._server.server_close()
        options = {"canonical_url": URL, "journal": str(tmp_path / "journal"), **options}
        return make_site(rules, **fake.options(), **options)

    return make


# Headers ------------------------------------------------------------------------------------------------


def test_a_page_has_its_lifetime_and_tags_in_the_fields_of_the_cdn_and_no_others(make_behind: Any, kind: str) -> None:
    site = make_behind(kind, {"/a/<x>": Rule(revalidate=60, expire=90, tags=["posts"])})
    site.visit("/a/b")
    site.clock.advance(10)
    for seen in (site.visit("/a/b"), site.visit("/a/b")):
        assert seen.label == "HIT"
        assert seen.age == 10
        rest = 50 if kind == "bunny" else 60
        assert kept_for(seen, kind) == f"max-age={rest}, stale-while-revalidate=30"
        separator = " " if kind in ("fastly", "varnish") else ","
        assert set(seen.headers[FIELDS[kind][1]].split(separator)) == tokens(
            "all", "route:/a/<x>", "path:/a/b", "prefix:/", "prefix:/a", "prefix:/a/b", "tag:posts"
        )
        assert seen.headers["Cache-Control"] == "max-age=0, must-revalidate"
        assert {name for name in ALL_FIELDS if name in seen.headers} == {*FIELDS[kind]}


def test_each_second_of_a_page_has_the_fields(make_behind: Any, kind: str) -> None:
    site = make_behind(kind, revalidate=60)
    site.visit("/a")
    for second in range(1, 5):
        site.clock.advance(1)
        for _ in range(3):  # the second and third come from a prepared response
            seen = site.visit("/a")
            assert seen.age == second
            rest = 60 - second if kind == "bunny" else 60
            assert kept_for(seen, kind) == f"max-age={rest}, stale-while-revalidate=60"


def test_a_page_that_was_stored_now_may_be_kept(make_behind: Any, kind: str) -> None:
    seen = make_behind(kind, revalidate=60).visit("/a")
    assert seen.label == "MISS"
    assert kept_for(seen, kind) == "max-age=60, stale-while-revalidate=60"


def test_without_a_cdn_there_are_no_such_fields(make_site: MakeSite) -> None:
    site = make_site(revalidate=60)
    for _ in range(2):
        assert not ALL_FIELDS & set(site.visit("/a").headers.keys())


def test_tags_that_turned_up_in_the_render_are_named(make_behind: Any, origin: Origin) -> None:
    def page(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        cache_tag("from the render")
        start_response("200 OK", [("Content-Type", "text/html"), ("Cache-Tag", "from-the-header")])
        return [b"x"]

    origin.on("/a", page)
    site = make_behind("generic", revalidate=60)
    site.visit("/a")
    named = set(site.visit("/a").headers["Cache-Tag"].split(","))
    assert tokens("tag:from the render", "tag:from-the-header") <= named


def test_a_page_until_invalidated_may_be_kept_for_a_year(make_behind: Any) -> None:
    assert kept_for(make_behind("generic", revalidate=False).visit("/a")).startswith("max-age=31536000,")


def test_a_page_without_grace_has_none_at_the_edge(make_behind: Any, origin: Origin) -> None:
    origin.on("/a", answer(b"x", ("Cache-Control", "must-revalidate")))
    assert kept_for(make_behind("generic", revalidate=60).visit("/a")) == "max-age=60"


def test_the_last_second_of_a_lifetime_is_not_kept(make_behind: Any) -> None:
    site = make_behind("generic", revalidate=60)
    site.visit("/a")
    site.clock.advance(59.5)
    seen = site.visit("/a")
    assert (seen.label, kept_for(seen)) == ("HIT", "no-store")


def test_an_unchanged_page_renews_lifetime_and_tags_at_the_edge(make_behind: Any, kind: str) -> None:
    site = make_behind(kind, revalidate=60)
    etag = site.visit("/a").headers["ETag"]
    for _ in range(2):  # by the slow path, then by the prepared response
        seen = site.visit("/a", headers={"If-None-Match": etag})
        assert seen.code == 304
        assert kept_for(seen, kind).startswith("max-age=60")


def test_more_tags_than_the_field_takes_are_not_kept(make_behind: Any, kind: str) -> None:
    many = [f"tag{number}" for number in range(2000)]
    site = make_behind(kind, {"/few": Rule(revalidate=60, tags=many[:250]), "/many": Rule(revalidate=60, tags=many)})
    assert kept_for(site.visit("/few"), kind) != "no-store"
    assert kept_for(site.visit("/many"), kind) == "no-store"


def test_a_field_of_the_app_does_not_stand_beside_the_one_for_the_cdn(make_behind: Any, origin: Origin) -> None:
    origin.on("/a", answer(b"x", ("xkey", "own"), ("CDN-Cache-Control", "max-age=30")))
    site = make_behind("varnish", revalidate=60)
    site.visit("/a")
    assert site.visit("/a").headers.getlist("xkey") == [site.visit("/a").headers["xkey"]]
    assert "own" not in site.visit("/a").headers["xkey"].split()


# Answers that no CDN may keep -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "headers", "is_kept"),
    [
        ({"hosts": ["a.example", "b.example"], "canonical_url": None}, {"X-Forwarded-Host": "b.example"}, False),
        ({"hosts": ["a.example", "b.example"], "canonical_url": None}, {"X-Forwarded-Host": "a.example"}, True),
        ({"hosts": ["a.example", "b.example"], "canonical_url": None}, {}, True),
        ({}, {"X-Forwarded-Host": "b.example"}, True),
        ({}, {"X-Forwarded-Prefix": "/mounted"}, False),
    ],
)
def test_a_page_that_forwarded_headers_have_led_to_is_not_kept_under_the_url_of_the_client(
    make_behind: Any, options: dict[str, Any], headers: dict[str, str], is_kept: bool
) -> None:
    site = make_behind("generic", revalidate=60, **options)
    host, prefix = headers.get("X-Forwarded-Host", "a.example"), headers.get("X-Forwarded-Prefix", "")
    for _ in range(3):  # of these clients, whose responses are prepared
        site.visit("/a", host=host, scheme="https", script_name=prefix)
    fixed = ProxyFix(site.isr, x_host=1, x_prefix=1)
    for _ in range(3):
        environ = make_environ("/a", host="a.example", scheme="https", headers=headers)
        assert (kept_for(Conversation(fixed, environ).answer()) != "no-store") is is_kept
    assert kept_for(site.visit("/a", host=host, scheme="https", script_name=prefix)) != "no-store"


def test_a_page_that_forwarded_headers_alone_have_asked_for_is_not_prepared_for_the_cdn(make_behind: Any) -> None:
    site = make_behind("generic", revalidate=60, hosts=["a.example", "b.example"], canonical_url=None)
    fixed = ProxyFix(site.isr, x_host=1)
    for _ in range(3):
        environ = make_environ("/a", host="a.example", scheme="https", headers={"X-Forwarded-Host": "b.example"})
        assert kept_for(Conversation(fixed, environ).answer()) == "no-store"
    assert kept_for(site.visit("/a", host="b.example", scheme="https")) != "no-store"


def test_an_app_that_a_dispatcher_has_mounted_behind_a_proxy_is_kept(make_behind: Any) -> None:
    site = make_behind("generic", revalidate=60)
    fixed = ProxyFix(DispatcherMiddleware(NotFound(), {"/shop": site.isr}), x_prefix=1)
    for _ in range(3):
        assert kept_for(Conversation(fixed, make_environ("/shop/a", scheme="https")).answer()) != "no-store"


BROWSERS = ("Cache-Control", "public, max-age=300")


def test_a_page_for_visitors_without_cookies_is_not_kept_by_any_cdn(
    make_behind: Any, origin: Origin, kind: str
) -> None:
    origin.on("/a", answer(b"anonymous", ("Vary", "Cookie"), BROWSERS))
    site = make_behind(kind, revalidate=60)
    for cookie in ("", "", "session=1"):
        seen = site.visit("/a", cookie=cookie)
        assert kept_for(seen, kind) == "no-store"
        assert "public" not in ", ".join(seen.headers.getlist("Cache-Control"))


@pytest.mark.parametrize(
    "rule",
    [
        Rule(revalidate=60, vary=["Accept-Language"]),
        Rule(revalidate=60, cookies=["theme"]),
        Rule(revalidate=60, bypass=lambda environ: False),
    ],
    ids=["header", "cookie", "function"],
)
def test_a_page_that_depends_on_more_than_the_url_is_not_kept(
    make_behind: Any, origin: Origin, kind: str, rule: Rule
) -> None:
    origin.on("/a", answer(b"x", BROWSERS))
    site = make_behind(kind, {"/a": rule})
    assert [kept_for(site.visit("/a"), kind) for _ in range(2)] == ["no-store"] * 2


@pytest.mark.parametrize(
    "request_of",
    [
        {"cookie": "session=1"},
        {"headers": {"Authorization": "Basic eDp5"}},
        {"path": "/a?undeclared=1"},
        {"method": "POST"},
    ],
    ids=["cookie", "authorization", "query", "post"],
)
def test_an_answer_to_one_client_is_not_kept_although_the_app_says_so(
    make_behind: Any, origin: Origin, kind: str, request_of: dict[str, Any]
) -> None:
    control, tags = FIELDS[kind]
    origin.on("/a", answer(b"x", ("Vary", "Cookie"), BROWSERS, (control, "max-age=600"), (tags, "t")))
    site = make_behind(kind, revalidate=60)
    site.visit("/a")
    seen = site.visit(**{"path": "/a", **request_of})
    assert seen.label == "BYPASS"
    assert kept_for(seen, kind) == "no-store"


@pytest.mark.parametrize("reason", ["set-cookie", "no-store", "failed"])
def test_an_answer_that_is_not_stored_is_not_kept(make_behind: Any, origin: Origin, reason: str) -> None:
    header = {"set-cookie": ("Set-Cookie", "a=b"), "no-store": ("Cache-Control", "no-store"), "failed": BROWSERS}
    origin.on("/a", answer(b"x", header[reason], status="500 Oops" if reason == "failed" else "200 OK"))
    site = make_behind("generic", revalidate=60)
    assert [kept_for(site.visit("/a")) for _ in range(2)] == ["no-store"] * 2


def test_stale_pages_are_not_kept(make_behind: Any, origin: Origin) -> None:
    site = make_behind("generic", revalidate=60, expire=120)
    site.visit("/a")
    site.clock.advance(61)
    seen = site.visit_and_settle("/a")
    assert (seen.label, kept_for(seen)) == ("STALE", "no-store")
    origin.on("/a", failing(ValueError()))
    site.clock.advance(200)
    seen = site.visit("/a")
    assert (seen.label, kept_for(seen)) == ("STALE-IF-ERROR", "no-store")


def test_pages_that_are_not_proven_are_not_kept(make_behind: Any, clock: Clock) -> None:
    store = Nodes(clock)
    site = make_behind("generic", revalidate=60, store=store, coherence=0, journal=False)
    site.visit("/a")
    store.unplugged = {*store.nodes}
    seen = site.visit("/a")
    assert (seen.label, kept_for(seen)) == ("DEGRADED", "no-store")


def test_a_page_is_not_kept_if_anything_was_invalidated_while_it_was_rendered(make_behind: Any, origin: Origin) -> None:
    site = make_behind("generic", revalidate=60, journal=False)
    gate = origin.hold("/a")
    visit = site.start_visit("/a")
    gate.wait_until_entered()
    with pytest.raises(InvalidationError):
        site.isr.invalidate(paths=["/a"])
    gate.open()
    seen = visit.result()
    assert (seen.label, seen.text) == ("MISS", "/a v1")
    assert kept_for(seen) == "no-store"
    origin.let_go("/a")
    assert site.visit("/a").text == "/a v2"


def test_redirects_are_not_kept(make_behind: Any, origin: Origin) -> None:
    # Most CDNs ignore the scheme: the redirect from http to https would be served for https.
    origin.on("/a", answer(b"", ("Location", "https://example.org/a/"), status="301 Moved Permanently"))
    site = make_behind("generic", revalidate=60)
    assert [kept_for(site.visit("/a")) for _ in range(2)] == ["no-store"] * 2


@pytest.mark.parametrize("kind", ["cloudflare", "fastly", "varnish", "generic"])
def test_a_page_for_http_is_kept_only_where_the_cdn_does_not_serve_it_for_https(make_behind: Any, kind: str) -> None:
    site = make_behind(kind, revalidate=60, canonical_url=None, hosts=["example.org"])
    assert (kept_for(site.visit("/a", scheme="http"), kind) != "no-store") is (kind in ("cloudflare", "varnish"))
    assert kept_for(site.visit("/a", scheme="https"), kind) != "no-store"


def test_only_bunny_does_not_keep_pages_of_a_query(make_behind: Any, kind: str) -> None:
    site = make_behind(kind, {"/a": Rule(revalidate=60, query=["page"])})
    assert (kept_for(site.visit("/a?page=2"), kind) == "no-store") is (kind == "bunny")
    assert kept_for(site.visit("/a"), kind) != "no-store"


def test_answers_that_no_rule_covers_are_the_business_of_the_app(make_behind: Any, origin: Origin) -> None:
    origin.on("/static", answer(b"x", ("Cache-Control", "public, max-age=300"), ("Cache-Tag", "own")))
    seen = make_behind("generic", {"/a": 60}).visit("/static")
    assert seen.headers["Cache-Control"] == "public, max-age=300"
    assert seen.headers["Cache-Tag"] == "own"
    assert "CDN-Cache-Control" not in seen.headers


def test_a_missing_page_of_a_list_and_a_shell_are_not_kept(make_behind: Any, origin: Origin) -> None:
    rules = {
        "/listed/<x>": Rule(revalidate=60, paths=["/listed/a"], dynamic_params=False),
        "/shell": Rule(revalidate=60, fallback=b"shell"),
    }
    site = make_behind("generic", rules)
    assert kept_for(site.visit("/listed/b")) == "no-store"
    gate = origin.hold("/shell")
    assert kept_for(site.visit("/shell", headers={"User-Agent": "Mozilla/5.0 Firefox/128"})) == "no-store"
    gate.open()


def test_a_part_of_a_film_says_the_same_as_the_film_and_a_wrong_part_is_not_kept(
    make_behind: Any, origin: Origin
) -> None:
    origin.on("/film", answer(b"0123456789", ("Accept-Ranges", "bytes")))
    site = make_behind("generic", revalidate=60)
    site.visit("/film")
    assert site.visit("/film", headers={"Range": "bytes=0-3"}).code == 206
    seen = site.visit("/film", headers={"Range": "bytes=90-"})
    assert seen.code == 416
    assert seen.headers["Cache-Control"] == "no-store"
    assert not {"CDN-Cache-Control", "Cache-Tag"} & set(seen.headers.keys())


def test_an_app_without_a_cdn_loads_no_code_for_one_and_requests_comes_with_the_first_purge(tmp_path: Path) -> None:
    program = (
        "import sys; from wsgi_isr import ISR\n"
        "app = lambda environ, start_response: start_response('200 OK', []) and [] or [b'x']\n"
        "plain = ISR(app, revalidate=60, store='memory://')\n"
        "plain.invalidate(tags=['a'])\n"
        "print([name for name in sys.modules if name.startswith('wsgi_isr.cdn')])\n"
        "behind = ISR(app, revalidate=60, store='memory://', cdn='varnish', cdn_purge_url='http://127.0.0.1:9/',"
        " hosts=['localhost'], journal=False)\n"
        "behind._engine\n"
        "print('wsgi_isr.cdn.headers' in sys.modules, 'requests' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", "True False"], done.stderr
