"""Raw requests that lead straight to a prepared response. No client can evict their fingerprints."""

from __future__ import annotations

from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule
from wsgi_isr.events import Served


def is_prepared(site: Site, path: str = "/a", **request: Any) -> bool:
    """Return whether a request is answered by a prepared response. Such an answer causes no event."""
    before = len(site.happened(Served))
    assert site.visit(path, **request).label == "HIT"
    return len(site.happened(Served)) == before


def made(make_site: MakeSite, rules: Any = None, path: str = "/a", **options: Any) -> Site:
    site = make_site(rules, **(options if rules is not None else {"revalidate": 3600, **options}))
    assert site.visit(path).label == "MISS"
    return site


def test_a_page_is_prepared_by_its_first_hit(make_site: MakeSite) -> None:
    site = made(make_site)
    assert [is_prepared(site) for _ in range(3)] == [False, True, True]


def test_a_returning_browser_is_answered_from_what_was_prepared(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"<p>the same</p>" * 100, ("Content-Language", "de")))
    site = made(make_site)
    for accepted in ("gzip", "", "br"):
        headers = {"Accept-Encoding": accepted}
        headers["If-None-Match"] = site.visit("/a", headers=headers).headers["ETag"]
        slow = site.visit("/a", headers={**headers, "If-None-Match": f"{headers['If-None-Match']},"})
        assert is_prepared(site, headers=headers)
        seen = site.visit("/a", headers=headers)
        assert (seen.code, seen.body) == (304, b"")
        assert list(seen.headers) == list(slow.headers)


@pytest.mark.parametrize("condition", ['"other"', 'W/"other"', "", "*", '"other", {0}', "W/{0}", " {0}", "{1}"])
def test_any_other_condition_is_read_with_care(make_site: MakeSite, origin: Origin, condition: str) -> None:
    origin.on("/a", answer(b"<p>the same</p>" * 100))
    site = made(make_site)
    etag, coded = (site.visit("/a", headers={"Accept-Encoding": name}).headers["ETag"] for name in ("", "gzip"))
    site.visit("/a")
    condition = condition.format(etag, coded)
    assert not is_prepared(site, headers={"If-None-Match": condition})
    has_it = etag in condition or condition == "*"
    assert site.visit("/a", headers={"If-None-Match": condition}).code == (304 if has_it else 200)


def test_conditions_that_do_not_match_leave_a_prepared_answer_alone(make_site: MakeSite) -> None:
    site = made(make_site)
    site.visit("/a")
    (cached,) = {id(cached): cached for cached in site.isr._engine.local.fingerprints.values()}.values()
    prepared = cached.prepared
    for number in range(10):
        assert site.visit("/a", headers={"If-None-Match": f'"{number}"'}).code == 200
    assert cached.prepared is prepared
    assert is_prepared(site)


def test_a_condition_counts_for_a_200_alone(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"gone", status="410 Gone"))
    site = made(make_site)
    etag = site.visit("/a").headers["ETag"]
    for _ in range(3):
        seen = site.visit("/a", headers={"If-None-Match": etag})
        assert (seen.code, seen.body) == (410, b"gone")


def test_a_prepared_304_is_taken_back_by_an_invalidation(make_site: MakeSite) -> None:
    site = made(make_site, coherence=0)
    returning = {"headers": {"If-None-Match": site.visit("/a").headers["ETag"]}}
    assert is_prepared(site, **returning)
    site.isr.invalidate(paths=["/a"])
    seen = site.visit("/a", **returning)
    assert (seen.code, seen.body) == (200, b"/a v2")


def test_campaigns_take_no_place_of_a_page_s_own_url(make_site: MakeSite) -> None:
    site = made(make_site)
    for number in range(100):
        assert not is_prepared(site, f"/a?utm_id={number}")
    assert [is_prepared(site) for _ in range(2)] == [False, True]


def test_campaigns_leave_a_prepared_answer_alone(make_site: MakeSite) -> None:
    site = made(make_site)
    is_prepared(site)
    for number in range(100):
        is_prepared(site, f"/a?utm_id={number}")
    assert is_prepared(site)


def hosts(number: int) -> str:
    """Return one of many spellings of example.org."""
    return "".join(c.upper() if number >> n & 1 else c for n, c in enumerate("example.org"))


@pytest.mark.parametrize("spelled", [hosts, lambda number: "example.org:80"], ids=["case", "port"])
def test_spellings_of_a_host_take_no_place_for_good(make_site: MakeSite, spelled: Any) -> None:
    site = made(make_site)
    for number in range(1, 101):
        site.visit("/a", host=spelled(number))
    assert [is_prepared(site) for _ in range(2)] == [False, True]


def test_invented_hosts_of_a_site_with_one_url_take_no_place_for_good(make_site: MakeSite) -> None:
    site = made(make_site, canonical_url="https://example.org")
    for number in range(100):
        site.visit("/a", host=f"{number}.test")
    assert [is_prepared(site) for _ in range(2)] == [False, True]


RULES = {"/a": Rule(revalidate=3600, query=["q", "page"]), "/b": Rule(revalidate=3600, other_query="ignore")}


@pytest.mark.parametrize("query", ["page=2&q=a+b", "q=a+b&page=2", "q=%C3%A9", "q=", "q=1&q=0"])
def test_declared_parameters_in_any_order_lead_to_their_page(make_site: MakeSite, query: str) -> None:
    site = made(make_site, RULES, f"/a?{query}")
    assert [is_prepared(site, f"/a?{query}") for _ in range(2)] == [False, True]


@pytest.mark.parametrize("query", ["q=%61", "q=a&", "&q=a", "q=a&utm_id=1", "%71=a", "utm_id=1&q=a"])
def test_a_query_that_is_spelled_otherwise_is_the_same_page_and_takes_no_place(make_site: MakeSite, query: str) -> None:
    site = made(make_site, RULES, "/a?q=a")
    assert [is_prepared(site, f"/a?{query}") for _ in range(3)] == [False] * 3


def test_parameters_that_are_ignored_take_no_place(make_site: MakeSite) -> None:
    site = made(make_site, RULES, "/b")
    assert [is_prepared(site, f"/b?x={number}") for number in (1, 1, 1, 2, 3, 4, 5)] == [False] * 7
    assert [is_prepared(site, "/b") for _ in range(2)] == [False, True]


def test_a_copy_that_is_pushed_out_of_its_places_is_prepared_again(make_site: MakeSite, clock: Clock) -> None:
    site = made(make_site)
    for number in range(10):
        host = hosts(number)
        assert [is_prepared(site, host=host) for _ in range(2)] == [False, True]
        clock.advance(1)
