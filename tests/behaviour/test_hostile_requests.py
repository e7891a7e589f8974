"""Hostile requests: a request that the cache cannot parse goes to the app, and is never a 500 by the cache."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Environ, Origin, answer
from tests.behaviour.visitor import Clock, Conversation, Seen, Site, make_environ
from wsgi_isr import Rule

LONG = 100_000

#: A rule that declares everything, so that every part of a request is parsed.
WATCHFUL = {
    "/l/<lang>": Rule(revalidate=60, vary=["Accept-Language", "User-Agent"]),
    "/c/<path:rest>": Rule(revalidate=60, cookies=["lang", "session"]),
    "/q/<path:rest>": Rule(revalidate=60, query=["q", "page"], other_query="key"),
    "/n/<int:number>": Rule(revalidate=60),
}


def body(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [HTML, ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")])
    return [b"the page"]


def hostile_site(make_site: MakeSite, watcher: str = "wsgiref") -> Site:
    return make_site(WATCHFUL, app=body, revalidate=60, watcher=watcher)


def ask(site: Site, environ_of: Callable[[], Environ]) -> None:
    """Send the same request for a cold, a warm and a stale page, by GET and by HEAD."""
    for seconds in (0, 1, 61):
        site.clock.advance(seconds)
        for method in ("GET", "HEAD"):
            environ = environ_of()
            environ["REQUEST_METHOD"] = method
            seen = site.conversation(environ).answer()
            assert seen.code in (200, 304), seen
            assert seen.body == (b"the page" if (method, seen.code) == ("GET", 200) else seen.body)
    site.settle()


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "/%FF",
        "/%FF%FE/%80",
        "/%C3",
        "/%C3%28",
        "/%ED%A0%80",
        "/%F4%90%80%80",
        "/%C0%AF",
        "/%00",
        "/a%00b",
        "/%0D%0ASet-Cookie:%20a=b",
        "/%",
        "/%zz",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/../..",
        "/./.",
        "//",
        "//evil.example/",
        "/////",
        "/\\",
        "/a b",
        "/<x>",
        "/{x}",
        "/|",
        "/%7C",
        "/'\"",
        "/;a=b",
        "/*",
        "/n/99999999999999999999999999",
        "/n/٣".encode().decode("latin-1"),
        "/n/-1",
        "/n/+1",
        "/n/0x10",
        "/n/1_000",
        "/q/%2F%2F",
        "/l/",
        "/l/a%2Fb",
    ],
)
def test_a_path_that_is_none_is_no_error(make_site: MakeSite, path: str) -> None:
    ask(hostile_site(make_site), lambda: make_environ(path))


@pytest.mark.parametrize(
    "path",
    [
        "/" + "a" * LONG,
        "/" * LONG,
        "/" + "a/" * (LONG // 2),
        "/" + "%FF" * (LONG // 3),
        "/q/" + "%C3%A9" * (LONG // 6),
        "/c/" + "../" * (LONG // 3),
        "/n/" + "1" * LONG,
    ],
    ids=["one segment", "slashes", "segments", "broken", "accents", "dots", "digits"],
)
def test_an_absurdly_long_path_is_no_error(make_site: MakeSite, path: str) -> None:
    ask(hostile_site(make_site), lambda: make_environ(path))


@pytest.mark.parametrize("path", ["", "*", "a", "http://example.org/", "example.org:443", "?", " "])
def test_a_path_that_begins_with_no_slash_is_no_error(make_site: MakeSite, path: str) -> None:
    """No server should pass on such a path; some do (OPTIONS *, absolute URLs)."""
    site = hostile_site(make_site, "nobody")
    ask(site, lambda: make_environ("/", extra={"PATH_INFO": path}))


@pytest.mark.parametrize("script_name", ["/%FF", "/a/b", "/" + "a" * LONG, "/\xff", "/a\x00"])
def test_an_odd_script_name_is_no_error(make_site: MakeSite, script_name: str) -> None:
    ask(hostile_site(make_site), lambda: make_environ("/x", script_name=script_name))


# Queries


@pytest.mark.parametrize(
    "query",
    [
        "=",
        "&",
        "&&&===&",
        "=&=&=",
        "%",
        "%%%",
        "%zz=%zz",
        "q=%",
        "q=%FF%FE",
        "%FF=%FF",
        "q=%ED%A0%80",
        "q=\xff\xfe",
        "\xff",
        "q=%00",
        "q[]=1&q[a]=2",
        "q;page",
        "q?page?",
        "q=1#fragment",
        "q='\"<script>",
        "utm_source",
        "utm_source=%FF",
        "utm_=",
        "q=" + "a" * LONG,
        "q=" + "%" * LONG,
        "q=" + "%FF" * (LONG // 3),
        "&".join(f"q={number}" for number in range(20_000)),
        "&".join(f"p{number}=1" for number in range(15_000)),
        "&".join("utm_source=1" for _ in range(10_000)),
        "&" * LONG,
        "+" * LONG,
    ],
    ids=lambda query: query[:12].encode("ascii", "backslashreplace").decode() + f"-{len(query)}",
)
@pytest.mark.parametrize("path", ["/a", "/q/a"])
def test_a_query_that_is_none_is_no_error(make_site: MakeSite, path: str, query: str) -> None:
    ask(hostile_site(make_site), lambda: make_environ(path, extra={"QUERY_STRING": query}))


# Hosts


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        ":",
        ":80",
        "example.org:",
        "example.org:x",
        "example.org:-1",
        "example.org:99999999",
        "example.org:80:80",
        "example.org:٣".encode().decode("latin-1"),
        "a b",
        "a/b",
        "a?b",
        "a#b",
        "a@b",
        "user:password@example.org",
        "http://example.org",
        "../..",
        "\\",
        "[",
        "[::1",
        "[::1]",
        "[::1]]",
        "[::1]:x",
        "[v1.x]",
        "::1",
        "\xff\xfe",
        "é.example".encode().decode("latin-1"),
        "xn--",
        "xn--\xff",
        "a,b",
        "a, b",
        "EXAMPLE.org.",
        ".",
        "..",
        "-",
        "*",
        "'\"<>",
        "\x00",
        "a\tb",
        "%00",
        "a" * LONG,
        "a." * (LONG // 2),
        ":" * LONG,
        "[" * LONG,
    ],
    ids=lambda host: host[:16].encode("ascii", "backslashreplace").decode() + f"-{len(host)}",
)
def test_a_host_that_is_none_is_no_error(make_site: MakeSite, host: str) -> None:
    ask(hostile_site(make_site), lambda: make_environ("/a", host=host))


@pytest.mark.parametrize("host", ["a/b", "a@b", "a b", "'\"<>", "\x00", "a,b", "evil.example\\@good.example"])
def test_a_host_that_is_none_is_not_stored_for_a_real_one(make_site: MakeSite, origin: Origin, host: str) -> None:
    origin.on("/a", answer(lambda environ: environ.get("HTTP_HOST", "").encode("latin-1")))
    site = make_site(revalidate=60)
    site.visit("/a", host=host)
    assert site.visit("/a").body == b"example.org"


@pytest.mark.parametrize("host", ["a" * LONG, "\xff", "a/b", "[::1"])
def test_any_host_gets_the_page_of_the_canonical_url(make_site: MakeSite, host: str) -> None:
    site = make_site(app=body, revalidate=60, canonical_url="https://www.example.org")
    site.visit("/a")
    assert site.visit("/a", host=host).label == "HIT"


@pytest.mark.parametrize(
    ("name", "port"), [("", ""), ("", "80"), ("x", ""), ("x", "http"), ("\xff", "0"), ("a b", "99999999")]
)
def test_an_odd_server_name_is_no_error(make_site: MakeSite, name: str, port: str) -> None:
    extra = {"SERVER_NAME": name, "SERVER_PORT": port}
    ask(hostile_site(make_site), lambda: make_environ("/a", host=None, extra=extra))


# Headers


HOSTILE_HEADERS = {
    "Range": [
        "bytes=0-",
        "bytes=-0",
        "bytes=-1",
        "bytes=5-1",
        "bytes=,",
        "bytes=",
        "bytes",
        "=",
        "lines=1-2",
        "bytes=0-99999999999999999999999",
        "bytes=99999999999999999999999-",
        "bytes=a-b",
        "bytes=0-0," * 10_000,
        "bytes=--1",
        "bytes=\xff-",
        "bytes=٣-".encode().decode("latin-1"),
    ],
    "If-Range": ['"', "W/", "garbage", "Sun, 06 Nov 1994 08:49:37 GMT", '"x" "y"'],
    "If-None-Match": [
        '"',
        '""',
        "W/",
        'W/"',
        "w/",
        "*, *",
        "**",
        '"a" "b"',
        '"a",',
        ",,,,",
        '"\xff"',
        '"\\"',
        "'a'",
        "\x00",
        '"' * LONG,
        '"a",' * (LONG // 4),
        'W/"a" ' * (LONG // 6),
        "," * LONG,
        "a" * LONG,
        " " * LONG,
        "W/" * (LONG // 2),
    ],
    "If-Match": ['"', "*", "garbage", '"a",' * 1000],
    "If-Modified-Since": [
        "garbage",
        "0",
        "-1",
        "Mon, 01 Jan 0000 00:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Fri, 99 Foo 99999 99:99:99 GMT",
        "Sun, 06 Nov 1994 08:49:37 +9999",
        "Sun, 06 Nov 1994 08:49:37 -99999999999999999999",
        "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
        "1 Jan 1 1:1",
        ",",
        "\xff",
        "٣ Nov 1994".encode().decode("latin-1"),
        "(" * 1000,
        '"' * LONG,
        "a" * LONG,
    ],
    "If-Unmodified-Since": ["garbage", "Mon, 01 Jan 0000 00:00:00 GMT"],
    "Cache-Control": [
        "no-cache",
        "no-store",
        "only-if-cached",
        "max-age=0",
        "max-age=-1",
        "max-age=x",
        "max-age=99999999999999999999999999",
        "max-age",
        "max-stale",
        "min-fresh=x",
        "s-maxage=60",
        '=,=,"',
        'private="',
        "\xff",
        "," * LONG,
        "a=" * (LONG // 2),
        '"' * LONG,
    ],
    "Pragma": ["no-cache", "\xff", "x" * LONG],
    "Cookie": [
        "",
        ";",
        "=",
        "=;=;=",
        ";;;;",
        "lang",
        "lang=",
        'lang="',
        'lang="\\',
        'lang="\\377"',
        'lang="\\999"',
        "lang=\xff",
        "\xff=\xff",
        "lang=%FF",
        "$Version=1; lang=de",
        "lang=de; lang=fr",
        "lang=de, session=x",
        "lang =de",
        "lang= de ",
        "lang=a;session",
        "lang=\x00",
        "lang=\t",
        "lang=" + "x" * LONG,
        "lang=1;" * (LONG // 7),
        ";" * LONG,
        '"' * LONG,
        "\\" * LONG,
        "=" * LONG,
        "_ga=" + "x" * LONG,
        " " * LONG,
    ],
    "Accept-Language": ["\xff", "", ";q=", "de;q=x", "de;q=99999999999999999", "*" * LONG, "," * LONG],
    "Accept-Encoding": ["\xff", ";q=", "gzip;q=nan", "gzip;q=-1", "br" * LONG, "," * LONG, "*;q=0"],
    "Accept": ["\xff", "*/*;q=x", "/", "," * LONG],
    "User-Agent": ["\xff", "", "\x00", "x" * LONG],
    "X-Forwarded-For": ["\xff", "," * LONG],
    "X-Forwarded-Proto": ["ftp", "\xff"],
    "X-Forwarded-Host": ["\xff", "a/b"],
    "Authorization": ["", " ", "Basic", "Basic \xff", "Bearer", "\x00", "x" * LONG],
    "Connection": ["close, \xff", "keep-alive" * 1000],
    "Transfer-Encoding": ["chunked", "chunked, chunked", "\xff"],
    "Expect": ["100-continue", "the unexpected"],
    "Upgrade": ["websocket", "h2c"],
    "X-Isr": ["HIT"],
    "Cache-Status": ["wsgi-isr; hit"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in HOSTILE_HEADERS.items() for value in values],
    ids=lambda text: text[:16].encode("ascii", "backslashreplace").decode() + f"-{len(text)}",
)
def test_a_hostile_header_is_no_error(make_site: MakeSite, name: str, value: str) -> None:
    site = hostile_site(make_site)
    for path in ("/a", "/l/de", "/c/x"):
        ask(site, lambda path=path: make_environ(path, headers={name: value}))


@pytest.mark.parametrize("value", ["no-cache", "no-store", "max-age=0", "only-if-cached"])
def test_a_visitor_cannot_make_the_app_render(make_site: MakeSite, origin: Origin, value: str) -> None:
    """A reload causes no render: otherwise any client could keep the app busy."""
    site = make_site(revalidate=60)
    site.visit("/a")
    for _ in range(3):
        seen = site.visit("/a", headers={"Cache-Control": value, "Pragma": "no-cache"})
        assert (seen.code, seen.body, origin.calls["/a"]) == (200, b"/a v1", 1)


@pytest.mark.parametrize(
    "date", ["garbage", "Sun, 06 Nov 99999999999999999999 08:49:37 GMT", "Mon, 01 Jan 0000 00:00:00 GMT", "\xff"]
)
def test_an_odd_last_modified_of_the_app_is_no_error_of_ours(make_site: MakeSite, origin: Origin, date: str) -> None:
    origin.on("/a", answer(b"x", ("Last-Modified", date)))
    site = make_site(revalidate=60)
    for _ in range(2):
        seen = site.visit("/a", headers={"If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"})
        assert (seen.code, seen.body) == (200, b"x")


def test_a_header_in_the_path_does_not_become_one(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a\r\nSet-Cookie: a=b", answer(b"x"))
    seen = make_site(revalidate=60).visit("/a%0D%0ASet-Cookie:%20a=b")
    assert "Set-Cookie" not in seen.headers


# Methods, lengths, protocols


@pytest.mark.parametrize("method", ["get", "Get", "FOO", "", "G E T", "\xff", "PROPFIND", "CONNECT", "HEAD "])
def test_an_odd_method_is_the_app_s_business(make_site: MakeSite, method: str) -> None:
    site = hostile_site(make_site, "nobody")
    seen = site.conversation(make_environ("/a", extra={"REQUEST_METHOD": method})).answer()
    assert (seen.code, seen.label) == (200, "BYPASS")


@pytest.mark.parametrize("length", ["", "0", "abc", "-1", "99999999999999999999", "1e3", " 5 ", "\xff"])
def test_an_odd_content_length_is_no_error(make_site: MakeSite, length: str) -> None:
    site = hostile_site(make_site, "werkzeug")
    for _ in range(2):
        seen = site.conversation(make_environ("/a", extra={"CONTENT_LENGTH": length})).answer()
        assert seen.code == 200


@pytest.mark.parametrize("scheme", ["ftp", "", "HTTP", "javascript", "\xff"])
def test_an_odd_scheme_is_no_error(make_site: MakeSite, scheme: str) -> None:
    site = hostile_site(make_site, "nobody")
    for _ in range(2):
        assert site.conversation(make_environ("/a", scheme=scheme)).answer().code == 200


@pytest.mark.parametrize("protocol", ["HTTP/0.9", "HTTP/1.0", "HTTP/2", "", "\xff"])
def test_an_odd_protocol_is_no_error(make_site: MakeSite, protocol: str) -> None:
    site = hostile_site(make_site)
    ask(site, lambda: make_environ("/a", extra={"SERVER_PROTOCOL": protocol}))


def test_everything_hostile_at_once_is_no_error(make_site: MakeSite) -> None:
    site = hostile_site(make_site)
    environ = make_environ(
        "/c/%FF%00?%zz&q=%FF",
        host="[::1",
        headers={name: values[-1] for name, values in HOSTILE_HEADERS.items() if name != "Authorization"},
    )
    seen = Conversation(site.isr, environ).answer()
    assert (seen.code, seen.body) == (200, b"the page")


def test_after_all_that_the_page_is_still_the_page(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(lambda environ: repr(sorted(k for k in environ if k[:5] == "HTTP_")).encode()))
    site = make_site(revalidate=60)
    clean: Seen = site.visit("/a")
    for name, values in HOSTILE_HEADERS.items():
        if name != "Authorization":
            site.visit("/a", headers={name: values[0]})
    clock.advance(61)
    site.visit_and_settle("/a", headers={"X-Forwarded-Host": "evil.example"})
    again = site.visit("/a")
    assert (again.body, again.headers["ETag"]) == (clean.body, clean.headers["ETag"])


def test_a_flood_of_hosts_for_one_page_leaves_the_memory_bounded(make_site: MakeSite) -> None:
    """With a canonical URL, each Host leads to one page: the fingerprints of hits are as long as clients like."""
    limit = 1 << 20
    site = make_site(
        app=answer(b"x"), revalidate=600, canonical_url="https://example.com", local_cache_bytes=limit, watcher="nobody"
    )
    site.visit("/a")
    tracemalloc.start()
    try:
        for number in range(1000):
            assert site.visit("/a", headers={"Host": f"{number}.{'a' * 8000}"}).label == "HIT"
            site.events.clear()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 2 * limit


def test_a_flood_of_addresses_leaves_the_memory_bounded(make_site: MakeSite) -> None:
    """Random URLs evict each other: 10 MB of pages go through a store and an L1 of under 1 MB."""
    site = make_site(
        app=answer(lambda environ: environ["PATH_INFO"].encode() * 2000),
        revalidate=60,
        local_cache_bytes=256 * 1024,
        store="memory://?max_bytes=262144",
    )
    site.visit("/first")
    tracemalloc.start()
    try:
        for number in range(1000):
            assert site.visit(f"/{number}").label == "MISS"
            site.events.clear()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 2_000_000
