"""No visitor gets another's page: the request that a render sees, the page key, and bypassed requests."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import pytest
from werkzeug.http import parse_cookie

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Environ, Handler, Origin, answer, body_of
from tests.behaviour.visitor import Clock, Seen, all_at_once
from wsgi_isr import Rule
from wsgi_isr.stores.memory import MemoryStore


def greeting(environ: Environ) -> bytes:
    return f"hello {environ.get('HTTP_COOKIE') or 'stranger'}".encode("latin-1")


#: A page that looks at the session, as Flask and Django answer.
SESSION_PAGE: Handler = answer(greeting, ("Vary", "Cookie"))


def all_text(environ: Environ) -> str:
    """Return everything that a render can see, as text."""
    watched = {key: value for key, value in environ.items() if key != "the very same"}
    return repr(watched)


# The part of a request that a render may see

SECRETS = {
    "Cookie": "session=secret-7f3a",
    "X-Forwarded-For": "secret-7f3a",
    "X-Forwarded-Host": "secret-7f3a.example",
    "X-Forwarded-Proto": "secret-7f3a",
    "X-Forwarded-Prefix": "/secret-7f3a",
    "X-Real-Ip": "secret-7f3a",
    "Forwarded": "for=secret-7f3a",
    "Accept": "secret-7f3a/plain",
    "Accept-Language": "secret-7f3a",
    "Accept-Encoding": "secret-7f3a",
    "Accept-Charset": "secret-7f3a",
    "User-Agent": "secret-7f3a",
    "Referer": "http://secret-7f3a.example/",
    "Origin": "http://secret-7f3a.example",
    "From": "secret-7f3a@example.org",
    "If-None-Match": '"secret-7f3a"',
    "If-Match": '"secret-7f3a"',
    "If-Modified-Since": "secret-7f3a",
    "If-Range": '"secret-7f3a"',
    "Range": "bytes=0-1;secret-7f3a",
    "Cache-Control": "no-cache, secret-7f3a",
    "Pragma": "secret-7f3a",
    "Proxy": "http://secret-7f3a.example",
    "Proxy-Authorization": "Basic secret-7f3a",
    "X-Http-Method-Override": "secret-7f3a",
    "X-Original-Url": "/secret-7f3a",
    "X-Requested-With": "secret-7f3a",
    "X-Remote-User": "secret-7f3a",
    "Save-Data": "secret-7f3a",
    "Dnt": "secret-7f3a",
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_header_that_no_rule_declares_never_reaches_a_render(make_site: MakeSite, origin: Origin, name: str) -> None:
    site = make_site(revalidate=60)
    seen = site.visit("/a", headers={name: SECRETS[name]})
    assert (seen.code, seen.label) == (200, "MISS")
    assert "secret-7f3a" not in all_text(origin.last("/a"))


@pytest.mark.parametrize(
    "name",
    [
        "REMOTE_ADDR",
        "REMOTE_PORT",
        "REMOTE_HOST",
        "REMOTE_IDENT",
        "SSL_CLIENT_S_DN",
        "SSL_CLIENT_CERT",
        "RAW_URI",
        "REQUEST_URI",
        "UNENCODED_URL",
        "PATH_TRANSLATED",
        "CONTENT_TYPE",
        "some_framework.user",
        "beaker.session",
        "werkzeug.request",
        "wsgi.early_hints",
    ],
)
def test_what_a_server_says_about_the_visitor_never_reaches_a_render(
    make_site: MakeSite, origin: Origin, name: str
) -> None:
    site = make_site(revalidate=60)
    assert site.visit("/a", extra={name: "/a?secret-7f3a"}).label == "MISS"
    assert "secret-7f3a" not in all_text(origin.last("/a"))


def test_a_visitor_whom_the_server_knows_by_name_leaves_no_trace_in_the_cache(
    make_site: MakeSite, origin: Origin
) -> None:
    origin.on("/a", answer(lambda environ: f"hello {environ.get('REMOTE_USER', 'stranger')}".encode()))
    site = make_site(revalidate=60)
    assert site.visit("/a", extra={"REMOTE_USER": "alice"}).text in ("hello alice", "hello stranger")
    assert site.visit("/a").text == "hello stranger"
    assert site.visit("/a", extra={"REMOTE_USER": "bob"}).text in ("hello bob", "hello stranger")


def test_the_body_of_a_get_never_reaches_a_render(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(body_of))
    seen = make_site(revalidate=60).visit("/a", body=b"user=alice")
    assert seen.body == b""


def test_a_render_cannot_read_a_body_even_if_it_ignores_the_length(make_site: MakeSite, origin: Origin) -> None:
    def read(environ: Environ) -> bytes:
        stream: io.BytesIO = environ["wsgi.input"]
        return stream.read(100) + stream.readline() + b"".join(stream.readlines())

    origin.on("/a", answer(read))
    assert make_site(revalidate=60).visit("/a", body=b"user=alice").body == b""


def test_a_render_sees_the_request_that_its_key_describes(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["page"], vary=["Accept-Language"], cookies=["lang"])})
    site.visit(
        "/a?page=2&utm_source=x",
        script_name="/app",
        host="example.org:8080",
        scheme="https",
        headers={"Accept-Language": "de"},
        cookie="lang=de; session=secret",
    )
    seen = origin.last("/a")
    assert (seen["REQUEST_METHOD"], seen["wsgi.url_scheme"]) == ("GET", "https")
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/app", "/a", "page=2")
    assert seen["HTTP_HOST"] == "example.org:8080"
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("example.org", "8080")
    assert (seen["HTTP_ACCEPT_LANGUAGE"], seen["HTTP_COOKIE"]) == ("de", "lang=de")


def test_head_is_rendered_as_get(make_site: MakeSite, origin: Origin) -> None:
    make_site(revalidate=60).visit("/a", method="HEAD")
    assert origin.last("/a")["REQUEST_METHOD"] == "GET"


def test_the_background_render_of_a_page_sees_what_the_first_one_saw(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a", headers={"User-Agent": "one"}, cookie="a=1")
    clock.advance(61)
    site.visit_and_settle("/a", headers={"User-Agent": "two"}, cookie="b=2", extra={"REMOTE_ADDR": "::1"})
    first, second = (
        {k: v for k, v in environ.items() if k not in ("wsgi.input", "wsgi.errors", "the very same")}
        for environ in origin.seen["/a"]
    )
    assert first == second


def test_what_a_render_writes_into_its_environ_is_not_there_for_the_next_one(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    def marked(environ: Environ) -> bytes:
        before = environ.get("app.mark", "clean")
        environ["app.mark"] = "used"
        return str(before).encode()

    origin.on("/a", answer(marked))
    site = make_site(revalidate=60)
    assert site.visit("/a").body == b"clean"
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a").body == b"clean"


def test_a_cached_render_leaves_the_visitors_environ_alone(make_site: MakeSite, origin: Origin) -> None:
    def marked(environ: Environ) -> bytes:
        environ["app.mark"] = "used"
        return b"x"

    origin.on("/a", answer(marked))
    talk = make_site(revalidate=60).begin("/a", cookie="a=b")
    talk.close()
    assert "app.mark" not in talk.environ
    assert talk.environ["HTTP_COOKIE"] == "a=b"


# Straight to the app


def test_authorization_goes_straight_to_the_app(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(lambda environ: environ.get("HTTP_AUTHORIZATION", "nobody").encode()))
    site = make_site(revalidate=60)
    assert site.visit("/a").body == b"nobody"
    seen = site.visit("/a", headers={"Authorization": "Bearer alice"})
    assert (seen.body, seen.label) == (b"Bearer alice", "BYPASS")
    assert "authorization" in seen.cache_status.lower()
    assert site.visit("/a").body == b"nobody"


def test_the_answer_to_authorization_is_never_stored(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(lambda environ: environ.get("HTTP_AUTHORIZATION", "nobody").encode()))
    site = make_site(revalidate=60)
    site.visit("/a", headers={"Authorization": "Bearer alice"})
    assert site.visit("/a").body == b"nobody"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_go_straight_to_the_app(make_site: MakeSite, origin: Origin, method: str) -> None:
    site = make_site(revalidate=60)
    seen = site.visit("/a", method=method)
    assert (seen.label, origin.last("/a")["REQUEST_METHOD"]) == ("BYPASS", method)
    assert site.visit("/a").label == "MISS"


def test_a_post_reaches_the_app_with_its_body(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(body_of))
    seen = make_site(revalidate=60).visit("/a", method="POST", body=b"text=hello")
    assert seen.body == b"text=hello"


def test_a_bypassed_request_reaches_the_app_with_its_very_own_environ(make_site: MakeSite, origin: Origin) -> None:
    talk = make_site(revalidate=60).begin(
        "/a?x=1", headers={"Authorization": "x", "X-Forwarded-For": "192.0.2.1"}, extra={"REMOTE_USER": "a"}
    )
    talk.close()
    before = origin.last("/a")
    assert before["the very same"] is talk.environ
    assert before["HTTP_X_FORWARDED_FOR"] == "192.0.2.1"
    assert (before["REMOTE_USER"], before["QUERY_STRING"]) == ("a", "x=1")


def test_bypass_decides_by_the_request(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, bypass=lambda environ: "HTTP_X_PREVIEW" in environ)
    site.visit("/a")
    seen = site.visit("/a", headers={"X-Preview": "1"})
    assert (seen.body, seen.label) == (b"/a v2", "BYPASS")
    assert site.visit("/a").body == b"/a v1"


def test_a_rule_has_a_bypass_of_its_own(make_site: MakeSite) -> None:
    site = make_site({"/a": Rule(revalidate=60, bypass=lambda _: True)}, revalidate=60)
    assert (site.visit("/a").label, site.visit("/b").label) == ("BYPASS", "MISS")


# Query parameters


def test_an_undeclared_parameter_goes_straight_to_the_app(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    seen = site.visit("/a?q=1")
    assert (seen.label, origin.last("/a")["QUERY_STRING"]) == ("BYPASS", "q=1")
    assert "query" in seen.cache_status
    assert site.visit("/a").label == "MISS"


def test_other_query_ignore_drops_undeclared_parameters(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, other_query="ignore")
    site.visit("/a?q=1")
    assert origin.last("/a")["QUERY_STRING"] == ""
    assert site.visit("/a?q=2").label == "HIT"


def test_other_query_key_makes_a_page_of_each_query(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, other_query="key")
    assert site.visit("/a?q=1").body == b"/a v1"
    assert site.visit("/a?q=2").body == b"/a v2"
    assert site.visit("/a?q=1").body == b"/a v1"
    assert origin.seen["/a"][1]["QUERY_STRING"] == "q=2"


def test_a_declared_parameter_makes_a_page_of_each_value(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["page"])})
    assert site.visit("/a?page=1").body == b"/a v1"
    assert site.visit("/a?page=2").body == b"/a v2"
    assert site.visit("/a").body == b"/a v3"
    assert site.visit("/a?page=2").body == b"/a v2"


def test_declared_parameters_make_the_same_page_in_any_order(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["x", "y"])})
    site.visit("/a?x=1&y=2")
    assert site.visit("/a?y=2&x=1").label == "HIT"


def test_repeated_values_are_kept_in_their_order(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["x"])})
    site.visit("/a?x=1&x=2")
    assert origin.last("/a")["QUERY_STRING"] == "x=1&x=2"
    assert site.visit("/a?x=2&x=1").label == "MISS"
    assert origin.last("/a")["QUERY_STRING"] == "x=2&x=1"
    assert site.visit("/a?x=1").label == "MISS"


def test_a_declared_parameter_next_to_an_undeclared_one_is_not_enough(make_site: MakeSite) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["page"])})
    assert site.visit("/a?page=1&q=2").label == "BYPASS"


def test_with_ignore_the_declared_parameters_still_count(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["page"], other_query="ignore")})
    site.visit("/a?q=2&page=1")
    assert origin.last("/a")["QUERY_STRING"] == "page=1"
    assert site.visit("/a?page=2").label == "MISS"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x=1%26y%3D2", "x=1&y=2"),
        ("x=1&y=", "x=1"),
        ("x=a%00b", "x=ab"),
        ("x=%2B", "x=+"),
        ("x=%25", "x=%2525"),
        ("x=A", "x=a"),
        ("x=%C3%A9", "x=e"),
        ("x=%FF", "x=%FE"),
        ("x=%EF%BF%BD", "x=%FF"),
        ("x=1;y=2", "x=1&y=2"),
        ("x=1&x=2", "x=1%26x=2"),
        ("x=1%0Ay=2", "x=1&y=2"),
        ("x", "y"),
    ],
)
def test_different_queries_are_different_pages(make_site: MakeSite, origin: Origin, one: str, other: str) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["x", "y"])})
    assert site.visit(f"/a?{one}").body == b"/a v1"
    assert site.visit(f"/a?{other}").body == b"/a v2"


@pytest.mark.parametrize(
    "query", ["x=%FF", "x=%C3%A9", "x=a%20b", "x=%26", "x=%3D", "x=%25", "x=%2B", "x=", "x=%00", "%78=1"]
)
def test_a_declared_value_reaches_the_app_as_it_was_sent(make_site: MakeSite, origin: Origin, query: str) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["x"])})
    assert site.visit(f"/a?{query}").label == "MISS"
    got = parse_qsl(origin.last("/a")["QUERY_STRING"], keep_blank_values=True, encoding="latin-1")
    assert got == parse_qsl(query, keep_blank_values=True, encoding="latin-1")


@pytest.mark.parametrize(
    "query",
    ["utm_source=x", "utm_campaign=a&utm_medium=b", "gclid=1", "fbclid=1", "utm_whatever=1"],
)
def test_tracking_parameters_are_dropped(make_site: MakeSite, origin: Origin, query: str) -> None:
    site = make_site(revalidate=60)
    site.visit(f"/a?{query}")
    assert origin.last("/a")["QUERY_STRING"] == ""
    assert site.visit("/a").label == "HIT"


def test_tracking_parameters_next_to_declared_ones_are_dropped(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["page"])})
    site.visit("/a?utm_source=x&page=2&gclid=y")
    assert origin.last("/a")["QUERY_STRING"] == "page=2"
    assert site.visit("/a?page=2").label == "HIT"


def test_a_tracking_parameter_that_a_rule_declares_counts(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["utm_source"])})
    site.visit("/a?utm_source=x")
    assert origin.last("/a")["QUERY_STRING"] == "utm_source=x"
    assert site.visit("/a?utm_source=y").label == "MISS"


def test_tracking_parameters_make_no_page_of_their_own_with_other_query_key(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site(revalidate=60, other_query="key")
    site.visit("/a?q=1&utm_source=x")
    assert site.visit("/a?q=1&utm_source=y").label == "HIT"


def test_an_empty_query_is_no_query(make_site: MakeSite) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.visit("/a?").label == "HIT"


# Paths, script names, hosts, schemes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a%3Fx=1", "/a"),
        ("/a%2520b", "/a%20b"),
        ("/a%23b", "/a"),
        ("/A", "/a"),
        ("/a%00", "/a"),
        ("/a%0A", "/a"),
        ("/%FF", "/%FE"),
        ("/%C3%A9", "/%E9"),
        ("/a;x=1", "/a"),
        ("/a%20", "/a"),
    ],
)
def test_different_paths_are_different_pages(make_site: MakeSite, origin: Origin, one: str, other: str) -> None:
    site = make_site(revalidate=60)
    for path in (one, other):
        plain = unquote_to_bytes(path).decode("latin-1")
        origin.on(plain, answer(lambda environ: environ["PATH_INFO"].encode("latin-1")))
    for _ in range(2):
        assert [site.visit(path).body for path in (one, other)] == [*map(unquote_to_bytes, (one, other))]


def test_a_question_mark_in_a_path_is_not_a_query(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, other_query="key")
    site.visit("/a%3Fx=1")
    assert site.visit("/a?x=1").label == "MISS"


def test_where_the_script_name_ends_makes_another_page(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    assert site.visit("/y/z", script_name="/x").label == "MISS"
    assert site.visit("/x/y/z").label == "MISS"
    assert site.visit("/z", script_name="/x/y").label == "MISS"
    assert site.visit("/y/z", script_name="/x").label == "HIT"


def test_each_host_has_its_own_page(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(lambda environ: environ["HTTP_HOST"].encode()))
    site = make_site(revalidate=60)
    hosts = ["one.example", "two.example", "one.example:8080", "xn--bcher-kva.example", "[::1]:8000"]
    for _ in range(2):
        assert [site.visit("/a", host=host).text for host in hosts] == hosts


def test_a_host_cannot_reach_into_the_path(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/b", answer(lambda environ: environ["HTTP_HOST"].encode()))
    site = make_site(revalidate=60)
    site.visit("/b", host="example.org/a")
    seen = site.visit("/a/b", host="example.org")
    assert seen.body == b"/a/b v1"


def test_a_forwarded_host_changes_nothing(make_site: MakeSite, origin: Origin) -> None:
    def link(environ: Environ) -> bytes:
        return environ.get("HTTP_X_FORWARDED_HOST", environ["HTTP_HOST"]).encode()

    origin.on("/a", answer(link))
    site = make_site(revalidate=60)
    seen = site.visit("/a", headers={"X-Forwarded-Host": "evil.example"})
    assert seen.body == b"example.org"
    assert site.visit("/a").body == b"example.org"


def test_http_and_https_are_different_pages(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(lambda environ: environ["wsgi.url_scheme"].encode()))
    site = make_site(revalidate=60)
    for _ in range(2):
        assert [site.visit("/a", scheme=scheme).text for scheme in ("http", "https")] == ["http", "https"]


def test_without_a_host_header_the_servers_name_counts(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    site.visit("/a", host=None, extra={"SERVER_NAME": "one.example", "SERVER_PORT": "8000"})
    seen = origin.last("/a")
    assert seen.get("HTTP_HOST", "one.example:8000") == "one.example:8000"
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("one.example", "8000")
    other = site.visit("/a", host=None, extra={"SERVER_NAME": "two.example", "SERVER_PORT": "8000"})
    assert other.label == "MISS"


def test_canonical_url_makes_one_page_of_all_hosts(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, canonical_url="https://www.example.com")
    site.visit("/a", host="evil.example")
    seen = origin.last("/a")
    assert (seen["wsgi.url_scheme"], seen["HTTP_HOST"]) == ("https", "www.example.com")
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("www.example.com", "443")
    assert site.visit("/a", host="example.org", scheme="https").label == "HIT"


# Headers and cookies that a rule declares


def test_a_declared_header_makes_a_page_of_each_value(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(lambda environ: environ.get("HTTP_ACCEPT_LANGUAGE", "none").encode()))
    site = make_site({"/a": Rule(revalidate=60, vary=["accept-language"])})
    for _ in range(2):
        texts = [site.visit("/a", headers={"Accept-Language": lang}).text for lang in ("de", "fr")]
        assert texts == ["de", "fr"]
    assert site.visit("/a").body == b"none"


def test_a_narrowed_header_makes_few_pages_and_the_app_sees_the_narrow_value(
    make_site: MakeSite, origin: Origin
) -> None:
    rule = Rule(revalidate=60, vary={"Accept-Language": lambda value: "de" if value[:2] == "de" else "en"})
    site = make_site({"/a": rule})
    site.visit("/a", headers={"Accept-Language": "de-AT,de;q=0.9,x-7f3a"})
    assert origin.last("/a")["HTTP_ACCEPT_LANGUAGE"] == "de"
    assert site.visit("/a", headers={"Accept-Language": "de-CH"}).label == "HIT"
    assert site.visit("/a", headers={"Accept-Language": "fr"}).label == "MISS"
    assert site.visit("/a").label == "HIT"


def test_an_answer_may_vary_on_what_its_rule_declares(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", ("Vary", "accept-LANGUAGE, Accept-Encoding")))
    site = make_site({"/a": Rule(revalidate=60, vary=["Accept-Language"])})
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]


def test_a_declared_header_cannot_pose_as_another_one(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, vary=["X-One", "X-Two"])})
    requests = [
        {"X-One": "1", "X-Two": "2"},
        {"X-One": "1\\nX-Two: 2"},
        {"X-One": "1, X-Two=2"},
        {"X-One": "12"},
        {"X-Two": "12"},
        {"X-One": "1\x002"},
        {"X-One": ""},
        {},
    ]
    bodies = [site.visit("/a", headers=headers).body for headers in requests]
    # An empty header and none may be the same page.
    assert len(set(bodies[:-1])) == len(requests) - 1


def test_a_declared_cookie_makes_a_page_of_each_value(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(greeting))
    site = make_site({"/a": Rule(revalidate=60, cookies=["lang"])})
    for _ in range(2):
        seen = [site.visit("/a", cookie=f"session=s3cret; lang={lang}; x=y").text for lang in ("de", "fr")]
        assert seen == ["hello lang=de", "hello lang=fr"]
    assert site.visit("/a", cookie="session=s3cret").text == "hello stranger"


@pytest.mark.parametrize(
    "cookie",
    [
        "lang=de",
        'lang="a b"',
        'lang="a\\054b"',
        'lang="a\\"b"',
        "lang=a%20b",
        "lang=a=b=c",
        "lang=",
        "lang=\xc3\xa9",
        "lang=de; lang=fr",
        "other=1;lang=de;more=2",
        "lang=a,b",
        "lang={json:[1]}",
    ],
)
def test_a_declared_cookie_reaches_the_app_with_the_value_that_was_sent(
    make_site: MakeSite, origin: Origin, cookie: str
) -> None:
    site = make_site({"/a": Rule(revalidate=60, cookies=["lang"])})
    assert site.visit("/a", cookie=cookie).code == 200
    sent, got = (parse_cookie(header) for header in (cookie, origin.last("/a").get("HTTP_COOKIE", "")))
    assert got.getlist("lang")[:1] == sent.getlist("lang")[:1]
    assert set(got) <= {"lang"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a=1; b=2", 'a="1; b=2"'),
        ("a=1; b=2", "a=1%3B b=2"),
        ("a=12", "b=12"),
        ("a=", "b="),
        ("a=1=2", "a=1"),
        ("a=x", "a=X"),
    ],
)
def test_different_declared_cookies_are_different_pages(
    make_site: MakeSite, origin: Origin, one: str, other: str
) -> None:
    site = make_site({"/a": Rule(revalidate=60, cookies=["a", "b"])})
    first, second = site.visit("/a", cookie=one), site.visit("/a", cookie=other)
    assert first.body != second.body


def test_a_session_page_with_a_declared_cookie_is_no_ones_but_the_sessions(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site({"/a": Rule(revalidate=60, cookies=["lang"])})
    for _ in range(2):
        assert site.visit("/a", cookie="lang=de; session=alice").text == "hello lang=de; session=alice"
        assert site.visit("/a", cookie="session=bob; lang=de").text == "hello session=bob; lang=de"
        assert site.visit("/a", cookie="lang=de").text == "hello lang=de"
        assert site.visit("/a").text == "hello stranger"


# Sessions


def test_a_page_that_looks_at_no_cookie_is_shared_by_all_who_send_some(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    site.visit("/a", cookie="session=alice")
    seen = site.visit("/a", cookie="session=bob")
    assert (seen.body, seen.label, origin.calls["/a"]) == (b"/a v1", "HIT", 1)


def test_a_session_page_is_served_to_the_anonymous_from_the_cache(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    assert [site.visit("/a").label for _ in range(3)] == ["MISS", "HIT", "HIT"]
    assert origin.calls["/a"] == 1


def test_a_session_page_is_passed_through_to_who_sends_a_cookie(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    site.visit("/a")
    seen = site.visit("/a", cookie="session=alice")
    assert (seen.text, seen.label) == ("hello session=alice", "BYPASS")
    assert seen.cache_status == 'wsgi-isr; fwd=bypass; detail="cookie"'


def test_the_very_first_visitor_of_a_session_page_gets_their_own(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    assert site.visit("/a", cookie="session=alice").text == "hello session=alice"
    assert site.visit("/a").text == "hello stranger"


def test_visitors_who_share_a_cold_render_of_a_session_page_get_their_own(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    names = ["alice", "bob", "", "carol", "", "dave"]
    seen = all_at_once(6, lambda number: site.visit("/a", cookie=names[number] and f"session={names[number]}"))
    expected = ["hello " + (f"session={name}" if name else "stranger") for name in names]
    assert sorted(visit.text for visit in seen) == sorted(expected)


def test_a_page_that_begins_to_look_at_the_session_is_no_longer_given_to_who_has_one(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", SESSION_PAGE)
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a", cookie="session=alice").text == "hello session=alice"
    assert site.visit("/a").text == "hello stranger"


def test_an_expired_page_that_begins_to_look_at_the_session_is_not_given_to_who_has_one(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    origin.on("/a", SESSION_PAGE)
    clock.advance(61)
    assert site.visit("/a", cookie="session=alice").text == "hello session=alice"


def test_a_stale_session_page_is_still_passed_through_to_who_sends_a_cookie(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(61)
    assert site.visit("/a", cookie="session=alice").text == "hello session=alice"


def test_another_instance_knows_that_a_page_looks_at_cookies(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", SESSION_PAGE)
    store = MemoryStore(clock=clock)
    make_site(revalidate=60, store=store).visit("/a")
    other = make_site(revalidate=60, store=store)
    assert other.visit("/a", cookie="session=alice").text == "hello session=alice"
    assert other.visit("/a").label == "HIT"


@pytest.mark.parametrize("vary", ["Cookie", "cookie", "Accept-Encoding, Cookie", "COOKIE , accept-encoding"])
def test_vary_cookie_is_recognised_in_any_spelling(make_site: MakeSite, origin: Origin, vary: str) -> None:
    origin.on("/a", answer(greeting, ("Vary", vary)))
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.visit("/a").label == "HIT"
    assert site.visit("/a", cookie="session=alice").text == "hello session=alice"


def test_vary_cookie_is_recognised_in_a_second_header(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(greeting, ("Vary", "Accept-Encoding"), ("Vary", "Cookie")))
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.visit("/a", cookie="session=alice").text == "hello session=alice"


@pytest.mark.parametrize("cookie", ["_ga=GA1.2.3.4", "_gid=x", "_ga_ABC123=x", "_ga=1; _gid=2; _ga_X=3"])
def test_analytics_cookies_are_no_session(make_site: MakeSite, origin: Origin, cookie: str) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    site.visit("/a")
    seen = site.visit("/a", cookie=cookie)
    assert (seen.text, seen.label) == ("hello stranger", "HIT")


def test_an_analytics_cookie_does_not_hide_a_session(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    site.visit("/a")
    seen = site.visit("/a", cookie="_ga=1; session=alice; _gid=2")
    assert seen.text == "hello _ga=1; session=alice; _gid=2"


@pytest.mark.parametrize("cookie", ["x_ga=1", "ga=1", "session=_ga", "_GA=1", "_g=1", "x=_ga=1"])
def test_a_cookie_that_only_looks_like_analytics_counts(make_site: MakeSite, origin: Origin, cookie: str) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.visit("/a", cookie=cookie).text == f"hello {cookie}"


def test_ignore_cookies_names_others(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60, ignore_cookies=["consent", "ab_*"])
    site.visit("/a")
    assert site.visit("/a", cookie="consent=yes; ab_test=2").label == "HIT"
    assert site.visit("/a", cookie="session=alice").text == "hello session=alice"


@pytest.mark.parametrize("cookie", ["garbage", "a", ";;;", "session", '"', "a=b=c", "\xff=1", " "])
def test_a_broken_cookie_header_is_passed_through_or_ignored_and_never_shared(
    make_site: MakeSite, origin: Origin, cookie: str
) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.visit("/a", cookie=cookie).code == 200
    assert site.visit("/a").text == "hello stranger"


def members_only(status: str) -> Handler:
    """Return a page that works only with a session."""

    def handler(environ: Environ, start_response: Any) -> list[bytes]:
        cookie = environ.get("HTTP_COOKIE")
        start_response("200 OK" if cookie else status, [HTML, ("Vary", "Cookie"), ("Location", "/login")])
        return [greeting(environ)]

    return handler


@pytest.mark.parametrize(
    "status",
    ["404 Not Found", "302 Found", "301 Moved Permanently", "401 Unauthorized", "403 Forbidden", "410 Gone"],
)
def test_a_page_for_members_is_there_for_them_whatever_the_anonymous_get(
    make_site: MakeSite, origin: Origin, status: str
) -> None:
    origin.on("/a", members_only(status))
    site = make_site(revalidate=60)
    for _ in range(2):
        for name in ("alice", "bob"):
            seen = site.visit("/a", cookie=f"session={name}")
            assert (seen.code, seen.text) == (200, f"hello session={name}")
        assert site.visit("/a").status == status


def test_a_page_that_answers_500_without_a_session_works_for_who_has_one(make_site: MakeSite, origin: Origin) -> None:
    """``session["name"]`` of a page for members: the anonymous render raises a KeyError."""
    origin.on("/a", members_only("500 Internal Server Error"))
    site = make_site(revalidate=60)
    for _ in range(3):
        for name in ("alice", "bob"):
            seen = site.visit("/a", cookie=f"session={name}")
            assert (seen.code, seen.text) == (200, f"hello session={name}")


def test_a_page_that_raises_without_a_session_works_for_who_has_one(make_site: MakeSite, origin: Origin) -> None:
    def handler(environ: Environ, start_response: Any) -> list[bytes]:
        name = environ["HTTP_COOKIE"]
        start_response("200 OK", [HTML, ("Vary", "Cookie")])
        return [name.encode()]

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    for _ in range(3):
        for name in ("alice", "bob"):
            assert site.visit("/a", cookie=f"session={name}").text == f"session={name}"


def test_a_session_page_whose_render_begins_to_fail_still_works_for_who_has_a_session(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    origin.on("/a", members_only("500 Internal Server Error"))
    clock.advance(61)
    for _ in range(2):
        assert site.visit("/a", cookie="session=alice").text == "hello session=alice"
        assert site.visit("/a").text == "hello stranger"


def test_interleaved_visitors_never_see_each_other(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)
    for turn in range(300):
        for cookie in ("session=alice", "", "session=bob"):
            assert site.visit("/a", cookie=cookie).text == f"hello {cookie or 'stranger'}"
        clock.advance(turn % 40)
    site.settle()


def test_visitors_in_threads_never_see_each_other(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", SESSION_PAGE)
    site = make_site(revalidate=60)

    def ask(number: int) -> Seen:
        for turn in range(20):
            cookie = f"session=v{number}t{turn}" if turn % 3 else ""
            seen = site.visit("/a", cookie=cookie)
            assert seen.text == f"hello {cookie or 'stranger'}"
        return seen

    all_at_once(10, ask)


# Set-Cookie


def login(environ: Environ, start_response: Any) -> list[bytes]:
    name = environ.get("HTTP_COOKIE") or "new"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", f"session={name}")])
    return [name.encode()]


def test_a_page_that_sets_a_cookie_is_made_for_each_visitor(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", login)
    site = make_site(revalidate=60)
    for _ in range(2):
        for cookie in ("a=1", "", "b=2"):
            seen = site.visit("/a", cookie=cookie)
            assert seen.text == (cookie or "new")
            assert seen.headers["Set-Cookie"] == f"session={cookie or 'new'}"


def test_a_stored_page_that_begins_to_set_a_cookie_gives_nobody_anothers(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    serial = iter(range(100))

    def numbered(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", f"id={next(serial)}")])
        return [b"x"]

    origin.on("/a", numbered)
    given: list[str] = []
    for _ in range(20):
        clock.advance(61)
        given += site.visit_and_settle("/a").headers.getlist("Set-Cookie")
    assert len(set(given)) == len(given)


def test_visitors_who_share_a_cold_render_that_sets_a_cookie_get_their_own(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", login)
    site = make_site(revalidate=60)
    seen = all_at_once(6, lambda number: site.visit("/a", cookie=f"v={number}"))
    assert sorted(visit.headers["Set-Cookie"] for visit in seen) == [f"session=v={n}" for n in range(6)]


def test_visitors_of_two_instances_who_share_a_cold_render_that_sets_a_cookie_get_their_own(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store) for _ in range(2))
    origin.on("/a", login)
    gate = origin.hold("/a")
    first = one.start_visit("/a", cookie="v=1")
    gate.wait_until_entered()
    clock.on_pause = lambda _: gate.open()
    assert two.visit("/a", cookie="v=2").text == "v=2"
    assert first.result().text == "v=1"
