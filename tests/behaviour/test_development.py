"""During development nothing is cached: the current code and templates answer each request."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import flask
import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.visitor import Site
from wsgi_isr import ISR, ConfigError, Rule, cached, invalidate, is_draft
from wsgi_isr.config import development
from wsgi_isr.prerender.site_client import check_shared
from wsgi_isr.stores.memory import MemoryStore

DEV = {"SERVER_SOFTWARE": "Werkzeug/3.1.9"}


@pytest.fixture(autouse=True)
def said_anew() -> None:
    development._announce.cache_clear()


class Watched(MemoryStore):
    """A store that records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("get", "get_many", "gets", "set", "add", "cas", "delete"):
            self.asked.append(name)
        return super().__getattribute__(name)


def test_each_request_is_answered_by_the_app_and_says_why(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    seen = [site.visit("/a", extra=DEV) for _ in range(3)]
    assert [answer.text for answer in seen] == ["/a v1", "/a v2", "/a v3"]
    assert {answer.label for answer in seen} == {"BYPASS"}
    assert {answer.cache_status for answer in seen} == {'wsgi-isr; fwd=bypass; detail="development"'}


def test_the_store_is_asked_for_nothing(make_site: MakeSite, origin: Origin) -> None:
    store = Watched()
    site = make_site({"/a": Rule(revalidate=60, tags=["a"])}, store=store, revalidate=60)
    for method in ("GET", "HEAD", "POST"):
        site.visit("/a", extra=DEV, method=method)
    site.isr.invalidate(tags=["a"])
    assert site.isr.refresh("/a") is False
    assert site.isr._has("/a") is False
    assert site.isr.replay() == ()
    assert store.asked == []


def test_cached_functions_are_called_each_time(make_site: MakeSite) -> None:
    calls: list[str] = []

    @cached(revalidate=3600)
    def rows() -> int:
        calls.append("")
        return len(calls)

    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(rows()).encode()]

    site = make_site(app=app, revalidate=60)
    assert [site.visit("/", extra=DEV).text for _ in range(3)] == ["1", "2", "3"]
    assert rows() == 4
    assert rows.refresh() == 5
    assert rows.invalidate() is None


def test_invalidating_succeeds_and_keeps_the_journal_for_those_who_can_deliver_it(
    make_site: MakeSite, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    journal.write_text('["default", ["tag:kept"], "expire"]\n')
    site = make_site(revalidate=60, journal=str(journal))
    site.visit("/", extra=DEV)
    assert site.isr.invalidate(tags=["a"]).tags == ("tag:a",)
    assert invalidate(tags=["a"]).tags == ("tag:a",)
    assert "tag:kept" in journal.read_text()


def test_a_server_that_is_known_only_later_ends_what_was_begun_before(make_site: MakeSite, origin: Origin) -> None:
    site = make_site(revalidate=60)
    site.isr.invalidate(paths=["/a"])  # by the app, as it is loaded
    assert site.visit("/a", extra=DEV).label == "BYPASS"
    assert site.visit("/a").label == "BYPASS"


def test_an_app_that_is_debugged_is_not_cached_under_any_server(make_site: MakeSite) -> None:
    app = flask.Flask(__name__)
    app.debug = True
    app.get("/")(lambda: "Hello")
    site = make_site(app=app.wsgi_app, revalidate=60)
    assert site.visit("/").cache_status == 'wsgi-isr; fwd=bypass; detail="development"'


def test_a_debug_mode_that_is_switched_before_the_first_request_is_what_it_is_then(make_site: MakeSite) -> None:
    app = flask.Flask(__name__)
    app.get("/")(lambda: "Hello")
    site = make_site(app=app.wsgi_app, revalidate=60)
    app.debug = True  # app.run(debug=True)
    assert site.visit("/").label == "BYPASS"
    other = make_site(app=app.wsgi_app, revalidate=60)
    app.debug = False
    assert [other.visit("/").label for _ in range(2)] == ["MISS", "HIT"]


def test_with_the_option_pages_are_cached_all_the_same(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_ISR_DEVELOPMENT", "cache")
    site = make_site(revalidate=60)
    assert [site.visit("/", extra=DEV).label for _ in range(2)] == ["MISS", "HIT"]


def test_the_option_can_keep_the_cache_off_anywhere(make_site: MakeSite) -> None:
    site = make_site(revalidate=60, development="bypass")
    assert [site.visit("/").label for _ in range(2)] == ["BYPASS", "BYPASS"]


def test_one_line_says_so_at_the_first_request(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture, origin: Origin
) -> None:
    site = make_site(revalidate=60)
    for _ in range(3):
        site.visit("/", extra=DEV)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "WSGI_ISR_DEVELOPMENT=cache" in lines[0]


def test_a_page_that_is_not_listed_is_a_404_until_it_is_without_a_wait(make_site: MakeSite) -> None:
    posts = ["/blog/a"]
    site = make_site({"/blog/<slug>": Rule(revalidate=60, paths=lambda: posts, dynamic_params=False)})
    assert site.visit("/blog/b", extra=DEV).code == 404
    posts.append("/blog/b")
    assert site.visit("/blog/b", extra=DEV).text == "/blog/b v1"
    posts.remove("/blog/b")
    assert site.visit("/blog/b", extra=DEV).code == 404


def test_a_session_a_draft_and_an_error_are_the_app_s_own(make_site: MakeSite, origin: Origin) -> None:
    from wsgi_isr import enable_draft

    headers: list[tuple[str, str]] = []

    def enter(environ: Environ, start_response: Any) -> Any:
        enable_draft(headers)
        start_response("200 OK", [("Content-Type", "text/plain"), *headers])
        return [b"in"]

    origin.on("/in", enter)
    origin.on("/draft", answer(lambda environ: str(is_draft()).encode()))
    site = make_site(revalidate=60, secret="a secret")
    site.visit("/in", extra=DEV)
    cookie = headers[0][1].partition(";")[0]
    assert site.visit("/draft", extra=DEV, cookie=cookie).text == "True"
    assert site.visit("/draft", extra=DEV).text == "False"


def test_jobs_that_make_pages_for_others_are_told(make_site: MakeSite) -> None:
    site: Site = make_site(revalidate=60, development="bypass")
    with pytest.raises(ConfigError, match=r"development: .*nothing is cached .*WSGI_ISR_DEVELOPMENT=cache"):
        check_shared(site.isr)


def test_renderer_processes_have_nothing_to_do(tmp_path: Path, origin: Origin) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    assert ISR(origin, store=url, revalidate=60)._renders_elsewhere
    assert not ISR(origin, store=url, revalidate=60, development="bypass")._renders_elsewhere
    assert list(tmp_path.iterdir()) == []
