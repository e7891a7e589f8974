"""Invalidation: the pages of each selector, the effect of each mode, and errors for the caller."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.nodes import RULES, TAGS, spread
from tests.behaviour.origin import Boom, Environ, Origin, answer, failing
from tests.behaviour.visitor import ASKED_EACH_TIME, Clock, Site
from wsgi_isr import ConfigError, InvalidationError, Receipt, Rule, invalidate, replay
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.memory import MemoryStore

MODES = ["stale", "expire", "purge"]
BLOG = {
    "/": 3600,
    "/blog": 3600,
    "/blog/<slug>": Rule(revalidate=3600, tags=["posts", "post:{slug}"]),
    "/blog/<slug>/comments": 3600,
    "/blogs": 3600,
    "/docs/<path:rest>": Rule(revalidate=3600, tags=lambda params: [f"doc:{params['rest'].upper()}"]),
    "/number/<int:id>": Rule(revalidate=3600, tags=["n:{id}"]),
}
PAGES = ["/", "/blog", "/blog/a", "/blog/b", "/blog/a/comments", "/blogs", "/docs/a/b", "/number/7"]


@pytest.fixture
def blog(make_site: MakeSite) -> Site:
    """Return a site whose pages are all cached."""
    site: Site = make_site(BLOG)
    for path in PAGES:
        site.visit(path)
    return site


def gone(site: Site, pages: Sequence[str] = PAGES) -> list[str]:
    """Visit all pages, and return those that were not served as fresh."""
    return [path for path in pages if site.visit_and_settle(path).label != "HIT"]


# Selectors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "pages"),
    [
        ({"tags": ["posts"]}, ["/blog/a", "/blog/b"]),
        ({"tags": ["post:a"]}, ["/blog/a"]),
        ({"tags": ["post:a", "post:b", "nobody has it"]}, ["/blog/a", "/blog/b"]),
        ({"tags": ["doc:A/B"]}, ["/docs/a/b"]),
        ({"tags": ["n:7"]}, ["/number/7"]),
        ({"tags": ["post"]}, []),
        ({"tags": ["POSTS"]}, []),
        ({"paths": ["/"]}, ["/"]),
        ({"paths": ["/blog"]}, ["/blog"]),
        ({"paths": ["/blog/a"]}, ["/blog/a"]),
        ({"paths": ["/blog/a/"]}, []),
        ({"paths": ["/Blog/a"]}, []),
        ({"paths": ["/blog/b", "/blogs"]}, ["/blog/b", "/blogs"]),
        ({"routes": ["/blog/<slug>"]}, ["/blog/a", "/blog/b"]),
        ({"routes": ["/blog"]}, ["/blog"]),
        ({"routes": ["/docs/<path:rest>", "/number/<int:id>"]}, ["/docs/a/b", "/number/7"]),
        ({"prefixes": ["/blog"]}, ["/blog", "/blog/a", "/blog/b", "/blog/a/comments"]),
        ({"prefixes": ["/blog/a"]}, ["/blog/a", "/blog/a/comments"]),
        ({"prefixes": ["/docs/a"]}, ["/docs/a/b"]),
        ({"prefixes": ["/"]}, PAGES),
        ({"everything": True}, PAGES),
        ({"tags": ["post:a"], "paths": ["/"], "prefixes": ["/number"]}, ["/", "/blog/a", "/number/7"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", MODES)
def test_an_invalidation_reaches_exactly_what_it_names(
    blog: Site, named: dict[str, Any], pages: list[str], mode: str
) -> None:
    blog.isr.invalidate(**named, mode=mode)
    assert gone(blog) == pages
    assert gone(blog) == []


def test_a_rule_for_everything_can_be_invalidated_by_path_prefix_and_everything(make_site: MakeSite) -> None:
    site = make_site(revalidate=3600)
    pages = ["/a", "/a/b", "/c"]
    for path in pages:
        site.visit(path)
    for named, reached in (
        ({"paths": ["/a"]}, ["/a"]),
        ({"prefixes": ["/a"]}, ["/a", "/a/b"]),
        ({"everything": True}, pages),
    ):
        site.isr.invalidate(**named)
        assert gone(site, pages) == reached


@pytest.mark.parametrize("named", ["/caf\u00e9", "/caf%C3%A9", "/caf%c3%a9"])
def test_a_path_is_named_percent_encoded_or_not(make_site: MakeSite, named: str) -> None:
    site = make_site(revalidate=3600)
    site.visit("/caf%C3%A9")
    site.isr.invalidate(paths=[named])
    assert site.visit("/caf%C3%A9").label == "EXPIRED"


def test_a_path_with_a_space_is_named_either_way(make_site: MakeSite) -> None:
    site = make_site(revalidate=3600)
    for named in ("/a b", "/a%20b"):
        site.visit("/a%20b")
        site.isr.invalidate(paths=[named])
        assert site.visit("/a%20b").label == "EXPIRED"


def test_a_trailing_slash_matters(make_site: MakeSite) -> None:
    site = make_site(revalidate=3600)
    site.visit("/a")
    site.visit("/a/")
    site.isr.invalidate(paths=["/a/"])
    assert gone(site, ["/a", "/a/"]) == ["/a/"]


def test_a_path_is_the_public_one_with_the_script_name_in_front(make_site: MakeSite) -> None:
    site = make_site(revalidate=3600)
    site.visit("/a", script_name="/shop")
    site.isr.invalidate(paths=["/a"])
    assert site.visit("/a", script_name="/shop").label == "HIT"
    site.isr.invalidate(paths=["/shop/a"])
    assert site.visit("/a", script_name="/shop").label == "EXPIRED"


def test_a_path_names_its_page_in_all_variants(make_site: MakeSite) -> None:
    site = make_site({"/a": Rule(revalidate=3600, query=["q"], vary=["X-Kind"], cookies=["theme"])})
    variants: list[tuple[str, dict[str, Any]]] = [
        ("/a", {}),
        ("/a?q=1", {}),
        ("/a?q=2", {}),
        ("/a", {"headers": {"X-Kind": "b"}}),
        ("/a", {"cookie": "theme=dark"}),
        ("/a", {"host": "other.example"}),
        ("/a", {"scheme": "https"}),
    ]
    for path, request in variants:
        site.visit(path, **request)
    assert [site.visit(path, **request).label for path, request in variants] == ["HIT"] * len(variants)
    site.isr.invalidate(paths=["/a"])
    assert [site.visit(path, **request).label for path, request in variants] == ["EXPIRED"] * len(variants)


@pytest.mark.parametrize("mode", MODES)
def test_what_was_not_cached_yet_can_be_invalidated_and_is_cached_afterwards(make_site: MakeSite, mode: str) -> None:
    site = make_site(BLOG)
    receipt = site.isr.invalidate(tags=["posts"], paths=["/blog/a"], mode=mode)
    assert isinstance(receipt, Receipt)
    assert [site.visit("/blog/a").label for _ in range(2)] == ["MISS", "HIT"]


@pytest.mark.parametrize("named", [{}, {"tags": []}, {"paths": [], "routes": [], "prefixes": []}], ids=str)
def test_an_invalidation_of_nothing_is_an_error(blog: Site, named: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        blog.isr.invalidate(**named)
    assert gone(blog) == []


@pytest.mark.parametrize("mode", ["", "soft", "EXPIRE", None, 1])
def test_an_unknown_mode_is_an_error_that_names_it_and_invalidates_nothing(blog: Site, mode: Any) -> None:
    with pytest.raises(ConfigError, match="mode"):
        blog.isr.invalidate(everything=True, mode=mode)
    assert gone(blog) == []


@pytest.mark.parametrize("option", ["tags", "paths", "routes", "prefixes"])
def test_one_text_in_place_of_a_list_does_not_name_its_letters(blog: Site, option: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=option):
        blog.isr.invalidate(**{option: "/blog"})
    assert gone(blog) == []


# Modes --------------------------------------------------------------------------------------------------


def test_stale_serves_the_old_page_once_more_while_it_is_renewed(blog: Site, origin: Origin) -> None:
    blog.isr.invalidate(tags=["post:a"], mode="stale")
    gate = origin.hold("/blog/a")
    for _ in range(3):
        seen = blog.visit("/blog/a")
        assert (seen.label, seen.body) == ("STALE", b"/blog/a v1")
    gate.open()
    blog.settle()
    seen = blog.visit("/blog/a")
    assert (seen.label, seen.body) == ("HIT", b"/blog/a v2")


def test_expire_is_the_default_and_gives_nobody_the_old_page(blog: Site, origin: Origin) -> None:
    blog.isr.invalidate(tags=["post:a"])
    gate = origin.hold("/blog/a")
    visits = [blog.start_visit("/blog/a") for _ in range(3)]
    gate.wait_until_entered()
    assert not any(visit.over for visit in visits)
    gate.open()
    assert {visit.result().body for visit in visits} == {b"/blog/a v2"}
    assert origin.calls["/blog/a"] == 2


@pytest.mark.parametrize("how", [failing(Boom()), answer(b"sorry", status="502 Bad Gateway")], ids=["raises", "502"])
def test_expire_gives_the_old_page_only_where_rendering_fails(blog: Site, origin: Origin, how: Any) -> None:
    origin.on("/blog/a", how)
    blog.isr.invalidate(tags=["post:a"], mode="expire")
    seen = blog.visit("/blog/a")
    assert (seen.label, seen.body) == ("STALE-IF-ERROR", b"/blog/a v1")
    assert seen.directives == ASKED_EACH_TIME


def test_purge_never_gives_the_old_page_even_where_rendering_fails(blog: Site, origin: Origin, clock: Clock) -> None:
    origin.on("/blog/a", answer(b"sorry", status="502 Bad Gateway"))
    blog.isr.invalidate(tags=["post:a"], mode="purge")
    for _ in range(4):
        seen = blog.visit_and_settle("/blog/a")
        assert (seen.code, seen.body) == (502, b"sorry")
        clock.advance(20)
    origin.on("/blog/a", failing(Boom()))
    with pytest.raises(Boom):
        blog.visit("/blog/a")
    origin.mend("/blog/a")
    clock.advance(60)
    assert blog.visit("/blog/a").code == 200
    assert blog.visit("/blog/a").label == "HIT"


def test_purge_reaches_a_page_of_an_earlier_purge_that_was_rendered_anew(blog: Site) -> None:
    for version in range(2, 5):
        blog.isr.invalidate(tags=["post:a"], mode="purge")
        assert blog.visit("/blog/a").text == f"/blog/a v{version}"
        assert blog.visit("/blog/a").label == "HIT"


@pytest.mark.parametrize("later", MODES)
@pytest.mark.parametrize("earlier", MODES)
def test_of_two_invalidations_the_harder_one_counts_in_either_order(
    blog: Site, origin: Origin, earlier: str, later: str
) -> None:
    blog.isr.invalidate(tags=["posts"], mode=earlier)
    blog.isr.invalidate(paths=["/blog/a"], mode=later)
    hardest = MODES[max(MODES.index(earlier), MODES.index(later))]
    origin.on("/blog/a", answer(b"sorry", status="502 Bad Gateway"))
    seen = blog.visit_and_settle("/blog/a")
    expected = {"stale": (200, "STALE"), "expire": (200, "STALE-IF-ERROR"), "purge": (502, seen.label)}
    assert (seen.code, seen.label) == expected[hardest]


@pytest.mark.parametrize("mode", MODES)
def test_one_invalidation_causes_one_render(blog: Site, origin: Origin, clock: Clock, mode: str) -> None:
    blog.isr.invalidate(tags=["posts", "post:a"], paths=["/blog/a"], prefixes=["/"], everything=True, mode=mode)
    for _ in range(20):
        blog.visit_and_settle("/blog/a")
        clock.advance(10)
    assert origin.calls["/blog/a"] == 2


# Where it works -----------------------------------------------------------------------------------------


def test_in_the_app_it_reaches_the_cache_around_it(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=3600)

    def publish(environ: Environ) -> bytes:
        return repr(invalidate(paths=["/a"]).mode).encode()

    origin.on("/publish", answer(publish))
    site.visit("/a")
    assert site.visit("/publish", method="POST").body == b"'expire'"
    assert site.visit("/a").body == b"/a v2"


def test_outside_of_a_request_it_reaches_every_app_of_the_process(make_site: MakeSite) -> None:
    one, two = make_site(revalidate=3600), make_site(revalidate=3600)
    one.visit("/a")
    two.visit("/a")
    invalidate(paths=["/a"])
    assert (one.visit("/a").label, two.visit("/a").label) == ("EXPIRED", "EXPIRED")


def test_with_a_store_it_reaches_whoever_uses_that_store(make_site: MakeSite, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    site, apart = make_site(revalidate=3600, store=store, coherence=0), make_site(revalidate=3600)
    site.visit("/a")
    apart.visit("/a")
    invalidate(paths=["/a"], store=store)
    assert (site.visit("/a").label, apart.visit("/a").label) == ("EXPIRED", "HIT")


def test_a_namespace_keeps_the_invalidations_of_two_sites_in_one_store_apart(make_site: MakeSite, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    sites = [make_site(revalidate=3600, store=store, coherence=0, namespace=name) for name in ("one", "two")]
    for site in sites:
        site.visit("/a")
    invalidate(paths=["/a"], store=store, namespace="two")
    assert [site.visit("/a").label for site in sites] == ["HIT", "EXPIRED"]


JOB = """
from wsgi_isr import invalidate
receipt = invalidate(tags=["t"], mode="expire")
print(type(receipt).__name__, receipt.mode)
"""


def test_a_cron_job_needs_nothing_but_the_store_in_its_environment(make_site: MakeSite, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/pages.db"
    site = make_site({"/a": Rule(revalidate=False, tags=["t"])}, store=url, coherence=0)
    site.visit("/a")
    environ = {**os.environ, "WSGI_ISR_STORE": url}
    done = subprocess.run([sys.executable, "-c", JOB], env=environ, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode, done.stderr) == ("Receipt expire\n", 0, "")
    assert site.visit("/a").body == b"/a v2"


def test_without_an_app_and_without_a_store_it_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="store"):
        invalidate(tags=["t"])


# A write at the page's own URL ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("status", ["200 OK", "201 Created", "204 No Content", "303 See Other"])
def test_a_successful_write_invalidates_its_own_url(blog: Site, origin: Origin, method: str, status: str) -> None:
    origin.on("/blog/a", answer(b"", status=status, content_type=status[:3] not in ("204", "304")))
    blog.visit("/blog/a", method=method)
    origin.mend("/blog/a")
    assert gone(blog) == ["/blog/a"]


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden", "409 Conflict", "500 Internal Server Error"])
def test_a_write_that_failed_invalidates_nothing(blog: Site, origin: Origin, status: str) -> None:
    origin.on("/blog/a", answer(b"no", status=status))
    blog.visit("/blog/a", method="POST")
    origin.mend("/blog/a")
    assert gone(blog) == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_safe_method_invalidates_nothing(blog: Site, method: str) -> None:
    blog.visit("/blog/a", method=method)
    assert gone(blog) == []


def test_invalidate_on_write_can_be_turned_off(make_site: MakeSite) -> None:
    site = make_site(revalidate=3600, invalidate_on_write=False)
    site.visit("/a")
    site.visit("/a", method="POST")
    assert site.visit("/a").label == "HIT"


# Errors that the caller gets ------------------------------------------------------------------------------


def test_a_receipt_says_what_was_acknowledged(blog: Site) -> None:
    receipt = blog.isr.invalidate(tags=["posts"], paths=["/blog/a"], mode="stale")
    assert set(receipt.tags) == {"tag:posts", "path:/blog/a"}
    assert (receipt.mode, receipt.replayed) == ("stale", ())
    assert receipt.seconds >= 0


def test_the_error_says_what_was_delivered_and_what_was_not(make_site: MakeSite, clock: Clock) -> None:
    site, store = spread(make_site, clock)
    store.unplugged = {"b:1"}
    with pytest.raises(InvalidationError) as raised:
        site.isr.invalidate(tags=TAGS)
    error = raised.value
    named = {f"tag:{tag}" for tag in TAGS}
    assert set(error.delivered) | set(error.undelivered) == named
    assert not set(error.delivered) & set(error.undelivered)
    assert error.delivered
    assert error.undelivered
    assert all("b:1" in str(cause) for cause in error.undelivered.values())
    store.unplugged = set()
    # The delivered part of the invalidation holds.
    for name in error.delivered:
        assert site.visit(f"/{name.removeprefix('tag:')}").label == "EXPIRED", name


def test_an_invalidation_that_raised_can_be_repeated(make_site: MakeSite, clock: Clock) -> None:
    site, store = spread(make_site, clock)
    store.unplugged = {"b:1"}
    for _ in range(2):
        with pytest.raises(InvalidationError):
            site.isr.invalidate(tags=TAGS)
    store.unplugged = set()
    site.isr.invalidate(tags=TAGS)
    for path in RULES:
        assert site.visit(path).text != f"{path} v1"


def test_an_invalidation_that_concerns_no_node_that_is_away_is_acknowledged(make_site: MakeSite, clock: Clock) -> None:
    site, store = spread(make_site, clock)
    store.unplugged = {"b:1"}
    with pytest.raises(InvalidationError) as raised:
        site.isr.invalidate(tags=TAGS)
    reachable = [name.removeprefix("tag:") for name in raised.value.delivered]
    assert site.isr.invalidate(tags=reachable).mode == "expire"


def test_with_everything_unreachable_nothing_is_acknowledged(make_site: MakeSite, clock: Clock) -> None:
    site, store = spread(make_site, clock)
    store.unplugged = {*store.nodes}
    for named in ({"tags": ["t1"]}, {"paths": ["/t1"]}, {"prefixes": ["/"]}, {"routes": ["/t1"]}, {"everything": True}):
        with pytest.raises(InvalidationError) as raised:
            site.isr.invalidate(**named)
        assert (raised.value.delivered, len(raised.value.undelivered)) == ((), 1)


def test_an_invalidation_error_from_a_view_is_an_exception_like_any_other(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site, store = spread(make_site, clock)

    def publish(environ: Environ) -> bytes:
        try:
            invalidate(tags=["t1"])
        except InvalidationError as error:
            return type(error).__name__.encode()
        return b"acknowledged"

    origin.on("/publish", answer(publish))
    store.unplugged = {*store.nodes}
    assert site.visit("/publish", method="POST").body == b"InvalidationError"


def test_a_store_that_a_caller_brings_is_used(clock: Clock) -> None:
    store: Store = MemoryStore(clock=clock)
    assert isinstance(invalidate(everything=True, store=store), Receipt)


# Where there is nothing to invalidate ---------------------------------------------------------------------


@pytest.mark.parametrize("url", ["null://", "memory://", "MEMORY://?max_bytes=100000"])
def test_outside_of_an_app_a_store_that_no_other_process_sees_is_a_no_op_that_succeeds(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSGI_ISR_STORE", url)
    receipt = invalidate(tags=["t"], mode="stale")
    assert (receipt.tags, receipt.mode, receipt.pending, receipt.store) == (("tag:t",), "stale", (), url)
    assert len(receipt.notes) == 1
    assert receipt.notes[0].startswith(url)
    assert replay() == ()
    with pytest.raises(ConfigError, match="mode"):
        invalidate(tags=["t"], mode="soft")


def test_an_app_without_a_cache_can_invalidate(make_site: MakeSite) -> None:
    site = make_site(BLOG, store="null://")
    assert site.isr.invalidate(tags=["t"]).notes == ("null:// keeps nothing: there is nothing to invalidate",)
    assert invalidate(tags=["t"]).notes == ("null:// keeps nothing: there is nothing to invalidate",)


def test_the_error_without_a_store_says_all_that_can_be_written() -> None:
    with pytest.raises(ConfigError) as raised:
        invalidate(tags=["t"])
    for words in ("store=", "WSGI_ISR_STORE", "null://", "import the module"):
        assert words in raised.value.remedy
