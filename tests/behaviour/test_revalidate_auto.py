"""``revalidate="auto"``: pages whose own headers give their lifetime."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.http import http_date

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Boom, Handler, Origin, answer, failing
from tests.behaviour.visitor import Clock, all_at_once
from wsgi_isr import Rule, cache_life, cached
from wsgi_isr.stores.memory import MemoryStore

ASKING: dict[str, Handler] = {
    "s-maxage": answer(b"page", ("Cache-Control", "s-maxage=60")),
    "max-age": answer(b"page", ("Cache-Control", "public, max-age=60")),
    "CDN-Cache-Control": answer(b"page", ("CDN-Cache-Control", "max-age=60")),
    "Expires": answer(b"page", ("Expires", "Tue, 14 Nov 2023 22:14:20 GMT")),
}

every_asking = pytest.mark.parametrize("handler", ASKING.values(), ids=ASKING)
ALONE: list[Any] = [((), {}), (({},), {}), (({"/other": 10},), {"revalidate": "auto"}), (({"/a": "auto"},), {})]


@pytest.mark.parametrize(("rules", "options"), ALONE, ids=["nothing", "no rules", "auto", "a rule that is auto"])
@every_asking
def test_twenty_first_visitors_at_once_are_one_render(
    make_site: MakeSite, origin: Origin, handler: Handler, rules: Any, options: Any
) -> None:
    origin.on("/a", handler)
    gate = origin.hold("/a")
    site = make_site(*rules, **options)
    first = site.start_visit("/a")
    gate.wait_until_entered()
    others = [site.start_visit("/a") for _ in range(19)]
    gate.open()
    assert {visit.result().body for visit in [first, *others]} == {b"page"}
    assert origin.calls["/a"] == 1
    assert all_at_once(5, lambda _: site.visit("/a"))[0].label == "HIT"


@every_asking
def test_what_one_process_has_learnt_holds_for_all_and_after_a_restart(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler
) -> None:
    origin.on("/a", handler)
    store = MemoryStore(clock=clock)
    make_site(store=store).visit("/a")
    origin.on("/a", failing(Boom()))
    after = make_site(store=store)
    assert (after.visit("/a").label, after.visit("/a").body) == ("HIT", b"page")
    clock.advance(61)
    seen = after.visit_and_settle("/a")
    assert (seen.label, seen.body) == ("STALE", b"page")
    assert origin.calls["/a"] == 2


def test_that_a_page_does_not_ask_is_remembered_by_all(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    first, second = (make_site(store=store) for _ in range(2))
    first.visit("/a")
    calls = origin.calls["/a"]
    assert [site.visit("/a").label for site in (first, second)] == ["BYPASS"] * 2
    assert origin.calls["/a"] == calls + 2


def test_a_page_that_begins_to_ask_is_found_out_within_uncacheable_ttl(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(uncacheable_ttl=30)
    site.visit("/a")
    origin.on("/a", ASKING["s-maxage"])
    clock.advance(31)
    assert site.visit_and_settle("/a").label == "BYPASS"
    assert site.visit("/a").label == "HIT"


def test_a_view_may_ask_by_cache_life_and_a_page_has_the_lifetime_of_its_data(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    @cached(revalidate=20)
    def data() -> str:
        return "data"

    def view(environ: Any) -> bytes:
        cache_life(60)
        return data().encode()

    origin.on("/a", answer(view))
    site = make_site()
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]
    clock.advance(21)
    assert site.visit_and_settle("/a").label == "STALE"


def test_a_page_that_only_uses_data_does_not_ask(make_site: MakeSite, origin: Origin) -> None:
    @cached(revalidate=20)
    def data() -> str:
        cache_life(10)  # for the data alone
        return "data"

    origin.on("/a", answer(lambda environ: f"{environ.get('HTTP_COOKIE', 'nobody')} {data()}".encode()))
    site = make_site()
    assert ["not-asked" in site.visit("/a").cache_status for _ in range(2)] == [True, True]
    assert site.visit("/a", cookie="name=bob").body == b"name=bob data"


@pytest.mark.parametrize("date", ["Thu, 01 Jan 99999999999999999999 00:00:00 GMT", "soon", "0"])
def test_an_expires_that_is_no_date_has_expired(make_site: MakeSite, origin: Origin, date: str) -> None:
    origin.on("/a", answer(b"a", ("Expires", date)))
    site = make_site()
    assert [site.visit("/a").status for _ in range(2)] == ["200 OK"] * 2
    assert site.visit("/a").label == "BYPASS"


def test_a_date_that_is_none_is_now(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    year = "Thu, 01 Jan 99999999999999999999 00:00:00 GMT"
    origin.on("/a", answer(b"a", ("Expires", http_date(clock() + 60)), ("Date", year)))
    site = make_site()
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]


def test_a_session_is_never_in_a_page_that_asks(make_site: MakeSite, origin: Origin) -> None:
    def greet(environ: Any) -> bytes:
        return environ.get("HTTP_COOKIE", "nobody").encode()

    origin.on("/a", answer(greet, ("Cache-Control", "max-age=60"), ("Vary", "Cookie")))
    site = make_site()
    assert site.visit("/a", cookie="name=alice").body == b"name=alice"
    assert [site.visit("/a").body, site.visit("/a", cookie="name=bob").body] == [b"nobody", b"name=bob"]


def test_a_rule_without_revalidate_is_auto(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", ASKING["s-maxage"])
    site = make_site({"/a": Rule(tags=["a"]), "/b": Rule(tags=["b"])})
    assert [site.visit(path).label for path in ("/a", "/a", "/b", "/b")] == ["MISS", "HIT", "BYPASS", "BYPASS"]
    site.isr.invalidate(tags=["a"])
    assert site.visit("/a").label == "EXPIRED"


def test_a_404_that_asks_lives_no_longer_than_others(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(b"no", ("Cache-Control", "max-age=600"), status="404 Not Found"))
    site = make_site(negative_ttl=10)
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]
    clock.advance(11)
    assert site.visit("/a").label != "HIT"


def test_a_successful_post_invalidates_the_page_at_its_url(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", ASKING["max-age"])
    site = make_site()
    site.visit("/a")
    site.visit("/a", method="POST")
    assert site.visit("/a").label == "EXPIRED"


@pytest.mark.parametrize("value", ["forever", False])
def test_forever_is_until_it_is_invalidated(make_site: MakeSite, clock: Clock, value: Any) -> None:
    site = make_site({"/a": value})
    site.visit("/a")
    clock.advance(10 * 365 * 86400)
    assert site.visit("/a").label == "HIT"
    site.isr.invalidate(paths=["/a"])
    assert site.visit("/a").label == "EXPIRED"
