"""The command ``wsgi-isr explain``, and the actors and roles that it shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin, answer
from wsgi_isr.commands.main import main
from wsgi_isr.events import Invalidated
from wsgi_isr.middleware.runtime import runtime

APP = """
from wsgi_isr import ISR, Rule
def bare(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"x"]
app = ISR(bare, {"/": Rule(60, tags=["posts"], query=["page"], paths=["/"])})
"""
SITE = "https://example.com"


@pytest.fixture(autouse=True)
def app_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a folder with the app the current one."""
    (tmp_path / "explained.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("WSGI_ISR_STORE", f"sqlite:///{tmp_path}/store.db")
    yield
    sys.modules.pop("explained", None)


def run(*arguments: str) -> tuple[int, str, str]:
    """Run one command as in a new process."""
    sys.modules.pop("explained", None)
    runtime.instances.clear()
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_it_tells_who_rendered_and_who_invalidated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    assert run("prerender", "explained:app", "--url", SITE)[0] == 0
    assert run("invalidate", "--tag", "posts", "--mode", "stale")[0] == 0
    code, out, _ = run("explain", f"{SITE}/", "--app", "explained:app")
    assert code == 0
    assert "now       STALE (stale-tag)" in out
    assert ":prerender in " in out
    assert "invalidated by ann, wsgi-isr (" in out


def test_json_has_the_same_facts_and_the_variable_names_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    run("prerender", "explained:app", "--url", SITE)
    monkeypatch.setenv("WSGI_ISR_APP", "explained:app")
    code, out, _ = run("explain", f"{SITE}/", "--json")
    told = json.loads(out)
    assert (code, told["answer"], told["cacheable"], told["key"]["host"]) == (0, "HIT", True, "example.com")
    assert told["stored"]["source"] == "rule"
    assert [line["kind"] for line in told["timeline"]] == ["rendered"]


def test_a_request_that_the_app_answers_itself_exits_with_1() -> None:
    code, out, _ = run("explain", f"{SITE}/other", "--app", "explained:app")
    assert (code, "BYPASS (no-rule)" in out) == (1, True)
    code, out, _ = run("explain", f"{SITE}/", "--app", "explained:app", "-H", "Authorization: Basic c2VjcmV0")
    assert (code, "BYPASS (authorization)" in out, "c2VjcmV0" in out) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["/"], "no app is named"),
        (["/", "--app", "nothing:app"], "does not import"),
        (["blog", "--app", "explained:app"], "is not a path"),
        (["/", "--app", "explained:app", "-H", "nonsense"], "is no header"),
        ([], "URL"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], problem: str) -> None:
    code, out, err = run("explain", *arguments)
    assert (code, out, problem in err) == (2, "", True)


def test_a_view_that_invalidates_is_named_by_the_id_of_its_request(make_site: MakeSite, origin: Origin) -> None:
    def write(environ: object) -> bytes:
        from wsgi_isr import invalidate

        invalidate(tags=["posts"])
        return b"done"

    origin.on("/write", answer(write))
    site = make_site({"/": 60})
    site.visit("/write", method="POST", headers={"X-Request-ID": "7f3a"})
    site.visit("/write", method="POST", headers={"X-Request-ID": "forged\x1b[31m"})
    site.visit("/write", method="POST")
    assert [event.actor for event in site.happened(Invalidated)] == ["request 7f3a", "app", "app"]


def test_a_write_to_the_url_of_a_page_is_named_with_its_method(make_site: MakeSite) -> None:
    site = make_site({"/": 60})
    site.visit("/", method="POST", headers={"X-Request-ID": "7f3a"})
    assert [event.actor for event in site.happened(Invalidated)] == ["request 7f3a: POST"]
