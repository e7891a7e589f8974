"""An app describes its page by calls and by headers. A page takes over lifetime and tags of its data."""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import HTML, Boom, Environ, Handler, Origin, answer
from tests.behaviour.visitor import Clock
from wsgi_isr import ConfigError, Rule, cache_life, cache_tag, cached, no_store


def saying(*said: Callable[[], Any]) -> Handler:
    """Return a page that calls each of ``said`` while it is rendered."""

    def body(environ: Environ) -> bytes:
        for say in said:
            say()
        return b"page"

    return answer(body)


# cache_tag ------------------------------------------------------------------------------------------------


def test_tags_that_a_page_names_while_it_is_rendered_invalidate_it(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["of the rule"])})
    origin.on("/a", saying(lambda: cache_tag("posts", "post:1"), lambda: cache_tag("more")))
    for tag in ("posts", "post:1", "more", "of the rule"):
        site.visit("/a")
        assert site.visit("/a").label == "HIT"
        site.isr.invalidate(tags=[tag])
        assert site.visit("/a").label == "EXPIRED", tag


def test_the_tags_are_those_of_the_latest_render(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    origin.on("/a", saying(lambda: cache_tag("first")))
    site.visit("/a")
    origin.on("/a", saying(lambda: cache_tag("second")))
    site.isr.invalidate(tags=["first"])
    site.visit("/a")
    site.isr.invalidate(tags=["first"])
    assert site.visit("/a").label == "HIT"
    site.isr.invalidate(tags=["second"])
    assert site.visit("/a").label == "EXPIRED"


def test_tags_of_two_pages_that_render_at_once_do_not_mix(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    both = threading.Barrier(2)
    for path in ("/a", "/b"):
        origin.on(path, saying(lambda path=path: cache_tag(path), lambda: both.wait(20), lambda: cache_tag("both")))
    visits = [site.start_visit(path) for path in ("/a", "/b")]
    for visit in visits:
        visit.result()
    site.isr.invalidate(tags=["/a"])
    origin.mend("/a")
    assert [site.visit(path).label for path in ("/b", "/a")] == ["HIT", "EXPIRED"]


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["list"]], ids=repr)
def test_a_tag_that_is_no_text_is_a_type_error(make_site: MakeSite, origin: Origin, wrong: Any) -> None:
    origin.on("/a", saying(lambda: cache_tag(wrong)))
    with pytest.raises(TypeError):
        make_site(revalidate=60).visit("/a")


@pytest.mark.parametrize("call", [lambda: cache_tag("a"), lambda: cache_life(60), no_store])
def test_outside_of_a_render_they_have_no_effect_and_are_no_error(
    make_site: MakeSite, origin: Origin, call: Callable[[], None]
) -> None:
    assert call() is None
    site = make_site(revalidate=60)
    site.visit("/a")
    assert call() is None
    assert site.visit("/a").label == "HIT"


@pytest.mark.parametrize("how", ["POST", "bypass", "no rule"])
def test_in_a_page_that_is_not_for_the_cache_they_are_no_error(make_site: MakeSite, origin: Origin, how: str) -> None:
    origin.on("/a", saying(lambda: cache_tag("a"), lambda: cache_life("hours"), no_store))
    site = make_site({"/b": 60} if how == "no rule" else {"/a": 60})
    headers = {"Authorization": "x"} if how == "bypass" else {}
    seen = site.visit("/a", method="POST" if how == "POST" else "GET", headers=headers)
    assert (seen.code, seen.body) == (200, b"page")


# cache_life ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "lifetime"),
    [
        ((lambda: cache_life(7),), 7),
        ((lambda: cache_life(7), lambda: cache_life(20)), 7),
        ((lambda: cache_life(20), lambda: cache_life(7)), 7),
        ((lambda: cache_life(False),), 100),
        ((lambda: cache_life(1000),), 100),
        ((lambda: cache_life("minutes"),), 60),
        ((lambda: cache_life("seconds"),), 1),
        ((lambda: cache_life("own"),), 42),
    ],
)
def test_the_lowest_lifetime_that_is_said_wins_the_rule_included(
    make_site: MakeSite, origin: Origin, clock: Clock, said: tuple[Callable[[], None], ...], lifetime: float
) -> None:
    site = make_site(revalidate=100, profiles={"own": (42, 420)})
    origin.on("/a", saying(*said))
    site.visit("/a")
    assert site.lifetime("/a").revalidate == lifetime
    clock.advance(lifetime - 0.1)
    assert site.visit("/a").label == "HIT"
    clock.advance(0.2)
    assert site.visit_and_settle("/a").label != "HIT"


#: revalidate and expire of the built-in profiles, in seconds.
PROFILES = {
    "seconds": (1, 60),
    "minutes": (60, 3600),
    "hours": (3600, 86400),
    "days": (86400, 604800),
    "weeks": (604800, 2592000),
    "max": (2592000, 31536000),
}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("by", ["rule", "cache_life"])
def test_a_profile_is_a_lifetime_and_an_end(
    make_site: MakeSite, origin: Origin, clock: Clock, name: str, by: str
) -> None:
    revalidate, expire = PROFILES[name]
    site = make_site(revalidate=name if by == "rule" else False)
    if by == "cache_life":
        origin.on("/a", saying(lambda: cache_life(name)))
    site.visit("/a")
    assert site.lifetime("/a") == (revalidate, expire)
    clock.advance(revalidate - 0.5)
    assert site.visit("/a").label == "HIT"
    clock.advance(0.5)
    assert site.visit_and_settle("/a").label == "STALE"
    clock.advance(expire)
    assert site.visit_and_settle("/a").label == "EXPIRED"


@pytest.mark.parametrize("wrong", [-1, "sometimes", None, [], float("nan")], ids=repr)
def test_an_impossible_lifetime_is_an_error_where_it_is_said(make_site: MakeSite, origin: Origin, wrong: Any) -> None:
    origin.on("/a", saying(lambda: cache_life(wrong)))
    with pytest.raises(ConfigError):
        make_site(revalidate=60).visit("/a")


def test_an_end_before_the_lifetime_is_an_error_where_it_is_said(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/a", saying(lambda: cache_life(60, 59)))
    with pytest.raises(ConfigError, match="expire"):
        make_site(revalidate=60).visit("/a")


# no_store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [no_store, lambda: cache_life(0)], ids=["no_store()", "cache_life(0)"])
def test_a_page_that_says_not_to_store_it_is_passed_through_to_each_visitor(
    make_site: MakeSite, origin: Origin, said: Callable[[], None]
) -> None:
    def page(environ: Environ) -> bytes:
        said()
        return environ.get("HTTP_COOKIE", "nobody").encode()

    origin.on("/a", answer(page))
    site = make_site(revalidate=60)
    for name in ("a=1", "a=2", "a=1"):
        seen = site.visit("/a", cookie=name)
        assert seen.text == name
        assert "s-maxage" not in seen.directives


NOT_FOR_OTHERS = {
    "no_store()": saying(no_store),
    "cache_life(0)": saying(lambda: cache_life(0)),
    "private": answer(b"page", ("Cache-Control", "private")),
    "Set-Cookie": answer(b"page", ("Set-Cookie", "a=b")),
    "202": answer(b"page", status="202 Accepted"),
}


@pytest.mark.parametrize("handler", NOT_FOR_OTHERS.values(), ids=NOT_FOR_OTHERS)
@pytest.mark.parametrize(
    "how",
    [
        "stale",
        "past expire",
        "invalidated",
    ],
)
def test_a_stored_page_that_is_not_to_be_stored_from_now_on_is_no_longer_served(
    make_site: MakeSite, origin: Origin, clock: Clock, handler: Handler, how: str
) -> None:
    site = make_site({"/a": Rule(revalidate=60, expire=120)})
    site.visit("/a")
    origin.on("/a", handler)
    if how == "invalidated":
        site.isr.invalidate(paths=["/a"])
    else:
        clock.advance(60 if how == "stale" else 120)
    first = site.visit_and_settle("/a")
    assert how == "stale" or first.body == b"page"
    before = origin.calls["/a"]
    assert [site.visit("/a").body for _ in range(2)] == [b"page", b"page"]
    assert origin.calls["/a"] == before + 2


# Headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "tags"),
    [
        ([("Cache-Tag", "posts, post:1")], ["posts", "post:1"]),
        ([("Cache-Tag", "posts,post:1")], ["posts", "post:1"]),
        ([("cache-tag", "  posts  ")], ["posts"]),
        ([("Cache-Tag", "posts"), ("Cache-Tag", "post:1")], ["posts", "post:1"]),
        ([("Cache-Tag", "posts,,")], ["posts"]),
    ],
)
def test_tags_come_from_the_cache_tag_header(
    make_site: MakeSite, origin: Origin, headers: list[tuple[str, str]], tags: list[str]
) -> None:
    site = make_site(revalidate=60)
    origin.on("/a", answer(b"x", *headers))
    for tag in tags:
        site.visit("/a")
        assert site.visit("/a").label == "HIT"
        site.isr.invalidate(tags=[tag])
        assert site.visit("/a").label == "EXPIRED", tag


@pytest.mark.parametrize(
    ("headers", "expire"),
    [
        ([("Cache-Control", "s-maxage=30")], None),
        ([("Cache-Control", "s-maxage=30, stale-while-revalidate=70")], 100),
        ([("Cache-Control", "public, max-age=5, s-maxage=30")], None),
        ([("CDN-Cache-Control", "max-age=30")], None),
        ([("CDN-Cache-Control", "s-maxage=30")], None),
        ([("CDN-Cache-Control", "max-age=30, stale-while-revalidate=70")], 100),
        # RFC 9213, 2.2: a targeted header counts in place of Cache-Control.
        ([("CDN-Cache-Control", "max-age=30"), ("Cache-Control", "max-age=5")], None),
        ([("CDN-Cache-Control", "max-age=30"), ("Cache-Control", "s-maxage=5")], None),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_the_lifetime_comes_from_headers(
    make_site: MakeSite,
    origin: Origin,
    clock: Clock,
    headers: list[tuple[str, str]],
    expire: float | None,
    listed: bool,
) -> None:
    site = make_site(revalidate=100) if listed else make_site()
    origin.on("/a", answer(b"x", *headers))
    for _ in range(2):  # of a page without a rule, the first visit shows that it may be stored
        site.visit("/a")
    seen = site.visit("/a")
    assert seen.label == "HIT"
    assert site.lifetime("/a") == (30, expire)
    clock.advance(30)
    assert site.visit_and_settle("/a").label == "STALE"
    clock.advance(1000)
    assert site.visit_and_settle("/a").label == ("STALE" if expire is None else "EXPIRED")


@pytest.mark.parametrize("value", ["no-store", "private", "max-age=0, no-store"])
def test_cdn_cache_control_may_forbid_to_store(make_site: MakeSite, origin: Origin, value: str) -> None:
    site = make_site(revalidate=60)
    origin.on("/a", answer(b"x", ("CDN-Cache-Control", value)))
    assert "HIT" not in [site.visit("/a").label for _ in range(3)]


def test_of_header_call_data_and_rule_the_lowest_wins(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    lifetimes = {"rule": 50, "call": 60, "header": 70, "data": 80}
    for number, lowest in enumerate(lifetimes):
        mine = {**lifetimes, lowest: 10}
        data = cached(revalidate=mine["data"], version=number + 1)(lambda: "data")

        def page(environ: Environ, data: Any = data, life: int = mine["call"]) -> bytes:
            cache_life(life)
            text: str = data()
            return text.encode()

        origin.on("/a", answer(page, ("Cache-Control", f"s-maxage={mine['header']}")))
        site = make_site(revalidate=mine["rule"])
        site.visit("/a")
        assert site.lifetime("/a").revalidate == 10, lowest
        clock.advance(9.9)
        assert site.visit("/a").label == "HIT", lowest
        clock.advance(0.1)
        assert site.visit_and_settle("/a").label == "STALE", lowest


# Data inside of data ------------------------------------------------------------------------------------------------


class Depth:
    """Three cached functions, one inside the other. A test chooses the place of each call."""

    def __init__(self, call: Callable[[Callable[[], str]], str] = lambda function: function()) -> None:
        self.calls: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.call = call

        @cached(revalidate=30, tags=["low"])
        def low() -> str:
            return self.read("low")

        @cached(revalidate=60, tags=["middle"])
        def middle() -> str:
            return f"{self.read('middle')} {self.call(low)}"

        @cached(revalidate=90, tags=["high"])
        def high() -> str:
            return f"{self.read('high')} {self.call(middle)}"

        self.low, self.middle, self.high = low, middle, high

    def read(self, name: str) -> str:
        self.calls[name] += 1
        if name in self.broken:
            raise Boom(name)
        return f"{name}{self.calls[name]}"


def directly(function: Callable[[], str]) -> str:
    return function()


def in_a_thread(function: Callable[[], str]) -> str:
    found: list[str] = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: found.append(context.run(function)))
    thread.start()
    thread.join()
    return found[0]


def in_a_pool(function: Callable[[], str]) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, function).result()


def in_a_generator(function: Callable[[], str]) -> str:
    def parts() -> Iterable[str]:
        yield ""
        yield function()

    return "".join(parts())


WAYS = {
    "directly": directly,
    "in a thread": in_a_thread,
    "in a pool": in_a_pool,
    "in a generator": in_a_generator,
}

every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def stream(show: Callable[[], str]) -> Handler:
    """Return a page whose body is made while the server reads it."""

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [HTML])

        def parts() -> Iterable[bytes]:
            yield b"<"
            yield show().encode()
            yield b">"

        return parts()

    return handler


@every_way
def test_tags_three_deep_reach_the_page(
    make_site: MakeSite, origin: Origin, way: Callable[[Callable[[], str]], str]
) -> None:
    site, data = make_site(revalidate=1000), Depth(way)
    origin.on("/a", stream(lambda: way(data.high)))
    assert site.visit("/a").body == b"<high1 middle1 low1>"
    for tag, body in (
        ("low", b"<high2 middle2 low2>"),
        ("middle", b"<high3 middle3 low2>"),
        ("high", b"<high4 middle3 low2>"),
    ):
        assert site.visit("/a").label == "HIT"
        site.isr.invalidate(tags=[tag])
        seen = site.visit("/a")
        assert (seen.label, seen.body) == ("EXPIRED", body)


@every_way
def test_the_lowest_lifetime_three_deep_is_that_of_the_page(
    make_site: MakeSite, origin: Origin, clock: Clock, way: Callable[[Callable[[], str]], str]
) -> None:
    site, data = make_site(revalidate=1000), Depth(way)
    origin.on("/a", stream(lambda: way(data.high)))
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 30
    clock.advance(20)
    # A page that uses data which is there already gets the rest of the data's lifetime.
    origin.on("/b", stream(lambda: way(data.high)))
    site.visit("/b")
    assert site.lifetime("/b").revalidate == 10
    clock.advance(10)
    assert [site.visit_and_settle(path).label for path in ("/a", "/b")] == ["STALE", "STALE"]


@every_way
def test_tags_and_lifetimes_flow_up_from_data_that_was_kept_before(
    make_site: MakeSite, origin: Origin, clock: Clock, way: Callable[[Callable[[], str]], str]
) -> None:
    site, data = make_site({"/warm": 0, "/a": 1000}), Depth(way)
    origin.on("/warm", stream(lambda: way(data.high)))
    site.visit("/warm")
    origin.on("/a", stream(lambda: way(data.high)))
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 30
    assert data.calls == {"high": 1, "middle": 1, "low": 1}
    site.isr.invalidate(tags=["low"])
    assert site.visit("/a").body == b"<high2 middle2 low2>"


@every_way
@pytest.mark.parametrize("broken", ["low", "middle", "high"])
def test_a_failure_in_the_middle_keeps_the_last_good_page_and_nothing_half_made(
    make_site: MakeSite, origin: Origin, clock: Clock, way: Callable[[Callable[[], str]], str], broken: str
) -> None:
    if way is in_a_thread:
        way = in_a_pool  # its future raises the error of the function
    site, data = make_site(revalidate=1000), Depth(way)
    origin.on("/a", stream(lambda: way(data.high)))
    site.visit("/a")
    data.broken = {broken}
    site.isr.invalidate(tags=["low", "middle", "high"])
    for _ in range(3):
        seen = site.visit_and_settle("/a")
        assert (seen.label, seen.body) == ("STALE-IF-ERROR", b"<high1 middle1 low1>")
    data.broken = set()
    clock.advance(300)
    site.visit_and_settle("/a")
    seen = site.visit("/a")
    assert seen.label == "HIT"
    assert not {b"low1>", b"middle1", b"<high1"} & {*seen.body.split()}


def test_a_page_that_survives_the_failure_of_its_data_still_has_its_tags(make_site: MakeSite, origin: Origin) -> None:
    site, data = make_site(revalidate=1000), Depth()

    def show() -> str:
        cache_tag("page")
        try:
            return data.high()
        except Boom:
            return "nothing to see"

    origin.on("/a", stream(show))
    data.broken = {"low"}
    assert site.visit("/a").body == b"<nothing to see>"
    data.broken = set()
    site.isr.invalidate(tags=["page"])
    assert site.visit("/a").body != b"<nothing to see>"


@every_way
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_data_that_is_never_kept_makes_its_page_uncacheable_however_deep(
    make_site: MakeSite, origin: Origin, way: Callable[[Callable[[], str]], str], depth: int
) -> None:
    site, calls = make_site(revalidate=1000), Counter[str]()

    @cached(revalidate=0)
    def never() -> str:
        calls["never"] += 1
        return f"never{calls['never']}"

    @cached(revalidate=100)
    def second() -> str:
        return way(never)

    @cached(revalidate=100)
    def third() -> str:
        return way(second)

    show = [never, second, third][depth - 1]
    origin.on("/a", stream(lambda: way(show)))
    bodies = [site.visit("/a").body for _ in range(4)]
    assert len(set(bodies)) == 4
    assert site.visit("/a").label == "BYPASS"


def test_no_store_inside_data_makes_its_page_uncacheable(make_site: MakeSite, origin: Origin) -> None:
    site, calls = make_site(revalidate=1000), Counter[str]()

    @cached(revalidate=100)
    def data() -> str:
        calls["data"] += 1
        no_store()
        return f"data{calls['data']}"

    origin.on("/a", stream(data))
    assert len({site.visit("/a").body for _ in range(4)}) == 4


def test_many_pieces_of_data_in_threads_of_one_page_all_count(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(revalidate=1000)

    @cached(tags=["n:{number}"])
    def data(number: int) -> int:
        if number == 13:
            cache_life(13)
        return number

    def show() -> str:
        with ThreadPoolExecutor(8) as pool:
            work = [pool.submit(contextvars.copy_context().run, data, number) for number in range(20)]
            return ",".join(str(one.result()) for one in work)

    origin.on("/a", stream(show))
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 13
    for number in (0, 7, 19):
        assert site.visit("/a").label == "HIT"
        site.isr.invalidate(tags=[f"n:{number}"])
        assert site.visit("/a").label == "EXPIRED"


# Keys and what they are made of ---------------------------------------------------------------------------------------


def test_functions_of_two_names_never_share_a_key(make_site: MakeSite) -> None:
    site = make_site()

    @cached
    def one(x: int) -> str:
        return f"one {x}"

    @cached
    def two(x: int) -> str:
        return f"two {x}"

    class Three:
        @staticmethod
        @cached
        def one(x: int) -> str:
            return f"three {x}"

    assert (one(1), two(1), Three.one(1)) == ("one 1", "two 1", "three 1")
    assert (one(1), two(1), Three.one(1)) == ("one 1", "two 1", "three 1")
    assert site.isr


def test_tags_of_data_are_templates_over_its_arguments_with_defaults(make_site: MakeSite) -> None:
    site, calls = make_site(), {("a", "en"): 0, ("b", "en"): 0}

    @cached(tags=["user:{user}", "lang:{lang}"])
    def greet(user: str, lang: str = "en") -> int:
        calls[user, lang] += 1
        return calls[user, lang]

    for tag, again in (("user:a", ["a"]), ("lang:en", ["a", "b"]), ("user:b", ["b"]), ("lang:de", [])):
        greet("a"), greet(user="b")
        before = {**calls}
        site.isr.invalidate(tags=[tag])
        greet("a", "en"), greet("b")
        assert {user for user in "ab" if calls[user, "en"] > before[user, "en"]} == set(again), tag


def test_a_tag_reaches_pages_and_data_alike(make_site: MakeSite, origin: Origin) -> None:
    site, calls = make_site({"/a": Rule(revalidate=60, tags=["posts"])}), {"data": 0}

    @cached(tags=["posts"])
    def data() -> int:
        calls["data"] += 1
        return calls["data"]

    assert data() == 1
    site.visit("/a")
    site.isr.invalidate(tags=["posts"])
    assert data() == 2
    assert site.visit("/a").label == "EXPIRED"


def test_everything_means_data_too(make_site: MakeSite) -> None:
    site, calls = make_site(), {"data": 0}

    @cached
    def data() -> int:
        calls["data"] += 1
        return calls["data"]

    assert (data(), data()) == (1, 1)
    site.isr.invalidate(everything=True)
    assert (data(), data()) == (2, 2)


@pytest.mark.parametrize("mode", ["expire", "purge"])
def test_data_that_was_invalidated_hard_is_not_handed_out(make_site: MakeSite, mode: str) -> None:
    site, calls = make_site(), {"data": 0}

    @cached(tags=["t"])
    def data() -> int:
        calls["data"] += 1
        return calls["data"]

    assert data() == 1
    site.isr.invalidate(tags=["t"], mode=mode)
    assert data() == 2


def test_data_that_was_invalidated_softly_is_handed_out_once_more(make_site: MakeSite) -> None:
    site, calls = make_site(), {"data": 0}

    @cached(tags=["t"])
    def data() -> int:
        calls["data"] += 1
        return calls["data"]

    assert data() == 1
    site.isr.invalidate(tags=["t"], mode="stale")
    assert data() == 1
    site.settle()
    assert data() == 2


def test_data_that_cannot_be_renewed_after_a_hard_invalidation_is_what_it_was(
    make_site: MakeSite, origin: Origin
) -> None:
    """As for pages: expired data is served only where rendering fails, and never after a purge."""
    site, broken = make_site({"/a": 0}), []

    @cached(tags=["t"])
    def data() -> str:
        if broken:
            raise Boom
        return "data"

    origin.on("/a", answer(lambda environ: data().encode()))
    assert site.visit("/a").body == b"data"
    broken.append(True)
    site.isr.invalidate(tags=["t"], mode="expire")
    assert site.visit("/a").body == b"data"
    site.isr.invalidate(tags=["t"], mode="purge")
    with pytest.raises(Boom):
        site.visit("/a")
