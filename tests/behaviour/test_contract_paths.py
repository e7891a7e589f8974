"""Listed pages, pages that are not listed, and the shell in place of a first render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Boom, Origin, answer, failing
from tests.behaviour.visitor import ASKED_EACH_TIME, Clock, all_at_once
from wsgi_isr import ISR, ConfigError, Rule
from wsgi_isr.stores.memory import MemoryStore

SHELL = b"<p>a moment, please</p>"

CRAWLERS = [
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)",
    "DuckDuckBot/1.1; (+http://duckduckgo.com/duckduckbot.html)",
    "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Twitterbot/1.0",
    "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
    "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
]
PEOPLE = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Mobile Safari/604.1",
]
PERSON: dict[str, Any] = {"headers": {"User-Agent": PEOPLE[0]}}


# paths and dynamic_params -----------------------------------------------------------------------------------


LISTS: dict[str, Any] = {
    "paths": ["/p/a", "/p/b"],
    "dicts": [{"slug": "a"}, {"slug": "b"}],
    "a tuple": ("/p/a", "/p/b"),
    "a callable of paths": lambda: ["/p/a", "/p/b"],
    "a callable of dicts": lambda: [{"slug": "a"}, {"slug": "b"}],
    "a callable that yields": lambda: (f"/p/{slug}" for slug in "ab"),
}


@pytest.mark.parametrize("paths", LISTS.values(), ids=LISTS)
def test_a_path_that_is_not_listed_is_a_404_without_calling_the_app(
    make_site: MakeSite, origin: Origin, paths: Any
) -> None:
    site = make_site({"/p/<slug>": Rule(revalidate=60, paths=paths, dynamic_params=False)})
    for path in ("/p/c", "/p/", "/p/A", "/p/a%20"):
        for method in ("GET", "HEAD"):
            if path != "/p/":
                assert site.visit(path, method=method).code == 404, path
    assert not origin.calls
    assert [site.visit(path).label for path in ("/p/a", "/p/b", "/p/a")] == ["MISS", "MISS", "HIT"]


def test_a_404_of_a_path_that_is_not_listed_is_no_ones_to_keep_for_long(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    paths = ["/p/a"]
    site = make_site({"/p/<slug>": Rule(revalidate=60, paths=lambda: paths, dynamic_params=False)})
    seen = site.visit("/p/b")
    assert seen.directives == ASKED_EACH_TIME
    assert site.visit("/p/b").code == 404
    assert seen.headers["Content-Type"]


def test_typed_parameters_are_listed_as_what_they_are(make_site: MakeSite, origin: Origin) -> None:
    paths = [{"year": 2024, "slug": "a"}, {"year": 2025, "slug": "b c"}, {"year": 2025, "slug": "caf\u00e9"}]
    site = make_site({"/<int:year>/<slug>": Rule(revalidate=60, paths=paths, dynamic_params=False)})
    for path, code in (
        ("/2024/a", 200),
        ("/2025/b%20c", 200),
        ("/2025/caf%C3%A9", 200),
        ("/2025/a", 404),
        ("/2024/b%20c", 404),
        ("/2026/a", 404),
    ):
        assert site.visit(path).code == code, path


def test_paths_are_percent_encoded_or_not(make_site: MakeSite) -> None:
    paths = ["/p/caf%C3%A9", "/p/\u00fcber"]
    site = make_site({"/p/<slug>": Rule(revalidate=60, paths=paths, dynamic_params=False)})
    assert [site.visit(path).code for path in ("/p/caf%C3%A9", "/p/%C3%BCber", "/p/x")] == [200, 200, 404]


def test_the_query_of_a_listed_page_does_not_unlist_it(make_site: MakeSite, origin: Origin) -> None:
    rule = Rule(revalidate=60, paths=["/p/a"], dynamic_params=False, query=["q"])
    site = make_site({"/p/<slug>": rule})
    assert [site.visit(path).code for path in ("/p/a?q=1", "/p/a?utm_source=x", "/p/b?q=1")] == [200, 200, 404]


def test_other_pages_are_not_concerned(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/p/<slug>": Rule(revalidate=60, paths=["/p/a"], dynamic_params=False)}, revalidate=60)
    assert [site.visit(path).code for path in ("/", "/p", "/p/a/b", "/q")] == [200] * 4


def test_with_dynamic_params_a_path_that_is_not_listed_is_rendered(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/p/<slug>": Rule(revalidate=60, paths=["/p/a"])})
    assert [site.visit("/p/b").label for _ in range(2)] == ["MISS", "HIT"]


def test_dynamic_params_false_without_paths_is_refused_at_start(origin: Origin) -> None:
    with pytest.raises(ConfigError, match=r"paths|dynamic_params"):
        ISR(origin, {"/p/<slug>": Rule(revalidate=60, dynamic_params=False)}, store="memory://")


def test_a_post_to_a_path_that_is_not_listed_is_the_app_s_business(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/p/<slug>": Rule(revalidate=60, paths=["/p/a"], dynamic_params=False)})
    assert site.visit("/p/new", method="POST").label == "BYPASS"
    assert origin.calls["/p/new"] == 1


def test_a_list_that_cannot_be_made_makes_no_page_an_error(
    make_site: MakeSite, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[str]:
        raise Boom("no database")

    site = make_site({"/p/<slug>": Rule(revalidate=60, paths=broken, dynamic_params=False)})
    assert site.visit("/p/a").code < 500
    assert "no database" in caplog.text


# fallback -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["a file", "bytes", "a callable"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return a shell in one of the three accepted forms."""
    if request.param == "a file":
        (tmp_path / "shell.html").write_bytes(SHELL)
        return str(tmp_path / "shell.html")
    return SHELL if request.param == "bytes" else (lambda environ: SHELL)


def test_a_shell_is_sent_at_once_with_no_store_and_the_page_a_moment_later(
    make_site: MakeSite, origin: Origin, shell: Any
) -> None:
    site = make_site({"/a": Rule(revalidate=60, fallback=shell)})
    gate = origin.hold("/a")
    for _ in range(3):
        seen = site.visit("/a", **PERSON)
        assert (seen.code, seen.body) == (200, SHELL)
        assert "no-store" in seen.directives
        assert "s-maxage" not in seen.directives
        assert seen.headers["Content-Type"].startswith("text/html")
        assert "ETag" not in seen.headers
    gate.open()
    site.settle()
    seen = site.visit("/a", **PERSON)
    assert (seen.label, seen.body) == ("HIT", b"/a v1")
    assert origin.calls["/a"] == 1


@pytest.mark.parametrize("agent", CRAWLERS)
def test_a_crawler_gets_the_page(make_site: MakeSite, origin: Origin, agent: str) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    seen = site.visit("/a", headers={"User-Agent": agent})
    assert (seen.label, seen.body) == ("MISS", b"/a v1")
    assert site.visit("/a", **PERSON).label == "HIT"


@pytest.mark.parametrize("agent", PEOPLE)
def test_a_person_gets_the_shell(make_site: MakeSite, origin: Origin, agent: str) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    assert site.visit_and_settle("/a", headers={"User-Agent": agent}).body == SHELL
    assert site.visit("/a", headers={"User-Agent": agent}).body == b"/a v1"


def test_a_crawler_beside_a_shell_waits_for_the_same_render(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    gate = origin.hold("/a")
    assert site.visit("/a", **PERSON).body == SHELL
    gate.wait_until_entered()
    crawler = site.start_visit("/a", headers={"User-Agent": CRAWLERS[0]})
    gate.open()
    assert crawler.result().body == b"/a v1"
    assert origin.calls["/a"] == 1


def test_thirty_people_before_a_cold_page_cause_one_render(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    gate = origin.hold("/a")
    assert {seen.body for seen in all_at_once(30, lambda _: site.visit("/a", **PERSON))} == {SHELL}
    gate.open()
    site.settle()
    assert origin.calls["/a"] == 1


def test_head_before_a_cold_page_has_no_body_and_starts_the_render(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    seen = site.visit_and_settle("/a", method="HEAD", **PERSON)
    assert (seen.code, seen.body, "no-store" in seen.directives) == (200, b"", True)
    assert site.visit("/a", **PERSON).label == "HIT"


def test_blocking_is_the_default_and_can_be_said(make_site: MakeSite, origin: Origin) -> None:
    site = make_site({"/a": Rule(revalidate=60, fallback="blocking"), "/b": 60})
    assert [site.visit(path, **PERSON).text for path in ("/a", "/b")] == ["/a v1", "/b v1"]
    mixed = make_site({"/c": Rule(revalidate=60, fallback="blocking")}, revalidate=60, fallback=SHELL)
    assert (mixed.visit("/c", **PERSON).body, mixed.visit("/d", **PERSON).body) == (b"/c v1", SHELL)
    mixed.settle()


def test_a_stale_page_is_better_than_a_shell(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    site.visit_and_settle("/a", **PERSON)
    clock.advance(61)
    assert site.visit_and_settle("/a", **PERSON).body == b"/a v1"


def test_who_has_a_cookie_gets_no_shell_where_the_page_looks_at_cookies(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    origin.on("/a", answer(b"hello", ("Vary", "Cookie")))
    site.visit_and_settle("/a", **PERSON)
    seen = site.visit("/a", cookie="session=1", **PERSON)
    assert (seen.label, seen.body) == ("BYPASS", b"hello")


@pytest.mark.parametrize(
    "handler",
    [
        answer(b"mine", ("Set-Cookie", "a=b")),
        answer(b"mine", ("Cache-Control", "private")),
        answer(b"mine", ("Cache-Control", "no-store")),
        answer(b"mine", status="202 Accepted"),
    ],
    ids=["Set-Cookie", "private", "no-store", "202"],
)
def test_a_page_that_is_not_to_be_stored_is_a_shell_once_at_most(
    make_site: MakeSite, origin: Origin, handler: Any
) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    origin.on("/a", handler)
    site.visit_and_settle("/a", **PERSON)
    for _ in range(3):
        assert site.visit_and_settle("/a", **PERSON).body == b"mine"


def test_a_page_that_fails_is_not_a_shell_for_ever(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    origin.on("/a", failing(Boom()))
    assert site.visit_and_settle("/a", **PERSON).body == SHELL
    origin.mend("/a")
    clock.advance(60)
    site.visit_and_settle("/a", **PERSON)
    assert site.visit("/a", **PERSON).body == b"/a v2"


def test_a_callable_makes_a_shell_for_each_request(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, fallback=lambda environ: f"wait for {environ['PATH_INFO']}".encode())
    assert [site.visit_and_settle(path, **PERSON).text for path in ("/a", "/b")] == ["wait for /a", "wait for /b"]
    assert [site.visit(path, **PERSON).text for path in ("/a", "/b")] == ["/a v1", "/b v1"]


def test_a_callable_that_fails_leaves_the_page(make_site: MakeSite, origin: Origin) -> None:
    def broken(environ: Any) -> bytes:
        raise Boom

    site = make_site(revalidate=60, fallback=broken)
    seen = site.visit_and_settle("/a", **PERSON)
    assert (seen.code, seen.body) == (200, b"/a v1")


def test_a_file_that_is_not_there_is_an_error_at_start_that_names_it(origin: Origin, tmp_path: Path) -> None:
    missing = tmp_path / "missing.html"
    with pytest.raises(ConfigError, match=r"missing\.html"):
        ISR(origin, {"/a": Rule(revalidate=60, fallback=str(missing))}, store="memory://")


def test_a_shell_here_does_not_hide_the_page_that_another_instance_has_made(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    store = MemoryStore(clock=clock)
    one, two = (make_site(revalidate=60, fallback=SHELL, store=store) for _ in range(2))
    assert one.visit_and_settle("/a", **PERSON).body == SHELL
    assert two.visit("/a", **PERSON).body == b"/a v1"


def test_after_a_purge_people_get_the_shell_and_never_the_old_page(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60, fallback=SHELL)
    site.visit_and_settle("/a", **PERSON)
    site.isr.invalidate(paths=["/a"], mode="purge")
    assert site.visit_and_settle("/a", **PERSON).body in (SHELL, b"/a v2")
    assert site.visit("/a", **PERSON).body == b"/a v2"
