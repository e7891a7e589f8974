"""The data cache: results are cached like pages, and pages know the data that they were made of."""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Boom, Environ, Gate, Origin, answer
from tests.behaviour.visitor import Clock, Site, all_at_once
from wsgi_isr import ConfigError, Rule, cache_life, cache_tag, cached
from wsgi_isr.cache.single_flight import Flight
from wsgi_isr.data import codec
from wsgi_isr.data.cached import Cached
from wsgi_isr.events import Refused
from wsgi_isr.stores.memory import MemoryStore


class Source:
    """The source that cached functions read: a value each, counted calls, and gates."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self.gates: dict[str, Gate] = {}
        self.errors: dict[str, Exception] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> Any:
        with self._lock:
            self.calls[name] += 1
            found = self.values.get(name, f"{name}{self.calls[name]}")
            gate, error = self.gates.get(name), self.errors.get(name)
        if gate is not None:
            gate.pass_through()
        if error is not None:
            raise error
        return found

    def hold(self, name: str) -> Gate:
        """Return a gate that stops each reader of ``name`` after the read, until the gate is opened."""
        gate = self.gates[name] = Gate()
        return gate


SOURCES: dict[int, Source] = {}


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    SOURCES[id(source)] = source
    yield source
    del SOURCES[id(source)]
    for gate in source.gates.values():
        gate.open()


def page(show: Callable[[], Any]) -> Callable[[Environ, Callable[..., Any]], Iterable[bytes]]:
    """Return a handler whose page shows the result of ``show``."""
    return answer(lambda environ: str(show()).encode())


def reader(source: Source, name: str = "n", **options: Any) -> Cached[[], Any]:
    """Return a cached function without arguments that reads ``name``."""

    number = id(source)  # the result of a function that closes over an object is not cached outside of requests

    def read() -> Any:
        return SOURCES[number].read(name)

    read.__qualname__ = f"read_{name}_{number}"
    return cached(**options)(read)


# Results are cached -------------------------------------------------------------------------------------


def test_a_result_is_kept_and_comes_back_as_what_it_was(make_site: MakeSite, source: Source) -> None:
    site = make_site()
    source.values["n"] = {"rows": [(1, {2}), (b"x", None)]}
    read = reader(source)
    assert read() == read() == source.values["n"]
    assert source.calls["n"] == 1
    assert site.isr


def test_a_result_that_is_changed_by_whoever_got_it_is_not_changed_for_others(
    make_site: MakeSite, source: Source
) -> None:
    site = make_site()
    source.values["n"] = [1]
    read = reader(source)
    read().append(2)
    read().append(3)
    assert read() == [1]
    assert site.isr


def test_none_is_a_result_like_any_other(make_site: MakeSite, source: Source) -> None:
    site = make_site()
    source.values["n"] = None
    read = reader(source)
    assert read() is read() is None
    assert source.calls["n"] == 1
    assert site.isr


def test_that_there_is_nothing_for_an_argument_leaves_the_store_after_ten_minutes(
    make_site: MakeSite, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    site = make_site(store=store)

    @cached
    def post(number: int) -> str | None:
        return "a post" if number else None

    @cached
    def news() -> str | None:
        return None

    def kept() -> list[bool]:
        tasks = [post._task(site.isr._engine, (0,), {}), post._task(site.isr._engine, (1,), {})]
        tasks.append(news._task(site.isr._engine, (), {}))
        return [store.get(task.page) is not None for task in tasks]

    assert [post(0), post(1), news()] == [None, "a post", None]
    clock.advance(599)
    assert kept() == [True, True, True]
    clock.advance(2)
    assert kept() == [False, True, True]


def test_every_argument_is_part_of_the_key_however_it_is_given(make_site: MakeSite) -> None:
    site, calls = make_site(), []

    @cached
    def f(x: Any, y: Any = 2, *rest: Any, z: Any = 3, **more: Any) -> Any:
        calls.append((x, y, rest, z, more))
        return [x, y, list(rest), z, more]

    assert f(1) == f(x=1) == f(1, 2) == f(y=2, x=1, z=3) == [1, 2, [], 3, {}]
    assert len(calls) == 1
    different = [f(1, 3), f(1, 2, 3), f(1, z=4), f(1, a=1), f(1, b=1), f(1, a=1, b=2), f("1"), f(1.0), f(True)]
    assert len(calls) == 1 + len(different)
    assert f(1, b=2, a=1) == [1, 2, [], 3, {"a": 1, "b": 2}]
    assert len(calls) == 1 + len(different)
    assert site.isr


def test_positional_only_and_keyword_only_arguments_reach_the_function(make_site: MakeSite) -> None:
    site = make_site()

    @cached
    def f(a: int, /, b: int, *, c: int) -> list[int]:
        return [a, b, c]

    assert f(1, 2, c=3) == f(1, b=2, c=3) == [1, 2, 3]
    assert site.isr


def test_a_new_version_is_another_key(make_site: MakeSite, source: Source) -> None:
    site = make_site()
    assert reader(source)() == "n1"
    assert reader(source, version=2)() == "n2"
    assert reader(source, version=1)() == "n1"
    assert site.isr


@dataclass(frozen=True)
class Shop:
    name: str
    calls: ClassVar[Counter[str]] = Counter()

    @cached(tags=lambda given: [f"shop:{given['self'].name}"])
    def price(self, item: str) -> str:
        """Return the price, and count the call."""
        self.calls[self.name] += 1
        return f"{item} at {self.name}"


def test_a_method_has_its_object_as_an_argument(make_site: MakeSite) -> None:
    site = make_site()
    Shop.calls.clear()
    assert Shop("a").price("tea") == Shop("a").price(item="tea") == Shop.price(Shop("a"), "tea") == "tea at a"
    assert Shop("b").price("tea") == "tea at b"
    assert Shop.calls == {"a": 1, "b": 1}
    site.isr.invalidate(tags=["shop:a"])
    Shop("a").price("tea")
    Shop("b").price("tea")
    assert Shop.calls == {"a": 2, "b": 1}
    Shop("b").price.invalidate("tea")
    assert Shop("b").price.refresh("tea") == "tea at b"
    assert Shop.price.__doc__ == "Return the price, and count the call."


def test_an_exception_goes_through_and_is_not_kept(make_site: MakeSite, source: Source) -> None:
    site = make_site()
    source.errors["n"] = Boom("no")
    read = reader(source)
    with pytest.raises(Boom, match="no"):
        read()
    source.errors.clear()
    assert read() == read() == "n2"
    assert site.isr


def test_invalidate_and_refresh_speak_of_one_key(make_site: MakeSite) -> None:
    site, calls = make_site(), {1: 0, 2: 0}

    @cached
    def f(x: int) -> int:
        calls[x] += 1
        return calls[x]

    assert [f(1), f(2)] == [1, 1]
    f.invalidate(x=1)
    assert [f(1), f(2)] == [2, 1]
    assert f.refresh(2) == f(2) == 2
    assert f(1) == 2
    assert site.isr


# Time ---------------------------------------------------------------------------------------------------


def test_stale_data_is_handed_out_and_renewed_in_the_background(
    make_site: MakeSite, source: Source, clock: Clock
) -> None:
    site, read = make_site(), reader(source, revalidate=10)
    assert read() == "n1"
    clock.advance(9.9)
    assert read() == "n1"
    clock.advance(0.1)
    gate = source.hold("n")
    assert read() == "n1"
    gate.wait_until_entered()
    gate.open()
    site.settle()
    assert read() == "n2"
    assert source.calls["n"] == 2


def test_expired_data_is_not_handed_out(make_site: MakeSite, source: Source, clock: Clock) -> None:
    site, read = make_site(), reader(source, revalidate=10, expire=20)
    read()
    clock.advance(20)
    assert read() == "n2"
    assert site.isr


def test_no_stale_data_goes_into_a_page_that_is_stored(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    site, read = make_site(revalidate=60), reader(source, revalidate=10)
    origin.on("/a", page(read))
    assert read() == "n1"
    clock.advance(15)
    assert site.visit("/a").body == b"n2"
    assert site.visit("/a").label == "HIT"


def test_no_stale_data_goes_into_data_that_is_kept(make_site: MakeSite, source: Source, clock: Clock) -> None:
    site, inner = make_site(), reader(source, revalidate=10)

    @cached
    def outer() -> str:
        return f"({inner()})"

    assert inner() == "n1"
    clock.advance(15)
    assert outer() == "(n2)"
    assert site.isr


def test_a_page_that_is_not_stored_gets_stale_data_at_once(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    site, read = make_site({"/a": 0}), reader(source, revalidate=10)
    origin.on("/a", page(read))
    read()
    clock.advance(15)
    gate = source.hold("n")
    assert site.visit("/a").body == b"n1"
    gate.open()
    site.settle()
    assert site.visit("/a").body == b"n2"


# Lifetime and tags that a page takes over ---------------------------------------------------------------


def test_a_page_lives_as_long_as_the_shortest_of_rule_cache_life_and_data(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    site = make_site(revalidate=100)
    short, long = reader(source, "short", revalidate=30), reader(source, "long", revalidate=70)

    def show() -> str:
        cache_life(50)
        return f"{short()} {long()}"

    origin.on("/a", page(show))
    site.visit("/a")
    clock.advance(29.9)
    assert site.visit("/a").label == "HIT"
    clock.advance(0.1)
    assert site.visit_and_settle("/a").label == "STALE"
    assert site.visit("/a").body == b"short2 long1"  # each process keeps its own value
    clock.advance(40)  # long is 70 s old, short 40
    assert site.visit_and_settle("/a").label == "STALE"
    assert site.visit("/a").body == b"short3 long2"


def test_a_page_gets_what_is_left_of_the_lifetime_of_its_data(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    site, read = make_site(revalidate=100), reader(source, revalidate=30, expire=40)
    origin.on("/a", page(read))
    read()
    clock.advance(20)
    site.visit("/a")
    clock.advance(9)
    assert site.visit("/a").label == "HIT"
    clock.advance(1)
    assert site.visit_and_settle("/a").label == "STALE"
    clock.advance(40)
    assert site.visit("/a").label == "EXPIRED"


def nest(source: Source, **innermost: Any) -> tuple[Cached[[], str], Cached[[], str], Cached[[], str]]:
    """Return three cached functions, each of which calls the next."""
    c = reader(source, "c", **innermost)

    def second() -> str:
        return f"{source.read('b')}{c()}"

    def first() -> str:
        return f"{source.read('a')}{b()}"

    second.__qualname__, first.__qualname__ = f"second_{id(source)}", f"first_{id(source)}"
    b = cached(revalidate=70, tags=["b"])(second)
    a = cached(revalidate=90, tags=["a"])(first)
    return a, b, c


def test_tags_flow_up_through_three_levels(make_site: MakeSite, origin: Origin, source: Source) -> None:
    site = make_site(revalidate=100)
    a, _, _ = nest(source, tags=["c"])
    origin.on("/a", page(a))
    assert site.visit("/a").body == b"a1b1c1"
    for tag, body in (("c", b"a2b2c2"), ("b", b"a3b3c2"), ("a", b"a4b3c2")):
        assert site.visit("/a").label == "HIT"
        site.isr.invalidate(tags=[tag])
        seen = site.visit("/a")
        assert (seen.label, seen.body) == ("EXPIRED", body), tag


def test_the_lowest_lifetime_flows_up_through_three_levels(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    site = make_site(revalidate=100)
    a, _, _ = nest(source, revalidate=20)
    origin.on("/a", page(a))
    site.visit("/a")
    clock.advance(19.9)
    assert site.visit("/a").label == "HIT"
    clock.advance(0.1)
    assert site.visit_and_settle("/a").label == "STALE"
    assert site.visit("/a").body == b"a2b2c2"


def test_what_is_said_inside_data_counts_for_every_page_that_uses_it(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=100)

    @cached
    def f() -> str:
        cache_tag("inside")
        cache_life(20)
        return "f"

    origin.on("/a", page(f))
    origin.on("/b", page(f))
    site.visit("/a")
    site.visit("/b")
    site.isr.invalidate(tags=["inside"])
    assert [site.visit("/a").label, site.visit("/b").label] == ["EXPIRED", "EXPIRED"]
    clock.advance(20)
    assert site.visit("/a").label == "STALE"


def test_the_invalidation_of_one_key_reaches_the_pages_that_used_it(
    make_site: MakeSite, origin: Origin, source: Source
) -> None:
    site, read = make_site(revalidate=100), reader(source)
    origin.on("/a", page(read))
    site.visit("/a")
    read.invalidate()
    seen = site.visit("/a")
    assert (seen.label, seen.body) == ("EXPIRED", b"n2")


@pytest.mark.parametrize("slow", ["add", "get"])
def test_data_whose_time_is_over_once_it_is_used_is_no_reason_never_to_keep_the_page(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock, slow: str
) -> None:
    class SlowStore(MemoryStore):
        def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
            added = super().add(key, value, ttl)
            clock.advance(2 if slow == "add" and ":d:" in key and not key.endswith(":lock") else 0)
            return added

    site, read = make_site(revalidate=100, store=SlowStore(clock=clock)), reader(source, revalidate=1)
    if slow == "get":
        read()
        # The data expires between the read of its age and its use.
        decoded = Cached._decoded
        late = pytest.MonkeyPatch()
        late.setattr(Cached, "_decoded", lambda self, content: (clock.advance(1), decoded(self, content))[1])
    origin.on("/a", page(read))
    assert site.visit("/a").label == "MISS"
    if slow == "get":
        late.undo()
    clock.advance(0.01)
    assert site.visit_and_settle("/a").label == "STALE"
    assert site.happened(Refused) == []


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_data_with_revalidate_0_makes_the_page_uncacheable(
    make_site: MakeSite, origin: Origin, source: Source, depth: int
) -> None:
    site = make_site(revalidate=100)
    show = nest(source, revalidate=0)[2 - depth]
    origin.on("/a", page(show))
    for _ in range(3):
        assert site.visit("/a").label in ("MISS", "BYPASS")
    assert site.visit("/a").label == "BYPASS"
    assert {event.reason for event in site.happened(Refused)} <= {"no-store", "revalidate-0"}
    assert source.calls["c"] >= 4


@pytest.mark.parametrize("way", ["kept", "refreshed", "in-a-closure", "unencodable", "nested"])
def test_a_page_that_copes_with_a_failure_of_its_data_has_the_tags_and_lifetime_of_that_data(
    make_site: MakeSite, origin: Origin, source: Source, way: str
) -> None:
    site, connection = make_site(revalidate=100), object()
    posts: dict[str, str] = {}

    def find(slug: str) -> Any:
        assert connection
        if slug not in posts:
            raise LookupError(slug)
        return posts[slug] if way != "unencodable" else source

    def copes(environ: Environ) -> bytes:
        post = cached(revalidate=20, tags=["post:{slug}"])(find)

        @cached
        def around() -> str:
            try:
                return str(post("a"))
            except LookupError:
                return "no such post"

        try:
            if way == "nested":
                return around().encode()
            return str(post.refresh("a") if way == "refreshed" else post("a")).encode()
        except LookupError:
            return b"no such post"

    if way != "in-a-closure":
        connection = 1  # type: ignore[assignment]
        find.__qualname__ = f"find_{id(source)}"
    origin.on("/a", answer(copes))
    assert (site.visit("/a").text, site.lifetime("/a").revalidate) == ("no such post", 20)
    posts["a"] = "a post"
    site.isr.invalidate(tags=["post:a"])
    seen = site.visit("/a")
    assert seen.label == "EXPIRED"
    assert seen.body != b"no such post"


def test_who_joins_a_call_that_fails_is_not_told_of_it_after_an_invalidation(
    make_site: MakeSite, origin: Origin, source: Source
) -> None:
    site, read = make_site(revalidate=100), reader(source, tags=["posts"])

    def copes() -> Any:
        try:
            return read()
        except Boom:
            return "no such post"

    for path in ("/a", "/b"):
        origin.on(path, page(copes))
    source.errors["n"] = Boom()
    gate = source.hold("n")
    first = site.start_visit("/a")
    gate.wait_until_entered()
    source.errors.clear()
    source.gates.clear()
    site.isr.invalidate(tags=["posts"])
    joined = threading.Event()
    wait = Flight.wait

    def noted(flight: Any, timeout: float) -> Any:
        joined.set()
        return wait(flight, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flight, "wait", noted)
        second = site.start_visit("/b")
        assert joined.wait(20)
        gate.open()
        assert second.result().text == "n2"
    assert first.result().text == "no such post"
    assert site.visit("/a").label != "HIT"


def test_a_function_that_fails_in_a_regeneration_keeps_the_last_good_page(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    site = make_site(revalidate=100)
    a, _, _ = nest(source, revalidate=20, tags=["c"])
    origin.on("/a", page(a))
    site.visit("/a")
    source.errors["c"] = Boom()
    clock.advance(25)
    assert site.visit_and_settle("/a").label == "STALE"
    assert site.visit_and_settle("/a").body == b"a1b1c1"
    site.isr.invalidate(tags=["c"])
    seen = site.visit("/a")
    assert (seen.label, seen.body) == ("STALE-IF-ERROR", b"a1b1c1")
    source.errors.clear()
    clock.advance(60)
    seen = site.visit("/a")
    assert seen.label == "EXPIRED"
    assert b"c1" not in seen.body


@dataclass
class Post:
    """A dataclass in one version of an app."""

    title: str


@dataclass
class LaterPost:
    """The dataclass in the next version of the app."""

    title: str
    text: str = ""


def test_data_that_the_next_version_of_the_app_cannot_read_is_made_anew_once(
    make_site: MakeSite, origin: Origin, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(clock=clock)
    calls = [0]

    @cached
    def post() -> Any:
        calls[0] += 1
        return globals()["Post"](f"t{calls[0]}")

    origin.on("/a", page(post))
    make_site(revalidate=100, store=store, release="1").visit("/a")
    with monkeypatch.context() as patch:
        LaterPost.__qualname__ = "Post"
        patch.setitem(globals(), "Post", LaterPost)
        site = make_site(revalidate=100, store=store, release="1")
        site.isr.invalidate(paths=["/a"])
        for _ in range(3):
            assert site.visit("/a").text == "Post(title='t2', text='')"
            site.isr.invalidate(paths=["/a"])
    assert calls == [2]


def test_a_result_that_came_too_late_to_be_kept_is_that_of_whoever_has_waited_for_it(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site, calls = make_site(revalidate=100), [0]

    @cached(revalidate=20, tags=["outside"], timeout=5)
    def slow() -> int:
        cache_tag("inside")
        calls[0] += 1
        clock.advance(6)
        return calls[0]

    assert slow() == 1
    origin.on("/a", page(slow))
    for number, tag in enumerate(("inside", "outside")):
        seen = site.visit("/a")
        assert (seen.text, site.lifetime("/a").revalidate) == (str(number + 2), 20)
        site.isr.invalidate(tags=[tag])
    assert site.visit("/a").text == "4"
    assert calls == [4]


# One call -----------------------------------------------------------------------------------------------


def test_five_cold_pages_that_share_a_query_ask_it_once(make_site: MakeSite, origin: Origin, source: Source) -> None:
    site, read = make_site(revalidate=100), reader(source)
    started = threading.Barrier(5)

    def show() -> Any:
        started.wait(20)
        return read()

    for number in range(5):
        origin.on(f"/{number}", page(show))
    seen = all_at_once(5, lambda number: site.visit(f"/{number}"))
    assert {one.body for one in seen} == {b"n1"}
    assert source.calls["n"] == 1
    assert all(site.visit(f"/{number}").label == "HIT" for number in range(5))


def test_two_instances_ask_once(make_site: MakeSite, origin: Origin, source: Source, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=100, store=store) for _ in range(2)]
    read = reader(source)
    origin.on("/a", page(read))
    origin.on("/b", page(read))
    gate = source.hold("n")
    first = sites[0].start_visit("/a")
    gate.wait_until_entered()
    paused = threading.Event()

    def while_the_other_waits(seconds: float) -> None:
        paused.set()
        gate.open()
        first.result()

    clock.on_pause = while_the_other_waits
    second = sites[1].start_visit("/b")
    assert {first.result().body, second.result().body} == {b"n1"}
    assert paused.is_set()
    assert source.calls["n"] == 1


def test_two_entries_that_wait_for_each_other_do_so_no_longer_than_wait(
    make_site: MakeSite, origin: Origin, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thread that waits for another thread waits in real time: this clock moves by itself.
    monkeypatch.setattr(Clock, "__call__", lambda clock: time.monotonic())
    clock.on_pause = time.sleep
    site = make_site(revalidate=100)
    inside = threading.local()
    both = threading.Barrier(2)

    def half(name: str, other: Callable[[], Callable[[], str]]) -> Callable[[], str]:
        def run() -> str:
            if getattr(inside, "one", False):
                return name
            inside.one = True
            both.wait(20)  # each thread holds its own lock now
            return name + other()()

        run.__qualname__ = f"half_{name}_{id(both)}"
        return run

    a: Callable[[], str] = cached(lock_timeout=0.2)(half("a", lambda: b))
    b: Callable[[], str] = cached(lock_timeout=0.2)(half("b", lambda: a))
    origin.on("/a", page(lambda: a()))
    origin.on("/b", page(lambda: b()))
    began = time.monotonic()
    first, second = site.start_visit("/a"), site.start_visit("/b")
    # Each has called the other itself, or got the other's result in the meantime.
    assert first.result().body in (b"ab", b"aba")
    assert second.result().body in (b"ba", b"bab")
    assert 0.2 <= time.monotonic() - began < 10  # the `wait` of these two, not the 10 s of all others


# Invalidations beside a render --------------------------------------------------------------------------


def test_data_read_before_an_invalidation_never_ends_in_a_page_that_is_fresh(
    make_site: MakeSite, origin: Origin, source: Source
) -> None:
    """The page reads the data, the tag is invalidated, then the page is stored."""
    site, read = make_site(revalidate=100), reader(source, tags=["posts"])
    gate = Gate()

    def show() -> Any:
        found = read()
        gate.pass_through()
        return found

    origin.on("/a", page(show))
    visit = site.start_visit("/a")
    gate.wait_until_entered()
    site.isr.invalidate(tags=["posts"])
    gate.open()
    assert visit.result().body == b"n1"
    seen = site.visit_and_settle("/a")
    assert seen.label != "HIT"
    assert seen.body == b"n2"


def test_data_kept_before_an_invalidation_and_delivered_after_it_is_not_used(
    make_site: MakeSite, origin: Origin, source: Source
) -> None:
    """The function has read the old value; the tag is invalidated; a later page joins the single flight."""
    site, read = make_site(revalidate=100), reader(source, tags=["posts"])
    origin.on("/a", page(read))
    gate = source.hold("n")
    first = site.start_visit("/a")
    gate.wait_until_entered()
    site.isr.invalidate(tags=["posts"])
    origin.on("/b", page(read))
    door = origin.hold("/b")
    second = site.start_visit("/b")
    door.wait_until_entered()
    door.open()
    gate.open()
    assert first.result().body == b"n1"
    assert second.result().body == b"n2"
    assert site.visit_and_settle("/a").body == b"n2"
    assert [site.visit(path).label for path in ("/a", "/b")] == ["HIT", "HIT"]


def test_a_page_of_two_pieces_of_data_with_an_invalidation_between_them_is_not_fresh(
    make_site: MakeSite, origin: Origin, source: Source
) -> None:
    site = make_site(revalidate=100)
    one, two = reader(source, "one", tags=["posts"]), reader(source, "two", tags=["posts"])

    def show() -> str:
        first = one()
        if origin.calls["/a"] == 1:
            site.isr.invalidate(tags=["posts"])
        return f"{first} {two()}"

    origin.on("/a", page(show))
    assert site.visit("/a").body == b"one1 two1"
    seen = site.visit_and_settle("/a")
    assert (seen.label != "HIT", seen.body) == (True, b"one2 two1")
    assert site.visit("/a").label == "HIT"


def test_a_stored_piece_of_data_that_is_older_than_its_invalidation_makes_no_fresh_page_elsewhere(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    here, there = (make_site(revalidate=100, store=store) for _ in range(2))
    read = reader(source, tags=["posts"])
    origin.on("/a", page(read))
    here.visit("/a")
    there.isr.invalidate(tags=["posts"])
    origin.on("/b", page(read))
    assert there.visit("/b").body == b"n2"
    clock.advance(5)
    assert here.visit("/b").body == b"n2"
    assert here.visit("/a").body == b"n2"


# Dataclasses --------------------------------------------------------------------------------------------

MODELS = """
from dataclasses import dataclass, field

@dataclass(frozen=True)
class Author:
    name: str

@dataclass
class Post:
    title: str
    author: Author
    words: int = field(init=False, default=0)

    def __post_init__(self):
        print("post-init", end=" ")
        self.words = len(self.title.split())

def load():
    return [Post("two words", Author("ada"))]
"""
READERS = {
    "annotated": "from models import Post, load as read",  # and Author is in the annotation of a field
    "imported": "from models import Post, Author, load as read",
    "module": "import models\nread = models.load",
    "unannotated": "from models import load as read",
    "for type checkers": "from typing import TYPE_CHECKING\nfrom models import load as read\n"
    "if TYPE_CHECKING:\n    from models import Post",
}
ANNOTATIONS = {"annotated": "-> list[Post]", "for type checkers": "-> 'list[Post]'"}


@pytest.fixture
def read_posts(tmp_path: Any) -> Callable[[str], tuple[str, str]]:
    """Return output and log of a process of its own that calls a cached function twice."""
    (tmp_path / "models.py").write_text(MODELS)
    options = {"WSGI_ISR_STORE": f"sqlite:///{tmp_path}/cache.db", "PYTHONPATH": str(tmp_path)}

    def run(way: str) -> tuple[str, str]:
        script = (
            f"import sys\nfrom wsgi_isr import cached\n{READERS[way]}\n"
            f"@cached\ndef posts(){ANNOTATIONS.get(way, '')}:\n    print('called', end=' ')\n    return read()\n"
            "for _ in range(2):\n    (post,) = posts()\n"
            "    print(post.title, post.author.name, post.words, type(post).__module__, end='; ')\n"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env={**os.environ, **options}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


SEEN = "two words ada 2 models; "


@pytest.mark.parametrize("way", ["annotated", "imported", "module"])
def test_a_process_reads_dataclasses_that_another_one_has_kept(
    read_posts: Callable[[str], tuple[str, str]], way: str
) -> None:
    assert read_posts(way) == (f"called post-init {SEEN}{SEEN}", "")
    assert read_posts(way) == (f"{SEEN}{SEEN}", "")


@pytest.mark.parametrize("way", ["unannotated", "for type checkers"])
def test_a_process_that_cannot_tell_what_a_function_returns_calls_it_once_and_says_what_to_write(
    read_posts: Callable[[str], tuple[str, str]], way: str
) -> None:
    assert read_posts(way) == (f"called post-init {SEEN}{SEEN}", "")
    shown, said = read_posts(way)
    assert shown == f"called post-init {SEEN}{SEEN}"
    assert "__main__:posts: what is kept cannot be read (models:Author is not allowed" in said
    assert "annotate the result, such as -> Author" in said


def test_a_refresh_by_a_process_of_other_types_returns_the_result_all_the_same(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, calls = make_site(), []
    elsewhere = ModuleType("another_module_of_this_test")
    monkeypatch.setitem(sys.modules, elsewhere.__name__, elsewhere)
    exec("from dataclasses import dataclass\n@dataclass\nclass Price:\n    amount: int", vars(elsewhere))

    class Forgetful(dict[str, type]):
        """A record of types that ignores the first call, as if another process had made the call."""

        def __setitem__(self, name: str, kind: type) -> None:
            if len(calls) > 1:
                super().__setitem__(name, kind)

    monkeypatch.setattr(codec, "_encoded", Forgetful())

    @cached
    def price() -> Any:
        calls.append(1)
        return vars(elsewhere)["Price"](len(calls))

    assert price.refresh().amount == 2
    assert (price().amount, len(calls)) == (2, 2)
    assert site.isr


# Values that cannot be cached ---------------------------------------------------------------------------


def test_a_result_that_cannot_be_kept_is_returned_and_said(
    make_site: MakeSite, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    site, read = make_site(), reader(source)
    source.values["n"] = thing = object()
    with caplog.at_level(logging.WARNING, "wsgi_isr.data"):
        assert read() is thing
        assert read() is thing
    assert "is not kept: builtins.object" in caplog.text
    assert site.isr


def test_text_that_no_utf8_has_is_kept_like_any_other(make_site: MakeSite, source: Source) -> None:
    site, read = make_site(), reader(source)
    source.values["n"] = "file\udcff"
    assert read() == read() == "file\udcff"
    assert source.calls["n"] == 1
    assert site.isr


def test_a_page_of_a_result_that_cannot_be_kept_has_its_tags_and_lifetime_all_the_same(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    site, inner = make_site(revalidate=100), reader(source, revalidate=20, tags=["inner"])
    source.values["outer"] = object()

    @cached(revalidate=50, tags=["outer"])
    def outer() -> Any:
        inner()
        return source.read("outer")

    origin.on("/a", page(outer))
    site.visit("/a")
    for invalidate in (
        lambda: site.isr.invalidate(tags=["outer"]),
        lambda: site.isr.invalidate(tags=["inner"]),
        outer.invalidate,
        inner.invalidate,
    ):
        site.visit_and_settle("/a")
        assert site.visit("/a").label == "HIT"
        invalidate()
        assert site.visit_and_settle("/a").label == "EXPIRED"
    clock.advance(20)
    assert site.visit_and_settle("/a").label == "STALE"


def test_an_argument_that_cannot_be_part_of_a_key_is_a_type_error(make_site: MakeSite) -> None:
    site = make_site()

    @cached
    def f(x: object) -> int:
        return 1

    with pytest.raises(TypeError, match=r"builtins\.object cannot be kept"):
        f(object())
    with pytest.raises(TypeError, match="missing"):
        f()
    assert site.isr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"revalidate": -1}, "revalidate"),
        ({"revalidate": 60, "expire": 30}, "expire"),
        ({"expire": -1}, "expire"),
        ({"timeout": 0}, "timeout"),
        ({"lock_timeout": -1}, "lock_timeout"),
        ({"tags": ["a:{nothing}"]}, "nothing"),
        ({"tags": ["{"]}, "tags"),
        ({"tags": "posts"}, "tags"),
        ({"tags": [""]}, "tags"),
    ],
)
def test_a_bad_option_is_an_error_where_the_function_is_defined(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):

        @cached(**options)
        def f(x: int) -> int:
            return x


def test_only_what_returns_data_is_cached() -> None:
    async def coroutine() -> None: ...

    async def stream() -> Any:
        yield

    def generator() -> Any:
        yield

    for function in (coroutine, stream, generator):
        with pytest.raises(ConfigError, match="returns no data"):
            cached(function)


def test_an_own_profile_is_known_where_it_is_used(make_site: MakeSite, source: Source, clock: Clock) -> None:
    site, read = make_site(profiles={"tea": (7, 9)}), reader(source, revalidate="tea")
    read()
    clock.advance(9)
    assert read() == "n2"
    with pytest.raises(ConfigError, match="coffee"):
        reader(source, "other", revalidate="coffee")()
    assert site.isr


def test_two_functions_of_one_name_do_not_get_each_other_s_results(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    module: Any = ModuleType("of_two_functions")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.cached = cached
    exec("first, second = cached(lambda: 'first'), cached(lambda: 'second')", vars(module))
    first, second = module.first, module.second
    assert second() == "second"
    with pytest.raises(ConfigError, match="another cached function has this name"):
        first()
    one, other = cached(version=2)(lambda: "one"), cached(version=3)(lambda: "other")
    assert (one(), other(), one(), one.refresh(), other.refresh()) == ("one", "other", "one", "one", "other")
    assert site.isr


def test_two_functions_of_one_name_inside_of_another_are_told_apart_by_their_code(make_site: MakeSite) -> None:
    site = make_site()
    one, other = cached(lambda: "one"), cached(lambda: "other")
    assert (one(), other(), one(), one.refresh(), other.refresh()) == ("one", "other", "one", "one", "other")
    assert site.isr


def test_what_has_no_name_of_its_own_or_belongs_to_an_object_is_refused_where_it_is_defined() -> None:
    class Shop:
        def price(self) -> int:
            return 1

        @classmethod
        def named(cls) -> int:
            return 2

        def __call__(self) -> int:
            return 3

    for function in (functools.partial(int, "1"), Shop(), Shop().price, Shop.named, vars(Shop)["named"], 5):
        with pytest.raises(ConfigError, match="is no function of its own"):
            cached(function)


@pytest.mark.parametrize("wrong", ["posts", [1], [""], None])
def test_tags_that_a_callable_returns_are_held_to_what_tags_are(make_site: MakeSite, wrong: Any) -> None:
    site = make_site()

    @cached(tags=lambda given: wrong)
    def f() -> int:
        return 1

    with pytest.raises(ConfigError, match="f: tags"):
        f()
    assert site.isr


# Where ---------------------------------------------------------------------------------------------------


def test_threads_of_the_app_belong_to_the_page_with_a_copied_context(
    make_site: MakeSite, origin: Origin, source: Source
) -> None:
    site = make_site(revalidate=100)
    reads = [reader(source, name, tags=[name]) for name in "abc"]

    def show() -> str:
        found: dict[int, str] = {}

        def work(number: int) -> None:
            found[number] = reads[number]()

        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, n)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return "".join(found[number] for number in range(3))

    origin.on("/a", page(show))
    assert site.visit("/a").body == b"a1b1c1"
    for name in "abc":
        assert site.visit("/a").label == "HIT"
        site.isr.invalidate(tags=[name])
        assert site.visit("/a").label == "EXPIRED"


@pytest.mark.parametrize("lazily", [False, True], ids=["in the call", "in a generator"])
def test_each_of_two_apps_keeps_its_data_in_its_own_store(
    make_site: MakeSite, origin: Origin, source: Source, lazily: bool
) -> None:
    sites = [make_site(revalidate=100) for _ in range(2)]
    read = reader(source)

    def stream(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [HTML])
        yield read().encode()

    origin.on("/a", stream if lazily else page(read))
    assert [site.visit("/a").body for site in sites] == [b"n1", b"n2"]


def test_without_a_store_that_keeps_anything_the_function_is_called(make_site: MakeSite, source: Source) -> None:
    site, read = make_site(store="null://"), reader(source)
    assert [read(), read()] == ["n1", "n2"]
    assert read.invalidate() is None
    assert read.refresh() == "n3"
    assert site.isr


def test_data_renewed_in_the_background_uses_the_data_of_its_own_app(
    make_site: MakeSite, origin: Origin, source: Source, clock: Clock
) -> None:
    sites = [make_site({"/a": 0}) for _ in range(2)]
    inner = reader(source)

    @cached(revalidate=10)
    def outer() -> str:
        return f"{source.read('outer')} {inner()}"

    origin.on("/a", page(outer))
    assert [site.visit("/a").body for site in sites] == [b"outer1 n1", b"outer2 n2"]
    clock.advance(15)
    for site in sites:
        site.visit_and_settle("/a")
    assert [site.visit("/a").body for site in sites] == [b"outer3 n1", b"outer4 n2"]


SCRIPT = """
from wsgi_isr import cached, invalidate
import sys

calls = []

@cached(revalidate=60, tags=["posts"])
def f(x):
    calls.append(x)
    return {"x": (x,)}

print(f(1), f(x=1), len(calls))
if "f.invalidate" in sys.argv:
    f.invalidate(1)
    print(f(1), len(calls))
if "invalidate" in sys.argv:
    invalidate(tags=["posts"])
    print(f(1), len(calls))
"""


@pytest.fixture
def run_script(tmp_path: Any) -> Callable[..., list[str]]:
    """Run the script above as a process of its own, on one store. Return the lines that it prints."""

    def run(*arguments: str) -> list[str]:
        options = {"WSGI_ISR_STORE": f"sqlite:///{tmp_path}/cache.db", "WSGI_ISR_COHERENCE": "60"}
        command = [sys.executable, "-c", SCRIPT, *arguments]
        environ = {**os.environ, **options}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


def test_scripts_without_an_app_share_the_data_of_the_store_in_their_environment(
    run_script: Callable[..., list[str]],
) -> None:
    assert run_script() == ["{'x': (1,)} {'x': (1,)} 1"]
    assert run_script("f.invalidate") == ["{'x': (1,)} {'x': (1,)} 0", "{'x': (1,)} 1"]


def test_a_script_sees_its_own_invalidation_at_once(run_script: Callable[..., list[str]]) -> None:
    assert run_script("invalidate") == ["{'x': (1,)} {'x': (1,)} 1", "{'x': (1,)} 2"]


def test_a_rule_that_never_stores_leaves_data_alone(make_site: MakeSite, origin: Origin, source: Source) -> None:
    site: Site = make_site({"/a": Rule(revalidate=0)})
    origin.on("/a", page(reader(source)))
    assert [site.visit("/a").body for _ in range(2)] == [b"n1", b"n1"]
