"""Read your own writes: a client that has posted sees the effect with the next request, through any process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin, answer
from tests.behaviour.visitor import Clock, Seen, Site
from wsgi_isr import cached, invalidate
from wsgi_isr.pages.own_writes import COOKIE
from wsgi_isr.stores.memory import MemoryStore


class Shared(MemoryStore):
    """A memory store that processes share."""

    shared = True


@pytest.fixture
def sites(make_site: MakeSite, origin: Origin, clock: Clock) -> list[Site]:
    """Return four processes of one site, all of which have the page."""
    store = Shared(clock=clock)
    made = [make_site({"/a": 60, "/form": 0}, store=store, coherence=0.1) for _ in range(4)]
    for site in made:
        site.visit("/a")

    def write(environ: Any) -> bytes:
        made[0].isr.invalidate(paths=["/a"])
        return b"written"

    origin.on("/form", answer(write, ("Location", "/a"), status="303 See Other"))
    return made


def cookie_of(seen: Seen) -> str:
    (line,) = [line for line in seen.headers.getlist("Set-Cookie") if line.startswith(COOKIE)]
    return line.partition(";")[0]


def test_who_has_posted_sees_the_new_page_in_every_process_at_once(sites: list[Site]) -> None:
    cookie = cookie_of(sites[0].visit("/form", method="POST"))
    assert {site.visit("/a", cookie=cookie).text for site in sites[1:]} == {"/a v2"}


def test_others_see_it_after_coherence(sites: list[Site], clock: Clock) -> None:
    sites[0].visit("/form", method="POST")
    assert sites[1].visit("/a").text == "/a v1"
    clock.advance(0.11)
    assert sites[1].visit("/a").text == "/a v2"


def test_data_that_a_page_of_their_own_shows_is_new_as_well(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    versions = ["old"]

    @cached(tags=["data"])
    def data() -> str:
        return versions[-1]

    store = Shared(clock=clock)
    first, second = (make_site({"/mine": 0, "/form": 0}, store=store, coherence=0.1) for _ in range(2))
    origin.on("/mine", answer(lambda environ: data().encode()))

    def write(environ: Any) -> bytes:
        versions.append("new")
        first.isr.invalidate(tags=["data"])
        return b"written"

    origin.on("/form", answer(write))
    assert (first.visit("/mine").text, second.visit("/mine").text) == ("old", "old")
    cookie = cookie_of(first.visit("/form", method="POST"))
    assert second.visit("/mine").text == "old"
    assert second.visit("/mine", cookie=cookie).text == "new"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("status", "given"), [("200 OK", 1), ("303 See Other", 1), ("400 Bad Request", 0), ("500 No", 0)]
)
def test_the_cookie_is_given_for_a_success(
    make_site: MakeSite, origin: Origin, clock: Clock, method: str, status: str, given: int
) -> None:
    origin.on("/a", answer(b"x", status=status))
    site = make_site({"/b": 60}, store=Shared(clock=clock), coherence=2.5)
    lines = site.visit("/a", method=method, scheme="https", script_name="/shop").headers.getlist("Set-Cookie")
    assert lines == [f"{COOKIE}=1; Secure; HttpOnly; Path=/shop; SameSite=Lax; Max-Age=4"] * given


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_the_cookie_is_not_given_where_nothing_was_changed(make_site: MakeSite, clock: Clock, method: str) -> None:
    site = make_site({"/b": 60}, store=Shared(clock=clock))
    assert "Set-Cookie" not in site.visit("/a", method=method).headers


@pytest.mark.parametrize("options", [{"coherence": 0}, {"store": "memory://"}, {"store": "null://"}])
def test_the_cookie_is_not_given_where_each_process_knows_at_once(
    make_site: MakeSite, clock: Clock, options: dict[str, Any]
) -> None:
    site = make_site({"/b": 60}, **{"store": Shared(clock=clock), **options})
    assert "Set-Cookie" not in site.visit("/a", method="POST").headers


def test_the_cookie_says_nothing_of_its_visitor(sites: list[Site], origin: Origin) -> None:
    """A forged cookie gets the public page, and costs one read of the store."""
    assert sites[1].visit("/a", cookie=f"{COOKIE}=1; _ga=2").label == "HIT"
    origin.on("/a", answer(lambda environ: environ.get("HTTP_COOKIE", "").encode()))
    invalidate(paths=["/a"])
    assert sites[1].visit("/a", cookie=f"{COOKIE}=1").body == b""
