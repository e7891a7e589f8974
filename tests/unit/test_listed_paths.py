"""Pages that exist: the paths that ``paths`` lists, and when a callable is called again."""

from __future__ import annotations

import re
from concurrent.futures import wait
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scripted import NEVER, Clock, Gate, start
from wsgi_isr.cache.keyspace import stored_tag
from wsgi_isr.config.rule_set import Listed, RuleSet
from wsgi_isr.config.rules import Rule
from wsgi_isr.errors import ConfigError
from wsgi_isr.events import Event, Events, InternalError
from wsgi_isr.pages.listed_paths import Absent, Listings


def rules(paths: Any, pattern: str = "/blog/<slug>", **options: Any) -> RuleSet:
    return RuleSet({pattern: Rule(revalidate=60, paths=paths, **options)}, Rule())


def listed(paths: Any, pattern: str = "/blog/<slug>") -> list[tuple[str, str]]:
    made = rules(paths, pattern)
    return [tuple(one) for one in made.listed(made.policies[pattern])]  # type: ignore[misc]


def request(path: str, method: str = "GET") -> dict[str, Any]:
    return {"REQUEST_METHOD": method, "PATH_INFO": path.encode().decode("latin-1")}


class World:
    """Listings on a clock, and their events.

    ``tag_versions`` are those in the store. ``None``: there are no tags, so an invalidation concerns all rules.
    """

    def __init__(self, paths: Any, tag_versions: dict[str, bytes] | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.epochs = "before"
        self.tag_versions = tag_versions
        self.away: set[str] = set()
        self.reads = 0
        self.said: list[Event] = []
        made = rules(paths, dynamic_params=False, **options)
        read = self.read if tag_versions is not None else None
        self.listings = Listings(made, Events(self.said.append), self.clock, read)

    def read(self, tags: Any) -> dict[str, bytes | None]:
        assert self.tag_versions is not None
        self.reads += 1
        return {tag: self.tag_versions.get(tag) for tag in tags if tag not in self.away}

    def invalidate(self, name: str) -> None:
        tag = stored_tag(name)
        if self.tag_versions is not None:
            self.tag_versions[tag] = self.tag_versions.get(tag, b"") + b"!"
        self.epochs += tag

    def has(self, path: str) -> bool:
        return self.absent(path) is None

    def absent(self, path: str, method: str = "GET") -> Absent | None:
        return self.listings.absent(request(path, method), lambda: self.epochs)


# Listed paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "path", "query"),
    [
        ("/blog/a", "/blog/a", ""),
        ("/blog/caf%C3%A9", "/blog/café", ""),
        ("/blog/café", "/blog/café", ""),
        ("/blog/a?page=2", "/blog/a", "page=2"),
        ({"slug": "a b"}, "/blog/a b", ""),
        ({"slug": "é?"}, "/blog/é?", ""),
    ],
)
def test_a_path_is_listed_encoded_or_not_or_by_its_parameters(given: Any, path: str, query: str) -> None:
    assert listed([given]) == [(path, query)]
    assert listed(lambda: iter([given])) == [(path, query)]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda slug: "/" not in slug))
def test_parameters_and_their_encoded_path_are_the_same_page(slug: str) -> None:
    by_path = f"/blog/{quote(slug, safe='')}"
    try:
        expected = listed([by_path])
    except ConfigError:  # no path of this pattern
        with pytest.raises(ConfigError):
            listed([{"slug": slug}])
    else:
        assert listed([{"slug": slug}]) == expected == [(f"/blog/{slug}", "")]


def test_what_is_listed_twice_is_one_page() -> None:
    assert listed(["/blog/a", {"slug": "a"}, "/blog/%61"]) == [("/blog/a", "")]


def test_an_iterator_is_read_once_and_kept() -> None:
    made = rules(iter(["/blog/a", "/blog/b"]))
    policy = made.policies["/blog/<slug>"]
    assert made.listed(policy) == made.listed(policy) == (Listed("/blog/a"), Listed("/blog/b"))


def test_a_rule_without_paths_lists_nothing() -> None:
    made = RuleSet({"/a": 1}, Rule())
    assert made.listed(made.policies["/a"]) == ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/other", "is a path of the rule '*'"),
        ("blog/a", "is not a path"),
        ({}, "does not fill the pattern"),
        ({"slug": "a/b"}, "rule"),
        ("/blog/%FF", "not UTF-8"),
    ],
)
def test_what_is_no_page_of_the_rule_is_an_error_at_start(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        listed([given])
    assert raised.value.option == "rule '/blog/<slug>': paths"


def test_a_parameter_that_the_pattern_lacks_is_one_of_the_query() -> None:
    assert listed([{"slug": "a", "page": 2}]) == [("/blog/a", "page=2")]


@pytest.mark.parametrize("given", ["/blog/a", 7, {"slug": "a"}, [7], [b"/blog/a"]])
def test_paths_are_a_list_of_paths_or_of_parameters(given: Any) -> None:
    with pytest.raises(ConfigError, match="paths"):
        rules(given)


def test_no_dynamic_params_without_paths_is_an_error_at_start() -> None:
    with pytest.raises(ConfigError, match="dynamic_params"):
        RuleSet({"/blog/<slug>": Rule(revalidate=1, dynamic_params=False)}, Rule())


# Absent paths --------------------------------------------------------------------------------------------


def test_only_a_path_of_the_rule_that_is_not_listed_is_absent() -> None:
    world = World(["/blog/a"], negative_ttl=7)
    assert world.has("/blog/a")
    assert world.has("/elsewhere")
    assert world.absent("/blog/b") == Absent(7, "/blog/<slug>")
    assert world.absent("/blog/b", "HEAD") == Absent(7, "/blog/<slug>")
    assert world.absent("/blog/b", "POST") is None


def test_every_path_may_exist_where_params_are_dynamic() -> None:
    made = rules(["/blog/a"])
    assert Listings(made, Events()).absent(request("/blog/b")) is None


def test_a_path_that_is_no_text_is_left_to_the_app() -> None:
    world = World(["/blog/a"])
    assert world.listings.absent({"REQUEST_METHOD": "GET", "PATH_INFO": "/blog/\xff"}) is None


def test_a_callable_is_asked_when_it_is_first_needed_and_again_for_what_it_did_not_list() -> None:
    calls: list[float] = []
    posts = ["/blog/a"]

    def paths() -> list[str]:
        calls.append(world.clock.now)
        return posts

    world = World(paths)
    assert calls == []
    assert world.has("/blog/a")
    assert not world.has("/blog/new")
    posts.append("/blog/new")
    world.clock.advance(9)
    assert not world.has("/blog/new")  # called a moment ago
    world.clock.advance(1)
    assert world.has("/blog/a")
    assert len(calls) == 1
    assert world.has("/blog/new")
    assert len(calls) == 2


def test_a_404_holds_until_the_list_is_asked_for_again() -> None:
    world = World(lambda: ["/blog/a"], negative_ttl=7)
    assert world.absent("/blog/b") == Absent(7, "/blog/<slug>")
    world.clock.advance(3)
    assert world.absent("/blog/b") == Absent(4, "/blog/<slug>")


def test_after_an_invalidation_a_callable_is_asked_again_at_once() -> None:
    posts = ["/blog/a"]
    world = World(lambda: posts)
    assert not world.has("/blog/b")
    posts[:] = ["/blog/b"]
    world.epochs = "after"
    assert world.has("/blog/b")
    assert not world.has("/blog/a")


def test_whoever_does_not_say_when_is_told_how_it_is_now() -> None:
    posts = ["/blog/a"]
    world = World(lambda: posts)
    assert world.has("/blog/a")
    posts[:] = ["/blog/b"]
    assert world.listings.absent(request("/blog/b")) is None


def test_many_first_requests_ask_once() -> None:
    gate, calls = Gate(["/blog/a"]), []

    def paths() -> Any:
        calls.append(1)
        return gate.enter()

    world = World(paths)
    asking = [start(lambda: world.has("/blog/a")) for _ in range(5)]
    gate.reached()
    gate.open()
    assert [one.result(NEVER) for one in asking] == [True] * 5
    assert len(calls) == 1


def test_a_callable_that_fails_leaves_it_to_the_app_and_is_said_and_not_asked_again_at_once() -> None:
    def paths() -> list[str]:
        raise OSError("no database")

    world = World(paths)
    assert [world.has("/blog/a") for _ in range(5)] == [True] * 5
    (said,) = world.said
    assert isinstance(said, InternalError)
    assert "/blog/<slug>" in said.where


def test_a_callable_that_fails_later_leaves_what_was_known() -> None:
    answers: list[Any] = [["/blog/a"], OSError("gone"), ["/blog/b"]]

    def paths() -> list[str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    world = World(paths)
    assert world.has("/blog/a")
    world.clock.advance(10)
    assert not world.has("/blog/b")
    assert not world.has("/blog/b")  # it is not called again at once
    assert len(answers) == 1
    world.clock.advance(10)
    assert world.has("/blog/b")
    assert not world.has("/blog/a")


def test_a_404_of_a_fixed_list_holds_as_long_however_old_the_list_is() -> None:
    world = World(["/blog/a"], negative_ttl=7)
    assert world.absent("/blog/b") == Absent(7, "/blog/<slug>")
    world.clock.advance(100)
    assert world.absent("/blog/b") == Absent(7, "/blog/<slug>")


def test_a_list_that_takes_long_holds_up_no_other_rule() -> None:
    gate = Gate(["/blog/a"])
    made = RuleSet(
        {
            "/blog/<slug>": Rule(revalidate=1, paths=gate.enter, dynamic_params=False),
            "/shop/<slug>": Rule(revalidate=1, paths=lambda: ["/shop/a"], dynamic_params=False),
        },
        Rule(),
    )
    listings = Listings(made, Events())
    asking = start(lambda: listings.absent(request("/blog/a"), str))
    gate.reached()
    assert start(lambda: listings.absent(request("/shop/a"), str)).result(NEVER) is None
    gate.open()
    assert asking.result(NEVER) is None


@pytest.mark.parametrize("tag_versions", [None, {}], ids=["no tags", "tags"])
def test_while_a_list_is_asked_for_again_after_an_invalidation_nobody_goes_by_the_old_one(tag_versions: Any) -> None:
    gate = Gate(["/blog/new"])
    answers: list[Any] = [lambda: ["/blog/a"], gate.enter]
    world = World(lambda: answers.pop(0)(), tag_versions)
    assert not world.has("/blog/new")
    world.invalidate("path:/blog/new")
    asking = [start(lambda: world.has("/blog/new")) for _ in range(2)]
    gate.reached()
    assert not wait(asking, 0.1).done
    gate.open()
    assert [one.result(NEVER) for one in asking] == [True, True]


def test_while_a_list_is_asked_for_again_after_its_time_others_go_by_the_old_one() -> None:
    gate = Gate(["/blog/new"])
    answers: list[Any] = [lambda: ["/blog/a"], gate.enter]
    world = World(lambda: answers.pop(0)())
    assert not world.has("/blog/new")
    world.clock.advance(10)
    asking = start(lambda: world.has("/blog/new"))
    gate.reached()
    assert not start(lambda: world.has("/blog/new")).result(NEVER)
    gate.open()
    assert asking.result(NEVER)


def test_who_has_waited_for_a_list_for_as_long_as_anybody_waits_is_left_to_the_app() -> None:
    gate = Gate(["/blog/a"])
    world = World(gate.enter, lock_timeout=0)
    asking = start(lambda: world.has("/blog/b"))
    gate.reached()
    assert start(lambda: world.has("/blog/b")).result(NEVER)
    gate.open()
    assert not asking.result(NEVER)


# Invalidations of something else ------------------------------------------------------------------------


def test_a_list_counts_for_a_second_after_an_invalidation_of_something_else() -> None:
    calls: list[float] = []
    world = World(lambda: calls.append(world.clock.now) or ["/blog/a"], {})
    began = world.clock.now
    for number in range(40):
        world.invalidate("path:/form")
        assert not world.has(f"/blog/{number}")
        world.clock.advance(0.125)
    assert [call - began for call in calls] == [0, 1, 2, 3, 4]


def test_a_short_negative_ttl_holds_after_an_invalidation_of_something_else_as_well() -> None:
    calls: list[int] = []
    world = World(lambda: calls.append(1) or ["/blog/a"], {}, negative_ttl=0.2)
    for _ in range(2):
        world.invalidate("path:/form")
        assert not world.has("/blog/b")
        world.clock.advance(0.3)
    assert len(calls) == 2


def test_without_an_invalidation_no_stamp_is_read() -> None:
    world = World(lambda: ["/blog/a"], {})
    world.has("/blog/b")
    reads = world.reads
    for number in range(5):
        assert not world.has(f"/blog/{number}")
    assert world.reads == reads == 1


def test_while_a_list_is_asked_for_again_others_wait_only_if_it_was_invalidated() -> None:
    gate = Gate(["/blog/new"])
    answers: list[Any] = [lambda: ["/blog/a"], gate.enter]
    world = World(lambda: answers.pop(0)(), {})
    assert not world.has("/blog/new")
    world.clock.advance(1)
    world.invalidate("path:/form")
    asking = start(lambda: world.has("/blog/new"))
    gate.reached()
    assert not start(lambda: world.has("/blog/new")).result(NEVER)
    world.invalidate("path:/blog/new")
    waiting = start(lambda: world.has("/blog/new"))
    assert not wait([waiting], 0.1).done
    answers.append(lambda: ["/blog/new"])
    gate.open()
    assert [asking.result(NEVER), waiting.result(NEVER)] == [True, True]


def test_an_invalidation_while_a_list_is_asked_for_is_not_missed() -> None:
    gate = Gate(["/blog/a"])
    answers: list[Any] = [gate.enter, lambda: ["/blog/new"]]
    world = World(lambda: answers.pop(0)(), {})
    asking = start(lambda: world.has("/blog/new"))
    gate.reached()
    world.invalidate("path:/blog/new")
    gate.open()
    assert not asking.result(NEVER)
    assert world.has("/blog/new")


def test_a_path_whose_stamp_is_new_here_has_a_list_asked_for_that_takes_its_time_now_and_then() -> None:
    asked: list[float] = []

    def paths() -> list[str]:
        asked.append(world.clock())
        world.clock.advance(0.05)
        return ["/blog/a"]

    world = World(paths, {})
    assert world.tag_versions is not None
    assert not world.has("/blog/b")
    world.tag_versions |= {stored_tag(f"path:/blog/{n}"): b"of another page" for n in range(100)}
    for n in range(100):
        world.invalidate("another page")
        assert not world.has(f"/blog/{n}")
        world.clock.advance(0.01)
    assert 2 <= len(asked) <= 4  # in a second
    before = len(asked)
    world.invalidate("path:/blog/0")
    assert not world.has("/blog/0")
    assert len(asked) == before + 1  # it had been called, and its tag version has changed: no wait


def test_tags_whose_node_is_away_are_no_reason_to_ask_again_and_again() -> None:
    calls: list[int] = []
    world = World(lambda: calls.append(1) or ["/blog/a"], {"all": b"1", "route:/blog/<slug>": b"1"})
    assert not world.has("/blog/b")
    world.away = {"all", stored_tag("path:/blog/b")}
    for _ in range(10):
        world.invalidate("path:/form")
        assert not world.has("/blog/b")
    assert len(calls) == 1
    world.invalidate("all")
    world.away = set()
    world.has("/blog/b")
    assert len(calls) == 2


def test_of_many_stamps_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_isr.pages.listed_paths.MAX_TAG_VERSIONS", 20)
    world = World(
        lambda: ["/blog/a"], {stored_tag(f"path:/blog/{number}"): b"1" for number in range(100)} | {"all": b"1"}
    )
    for number in range(100):
        world.invalidate(f"path:/blog/{number}")
        assert not world.has(f"/blog/{number}")
    seen = world.listings._known["/blog/<slug>"].seen
    assert len(seen) == 20
    assert {"all", stored_tag("path:/blog/99")} <= seen.keys()
