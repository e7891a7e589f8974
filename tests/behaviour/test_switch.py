"""``wsgi-isr off``, ``off --serve-stale`` and ``on``: what visitors get, in several processes on one store."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.nodes import Nodes
from tests.behaviour.origin import Origin, answer
from tests.behaviour.test_contract_draft import editor_of
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import Rule, cached
from wsgi_isr.cache.switch import ON, PASS, SERVE_STALE, Record
from wsgi_isr.cache.switchboard import Turned
from wsgi_isr.errors import ConfigError
from wsgi_isr.events import Rendered, Switched
from wsgi_isr.stores.memory import MemoryStore

OFF = 'wsgi-isr; fwd=bypass; detail="switched-off"'
STALE = "wsgi-isr; hit; ttl={}; detail=switched-serve-stale"
COHERENCE = 0.1


class Shared(MemoryStore):
    """A store that all sites of a test share, as processes share a database."""

    shared = True


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the state folder of all sites of a test."""
    monkeypatch.setattr("wsgi_isr.config.wrapping.state_folder", lambda app, module="": str(tmp_path / "state"))
    return tmp_path / "state"


MakeSites = Callable[..., tuple[Site, ...]]


@pytest.fixture
def sites(make_site: MakeSite, clock: Clock) -> MakeSites:
    """Return ``sites(number, rules, **options)``: processes with one store."""
    store = Shared(clock=clock)

    def make(number: int = 2, rules: Any = None, **options: Any) -> tuple[Site, ...]:
        options = {"revalidate": 60, "store": store, "coherence": COHERENCE, **options}
        return tuple(make_site(rules, **options) for _ in range(number))

    return make


def turn(site: Site, mode: str, seconds: float | None = None, rules: tuple[str, ...] = (), **more: Any) -> Turned:
    return site.isr._engine.switchboard.turn(mode, seconds, rules, **more)


def warm(*processes: Site, path: str = "/a") -> None:
    """Let each process have a prepared response for the page."""
    for site in processes:
        while site.visit(path).label != "HIT":
            pass
        assert site.visit(path).label == "HIT"


# Off ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coherence", [0, COHERENCE])
def test_within_coherence_every_process_passes_requests_through(
    sites: MakeSites, origin: Origin, clock: Clock, coherence: float
) -> None:
    one, other = sites(coherence=coherence)
    warm(one, other)
    turn(one, PASS)
    clock.advance(coherence)
    renders = origin.calls["/a"]
    for site in (one, other, one, other):
        seen = site.visit("/a")
        assert (seen.label, seen.cache_status) == ("BYPASS", OFF)
    assert origin.calls["/a"] == renders + 4
    turn(other, ON)
    clock.advance(coherence)
    assert [site.visit("/a").label for site in (one, other)] == ["HIT", "HIT"]


def test_a_process_that_has_just_polled_serves_its_copy_for_no_longer_than_coherence(
    sites: MakeSites, clock: Clock
) -> None:
    one, other = sites()
    warm(other)
    turn(one, PASS)
    clock.advance(COHERENCE * 0.9)
    assert other.visit("/a").label == "HIT"
    clock.advance(COHERENCE * 0.1)
    assert other.visit("/a").label == "BYPASS"


def test_a_process_that_begins_later_passes_its_first_request_through(sites: MakeSites) -> None:
    (one,) = sites(1)
    warm(one)
    turn(one, PASS)
    (later,) = sites(1)
    assert later.visit("/a").label == "BYPASS"


def test_a_switch_with_an_end_ends_by_itself(sites: MakeSites, clock: Clock) -> None:
    one, other = sites(revalidate=3600)
    warm(one, other)
    turn(one, PASS, 600)
    clock.advance(599)
    assert [site.visit("/a").label for site in (one, other)] == ["BYPASS", "BYPASS"]
    clock.advance(1)
    assert [site.visit("/a").label for site in (one, other)] == ["HIT", "HIT"]
    assert turn(one, ON).note == "the cache is on"


def test_the_pages_of_one_rule_are_passed_through_and_others_are_prepared_as_before(
    sites: MakeSites, clock: Clock, origin: Origin
) -> None:
    one, other = sites(2, {"/a": 60, "/b": 60})
    for path in ("/a", "/b"):
        warm(one, other, path=path)
    turn(one, PASS, rules=("/b",))
    clock.advance(COHERENCE)
    for _ in range(3):
        assert [site.visit(path).label for site in (one, other) for path in ("/a", "/b")] == ["HIT", "BYPASS"] * 2
    assert origin.calls["/a"] == 1
    (cached_page,) = {
        id(one_): one_ for one_ in other.isr._engine.local.fingerprints.values() if one_.prepared
    }.values()
    assert cached_page.entry.content.body == b"/a v1"


def test_a_response_prepared_by_a_look_up_before_the_switch_is_not_sent_after_it(
    sites: MakeSites, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site,) = sites(1)
    site.visit("/a")
    headers_of = site.isr._pages.remember

    def slow(*arguments: Any) -> None:
        headers_of(*arguments)
        turn(site, PASS)
        site.isr._engine.tag_versions.ask()  # by another thread

    monkeypatch.setattr(site.isr._pages, "remember", slow)
    assert site.visit("/a").label == "HIT"
    monkeypatch.undo()
    assert site.visit("/a").label == "BYPASS"


def test_a_write_invalidates_while_the_cache_is_off(sites: MakeSites, clock: Clock) -> None:
    one, other = sites()
    warm(one, other)
    turn(one, PASS)
    clock.advance(COHERENCE)
    one.visit("/a", method="POST")
    turn(one, ON)
    clock.advance(COHERENCE)
    assert other.visit("/a").label == "EXPIRED"


def test_an_editor_in_draft_mode_still_gets_drafts(sites: MakeSites, origin: Origin) -> None:
    (site,) = sites(1, secret="known to the servers only")
    editor = editor_of(site, origin)
    turn(site, PASS)
    assert editor.ask("/a").cache_status == 'wsgi-isr; fwd=bypass; detail="draft"'
    assert site.visit("/a").cache_status == OFF


def test_a_page_that_its_rule_does_not_list_comes_from_the_app(sites: MakeSites) -> None:
    (site,) = sites(1, {"/<slug>": Rule(60, paths=["/a"], dynamic_params=False)})
    assert site.visit("/b").code == 404
    turn(site, PASS)
    seen = site.visit("/b")
    assert (seen.code, seen.cache_status) == (200, OFF)


def test_no_background_render_begins_after_the_switch(sites: MakeSites, origin: Origin, clock: Clock) -> None:
    (site,) = sites(1, background_threads=1)
    for path in ("/a", "/b"):
        site.visit(path)
    clock.advance(61)
    gate = origin.hold("/a")
    assert [site.visit(path).label for path in ("/a", "/b")] == ["STALE", "STALE"]
    gate.wait_until_entered()
    turn(site, PASS)
    clock.advance(COHERENCE)
    assert site.visit("/b").label == "BYPASS"
    gate.open()
    site.settle()
    assert len(site.happened(Rendered)) == 3, "two first renders, and the one that had begun"


def test_a_refresh_is_rendered_while_the_cache_is_off(sites: MakeSites) -> None:
    (site,) = sites(1)
    site.visit("/a")
    turn(site, PASS)
    assert site.isr.refresh("/a")


def test_cached_functions_are_called_while_everything_is_off_and_not_for_a_rule(sites: MakeSites, clock: Clock) -> None:
    calls: list[int] = []

    @cached(revalidate=3600)
    def number() -> int:
        calls.append(1)
        return len(calls)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        return answer(b"%d" % number())(environ, start_response)  # type: ignore[return-value]

    (site,) = sites(1, {"/a": 60}, app=app)
    assert [site.visit("/a").text, site.visit("/x").text] == ["1", "1"]
    turn(site, PASS, rules=("/a",))
    assert [site.visit("/a").text, site.visit("/x").text] == ["1", "1"]
    turn(site, PASS)
    assert [site.visit("/a").text, site.visit("/x").text] == ["2", "3"]


# Serve stale -------------------------------------------------------------------------------------------


def test_pages_that_are_there_are_served_whatever_their_age_and_not_rendered(
    sites: MakeSites, origin: Origin, clock: Clock
) -> None:
    one, other = sites(2, {"/a": Rule(60, expire=120), "/b": 60})
    warm(one, other)
    turn(one, SERVE_STALE)
    clock.advance(COHERENCE)
    assert [site.visit("/a").label for site in (one, other)] == ["HIT", "HIT"]
    for age in (100, 1000):
        clock.advance(age)
        for site in (one, other):
            seen = site.visit_and_settle("/a")
            assert (seen.label, seen.text) == ("STALE", "/a v1")
            assert seen.cache_status == STALE.format(59 - seen.age)
    assert origin.calls["/a"] == 1
    assert one.visit("/b").label == "MISS", "a page that is not there is rendered"
    turn(one, ON)
    clock.advance(COHERENCE)
    assert other.visit("/a").label == "EXPIRED"


@pytest.mark.parametrize(("mode", "label"), [("stale", "STALE"), ("expire", "STALE"), ("purge", "MISS")])
def test_an_invalidated_page_is_served_unless_it_was_purged(
    sites: MakeSites, clock: Clock, mode: str, label: str
) -> None:
    one, other = sites()
    warm(one, other)
    turn(one, SERVE_STALE)
    one.isr.invalidate(paths=["/a"], mode=mode)
    clock.advance(COHERENCE)
    assert other.visit_and_settle("/a").label == label


# Failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", ["a:1", "b:1", "c:1"])
def test_one_node_that_is_away_hides_no_switch(make_site: MakeSite, clock: Clock, away: str) -> None:
    store = Nodes(clock)
    store.shared = True
    one, other = (make_site(revalidate=60, store=store, coherence=COHERENCE) for _ in range(2))
    one.visit("/a")
    store.unplugged = {away}
    turned = turn(one, PASS)
    assert ([node for node, _ in turned.missed], turned.is_delivered, turned.file) == ([away], True, None)
    clock.advance(COHERENCE)
    assert other.visit("/a").label == "BYPASS"
    store.unplugged = {"a:1", "b:1", "c:1"} - {away}
    clock.advance(2)
    assert other.visit("/a").label == "BYPASS", "the process remembers"
    store.unplugged = set()
    clock.advance(2)
    other.visit("/a")
    store.unplugged = {"a:1", "b:1", "c:1"} - {away}
    later = make_site(revalidate=60, store=store, coherence=COHERENCE)
    assert later.visit("/a").label == "BYPASS", "the node has got the record from a process"


def test_a_node_that_returns_with_an_old_switch_revives_nothing(make_site: MakeSite, clock: Clock) -> None:
    store = Nodes(clock)
    store.shared = True
    one = make_site(revalidate=60, store=store, coherence=COHERENCE)
    one.visit("/a")
    turn(one, PASS)
    store.unplugged = {"b:1"}
    turn(one, ON)
    store.unplugged = set()
    later = make_site(revalidate=60, store=store, coherence=COHERENCE)
    assert later.visit("/a").label != "BYPASS"


def test_a_flushed_store_ends_no_switch(sites: MakeSites, clock: Clock) -> None:
    one, _ = sites()
    one.visit("/a")
    turn(one, PASS)
    clock.advance(COHERENCE)
    one.visit("/a")
    for key in one.isr._engine.switchboard._copies.keys:
        assert one.store.delete(key)
    clock.advance(2)
    assert one.visit("/a").label == "BYPASS"
    (later,) = sites(1)
    assert later.visit("/a").label == "BYPASS"


def test_without_any_node_the_file_switches_this_machine(make_site: MakeSite, clock: Clock, folder: Path) -> None:
    store = Nodes(clock)
    store.shared = True
    one, other = (make_site(revalidate=60, store=store, coherence=COHERENCE) for _ in range(2))
    store.unplugged = {*store.nodes}
    one.visit("/a")
    turned = turn(one, PASS)
    assert (turned.is_delivered, turned.file) == (False, str(folder / "off"))
    clock.advance(1)
    assert [site.visit("/a").label for site in (one, other)] == ["BYPASS", "BYPASS"]
    store.unplugged = set()
    clock.advance(1)
    assert other.visit("/a").label == "BYPASS"
    turned = turn(other, ON)
    assert (turned.is_delivered, (folder / "off").exists()) == (True, False)
    clock.advance(1)
    assert [site.visit("/a").label for site in (one, other)] == ["MISS", "HIT"]


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"mode": "pass"}', '{"stamp": "x"}', "[" * 100_000, "\0", "🙂"])
def test_a_file_made_by_hand_switches_everything_off_until_it_is_removed(
    sites: MakeSites, clock: Clock, folder: Path, text: str
) -> None:
    (site,) = sites(1)
    warm(site)
    folder.mkdir()
    (folder / "off").write_text(text, encoding="utf-8")
    clock.advance(1)
    assert site.visit("/a").label == "BYPASS"
    (folder / "off").unlink()
    clock.advance(1)
    assert site.visit("/a").label == "HIT"


def test_a_pipe_in_place_of_the_file_blocks_nothing(sites: MakeSites, clock: Clock, folder: Path) -> None:
    (site,) = sites(1)
    warm(site)
    folder.mkdir()
    os.mkfifo(folder / "off")
    clock.advance(1)
    assert site.visit("/a").label == "BYPASS"


def test_a_store_in_the_memory_of_each_process_is_switched_by_the_file(
    make_site: MakeSite, clock: Clock, folder: Path
) -> None:
    one, other = (make_site(revalidate=60, store=MemoryStore(clock=clock)) for _ in range(2))
    warm(one, other)
    turned = turn(one, PASS)
    assert (turned.is_delivered, turned.nodes, turned.file) == (True, (), str(folder / "off"))
    clock.advance(1)
    assert [site.visit("/a").label for site in (one, other)] == ["BYPASS", "BYPASS"]
    turn(other, ON)
    clock.advance(1)
    assert [site.visit("/a").label for site in (one, other)] == ["HIT", "HIT"]


# The option --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "label"), [("1", "BYPASS"), ("pass", "BYPASS"), ("stale", "STALE"), ("0", "STALE")])
def test_the_environment_switches_one_process(
    sites: MakeSites, clock: Clock, monkeypatch: pytest.MonkeyPatch, origin: Origin, value: str, label: str
) -> None:
    (one,) = sites(1)
    warm(one)
    monkeypatch.setenv("WSGI_ISR_OFF", value)
    (other,) = sites(1)
    clock.advance(61)
    assert other.visit_and_settle("/a").label == label
    assert origin.calls["/a"] == (1 if value == "stale" else 2)
    assert one.visit_and_settle("/a").label == ("HIT" if value == "0" else "STALE")


def test_a_process_that_the_option_switches_off_does_not_ask_the_store(
    make_site: MakeSite, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(revalidate=60, store=Shared(clock=clock), off=True)
    for verb in ("get", "get_many", "gets", "set", "add", "cas"):
        monkeypatch.setattr(site.store, verb, None)
    assert site.visit("/a").cache_status == OFF


# Rules, the log and hostile records ----------------------------------------------------------------------


def test_an_unknown_rule_is_an_error_that_names_the_rules(sites: MakeSites) -> None:
    (site,) = sites(1, {"/a": 60, "/b": 60})
    site.visit("/a")
    with pytest.raises(ConfigError, match=r"'/c' is the pattern of no rule.*one of: .*/a, /b"):
        turn(site, PASS, rules=("/c",), known=set(site.isr.configuration.rules.policies))
    site.settle()
    with pytest.raises(ConfigError, match=r"'/c' is the pattern of no rule.*one of: .*/a, /b"):
        turn(site, PASS, rules=("/c",))


def test_each_process_logs_one_line_at_the_beginning_and_one_at_the_end(
    sites: MakeSites, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = sites()
    warm(one, other)
    with caplog.at_level(logging.WARNING, "wsgi_isr"):
        turn(one, PASS, 600, actor="ann\nforged")
        for _ in range(3):
            clock.advance(COHERENCE)
            one.visit("/a"), other.visit("/a")
        clock.advance(600)
        for _ in range(3):
            one.visit("/a"), other.visit("/a")
    lines = [record.getMessage() for record in caplog.records if "switch" in record.getMessage()]
    begin = (
        "the cache is switched off: mode pass, for everything, by 'ann\\nforged', until 2023-11-14 22:23:20 UTC; "
        "wsgi-isr on ends it"
    )
    assert lines == [begin, begin, "the switch has ended: the cache is on", "the switch has ended: the cache is on"]
    assert [event.mode for event in other.happened(Switched)] == ["pass", "on"]


@pytest.mark.parametrize("signing_key", [None, "k" * 16])
@pytest.mark.parametrize("data", [b"", b"\5", b"\xff" * 100, b"\5" + bytes(40)])
def test_forged_bytes_switch_nothing(sites: MakeSites, clock: Clock, data: bytes, signing_key: str | None) -> None:
    (site,) = sites(1, signing_key=signing_key)
    warm(site)
    (key,) = site.isr._engine.switchboard._copies.keys
    site.store.set(key, data)
    clock.advance(COHERENCE)
    assert site.visit("/a").label == "HIT"
    turn(site, PASS)
    assert site.visit("/a").label == "BYPASS"


def test_a_record_without_the_signature_switches_nothing(sites: MakeSites, clock: Clock) -> None:
    plain, signed = sites(1)[0], sites(1, signing_key="k" * 16)[0]
    warm(signed)
    assert not plain.isr._engine.switchboard._copies.write(Record(int(clock() * 1000), PASS))
    clock.advance(COHERENCE)
    assert signed.visit("/a").label == "HIT"
