"""The statements of a well-known guide to ISR, one by one, for a blog in Flask."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import flask
import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Boom, Gate
from tests.behaviour.visitor import ASKED_EACH_TIME, Clock, Conversation, Site, make_environ
from wsgi_isr import ISRError, Rule, cached, invalidate, no_store, refresh
from wsgi_isr.stores.memory import MemoryStore

CRAWLER = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
POSTS = 25


class Blog:
    """The example: posts in a database, a page for each post, and a page that lists the posts."""

    def __init__(self) -> None:
        self.posts = {str(number): f"Post {number}" for number in range(1, POSTS + 1)}
        self.renders: Counter[str] = Counter()
        self.broken = False
        self.gate: Gate | None = None
        self._lock = threading.Lock()
        app = self.flask = flask.Flask(__name__)
        app.testing = True  # an exception of a view reaches the server, as in any other WSGI app

        @app.get("/blog/<post>")
        def blog_post(post: str) -> str:
            title = self.read(post)
            if title is None:
                flask.abort(404)
            return f"<h1>{title}</h1>"

        @app.get("/blog")
        def blog() -> str:
            self.read("all")
            return "".join(f"<li>{title}</li>" for title in self.posts.values())

    def read(self, what: str) -> str | None:
        """Return the text that a page is made of, and count a render."""
        with self._lock:
            self.renders[what] += 1
            found = self.posts.get(what)
            gate = self.gate
        if gate is not None:
            gate.pass_through()
        if self.broken:
            raise Boom(f"Failed to fetch post {what}")
        return found

    def ids(self) -> list[dict[str, str]]:
        """Return the ids of the posts, as ``generateStaticParams`` does."""
        return [{"post": post} for post in self.posts]

    def rules(self, **options: Any) -> dict[str, Any]:
        return {
            "/blog/<post>": Rule(revalidate=60, paths=self.ids, **options),
            "/blog": 3600,
        }


@pytest.fixture
def blog() -> Blog:
    return Blog()


def generated(make_site: MakeSite, blog: Blog, **options: Any) -> Site:
    """Return the site of the example after its build."""
    site: Site = make_site(blog.rules(**options), app=blog.flask.wsgi_app, canonical_url="http://example.org")
    for params in blog.ids():
        site.isr.refresh(f"/blog/{params['post']}")
    return site


# Here is how this example works -------------------------------------------------------------------------


BUILT = """
from wsgi_isr import ISR, Rule

made = []

def pages(environ, start_response):
    made.append(environ["PATH_INFO"])
    body = environ["PATH_INFO"].encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]

def paths():
    return [{"post": str(number)} for number in range(1, 26)]

app = ISR(pages, {"/blog/<post>": Rule(revalidate=60, paths=paths)}, canonical_url="http://example.org")
"""

VISITED = """
from werkzeug.test import Client
from built import app, made

client = Client(app)
print({client.get(f"/blog/{number}").headers["X-ISR"] for number in range(1, 26)}, len(made))
"""


def test_step_1_during_the_build_all_known_posts_are_generated(tmp_path: Path) -> None:
    (tmp_path / "built.py").write_text(BUILT)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    environ = {**os.environ, "PYTHONPATH": paths, "WSGI_ISR_STORE": f"sqlite:///{tmp_path}/pages.db"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-c", "from wsgi_isr.commands.main import main; main()", "prerender", "built:app")
    assert run("-c", VISITED) == "{'HIT'} 0\n"


def test_step_1_posts_that_are_known_can_be_generated_before_the_first_visitor(make_site: MakeSite, blog: Blog) -> None:
    site = generated(make_site, blog)
    assert blog.renders == {str(number): 1 for number in range(1, POSTS + 1)}
    assert {site.visit(f"/blog/{number}").label for number in range(1, POSTS + 1)} == {"HIT"}


def test_step_2_all_requests_to_these_pages_are_cached_and_never_wait_for_the_app(
    make_site: MakeSite, blog: Blog, clock: Clock
) -> None:
    site = generated(make_site, blog)
    blog.gate = Gate()  # a request that reaches the app now never returns
    before = blog.renders.total()
    for _ in range(3):
        for number in range(1, POSTS + 1):
            seen = site.visit(f"/blog/{number}")
            assert (seen.label, seen.text) == ("HIT", f"<h1>Post {number}</h1>")
        clock.advance(19.9)
    assert blog.renders.total() == before


def test_step_3_after_60_seconds_the_next_request_still_shows_the_old_page(
    make_site: MakeSite, blog: Blog, clock: Clock
) -> None:
    site = generated(make_site, blog)
    blog.posts["1"] = "New"
    clock.advance(59.9)
    assert (site.visit("/blog/1").label, site.visit("/blog/1").text) == ("HIT", "<h1>Post 1</h1>")
    clock.advance(0.1)
    seen = site.visit_and_settle("/blog/1")
    assert (seen.label, seen.text) == ("STALE", "<h1>Post 1</h1>")


def test_step_4_that_request_starts_a_new_version_in_the_background_and_does_not_wait_for_it(
    make_site: MakeSite, blog: Blog, clock: Clock
) -> None:
    site = generated(make_site, blog)
    clock.advance(60)
    blog.gate = Gate()
    assert site.visit("/blog/1").label == "STALE"  # answered while the gate is closed
    blog.gate.wait_until_entered()
    assert blog.renders["1"] == 2
    for _ in range(10):
        assert site.visit("/blog/1").label == "STALE"
    blog.gate.open()
    site.settle()
    assert blog.renders["1"] == 2
    assert blog.renders["2"] == 1  # no visitor asked for page 2


def test_step_5_once_generated_the_new_page_is_shown_and_cached(make_site: MakeSite, blog: Blog, clock: Clock) -> None:
    site = generated(make_site, blog)
    blog.posts["1"] = "New"
    clock.advance(60)
    site.visit_and_settle("/blog/1")
    for _ in range(3):
        seen = site.visit("/blog/1")
        assert (seen.label, seen.text) == ("HIT", "<h1>New</h1>")
        clock.advance(19.9)
    assert blog.renders["1"] == 2


def test_step_5_a_version_that_was_not_generated_successfully_is_not_shown(
    make_site: MakeSite, blog: Blog, clock: Clock
) -> None:
    site = generated(make_site, blog)
    clock.advance(60)
    blog.broken = True
    site.visit_and_settle("/blog/1")
    seen = site.visit_and_settle("/blog/1")
    assert (seen.code, seen.text) == (200, "<h1>Post 1</h1>")


def test_step_6_a_page_that_was_not_generated_is_made_on_demand_and_cached(make_site: MakeSite, blog: Blog) -> None:
    site = generated(make_site, blog)
    blog.posts["26"] = "Late"
    seen = [site.visit("/blog/26") for _ in range(3)]
    assert [one.label for one in seen] == ["MISS", "HIT", "HIT"]
    assert {one.text for one in seen} == {"<h1>Late</h1>"}
    assert blog.renders["26"] == 1


# dynamicParams, fallback --------------------------------------------------------------------------------


def test_dynamic_params_false_is_a_404_on_unknown_paths(make_site: MakeSite, blog: Blog) -> None:
    site = generated(make_site, blog, dynamic_params=False)
    assert site.visit("/blog/nobody-wrote-it").code == 404
    assert blog.renders["nobody-wrote-it"] == 0
    assert site.visit("/blog/25").label == "HIT"


def test_dynamic_params_true_renders_unknown_paths_on_demand(make_site: MakeSite, blog: Blog) -> None:
    site = generated(make_site, blog, dynamic_params=True)
    assert site.visit("/blog/nobody-wrote-it").code == 404
    assert blog.renders["nobody-wrote-it"] == 1


def test_fallback_blocking_renders_on_demand_if_the_path_does_not_exist(make_site: MakeSite, blog: Blog) -> None:
    site = generated(make_site, blog, fallback="blocking")
    blog.posts["26"] = "Late"
    blog.gate = Gate()
    visit = site.start_visit("/blog/26")
    blog.gate.wait_until_entered()
    assert not visit.over
    blog.gate.open()
    assert visit.result().text == "<h1>Late</h1>"


def test_the_fallback_is_aware_of_bots(make_site: MakeSite, blog: Blog) -> None:
    site = generated(make_site, blog, fallback=b"a moment, please")
    blog.posts["26"] = "Late"
    assert site.visit("/blog/26", headers={"User-Agent": CRAWLER}).text == "<h1>Late</h1>"


# Promises of ISR ----------------------------------------------------------------------------------------


def test_a_cache_control_header_is_added_to_pages(make_site: MakeSite, blog: Blog) -> None:
    site = generated(make_site, blog)
    for path, seconds in (("/blog/1", 60), ("/blog", 3600)):
        assert site.visit(path).directives == ASKED_EACH_TIME
        assert site.lifetime(path).revalidate == seconds


def test_static_content_is_updated_without_rebuilding_the_site(make_site: MakeSite, blog: Blog) -> None:
    site = generated(make_site, blog)
    blog.posts["7"] = "New"
    site.isr.invalidate(paths=["/blog/7"])
    assert site.visit("/blog/7").text == "<h1>New</h1>"
    assert blog.renders["7"] == 2
    assert blog.renders.total() == POSTS + 1


# Time-based revalidation --------------------------------------------------------------------------------


def test_time_based_the_list_is_invalidated_after_an_hour_on_the_next_visit(
    make_site: MakeSite, blog: Blog, clock: Clock
) -> None:
    site = generated(make_site, blog)
    site.visit("/blog")
    blog.posts["26"] = "Late"
    clock.advance(3599)
    assert site.visit("/blog").label == "HIT"
    clock.advance(2 * 3600)  # no visitor comes: nothing is rendered
    site.settle()
    assert blog.renders["all"] == 1
    assert "Late" not in site.visit_and_settle("/blog").text
    assert blog.renders["all"] == 2
    seen = site.visit("/blog")
    assert seen.label == "HIT"
    assert "Late" in seen.text


# On demand: revalidatePath, revalidateTag, res.revalidate -------------------------------------------------


def test_on_demand_by_path_a_form_that_adds_a_post_clears_the_list(make_site: MakeSite, blog: Blog) -> None:
    @blog.flask.post("/create")
    def create() -> str:
        blog.posts["26"] = "Late"
        invalidate(paths=["/blog"])
        return "created"

    site = generated(make_site, blog)
    site.visit("/blog")
    assert site.visit("/create", method="POST").text == "created"
    assert "Late" in site.visit("/blog").text
    assert site.visit("/blog").label == "HIT"
    assert site.visit("/blog/1").label == "HIT"  # no other path was named


def test_on_demand_by_path_data_is_fetched_anew_however_it_was_retrieved(
    make_site: MakeSite, blog: Blog, clock: Clock
) -> None:
    @cached(revalidate=3600, tags=["titles"])
    def titles() -> list[str]:
        blog.renders["titles"] += 1
        return [*blog.posts.values()]

    @blog.flask.get("/titles")
    def show() -> str:
        blog.renders["/titles"] += 1
        return ",".join(titles())

    site = make_site(revalidate=60, app=blog.flask.wsgi_app)
    site.visit("/titles")
    site.isr.invalidate(paths=["/titles"])
    site.visit("/titles")
    assert blog.renders["/titles"] == 2


def test_on_demand_by_tag_a_form_invalidates_all_data_with_that_tag(make_site: MakeSite, blog: Blog) -> None:
    @cached(revalidate=3600, tags=["posts"])
    def cached_posts() -> list[str]:
        blog.renders["query"] += 1
        return [*blog.posts.values()]

    @blog.flask.get("/list")
    def list_() -> str:
        return ",".join(cached_posts())

    @blog.flask.get("/count")
    def count() -> str:
        return str(len(cached_posts()))

    @blog.flask.get("/about")
    def about() -> str:
        return "about"

    @blog.flask.post("/create")
    def create() -> str:
        blog.posts["26"] = "Late"
        invalidate(tags=["posts"])
        return "created"

    site = make_site(revalidate=3600, app=blog.flask.wsgi_app)
    for path in ("/list", "/count", "/about"):
        site.visit(path)
    assert blog.renders["query"] == 1
    site.visit("/create", method="POST")
    assert site.visit("/list").text.endswith("Late")
    assert site.visit("/count").text == "26"
    assert site.visit("/about").label == "HIT"
    assert blog.renders["query"] == 2
    assert {site.visit(path).label for path in ("/list", "/count", "/about")} == {"HIT"}


def test_on_demand_by_tag_single_fetches_are_tagged(make_site: MakeSite, blog: Blog) -> None:
    import http.server

    from wsgi_isr import CachedSession

    class Api(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            blog.renders["api"] += 1
            body = str(blog.renders["api"]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with CachedSession(revalidate=3600) as session:

            @blog.flask.get("/fetched")
            def fetched() -> str:
                url = f"http://127.0.0.1:{server.server_port}/blog"
                text: str = session.get(url, tags=["posts"]).text
                return text

            site = make_site(revalidate=3600, app=blog.flask.wsgi_app)
            assert site.visit("/fetched").text == "1"
            site.isr.invalidate(paths=["/fetched"])
            assert site.visit("/fetched").text == "1"
            site.isr.invalidate(tags=["posts"])
            assert site.visit("/fetched").text == "2"
            assert site.visit("/fetched").label == "HIT"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


TOKEN = "a token that only the app knows"


def with_an_api(blog: Blog) -> None:
    @blog.flask.get("/api/revalidate")
    def revalidate() -> Any:
        if flask.request.args.get("secret") != TOKEN:
            return {"message": "Invalid token"}, 401
        try:
            refresh("/blog/1")
        except ISRError:
            return "Error revalidating", 500
        return {"revalidated": True}


def test_on_demand_by_refresh_the_api_generates_the_new_page(make_site: MakeSite, blog: Blog) -> None:
    with_an_api(blog)
    site = generated(make_site, blog)
    blog.posts["1"] = "New"
    seen = site.visit(f"/api/revalidate?secret={TOKEN.replace(' ', '+')}")
    assert (seen.code, seen.text.strip()) == (200, '{"revalidated":true}')
    assert blog.renders["1"] == 2  # rendered by now, not on the next visit
    assert (site.visit("/blog/1").label, site.visit("/blog/1").text) == ("HIT", "<h1>New</h1>")


def test_on_demand_by_refresh_the_api_refuses_whoever_does_not_know_the_token(make_site: MakeSite, blog: Blog) -> None:
    with_an_api(blog)
    site = generated(make_site, blog)
    blog.posts["1"] = "New"
    for query in ("", "?secret=", "?secret=guessed"):
        assert site.visit(f"/api/revalidate{query}").code == 401
    assert site.visit("/blog/1").text == "<h1>Post 1</h1>"


def test_on_demand_by_refresh_an_error_leaves_the_last_successfully_generated_page(
    make_site: MakeSite, blog: Blog
) -> None:
    with_an_api(blog)
    site = generated(make_site, blog)
    blog.posts["1"] = "New"
    blog.broken = True
    seen = site.visit(f"/api/revalidate?secret={TOKEN.replace(' ', '+')}")
    assert (seen.code, seen.text) == (500, "Error revalidating")
    seen = site.visit_and_settle("/blog/1")
    assert (seen.code, seen.text) == (200, "<h1>Post 1</h1>")


def test_on_demand_alone_a_page_needs_no_time_and_is_renewed_when_told_to(
    make_site: MakeSite, blog: Blog, clock: Clock
) -> None:
    site = make_site({"/blog/<post>": Rule(revalidate=False)}, app=blog.flask.wsgi_app)
    site.visit("/blog/1")
    blog.posts["1"] = "New"
    clock.advance(10 * 365 * 86400)
    assert (site.visit("/blog/1").label, site.visit("/blog/1").text) == ("HIT", "<h1>Post 1</h1>")
    assert site.isr.refresh("/blog/1") is True
    assert site.visit("/blog/1").text == "<h1>New</h1>"


# Uncaught exceptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["an exception", "a status of 500"])
def test_an_error_while_revalidating_leaves_the_last_page_and_a_later_request_tries_again(
    make_site: MakeSite, blog: Blog, clock: Clock, how: str
) -> None:
    blog.flask.testing = how == "an exception"
    site = generated(make_site, blog)
    blog.posts["1"] = "New"
    blog.broken = True
    clock.advance(60)
    for _ in range(3):
        seen = site.visit_and_settle("/blog/1")
        assert (seen.code, seen.text) == (200, "<h1>Post 1</h1>")
    assert blog.renders["1"] == 2
    blog.broken = False
    clock.advance(5)  # the short back-off
    assert site.visit_and_settle("/blog/1").text == "<h1>Post 1</h1>"
    assert site.visit("/blog/1").text == "<h1>New</h1>"
    assert blog.renders["1"] == 3


def test_an_error_while_revalidating_data_leaves_the_last_data(make_site: MakeSite, blog: Blog, clock: Clock) -> None:
    @cached(revalidate=10)
    def title() -> str | None:
        return blog.read("1")

    @blog.flask.get("/title")
    def show() -> str:
        return title() or ""

    site = make_site({"/title": 0}, app=blog.flask.wsgi_app)
    assert site.visit("/title").text == "Post 1"
    blog.posts["1"] = "New"
    blog.broken = True
    clock.advance(10)
    for _ in range(3):
        assert site.visit_and_settle("/title").text == "Post 1"
    blog.broken = False
    clock.advance(60)
    site.visit_and_settle("/title")
    assert site.visit("/title").text == "New"


# The place of the cache, debugging ----------------------------------------------------------------------


def test_pages_and_data_use_the_same_shared_cache_which_may_be_durable(
    make_site: MakeSite, blog: Blog, tmp_path: Path
) -> None:
    @cached(tags=["posts"])
    def titles() -> int:
        blog.renders["query"] += 1
        return len(blog.posts)

    @blog.flask.get("/titles")
    def show() -> str:
        blog.renders["/titles"] += 1
        return str(titles())

    url = f"sqlite:///{tmp_path}/cache.db"
    site = make_site(revalidate=False, app=blog.flask.wsgi_app, store=url)
    site.visit("/titles")
    site.isr.close(20)
    again = make_site(revalidate=False, app=blog.flask.wsgi_app, store=url)
    assert again.visit("/titles").label == "HIT"
    again.isr.invalidate(paths=["/titles"])
    assert again.visit("/titles").text == "25"
    assert (blog.renders["/titles"], blog.renders["query"]) == (2, 1)


def test_the_cache_is_shared_by_several_instances(make_site: MakeSite, blog: Blog, clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(blog.rules(), app=blog.flask.wsgi_app, store=store) for _ in range(2))
    assert (one.visit("/blog/1").label, two.visit("/blog/1").label) == ("MISS", "HIT")


def test_hits_and_misses_are_in_the_log_where_debugging_is_on(
    make_site: MakeSite, blog: Blog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WSGI_ISR_DEBUG", "1")
    site = make_site(blog.rules(), app=blog.flask.wsgi_app)
    with caplog.at_level(logging.DEBUG, "wsgi_isr"):
        site.visit("/blog/1")
        site.visit("/blog/1")
    lines = [record.getMessage() for record in caplog.records if "/blog/1" in record.getMessage()]
    assert any("MISS" in line for line in lines)
    assert any("HIT" in line for line in lines)


# Caveats ------------------------------------------------------------------------------------------------


def numbers(blog: Blog, **lifetimes: Any) -> Callable[[], str]:
    """Return a view that uses several pieces of data; each counts its calls."""
    functions = []
    for name, revalidate in lifetimes.items():

        def read(name: str = name) -> str:
            blog.renders[name] += 1
            return f"{name}{blog.renders[name]}"

        functions.append(cached(revalidate=revalidate)(read))
    return lambda: " ".join(function() for function in functions)


def test_of_several_lifetimes_the_lowest_is_that_of_the_page(make_site: MakeSite, blog: Blog, clock: Clock) -> None:
    blog.flask.add_url_rule("/numbers", view_func=numbers(blog, a=100, b=7, c=50), endpoint="numbers")
    site = make_site(revalidate=3600, app=blog.flask.wsgi_app)
    site.visit("/numbers")
    assert site.lifetime("/numbers").revalidate == 7
    clock.advance(6.9)
    assert site.visit("/numbers").label == "HIT"
    clock.advance(0.1)
    assert site.visit_and_settle("/numbers").label == "STALE"


def test_each_piece_of_data_keeps_its_own_lifetime(make_site: MakeSite, blog: Blog, clock: Clock) -> None:
    blog.flask.add_url_rule("/numbers", view_func=numbers(blog, a=100, b=7, c=50), endpoint="numbers")
    site = make_site(revalidate=3600, app=blog.flask.wsgi_app)
    texts = [site.visit("/numbers").text]
    for _ in range(15):
        clock.advance(7)
        site.visit_and_settle("/numbers")
        texts.append(site.visit("/numbers").text)
    # Seven seconds apart: b every time, c past 50 s and 100 s, a past 100 s.
    assert texts[:4] == ["a1 b1 c1", "a1 b2 c1", "a1 b3 c1", "a1 b4 c1"]
    assert (texts[7], texts[8]) == ("a1 b8 c1", "a1 b9 c2")
    assert texts[14].split()[0] == "a1"
    assert texts[15].split()[0] == "a2"


@pytest.mark.parametrize("how", ["revalidate 0", "no_store"])
def test_with_a_lifetime_of_0_or_no_store_the_page_is_rendered_for_every_request(
    make_site: MakeSite, blog: Blog, how: str
) -> None:
    if how == "revalidate 0":
        show = numbers(blog, a=100, b=0)
    else:
        long = numbers(blog, a=100)

        def show() -> str:
            no_store()
            blog.renders["b"] += 1
            return f"{long()} b{blog.renders['b']}"

    blog.flask.add_url_rule("/numbers", view_func=show, endpoint="numbers")
    site = make_site(revalidate=3600, app=blog.flask.wsgi_app)
    texts = [site.visit("/numbers").text for _ in range(4)]
    assert len(set(texts)) == 4
    assert {text.split()[0] for text in texts} == {"a1"}  # an answer that may be stored is stored
    assert all(site.visit("/numbers").code == 200 for _ in range(3))


def test_a_refresh_names_the_exact_path_and_not_one_that_something_in_front_rewrites(
    make_site: MakeSite, blog: Blog
) -> None:
    site = generated(make_site, blog)

    def rewriting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["PATH_INFO"] = environ["PATH_INFO"].replace("/post-", "/blog/")
        return site.isr(environ, start_response)

    def front() -> str:
        return Conversation(rewriting, make_environ("/post-1")).answer().text

    assert front() == "<h1>Post 1</h1>"
    blog.posts["1"] = "New"
    site.isr.invalidate(paths=["/post-1"])
    assert front() == "<h1>Post 1</h1>"
    assert site.isr.refresh("/blog/1") is True
    assert front() == "<h1>New</h1>"
