"""Prerendering: which pages are rendered before a visitor asks, how often, and what a failure leaves."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import DEADLINE, Boom, Origin, answer, failing
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import ConfigError, Rule
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.prerender.report import Problem, Report
from wsgi_isr.prerender.run import Prerender
from wsgi_isr.prerender.site_client import address_of, site_at
from wsgi_isr.prerender.static_site import NOTES, StaticSite
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.stores.null import NullStore

BLOG = "/blog/<slug>"


def blog(*slugs: str, **rule: Any) -> dict[str, Any]:
    return {BLOG: Rule(revalidate=60, paths=[{"slug": slug} for slug in slugs], **rule)}


def at(site: Site, url: str | None = "http://example.org", **how: Any) -> Prerender:
    return Prerender(site.isr, site_at(site.isr, url)[0], pause=site.clock.pause, **how)


def prerender(
    site: Site, *paths: str, url: str | None = "http://example.org", sitemaps: Iterable[str] = (), **how: Any
) -> Report:
    return at(site, url, **how).run(paths, sitemaps)


def outcome(report: Report) -> tuple[int, int, list[str], list[str]]:
    """Return the paths: rendered, already there; skipped and failed, with the reason."""
    skipped = [f"{problem.path}: {problem.reason}" for problem in report.skipped]
    return report.rendered, report.there, skipped, [f"{problem.path}: {problem.reason}" for problem in report.failed]


def links(*urls: str) -> bytes:
    return "".join(f'<a href="{url}">{url}</a>' for url in urls).encode()


# Pages that are rendered -------------------------------------------------------------------------------


def test_a_prerendered_page_is_a_hit_for_its_first_visitor(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(blog("a", "b"))
    report = prerender(site)
    assert (outcome(report), report.ok) == ((2, 0, [], []), True)
    assert [site.visit(f"/blog/{slug}").label for slug in "ab"] == ["HIT", "HIT"]
    assert origin.calls == {"/blog/a": 1, "/blog/b": 1}


def test_the_second_run_renders_nothing(make_site: MakeSite, origin: Origin) -> None:
    store = MemoryStore()
    for expected in [(3, 0, [], []), (0, 3, [], [])]:
        assert outcome(prerender(make_site(blog("a", "b", "c"), store=store))) == expected
    assert origin.calls.total() == 3


def test_what_is_stale_or_invalidated_is_rendered_and_the_rest_is_left(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site({**blog("a", "b"), "/old": Rule(revalidate=10, paths=["/old"])})
    prerender(site)
    clock.advance(11)
    site.isr.invalidate(paths=["/blog/a"])
    assert outcome(prerender(site)) == (2, 1, [], [])
    assert origin.calls == {"/blog/a": 2, "/blog/b": 1, "/old": 2}


def test_force_renders_what_is_fresh(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(blog("a", "b"))
    prerender(site)
    assert outcome(prerender(site, force=True)) == (2, 0, [], [])
    assert site.visit("/blog/a").text == "/blog/a v2"


def test_paths_may_be_given_one_by_one_and_are_rendered_once_however_they_are_spelled(
    make_site: MakeSite, origin: Origin
) -> None:
    site = make_site({"/": 60, "/search": Rule(revalidate=60, query=["q"])}, revalidate="auto")
    report = prerender(site, "/", "/caf%c3%a9", "/café", "/search?q=1&utm_source=x", "/search?q=1")
    assert outcome(report) == (2, 0, ["/caf%C3%A9: not-asked"], [])
    assert origin.calls["/search"] == origin.calls["/"] == 1


def test_a_page_at_the_mount_point_is_found_by_its_visitors(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(blog("a"))
    report = prerender(site, "/docs/blog/b", url="https://example.org/docs")
    assert (report.site, report.rendered) == ("https://example.org/docs", 2)
    for slug in "ab":
        assert site.visit(f"/blog/{slug}", scheme="https", script_name="/docs").label == "HIT"


def test_a_path_that_only_begins_like_the_mount_point_is_one_below_it(make_site: MakeSite, origin: Origin) -> None:
    prerender(make_site(revalidate=60), "/docsy", "/docs/a", url="https://example.org/docs")
    assert origin.calls == {"/docsy": 1, "/a": 1}


def test_what_the_app_says_where_no_rule_does_counts(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/kept", answer(b"kept", ("Cache-Control", "s-maxage=60")))
    assert outcome(prerender(make_site(), "/kept", "/other")) == (1, 0, ["/other: not-asked"], [])


# Pages that are not rendered ---------------------------------------------------------------------------


def test_pages_that_are_not_for_the_cache_are_skipped_with_the_reason(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/blog/cookie", answer(b"x", ("Set-Cookie", "a=b")))
    origin.on("/blog/private", answer(b"x", ("Cache-Control", "private")))
    site = make_site({**blog("cookie", "private"), "/now": Rule(revalidate=0, paths=["/now"])})
    report = prerender(site, "/blog/a?x=1")
    assert outcome(report)[2:] == (
        ["/blog/a?x=1: query", "/blog/cookie: set-cookie", "/blog/private: private", "/now: revalidate-0"],
        [],
    )
    assert (report.ok, origin.calls["/now"]) == (True, 0)


def test_what_was_not_for_the_cache_is_tried_again_when_that_is_due(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    origin.on("/blog/a", answer(b"x", ("Set-Cookie", "a=b")))
    site = make_site(blog("a"))
    assert outcome(prerender(site)) == (0, 0, ["/blog/a: set-cookie"], [])
    clock.advance(61)
    assert outcome(prerender(site)) == (0, 0, ["/blog/a: set-cookie"], [])
    clock.advance(61)
    origin.mend("/blog/a")
    assert outcome(prerender(site)) == (1, 0, [], [])
    assert (site.visit("/blog/a").label, origin.calls["/blog/a"]) == ("HIT", 3)


def test_failures_are_named_and_the_others_are_rendered(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/blog/boom", failing(Boom("no database")))
    origin.on("/blog/500", answer(b"x", status="500 Oh No"))
    origin.on("/blog/404", answer(b"x", status="404 Not Found"))
    site = make_site(blog("boom", "500", "404", "fine"))
    report = prerender(site)
    assert outcome(report) == (
        1,
        0,
        [],
        ["/blog/404: status-404", "/blog/500: status-500", "/blog/boom: exception: Boom('no database')"],
    )
    assert not report.ok


def test_a_rule_whose_paths_fail_is_a_failure_and_the_other_rules_go_on(make_site: MakeSite) -> None:
    def paths() -> list[str]:
        raise Boom("no table")

    site = make_site({**blog("a"), "/x/<y>": Rule(revalidate=60, paths=paths), "/z": Rule(60, paths=lambda: ["/a"])})
    rendered, _, _, failed = outcome(prerender(site))
    assert rendered == 1
    assert failed[0] == "rule '/x/<y>': paths: Boom('no table')"
    assert failed[1].startswith("rule '/z': paths: rule '/z': paths: '/a' is a path of the rule '*'")


def test_a_page_whose_last_render_failed_a_moment_ago_is_waited_for_at_the_end(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(blog("a", "b"))
    origin.on("/blog/a", failing(Boom()))
    assert prerender(site).failed
    origin.mend("/blog/a")
    began = clock.now
    assert outcome(prerender(site)) == (1, 1, [], [])
    assert 1.0 <= clock.now - began < 2.0


def test_waiting_for_others_has_an_end(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site, other = make_site(blog("a"), store=(store := MemoryStore(clock=clock))), make_site(blog("a"), store=store)
    gate = origin.hold("/blog/a")
    visit = other.start_visit("/blog/a")
    gate.wait_until_entered()
    began = clock.now
    # Time passes only while it waits, so the keep-alive of the other process renews no lease meanwhile.
    lock = Keyspace.lock(site.isr._pages.at("/blog/a", site_at(site.isr, "http://example.org")[0]).task.page)

    def keep(_seconds: float) -> None:
        held = store.gets(lock)
        assert held is not None
        assert store.cas(lock, held.value, held.token, 5)

    clock.on_pause = keep
    rendered, there, _, failed = outcome(prerender(site))
    assert (rendered, there, len(failed)) == (0, 0, 1)
    assert "another process still renders it" in failed[0]
    assert 35 < clock.now - began < 45
    clock.on_pause = None
    gate.open()
    visit.result()


# Several at a time ---------------------------------------------------------------------------------------


def test_as_many_pages_as_there_are_jobs_are_rendered_at_a_time(make_site: MakeSite, origin: Origin) -> None:
    together = threading.Barrier(3)
    most, now, lock = 0, 0, threading.Lock()

    def handler(environ: Any, start_response: Any) -> Iterable[bytes]:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        together.wait(DEADLINE)
        with lock:
            now -= 1
        return answer(b"page")(environ, start_response)

    slugs = [str(number) for number in range(9)]
    for slug in slugs:
        origin.on(f"/blog/{slug}", handler)
    assert prerender(make_site(blog(*slugs)), jobs=3).rendered == 9
    assert most == 3


def test_force_is_as_parallel_as_told(make_site: MakeSite, origin: Origin) -> None:
    together = threading.Barrier(6)  # more pages than the app has background threads
    slugs = [str(number) for number in range(6)]

    def handler(environ: Any, start_response: Any) -> Iterable[bytes]:
        together.wait(DEADLINE)
        return answer(b"page")(environ, start_response)

    for slug in slugs:
        origin.on(f"/blog/{slug}", handler)
    assert prerender(make_site(blog(*slugs)), jobs=6, force=True).rendered == 6


def test_what_somebody_else_renders_is_left_to_them_while_the_rest_is_made(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    site, other = make_site(blog("a", "b", "c"), store=store), make_site(blog("a"), store=store)
    gate = origin.hold("/blog/a")
    visit = other.start_visit("/blog/a")
    gate.wait_until_entered()

    def let_it_end(_seconds: float) -> None:
        assert (origin.calls["/blog/b"], origin.calls["/blog/c"]) == (1, 1)
        gate.open()
        visit.result()

    clock.on_pause = let_it_end
    assert outcome(prerender(site, jobs=1)) == (2, 1, [], [])
    assert origin.calls["/blog/a"] == 1


def test_a_page_that_was_rendered_later_is_never_rolled_back(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    site, other = make_site(blog("a"), store=store), make_site(blog("a"), store=store)
    gate = origin.hold("/blog/a")
    run = _in_background(lambda: prerender(site, jobs=1, force=True))
    gate.wait_until_entered()
    origin.let_go("/blog/a")
    clock.advance(6)
    # Another process renders it meanwhile, with newer data, and is done first.
    assert other.isr.refresh("/blog/a", site=site_at(other.isr, "http://example.org")[0])
    gate.open()
    report = run()
    assert report.rendered + report.there == 1
    assert (other.visit("/blog/a").text, other.visit("/blog/a").label) == ("/blog/a v2", "HIT")


def test_no_page_that_is_older_than_an_invalidation_is_fresh_afterwards(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    data = "old"
    origin.on("/blog/a", answer(lambda environ: data.encode()))

    def reads_first(environ: Any, start_response: Any) -> Iterable[bytes]:
        read = data
        gate.pass_through()
        return answer(read.encode())(environ, start_response)

    gate = origin.hold("/blog/none")
    origin.on("/blog/b", reads_first)
    site = make_site(blog("a", "b", "c", tags=["posts"]))
    run = _in_background(lambda: prerender(site, jobs=1))
    gate.wait_until_entered()
    data = "new"
    site.isr.invalidate(tags=["posts"])
    gate.open()
    assert run().rendered == 3
    for slug in "ab":
        assert site.visit(f"/blog/{slug}").text == "new"
    assert outcome(prerender(site))[:2] == (0, 3)


def test_a_render_that_hangs_is_given_up_and_the_others_are_made(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    site = make_site(blog("a", "b", "c"))
    gate = origin.hold("/blog/a")

    def pass_time(done: int, total: int, path: str) -> None:
        if gate.entered.is_set() and done == 0:
            clock.advance(33)

    report = at(site, jobs=1).run(progress=pass_time)
    assert outcome(report) == (2, 0, [], ["/blog/a: timeout"])
    gate.open()


def test_where_every_render_hangs_it_ends(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    slugs = [str(number) for number in range(9)]
    gates = [origin.hold(f"/blog/{slug}") for slug in slugs]
    site = make_site(blog(*slugs))

    def pass_time(done: int, total: int, path: str) -> None:
        if path and gates[int(path.rpartition("/")[2])].entered.is_set():
            clock.advance(33)

    report = at(site, jobs=1).run(progress=pass_time)
    failed = [problem.reason for problem in report.failed]
    assert sorted(failed) == ["2 renders hang; the rest was not tried", "timeout", "timeout"]
    assert (report.left, report.ok) == (7, False)


# Stopped -----------------------------------------------------------------------------------------------


def test_a_stopped_run_lets_what_runs_end_and_the_next_one_goes_on(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(blog("a", "b", "c", "d"))
    gate = origin.hold("/blog/b")
    running = at(site, jobs=1)
    run = _in_background(running.run)
    gate.wait_until_entered()
    running.stop()
    gate.open()
    report = run()
    assert (report.rendered, report.left, report.interrupted, report.ok) == (2, 2, True, False)
    assert outcome(prerender(site)) == (2, 2, [], [])
    assert origin.calls.total() == 4


def test_progress_tells_how_many_of_how_many_are_done(make_site: MakeSite, origin: Origin) -> None:
    told: list[tuple[int, int]] = []
    at(make_site(blog("a", "b", "c"))).run(progress=lambda done, total, path: told.append((done, total)))
    assert told[-1] == (3, 3)
    assert told == sorted(told)


# Links -------------------------------------------------------------------------------------------------


def test_a_crawl_follows_links_of_the_site_from_page_to_page(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/", answer(links("/a", "b/", "https://other.example/x", "mailto:x@y", "#top", "/static/app.js?v=1")))
    origin.on("/a", answer(b'<link rel="next" href="/a/2"><a href="/quiet" rel="nofollow">'))
    origin.on("/b/", answer(links("c", "../a#x", "http://example.org/d")))
    origin.on("/moved", answer(b"", ("Location", "/target"), status="308 Permanent Redirect"))
    origin.on("/d", answer(links("/moved")))
    site = make_site(revalidate=60)
    report = prerender(site, crawl=True)
    assert outcome(report) == (8, 0, [], [])
    assert set(origin.calls) == {"/", "/a", "/b/", "/a/2", "/b/c", "/d", "/moved", "/target"}


def test_a_crawl_goes_on_through_pages_that_are_there(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/", answer(links("/a")))
    origin.on("/a", answer(links("/b")))
    site = make_site(revalidate=60)
    assert prerender(site, crawl=True).rendered == 3
    site.isr.invalidate(paths=["/b"])
    assert outcome(prerender(site, crawl=True)) == (1, 2, [], [])


def test_links_with_a_query_are_followed_where_the_rule_declares_it(make_site: MakeSite, origin: Origin) -> None:
    origin.on(
        "/", answer(links("/list?page=2", "/list?sort=x", "/a?x=1", "/a?utm_source=here", "/list?page=2&utm_id=1"))
    )
    site = make_site({"/list": Rule(query=["page"])}, revalidate=60)
    assert outcome(prerender(site, crawl=True)) == (3, 0, [], [])
    assert origin.last("/list")["QUERY_STRING"] == "page=2"
    assert (origin.calls["/list"], origin.calls["/a"]) == (1, 1)


def test_a_dead_link_is_a_failure_that_names_the_pages_with_it(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/", answer(links("/a", "/dead", "/gone")))
    origin.on("/a", answer(links("/dead")))
    origin.on("/dead", answer(b"no", status="404 Not Found"))
    site = make_site({"/gone": Rule(paths=[], dynamic_params=False)}, revalidate=60)
    assert prerender(site, crawl=True, jobs=1).failed == (
        Problem("/dead", "status-404", ("/", "/a")),
        Problem("/gone", "not-listed", ("/",)),
    )


def test_a_crawl_has_an_end(make_site: MakeSite, origin: Origin) -> None:
    class Endless(dict[str, Any]):
        def get(self, path: str, default: Any = None) -> Any:
            return answer(links(f"{path}x", f"{path}y"))

    origin.scripts = Endless()
    report = prerender(make_site(revalidate=60), crawl=True, max_pages=20)
    assert (report.rendered, report.ok, report.beyond > 0) == (20, False, True)


def test_a_crawl_stays_below_the_mount_point(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/", answer(links("/docs/a", "/other", "/docs2/x", "b")))
    report = prerender(make_site(revalidate=60), url="http://example.org/docs", crawl=True)
    assert (report.rendered, set(origin.calls)) == (3, {"/", "/a", "/b"})


# Sitemaps ----------------------------------------------------------------------------------------------

XMLNS = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def urlset(*urls: str) -> bytes:
    return f"<urlset {XMLNS}>{''.join(f'<url><loc>{url}</loc></url>' for url in urls)}</urlset>".encode()


def index(*urls: str) -> bytes:
    inside = "".join(f"<sitemap><loc>{url}</loc></sitemap>" for url in urls)
    return f"<sitemapindex {XMLNS}>{inside}</sitemapindex>".encode()


def test_the_pages_of_a_sitemap_of_the_site(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/sitemap.xml", answer(index("http://example.org/1.xml", "http://example.org/2.xml.gz", "/sitemap.xml")))
    origin.on("/1.xml", answer(urlset("http://example.org/blog/a", "https://other.example/blog/x")))
    packed = gzip.compress(urlset("http://example.org/blog/b"))
    origin.on("/2.xml.gz", answer(packed, ("Content-Type", "application/gzip"), content_type=False))
    report = prerender(make_site({BLOG: 60}), sitemaps=["/sitemap.xml"])
    assert outcome(report) == (2, 0, [], [])


def test_the_pages_of_a_sitemap_in_a_file_and_of_those_beside_it(
    make_site: MakeSite, origin: Origin, tmp_path: Path
) -> None:
    (tmp_path / "index.xml").write_bytes(index("http://example.org/maps/1.xml"))
    (tmp_path / "1.xml").write_bytes(urlset("http://example.org/blog/a"))
    (tmp_path / "more.txt").write_text("http://example.org/blog/b\n")
    sitemaps = [str(tmp_path / "index.xml"), str(tmp_path / "more.txt")]
    assert outcome(prerender(make_site({BLOG: 60}), sitemaps=sitemaps)) == (2, 0, [], [])


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (b"<html>", "200 OK", "is not XML"),
        (b"no", "404 Not Found", "status-404"),
        (urlset("https://www.example.net/a"), "200 OK", "give --url https://www.example.net"),
    ],
)
def test_a_sitemap_that_is_of_no_use_is_a_failure_and_the_rest_goes_on(
    make_site: MakeSite, origin: Origin, body: bytes, status: str, problem: str
) -> None:
    origin.on("/sitemap.xml", answer(body, status=status))
    report = prerender(make_site(blog("a")), sitemaps=["/sitemap.xml", "missing.xml"])
    assert report.rendered == 1
    assert [failed.path for failed in report.failed] == ["sitemap /sitemap.xml", "sitemap missing.xml"]
    assert problem in report.failed[0].reason


# A faulty store ------------------------------------------------------------------------------------------


def test_a_page_that_the_store_does_not_take_is_a_failure(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    store = MemoryStore(64 * 1024, clock=clock)
    origin.on("/blog/a", answer(b"x" * 20_000))
    rendered, _, _, failed = outcome(prerender(make_site(blog("a", "b"), store=store)))
    assert (rendered, failed) == (1, ["/blog/a: it is larger than what the store takes"])


# A static site -----------------------------------------------------------------------------------------


def export(site: Site, root: Path, *paths: str, url: str = "http://example.org", **how: Any) -> Report:
    running_at = address_of(site_at(site.isr, url)[0])
    return prerender(site, *paths, url=url, folder=StaticSite(str(root), running_at), **how)


def files_in(root: Path) -> dict[str, str]:
    """Return the files of an export without its own notes."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != NOTES]
    return {str(path.relative_to(root)): path.read_text() for path in files}


def test_an_export_has_the_pages_and_what_they_need(make_site: MakeSite, origin: Origin, tmp_path: Path) -> None:
    css, js, png = (("Content-Type", kind) for kind in ("text/css", "text/javascript", "image/png"))
    origin.on("/", answer(b'<link rel=stylesheet href="/static/a.css?v=1"><a href="/blog/a">a</a>'))
    origin.on("/blog/a", answer(b'<head><script src="../static/a.js"></script><img src="/big.png">'))
    origin.on("/static/a.css", answer(b"@import 'b.css';", css, content_type=False))
    origin.on("/static/b.css", answer(b"b { background: url(/static/b.png) }", css, content_type=False))
    origin.on("/static/b.png", answer(b"b.png", png, content_type=False))
    origin.on("/static/a.js", answer(b"1", js, content_type=False))
    origin.on("/big.png", answer(b"big", png, ("Set-Cookie", "a=b"), content_type=False))
    origin.on("/404.html", answer(b"nothing here", status="404 Not Found"))
    site = make_site({"/": 60, BLOG: 60, "/static/<path:file>": 0})
    report = export(site, tmp_path, crawl=True)
    assert outcome(report) == (2, 0, [], [])
    assert (report.assets, report.written, report.unchanged) == (5, 8, 0)
    assert files_in(tmp_path) == {
        "index.html": '<link rel=stylesheet href="/static/a.css?v=1"><a href="/blog/a">a</a>',
        "blog/a/index.html": '<head><base href="/blog/a"><script src="../static/a.js"></script><img src="/big.png">',
        "static/a.css": "@import 'b.css';",
        "static/b.css": "b { background: url(/static/b.png) }",
        "static/b.png": "b.png",
        "static/a.js": "1",
        "big.png": "big",
        "404.html": "nothing here",
    }
    again = export(site, tmp_path, crawl=True)
    assert (again.there, again.written, again.unchanged) == (2, 0, 8)


def listing(make_site: MakeSite, *pages: str) -> tuple[Site, list[str]]:
    """Return a site whose pages are those of the list, which may change."""
    listed = list(pages)
    return make_site({"/<path:page>": Rule(revalidate=60, paths=lambda: listed)}), listed


def test_an_export_removes_what_the_one_before_has_written_and_is_gone(
    make_site: MakeSite, origin: Origin, tmp_path: Path
) -> None:
    origin.on("/a", answer(b'<img src="/a.png">'))
    origin.on("/a.png", answer(b"png", ("Content-Type", "image/png"), content_type=False))
    site, listed = listing(make_site, "/a", "/deep/down/b", "/c")
    export(site, tmp_path)
    (tmp_path / "CNAME").write_text("somebody else's")
    (tmp_path / "deep" / "mine.txt").write_text("too")
    listed[:] = ["/c"]
    report = export(site, tmp_path)
    assert (report.written, report.unchanged, report.removed) == (0, 2, 3)
    assert set(files_in(tmp_path)) == {"c/index.html", "404.html", "CNAME", "deep/mine.txt"}
    assert not (tmp_path / "deep" / "down").exists()
    assert export(site, tmp_path).removed == 0


def test_an_export_that_fails_in_part_removes_nothing_and_the_next_one_knows(
    make_site: MakeSite, origin: Origin, tmp_path: Path
) -> None:
    site, listed = listing(make_site, "/a", "/b")
    export(site, tmp_path)
    listed[:] = ["/b"]
    origin.on("/b", failing(Boom()))
    site.isr.invalidate(everything=True)
    report = export(site, tmp_path)
    assert (report.ok, report.removed) == (False, 0)
    assert "a/index.html" in files_in(tmp_path)
    origin.on("/b", answer(b"well again"))
    site.isr.invalidate(everything=True)
    assert export(site, tmp_path).removed == 1


def test_an_export_of_one_page_removes_no_other_and_the_next_of_all_knows_which_are_there(
    make_site: MakeSite, origin: Origin, tmp_path: Path
) -> None:
    site, listed = listing(make_site, "/a", "/b")
    export(site, tmp_path)
    listed[:] = ["/b"]
    assert export(site, tmp_path, "/c").removed == 0
    assert export(site, tmp_path).removed == 0  # a new run
    assert set(files_in(tmp_path)) == {"a/index.html", "b/index.html", "c/index.html", "404.html"}
    assert export(site, tmp_path).removed == 2
    assert set(files_in(tmp_path)) == {"b/index.html", "404.html"}


def test_two_sites_in_one_folder_do_not_remove_each_others_pages(
    make_site: MakeSite, origin: Origin, tmp_path: Path
) -> None:
    site, listed = listing(make_site, "/a", "/both")
    export(site, tmp_path, url="http://one.example")
    listed[:] = ["/b", "/both"]
    assert export(site, tmp_path, url="http://two.example").removed == 0
    listed[:] = ["/c"]
    assert export(site, tmp_path, url="http://one.example").removed == 1
    assert set(files_in(tmp_path)) == {"b/index.html", "both/index.html", "c/index.html", "404.html"}


def test_what_cannot_be_exported_is_said(make_site: MakeSite, origin: Origin, tmp_path: Path) -> None:
    origin.on("/", answer(b'<img src="/missing.png"><img src="https://cdn.example/x.png">'))
    origin.on("/missing.png", answer(b"", status="404 Not Found"))
    site = make_site({"/list": Rule(query=["page"])}, revalidate=60)
    report = export(site, tmp_path, "/", "/list?page=2", "/x/../../y", "/a//b")
    assert outcome(report) == (
        1,
        0,
        ["/list?page=2: export: a page with a query has no file"],
        [
            "/a//b: export: '' is not the name of a file",
            "/missing.png: status-404",
            "/x/../../y: export: '..' is not the name of a file",
        ],
    )
    assert set(files_in(tmp_path)) == {"index.html", "404.html"}


def test_redirects_are_exported_as_pages_and_images_behind_them_as_they_are(
    make_site: MakeSite, origin: Origin, tmp_path: Path
) -> None:
    origin.on("/old", answer(b"", ("Location", "http://example.org/new"), status="301 Moved Permanently"))
    origin.on("/new", answer(b'<img src="/i.png">'))
    origin.on("/i.png", answer(b"", ("Location", "/real.png"), status="302 Found"))
    origin.on("/real.png", answer(b"png", ("Content-Type", "image/png"), content_type=False))
    report = export(make_site(revalidate=60), tmp_path, "/old", "/new")
    files = files_in(tmp_path)
    assert (outcome(report)[3], files["i.png"]) == ([], "png")
    assert 'url=/new"' in files["old/index.html"]


def test_of_two_pages_for_one_file_one_is_a_failure(make_site: MakeSite, origin: Origin, tmp_path: Path) -> None:
    report = export(make_site(revalidate=60), tmp_path, "/a", "/a/")
    assert outcome(report) == (1, 0, [], ["/a/: export: its file is that of /a"])
    assert files_in(tmp_path)["a/index.html"] == "/a v1"


def test_an_export_needs_no_store(make_site: MakeSite, origin: Origin, tmp_path: Path) -> None:
    report = export(make_site(revalidate=60, store=NullStore()), tmp_path, "/a", "/b")
    assert (outcome(report), origin.calls["/a"]) == ((2, 0, [], []), 1)
    assert files_in(tmp_path)["a/index.html"] == "/a v1"


def test_a_site_at_a_mount_point_is_exported_where_its_links_lead(
    make_site: MakeSite, origin: Origin, tmp_path: Path
) -> None:
    origin.on("/", answer(links("/docs/a")))
    export(make_site(revalidate=60), tmp_path, url="http://example.org/docs", crawl=True)
    assert set(files_in(tmp_path)) == {"docs/index.html", "docs/a/index.html", "404.html"}


# The site of a prerender -------------------------------------------------------------------------------


def test_the_site_is_the_canonical_one_unless_it_is_given(make_site: MakeSite) -> None:
    assert site_at(make_site().isr, None) == (("http", "localhost", ""), False)
    site = make_site(canonical_url="https://Example.com")
    assert site_at(site.isr, None) == (("https", "example.com", ""), True)
    assert site_at(site.isr, "https://example.com:443/d%C3%B6cs/") == (("https", "example.com", "/d\xc3\xb6cs"), True)
    with pytest.raises(ConfigError, match="renders for"):
        site_at(site.isr, "https://example.net")
    for wrong in ("example.com", "ftp://example.com", "https://", "https://exa mple.com", "https://example.com/?x"):
        with pytest.raises(ConfigError, match="--url"):
            site_at(make_site().isr, wrong)


def _in_background(run: Callable[[], Report]) -> Callable[[], Report]:
    """Begin a call in a thread. Return a function that waits for its result."""
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(run()), daemon=True)
    thread.start()

    def result() -> Report:
        thread.join(DEADLINE)
        assert reports, "it did not come to its end"
        return reports[0]

    return result
