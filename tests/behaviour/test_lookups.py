"""Fresh, Stale, Expired, Missing: the page that each visitor gets, the waits, and the number of renders."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import DEADLINE, Environ, Gate, Origin, answer
from tests.behaviour.visitor import Clock, Seen, Site, Visit, all_at_once
from wsgi_isr import Rule
from wsgi_isr.events import Rendered, RenderFailed
from wsgi_isr.stores.memory import MemoryStore


def test_a_missing_page_is_rendered_and_stored(make_site: MakeSite) -> None:
    seen = make_site(revalidate=60).visit("/a")
    assert (seen.code, seen.body, seen.label) == (200, b"/a v1", "MISS")
    assert seen.cache_status == "wsgi-isr; fwd=uri-miss; stored"


def test_a_fresh_page_is_served_without_the_app(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    seen = site.visit("/a")
    assert (seen.body, seen.label, origin.calls["/a"]) == (b"/a v1", "HIT", 1)


def test_a_page_is_fresh_until_just_before_revalidate(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(59.99)
    assert site.visit_and_settle("/a").label == "HIT"
    assert origin.calls["/a"] == 1


def test_a_page_as_old_as_revalidate_is_stale(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(60)
    assert site.visit_and_settle("/a").label == "STALE"
    assert origin.calls["/a"] == 2


def test_a_fraction_of_a_second_is_a_lifetime(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=0.5)
    site.visit("/a")
    clock.advance(0.4)
    assert site.visit("/a").label == "HIT"
    clock.advance(0.2)
    assert site.visit("/a").label == "STALE"


def test_a_stale_page_is_served_while_its_render_is_held(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    first = site.visit("/a")
    gate.wait_until_entered()
    second = site.visit("/a")
    assert [(seen.body, seen.label) for seen in (first, second)] == [(b"/a v1", "STALE")] * 2


def test_the_page_rendered_in_the_background_is_what_comes_next(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(61)
    site.visit_and_settle("/a")
    seen = site.visit("/a")
    assert (seen.body, seen.label, seen.age) == (b"/a v2", "HIT", 0)
    assert origin.calls["/a"] == 2


def test_many_visits_to_a_stale_page_start_one_render(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    seen = all_at_once(30, lambda _: site.visit("/a"))
    gate.open()
    site.settle()
    assert {visit.label for visit in seen} == {"STALE"}
    assert origin.calls["/a"] == 2


def test_without_expire_a_page_of_any_age_is_served_while_a_new_one_is_made(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(60 * 86400)
    seen = site.visit("/a")
    assert (seen.body, seen.label) == (b"/a v1", "STALE")


def test_a_page_past_expire_is_rendered_before_anybody_gets_it(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, expire=300)
    site.visit("/a")
    clock.advance(301)
    seen = site.visit("/a")
    assert (seen.body, seen.label, seen.age, origin.calls["/a"]) == (b"/a v2", "EXPIRED", 0, 2)
    assert site.visit("/a").label == "HIT"


def test_a_page_just_before_expire_is_stale(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=300)
    site.visit("/a")
    clock.advance(299.9)
    assert site.visit("/a").label == "STALE"


def test_expire_may_equal_revalidate_and_then_nothing_is_ever_stale(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    clock.advance(60.1)
    assert site.visit("/a").label == "EXPIRED"


def test_age_counts_from_the_end_of_the_render(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    def slow(_: Environ) -> bytes:
        clock.advance(20)
        return b"slow"

    origin.on("/a", answer(slow))
    site = make_site(revalidate=10)
    assert site.visit("/a").age == 0
    clock.advance(9)
    seen = site.visit("/a")
    assert (seen.label, seen.age) == ("HIT", 9)


def test_thirty_visitors_of_a_cold_page_share_one_render(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    seen = all_at_once(30, lambda _: site.visit("/a"))
    assert {visit.body for visit in seen} == {b"/a v1"}
    assert origin.calls["/a"] == 1


def test_visitors_who_come_while_a_cold_page_is_rendered_join_in(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    gate = origin.hold("/a")
    first = site.start_visit("/a")
    gate.wait_until_entered()
    others = [site.start_visit("/a") for _ in range(5)]
    gate.open()
    assert {visit.result().body for visit in (first, *others)} == {b"/a v1"}
    assert origin.calls["/a"] == 1


def test_thirty_visitors_of_an_expired_page_share_one_render(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    clock.advance(61)
    seen = all_at_once(30, lambda _: site.visit("/a"))
    assert {visit.body for visit in seen} == {b"/a v2"}
    assert origin.calls["/a"] == 2


def test_the_render_of_one_page_holds_up_no_other_page(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    gate = origin.hold("/slow")
    slow = site.start_visit("/slow")
    gate.wait_until_entered()
    assert site.visit("/quick").body == b"/quick v1"
    assert not slow.over
    gate.open()
    assert slow.result().body == b"/slow v1"


# Several processes: one middleware each, on one store.


def test_what_one_instance_stored_the_next_one_serves(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store) for _ in range(2))
    one.visit("/a")
    clock.advance(7)
    seen = two.visit("/a")
    assert (seen.body, seen.label, seen.age, origin.calls["/a"]) == (b"/a v1", "HIT", 7, 1)


def test_an_instance_sees_what_another_one_rendered_after_its_own_copy_went_stale(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store) for _ in range(2))
    one.visit("/a")
    two.visit("/a")
    clock.advance(61)
    one.visit_and_settle("/a")
    seen = two.visit_and_settle("/a")
    assert (seen.body, seen.label) == (b"/a v2", "HIT")
    assert origin.calls["/a"] == 2


def test_while_one_instance_renders_the_other_serves_stale_and_does_not(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store) for _ in range(2))
    one.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    one.visit("/a")
    gate.wait_until_entered()
    seen = two.visit("/a")
    two.settle(held=1)
    assert (seen.body, seen.label, origin.calls["/a"]) == (b"/a v1", "STALE", 2)
    assert clock.paused == [], "somebody waited although there was something to serve"


def test_a_cold_instance_waits_for_the_render_of_another_one(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store) for _ in range(2))
    gate = origin.hold("/a")
    first = one.start_visit("/a")
    gate.wait_until_entered()
    clock.on_pause = lambda _: finish(gate, first)
    seen = two.visit("/a")
    assert (seen.body, origin.calls["/a"]) == (b"/a v1", 1)
    assert clock.paused != []


def finish(gate: Gate, visit: Visit) -> None:
    gate.open()
    visit.result()


def test_pauses_of_a_waiting_instance_grow(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store, lock_timeout=5) for _ in range(2))
    gate = origin.hold("/a")
    first = one.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    two.visit("/a")
    finish(gate, first)
    assert len(clock.paused) > 3
    assert max(clock.paused[:2]) < max(clock.paused) <= 5
    assert clock.paused[0] < 0.2


def test_who_waited_as_long_as_wait_renders_without_storing(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store, lock_timeout=2) for _ in range(2))
    gate = origin.hold("/a")
    first = one.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    begin = clock.now
    seen = two.visit("/a")
    assert seen.body == b"/a v2"
    assert "stored" not in seen.cache_status
    assert 2 <= clock.now - begin < 3
    finish(gate, first)
    assert make_site(revalidate=60, store=store).visit("/a").body == b"/a v1"


def test_with_wait_0_nobody_waits_for_another_instance(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store, lock_timeout=0) for _ in range(2))
    gate = origin.hold("/a")
    first = one.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    assert two.visit("/a").body == b"/a v2"
    assert sum(clock.paused) == 0
    finish(gate, first)


def test_who_waits_takes_over_when_the_renderer_is_gone(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store, lock_timeout=25) for _ in range(2))
    gate = origin.hold("/a")
    frozen = one.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    begin = clock.now
    # The fake clock jumps, so the first process cannot renew its lease, as if it had been killed.
    seen = two.visit("/a")
    assert (seen.body, seen.cache_status) == (b"/a v2", "wsgi-isr; fwd=uri-miss; stored")
    assert 3 <= clock.now - begin < 20
    finish(gate, frozen)
    assert make_site(revalidate=60, store=store).visit("/a").body == b"/a v2"


def test_a_late_writer_does_not_overwrite_a_page_rendered_after_its_own(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store, render_timeout=600) for _ in range(2))
    gate = origin.hold("/a")
    late = one.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    clock.advance(59)  # as if the first process had slept: its lease expires
    assert two.visit("/a").body == b"/a v2"
    gate.open()
    late.result()
    assert make_site(revalidate=60, store=store).visit("/a").body == b"/a v2"


# timeout, and wait within one process


def slow(clock: Clock, seconds: float) -> Any:
    """Return a handler that takes so many seconds."""

    def render(_: Environ) -> bytes:
        clock.advance(seconds)
        return b"slow"

    return answer(render)


def test_a_render_just_within_timeout_is_stored(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", slow(clock, 29))
    site = make_site(revalidate=60, render_timeout=30)
    site.visit("/a")
    assert site.visit("/a").label == "HIT"


def test_a_cold_render_past_timeout_is_not_stored(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", slow(clock, 31))
    site = make_site(revalidate=60, render_timeout=30)
    seen = site.visit("/a")
    assert seen.code == 200
    assert "stored" not in seen.cache_status
    origin.mend("/a")
    clock.advance(60)
    assert site.visit("/a").label == "MISS"


def test_a_background_render_past_timeout_leaves_the_old_page(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, render_timeout=30)
    site.visit("/a")
    clock.advance(61)
    origin.on("/a", slow(clock, 31))
    site.visit_and_settle("/a")
    assert origin.calls["/a"] == 2
    seen = site.visit("/a")
    assert (seen.body, seen.age) == (b"/a v1", 92)


def test_an_expired_page_is_served_where_its_render_takes_longer_than_timeout(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, expire=60, render_timeout=30)
    site.visit("/a")
    clock.advance(61)
    origin.on("/a", slow(clock, 31))
    seen = site.visit("/a")
    assert (seen.body, seen.label) == (b"/a v1", "STALE-IF-ERROR")


def time_out(site: Site, clock: Clock, seconds: float = 31) -> None:
    """Let time pass over the renders in progress, and return when this render was given up."""
    clock.advance(seconds)
    # A render that begins makes the lease keep-alive look at the clock.
    site.visit("/unrelated")
    site.wait_for(RenderFailed)


def test_all_who_wait_for_a_render_get_the_expired_page_when_it_times_out(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, expire=60, render_timeout=30)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    visits = [site.start_visit("/a") for _ in range(3)]
    gate.wait_until_entered()
    time_out(site, clock)
    for visit in visits:
        seen = visit.result()
        assert (seen.body, seen.label) == (b"/a v1", "STALE-IF-ERROR")


def test_who_waits_for_a_missing_page_whose_render_times_out_is_not_held_any_longer(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, render_timeout=30, lock_timeout=600)
    gate = origin.hold("/a")
    first = site.start_visit("/a")
    gate.wait_until_entered()
    second = site.start_visit("/a")
    origin.let_go("/a")
    time_out(site, clock)
    seen = second.result()
    assert "stored" not in seen.cache_status or seen.body != b"/a v1"
    finish(gate, first)


def test_a_render_given_up_at_timeout_is_not_stored_when_it_ends(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, render_timeout=30)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    site.visit("/a")
    gate.wait_until_entered()
    time_out(site, clock)
    gate.open()
    site.settle()
    seen = site.visit("/a")
    assert (seen.body, seen.label) == (b"/a v1", "STALE")


def test_a_page_whose_render_was_given_up_is_rendered_by_somebody_else(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, render_timeout=30)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    site.visit("/a")
    gate.wait_until_entered()
    time_out(site, clock)
    origin.let_go("/a")
    clock.advance(60)  # longer than any back-off
    site.visit("/a")
    site.settle(held=1)
    assert site.visit("/a").body == b"/a v3"
    gate.open()
    site.settle()
    assert site.visit("/a").body == b"/a v3"


def test_with_wait_0_nobody_waits_for_a_render_of_this_process(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, lock_timeout=0)
    gate = origin.hold("/a")
    first = site.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    seen = site.visit("/a")
    assert seen.body == b"/a v2"
    assert "stored" not in seen.cache_status
    finish(gate, first)
    assert site.visit("/a").body == b"/a v1"


def test_with_wait_0_nobody_waits_for_the_render_of_an_expired_page(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, expire=60, lock_timeout=0)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    first = site.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    assert site.visit("/a").body in (b"/a v1", b"/a v3")
    finish(gate, first)


# Rules


def test_false_is_fresh_for_ever(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=False)
    site.visit("/a")
    clock.advance(20 * 365 * 86400)
    assert site.visit("/a").label == "HIT"


def test_zero_is_never_cached(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/account/<path:rest>": 0}, revalidate=60)
    assert [site.visit("/account/x").label for _ in range(2)] == ["BYPASS", "BYPASS"]
    assert origin.calls["/account/x"] == 2


def test_a_built_in_profile_is_a_lifetime(make_site: MakeSite, clock: Clock) -> None:
    site = make_site({"/a": Rule(revalidate="minutes"), "/b": "hours"})
    for path, least in (("/a", 60), ("/b", 3600)):
        site.visit(path)
        revalidate = site.lifetime(path).revalidate
        assert revalidate is not None
        assert revalidate >= least


@pytest.mark.parametrize("rule", [10, 10.0, Rule(revalidate=10), {"revalidate": 10}])
def test_a_bare_number_a_rule_and_a_mapping_say_the_same(make_site: MakeSite, rule: Any) -> None:
    site = make_site({"/a": rule})
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 10


@pytest.mark.parametrize(
    ("path", "seconds"),
    [("/b/new", 1), ("/b/17", 2), ("/b/some-slug", 3), ("/b/x/y", 4), ("/other", 5), ("/", 5)],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_most_specific_pattern_wins_whatever_the_order(
    make_site: MakeSite, path: str, seconds: int, backwards: bool
) -> None:
    rules = {"/b/new": 1, "/b/<int:id>": 2, "/b/<slug>": 3, "/b/<path:rest>": 4}
    pairs = list(reversed(rules.items())) if backwards else list(rules.items())
    site = make_site(dict(pairs), revalidate=5)
    site.visit(path)
    assert site.lifetime(path).revalidate == seconds


def test_rules_may_be_a_list_of_pairs(make_site: MakeSite) -> None:
    site = make_site([("/a", 10)])
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 10


def test_a_trailing_slash_makes_another_page(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": 10}, revalidate=60)
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 10
    seen = site.visit("/a/")
    assert (seen.body, site.lifetime("/a/").revalidate) == (b"/a/ v1", 60)


def test_a_rule_takes_what_it_does_not_say_from_the_options(make_site: MakeSite, clock: Clock) -> None:
    site = make_site({"/a": Rule(revalidate=10)}, expire=20)
    site.visit("/a")
    clock.advance(21)
    assert site.visit("/a").label == "EXPIRED"


def test_a_rule_matches_below_the_script_name(make_site: MakeSite) -> None:
    assert make_site({"/a": 10}).visit("/a", script_name="/app").label == "MISS"


def test_beside_rules_an_unlisted_page_is_the_app_s_business_alone(make_site: MakeSite, origin: Origin) -> None:
    headers = [("Cache-Control", "s-maxage=30, max-age=5"), ("Cache-Tag", "a"), ("ETag", '"own"')]
    origin.on("/a", answer(b"x", *headers))
    site = make_site({"/other": 10})
    for number in (1, 2, 3):
        seen = site.visit("/a", cookie="name=alice")
        assert (seen.label, seen.cache_status) == ("BYPASS", 'wsgi-isr; fwd=bypass; detail="no-rule"')
        assert origin.calls["/a"] == number
        assert origin.last("/a")["HTTP_COOKIE"] == "name=alice"
        assert headers == [pair for pair in seen.headers if pair[0] in ("Cache-Control", "Cache-Tag", "ETag")]
    assert site.store.size == 0


@pytest.mark.parametrize("rules", [None, {}])
def test_a_page_that_says_nothing_of_freshness_costs_one_call_more(
    make_site: MakeSite, origin: Origin, clock: Clock, rules: Any
) -> None:
    site = make_site(rules, uncacheable_ttl=60)
    for _ in range(5):
        seen = site.visit("/a", cookie="name=alice")
        assert (seen.label, seen.cache_status) == ("BYPASS", 'wsgi-isr; fwd=bypass; detail="not-asked"')
    assert origin.calls["/a"] == 6
    clock.advance(61)
    site.visit_and_settle("/a")
    assert origin.calls["/a"] == 8


def test_an_unlisted_page_is_cached_when_the_app_asks_for_it(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/a", answer(b"x", ("Cache-Control", "s-maxage=30")))
    site = make_site()
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]
    clock.advance(30)
    assert site.visit_and_settle("/a").label == "STALE"
    assert origin.calls["/a"] == 2


def test_the_app_says_how_long_its_unlisted_page_may_be_stale(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", answer(b"x", ("Cache-Control", "public, s-maxage=30, stale-while-revalidate=20")))
    site = make_site()
    site.visit("/a")
    site.visit("/a")
    clock.advance(49)
    assert site.visit("/a").label == "STALE"
    site.settle()
    clock.advance(51)
    assert site.visit("/a").label == "EXPIRED"


def test_what_a_visitor_sent_to_an_unlisted_page_is_not_in_what_is_cached(make_site: MakeSite, origin: Origin) -> None:
    def greet(environ: Environ) -> bytes:
        return f"hello {environ.get('HTTP_COOKIE', 'you')}".encode()

    origin.on("/a", answer(greet, ("Cache-Control", "s-maxage=30")))
    site = make_site()
    for _ in range(3):
        site.visit("/a", cookie="name=alice")
    assert {site.visit("/a").body for _ in range(3)} == {b"hello you"}


@pytest.mark.parametrize(
    ("header", "label"),
    [
        (("Cache-Control", "max-age=30"), "HIT"),
        (("CDN-Cache-Control", "max-age=30"), "HIT"),
        (("Expires", "Tue, 14 Nov 2023 22:14:20 GMT"), "HIT"),
        (("Cache-Control", "max-age=30, private"), "BYPASS"),
        (("Expires", "0"), "BYPASS"),
        (("Last-Modified", "Tue, 14 Nov 2000 22:14:20 GMT"), "BYPASS"),
    ],
)
def test_a_page_is_cached_for_as_long_as_its_headers_say_and_never_by_guess(
    make_site: MakeSite, origin: Origin, header: tuple[str, str], label: str
) -> None:
    origin.on("/a", answer(b"x", header))
    site = make_site()
    assert [site.visit("/a").label for _ in range(3)][1:] == [label] * 2


@pytest.mark.parametrize("value", ["public", "s-maxage=0", "s-maxage", "s-maxage=x"])
def test_an_unlisted_page_is_not_cached_where_its_headers_say_no_time(
    make_site: MakeSite, origin: Origin, value: str
) -> None:
    origin.on("/a", answer(b"x", ("Cache-Control", value)))
    site = make_site()
    seen = [site.visit("/a") for _ in range(3)]
    assert {visit.label for visit in seen} == {"BYPASS"}
    assert seen[-1].headers["Cache-Control"] == value


def test_an_unlisted_page_that_no_longer_asks_is_no_longer_cached(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", answer(b"x", ("Cache-Control", "s-maxage=30")))
    site = make_site()
    site.visit("/a")
    origin.on("/a", answer(b"private now", ("Cache-Control", "private")))
    clock.advance(31)
    site.visit_and_settle("/a")
    clock.advance(86400)
    site.visit_and_settle("/a")
    clock.advance(86400)
    site.visit_and_settle("/a")
    assert make_site().visit("/a").label == "BYPASS"


def test_rendering_happens_once_for_every_window(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=2)
    site.visit("/a")
    for _ in range(9):
        clock.advance(2)
        for _ in range(5):
            site.visit_and_settle("/a")
    assert origin.calls["/a"] == 10
    assert len(site.happened(Rendered)) == 10


def test_two_instances_render_once_for_every_window_under_threads(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=2, store=store) for _ in range(2)]
    all_at_once(8, lambda number: sites[number % 2].visit("/a"))
    first = origin.calls["/a"]
    for _ in range(5):
        clock.advance(2)
        all_at_once(8, lambda number: sites[number % 2].visit("/a"))
        for site in sites:
            site.settle()
    assert origin.calls["/a"] == first + 5


def test_pages_of_two_namespaces_in_one_store_are_apart(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store, namespace=name) for name in ("one", "two"))
    assert one.visit("/a").body == b"/a v1"
    assert two.visit("/a").body == b"/a v2"
    assert one.visit("/a").body == b"/a v1"


def test_the_null_store_keeps_nothing(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, store="null://")
    assert [site.visit("/a").body for _ in range(2)] == [b"/a v1", b"/a v2"]


def test_with_the_null_store_visitors_at_once_still_share_a_render(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, store="null://")
    gate = origin.hold("/a")
    first = site.start_visit("/a")
    gate.wait_until_entered()
    second = site.start_visit("/a")
    gate.open()
    assert first.result().code == second.result().code == 200
    assert origin.calls["/a"] <= 2


def test_a_page_is_stored_in_memory_by_url(make_site: MakeSite) -> None:
    site = make_site(revalidate=60, store="memory://")
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]


def test_after_close_the_middleware_begins_anew(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    assert site.isr.close(5)
    assert site.visit("/a").body == b"/a v1"
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a").body == b"/a v2"


def test_close_says_when_a_render_is_still_under_way(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    site.visit("/a")
    gate.wait_until_entered()
    closing: list[bool] = []
    thread = threading.Thread(target=lambda: closing.append(site.isr.close(0)))
    thread.start()
    thread.join(DEADLINE)
    assert closing == [False]
    gate.open()


def test_a_page_that_grew_since_is_served_whole(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    origin.on("/a", answer(b"short"))
    site.visit("/a")
    origin.on("/a", answer(b"long" * 100_000))
    clock.advance(61)
    site.visit_and_settle("/a")
    seen: Seen = site.visit("/a")
    assert seen.body == b"long" * 100_000
