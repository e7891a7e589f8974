"""Rules taken together, callables of users that fail, and the headers of every kind of answer for a CDN."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Boom, Environ, Origin, answer, failing
from tests.behaviour.visitor import ASKED_EACH_TIME, Clock, Seen, Site
from wsgi_isr import Rule, StoreUnavailable
from wsgi_isr.stores.base import Many
from wsgi_isr.stores.memory import MemoryStore

# Rules ------------------------------------------------------------------------------------------------------


def test_everything_that_a_rule_declares_makes_a_page_of_its_own_and_nothing_else_does(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site({"/a": Rule(revalidate=60, query=["q"], vary=["X-Kind"], cookies=["theme"], other_query="ignore")})
    seen = {}
    for query, kind, theme, host, scheme in itertools.product(
        ("", "?q=1", "?q=2"), ("", "b"), ("", "dark"), ("example.org", "example.net"), ("http", "https")
    ):
        request = {
            "headers": {"X-Kind": kind} if kind else {},
            "cookie": f"theme={theme}" if theme else "",
            "host": host,
            "scheme": scheme,
        }
        path = "/a" + query
        assert site.visit(path, **request).label == "MISS"
        # The page is the same with another query, header and cookie that no rule declares.
        request["headers"] = {**request["headers"], "X-Other": "1", "Accept-Language": "de"}
        request["cookie"] = "; ".join(filter(None, [request["cookie"], "other=1"]))
        again = site.visit(path + ("&" if query else "?") + "x=1", **request)
        assert again.label == "HIT"
        seen[again.body] = (path, kind, theme, host, scheme)
    assert len(seen) == origin.calls["/a"] == 48


@pytest.mark.parametrize(
    ("path", "lifetime"),
    [
        ("/blog/7", 20),
        ("/blog/x", 30),
        ("/blog/new", 10),
        ("/blog/7/x", 40),
        ("/blog/", 40),
        ("/blog", 50),
        ("/number/-7", 50),
        ("/number/7", 60),
        ("/number/x", 50),
        ("/year/2024", 70),
        ("/year/24", 50),
    ],
)
def test_a_path_has_the_rule_of_the_most_specific_pattern_that_it_is_a_value_of(
    make_site: MakeSite, path: str, lifetime: int
) -> None:
    site = make_site(
        {
            "/blog/<path:rest>": 40,
            "/blog/<slug>": 30,
            "/blog/<int:id>": 20,
            "/blog/new": 10,
            "/number/<int:id>": 60,
            "/year/<string(length=4):year>": 70,
            "/blog/": 40,
        },
        revalidate=50,
    )
    site.visit(path)
    assert site.lifetime(path).revalidate == lifetime


@pytest.mark.parametrize("slug", ["a,b", "caf\u00e9", "{slug}", "a b", "%"])
def test_a_parameter_in_a_tag_is_filled_with_its_value(make_site: MakeSite, slug: str) -> None:
    site = make_site({"/blog/<slug>": Rule(revalidate=60, tags=["post:{slug}"])})
    path = "/blog/" + "".join(f"%{byte:02X}" for byte in slug.encode())
    site.visit(path)
    site.isr.invalidate(tags=[f"post:{slug}"])
    assert site.visit(path).label == "EXPIRED"


def test_a_rule_of_its_own_counts_before_the_options_of_all(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(
        {"/a": Rule(other_query="key", negative_ttl=5, statuses=[200, 302, 410]), "/b": Rule()},
        revalidate=60,
        other_query="ignore",
        negative_ttl=20,
    )
    assert [site.visit(path).label for path in ("/a?x=1", "/a?x=2", "/b?x=1", "/b?x=2")] == [
        "MISS",
        "MISS",
        "MISS",
        "HIT",
    ]
    for path in ("/a", "/b"):
        origin.on(path, answer(b"gone", status="410 Gone"))
        site.isr.invalidate(paths=[path])
        site.visit(path)
    clock.advance(6)
    assert [site.visit(path).label == "HIT" for path in ("/a", "/b")] == [False, True]
    origin.on("/a", answer(b"", ("Location", "/b"), status="302 Found"))
    site.isr.invalidate(paths=["/a"])
    site.visit("/a")
    seen = site.visit("/a")
    assert (seen.label, seen.code, seen.headers["Location"]) == ("HIT", 302, "/b")


@pytest.mark.parametrize("status", ["301 Moved Permanently", "308 Permanent Redirect"])
def test_a_permanent_redirect_is_stored_with_its_lifetime_and_its_tags(
    make_site: MakeSite, origin: Origin, clock: Clock, status: str
) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])})
    origin.on("/a", answer(b"", ("Location", "/b"), status=status))
    site.visit("/a")
    seen = site.visit("/a")
    assert (seen.label, seen.status, seen.headers["Location"]) == ("HIT", status, "/b")
    assert site.lifetime("/a").revalidate == 60
    clock.advance(59)
    assert site.visit("/a").label == "HIT"
    site.isr.invalidate(tags=["t"])
    origin.mend("/a")
    assert site.visit("/a").code == 200


@pytest.mark.parametrize("status", ["302 Found", "303 See Other", "307 Temporary Redirect"])
def test_another_redirect_is_passed_through_to_each_visitor(make_site: MakeSite, origin: Origin, status: str) -> None:
    site = make_site(revalidate=60)
    origin.on("/a", answer(b"", ("Location", "/b"), status=status))
    for _ in range(3):
        before = origin.calls["/a"]
        seen = site.visit("/a")
        assert (seen.status, seen.headers["Location"], origin.calls["/a"] > before) == (status, "/b", True)


def fails(*_: Any) -> Any:
    raise Boom("a mistake of the user's")


@pytest.mark.parametrize(
    "rule",
    [
        {"bypass": fails},
        {"vary": {"Accept-Language": fails}},
        {"tags": fails},
        {"tags": lambda _: "no list"},
        {"tags": lambda _: [5]},
        {"tags": lambda _: None},
        {"vary": {"Accept-Language": lambda _: 5}},
        {"fallback": fails},
        {"fallback": lambda _: 5},
    ],
    ids=["bypass", "vary", "tags", "tags: text", "tags: number", "tags: None", "vary: number", "fallback", "a number"],
)
def test_a_callable_of_a_rule_that_fails_costs_nobody_the_page(
    make_site: MakeSite, origin: Origin, rule: dict[str, Any]
) -> None:
    site = make_site({"/a": Rule(revalidate=60, **rule)})
    for _ in range(3):
        seen = site.visit_and_settle("/a", headers={"Accept-Language": "de", "User-Agent": "Mozilla/5.0 Firefox/128"})
        assert seen.code == 200
        assert seen.text.startswith("/a v")


# Headers of every kind of answer -------------------------------------------------------------------------------


class Unplugged(MemoryStore):
    """A store that cannot be reached while ``away`` is set."""

    away = False

    def _ask(self) -> None:
        if self.away:
            raise StoreUnavailable("node", "unplugged")

    def get(self, key: str) -> bytes | None:
        self._ask()
        return super().get(key)

    def get_many(self, keys: Any) -> Many:
        if self.away:
            return Many({}, {key: StoreUnavailable("node", "unplugged") for key in keys})
        return super().get_many(keys)

    def gets(self, key: str) -> Any:
        self._ask()
        return super().gets(key)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._ask()
        super().set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._ask()
        return super().add(key, value, ttl)

    def cas(self, key: str, value: bytes, token: Any, ttl: float | None = None) -> bool:
        self._ask()
        return super().cas(key, value, token, ttl)

    def delete(self, key: str) -> bool:
        self._ask()
        return super().delete(key)


def seconds_for_a_cdn(seen: Seen) -> int:
    """Return for how many more seconds a cache in front may serve the answer without asking."""
    return int(seen.directives.get("s-maxage", seen.directives["max-age"])) - seen.age


def test_a_degraded_page_is_labelled_and_no_ones_to_keep(make_site: MakeSite, clock: Clock) -> None:
    store = Unplugged(clock=clock)
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])}, store=store, coherence=0)
    site.visit("/a")
    clock.advance(10)
    store.away = True
    seen = site.visit_and_settle("/a")
    assert (seen.label, seen.code, seen.body, seen.age) == ("DEGRADED", 200, b"/a v1", 10)
    assert seen.directives == ASKED_EACH_TIME
    assert seen.cache_status.startswith("wsgi-isr;")


@pytest.mark.parametrize("passed", [61, 500])
def test_a_degraded_page_goes_by_its_age(make_site: MakeSite, origin: Origin, clock: Clock, passed: int) -> None:
    store = Unplugged(clock=clock)
    site = make_site({"/a": Rule(revalidate=60, expire=1000, tags=["t"])}, store=store, coherence=0)
    site.visit("/a")
    store.away = True
    clock.advance(passed)
    seen = site.visit_and_settle("/a")
    assert seen.code == 200
    assert seconds_for_a_cdn(seen) <= 2


def test_a_retained_page_tells_the_truth_about_itself(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])})
    etag = site.visit("/a").headers["ETag"]
    clock.advance(5)
    site.isr.invalidate(tags=["t"])
    origin.on("/a", failing(Boom()))
    for again in (5, 10):
        seen = site.visit("/a")
        assert (seen.label, seen.age, seen.headers["ETag"]) == ("STALE-IF-ERROR", again, etag)
        assert seen.directives == ASKED_EACH_TIME
        conditional = site.visit("/a", headers={"If-None-Match": etag})
        assert (conditional.code, conditional.label) == (304, "STALE-IF-ERROR")
        assert conditional.directives == ASKED_EACH_TIME
        clock.advance(5)


@pytest.mark.parametrize("mode", ["stale", "expire", "purge"])
def test_no_304_says_that_a_page_is_current_that_is_not(
    make_site: MakeSite, origin: Origin, clock: Clock, mode: str
) -> None:
    site = make_site({"/a": Rule(revalidate=3600, tags=["t"])})
    etag = site.visit("/a").headers["ETag"]
    site.isr.invalidate(tags=["t"], mode=mode)
    seen = site.visit_and_settle("/a", headers={"If-None-Match": etag})
    if mode == "stale":
        assert (seen.code, seen.label) == (304, "STALE")
        assert seen.directives == ASKED_EACH_TIME
    else:
        assert (seen.code, seen.body) == (200, b"/a v2")


def test_a_cdn_in_front_never_shows_a_page_older_than_the_cache_behind_it_would(
    make_site: MakeSite, clock: Clock
) -> None:
    """At any time of a request by a CDN, the answer stays fresh there for no longer than the page itself."""
    site = make_site(revalidate=60, expire=600)
    site.visit("/a")
    rendered = clock.now
    for step in (0, 0.5, 10, 29, 19.9, 0.6, 1, 100):
        clock.advance(step)
        seen = site.visit("/a")  # the visitor does not wait for the renewal, which may come later
        if seen.label == "HIT" and seen.body == b"/a v1":
            assert clock.now + seconds_for_a_cdn(seen) <= rendered + 60 + 1
        elif seen.label == "STALE":
            assert seen.directives == ASKED_EACH_TIME
        site.settle()


def test_one_page_after_the_other_has_one_of_each_header(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site({"/a": Rule(revalidate=60, expire=120, tags=["t"])})
    own = [("Age", "5"), ("ETag", '"mine"'), ("Cache-Control", "public"), ("X-ISR", "own"), ("Expires", "0")]

    def states() -> Any:
        yield site.visit("/a")
        yield site.visit("/a")
        clock.advance(60)
        yield site.visit_and_settle("/a")
        clock.advance(120)
        yield site.visit("/a")
        site.isr.invalidate(tags=["t"])
        origin.on("/a", failing(Boom()))
        yield site.visit("/a")

    origin.on("/a", answer(b"x", *own))
    seen = list(states())
    assert [one.label for one in seen] == ["MISS", "HIT", "STALE", "EXPIRED", "STALE-IF-ERROR"]
    for one in seen:
        for name in ("Age", "ETag", "Cache-Control", "X-ISR", "Content-Type", "Content-Length"):
            assert len(one.headers.getlist(name)) == 1, (one.label, name)


# Failures and back-off ----------------------------------------------------------------------------------------


def test_the_back_off_grows_to_half_a_minute_and_no_further(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])})
    site.visit("/a")
    site.isr.invalidate(tags=["t"])
    origin.on("/a", failing(Boom()))
    attempts = []
    for _ in range(6000):
        before = origin.calls["/a"]
        assert site.visit_and_settle("/a").label == "STALE-IF-ERROR"
        if origin.calls["/a"] > before:
            attempts.append(clock.now)
        clock.advance(0.1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    assert 0.5 <= gaps[0] <= 2
    assert 15 <= max(gaps) <= 45
    assert all(later >= earlier * 0.9 for earlier, later in itertools.pairwise(gaps[:4])), gaps


def test_an_invalidation_does_not_shorten_the_back_off_of_a_page_that_fails(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site({"/a": Rule(revalidate=60, tags=["t"])})
    site.visit("/a")
    origin.on("/a", failing(Boom()))
    for _ in range(20):
        site.isr.invalidate(tags=["t"])
        seen = site.visit_and_settle("/a")
        assert (seen.code, seen.label) == (200, "STALE-IF-ERROR")
    assert origin.calls["/a"] == 2


def test_an_error_in_one_variant_keeps_the_last_good_page_of_that_variant(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site: Site = make_site({"/a": Rule(revalidate=60, expire=60, query=["q"])})

    def page(environ: Environ) -> bytes:
        if environ["QUERY_STRING"] == "q=1" and origin.calls["/a"] > 2:
            raise Boom
        return f"{environ['QUERY_STRING']} v{origin.calls['/a']}".encode()

    origin.on("/a", answer(page))
    for path in ("/a?q=1", "/a?q=2"):
        site.visit(path)
    clock.advance(61)
    assert (site.visit("/a?q=1").label, site.visit("/a?q=1").body) == ("STALE-IF-ERROR", b"q=1 v1")
    assert site.visit("/a?q=2").label == "EXPIRED"
