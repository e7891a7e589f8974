"""Refresh on demand: the result for the caller, the answers to visitors meanwhile, and failures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import DEADLINE, Boom, Environ, Origin, answer, failing
from tests.behaviour.visitor import Clock
from wsgi_isr import ConfigError, ISRError, RefreshError, Rule, cached, refresh
from wsgi_isr.stores.memory import MemoryStore


class Call:
    """A call in progress in a thread of its own."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._found: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self._thread.start()

    def _run(self, run: Callable[[], Any]) -> None:
        try:
            self._found = run()
        except BaseException as error:
            self._error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(DEADLINE)
        assert self.over, "it still runs"
        if self._error is not None:
            raise self._error
        return self._found


#: The site of the refreshed pages: visitors of these tests come to this host.
HERE = {"canonical_url": "http://example.org"}


def test_a_refresh_renders_now_and_stores(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    site.visit("/a")
    assert site.isr.refresh("/a") is True
    assert origin.calls["/a"] == 2
    seen = site.visit("/a")
    assert (seen.label, seen.body) == ("HIT", b"/a v2")
    assert origin.calls["/a"] == 2


def test_a_refresh_returns_whether_the_page_has_changed(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    origin.on("/a", answer(b"the same"))
    site.visit("/a")
    assert site.isr.refresh("/a") is False
    origin.on("/a", answer(b"another"))
    assert site.isr.refresh("/a") is True
    assert site.isr.refresh("/a") is False
    assert site.visit("/a").body == b"another"


def test_a_page_that_nobody_asked_for_yet_has_changed(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    assert site.isr.refresh("/a") is True
    assert (site.visit("/a").label, origin.calls["/a"]) == ("HIT", 1)


def test_a_refresh_begins_the_page_s_life_anew(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, **HERE)
    origin.on("/a", answer(b"the same"))
    site.visit("/a")
    clock.advance(50)
    site.isr.refresh("/a")
    clock.advance(50)
    seen = site.visit("/a")
    assert (seen.label, seen.age) == ("HIT", 50)


def test_a_refresh_makes_a_page_that_was_invalidated_fresh(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])}, **HERE)
    site.visit("/a")
    site.isr.invalidate(tags=["t"])
    assert site.isr.refresh("/a") is True
    assert (site.visit("/a").label, origin.calls["/a"]) == ("HIT", 2)


def test_only_if_cached_skips_what_nobody_asked_for_yet(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    assert site.isr.refresh("/a", only_if_cached=True) is False
    assert origin.calls["/a"] == 0
    site.visit("/a")
    assert site.isr.refresh("/a", only_if_cached=True) is True
    assert (site.visit("/a").body, origin.calls["/a"]) == (b"/a v2", 2)


def test_only_if_cached_renews_a_page_that_another_instance_made(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store, coherence=0, **HERE) for _ in range(2))
    one.visit("/a")
    assert two.isr.refresh("/a", only_if_cached=True) is True
    assert one.visit("/a").body == b"/a v2"


def test_only_if_cached_renews_a_stale_and_an_expired_page(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=120, **HERE)
    site.visit("/a")
    for passed in (60, 200):
        clock.advance(passed)
        assert site.isr.refresh("/a", only_if_cached=True) is True
        assert site.visit("/a").label == "HIT"


@pytest.mark.parametrize("path", ["/caf\u00e9", "/caf%C3%A9"])
def test_a_path_is_percent_encoded_or_not(make_site: MakeSite, path: str) -> None:
    site = make_site(revalidate=60, **HERE)
    site.visit("/caf%C3%A9")
    assert site.isr.refresh(path, only_if_cached=True) is True
    assert site.visit("/caf%C3%A9").label == "HIT"


def test_a_trailing_slash_matters(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    site.visit("/a")
    assert site.isr.refresh("/a/", only_if_cached=True) is False
    site.isr.refresh("/a/")
    assert (origin.calls["/a"], origin.calls["/a/"]) == (1, 1)


def test_visitors_are_served_while_a_refresh_renders(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    site.visit("/a")
    gate = origin.hold("/a")
    call = Call(lambda: site.isr.refresh("/a"))
    gate.wait_until_entered()
    for _ in range(5):
        seen = site.visit("/a")
        assert (seen.code, seen.body) == (200, b"/a v1")
    assert not call.over
    gate.open()
    assert call.result() is True
    assert site.visit("/a").body == b"/a v2"


def test_a_refresh_uses_what_is_read_from_now_on(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    gate = origin.hold("/a")
    visitor = site.start_visit("/a")
    gate.wait_until_entered()  # a cold render that has read v1 and hangs
    origin.let_go("/a")
    assert site.isr.refresh("/a") is True
    assert site.visit("/a").body == b"/a v2"
    gate.open()
    visitor.result()
    site.settle()
    seen = site.visit("/a")
    assert (seen.label, seen.body) == ("HIT", b"/a v2")


def test_two_refreshes_after_each_other_render_twice(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    assert [site.isr.refresh("/a") for _ in range(3)] == [True, True, True]
    assert origin.calls["/a"] == 3


def test_refreshes_at_once_all_end_in_a_page_that_is_as_new_as_the_latest_of_them(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site(revalidate=60, **HERE)
    site.visit("/a")
    calls = [Call(lambda: site.isr.refresh("/a")) for _ in range(4)]
    for call in calls:
        call.result()
    site.settle()
    assert 2 <= origin.calls["/a"] <= 5
    seen = site.visit("/a")
    assert (seen.label, seen.text) == ("HIT", f"/a v{origin.calls['/a']}")


# Failures -------------------------------------------------------------------------------------------------

FAILING = {
    "raises": failing(Boom()),
    "500": answer(b"sorry", status="500 Internal Server Error"),
    "503": answer(b"sorry", status="503 Service Unavailable"),
    "wrong length": answer(b"short", ("Content-Length", "100")),
}


@pytest.mark.parametrize("how", FAILING.values(), ids=FAILING)
def test_a_failed_refresh_raises_and_the_last_good_page_stays(make_site: MakeSite, origin: Origin, how: Any) -> None:
    site = make_site(revalidate=60, **HERE)
    site.visit("/a")
    origin.on("/a", how)
    with pytest.raises(RefreshError, match="/a"):
        site.isr.refresh("/a")
    for _ in range(3):
        seen = site.visit_and_settle("/a")
        assert (seen.code, seen.body) == (200, b"/a v1")
    origin.mend("/a")
    assert site.isr.refresh("/a") is True


@pytest.mark.parametrize("how", FAILING.values(), ids=FAILING)
def test_a_failed_refresh_of_a_page_that_is_not_there_raises_and_stores_nothing(
    make_site: MakeSite, origin: Origin, how: Any
) -> None:
    site = make_site(revalidate=60, **HERE)
    origin.on("/a", how)
    with pytest.raises(RefreshError):
        site.isr.refresh("/a")
    origin.mend("/a")
    assert site.visit("/a").body == b"/a v2"


def test_a_refresh_error_is_one_of_ours_and_tells_its_cause(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    boom = Boom("no database")
    origin.on("/a", failing(boom))
    with pytest.raises(RefreshError) as raised:
        site.isr.refresh("/a")
    assert isinstance(raised.value, ISRError)
    assert raised.value.__cause__ is boom


def test_a_refresh_is_tried_though_the_page_is_in_back_off(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, **HERE)
    site.visit("/a")
    clock.advance(60)
    origin.on("/a", failing(Boom()))
    site.visit_and_settle("/a")
    origin.mend("/a")
    assert site.isr.refresh("/a") is True
    assert site.visit("/a").label == "HIT"


UNSTORABLE = {
    "Set-Cookie": answer(b"x", ("Set-Cookie", "a=b")),
    "private": answer(b"x", ("Cache-Control", "private")),
    "no-store": answer(b"x", ("Cache-Control", "no-store")),
    "204": answer(b"", status="204 No Content", content_type=False),
    "302": answer(b"x", ("Location", "/"), status="302 Found"),
}


@pytest.mark.parametrize("how", UNSTORABLE.values(), ids=UNSTORABLE)
def test_a_page_that_may_not_be_stored_cannot_be_refreshed(make_site: MakeSite, origin: Origin, how: Any) -> None:
    site = make_site(revalidate=60, **HERE)
    origin.on("/a", how)
    with pytest.raises(RefreshError):
        site.isr.refresh("/a")


@pytest.mark.parametrize("rules", [{"/a": 0}, {"/b": 60}], ids=["never cached", "no rule"])
def test_a_page_that_is_not_for_the_cache_cannot_be_refreshed(make_site: MakeSite, origin: Origin, rules: Any) -> None:
    with pytest.raises(RefreshError):
        make_site(rules, **HERE).isr.refresh("/a")


@pytest.mark.parametrize("path", ["", "a", "http://example.org/a"])
def test_what_is_no_path_is_an_error(make_site: MakeSite, origin: Origin, path: str) -> None:
    with pytest.raises(ConfigError):
        make_site(revalidate=60, **HERE).isr.refresh(path)
    assert not origin.calls


def test_a_404_is_an_answer_like_any_other(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    site.visit("/a")
    origin.on("/a", answer(b"gone", status="404 Not Found"))
    assert site.isr.refresh("/a") is True
    seen = site.visit("/a")
    assert (seen.label, seen.code) == ("HIT", 404)


# Hanging renders, several instances -------------------------------------------------------------------------


def test_an_older_flight_that_hangs_elsewhere_does_not_satisfy_a_refresh(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store, coherence=0, **HERE) for _ in range(2))
    gate = origin.hold("/a")
    visitor = one.start_visit("/a")
    gate.wait_until_entered()
    origin.let_go("/a")
    assert two.isr.refresh("/a") is True
    seen = two.visit("/a")
    assert (seen.label, seen.body) == ("HIT", b"/a v2")
    gate.open()
    visitor.result()
    clock.advance(1)
    for site in (one, two):
        seen = site.visit("/a")
        assert (seen.label, seen.body) == ("HIT", b"/a v2")


def test_a_refresh_reaches_other_instances(make_site: MakeSite, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=False, store=store, **HERE) for _ in range(2))
    one.visit("/a")
    two.visit("/a")
    one.isr.refresh("/a")
    clock.advance(0.2)  # more than `coherence`
    two.visit_and_settle("/a")
    seen = two.visit("/a")
    assert (seen.label, seen.body) == ("HIT", b"/a v2")


# Variants ---------------------------------------------------------------------------------------------------


def test_variants_of_a_refreshed_page_are_not_fresh_any_more(make_site: MakeSite) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["q"])}, **HERE)
    for path in ("/a", "/a?q=1"):
        site.visit(path)
    site.isr.refresh("/a")
    assert site.visit("/a").label == "HIT"
    assert site.visit_and_settle("/a?q=1").label != "HIT"
    assert site.visit("/a?q=1").label == "HIT"


# From inside --------------------------------------------------------------------------------------------------


def test_in_a_view_it_is_the_page_of_the_app_around_it(make_site: MakeSite, origin: Origin) -> None:
    one, two = (make_site(revalidate=60, **HERE) for _ in range(2))
    origin.on("/publish", answer(lambda environ: repr(refresh("/a")).encode()))
    one.visit("/a")
    two.visit("/a")
    assert one.visit("/publish", method="POST").body == b"True"
    assert origin.calls["/a"] == 3
    assert (one.visit("/a").body, two.visit("/a").body) == (b"/a v3", b"/a v2")


def test_in_a_view_a_failure_is_an_exception_that_can_be_caught(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)

    def publish(environ: Environ) -> bytes:
        try:
            refresh("/a")
        except RefreshError as error:
            return str(error).encode()
        return b"published"

    origin.on("/publish", answer(publish))
    site.visit("/a")
    origin.on("/a", failing(Boom()))
    assert b"/a" in site.visit("/publish", method="POST").body
    assert site.visit("/a").body == b"/a v1"


def test_the_view_s_own_page_is_neither_tagged_nor_limited_by_what_it_refreshes(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site({"/a": Rule(revalidate=5, tags=["t"]), "/b": Rule(revalidate=600)}, **HERE)

    @cached(revalidate=3, tags=["data"])
    def data() -> int:
        return origin.calls["/a"]

    origin.on("/a", answer(lambda environ: str(data()).encode()))
    origin.on("/b", answer(lambda environ: repr(refresh("/a")).encode()))
    # The tags of a page are minted with its first render, which is not proven beside an invalidation.
    for _ in range(2):
        site.visit("/b")
    clock.advance(100)
    site.isr.invalidate(tags=["t", "data"])
    assert site.visit("/b").label == "HIT"


def test_outside_of_a_request_it_is_the_page_of_every_app_of_the_process(make_site: MakeSite, origin: Origin) -> None:
    one, two = (make_site(revalidate=60, **HERE) for _ in range(2))
    assert refresh("/a") is True
    assert origin.calls["/a"] == 2
    assert (one.visit("/a").label, two.visit("/a").label) == ("HIT", "HIT")


def test_without_an_app_there_is_nothing_to_refresh() -> None:
    with pytest.raises(ConfigError):
        refresh("/a")


def test_what_a_refresh_renders_sees_no_visitor(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, **HERE)
    origin.on("/publish", answer(lambda environ: repr(refresh("/a")).encode()))
    site.visit("/publish", method="POST", cookie="session=admin", headers={"Authorization": "Bearer x"})
    seen = origin.last("/a")
    assert (seen["REQUEST_METHOD"], seen["HTTP_HOST"], seen["QUERY_STRING"]) == ("GET", "example.org", "")
    assert not {"HTTP_COOKIE", "HTTP_AUTHORIZATION"} & set(seen)


def test_a_page_that_refreshes_itself_while_it_is_rendered_is_told_so_and_does_not_wait_for_itself(
    make_site: MakeSite, origin: Origin
) -> None:
    site, told = make_site(revalidate=60, **HERE), []

    def refreshes(environ: Environ) -> bytes:
        if len(told) < 3:
            try:
                refresh("/a")
            except RefreshError as error:
                told.append(error.reason)
        return b"made"

    origin.on("/a", answer(refreshes))
    assert site.start_visit("/a").result().label == "MISS"
    assert told == ["recursive"]
    assert Call(lambda: site.isr.refresh("/a")).result() is False
    assert told == ["recursive"] * 2
    assert site.visit("/a").label == "HIT"
    assert origin.calls["/a"] == 2


def test_data_that_asks_for_itself_while_it_is_made_does_not_wait_for_itself(
    make_site: MakeSite, origin: Origin
) -> None:
    site, calls = make_site(revalidate=60, **HERE), [0]

    @cached
    def counts() -> int:
        calls[0] += 1
        if calls[0] == 1:
            return counts() + 10
        if calls[0] == 3:
            with pytest.raises(RefreshError, match="recursive"):
                counts.refresh()
        return calls[0]

    origin.on("/a", answer(lambda environ: str(counts()).encode()))
    assert site.start_visit("/a").result().text == "12"
    assert Call(counts.refresh).result() == 3
