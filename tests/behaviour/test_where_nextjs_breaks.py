"""Eighteen situations in which a well-known implementation of ISR fails, and the promises of this one."""

from __future__ import annotations

import datetime
import decimal
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Boom, Environ, Handler, Origin, answer, failing
from tests.behaviour.visitor import ASKED_EACH_TIME, Clock, Jobs, Seen, Site, all_at_once
from wsgi_isr import ISR, ConfigError, RefreshError, Rule, cache_tag, cached, enable_draft
from wsgi_isr.stores.base import Token
from wsgi_isr.stores.memory import MemoryStore

MODES = ["stale", "expire", "purge"]
HARD = ["expire", "purge"]

MakeSiteAt = Callable[..., Site]


@pytest.fixture
def make_site_at(origin: Origin, jobs: Jobs) -> Iterator[MakeSiteAt]:
    """Return ``make_site_at(clock, rules, ...)``: like ``make_site``, with a clock of its own."""
    sites: list[Site] = []

    def make(clock: Clock, rules: Any = None, **options: Any) -> Site:
        sites.append(Site(origin, rules, clock=clock, jobs=jobs, **options))
        return sites[-1]

    yield make
    origin.open_all()
    jobs.wait()
    for site in sites:
        site.isr.close(20)


class NotingStore(MemoryStore):
    """A store that records the written keys, and the number of keys with a value."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.written: set[str] = set()

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self.written.add(key)
        super().set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self.written.add(key)
        return super().add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self.written.add(key)
        return super().cas(key, value, token, ttl)

    def held(self) -> set[str]:
        return {key for key in self.written if self.get(key) is not None}


def page(show: Callable[[], Any]) -> Callable[[Environ, Callable[..., Any]], Iterable[bytes]]:
    """Return a handler whose page shows the result of ``show``."""
    return answer(lambda environ: str(show()).encode())


def is_fresh(seen: Seen) -> bool:
    """Return whether an answer claims to be fresh."""
    return seen.label in ("HIT", "MISS", "EXPIRED")


# 1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["one instance", "two instances"])
def test_row_01_a_refresh_in_flight_during_an_invalidation_never_serves_the_old_data_as_fresh(
    make_site: MakeSite, origin: Origin, clock: Clock, mode: str, elsewhere: bool
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site({"/a": Rule(revalidate=60, tags=["t"])}, store=store, coherence=0) for _ in range(2)]
    sites[0].visit("/a")
    clock.advance(60)
    gate = origin.hold("/a")
    assert sites[0].visit("/a").label == "STALE"
    gate.wait_until_entered()  # the render has read data that is old by now
    origin.let_go("/a")
    sites[elsewhere].isr.invalidate(tags=["t"], mode=mode)
    gate.open()
    sites[0].settle()
    first = {site: site.visit_and_settle("/a") for site in sites}
    for seen in first.values():
        assert not (is_fresh(seen) and seen.body in (b"/a v1", b"/a v2")), seen
        if mode in HARD:
            assert seen.body not in (b"/a v1", b"/a v2")
    for site in sites:
        seen = site.visit_and_settle("/a")
        assert (seen.label, seen.body not in (b"/a v1", b"/a v2")) == ("HIT", True)


@pytest.mark.parametrize("mode", HARD)
def test_row_01_who_comes_after_a_hard_invalidation_is_not_given_a_first_render_that_began_before_it(
    make_site: MakeSite, origin: Origin, mode: str
) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])})
    gate = origin.hold("/a")
    early = site.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    site.isr.invalidate(tags=["t"], mode=mode)
    late = site.start_visit("/a")
    gate.open()
    assert early.result().body == b"/a v1"
    assert late.result().body == b"/a v2"
    seen = site.visit_and_settle("/a")
    assert (seen.label, seen.body) == ("HIT", b"/a v2")


# 2 ------------------------------------------------------------------------------------------------------


def test_row_02_a_soft_invalidation_after_a_hard_one_leaves_the_page_expired(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])})
    site.visit("/a")
    site.isr.invalidate(tags=["t"], mode="expire")
    site.isr.invalidate(tags=["t"], mode="stale")
    seen = site.visit("/a")
    assert (seen.label, seen.body) == ("EXPIRED", b"/a v2")


@pytest.mark.parametrize("weaker", ["stale", "expire"])
def test_row_02_nothing_weaker_after_a_purge_brings_the_page_back(
    make_site: MakeSite, origin: Origin, weaker: str
) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])})
    site.visit("/a")
    site.isr.invalidate(tags=["t"], mode="purge")
    site.isr.invalidate(tags=["t"], mode=weaker)
    origin.on("/a", answer(b"sorry", status="503 Service Unavailable"))
    assert site.visit("/a").code == 503


# 3 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_row_03_an_invalidation_concerns_only_what_was_rendered_before_it(
    make_site: MakeSite, origin: Origin, clock: Clock, mode: str
) -> None:
    site = make_site({"/a": Rule(revalidate=3600, tags=["t"])})
    site.visit("/a")
    site.isr.invalidate(tags=["t"], mode=mode)
    clock.advance(1)
    site.visit_and_settle("/a")
    for _ in range(30):
        clock.advance(100)
        seen = site.visit("/a")
        assert (seen.label, seen.body) == ("HIT", b"/a v2")
    assert origin.calls["/a"] == 2


# 4 ------------------------------------------------------------------------------------------------------


FAILURES = {"raises": failing(Boom()), "answers 500": answer(b"sorry", status="500 Internal Server Error")}


@pytest.mark.parametrize("how", FAILURES.values(), ids=FAILURES)
def test_row_04_a_hard_invalidation_beside_a_failing_backend_keeps_the_old_page_and_backs_off(
    make_site: MakeSite, origin: Origin, clock: Clock, how: Handler
) -> None:
    site = make_site({"/a": Rule(revalidate=3600, tags=["t"])})
    site.visit("/a")
    origin.on("/a", how)
    site.isr.invalidate(tags=["t"])
    for attempt in (1, 2):
        for _ in range(5):
            seen = site.visit_and_settle("/a")
            assert (seen.code, seen.label, seen.body) == (200, "STALE-IF-ERROR", b"/a v1")
        assert origin.calls["/a"] == 1 + attempt
        clock.advance(120)  # longer than any back-off
    origin.mend("/a")
    seen = site.visit_and_settle("/a")
    assert (seen.label, seen.body) == ("EXPIRED", b"/a v4")
    assert site.visit("/a").label == "HIT"


@pytest.mark.parametrize("how", FAILURES.values(), ids=FAILURES)
def test_row_04_after_a_hard_invalidation_the_whole_cluster_backs_off_together(
    make_site: MakeSite, origin: Origin, clock: Clock, how: Handler
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site({"/a": Rule(revalidate=3600, tags=["t"])}, store=store, coherence=0) for _ in range(3)]
    for site in sites:
        site.visit("/a")
    origin.on("/a", how)
    sites[0].isr.invalidate(tags=["t"])
    for attempt in (1, 2):
        for _ in range(5):
            for site in sites:
                seen = site.visit_and_settle("/a")
                assert (seen.code, seen.label, seen.body) == (200, "STALE-IF-ERROR", b"/a v1")
        assert origin.calls["/a"] == 1 + attempt
        clock.advance(120)


# 5 ------------------------------------------------------------------------------------------------------


def test_row_05_past_expire_beside_an_error_everybody_gets_the_old_page_labelled_error_retained(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=10, expire=20)
    site.visit("/a")
    clock.advance(25)
    origin.on("/a", failing(Boom()))
    for _ in range(6):
        seen = site.visit_and_settle("/a")
        assert (seen.code, seen.label, seen.body) == (200, "STALE-IF-ERROR", b"/a v1")
        assert seen.age == 25
        assert seen.directives == ASKED_EACH_TIME
    assert origin.calls["/a"] == 2
    clock.advance(120)
    assert site.visit_and_settle("/a").label == "STALE-IF-ERROR"
    assert origin.calls["/a"] == 3
    origin.mend("/a")
    clock.advance(120)
    seen = site.visit_and_settle("/a")
    assert (seen.label, seen.body) == ("EXPIRED", b"/a v4")
    assert site.visit("/a").label == "HIT"


# 6 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "elsewhere",
    [
        pytest.param(False, id="one instance"),
        pytest.param(
            True,
            id="two instances",
        ),
    ],
)
def test_row_06_a_refresh_on_demand_does_not_join_one_that_hangs_but_renders_anew(
    make_site: MakeSite, origin: Origin, clock: Clock, elsewhere: bool
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=60, store=store, coherence=0) for _ in range(2)]
    sites[0].visit("/a")
    clock.advance(60)
    gate = origin.hold("/a")
    assert sites[0].visit("/a").label == "STALE"
    gate.wait_until_entered()
    origin.let_go("/a")
    assert sites[elsewhere].isr.refresh("/a") is True
    clock.advance(0.2)  # until then an instance may serve, as stale, what it found stale just now
    for site in sites:
        seen = site.visit("/a")
        assert (seen.label, seen.body) == ("HIT", b"/a v3")
    gate.open()
    sites[0].settle()
    for site in sites:
        seen = site.visit_and_settle("/a")
        assert (seen.label, seen.body) == ("HIT", b"/a v3")


def test_row_06_a_refresh_that_takes_longer_than_timeout_is_a_failure_and_not_a_success_with_old_data(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=600, render_timeout=30)
    site.visit("/a")

    def slow(environ: Environ) -> bytes:
        clock.advance(31)
        return b"late"

    origin.on("/a", answer(slow))
    with pytest.raises(RefreshError):
        site.isr.refresh("/a")
    assert site.visit("/a").body == b"/a v1"


# 7 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_row_07_after_a_restart_a_page_invalidated_before_it_is_not_fresh_again(
    make_site: MakeSite, origin: Origin, tmp_path: Path, mode: str
) -> None:
    url, rules = f"sqlite:///{tmp_path}/pages.db", {"/a": Rule(revalidate=False, tags=["t"])}
    before = make_site(rules, store=url)
    before.visit("/a")
    before.isr.invalidate(tags=["t"], mode=mode)
    before.isr.close(20)
    after = make_site(rules, store=url)
    seen = after.visit_and_settle("/a")
    assert (seen.label == "STALE") == (mode == "stale")
    assert seen.label != "HIT"
    assert after.visit("/a").body == b"/a v2"


@pytest.mark.parametrize("mode", MODES)
def test_row_07_a_second_instance_knows_what_the_first_one_invalidated(
    make_site: MakeSite, clock: Clock, mode: str
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site({"/a": Rule(revalidate=False, tags=["t"])}, store=store) for _ in range(2))
    one.visit("/a")
    assert two.visit("/a").label == "HIT"  # the instance has an L1 entry now
    one.isr.invalidate(tags=["t"], mode=mode)
    clock.advance(0.1)  # the `coherence` of two
    seen = two.visit_and_settle("/a")
    assert (seen.label == "STALE") == (mode == "stale")
    assert seen.label != "HIT"
    assert two.visit("/a").body == b"/a v2"


@pytest.mark.parametrize("invalidated", [False, True])
def test_row_07_what_is_lost_about_a_tag_counts_as_invalidated(
    make_site: MakeSite, clock: Clock, invalidated: bool
) -> None:
    store = NotingStore(clock)
    rules = {"/a": Rule(revalidate=False, tags=["t"])}
    site = make_site(rules, store=store, coherence=0)
    store.written.clear()
    site.isr.invalidate(tags=["t"])
    of_the_tag = set(store.written)
    assert of_the_tag
    site.visit("/a")
    assert site.visit("/a").label == "HIT"
    if invalidated:
        site.isr.invalidate(tags=["t"])
    for key in of_the_tag:
        store.delete(key)
    other = make_site(rules, store=store, coherence=0)
    for one in (other, site):
        assert one.visit_and_settle("/a").body != b"/a v1"
        assert one.visit("/a").label == "HIT"


# 8 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [-86400.0, -60.0, 60.0, 86400.0])
def test_row_08_instances_whose_clocks_differ_agree_on_what_is_invalidated(
    make_site_at: MakeSiteAt, clock: Clock, ahead: float
) -> None:
    store, rules = MemoryStore(clock=clock), {"/a": Rule(revalidate=False, tags=["t"])}
    here = make_site_at(clock, rules, store=store, coherence=0)
    there = make_site_at(Clock(clock.now + ahead), rules, store=store, coherence=0)
    for version, (renders, invalidates) in enumerate([(here, there), (there, here), (here, there)], 1):
        assert renders.visit("/a").text == f"/a v{version}"
        # The page was rendered after the earlier invalidation: fresh for both, on any clock.
        assert [site.visit("/a").label for site in (here, there)] == ["HIT", "HIT"]
        invalidates.isr.invalidate(tags=["t"])
    assert here.visit("/a").body == b"/a v4"
    assert there.visit("/a").label == "HIT"


# 9 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    [
        "a,b",
        ",",
        "a, b",
        " a ",
        "a b",
        "a\nb",
        "a\x00b",
        '"quoted"',
        "{slug}",
        "ключ",
        "\N{PILE OF POO}",
        "e\u0301",
        "%2C",
        "*",
        "tag:a",
        "path:/a",
        "x" * 5000,
        "half of a pair \udcff",
    ],
    ids=lambda tag: ascii(tag[:20]),
)
def test_row_09_any_text_is_a_tag(make_site: MakeSite, origin: Origin, tag: str) -> None:
    site = make_site(revalidate=60)

    def tagged() -> str:
        cache_tag(tag)
        return f"v{origin.calls['/a']}"

    origin.on("/a", page(tagged))
    site.visit("/a")
    for near in {"a", "b", "a b", "a,", "x" * 4999, "slug", "\u00e9", "ab", ","} - {tag}:
        site.isr.invalidate(tags=[near])
        assert site.visit("/a").label == "HIT", near
    site.isr.invalidate(tags=[tag])
    assert site.visit("/a").body == b"v2"


def test_row_09_tags_of_a_rule_are_a_list_and_a_page_may_have_many(make_site: MakeSite, origin: Origin) -> None:
    many = [f"{number}," for number in range(300)]
    site = make_site({"/a": Rule(revalidate=60, tags=["a,b", *many])})
    site.visit("/a")
    for tag in ("a,b", "0,", "150,", "299,"):
        assert site.visit("/a").label == "HIT"
        site.isr.invalidate(tags=[tag])
        assert site.visit("/a").label == "EXPIRED"


# 10 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body"),
    [("500 Internal Server Error", b"sorry"), ("502 Bad Gateway", b"sorry"), ("204 No Content", b"")],
)
def test_row_10_an_error_and_a_page_without_content_are_passed_on_and_never_stored(
    make_site: MakeSite, origin: Origin, clock: Clock, status: str, body: bytes
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=60, store=store, coherence=0) for _ in range(2)]
    origin.on("/a", answer(body, status=status, content_type=bool(body)))
    for number in range(6):
        before = origin.calls["/a"]
        seen = sites[number % 2].visit_and_settle("/a")
        assert (seen.status, seen.body, origin.calls["/a"] > before) == (status, body, True)
        assert "s-maxage" not in seen.directives
    origin.mend("/a")
    clock.advance(3600)
    assert {site.visit_and_settle("/a").status for site in sites} == {"200 OK"}


def test_row_10_a_cookie_that_is_set_for_one_visitor_is_never_given_to_another(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=60, store=store, coherence=0) for _ in range(2)]

    def hand_out(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        number = origin.calls["/a"]
        start_response("200 OK", [HTML, ("Set-Cookie", f"session={number}")])
        return [str(number).encode()]

    origin.on("/a", hand_out)
    seen = [sites[number % 2].visit_and_settle("/a") for number in range(6)]
    assert len({one.headers["Set-Cookie"] for one in seen}) == 6
    assert all(one.headers["Set-Cookie"] == f"session={one.text}" for one in seen)
    assert all("s-maxage" not in one.directives for one in seen)
    origin.mend("/a")
    clock.advance(3600)
    assert all("Set-Cookie" not in site.visit_and_settle("/a").headers for site in sites)


# 11 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [0, 1, 30, 100_000])
def test_row_11_a_stale_answer_tells_its_age_and_is_no_ones_to_keep(
    make_site: MakeSite, clock: Clock, over: int
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(20)
    fresh = site.visit("/a")
    revalidate = site.lifetime("/a").revalidate
    assert revalidate is not None
    assert revalidate - fresh.age == 40  # what is left
    clock.advance(40 + over)
    stale = site.visit_and_settle("/a")
    assert (stale.label, stale.age) == ("STALE", 60 + over)
    assert stale.directives == ASKED_EACH_TIME


def test_row_11_a_softly_invalidated_answer_is_no_ones_to_keep(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=3600)
    site.visit("/a")
    clock.advance(1)
    site.isr.invalidate(paths=["/a"], mode="stale")
    seen = site.visit_and_settle("/a")
    assert (seen.label, seen.age) == ("STALE", 1)
    assert seen.directives == ASKED_EACH_TIME


# 12 -----------------------------------------------------------------------------------------------------


def test_row_12_pages_that_are_not_there_live_shortly_and_leave_nothing_behind(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    def missing(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("404 Not Found", [HTML])
        return [b"x" * 10_000]

    store = NotingStore(clock)
    site = make_site({"/blog/<slug>": Rule(revalidate=False, tags=["post:{slug}"])}, app=missing, store=store)
    slugs = [f"{random.Random(number).getrandbits(64):x}" for number in range(200)]
    for slug in slugs:
        assert site.visit(f"/blog/{slug}").code == 404
    assert site.visit(f"/blog/{slugs[-1]}").label == "HIT"
    clock.advance(11)
    assert site.visit(f"/blog/{slugs[-1]}").label not in ("HIT", "STALE")
    clock.advance(3600)
    bytes_left = sum(len(store.get(key) or b"") for key in store.held())
    assert bytes_left < 200 * 500  # of 2 MB: no page is left


def test_row_12_a_file_of_pages_does_not_grow_past_its_limit(make_site: MakeSite, tmp_path: Path) -> None:
    def missing(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("404 Not Found", [HTML])
        return [random.Random(environ["PATH_INFO"]).randbytes(10_000)]

    limit = 500_000
    site = make_site(revalidate=60, app=missing, store=f"sqlite:///{tmp_path}/pages.db?max_bytes={limit}")
    sizes = []
    for number in range(200):
        assert site.visit(f"/blog/{number}").code == 404
        if number % 50 == 49:
            site.settle()
            sizes.append((tmp_path / "pages.db").stat().st_size)
    assert sizes[-1] <= 2 * limit, sizes


# 13 -----------------------------------------------------------------------------------------------------


def test_row_13_four_instances_render_a_missing_page_once(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=60, store=store, coherence=0) for _ in range(4)]
    gate = origin.hold("/a")
    first = sites[0].start_visit("/a")
    gate.wait_until_entered()
    everybody_waits = threading.Barrier(3)
    waits = threading.local()

    def wait_for_the_others(seconds: float) -> None:
        if not getattr(waits, "before", False):
            waits.before = True
            everybody_waits.wait(20)
            gate.open()
            first.result()

    clock.on_pause = wait_for_the_others
    others = [site.start_visit("/a") for site in sites[1:]]
    assert {visit.result().body for visit in (first, *others)} == {b"/a v1"}
    assert origin.calls["/a"] == 1


def test_row_13_four_instances_renew_a_stale_page_once(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=60, store=store, coherence=0) for _ in range(4)]
    for window in range(1, 6):
        for site in sites:
            site.visit_and_settle("/a")
        assert origin.calls["/a"] == window
        gate = origin.hold("/a")
        clock.advance(60)
        seen = all_at_once(16, lambda number: sites[number % 4].visit("/a"))
        assert {one.label for one in seen} == {"STALE"}
        gate.open()
        for site in sites:
            site.settle()
        origin.let_go("/a")
        clock.advance(0.2)  # until then an instance may serve, as stale, what it found stale just now
        assert {site.visit("/a").text for site in sites} == {f"/a v{window + 1}"}
    assert origin.calls["/a"] == 6


# 14 -----------------------------------------------------------------------------------------------------

SECRET = "known to the servers only"


def draft_cookie(site: Site, path: str = "/preview") -> str:
    """Return the draft cookie as its visitor sends it back."""
    (line,) = site.visit(path).headers.getlist("Set-Cookie")
    assert "httponly" in line.lower()
    return line.partition(";")[0]


def drafts(origin: Origin) -> None:
    def let_in(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [HTML]
        enable_draft(headers, max_age=600)
        start_response("200 OK", headers)
        return [b"welcome"]

    origin.on("/preview", let_in)


def test_row_14_a_draft_cookie_makes_nothing_new_for_others(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, secret=SECRET)
    drafts(origin)
    cookie = draft_cookie(site)
    site.visit("/a")
    for _ in range(2):
        seen = site.visit_and_settle("/a", cookie=cookie)
        assert seen.label == "BYPASS"
        assert seen.body != b"/a v1"
        plain = site.visit("/a")
        assert (plain.label, plain.body) == ("HIT", b"/a v1")
    # A visitor in draft mode renders no cold page for others, either.
    site.visit_and_settle("/cold", cookie=cookie)
    assert site.visit("/cold").label == "MISS"


def test_row_14_a_draft_cookie_expires(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=3600, secret=SECRET)
    drafts(origin)
    cookie = draft_cookie(site)
    site.visit("/a")
    clock.advance(599)
    assert site.visit("/a", cookie=cookie).label == "BYPASS"
    clock.advance(2)
    assert site.visit("/a", cookie=cookie).label == "HIT"


def test_row_14_a_draft_cookie_is_signed_and_holds_no_secret(make_site: MakeSite, origin: Origin) -> None:
    site, foreign = (make_site(revalidate=60, secret=secret) for secret in (SECRET, "of another site"))
    drafts(origin)
    cookie = draft_cookie(site)
    name, _, value = cookie.partition("=")
    assert SECRET not in value
    assert value != draft_cookie(foreign).partition("=")[2]
    site.visit("/a")
    forged = ["", "1", SECRET, value[:-1], value + "x", value[1:], value.swapcase()]
    forged += [draft_cookie(foreign).partition("=")[2]]
    for wrong in forged:
        assert site.visit("/a", cookie=f"{name}={wrong}").body == b"/a v1", wrong
    assert site.visit("/a", cookie=cookie).label == "BYPASS"


# 15 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noticed", ["by age", "by an invalidation", "by a refresh"])
def test_row_15_a_page_that_turned_404_is_not_back_after_a_restart(
    make_site: MakeSite, origin: Origin, clock: Clock, tmp_path: Path, noticed: str
) -> None:
    url = f"sqlite:///{tmp_path}/pages.db"
    site = make_site(revalidate=60, negative_ttl=30, store=url)
    site.visit("/a")
    origin.on("/a", answer(b"gone", status="404 Not Found"))
    if noticed == "by age":
        clock.advance(60)
    elif noticed == "by an invalidation":
        site.isr.invalidate(paths=["/a"])
    else:
        site.isr.refresh("/a")
    site.visit_and_settle("/a")
    assert site.visit("/a").code == 404
    site.isr.close(20)
    again = make_site(revalidate=60, negative_ttl=30, store=url)
    seen = again.visit_and_settle("/a")
    assert (seen.label, seen.code) == ("HIT", 404)
    clock.advance(3600)
    # Past its lifetime the page is rendered again. Where this fails, the purged page still does not come back.
    origin.on("/a", answer(b"sorry", status="500 Internal Server Error"))
    assert again.visit_and_settle("/a").code != 200


# 16 -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Post:
    slug: str
    published: datetime.date
    tags: frozenset[str]
    price: decimal.Decimal


VALUES: list[Any] = [
    datetime.date(2024, 2, 29),
    datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=datetime.timezone.utc),
    datetime.datetime(2024, 2, 29, 12, 30),  # noqa: DTZ001
    decimal.Decimal("0.10"),
    uuid.UUID(int=7),
    {1, "1", (2, 3)},
    (1, [2], (3,)),
    {1: "int", "1": "text", (1, 2): "tuple", None: "nothing"},
    b"bytes\x00",
    None,
    True,
    1,
    1.0,
    2**70,
    Post("a", datetime.date(2024, 1, 1), frozenset({"x"}), decimal.Decimal("1.50")),
    {"posts": [Post("b", datetime.date(2024, 1, 2), frozenset(), decimal.Decimal(1))]},
]


def same(left: Any, right: Any) -> bool:
    """Return whether two values are equal, with the same types at any depth."""
    if type(left) is not type(right) or left != right:
        return False
    if isinstance(left, dict):
        pairs = sorted(left.items(), key=repr), sorted(right.items(), key=repr)
        return all(same(a, b) for one, other in zip(*pairs, strict=True) for a, b in zip(one, other, strict=True))
    if isinstance(left, (list, tuple)):
        return all(same(a, b) for a, b in zip(left, right, strict=True))
    return True


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_row_16_data_comes_back_from_the_store_as_what_it_was(
    make_site: MakeSite, origin: Origin, clock: Clock, value: Any
) -> None:
    store, calls, found = MemoryStore(clock=clock), Counter[str](), []

    @cached
    def read() -> Any:
        calls["read"] += 1
        return value

    def show() -> str:
        found.append(read())
        return "shown"

    origin.on("/a", page(show))
    for _ in range(2):  # the second process has the value from the store alone
        make_site({"/a": 0}, store=store).visit("/a")
    assert calls["read"] == 1
    assert all(same(one, value) for one in found), found


ARGUMENTS: Sequence[tuple[Any, ...]] = [
    ("a,b",),
    ("a", "b"),
    (["a", "b"],),
    (("a", "b"),),
    ({"a", "b"},),
    ({"a": "b"},),
    ("['a', 'b']",),
    (1,),
    ("1",),
    (1.0,),
    (True,),
    (b"1",),
    (None,),
    ("None",),
    ("",),
    ((),),
    ([],),
    ({},),
    (datetime.date(2024, 1, 1),),
    ("2024-01-01",),
    (datetime.datetime(2024, 1, 1),),  # noqa: DTZ001
    (decimal.Decimal("1.0"),),
    (decimal.Decimal("1.00"),),
    (uuid.UUID(int=1),),
    (str(uuid.UUID(int=1)),),
]


def test_row_16_different_arguments_never_share_a_key(make_site: MakeSite) -> None:
    site, calls = make_site(), []

    @cached
    def read(*arguments: Any) -> int:
        calls.append(arguments)
        return len(calls)

    assert [read(*arguments) for arguments in ARGUMENTS] == [*range(1, len(ARGUMENTS) + 1)]
    assert [read(*arguments) for arguments in ARGUMENTS] == [*range(1, len(ARGUMENTS) + 1)]
    assert site.isr


# 17 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["in the background", "past expire", "after an invalidation", "on demand"])
def test_row_17_a_regenerated_page_has_no_stale_data_in_it(
    make_site: MakeSite, origin: Origin, clock: Clock, how: str
) -> None:
    calls = Counter[str]()

    @cached(revalidate=40)
    def inner() -> str:
        calls["inner"] += 1
        return f"inner{calls['inner']}"

    @cached(revalidate=1000)
    def outer() -> str:
        return f"outer of {inner()}"

    site = make_site({"/warm": 0, "/a": Rule(revalidate=60, expire=100)})
    origin.on("/warm", page(outer))
    origin.on("/a", page(lambda: f"{outer()} v{origin.calls['/a']}"))
    site.visit("/warm")
    site.visit("/a")
    clock.advance(150 if how == "past expire" else 50)
    if how == "after an invalidation":
        site.isr.invalidate(paths=["/a"])
    elif how == "on demand":
        site.isr.refresh("/a")
    if how == "in the background":
        assert site.visit_and_settle("/a").label == "STALE"
    seen = site.visit("/a")
    assert seen.label in ("HIT", "EXPIRED")
    assert seen.body == b"outer of inner2 v2"
    assert site.visit("/a").label == "HIT"


# 18 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        (None, {"revalidate": 60, "expire": 59}),
        ({"/a": {"revalidate": 60, "expire": 59}}, {}),
        ({"/a": {"revalidate": 60}}, {"expire": 59}),
        ({"/a": {"expire": 59}}, {"revalidate": 60}),
        ({"/a": {"revalidate": "hours", "expire": 60}}, {}),
        ({"/a": {"revalidate": False, "expire": 60}}, {}),
        (None, {"revalidate": 10, "profiles": {"odd": (60, 59)}}),
    ],
)
def test_row_18_expire_below_revalidate_is_refused_at_start(rules: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expire|profiles"):
        ISR(Origin(), rules, store="memory://", **options)
