"""The report of a load, in figures and as a plot."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.load import plot
from cluster.load.generator import CUT, Samples, popularity
from cluster.load.plot import Plot, _ticks
from cluster.load.renders import Crowded, Render, Windows
from cluster.load.report import Bucket, Report, Spell, buckets, made_of, percentiles, spells
from cluster.supervisor.state import Directory, State, append
from wsgi_isr.pages.request_key import PageKey


def samples(*answers: tuple[float, float, int, str]) -> Samples:
    """Return samples of two pages, from 10.0 to 14.0 s: time, duration, status, verdict."""
    made = Samples(["/", "/about"], 10.0, 14.0)
    for number, (at, seconds, status, verdict) in enumerate(answers):
        error = f"{status} for /" if status >= 500 or not status else ""
        made.add(at, seconds, number % 2, status, verdict.encode(), b"instance-1", error)
    return made


MIXED = samples(
    *((10.5, 0.001, 200, "HIT"), (11.2, 0.002, 200, "HIT"), (11.4, 0.003, 200, "STALE")),
    *((11.6, 0.5, 200, "MISS"), (12.0, 0.004, 503, "no X-ISR"), (13.9, 0.1, 0, CUT)),
)
KILLED = Spell("kill", "instance-2", 11.0, 12.5)


ONE_EACH = Windows(4, 4, 1)
HOST = "127.0.0.1:8080"


def report(of: Samples = MIXED, windows: Windows | None = ONE_EACH) -> Report:
    return Report(of, 8, [Render(11.5, 0.4, "a", "instance-1", 1, True)], windows, [KILLED])


def test_a_report_counts_what_visitors_got() -> None:
    figures = report().as_json()
    assert figures["requests"] == 6
    assert figures["per_second"] == 1.5
    assert figures["verdicts"] == {"HIT": 2, "STALE": 1, "MISS": 1, "no X-ISR": 1, CUT: 1}
    assert figures["statuses"] == {"0": 1, "200": 4, "503": 1}
    assert figures["errors"] == {"503 for /": 1, "0 for /": 1}
    assert figures["renders"] == {
        "all": 1,
        "in_windows": 4,
        "windows": 4,
        "per_window": 1.0,
        "most_in_one": 1,
        "unexplained": [],
        "never_fresh": ["/", "/about"],
    }
    assert figures["faults"] == [{"what": "kill", "part": "instance-2", "began": 1.0, "ended": 2.5}]
    assert report().failed == 2
    json.dumps(figures)


def test_a_report_is_readable() -> None:
    said = str(report())
    assert "6 requests for 2 pages in 4.0 s by 8 connections: 1.5 per second" in said
    assert "verdicts          HIT 2 (33.3 %)" in said
    assert "statuses          200 4 (66.7 %), 503 1 (16.7 %), 0 1 (16.7 %)" in said
    assert "renders           4 in 4 windows: 1.00 in each" in said
    assert "at   1.0 s        kill instance-2 for 1.5 s" in said
    assert "error             503 for /, 1 times" in said


def test_a_report_says_what_it_does_not_know() -> None:
    assert "not wrapped in ISR" in str(report(windows=None))
    assert "no window began" in str(report(windows=Windows(0, 0, 0)))
    assert "3 at the most" in str(report(windows=Windows(5, 3, 3)))
    assert str(report(samples()))


MANY = Crowded("/about", 11.0, 12.0, 3)


def test_more_renders_than_one_in_a_window_are_a_failure_unless_something_was_noted_that_leads_to_it() -> None:
    explained = replace(report(windows=Windows(5, 3, 3)), crowded=[(MANY, ["flush node-1"])])
    assert (explained.failed, explained.unexplained) == (2, [])
    assert "3 of /about at 1.0 s: flush node-1" in str(explained)
    unexplained = replace(explained, crowded=[(MANY, [])])
    assert (unexplained.failed, unexplained.unexplained) == (3, [MANY])
    assert "3 of /about at 1.0 s: nothing was noted that explains it" in str(unexplained)
    assert unexplained.as_json()["renders"]["unexplained"] == [
        {"page": "/about", "began": 11.0, "ended": 12.0, "renders": 3}
    ]


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Directory]:
    """Return the directory of a cluster in which a page was rendered three times in its window."""
    directory = Directory(tmp_path)
    with directory.owned():
        directory.write(State(1, 2, "a:b", f"http://{HOST}", "memory://", True, ()))
        text = PageKey("http", HOST, "", "/about").text
        for at in (11.0, 11.5, 12.0):
            append(directory.renders, json.dumps(Render(at, 0.2, "isr2:two:p:1", "instance-1", 1, True, text, 60)))
        yield directory


def test_a_page_that_was_never_a_hit_has_windows(noted: Directory) -> None:
    missed = samples((10.5, 0.1, 200, "MISS"))
    missed.fresh.add("/about")
    found = made_of(noted, missed, 1, HOST)
    assert found.windows == Windows(3, 1, 3)
    assert found.failed == 1
    assert found.never_fresh == ["/"]
    assert made_of(noted, samples((10.5, 0.1, 200, "STALE")), 1, HOST).windows == Windows(3, 3, 1)


def test_a_load_is_reported_even_where_its_cluster_has_ended_meanwhile(noted: Directory) -> None:
    missed = samples((10.5, 0.1, 200, "MISS"))
    missed.fresh.add("/about")
    noted.forget()
    assert made_of(noted, missed, 1, HOST).windows == Windows(3, 1, 3)


def test_a_cause_is_one_that_was_noted_for_that_time(noted: Directory) -> None:
    missed = samples((10.5, 0.1, 200, "MISS"))
    missed.fresh.add("/about")
    append(noted.events, json.dumps(event(1.0, "flush")))
    append(noted.events, json.dumps(event(13.0, "kill")))
    assert made_of(noted, missed, 1, HOST).failed == 1
    append(noted.events, json.dumps(event(11.2, "flush", "node-2")))
    append(noted.invalidations, json.dumps([11.3, "purge", []]))
    ((_, causes),) = made_of(noted, missed, 1, HOST).crowded
    assert causes == ["flush node-2", "invalidated"]


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles(range(1, 1001)) == {"p50": 501, "p90": 901, "p99": 991, "p99.9": 1000, "max": 1000}
    assert percentiles([3.0]) == dict.fromkeys(["p50", "p90", "p99", "p99.9", "max"], 3.0)
    assert percentiles([]) == {}


def test_buckets_cover_all_of_the_time_even_where_nobody_was_answered() -> None:
    found = buckets(MIXED, 1.0)
    assert [bucket.began for bucket in found] == [10.0, 11.0, 12.0, 13.0]
    assert [sum(bucket.verdicts.values()) for bucket in found] == [1, 3, 1, 1]
    assert found[2].verdicts["5xx"] == 1
    assert [sum(bucket.verdicts.values()) for bucket in buckets(samples((10.1, 0.1, 200, "HIT")), 1.0)] == [1, 0, 0, 0]


def event(at: float, what: str, part: str = "node-1") -> dict[str, object]:
    return {"at": at, "what": what, "part": part, "began": at - 0.1}


def test_what_was_done_lasts_until_it_was_undone() -> None:
    events = [event(11, "kill"), event(12, "pause", "node-2"), event(13, "restart"), event(13.5, "resume", "node-2")]
    assert spells(events, 10, 20) == [
        Spell("kill", "node-1", 10.9, 13),
        Spell("pause", "node-2", 11.9, 13.5),
    ]


def test_what_was_never_undone_lasts_to_the_end_and_what_began_before_from_the_beginning() -> None:
    assert spells([event(5, "cut"), event(15, "kill", "node-2")], 10, 20) == [
        Spell("cut", "node-1", 10, 20),
        Spell("kill", "node-2", 14.9, 20),
    ]


def test_what_happens_at_once_is_a_moment_and_what_was_before_is_not_shown() -> None:
    events = [event(5, "flush"), event(12, "flush"), event(13, "heal"), event(14, "restart")]
    assert spells(events, 10, 20) == [Spell("flush", "node-1", 11.9, 12), Spell("restart", "node-1", 13.9, 14)]


def test_the_first_page_is_the_most_popular() -> None:
    assert popularity(3) == pytest.approx([1, 1.5, 1.8333], abs=1e-3)


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(0.0, [0, 1]), (1.0, [0, 0.5, 1]), (4711.0, [0, 2000, 4000, 6000]), (38.0, [0, 10, 20, 30, 40])],
)
def test_ticks_are_round_and_reach_beyond_the_highest_value(highest: float, expected: list[float]) -> None:
    assert _ticks(highest) == pytest.approx(expected)


def texts(svg: str) -> list[str]:
    """Return the texts in a plot, which has to be well-formed XML."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_plot_shows_verdicts_latency_renders_and_what_was_done() -> None:
    svg = plot.of_load(report(), "shop & co:app")
    said = texts(svg)
    assert said[0] == "shop & co:app"
    for expected in ("HIT", "STALE", "MISS", "5xx", CUT, "p50", "p99", "instance-2", "kill", "renders", "4 s"):
        assert expected in said
    assert not any(re.search(r"\b(nan|inf)\b", value) for value in re.findall(r'"([^"]*)"', svg))


def test_a_plot_marks_broken_promises() -> None:
    bucket = Bucket(0.0, {"HIT": 3}, 0.001, 0.002)
    svg = Plot("chaos", [], 0.0, 1.0, [bucket], [], marks=[(0.5, "too <old>")]).svg()
    assert "broken promises" in texts(svg)
    assert "too &lt;old&gt;" in svg


def test_a_plot_of_nothing_is_a_plot() -> None:
    assert texts(Plot("nothing", [], 5.0, 5.0, [], []).svg())


def test_a_plot_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot be written: No such file"):
        plot.write("<svg/>", tmp_path / "nowhere" / "plot.svg")


def test_a_png_needs_somebody_to_draw_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "CHROMIUM", ("no-such-browser",))
    with pytest.raises(ClusterError, match=r"name a \.svg file, or apt-get install chromium"):
        plot.write("<svg/>", tmp_path / "plot.png")
