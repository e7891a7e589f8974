"""Facts: every answer is counted once, and an event says what led to it and what it cost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.looped import Connect, Pages, Run
from tests.behaviour.origin import Origin, answer, failing
from tests.behaviour.visitor import Clock, Site
from wsgi_isr import ISR, Rule
from wsgi_isr.cache.switch import PASS, SERVE_STALE
from wsgi_isr.config.origin import Site as Origin_
from wsgi_isr.events import Rendered, RenderEnded, RenderFailed, RenderStarted, Served
from wsgi_isr.prerender.site_client import SiteClient


def results(site: Site) -> Counter[str]:
    found: Counter[str] = Counter()
    for (_, result, _), number in site.isr._counts.totals().requests.items():
        found[result] += number
    return +found


def test_every_answer_is_counted_whichever_way_it_goes(make_site: MakeSite, origin: Origin, clock: Clock) -> None:
    origin.on("/bad", answer(b"no", status="500 Oh No"))
    site = make_site(revalidate=60)
    seen: Counter[str] = Counter()
    for _ in range(50):
        seen[site.visit("/a").label] += 1
        seen[site.visit("/a", method="HEAD").label] += 1
        seen[site.visit("/a", headers={"If-None-Match": site.visit("/a").headers["ETag"]}).label] += 1
        seen["HIT"] += 1
        seen[site.visit("/a?undeclared=1").label] += 1
        clock.advance(0.3)
    seen[site.visit("/bad").label] += 1
    seen[site.visit("/a", method="POST").label] += 1
    clock.advance(100)
    seen[site.visit("/b").label] += 1
    assert results(site) == seen
    assert seen["HIT"] > 100


def test_the_rule_and_the_reason_are_counted(make_site: MakeSite) -> None:
    site = make_site({"/a": 60, "/b": 0})
    site.visit("/a")
    site.visit("/a")
    site.visit("/b")
    requests = {labels: number for labels, number in site.isr._counts.totals().requests.items() if number}
    assert requests[("/a", "MISS", "")] == requests[("/a", "HIT", "")] == 1
    assert ("none", "BYPASS", "revalidate-0") in requests


def test_answers_of_the_event_loop_are_counted(pages: Pages, run: Run, connect: Connect, clock: Clock) -> None:
    isr = ISR(pages, {"/<path:name>": 3600}, store="memory://", clock=clock)
    worker = run(isr)
    client = connect(worker)
    etag = client.get("/a").headers["etag"]
    seen = Counter(client.get("/a").label for _ in range(30))
    seen["HIT"] += [client.get("/a", b"If-None-Match: " + etag.encode()).status for _ in range(5)].count(304)
    seen["HIT"] += [client.get("/a", method="HEAD").status for _ in range(5)].count(200)
    assert worker.worker.answered >= 35
    counted = {result: number for (_, result, _), number in isr._counts.totals().requests.items() if number}
    assert counted == {"MISS": 1, **seen}


def last(site: Site, kind: type) -> Any:
    return site.happened(kind)[-1]


def test_a_stale_page_says_that_time_made_it_so(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60)
    site.visit("/a")
    clock.advance(72)
    assert site.visit("/a").label == "STALE"
    served = last(site, Served)
    assert (served.rule, served.cause, served.overdue) == ("*", "time", 12.0)
    site.jobs.wait()
    assert last(site, Rendered).trigger == "time"


@pytest.mark.parametrize(("mode", "label"), [("stale", "STALE"), ("expire", "EXPIRED"), ("purge", "MISS")])
def test_an_invalidated_page_says_which_tag_made_it_so(
    mode: str, label: str, make_site: MakeSite, origin: Origin
) -> None:
    origin.on("/a", answer(b"x", ("Cache-Tag", "one, two, three")))
    site = make_site(revalidate=60)
    site.visit("/a")
    site.isr.invalidate(tags=["two"], mode=mode)
    assert site.visit("/a").label == label
    assert last(site, Served).cause == "tag:tag:two"
    site.jobs.wait()
    assert last(site, Rendered).trigger == "tag"
    assert last(site, RenderStarted).trigger == "tag"


def test_an_old_copy_that_the_store_has_evicted_keeps_its_cause(make_site: MakeSite, clock: Clock) -> None:
    site = make_site(revalidate=60, expire=3600)
    site.visit("/a")
    clock.advance(72)
    site.isr._store.delete(site.isr._engine.keyspace.page(last(site, Rendered).text))
    assert site.visit("/a").label == "EXPIRED"
    assert last(site, Served).cause == "time"
    assert last(site, Rendered).trigger == "time"


def test_a_page_under_the_switch_says_why_it_is_old_and_is_counted_by_the_switch(
    make_site: MakeSite, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgi_isr.config.wrapping.state_folder", lambda app, module="": str(tmp_path / "state"))
    site = make_site(revalidate=60)
    site.visit("/a")
    site.isr._engine.switchboard.turn(SERVE_STALE, None, ())
    clock.advance(72)
    assert site.visit("/a").label == "STALE"
    served = last(site, Served)
    assert (served.reason, served.cause, served.overdue) == ("switched-serve-stale", "time", 12.0)
    site.isr._engine.switchboard.turn(PASS, None, ())
    clock.advance(72)
    assert site.visit("/a").label == "BYPASS"
    requests = site.isr._counts.totals().requests
    assert requests[("*", "STALE", "switched-serve-stale")] == requests[("*", "BYPASS", "switched-off")] == 1


def test_renders_say_what_they_cost_and_whether_the_page_changed(
    make_site: MakeSite, origin: Origin, clock: Clock
) -> None:
    def slow(environ: dict[str, Any]) -> bytes:
        clock.advance(0.5)
        sum(range(200_000))
        return b"the same"

    origin.on("/a", answer(slow))
    site = make_site(revalidate=60)
    site.visit("/a")
    first = last(site, Rendered)
    assert (first.rule, first.trigger, first.is_changed, first.seconds) == ("*", "miss", None, 0.5)
    assert first.cpu_seconds > 0
    assert site.isr.refresh("/a") is False
    again = last(site, Rendered)
    assert (again.trigger, again.is_changed) == ("refresh", False)
    origin.on("/a", answer(b"another"))
    site.isr.refresh("/a")
    assert last(site, Rendered).is_changed is True
    assert site.isr._counts.totals().renders[("*", "refresh", "stored")].unchanged == 1


def test_a_render_begins_and_ends_whatever_happens(make_site: MakeSite, origin: Origin) -> None:
    origin.on("/bad", failing(RuntimeError("no")))
    site = make_site(revalidate=60)
    with pytest.raises(RuntimeError):
        site.visit("/bad")
    failed = last(site, RenderFailed)
    assert (failed.rule, failed.trigger, failed.reason) == ("*", "miss", "exception")
    assert len(site.happened(RenderStarted)) == len(site.happened(RenderEnded)) == 1
    assert site.isr._counts.totals().in_progress == ()


def test_a_prerender_is_a_trigger_of_its_own(make_site: MakeSite) -> None:
    site = make_site({"/": Rule(60, paths=["/"])})
    client = SiteClient(site.isr, Origin_("https", "example.org", ""))
    client.get(client.page_at("/"))
    assert {event.trigger for event in site.happened(Rendered)} == {"prerender"}
