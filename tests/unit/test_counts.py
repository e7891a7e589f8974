"""Counts: events become totals, with labels from closed sets alone."""

from __future__ import annotations

import random
import re
import string
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.events import (
    BackgroundFull,
    DataServed,
    Invalidated,
    LeaseLost,
    Rendered,
    RenderEnded,
    RenderFailed,
    RenderStarted,
    Served,
    StoreFailed,
)
from wsgi_isr.observe import counts
from wsgi_isr.observe.counts import MAX_RULES, OTHER, REASONS, RESULTS, Counts
from wsgi_isr.observe.totals import MAX_LABEL, InProgress, Totals

HEADERS = Path(__file__).parents[2] / "docs" / "reference" / "headers.md"


def counted(*events: Any, rules: Any = ("/", "/a")) -> Totals:
    """Return the totals of events, without the zeros of rules."""
    each = Counts(rules)
    for event in events:
        each.count(event)
    totals = each.totals()
    return Totals.combine(totals.since(Counts(rules).totals()), totals)


def test_answers_are_counted_by_rule_result_and_reason() -> None:
    totals = counted(
        Served("p", "HIT", rule="/"),
        Served("p", "HIT", rule="/"),
        Served("p", "STALE", rule="/", cause="time"),
        Served("p", "STALE", rule="/", cause="tag:tag:post:1"),
        Served("p", "BYPASS", reason="cookie", rule="/a"),
        Served("", "BYPASS", reason="method"),
    )
    assert totals.requests == {
        ("/", "HIT", ""): 2,
        ("/", "STALE", "time"): 1,
        ("/", "STALE", "tag"): 1,
        ("/a", "BYPASS", "cookie"): 1,
        ("none", "BYPASS", "method"): 1,
    }


def test_hits_of_prepared_responses_are_added_to_the_others() -> None:
    each = Counts(["/"])
    each.count(Served("p", "HIT", rule="/"))
    each.hits_of("/").number += 41
    assert each.totals().requests[("/", "HIT", "")] == 42


def test_every_rule_has_a_row_from_the_start() -> None:
    assert Counts(["/", "/a"]).totals().requests == {(rule, "HIT", ""): 0 for rule in ("/", "/a", OTHER)}


def test_past_200_rules_the_rest_is_other() -> None:
    each = Counts(f"/{number}" for number in range(10_000))
    for number in range(10_000):
        each.count(Served("p", "MISS", rule=f"/{number}"))
        each.hits_of(f"/{number}").number += 1
    requests = each.totals().requests
    assert len({rule for rule, _, _ in requests}) == MAX_RULES + 1
    assert requests[(OTHER, "MISS", "")] == requests[(OTHER, "HIT", "")] == 10_000 - MAX_RULES


def test_past_200_functions_the_rest_is_other() -> None:
    totals = counted(*(DataServed(f"shop.f{number}", "HIT") for number in range(10_000)))
    assert len(totals.data) == MAX_RULES + 1
    assert totals.data[(OTHER, "HIT")] == 10_000 - MAX_RULES


def test_renders_have_their_cost_and_whether_the_page_changed() -> None:
    totals = counted(
        Rendered("p", 0.5, True, rule="/", trigger="time", cpu_seconds=0.25, is_changed=False),
        Rendered("p", 1.5, True, rule="/", trigger="time", cpu_seconds=0.25, is_changed=True),
        Rendered("p", 1.0, True, rule="/", trigger="miss", refused=True),
        Rendered("p", 1.0, False, rule="/", trigger="miss"),
        RenderFailed("p", "/a", "timeout", 1.0, trigger="tag", seconds=2.0),
    )
    assert {labels: tuple(each[:4]) for labels, each in totals.renders.items()} == {
        ("/", "time", "stored"): (2, 2.0, 0.5, 1),
        ("/", "miss", "uncacheable"): (1, 1.0, 0.0, 0),
        ("/", "miss", "not-stored"): (1, 1.0, 0.0, 0),
        ("/a", "tag", "failed"): (1, 2.0, 0.0, 0),
    }


def test_calls_of_cached_functions_are_no_renders_of_pages() -> None:
    totals = counted(RenderStarted("d", "shop.f", "miss", is_data=True), Rendered("d", 0.5, True, is_data=True))
    assert (totals.renders, totals.running) == ({}, {})


def test_a_render_is_in_progress_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts.time, "time", lambda: 7.0)
    each = Counts(["/"])
    each.count(RenderStarted("p", "/", "tag"))
    assert each.totals().in_progress == (InProgress("/", "tag", 7.0),)
    assert each.totals().running == {("/",): 1}
    each.count(RenderEnded("p"))
    assert each.totals().in_progress == ()


def test_waits_and_overdue_pages_are_measured() -> None:
    totals = counted(
        Served("p", "MISS", rule="/", lock="held", seconds=0.5),
        Served("p", "HIT", rule="/", lock="none", seconds=0.5),
        Served("p", "STALE", rule="/", overdue=12.0),
    )
    assert (totals.waits[("/",)].number, totals.waits[("/",)].seconds) == (1, 0.5)
    assert (totals.overdue[("/",)].number, totals.overdue[("/",)].seconds) == (1, 12.0)


def test_invalidated_names_are_counted_by_what_became_of_them() -> None:
    totals = counted(
        Invalidated(("tag:a", "path:/x", "all"), "expire"),
        Invalidated(("tag:a", "tag:b"), "purge", ("tag:a",), "/journal"),
        Invalidated(("route:/",), "stale", ("route:/",)),
    )
    assert totals.invalidations == {
        ("tag", "expire", "delivered"): 1,
        ("path", "expire", "delivered"): 1,
        ("all", "expire", "delivered"): 1,
        ("tag", "purge", "pending"): 1,
        ("tag", "purge", "delivered"): 1,
        ("route", "stale", "undelivered"): 1,
    }


def test_the_rest_is_counted_by_name() -> None:
    totals = counted(BackgroundFull("p"), LeaseLost("p"), StoreFailed("get", "p", StoreUnavailable("n", "x")))
    assert totals.marks == {("background_rejected",): 1, ("leases_lost",): 1}


def hostile(draw: random.Random) -> str:
    return "".join(draw.choices(string.printable + "äß\0\ud800", k=draw.randrange(1, 300)))


def test_whatever_an_event_says_each_label_is_from_a_closed_set() -> None:
    draw = random.Random(7)
    each = Counts(["/", "/a"])
    for _ in range(500):
        text = hostile(draw)
        each.count(Served(text, text, reason=text, text=text, lock="held", rule=text, cause=text, overdue=1.0))
        each.count(Served(text, "BYPASS", reason=f"vary-{text}", rule="/"))
        each.count(Served(text, "MISS", reason=f"status-{text}", rule="/"))
        each.count(RenderStarted(text, text, text, text))
        each.count(Rendered(text, 1.0, True, text, rule=text, trigger=text))
        each.count(RenderFailed(text, text, text, 1.0, None, text, text))
        each.count(Invalidated((text, f"{text}:{text}"), text, (text,)))
        each.operated("node", text, 1.0, True)
    totals = each.totals()
    rules = {"/", "/a", OTHER}
    assert {rule for rule, _, _ in totals.requests} <= rules
    assert {result for _, result, _ in totals.requests} <= {*RESULTS, OTHER}
    assert {reason for _, _, reason in totals.requests} <= {*REASONS, OTHER}
    assert set(totals.renders) <= {(OTHER, OTHER, "stored"), (OTHER, OTHER, "failed")}
    assert set(totals.invalidations) <= {
        (kind, OTHER, outcome) for kind in (*counts.KINDS, OTHER) for outcome in counts.DELIVERIES
    }
    assert set(totals.store) == {("node", OTHER, "ok")}
    assert (set(totals.waits), set(totals.overdue)) == ({(OTHER,)}, {(OTHER,)})
    assert len(totals.requests) < 20


def test_every_reason_that_clients_see_is_a_label() -> None:
    table = HEADERS.read_text("utf-8").partition("| `detail` | because |")[2]
    cells = re.findall(r"^\| (`.+?) \|", table.partition("## ")[0], re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    families = {re.sub(r"-(NNN|NAME|any|429|500)$", "", name) for name in named} - {"detail"}
    assert len(families) > 30
    assert families <= REASONS


def test_labels_of_long_rules_are_cut() -> None:
    each = Counts(["/" + "a" * 500])
    each.count(Served("p", "MISS", rule="/" + "a" * 500))
    assert {len(rule) for rule, result, _ in each.totals().requests if result == "MISS"} == {MAX_LABEL}


def test_hits_are_counted_exactly_by_threads_without_a_lock() -> None:
    each = Counts(["/"])
    hits, before = each.hits_of("/"), sys.getswitchinterval()

    def hit() -> None:
        for _ in range(50_000):
            hits.number += 1

    threads = [threading.Thread(target=hit) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert each.totals().requests[("/", "HIT", "")] == 200_000


def test_a_child_begins_at_zero() -> None:
    each = Counts(["/"])
    each.hits_of("/").number += 5
    each.count(Served("p", "MISS", rule="/"))
    each.reset()
    assert each.totals().counts() == Counts(["/"]).totals().counts()


def test_an_app_that_begins_again_loses_no_eviction() -> None:
    each = Counts(["/"])
    each.watch(lambda: {"evictions": 3, "local_bytes": 10})
    assert each.totals().marks == {("evictions",): 3}
    each.watch(lambda: {"evictions": 1, "local_bytes": 5})
    assert each.totals().marks == {("evictions",): 4}
    assert each.totals().local_bytes == 5
