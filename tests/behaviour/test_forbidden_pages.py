"""A public page that becomes forbidden, or is forgotten by the store, is served to no further visitor."""

from __future__ import annotations

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Handler, Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr.events import Rendered
from wsgi_isr.stores.memory import MemoryStore

FORBIDDING: dict[str, Handler] = {
    "302": answer(b"log in", ("Location", "/login"), status="302 Found"),
    "303": answer(b"log in", ("Location", "/login"), status="303 See Other"),
    "307": answer(b"log in", ("Location", "/login"), status="307 Temporary Redirect"),
    "401": answer(b"who are you", ("WWW-Authenticate", "Basic"), status="401 Unauthorized"),
    "403": answer(b"no", status="403 Forbidden"),
    "451": answer(b"no", status="451 Unavailable For Legal Reasons"),
    "Set-Cookie": answer(b"yours", ("Set-Cookie", "session=1")),
    "private": answer(b"yours", ("Cache-Control", "private")),
    "Vary": answer(b"yours", ("Vary", "Authorization")),
}

every_forbidding = pytest.mark.parametrize("handler", FORBIDDING.values(), ids=FORBIDDING)


@every_forbidding
def test_a_page_that_becomes_forbidden_is_given_up_at_the_first_such_answer(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", handler)
    clock.advance(61)
    site.visit_and_settle("/a")
    seen = site.visit("/a")
    assert (seen.label, seen.body) == ("BYPASS", origin_body(handler))


@every_forbidding
def test_a_forbidden_page_stays_so_however_rarely_it_is_visited(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler
) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    origin.on("/a", handler)
    clock.advance(121)
    site.visit_and_settle("/a")
    for _ in range(5):
        clock.advance(121)
        assert b"/a v1" not in site.visit_and_settle("/a").body


@pytest.mark.parametrize("coherence", [0.1, 0])
@pytest.mark.parametrize(
    ("handler", "seconds"),
    [
        (answer(b"gone", status="404 Not Found"), 78),
        (answer(b"gone", status="410 Gone"), 78),
        (answer(b"yours", ("Cache-Control", "private")), 128),
        (answer(b"no", status="403 Forbidden"), 128),
    ],
    ids=["404", "410", "private", "403"],
)
def test_a_copy_of_a_page_that_the_store_has_forgotten_is_not_served_as_stale(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler, seconds: float, coherence: float
) -> None:
    store = MemoryStore(clock=clock)
    first, second = (make_site(revalidate=60, store=store, coherence=coherence) for _ in range(2))
    assert first.visit("/a").body == second.visit("/a").body == b"/a v1"
    origin.on("/a", handler)
    clock.advance(61)
    first.visit_and_settle("/a")
    clock.advance(seconds)
    assert b"/a v1" not in second.visit_and_settle("/a").body


def test_a_copy_of_a_page_that_the_store_has_forgotten_is_kept_for_errors(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    first, second = (make_site(revalidate=60, store=store) for _ in range(2))
    first.visit("/a")
    second.visit("/a")
    store.delete(page_name(first))
    origin.on("/a", answer(b"oh", status="500 Internal Server Error"))
    clock.advance(61)
    seen = second.visit("/a")
    assert (seen.label, seen.body) == ("STALE-IF-ERROR", b"/a v1")
    origin.mend("/a")
    clock.advance(60)
    seen = second.visit("/a")
    assert (seen.label, seen.body) == ("EXPIRED", b"/a v3")


def page_name(site: Site) -> str:
    """Return the store key of the page that the site has rendered."""
    return str(site.happened(Rendered)[-1].key)


def origin_body(handler: Handler) -> bytes:
    """Return the handler's answer to any client."""
    return b"".join(handler({}, lambda *_: None))


@every_forbidding
def test_the_page_of_the_former_release_does_not_come_back_once_it_is_forbidden(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler
) -> None:
    store = MemoryStore(clock=clock)
    make_site(revalidate=60, store=store, release="1").visit("/a")
    first, second = (make_site(revalidate=60, store=store, release="2", adopt_release="1") for _ in range(2))
    origin.on("/a", handler)
    assert second.visit("/a").label == "STALE"
    second.settle()
    for _ in range(3):
        clock.advance(130)
        for site in (first, second):
            assert b"/a v1" not in site.visit_and_settle("/a").body
