"""Cache-Control for browsers: revalidate a stored page each time, or the app's own directives."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Environ, Origin, answer, failing
from tests.behaviour.visitor import ASKED_EACH_TIME, Clock, Seen, Site
from wsgi_isr import Rule, no_store
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.stores.base import Many
from wsgi_isr.stores.memory import MemoryStore

FUTURE = ("Expires", "Thu, 01 Dec 2094 16:00:00 GMT")
PAST = ("Expires", "Sun, 06 Nov 1994 08:49:37 GMT")
FILE = ("Cache-Control", "public, max-age=31536000, immutable")


def cache_control(*values: str) -> list[tuple[str, str]]:
    return [("Cache-Control", value) for value in values]


def told(seen: Seen) -> list[tuple[str, str]]:
    """Return the fields of an answer that are for browsers and other caches."""
    return [(name, value) for name, value in seen.headers if name in ("Cache-Control", "Expires", "Pragma")]


# The app's own words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ([FILE], [FILE]),
        (cache_control("max-age=300"), cache_control("max-age=300")),
        (cache_control("max-age=300", "public"), cache_control("max-age=300, public")),
        ([FUTURE], [FUTURE]),
        ([PAST], [PAST]),
        ([FUTURE, *cache_control("public")], [FUTURE, *cache_control("public")]),
        ([FUTURE, *cache_control("s-maxage=600")], [FUTURE]),
        ([FUTURE, *cache_control("max-age=5")], [FUTURE, *cache_control("max-age=5")]),
        (cache_control("max-age=5, s-maxage=600"), cache_control("max-age=5")),
        (
            cache_control("max-age=5, must-revalidate, no-transform, stale-if-error=60"),
            cache_control("max-age=5, must-revalidate, no-transform, stale-if-error=60"),
        ),
        ([("CDN-Cache-Control", "max-age=600"), *cache_control("no-store")], cache_control("no-store")),
        ([("CDN-Cache-Control", "max-age=600"), *cache_control("max-age=5")], cache_control("max-age=5")),
    ],
)
def test_words_of_the_app_to_browsers_are_kept(
    make_site: MakeSite, origin: Origin, headers: list[tuple[str, str]], kept: list[tuple[str, str]]
) -> None:
    origin.on("/a", answer(b"x", *headers))
    site = make_site(revalidate=60)
    seen = [site.visit("/a") for _ in range(3)]
    assert [one.label for one in seen] == ["MISS", "HIT", "HIT"]
    assert [told(one) for one in seen] == [kept] * 3
    etag = seen[0].headers["ETag"]
    unchanged = site.visit("/a", headers={"If-None-Match": etag})
    assert (unchanged.code, told(unchanged)) == (304, kept)


@pytest.mark.parametrize(
    ("headers", "also"),
    [
        ([], {}),
        (cache_control("s-maxage=600"), {}),
        (cache_control("s-maxage=600, stale-while-revalidate=86400"), {}),
        (cache_control("public"), {"public": ""}),
        (cache_control("no-transform"), {"no-transform": ""}),
        (cache_control("immutable"), {}),
        ([("CDN-Cache-Control", "max-age=600")], {}),
        ([("CDN-Cache-Control", "max-age=600"), *cache_control("private")], {"private": ""}),
        ([("Surrogate-Control", "max-age=600")], {}),
        ([("X-Accel-Expires", "600")], {}),
        ([("Expires", "0")], {}),
        ([("Pragma", "public")], {}),
    ],
)
def test_where_the_app_tells_browsers_no_lifetime_they_ask_each_time(
    make_site: MakeSite, origin: Origin, headers: list[tuple[str, str]], also: dict[str, str]
) -> None:
    origin.on("/a", answer(b"x", *headers))
    site = make_site(revalidate=60)
    for _ in range(3):
        seen = site.visit("/a")
        assert seen.directives == {**also, **ASKED_EACH_TIME}
        sent = {name.lower() for name, _ in seen.headers}
        assert not {"cdn-cache-control", "surrogate-control", "x-accel-expires", "pragma"} & sent


def test_a_page_without_a_rule_whose_app_speaks_to_shared_caches_alone_is_asked_for_each_time(
    make_site: MakeSite, origin: Origin
) -> None:
    origin.on("/a", answer(b"x", *cache_control("s-maxage=600, stale-while-revalidate=86400")))
    site = make_site()
    while (seen := site.visit("/a")).label != "HIT":
        assert origin.calls["/a"] < 3
    assert seen.directives == ASKED_EACH_TIME


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone", "301 Moved Permanently", "308 Permanent Redirect"])
def test_a_404_and_a_redirect_are_asked_for_each_time(make_site: MakeSite, origin: Origin, status: str) -> None:
    """Without directives, a browser may keep each of these for as long as it likes (RFC 9110, 15.1)."""
    origin.on("/a", answer(b"x", ("Location", "/b"), status=status))
    site = make_site(revalidate=60)
    assert [site.visit("/a").directives for _ in range(2)] == [ASKED_EACH_TIME] * 2


def test_with_a_true_age_what_the_app_gives_browsers_counts_from_the_render(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", answer(b"x", *cache_control("max-age=300")))
    site = make_site(revalidate=False)
    site.visit("/a")
    for age in (0, 100, 400):
        clock.now += age - site.visit("/a").age
        seen = site.visit("/a")
        assert (seen.directives, seen.age) == ({"max-age": "300"}, age)


# Old pages ----------------------------------------------------------------------------------------------------


class Forgetful(MemoryStore):
    """A store whose tags cannot be read while ``away`` is set."""

    away = False

    def get_many(self, keys: Any) -> Many:
        if self.away:
            return Many({}, {key: StoreUnavailable("node", "unplugged") for key in keys})
        return super().get_many(keys)


def grow_stale(site: Site, origin: Origin) -> str:
    site.clock.advance(61)
    return "STALE"


def be_renewed_softly(site: Site, origin: Origin) -> str:
    site.isr.invalidate(tags=["t"], mode="stale")
    return "STALE"


def fail(site: Site, origin: Origin) -> str:
    origin.on("/a", failing(ValueError()))
    site.isr.invalidate(tags=["t"])
    return "STALE-IF-ERROR"


def lose_the_store(site: Site, origin: Origin) -> str:
    site.store.away = True
    return "DEGRADED"


@pytest.mark.parametrize("happen", [grow_stale, be_renewed_softly, fail, lose_the_store])
@pytest.mark.parametrize(
    ("headers", "also"),
    [
        ([FILE], {"public": ""}),
        ([FUTURE], {}),
        ([FUTURE, *cache_control("max-age=600, no-transform, stale-while-revalidate=60")], {"no-transform": ""}),
        ([], {}),
    ],
)
def test_no_browser_is_given_a_lifetime_for_an_old_page(
    make_site: MakeSite,
    origin: Origin,
    clock: Clock,
    happen: Callable[[Site, Origin], str],
    headers: list[tuple[str, str]],
    also: dict[str, str],
) -> None:
    origin.on("/a", answer(b"x", *headers))
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])}, store=Forgetful(clock=clock), coherence=0)
    fresh = site.visit("/a")
    assert told(fresh) == ([*headers] or [*cache_control("max-age=0, must-revalidate")])
    label = happen(site, origin)
    seen = site.visit("/a")
    assert (seen.label, seen.directives) == (label, {**also, **ASKED_EACH_TIME})
    assert "Expires" not in seen.headers
    site.settle()


@pytest.mark.parametrize("mode", ["stale", "expire", "purge"])
def test_the_page_after_an_invalidation_has_its_lifetime_again(make_site: MakeSite, origin: Origin, mode: str) -> None:
    origin.on("/a", answer(lambda environ: b"v%d" % origin.calls["/a"], FILE))
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])})
    site.visit("/a")
    site.isr.invalidate(tags=["t"], mode=mode)
    site.visit_and_settle("/a")
    seen = site.visit("/a")
    assert (seen.label, seen.body, told(seen)) == ("HIT", b"v2", [FILE])


# The entity tag of the app -------------------------------------------------------------------------------------


PAGE = b"<p>A page that says the same again and again.</p>\n" * 100


@pytest.mark.parametrize("etag", ['"mine"', '"a,b"', '"W/x"', '"v1:\\2"'])
def test_a_strong_etag_of_the_app_is_kept(make_site: MakeSite, origin: Origin, etag: str) -> None:
    origin.on("/a", answer(PAGE, ("ETag", etag)))
    site = make_site(revalidate=60)
    for _ in range(3):
        assert site.visit("/a").headers.getlist("ETag") == [etag]
    for condition in (etag, f"W/{etag}", f'"other", {etag}'):
        unchanged = site.visit("/a", headers={"If-None-Match": condition})
        assert (unchanged.code, unchanged.headers["ETag"]) == (304, etag)
    assert site.visit("/a", headers={"If-None-Match": '"other"'}).code == 200


def test_in_a_coding_of_ours_an_etag_of_the_app_is_told_from_that_of_its_own_bytes(
    make_site: MakeSite, origin: Origin
) -> None:
    origin.on("/a", answer(PAGE, ("ETag", '"mine"')))
    site = make_site(revalidate=60)
    for _ in range(3):
        seen = site.visit("/a", headers={"Accept-Encoding": "gzip"})
        assert (gzip.decompress(seen.body), seen.headers["ETag"]) == (PAGE, '"mine-gzip"')
    asked = {"Accept-Encoding": "gzip", "If-None-Match": '"mine-gzip"'}
    assert site.visit("/a", headers=asked).code == 304
    assert site.visit("/a", headers={"If-None-Match": '"mine-gzip"'}).code == 200


def test_an_etag_of_an_app_that_codes_its_body_itself_is_kept(make_site: MakeSite, origin: Origin) -> None:
    body = gzip.compress(PAGE)
    origin.on("/a", answer(body, ("ETag", '"mine"'), ("Content-Encoding", "gzip")))
    seen = make_site(revalidate=60).visit("/a", headers={"Accept-Encoding": "gzip, br"})
    assert (seen.body, seen.headers["ETag"]) == (body, '"mine"')


@pytest.mark.parametrize("etag", ['W/"weak"', "unquoted", '""', '"two" words', ""])
def test_any_other_etag_is_replaced_by_one_of_the_bytes(make_site: MakeSite, origin: Origin, etag: str) -> None:
    origin.on("/a", answer(b"x", ("ETag", etag)))
    origin.on("/b", answer(b"x"))
    site = make_site(revalidate=60)
    assert site.visit("/a").headers.getlist("ETag") == site.visit("/b").headers.getlist("ETag")


def test_last_modified_of_the_app_stays_beside_its_etag(make_site: MakeSite, origin: Origin) -> None:
    modified = ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
    origin.on("/a", answer(b"x", ("ETag", '"mine"'), modified))
    site = make_site(revalidate=60)
    for _ in range(2):
        assert modified in list(site.visit("/a").headers)
    assert site.visit("/a", headers={"If-Modified-Since": modified[1]}).code == 304


def test_an_etag_of_the_app_outlives_the_process(make_site: MakeSite, origin: Origin, tmp_path: Path) -> None:
    origin.on("/a", answer(b"x", ("ETag", '"mine"'), FILE))
    store = f"sqlite:///{tmp_path}/store.db"
    make_site(revalidate=60, store=store).visit("/a")
    seen = make_site(revalidate=60, store=store).visit("/a")
    assert (seen.label, seen.headers["ETag"], told(seen)) == ("HIT", '"mine"', [FILE])


@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        ((b"x", '"1"'), (b"x", '"2"'), True),
        ((b"x", '"1"'), (b"y", '"1"'), True),
        ((b"x", '"1"'), (b"x", '"1"'), False),
        ((b"x", 'W/"1"'), (b"x", 'W/"2"'), False),
    ],
)
def test_a_refresh_reports_a_change_of_the_bytes_and_of_the_app_s_etag(
    make_site: MakeSite, origin: Origin, first: tuple[bytes, str], second: tuple[bytes, str], changed: bool
) -> None:
    site = make_site(revalidate=60)
    origin.on("/a", answer(first[0], ("ETag", first[1])))
    site.visit("/a")
    origin.on("/a", answer(second[0], ("ETag", second[1])))
    assert site.isr.refresh("/a") is changed


# Fields of one single answer -------------------------------------------------------------------------------------


SINGLE = [("X-Request-ID", "7"), ("x-runtime", "0.2"), ("Server-Timing", "db;dur=53"), ("X-B3-TraceId", "1")]
OF_ALL = [("X-Frame-Options", "DENY"), ("Report-To", "{}"), ("NEL", "{}")]


def single(seen: Seen) -> list[tuple[str, str]]:
    return [pair for pair in seen.headers if pair in SINGLE]


def test_fields_of_a_render_are_given_to_no_visitor_not_even_to_the_first(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", *SINGLE, *OF_ALL, ("Date", PAST[1])))
    site = make_site(revalidate=60)
    for _ in range(3):
        seen = site.visit("/a")
        assert single(seen) == []
        assert "Date" not in seen.headers  # the server sends its own
        assert [pair for pair in seen.headers if pair in OF_ALL] == OF_ALL


def test_the_app_s_answer_to_one_visitor_has_its_fields(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"x", *SINGLE))
    origin.on("/login", answer(b"x", *SINGLE, ("Set-Cookie", "a=b")))
    site = make_site(revalidate=60)
    assert single(site.visit("/a", method="POST")) == SINGLE
    assert [single(site.visit("/login")) for _ in range(2)] == [SINGLE, SINGLE]


def test_a_failure_that_several_visitors_get_has_no_fields_of_one_answer(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"sorry", *SINGLE, *OF_ALL, status="503 Service Unavailable"))
    seen = make_site(revalidate=60).visit("/a")
    assert (seen.code, single(seen)) == (503, [])
    assert [pair for pair in seen.headers if pair in OF_ALL] == OF_ALL


def test_a_page_of_its_visitor_alone_keeps_what_its_app_tells_browsers(make_site: MakeSite, origin: Origin) -> None:
    def page(environ: Environ, start_response: Any) -> list[bytes]:
        no_store()
        start_response("200 OK", [HTML, FUTURE, *cache_control("max-age=5, s-maxage=600")])
        return [b"x"]

    origin.on("/a", page)
    site = make_site(revalidate=60)
    for _ in range(2):
        seen = site.visit("/a")
        assert (seen.label, told(seen)) == ("BYPASS", [FUTURE, *cache_control("max-age=5, s-maxage=600")])
