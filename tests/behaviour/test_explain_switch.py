"""``ISR.explain`` while the cache is switched: the answer of the next request, without any effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule
from wsgi_isr.cache.switch import PASS, SERVE_STALE
from wsgi_isr.events import Rendered, Switched
from wsgi_isr.observe.explanation import Explanation

RULES = {"/a": Rule(60, expire=100), "/<slug>": Rule(60, paths=["/b"], dynamic_params=False)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all sites of a test one state folder of their own."""
    monkeypatch.setattr("wsgi_isr.config.wrapping.state_folder", lambda app, module="": str(tmp_path / "state"))


def explained(site: Site, path: str = "/a") -> Explanation:
    return site.isr.explain(f"http://example.org{path}")


def turn(site: Site, mode: str, rules: tuple[str, ...] = ()) -> None:
    site.isr._engine.switchboard.turn(mode, rules=rules)


@pytest.mark.parametrize("path", ["/a", "/unlisted"])
def test_a_page_of_a_cache_that_is_off_comes_from_the_app(make_site: MakeSite, path: str) -> None:
    site = make_site(RULES)
    site.visit("/a")
    turn(site, PASS)
    told = explained(site, path)
    assert (told.answer, told.reason, told.then) == ("BYPASS", "switched-off", "The app answers the request.")
    assert not site.happened(Switched)
    assert site.visit(path).label == "BYPASS"


def test_a_switch_of_another_rule_changes_no_answer(make_site: MakeSite) -> None:
    site = make_site(RULES)
    site.visit("/a")
    turn(site, PASS, ("/<slug>",))
    assert explained(site).answer == site.visit("/a").label == "HIT"


@pytest.mark.parametrize("age", [61, 101])
def test_a_page_that_is_served_whatever_its_age_is_not_rendered(make_site: MakeSite, clock: Clock, age: int) -> None:
    site = make_site(RULES)
    site.visit("/a")
    turn(site, SERVE_STALE)
    clock.advance(age)
    told = explained(site)
    assert (told.answer, told.reason, told.then) == ("STALE", "switched-serve-stale", "No render begins.")
    assert site.visit_and_settle("/a").label == "STALE"
    assert len(site.happened(Rendered)) == 1


def test_the_option_off_is_explained_too(make_site: MakeSite) -> None:
    site = make_site(RULES, off=True)
    told = explained(site)
    assert (told.answer, told.reason) == ("BYPASS", "switched-off")
    assert not site.happened(Switched)
