"""The number of calls for a list of pages: after an invalidation that concerns it at once, else seldom."""

from __future__ import annotations

from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin, answer
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule
from wsgi_isr.stores.memory import MemoryStore


class Posts:
    """A list of posts that counts its calls."""

    def __init__(self) -> None:
        self.slugs = ["a"]
        self.asked = 0

    def __call__(self) -> list[str]:
        self.asked += 1
        return [f"/blog/{slug}" for slug in self.slugs]


class Watched(MemoryStore):
    """A store that records every written tag."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.tags: set[str] = set()

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._note(key)
        return super().add(key, value, ttl)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._note(key)
        super().set(key, value, ttl)

    def _note(self, key: str) -> None:
        if ":t:" in key:
            self.tags.add(key)


@pytest.fixture
def posts() -> Posts:
    return Posts()


def made(make_site: MakeSite, posts: Posts, **options: Any) -> Site:
    rule = Rule(revalidate=600, paths=posts, dynamic_params=False, tags=["posts", "post:{slug}"])
    return make_site({"/blog/<slug>": rule, "/form": 60}, **options)


def test_writes_elsewhere_ask_for_a_list_once_a_second_at_most(make_site: MakeSite, posts: Posts, clock: Clock) -> None:
    site = made(make_site, posts)
    for number in range(100):
        site.visit("/form", method="POST")
        assert site.visit(f"/blog/{number}").code == 404
        clock.advance(0.05)
    assert posts.asked <= 1 + 5


def test_random_paths_that_are_not_listed_leave_nothing_in_the_store(
    make_site: MakeSite, posts: Posts, clock: Clock
) -> None:
    site = made(make_site, posts, store=(store := Watched(clock)))
    site.visit("/form", method="POST")
    site.visit("/blog/x")
    before = set(store.tags)
    for number in range(100):
        site.visit("/form", method="POST")
        site.visit(f"/blog/{number}")
        clock.advance(0.05)
    assert store.tags == before


CONCERNED: dict[str, dict[str, Any]] = {
    "path": {"paths": ["/blog/new"]},
    "prefix": {"prefixes": ["/blog"]},
    "everything below the root": {"prefixes": ["/"]},
    "route": {"routes": ["/blog/<slug>"]},
    "tag of the rule": {"tags": ["posts"]},
    "tag with the parameter": {"tags": ["post:new"]},
    "everything": {"everything": True},
}


@pytest.mark.parametrize("named", CONCERNED.values(), ids=CONCERNED)
@pytest.mark.parametrize("mode", ["stale", "expire", "purge"])
@pytest.mark.parametrize("asked_before", [True, False])
def test_a_new_post_is_there_at_once_after_an_invalidation_that_concerns_it(
    make_site: MakeSite, posts: Posts, named: Any, mode: str, asked_before: bool
) -> None:
    site = made(make_site, posts)
    site.isr.invalidate(tags=["posts"], paths=["/blog/old"])
    for path in ["/blog/a", "/blog/other", *(["/blog/new"] if asked_before else [])]:
        site.visit(path)
    for slug in ("other", "new"):  # at once each time, though the list was called a moment ago
        posts.slugs.append(slug)
        site.isr.invalidate(**named, mode=mode)
        assert site.visit("/blog/new").code == (200 if slug == "new" else 404)


def test_a_new_post_is_there_at_once_after_a_write_to_its_own_url(make_site: MakeSite, posts: Posts) -> None:
    site = made(make_site, posts)
    assert site.visit("/blog/new").code == 404
    posts.slugs.append("new")
    assert site.visit("/blog/new", method="PUT").code == 200
    assert site.visit("/blog/new").code == 200


def test_a_post_that_was_removed_is_not_asked_for_again_with_each_write_elsewhere(
    make_site: MakeSite, posts: Posts, clock: Clock
) -> None:
    site = made(make_site, posts)
    for slug in ("a", "b"):
        posts.slugs = ["a", "b"]
        site.visit(f"/blog/{slug}")  # its tags are in the store from now on
    posts.slugs = []
    site.isr.invalidate(tags=["posts"])
    site.visit("/blog/unknown")  # the list is called, and has none of them any more
    for _ in range(20):
        for slug in ("a", "b"):
            site.visit("/form", method="POST")
            assert site.visit(f"/blog/{slug}").code == 404
    assert posts.asked <= 5


def test_what_another_instance_invalidates_is_seen_by_all(make_site: MakeSite, posts: Posts, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (made(make_site, posts, store=store, coherence=0) for _ in range(2))
    assert one.visit("/blog/new").code == 404
    posts.slugs.append("new")
    two.isr.invalidate(paths=["/blog/new"])
    assert one.visit("/blog/new").code == 200


def test_what_was_added_without_a_word_is_there_a_second_after_a_write_elsewhere(
    make_site: MakeSite, posts: Posts, clock: Clock
) -> None:
    site = made(make_site, posts)
    assert site.visit("/blog/new").code == 404
    posts.slugs.append("new")
    site.visit("/form", method="POST")
    assert site.visit("/blog/new").code == 404
    clock.advance(1)
    assert site.visit("/blog/new").code == 200


def test_tags_that_the_store_has_lost_count_as_invalidated_once(
    make_site: MakeSite, posts: Posts, clock: Clock
) -> None:
    site = made(make_site, posts)
    site.isr.invalidate(tags=["posts"])
    site.visit("/blog/new")
    site.visit("/blog/new")
    posts.slugs.append("new")
    names = site.isr._engine.keyspace
    site.isr._store.delete(names.tag("tag:posts"))
    site.visit("/form", method="POST")
    assert site.visit("/blog/new").code == 200
    before = posts.asked
    for number in range(10):
        site.visit("/form", method="POST")
        site.visit(f"/blog/{number}")
    assert posts.asked <= before + 1  # the rendered page has created the tag again


def test_a_rule_whose_tags_cannot_be_made_is_asked_no_more_often(
    make_site: MakeSite, posts: Posts, origin: Origin
) -> None:
    def tags(parameters: Any) -> list[str]:
        raise ValueError("no such post")

    rule = Rule(revalidate=600, paths=posts, dynamic_params=False, tags=tags)
    site = make_site({"/blog/<slug>": rule, "/form": 60})
    for number in range(20):
        site.visit("/form", method="POST")
        assert site.visit(f"/blog/{number}").code == 404
    assert posts.asked == 1
    posts.slugs.append("new")
    origin.on("/blog/new", answer(b"x"))
    site.isr.invalidate(routes=["/blog/<slug>"])
    assert site.visit("/blog/new").code != 404


def test_a_path_of_any_depth_is_compared_by_a_few_tags(make_site: MakeSite, clock: Clock) -> None:
    asked: list[int] = []

    class Counting(MemoryStore):
        def get_many(self, keys: Any) -> Any:
            asked.append(len(keys))
            return super().get_many(keys)

    rule = Rule(revalidate=600, paths=lambda: ["/docs/a"], dynamic_params=False)
    site = make_site({"/docs/<path:rest>": rule, "/form": 60}, store=Counting(clock=clock))
    site.visit("/docs/b")
    site.visit("/form", method="POST")
    assert site.visit("/docs" + "/x" * 2000).code == 404
    assert max(asked) < 50


def test_without_a_store_every_invalidation_counts(make_site: MakeSite, posts: Posts) -> None:
    site = made(make_site, posts, store="null://")
    assert site.visit("/blog/new").code == 404
    posts.slugs.append("new")
    site.isr.invalidate(paths=["/blog/new"])
    assert site.visit("/blog/new").code == 200
