"""Response headers: Cache-Control, Age, Cache-Status, X-ISR, ETag and 304, HEAD, the app's own headers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Environ, Origin, answer
from tests.behaviour.visitor import ASKED_EACH_TIME, Clock, Site
from wsgi_isr import Rule

LAST_MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"


# Cache-Control and Age


@pytest.mark.parametrize("visits", [1, 2])
def test_the_lifetime_of_a_page_is_that_of_its_rule_and_no_business_of_browsers(
    make_site: MakeSite, visits: int
) -> None:
    site = make_site(revalidate=60, expire=360)
    seen = [site.visit("/a") for _ in range(visits)][-1]
    assert site.lifetime("/a") == (60, 360)
    assert seen.directives == ASKED_EACH_TIME


def test_without_expire_a_page_may_be_stale_for_long(make_site: MakeSite) -> None:
    site = make_site(revalidate=60)
    assert site.visit("/a").directives == ASKED_EACH_TIME
    assert site.lifetime("/a").expire is None


def test_a_page_that_is_fresh_for_ever_is_asked_for_each_time_all_the_same(make_site: MakeSite) -> None:
    site = make_site(revalidate=False)
    assert site.visit("/a").directives == ASKED_EACH_TIME
    assert site.lifetime("/a").revalidate is None


def test_there_is_one_cache_control_header_in_place_of_the_apps(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", ("Cache-Control", "public"), ("cache-control", "max-age=5")))
    site = make_site(revalidate=60)
    for _ in range(2):
        (value,) = site.visit("/a").headers.getlist("Cache-Control")
        assert value == "public, max-age=5"
    assert site.lifetime("/a").revalidate == 60


@pytest.mark.parametrize("revalidate", [0.5, 1.5, 59.9])
def test_a_fraction_of_a_second_is_no_lifetime_for_a_cdn_either(make_site: MakeSite, revalidate: float) -> None:
    site = make_site(revalidate=revalidate)
    assert site.visit("/a").directives == ASKED_EACH_TIME
    assert site.lifetime("/a").revalidate == revalidate


@pytest.mark.parametrize(("passed", "age"), [(0, 0), (0.99, 0), (1, 1), (17.5, 17), (59, 59), (60, 60), (500, 500)])
def test_age_is_true(make_site: MakeSite, clock: Clock, passed: float, age: int) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(passed)
    assert site.visit("/a").age == age


def test_a_page_rendered_now_is_of_age_0(make_site: MakeSite) -> None:
    assert make_site(revalidate=60).visit("/a").age == 0


def test_a_clock_that_was_set_back_makes_no_negative_age(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(-3600)
    assert site.visit("/a").age >= 0


def test_a_page_from_the_future_is_not_fresh_for_ever(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    """The clock was an hour ahead at the render: the page is regenerated, an hour late at most."""
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(-3600)
    site.visit_and_settle("/a")
    clock.advance(3661)
    site.visit_and_settle("/a")
    assert site.visit("/a").body != b"/a v1"


def test_there_is_one_age_even_if_the_app_sends_one(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(b"x", ("Age", "7")))
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(5)
    assert len(site.visit("/a").headers.getlist("Age")) == 1


def test_a_stale_page_is_kept_by_no_cdn(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(75)
    seen = site.visit("/a")
    assert seen.directives == ASKED_EACH_TIME
    assert seen.age == 75


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("max-age=31536000", {"max-age": "31536000"}),
        ("public, max-age=600, s-maxage=600", {"public": "", "max-age": "600"}),
        ("public, s-maxage=600", {"public": "", **ASKED_EACH_TIME}),
    ],
)
def test_a_cdn_is_told_nothing_by_us_and_browsers_only_what_the_app_tells_them(
    make_site: MakeSite, origin: Origin, clock: Clock, value: str, told: dict[str, str]
) -> None:
    """With a true Age, a lifetime counts from the render."""
    origin.on("/a", answer(b"x", ("Cache-Control", value)))
    site = make_site(revalidate=10)
    site.visit("/a")
    clock.advance(9)
    seen = site.visit("/a")
    assert (seen.label, seen.age, site.lifetime("/a").revalidate) == ("HIT", 9, 10)
    assert seen.directives == told


# Cache-Status and X-ISR


def test_cache_status_of_a_hit(make_site: MakeSite) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    seen = site.visit("/a")
    assert (seen.cache_status, seen.label) == ("wsgi-isr; hit", "HIT")


def test_cache_status_of_a_stale_page_counts_below_zero(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(72)
    seen = site.visit("/a")
    assert (seen.cache_status, seen.label) == ("wsgi-isr; hit; ttl=-12; detail=stale", "STALE")


def test_cache_status_of_a_miss(make_site: MakeSite) -> None:
    seen = make_site(revalidate=60).visit("/a")
    assert (seen.cache_status, seen.label) == ("wsgi-isr; fwd=uri-miss; stored", "MISS")


def test_cache_status_of_an_expired_page(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    clock.advance(61)
    seen = site.visit("/a")
    assert re.match(r"wsgi-isr; fwd=(stale|miss|uri-miss); stored", seen.cache_status)
    assert seen.label == "EXPIRED"


#: RFC 8941: a parameter of an item, of those that RFC 9211 names.
SF_STRING = r'"[^"\\]*"'
SF_TOKEN = r"[A-Za-z*][\w!#$%&'*+.^`|~:/-]*"
SF_VALUES = rf"fwd={SF_TOKEN}|fwd-status=\d{{3}}|ttl=-?\d+|key={SF_STRING}|detail=({SF_TOKEN}|{SF_STRING})"
SF_PARAMETER = rf"(hit|stored|collapsed|{SF_VALUES})"
#: RFC 9211, section 2.2.
FORWARD_REASONS = {"bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial"}


def test_cache_status_is_a_structured_field_in_every_situation(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/cookie", answer(b"x", ("Vary", "Cookie")))
    origin.on("/login", answer(b"x", ("Set-Cookie", "a=b")))
    origin.on("/error", answer(b"x", status="500 Internal Server Error"))
    origin.on("/teapot", answer(b"x", status="418 I'm a Teapot"))
    site = make_site({"/none": 0}, revalidate=60)
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/a", {}),
        ("/a?x=%22%5C", {}),
        ("/none", {}),
        ("/a", {"method": "POST"}),
        ("/a", {"headers": {"Authorization": 'Basic "\\'}}),
        ("/cookie", {"cookie": 'a="b'}),
        ("/login", {}),
        ("/error", {}),
        ("/teapot", {}),
    ]
    for seconds in (0, 5, 100, 400):
        clock.advance(seconds)
        for path, request in requests:
            value = site.visit_and_settle(path, **request).cache_status
            assert re.fullmatch(rf"wsgi-isr(; ?{SF_PARAMETER})+", value), value
            assert set(re.findall(r"fwd=([a-z-]+)", value)) <= FORWARD_REASONS


def test_a_bypassed_answer_keeps_the_cache_status_of_the_cache_behind_it(make_site: MakeSite, origin: Origin) -> None:
    """RFC 9211, section 2: each cache appends its own member."""
    origin.on("/a", answer(b"x", ("Cache-Status", "Origin; hit")))
    values = make_site().visit("/a").headers.getlist("Cache-Status")
    assert ", ".join(values).startswith("Origin; hit, wsgi-isr; ")


# Answers that pass through unchanged


def test_the_app_s_headers_are_untouched_on_bypass(make_site: MakeSite, origin: Origin) -> None:
    own = [
        HTML,
        ("Cache-Control", "private, max-age=0"),
        ("ETag", 'W/"mine"'),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2; Path=/"),
        ("X-Name", "caf\xe9"),
        ("Expires", "0"),
        ("Vary", "*"),
    ]

    def handler(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("418 I'm A Teapot", list(own))
        return [b"x"]

    origin.on("/a", handler)
    seen = make_site(revalidate=60).visit("/a", method="POST")
    assert seen.status == "418 I'm A Teapot"
    assert [pair for pair in seen.headers if pair[0] not in ("X-ISR", "Cache-Status")] == own


def test_the_app_s_headers_are_untouched_where_the_page_is_uncacheable(make_site: MakeSite, origin: Origin) -> None:
    own = [HTML, ("Cache-Control", "private, max-age=0"), ("ETag", 'W/"mine"')]

    def handler(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", list(own))
        return [b"x"]

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    for _ in range(3):
        seen = site.visit("/a")
        assert [pair for pair in seen.headers if pair[0] not in ("X-ISR", "Cache-Status")] == own


def test_conditional_and_range_headers_reach_the_app_on_bypass(make_site: MakeSite, origin: Origin) -> None:
    asked = {"If-None-Match": '"x"', "Range": "bytes=0-1", "Accept-Encoding": "br"}
    make_site().visit("/a", headers=asked)
    seen = origin.last("/a")
    assert (seen["HTTP_IF_NONE_MATCH"], seen["HTTP_RANGE"]) == ('"x"', "bytes=0-1")
    assert seen["HTTP_ACCEPT_ENCODING"] == "br"


def test_a_304_of_the_app_passes_through(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"", ("ETag", '"x"'), status="304 Not Modified", content_type=False))
    seen = make_site().visit("/a", headers={"If-None-Match": '"x"'})
    assert (seen.code, seen.headers["ETag"]) == (304, '"x"')


@pytest.mark.parametrize("visits", [1, 2])
def test_the_app_s_headers_are_kept_with_its_page(make_site: MakeSite, origin: Origin, visits: int) -> None:
    own = [
        ("Link", "</a.css>; rel=preload"),
        ("Link", "</b.js>; rel=preload"),
        ("Content-Language", "de"),
        ("Last-Modified", LAST_MODIFIED),
        ("X-Name", "caf\xe9"),
        ("X-Empty", ""),
        ("Content-Security-Policy", "default-src 'self'"),
        ("Vary", "Accept-Encoding"),
        ("Expires", "Thu, 01 Dec 2094 16:00:00 GMT"),
    ]
    origin.on("/a", answer(b"x", *own, status="200 Fine"))
    site = make_site(revalidate=60)
    seen = [site.visit("/a") for _ in range(visits)][-1]
    assert seen.status == "200 Fine"
    assert seen.headers["Content-Type"] == HTML[1]
    assert [pair for pair in seen.headers if pair in own] == own


def test_a_page_says_that_it_varies_on_the_headers_its_rule_declares(make_site: MakeSite, origin: Origin) -> None:
    """Without ``Vary`` a cache in front would give the German page to all visitors (RFC 9110, 12.5.5)."""
    site = make_site({"/a": Rule(revalidate=60, vary=["Accept-Language"])})
    for _ in range(2):
        seen = site.visit("/a", headers={"Accept-Language": "de"})
        assert "accept-language" in {name.lower() for name in seen.headers.get("Vary", "").split(", ")}


def test_a_page_says_that_it_varies_on_the_cookies_its_rule_declares(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, cookies=["lang"])})
    for _ in range(2):
        seen = site.visit("/a", cookie="lang=de")
        assert "cookie" in {name.lower() for name in seen.headers.get("Vary", "").split(", ")}


def test_a_session_page_still_says_vary_cookie_when_it_comes_from_the_cache(
    make_site: MakeSite, origin: Origin
) -> None:
    origin.on("/a", answer(b"x", ("Vary", "Cookie")))
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.visit("/a").headers["Vary"] == "Cookie"


def test_a_vary_that_the_app_sent_is_not_sent_twice(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", ("Vary", "accept-language, Cookie")))
    site = make_site({"/a": Rule(revalidate=60, vary=["Accept-Language"], cookies=["lang"])})
    for _ in range(2):
        names = ", ".join(site.visit("/a").headers.getlist("Vary")).lower().split(", ")
        assert sorted(names) == ["accept-language", "cookie"]


# Content-Length


@pytest.mark.parametrize("visits", [1, 2])
def test_a_page_without_content_length_gets_the_right_one(make_site: MakeSite, origin: Origin, visits: int) -> None:
    origin.on("/a", answer("é".encode() * 50))
    site = make_site(revalidate=60)
    seen = [site.visit("/a") for _ in range(visits)][-1]
    assert seen.headers.getlist("Content-Length") == ["100"]


def test_a_page_has_one_content_length(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"12345", ("content-length", "5")))
    site = make_site(revalidate=60)
    for _ in range(2):
        assert site.visit("/a").headers.getlist("Content-Length") == ["5"]


# ETag and 304


def etag_of(make_site: MakeSite) -> tuple[Any, str]:
    site = make_site(revalidate=60)
    return site, site.visit("/a").headers["ETag"]


def test_the_etag_is_strong_and_quoted(make_site: MakeSite) -> None:
    _, etag = etag_of(make_site)
    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', etag)


def test_the_etag_is_the_same_on_miss_hit_and_head(make_site: MakeSite) -> None:
    site, etag = etag_of(make_site)
    assert site.visit("/a").headers["ETag"] == etag
    assert site.visit("/a", method="HEAD").headers["ETag"] == etag


def test_the_etag_changes_with_the_body(make_site: MakeSite, clock: Clock) -> None:
    site, etag = etag_of(make_site)
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a").headers["ETag"] != etag


def test_the_etag_stays_where_a_new_render_makes_the_same_body(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", answer(b"the same"))
    site, etag = etag_of(make_site)
    clock.advance(61)
    site.visit_and_settle("/a")
    seen = site.visit("/a")
    assert (seen.headers["ETag"], seen.age) == (etag, 0)


def test_there_is_one_etag_and_it_is_answered_by_304_where_the_app_sends_its_own(
    make_site: MakeSite, origin: Origin
) -> None:
    origin.on("/a", answer(b"x", ("etag", '"mine"')))
    site = make_site(revalidate=60)
    site.visit("/a")
    (etag,) = site.visit("/a").headers.getlist("ETag")
    assert etag == '"mine"'
    assert site.visit("/a", headers={"If-None-Match": etag}).code == 304


@pytest.mark.parametrize(
    "template",
    ["{0}", "W/{0}", '"other", {0}', '"a","b",{0},"c"', 'W/"x" , W/{0}', "*", "{0},", " {0} ", '"a,b", {0}'],
)
def test_a_matching_if_none_match_is_answered_with_304(make_site: MakeSite, template: str) -> None:
    site, etag = etag_of(make_site)
    seen = site.visit("/a", headers={"If-None-Match": template.format(etag)})
    assert (seen.status, seen.body) == ("304 Not Modified", b"")


@pytest.mark.parametrize("value", ['"other"', 'W/"other"', '"a", "b"', "", ",", '""', '"', "W/", '"*"', "garbage"])
def test_another_if_none_match_is_answered_with_the_page(make_site: MakeSite, value: str) -> None:
    site, _ = etag_of(make_site)
    seen = site.visit("/a", headers={"If-None-Match": value})
    assert (seen.code, seen.body) == (200, b"/a v1")


def test_a_prefix_of_the_etag_does_not_match(make_site: MakeSite) -> None:
    site, etag = etag_of(make_site)
    for value in (etag[:-2] + '"', etag[:-1] + 'x"', etag.upper() if etag.upper() != etag else '"no"'):
        assert site.visit("/a", headers={"If-None-Match": value}).code == 200


def test_a_304_has_what_a_cache_needs_and_nothing_of_the_body(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    """RFC 9110, 15.4.5."""
    origin.on(
        "/a",
        answer(
            b"x",
            ("Vary", "Accept-Encoding"),
            ("Last-Modified", LAST_MODIFIED),
            ("Content-Location", "/a.html"),
            ("Content-Language", "de"),
        ),
    )
    site, etag = etag_of(make_site)
    clock.advance(5)
    seen = site.visit("/a", headers={"If-None-Match": etag})
    assert seen.headers["ETag"] == etag
    assert seen.headers["Cache-Control"] == site.visit("/a").headers["Cache-Control"]
    assert seen.headers["Vary"] == "Accept-Encoding"
    assert seen.headers["Content-Location"] == "/a.html"
    assert seen.age == 5
    assert seen.label == "HIT"
    assert not {"Content-Length", "Content-Type", "Content-Encoding"} & set(seen.headers.keys())


def test_a_304_of_a_stale_page_starts_its_renewal(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site, etag = etag_of(make_site)
    clock.advance(61)
    seen = site.visit_and_settle("/a", headers={"If-None-Match": etag})
    assert (seen.code, seen.label, origin.calls["/a"]) == (304, "STALE", 2)
    assert seen.directives == ASKED_EACH_TIME
    assert site.visit("/a", headers={"If-None-Match": etag}).code == 200


def test_a_conditional_request_for_a_missing_page_stores_the_page(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    assert site.visit("/a", headers={"If-None-Match": '"x"'}).body == b"/a v1"
    assert site.visit("/a").body == b"/a v1"


def test_a_renewed_page_with_the_visitors_etag_is_a_304(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(b"the same"))
    site = make_site(revalidate=60, expire=60)
    etag = site.visit("/a").headers["ETag"]
    clock.advance(61)
    seen = site.visit("/a", headers={"If-None-Match": etag})
    assert (seen.code, seen.body) == (304, b"")


@pytest.mark.parametrize("value", [LAST_MODIFIED, "Mon, 07 Nov 1994 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"])
def test_a_page_not_modified_since_is_a_304(make_site: MakeSite, origin: Origin, value: str) -> None:
    origin.on("/a", answer(b"x", ("Last-Modified", LAST_MODIFIED)))
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.visit("/a", headers={"If-Modified-Since": value}).code == 304


@pytest.mark.parametrize("value", ["Sun, 06 Nov 1994 08:49:36 GMT", "garbage", "", "0", "-1"])
def test_a_page_modified_since_or_a_broken_date_is_the_page(make_site: MakeSite, origin: Origin, value: str) -> None:
    origin.on("/a", answer(b"x", ("Last-Modified", LAST_MODIFIED)))
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.visit("/a", headers={"If-Modified-Since": value}).body == b"x"


def test_if_none_match_counts_before_if_modified_since(make_site: MakeSite, origin: Origin) -> None:
    """RFC 9110, 13.1.3: a recipient ignores If-Modified-Since beside If-None-Match."""
    origin.on("/a", answer(b"x", ("Last-Modified", LAST_MODIFIED)))
    site = make_site(revalidate=60)
    etag = site.visit("/a").headers["ETag"]
    before = "Sun, 06 Nov 1994 08:49:36 GMT"
    asked = {"If-None-Match": '"other"', "If-Modified-Since": LAST_MODIFIED}
    assert site.visit("/a", headers=asked).code == 200
    asked = {"If-None-Match": etag, "If-Modified-Since": before}
    assert site.visit("/a", headers=asked).code == 304


def test_without_last_modified_there_is_nothing_to_compare(make_site: MakeSite) -> None:
    site, _ = etag_of(make_site)
    asked = {"If-Modified-Since": "Fri, 31 Dec 2094 23:59:59 GMT"}
    assert site.visit("/a", headers=asked).code == 200


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone", "301 Moved Permanently"])
def test_conditions_count_only_for_a_successful_answer(make_site: MakeSite, origin: Origin, status: str) -> None:
    """RFC 9110, 13.2.1: preconditions are ignored where the answer without them is not 2xx."""
    origin.on(
        "/a",
        answer(b"x", ("Location", "http://x.example/"), ("Last-Modified", LAST_MODIFIED), status=status),
    )
    site = make_site(revalidate=60)
    etag = site.visit("/a").headers.get("ETag", '"x"')
    for asked in ({"If-None-Match": "*"}, {"If-None-Match": etag}, {"If-Modified-Since": LAST_MODIFIED}):
        assert site.visit("/a", headers=asked).status == status


def test_a_range_is_answered_with_the_whole_page(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    for _ in range(2):
        seen = site.visit("/a", headers={"Range": "bytes=0-1"})
        assert (seen.code, seen.body) == (200, b"/a v1")


FILE = b"0123456789"


@pytest.fixture
def file(make_site: MakeSite, origin: Origin) -> Site:
    origin.on("/file", answer(FILE, ("Accept-Ranges", "bytes"), ("Last-Modified", LAST_MODIFIED)))
    site = make_site(revalidate=60)
    assert [site.visit("/file").label for _ in range(2)] == ["MISS", "HIT"]
    return site


@pytest.mark.parametrize(
    ("asked", "part", "said"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=5-99", b"56789", "bytes 5-9/10"),
        ("bytes=-99", FILE, "bytes 0-9/10"),  # RFC 9110, 14.1.2: the whole of a shorter file
    ],
)
def test_of_a_file_whose_app_gives_parts_there_are_parts(
    file: Site, origin: Origin, asked: str, part: bytes, said: str
) -> None:
    for _ in range(2):
        seen = file.visit("/file", headers={"Range": asked})
        assert (seen.code, seen.body, seen.headers["Content-Range"]) == (206, part, said)
        assert seen.headers.getlist("Content-Length") == [str(len(part))]
        assert seen.label == "HIT"
    assert file.visit("/file").body == FILE
    assert origin.calls["/file"] == 1


def test_a_part_that_is_not_there_is_said_to_be_none(file: Site) -> None:
    seen = file.visit("/file", headers={"Range": "bytes=10-"})
    assert (seen.code, seen.body, seen.headers["Content-Range"]) == (416, b"", "bytes */10")


def test_a_part_that_is_not_there_is_kept_by_no_cache_or_others_would_get_it_for_the_file(
    make_site: MakeSite, origin: Origin
) -> None:
    kept_long = ("X-Accel-Expires", "3600"), ("Access-Control-Allow-Origin", "*")
    origin.on("/file", answer(FILE, ("Accept-Ranges", "bytes"), *kept_long))
    seen = make_site(revalidate=60).visit("/file", headers={"Range": "bytes=10-"})
    assert seen.code == 416
    assert seen.headers.getlist("Cache-Control") == ["no-store"]
    assert "X-Accel-Expires" not in seen.headers
    assert seen.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "lines=0-1", "bytes=5-1", "bytes", ""])
def test_what_is_no_single_part_is_answered_with_the_whole_file(file: Site, asked: str) -> None:
    seen = file.visit("/file", headers={"Range": asked})
    assert (seen.code, seen.body) == (200, FILE)


def test_a_part_goes_on_with_the_same_version_of_a_file_only(file: Site) -> None:
    whole = file.visit("/file")

    def code(condition: str) -> int:
        return file.visit("/file", headers={"Range": "bytes=5-", "If-Range": condition}).code

    assert [code(same) for same in (whole.headers["ETag"], LAST_MODIFIED)] == [206, 206]
    others = ('"other"', "W/" + whole.headers["ETag"], "Sun, 06 Nov 1994 08:49:38 GMT")
    assert [code(other) for other in others] == [200] * 3


def test_who_has_the_file_is_told_so_whatever_part_they_ask_for(file: Site) -> None:
    etag = file.visit("/file").headers["ETag"]
    assert file.visit("/file", headers={"Range": "bytes=5-", "If-None-Match": etag}).code == 304


def test_head_takes_no_part(file: Site) -> None:
    seen = file.visit("/file", method="HEAD", headers={"Range": "bytes=5-"})
    assert (seen.code, seen.headers["Content-Length"]) == (200, "10")


@pytest.mark.parametrize("kind", ["video/mp4", "audio/ogg"])
def test_a_film_comes_in_parts_even_if_the_app_did_not_promise(make_site: MakeSite, origin: Origin, kind: str) -> None:
    """Browsers that play the film ask for the first two bytes, and give up where they get all."""
    origin.on("/film", answer(FILE, ("Content-Type", kind), content_type=False))
    site = make_site(revalidate=60)
    assert [site.visit("/film", headers={"Range": "bytes=0-1"}).code for _ in range(3)] == [206] * 3


# HEAD


def test_head_is_get_without_the_body(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60)
    get = site.visit("/a")
    get = site.visit("/a")
    head = site.visit("/a", method="HEAD")
    assert (head.status, head.body) == (get.status, b"")
    assert list(head.headers) == list(get.headers)


def test_head_of_a_missing_page_stores_it_for_get(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    head = site.visit("/a", method="HEAD")
    assert (head.body, head.label, head.headers["Content-Length"]) == (b"", "MISS", "5")
    assert (site.visit("/a").label, origin.calls["/a"]) == ("HIT", 1)


def test_head_of_a_stale_page_starts_its_renewal(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(61)
    head = site.visit_and_settle("/a", method="HEAD")
    assert (head.body, head.label, origin.calls["/a"]) == (b"", "STALE", 2)


def test_head_with_a_matching_etag_is_a_304(make_site: MakeSite) -> None:
    site, etag = etag_of(make_site)
    seen = site.visit("/a", method="HEAD", headers={"If-None-Match": etag})
    assert (seen.code, seen.body) == (304, b"")


def test_head_reaches_the_app_as_head_on_bypass(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"", ("Content-Length", "1234")))
    seen = make_site().visit("/a", method="HEAD")
    assert origin.last("/a")["REQUEST_METHOD"] == "HEAD"
    assert (seen.headers["Content-Length"], seen.body) == ("1234", b"")


def test_head_of_an_uncacheable_page_is_the_app_s_own_answer(make_site: MakeSite, origin: Origin) -> None:
    def handler(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("200 OK", [HTML, ("Set-Cookie", "a=b"), ("Content-Length", "5")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"12345"]

    origin.on("/a", handler)
    site = make_site(revalidate=60)
    for _ in range(2):
        seen = site.visit("/a", method="HEAD")
        assert (seen.headers["Content-Length"], seen.headers["Set-Cookie"], seen.body) == ("5", "a=b", b"")


def test_a_broken_page_is_broken_for_head_too(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", status="500 Internal Server Error"))
    assert make_site(revalidate=60).visit("/a", method="HEAD").code == 500
