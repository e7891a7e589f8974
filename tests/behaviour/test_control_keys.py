"""Control keys: the requests that create them, their number, and those that a store keeps."""

from __future__ import annotations

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Handler, Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule, cache_tag, cached
from wsgi_isr.cache.keyspace import SLOTS
from wsgi_isr.stores.base import route
from wsgi_isr.stores.memory import MemoryStore

NOT_FOUND = answer(b"no such page", status="404 Not Found")

MINTS_NOTHING: dict[str, Handler] = {
    "404": NOT_FOUND,
    "410": answer(b"gone", status="410 Gone"),
    "Set-Cookie": answer(b"yours", ("Set-Cookie", "a=b")),
    "403": answer(b"no", status="403 Forbidden"),
    "500": answer(b"oh", status="500 Internal Server Error"),
}


def control_keys(site: Site) -> set[str]:
    """Return the tags in the site's memory store."""
    store = site.store
    assert isinstance(store, MemoryStore)
    return {key for key in store._control.items if route(key).node is None}


@pytest.mark.parametrize("handler", MINTS_NOTHING.values(), ids=MINTS_NOTHING)
def test_a_page_that_is_not_stored_as_a_page_mints_no_tag(
    make_site: MakeSite, origin: Origin, handler: Handler
) -> None:
    site = make_site({"/<path:name>": Rule(revalidate=60, tags=["page:{name}"])})
    for number in range(20):
        path = f"/{number}/a/b/c/d/e"
        origin.on(path, handler)
        site.visit(path)
    assert control_keys(site) == set()


def test_the_tags_that_a_404_asks_for_are_not_minted(make_site: MakeSite, origin: Origin) -> None:
    def missing(environ: object) -> bytes:
        cache_tag("posts")
        return b"no such page"

    origin.on("/a", answer(missing, status="404 Not Found"))
    site = make_site(revalidate=60)
    site.visit("/a")
    assert control_keys(site) == set()


def test_pages_of_any_number_of_urls_have_a_bounded_number_of_tags(make_site: MakeSite) -> None:
    site = make_site(revalidate=60)
    for number in range(300):
        site.visit("".join(f"/{number}-{depth}" for depth in range(31)))
    # The tag of all pages, the rule's, and the slots of 300 x 32 names: most are prefixes, several in one slot.
    assert 7000 < len(control_keys(site)) <= 300 * 32 + 2
    assert len(control_keys(site)) <= 65536 + 2


def test_a_404_is_a_hit_while_nothing_is_invalidated(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    first, second = (make_site(revalidate=60, store=store) for _ in range(2))
    origin.on("/a", NOT_FOUND)
    assert first.visit("/a").label == "MISS"
    assert [first.visit("/a").label, second.visit("/a").label] == ["HIT", "HIT"]
    clock.advance(5)
    assert [first.visit("/a").label, second.visit("/a").label] == ["HIT", "HIT"]
    assert origin.calls["/a"] == 1


@pytest.mark.parametrize("what", [{"paths": ["/blog/a"]}, {"prefixes": ["/blog"]}, {"tags": ["post:a"]}])
def test_a_404_is_not_served_once_its_page_was_invalidated(
    make_site: MakeSite, origin: Origin, clock: Clock, what: dict[str, list[str]]
) -> None:
    site = make_site({"/blog/<slug>": Rule(revalidate=60, tags=["post:{slug}"])}, coherence=0)
    origin.on("/blog/a", NOT_FOUND)
    site.visit("/blog/a")
    origin.mend("/blog/a")
    site.isr.invalidate(**what)
    assert (site.visit("/blog/a").code, site.visit("/blog/a").label) == (200, "HIT")


def test_a_404_is_rendered_once_more_after_an_invalidation_of_something_else(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, coherence=0)
    origin.on("/a", NOT_FOUND)
    site.visit("/a")
    site.isr.invalidate(tags=["other"])
    assert [site.visit("/a").label for _ in range(3)] == ["MISS", "HIT", "HIT"]


def test_a_404_that_is_asked_for_again_stays_a_hit_beside_invalidations_of_other_pages(
    make_site: MakeSite, origin: Origin
) -> None:
    """For example a missing favicon: its own tags are created. Their number is fixed."""
    site = make_site(revalidate=60, coherence=0)
    origin.on("/favicon.ico", NOT_FOUND)
    labels = []
    for number in range(10):
        labels.append(site.visit("/favicon.ico").label)
        site.isr.invalidate(tags=[f"other:{number}"])
    assert labels == ["MISS", "MISS", *["HIT"] * 8]


def test_a_404_with_tags_of_its_url_is_rendered_after_each_invalidation(make_site: MakeSite, origin: Origin) -> None:
    """The number of such tags would have no bound."""
    site = make_site({"/<slug>": Rule(revalidate=60, tags=["page:{slug}"])}, coherence=0)
    origin.on("/a", NOT_FOUND)
    labels = []
    for number in range(4):
        labels.append(site.visit("/a").label)
        site.isr.invalidate(tags=[f"other:{number}"])
    assert labels == ["MISS"] * 4
    assert not [key for key in control_keys(site) if "page:a" in key]


@pytest.mark.parametrize("value", [None, "something"])
def test_data_that_says_that_there_is_nothing_mints_no_tag(
    make_site: MakeSite, origin: Origin, value: str | None
) -> None:
    @cached(tags=["post:{slug}"])
    def post(slug: str) -> str | None:
        return value

    origin.on("/", answer(lambda environ: str(post(environ["QUERY_STRING"])).encode()))
    site = make_site(revalidate=0)
    before = control_keys(site)
    assert site.visit("/?a").text == str(value)
    assert (control_keys(site) == before) is (value is None)


def test_a_refusal_is_remembered_beside_invalidations_of_other_pages(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=60, coherence=0)
    origin.on("/account", answer(b"yours", ("Cache-Control", "private")))
    site.visit("/account")
    calls = origin.calls["/account"]
    for number in range(10):
        site.isr.invalidate(tags=[f"other:{number}"])
        assert site.visit("/account").label == "BYPASS"
    site.settle()
    assert origin.calls["/account"] == calls + 10  # each visitor's own request, and no other


@pytest.mark.parametrize("what", [{"paths": ["/account"]}, {"prefixes": ["/"]}, {"everything": True}])
def test_a_refusal_is_forgotten_once_its_page_was_invalidated(
    make_site: MakeSite, origin: Origin, what: dict[str, list[str]]
) -> None:
    site = make_site(revalidate=60, coherence=0)
    origin.on("/account", answer(b"yours", ("Cache-Control", "private")))
    site.visit("/account")
    origin.mend("/account")
    site.isr.invalidate(**what)
    site.visit("/account")
    assert site.visit("/account").label == "HIT"


def test_a_new_page_is_stored_beside_an_invalidation_of_a_moment_ago(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    """A process that has not polled the epochs yet renders a new page once, not twice."""
    store = MemoryStore(clock=clock)
    first, second = (make_site(revalidate=60, store=store) for _ in range(2))
    second.visit("/other")
    first.isr.invalidate(paths=["/new"])
    assert [second.visit("/new").label for _ in range(2)] == ["MISS", "HIT"]
    clock.advance(1)
    assert second.visit("/new").label == "HIT"
    assert origin.calls["/new"] == 1


def test_pages_that_share_a_slot_are_invalidated_together(
    make_site: MakeSite, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SLOTS, "path:", range(1))
    site = make_site(revalidate=60)
    site.visit("/a")
    site.visit("/b")
    site.isr.invalidate(paths=["/a"])
    assert [site.visit(path).label for path in ("/a", "/b")] == ["EXPIRED", "EXPIRED"]
    assert [site.visit(path).label for path in ("/a", "/b")] == ["HIT", "HIT"]
