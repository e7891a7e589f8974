"""Failures of renders and of the store: the last good page, the back-off, and no error by the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Body, Boom, Environ, Handler, Origin, answer, failing
from tests.behaviour.visitor import ASKED_EACH_TIME, Clock, Site, all_at_once
from wsgi_isr import StoreUnavailable
from wsgi_isr.events import BackgroundFull, RenderFailed, Served, Unreadable
from wsgi_isr.stores.base import Many, Versioned
from wsgi_isr.stores.memory import MemoryStore


def half_way(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
    start_response("200 OK", [HTML])
    yield b"half"
    raise Boom


def after_start(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [HTML])
    raise Boom


def in_first_part(environ: Environ, start_response: Callable[..., Any]) -> Body:
    start_response("200 OK", [HTML])
    return Body(Boom())


#: Renders that raise.
RAISING: dict[str, Handler] = {
    "before start_response": failing(Boom()),
    "after start_response": after_start,
    "in the first part": in_first_part,
    "half-way": half_way,
}

#: Renders whose answer may not replace a page.
ANSWERING: dict[str, Handler] = {
    "500": answer(b"sorry", status="500 Internal Server Error"),
    "502": answer(b"sorry", status="502 Bad Gateway"),
    "503": answer(b"sorry", ("Retry-After", "5"), status="503 Service Unavailable"),
    "429": answer(b"slow down", status="429 Too Many Requests"),
    "wrong length": answer(b"short", ("Content-Length", "100")),
}

FAILURES = {**RAISING, **ANSWERING}

every_failure = pytest.mark.parametrize("handler", FAILURES.values(), ids=FAILURES)


# A missing page: the app's own error


@pytest.mark.parametrize("handler", RAISING.values(), ids=RAISING)
def test_an_exception_on_a_missing_page_reaches_the_server(
    make_site: MakeSite, origin: Origin, handler: Handler
) -> None:
    origin.on("/a", handler)
    site = make_site(revalidate=60)
    for _ in range(2):
        with pytest.raises(Boom):
            site.visit("/a")


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "429 Too Many"])
def test_an_error_page_of_the_app_reaches_the_visitor_of_a_missing_page(
    make_site: MakeSite, origin: Origin, status: str
) -> None:
    origin.on("/a", answer(b"sorry", ("Retry-After", "5"), ("Cache-Control", "no-cache"), status=status))
    site = make_site(revalidate=60)
    for _ in range(2):
        seen = site.visit("/a")
        assert (seen.status, seen.body, seen.headers["Retry-After"]) == (status, b"sorry", "5")
        assert "stored" not in seen.cache_status
        assert "s-maxage=60" not in seen.headers["Cache-Control"]


@every_failure
def test_a_failed_render_of_a_missing_page_is_not_stored(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler
) -> None:
    origin.on("/a", handler)
    store = MemoryStore(clock=clock)
    site = make_site(revalidate=60, store=store)
    try:
        site.visit("/a", exact_length=False)
    except Boom:
        pass
    origin.mend("/a")
    seen = make_site(revalidate=60, store=store).visit("/a")
    assert (seen.status, seen.body) == ("200 OK", b"/a v" + str(origin.calls["/a"]).encode())


@every_failure
def test_a_missing_page_is_stored_once_the_app_is_mended(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler
) -> None:
    origin.on("/a", handler)
    site = make_site(revalidate=60)
    try:
        site.visit("/a", exact_length=False)
    except Boom:
        pass
    origin.mend("/a")
    clock.advance(60)
    site.visit_and_settle("/a")
    assert site.visit("/a").label == "HIT"


def test_all_who_wait_for_a_missing_page_get_the_error(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", answer(b"sorry", status="500 Internal Server Error"))
    site = make_site(revalidate=60)
    gate = origin.hold("/a")
    visits = [site.start_visit("/a") for _ in range(5)]
    gate.wait_until_entered()
    gate.open()
    assert {visit.result().code for visit in visits} == {500}


def test_all_who_wait_for_a_missing_page_get_the_exception(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", failing(Boom()))
    site = make_site(revalidate=60)
    gate = origin.hold("/a")
    visits = [site.start_visit("/a") for _ in range(5)]
    gate.wait_until_entered()
    gate.open()
    for visit in visits:
        with pytest.raises(Boom):
            visit.result()


def test_the_visitors_of_a_broken_page_do_not_wait_for_its_back_off(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    """An error page at once is better than the same page after ten seconds, with a thread held meanwhile."""
    origin.on("/a", answer(b"sorry", status="500 Internal Server Error"))
    site = make_site(revalidate=60)
    for _ in range(8):
        assert site.visit("/a").code == 500
    assert sum(clock.paused) < 1


def test_a_page_that_fails_for_one_visitor_does_not_fail_its_neighbours(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/p/1", failing(Boom()))
    site = make_site({"/p/<int:id>": 60})
    with pytest.raises(Boom):
        site.visit("/p/1")
    assert site.visit("/p/2").label == "MISS"


# The last good page


@every_failure
def test_a_failed_render_leaves_the_stale_page(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", handler)
    clock.advance(61)
    site.visit_and_settle("/a")
    assert origin.calls["/a"] == 2
    seen = site.visit_and_settle("/a")
    assert (seen.status, seen.body) == ("200 OK", b"/a v1")


@every_failure
def test_a_failed_render_leaves_the_expired_page_for_its_visitor(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler
) -> None:
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    origin.on("/a", handler)
    clock.advance(61)
    seen = site.visit("/a")
    assert (seen.status, seen.body, seen.label) == ("200 OK", b"/a v1", "STALE-IF-ERROR")


def test_all_who_wait_for_an_expired_page_get_the_old_one_when_it_fails(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    origin.on("/a", failing(Boom()))
    clock.advance(61)
    seen = all_at_once(10, lambda _: site.visit("/a"))
    assert {(visit.body, visit.label) for visit in seen} == {(b"/a v1", "STALE-IF-ERROR")}
    assert origin.calls["/a"] == 2


def test_another_instance_has_the_last_good_page_too(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    make_site(revalidate=60, expire=60, store=store).visit("/a")
    origin.on("/a", failing(Boom()))
    clock.advance(61)
    seen = make_site(revalidate=60, expire=60, store=store).visit("/a")
    assert (seen.body, seen.label) == (b"/a v1", "STALE-IF-ERROR")


def test_a_retained_page_is_not_relabelled_as_new(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", failing(Boom()))
    clock.advance(61)
    site.visit_and_settle("/a")
    clock.advance(100)
    seen = site.visit("/a")
    assert seen.age == 161
    assert seen.label in ("STALE", "STALE-IF-ERROR")
    assert seen.directives == ASKED_EACH_TIME


def test_an_expired_page_that_is_retained_tells_its_age(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    origin.on("/a", failing(Boom()))
    clock.advance(500)
    seen = site.visit("/a")
    assert seen.age == 500
    assert seen.directives == ASKED_EACH_TIME


def test_a_retained_page_answers_if_none_match(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=60)
    etag = site.visit("/a").headers["ETag"]
    origin.on("/a", failing(Boom()))
    clock.advance(61)
    assert site.visit("/a", headers={"If-None-Match": etag}).code == 304


@pytest.mark.parametrize(
    "headers",
    [[("Cache-Control", "private")], [("Cache-Control", "no-store")], [("Vary", "*")]],
    ids=["private", "no-store", "vary"],
)
def test_an_answer_that_is_not_for_others_leaves_a_stale_page_and_is_never_shared(
    make_site: MakeSite, origin: Origin, clock: Clock, headers: list[tuple[str, str]]
) -> None:
    """A refused answer on a page that was cacheable is a failed render (PROTOCOL, Render)."""
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", answer(lambda environ: environ.get("HTTP_USER_AGENT", "nobody").encode(), *headers))
    clock.advance(61)
    site.visit_and_settle("/a", headers={"User-Agent": "alice"})
    seen = site.visit_and_settle("/a", headers={"User-Agent": "bob"})
    assert seen.body in (b"/a v1", b"bob")


def test_an_error_in_the_background_does_not_reach_a_visitor(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", failing(Boom()))
    for _ in range(10):
        clock.advance(61)
        assert site.visit_and_settle("/a").status == "200 OK"


def test_a_failed_render_is_in_the_log_with_its_cause(
    make_site: MakeSite, origin: Origin, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site({"/a": 60})
    site.visit("/a")
    origin.on("/a", failing(Boom("the database is away")))
    clock.advance(61)
    with caplog.at_level(logging.INFO, logger="wsgi_isr"):
        site.visit_and_settle("/a")
    assert "/a" in caplog.text
    assert "the database is away" in caplog.text


class Exit(BaseException):
    """Like gevent.Timeout, SystemExit or GreenletExit: no subclass of Exception."""


def test_an_exit_in_a_render_reaches_the_server_and_leaves_no_lock(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/a", failing(Exit()))
    site = make_site(revalidate=60)
    with pytest.raises(Exit):
        site.visit("/a")
    origin.mend("/a")
    clock.advance(5)
    site.visit("/a")
    assert site.visit("/a").label == "HIT"


def test_an_exit_in_the_background_ends_no_thread_for_good(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, background_threads=1)
    for path in ("/a", "/b"):
        site.visit(path)
    origin.on("/a", failing(Exit()))
    clock.advance(61)
    site.visit_and_settle("/a")
    site.visit_and_settle("/b")
    assert site.visit("/b").body == b"/b v2"


# Back-off


def fail_once(site: Site, origin: Origin, clock: Clock) -> None:
    """Return a site with a stale page whose first regeneration has just failed."""
    site.visit("/a")
    origin.on("/a", answer(b"sorry", status="500 Internal Server Error"))
    clock.advance(61)
    site.visit_and_settle("/a")
    assert origin.calls["/a"] == 2


def seconds_until_next_attempt(site: Site, origin: Origin, clock: Clock) -> float:
    """Visit the page every 0.1 s until the app is called again. Return the seconds until then."""
    begin, calls = clock.now, origin.calls["/a"]
    while origin.calls["/a"] == calls:
        assert clock.now - begin < 60, "no attempt in a minute"
        clock.advance(0.1)
        site.visit_and_settle("/a")
    return clock.now - begin


def test_right_after_a_failure_the_app_is_left_alone(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    fail_once(site, origin, clock)
    for _ in range(20):
        site.visit_and_settle("/a")
    clock.advance(0.4)
    site.visit_and_settle("/a")
    assert origin.calls["/a"] == 2


def test_the_next_attempt_comes_after_about_a_second(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    fail_once(site, origin, clock)
    assert 0.5 <= seconds_until_next_attempt(site, origin, clock) <= 2


def test_the_back_off_doubles_up_to_half_a_minute(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    fail_once(site, origin, clock)
    pauses = [seconds_until_next_attempt(site, origin, clock) for _ in range(8)]
    for number, pause in enumerate(pauses):
        plain = min(2**number, 30)
        assert plain * 0.5 <= pause <= plain * 1.5 + 0.2
    announced = [failure.retry_in for failure in site.happened(RenderFailed)]
    assert all(abs(said - waited) <= 0.2 for said, waited in zip(announced, pauses, strict=False))


def test_a_success_makes_the_next_failure_the_first_again(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    fail_once(site, origin, clock)
    for _ in range(4):
        seconds_until_next_attempt(site, origin, clock)
    origin.mend("/a")
    seconds_until_next_attempt(site, origin, clock)
    assert site.visit("/a").label == "HIT"
    origin.on("/a", answer(b"sorry", status="500 Internal Server Error"))
    clock.advance(61)
    site.visit_and_settle("/a")
    assert 0.5 <= seconds_until_next_attempt(site, origin, clock) <= 2


def test_the_back_off_is_shared_by_all_instances(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, store=store) for _ in range(2))
    fail_once(one, origin, clock)
    clock.advance(0.4)
    for _ in range(3):
        seen = two.visit_and_settle("/a")
        assert (seen.body, seen.code) == (b"/a v1", 200)
    assert origin.calls["/a"] == 2


def test_an_expired_page_in_back_off_is_served_at_once(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=60)
    site.visit("/a")
    origin.on("/a", failing(Boom()))
    clock.advance(61)
    for _ in range(5):
        seen = site.visit("/a")
        assert (seen.body, seen.label) == (b"/a v1", "STALE-IF-ERROR")
    assert (origin.calls["/a"], sum(clock.paused)) == (2, 0)


def test_the_back_off_of_one_page_holds_up_no_other_page(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/b")
    fail_once(site, origin, clock)
    site.visit_and_settle("/b")
    assert site.visit("/b").body == b"/b v2"


# The background is full


def test_where_the_background_is_full_the_stale_page_is_served_and_a_later_visit_tries_again(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, background_threads=1, background_queue=1)
    paths = ["/a", "/b", "/c", "/d"]
    for path in paths:
        site.visit(path)
    clock.advance(61)
    gate = origin.hold("/a")
    site.visit("/a")
    gate.wait_until_entered()
    for path in paths[1:]:
        assert site.visit(path).label == "STALE"
    assert site.happened(BackgroundFull)
    gate.open()
    site.settle()
    clock.advance(5)
    for path in paths:
        site.visit_and_settle(path)
    assert {site.visit(path).label for path in paths} == {"HIT"}


# A subscriber that is broken


def test_a_broken_subscriber_breaks_no_page(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    def broken(event: object) -> None:
        raise Boom

    site = make_site(revalidate=60)
    site.isr.subscribe(broken)
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]
    clock.advance(61)
    site.visit_and_settle("/a")
    assert site.visit("/a").body == b"/a v2"
    assert len(site.happened(Served)) == 4


# The store


class Broken(MemoryStore):
    """A store whose verbs stop working when told to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.broken: set[str] = set()

    def _fail(self, verb: str) -> None:
        if verb in self.broken:
            raise StoreUnavailable("node", "unplugged")

    def get(self, key: str) -> bytes | None:
        self._fail("get")
        return super().get(key)

    def get_many(self, keys: Any) -> Many:
        if "get_many" in self.broken:
            return Many({}, {key: StoreUnavailable("node", "unplugged") for key in keys})
        return super().get_many(keys)

    def gets(self, key: str) -> Versioned | None:
        self._fail("gets")
        return super().gets(key)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._fail("set")
        super().set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._fail("add")
        return super().add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Any, ttl: float | None = None) -> bool:
        self._fail("cas")
        return super().cas(key, value, token, ttl)

    def delete(self, key: str) -> bool:
        self._fail("delete")
        return super().delete(key)


VERBS = ("get", "get_many", "gets", "set", "add", "cas", "delete")
every_verb = pytest.mark.parametrize("verbs", [*((verb,) for verb in VERBS), VERBS], ids=[*VERBS, "all"])


@every_verb
def test_without_the_store_a_missing_page_is_served(
    make_site: MakeSite, origin: Origin, clock: Clock, verbs: tuple[str, ...]
) -> None:
    store = Broken(clock)
    store.broken.update(verbs)
    site = make_site(revalidate=60, store=store)
    for _ in range(3):
        assert site.visit("/a").status == "200 OK"
    assert sum(clock.paused) == 0, "somebody waited for a store that is away"


@every_verb
def test_without_the_store_a_stale_page_is_served(
    make_site: MakeSite, origin: Origin, clock: Clock, verbs: tuple[str, ...]
) -> None:
    store = Broken(clock)
    site = make_site(revalidate=60, store=store)
    site.visit("/a")
    store.broken.update(verbs)
    for _ in range(5):
        clock.advance(61)
        assert site.visit_and_settle("/a").status == "200 OK"


@every_verb
def test_without_the_store_an_expired_page_is_served(
    make_site: MakeSite, origin: Origin, clock: Clock, verbs: tuple[str, ...]
) -> None:
    store = Broken(clock)
    site = make_site(revalidate=60, expire=60, store=store)
    site.visit("/a")
    store.broken.update(verbs)
    for _ in range(5):
        clock.advance(61)
        assert site.visit_and_settle("/a").status == "200 OK"


@every_verb
def test_a_failing_render_without_the_store_leaves_the_last_good_page(
    make_site: MakeSite, origin: Origin, clock: Clock, verbs: tuple[str, ...]
) -> None:
    store = Broken(clock)
    site = make_site(revalidate=60, store=store)
    site.visit("/a")
    store.broken.update(verbs)
    origin.on("/a", failing(Boom()))
    clock.advance(61)
    for _ in range(3):
        assert site.visit_and_settle("/a").body == b"/a v1"


@every_verb
def test_when_the_store_is_back_pages_are_stored_again(
    make_site: MakeSite, origin: Origin, clock: Clock, verbs: tuple[str, ...]
) -> None:
    store = Broken(clock)
    store.broken.update(verbs)
    site = make_site(revalidate=60, store=store)
    site.visit("/a")
    store.broken.clear()
    clock.advance(61)
    site.visit_and_settle("/a")
    clock.advance(61)
    site.visit_and_settle("/a")
    assert make_site(revalidate=60, store=store).visit("/a").label == "HIT"


@every_verb
def test_an_uncacheable_page_needs_no_store(
    make_site: MakeSite, origin: Origin, clock: Clock, verbs: tuple[str, ...]
) -> None:
    origin.on("/a", answer(b"x", ("Set-Cookie", "a=b")))
    store = Broken(clock)
    store.broken.update(verbs)
    site = make_site(revalidate=60, store=store)
    for _ in range(3):
        assert site.visit("/a").headers["Set-Cookie"] == "a=b"


@every_verb
def test_without_the_store_sessions_are_still_apart(
    make_site: MakeSite, origin: Origin, clock: Clock, verbs: tuple[str, ...]
) -> None:
    origin.on("/a", answer(lambda environ: environ.get("HTTP_COOKIE", "").encode(), ("Vary", "Cookie")))
    store = Broken(clock)
    store.broken.update(verbs)
    site = make_site(revalidate=60, store=store)
    for _ in range(3):
        for cookie in ("session=alice", "", "session=bob"):
            assert site.visit("/a", cookie=cookie).text == cookie


def test_a_page_is_degraded_where_the_store_cannot_be_reached(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = Broken(clock)
    store.broken.update(VERBS)
    site = make_site(revalidate=60, store=store)
    for _ in range(3):
        seen = site.visit("/a")
        assert (seen.code, seen.label) == (200, "DEGRADED")
        assert seen.directives == ASKED_EACH_TIME


def test_without_the_store_visitors_at_once_share_a_render(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = Broken(clock)
    store.broken.update(VERBS)
    site = make_site(revalidate=60, store=store)
    gate = origin.hold("/a")
    visits = [site.start_visit("/a") for _ in range(5)]
    gate.wait_until_entered()
    gate.open()
    assert {visit.result().code for visit in visits} == {200}
    assert origin.calls["/a"] < 5


class Noting(MemoryStore):
    """A store that records the written keys."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.keys: set[str] = set()

    def holding(self, text: bytes) -> list[tuple[str, bytes]]:
        """Return the entries of the store that contain ``text``."""
        found = [(key, self.get(key)) for key in sorted(self.keys)]
        return [(key, value) for key, value in found if value is not None and text in value]

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self.keys.add(key)
        super().set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self.keys.add(key)
        return super().add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Any, ttl: float | None = None) -> bool:
        self.keys.add(key)
        return super().cas(key, value, token, ttl)


def cut_short(value: bytes) -> bytes:
    return value[: len(value) // 2]


def one_bit_off(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda _: b"\xff\x00 garbage",
    "text": lambda _: b"hello",
    "cut short": cut_short,
    "one bit off": one_bit_off,
    "something after it": lambda value: value + b"\x00",
    "a msgpack nil": lambda _: b"\xc0",
    "a msgpack map": lambda _: b"\x81\xa1a\x01",
    "a deep msgpack": lambda _: b"\x91" * 5000 + b"\xc0",
    "a huge msgpack": lambda _: b"\xdd\xff\xff\xff\xff",
}


every_damage = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


@every_damage
def test_a_damaged_entry_is_a_missing_page(
    make_site: MakeSite, origin: Origin, clock: Clock, damage: Callable[[bytes], bytes]
) -> None:
    store = Noting(clock)
    make_site(revalidate=60, store=store).visit("/a")
    ((key, value),) = store.holding(b"/a v1")
    store.set(key, damage(value))
    site = make_site(revalidate=60, store=store)
    assert [site.visit("/a").label for _ in range(2)] == ["MISS", "HIT"]
    assert site.visit("/a").body == b"/a v2"


@every_damage
def test_a_store_that_is_damaged_all_over_costs_a_render_and_no_more(
    make_site: MakeSite, origin: Origin, clock: Clock, damage: Callable[[bytes], bytes]
) -> None:
    store = Noting(clock)
    make_site(revalidate=60, store=store).visit("/a")
    for key, value in store.holding(b""):
        store.set(key, damage(value))
    site = make_site(revalidate=60, store=store)
    seen = [site.visit("/a") for _ in range(4)]
    assert {visit.status for visit in seen} == {"200 OK"}
    assert seen[-1].label == "HIT"


def test_an_unreadable_entry_is_made_known(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = Noting(clock)
    make_site(revalidate=60, store=store).visit("/a")
    ((key, _),) = store.holding(b"/a v1")
    store.set(key, b"garbage")
    site = make_site(revalidate=60, store=store)
    site.visit("/a")
    assert site.happened(Unreadable)


def test_the_page_of_another_key_is_a_missing_page(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    """Hashed keys may collide, or a store may mix up its answers."""
    store = Noting(clock)
    site = make_site(revalidate=60, store=store)
    site.visit("/a")
    site.visit("/b")
    ((_, page_a),) = store.holding(b"/a v1")
    ((key_b, _),) = store.holding(b"/b v1")
    store.set(key_b, page_a)
    assert make_site(revalidate=60, store=store).visit("/b").body == b"/b v2"


def test_a_page_that_vanishes_from_the_store_is_rendered_anew(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = Noting(clock)
    make_site(revalidate=60, store=store).visit("/a")
    for key in store.keys:
        store.delete(key)
    site = make_site(revalidate=60, store=store)
    seen = site.visit("/a")
    assert (seen.body, seen.label) == (b"/a v2", "MISS")


def test_a_page_that_vanishes_while_it_is_rendered_is_stored_anew(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = Noting(clock)
    site = make_site(revalidate=60, store=store)
    site.visit("/a")
    clock.advance(61)
    gate = origin.hold("/a")
    site.visit("/a")
    gate.wait_until_entered()
    for key in store.keys:
        store.delete(key)
    gate.open()
    site.settle()
    assert make_site(revalidate=60, store=store).visit("/a").code == 200


@pytest.mark.parametrize("url", ["memory://", "null://"])
def test_a_store_by_url_serves(make_site: MakeSite, origin: Origin, url: str) -> None:
    site = make_site(revalidate=60, store=url)
    assert [site.visit("/a").code for _ in range(3)] == [200] * 3


def test_a_sqlite_file_that_is_damaged_meanwhile_breaks_no_page(
    make_site: MakeSite, origin: Origin, clock: Clock, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "store.db"
    site = make_site(revalidate=60, store=f"sqlite:///{file}")
    site.visit("/a")
    site.isr.close(5)
    for path in tmp_path.iterdir():
        path.write_bytes(b"no database" * 1000)
    for name in ("/a", "/b"):
        for _ in range(3):
            clock.advance(61)
            assert site.visit_and_settle(name).status == "200 OK"


def test_a_page_in_sqlite_survives_a_restart(make_site: MakeSite, origin: Origin, clock: Clock, tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    one = make_site(revalidate=60, store=url)
    one.visit("/a")
    one.isr.close(5)
    clock.advance(10)
    seen = make_site(revalidate=60, store=url).visit("/a")
    assert (seen.body, seen.label, seen.age) == (b"/a v1", "HIT", 10)


def test_who_comes_with_a_cookie_while_a_page_fails_is_told_why_it_is_the_app_that_answers(
    make_site: MakeSite, origin: Origin
) -> None:
    origin.on("/a", answer(b"sorry", status="500 Internal Server Error"))
    site = make_site(revalidate=60)
    site.visit("/a")
    seen = site.visit("/a", cookie="session=alice")
    assert (seen.code, seen.cache_status) == (500, 'wsgi-isr; fwd=uri-miss; detail="back-off"')
