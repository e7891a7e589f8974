"""A new release of an app begins with the pages of the release before, which it finds in the store."""

from __future__ import annotations

from typing import Any

import flask
import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import DEADLINE, Origin, answer
from tests.behaviour.visitor import Clock, Site, all_at_once
from wsgi_isr import Rule
from wsgi_isr.events import Rendered
from wsgi_isr.stores.memory import MemoryStore


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


class Releases:
    """Processes of releases of one app, on one store."""

    def __init__(self, make_site: MakeSite, store: MemoryStore) -> None:
        self._make_site = make_site
        self._store = store

    def begin(self, release: str, **options: Any) -> Site:
        """Begin a process of a release. Its pages name the release that rendered them."""

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            start_response("200 OK", [("Content-Type", "text/html")])
            return [f"made by {release}".encode()]

        options = {"revalidate": 60, "app": app, **options}
        return self._make_site(store=self._store, release=release, **options)


@pytest.fixture
def releases(make_site: MakeSite, store: MemoryStore) -> Releases:
    return Releases(make_site, store)


def shown(site: Site, path: str = "/a") -> tuple[str, str]:
    seen = site.visit_and_settle(path)
    return seen.label, seen.text


def test_the_first_visitor_of_a_new_release_gets_the_old_page_and_the_second_a_new_one(releases: Releases) -> None:
    assert shown(releases.begin("1")) == ("MISS", "made by 1")
    site = releases.begin("2")
    assert shown(site) == ("STALE", "made by 1")
    assert shown(site) == ("HIT", "made by 2")


def test_however_many_visitors_come_at_once_the_new_release_renders_once_and_nobody_waits(releases: Releases) -> None:
    shown(releases.begin("1"))
    sites = [releases.begin("2") for _ in range(4)]
    seen = all_at_once(40, lambda number: sites[number % 4].visit("/a"))
    assert {answer.label for answer in seen} <= {"STALE", "HIT"}
    for site in sites:
        site.settle()
    assert sum(len(site.happened(Rendered)) for site in sites) == 1


def test_of_two_apps_in_one_namespace_each_adopts_its_own_pages(make_site: MakeSite, store: MemoryStore) -> None:
    def begin(name: str, release: str) -> Site:
        app = flask.Flask(name)
        app.get("/<page>")(lambda page: f"{name} made by {release}")
        return make_site(app=app, store=store, release=f"{name}-{release}", revalidate=60)

    for name in ("shop", "blog"):
        shown(begin(name, "1"), f"/{name}")
    for name in ("shop", "blog"):
        assert shown(begin(name, "2"), f"/{name}") == ("STALE", f"{name} made by 1")


def test_two_releases_side_by_side_each_serve_their_own_page(releases: Releases) -> None:
    old, new = releases.begin("1"), releases.begin("2")
    shown(old)
    shown(new)
    for _ in range(3):
        assert shown(old) == ("HIT", "made by 1")
        assert shown(new) == ("HIT", "made by 2")


def test_an_invalidation_by_either_of_two_releases_reaches_both(releases: Releases, clock: Clock) -> None:
    sites = [releases.begin("1"), releases.begin("2")]
    for site in sites:
        shown(site)
        shown(site)
    for site in sites:
        site.isr.invalidate(paths=["/a"])
        clock.advance(1)
        assert [shown(one)[0] for one in sites] == ["EXPIRED", "EXPIRED"]


def test_what_was_invalidated_before_the_deploy_does_not_come_back_by_it(releases: Releases) -> None:
    old = releases.begin("1")
    shown(old)
    old.isr.invalidate(paths=["/a"], mode="purge")
    assert shown(releases.begin("2")) == ("MISS", "made by 2")


def test_back_to_the_old_release_its_pages_are_there_and_others_begin_as_those_of_the_newer(
    releases: Releases, clock: Clock
) -> None:
    shown(releases.begin("1"))
    new = releases.begin("2")
    for path in ("/a", "/a", "/b"):
        shown(new, path)
    back = releases.begin("1")
    assert shown(back) == ("HIT", "made by 1")
    assert shown(back, "/b") == ("STALE", "made by 2")
    assert shown(back, "/b") == ("HIT", "made by 1")
    clock.advance(60)
    assert shown(releases.begin("1")) == ("STALE", "made by 1")


def test_after_a_release_that_was_taken_back_the_next_one_begins_as_the_one_that_serves(releases: Releases) -> None:
    shown(releases.begin("1"))
    shown(releases.begin("2"), "/broken")
    shown(releases.begin("1"), "/b")
    assert shown(releases.begin("3"), "/b") == ("STALE", "made by 1")


def test_a_release_that_served_nothing_does_not_stand_between_two_others(releases: Releases) -> None:
    shown(releases.begin("1"))
    assert releases.begin("2").isr._engine
    assert shown(releases.begin("3")) == ("STALE", "made by 1")


def test_a_page_that_only_the_newer_release_has_is_not_deleted_by_the_older_one(
    make_site: MakeSite, store: MemoryStore, origin: Origin, clock: Clock
) -> None:
    old, new = (make_site(store=store, release=release, revalidate=60) for release in ("1", "2"))
    old.visit("/a")
    new.visit("/new")
    again = make_site(store=store, release="1", revalidate=60)  # an old worker that is replaced meanwhile
    origin.on("/new", answer(b"no such page", status="404 Not Found"))
    assert again.visit_and_settle("/new").label == "STALE"
    clock.advance(200)
    assert (again.visit_and_settle("/new").code, again.visit_and_settle("/new").code) == (404, 404)
    assert make_site(store=store, release="2", revalidate=600).visit("/new").text == "/new v1"


def test_data_of_a_release_is_not_that_of_another(make_site: MakeSite, store: MemoryStore) -> None:
    from wsgi_isr import cached

    calls: list[str] = []

    @cached(revalidate=3600)
    def rows() -> int:
        calls.append("")
        return len(calls)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(rows()).encode()]

    assert make_site(app=app, store=store, release="1", revalidate=60).visit("/").text == "1"
    site = make_site(app=app, store=store, release="2", revalidate=60)
    assert site.visit_and_settle("/").text == "1"
    assert site.visit("/").text == "2"


@pytest.mark.parametrize("adopt", [None, "none"])
def test_without_adoption_a_new_release_makes_its_pages_for_its_first_visitors(releases: Releases, adopt: Any) -> None:
    shown(releases.begin("1"))
    assert shown(releases.begin("2", adopt_release=adopt)) == ("MISS", "made by 2")


def test_a_release_can_be_named_that_pages_are_adopted_from(releases: Releases) -> None:
    shown(releases.begin("1"))
    shown(releases.begin("2"), "/b")
    assert shown(releases.begin("3", adopt_release="1")) == ("STALE", "made by 1")


def test_without_releases_a_new_process_serves_what_there_is(releases: Releases, make_site: MakeSite) -> None:
    site = releases.begin("")
    assert site.isr.configuration.settings.release == ""
    shown(site)
    assert shown(releases.begin("none")) == ("HIT", "made by ")


def test_several_rules_and_lifetimes_are_those_of_the_new_release(releases: Releases, clock: Clock) -> None:
    shown(releases.begin("1", rules={"/a": Rule(revalidate=5, expire=10)}))
    clock.advance(20)
    assert shown(releases.begin("2")) == ("EXPIRED", "made by 2")


def test_a_render_that_fails_in_the_new_release_keeps_the_page_of_the_old_one(
    make_site: MakeSite, store: MemoryStore, origin: Origin, clock: Clock
) -> None:
    make_site(store=store, release="1", revalidate=60).visit("/a")
    origin.on("/a", answer(b"broken", status="500 Internal Server Error"))
    new = make_site(store=store, release="2", revalidate=60)
    for _ in range(3):
        seen = new.visit_and_settle("/a")
        assert (seen.code, seen.text) == (200, "/a v1")
        clock.advance(40)
    origin.mend("/a")
    clock.advance(DEADLINE)
    new.visit_and_settle("/a")
    assert new.visit("/a").label == "HIT"
