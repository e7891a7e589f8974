"""The text for Prometheus: what promtool says about it, and which series exist from the start."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wsgi_isr.errors import ConfigError
from wsgi_isr.events import Rendered, Served
from wsgi_isr.observe import prometheus
from wsgi_isr.observe.counts import Counts
from wsgi_isr.observe.prometheus import METRICS, exposition
from wsgi_isr.observe.totals import Totals

ROOT = Path(__file__).parents[2]


@pytest.fixture
def counts() -> Counts:
    made = Counts(["/", '/<path:page>"\\'])
    made.watch(lambda: {"evictions": 1, "local_bytes": 5, "nodes": {"10.0.0.1:11211": True}, "journal_pending": 2})
    return made


def lines(totals: Totals) -> list[str]:
    return exposition(totals).decode().splitlines()


def test_promtool_finds_no_fault(counts: Counts) -> None:
    counts.count(Served("p", "STALE", rule="/", cause="time", overdue=5.0, lock="waited", seconds=1.0))
    counts.count(Rendered("p", 0.5, True, rule="/", trigger="time"))
    counts.operated("10.0.0.1:11211", "get", 0.001, True)
    text = exposition(counts.totals())
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_metric_is_there_even_without_counts() -> None:
    shown = set(re.findall(r"^# TYPE (\S+)", exposition(Totals()).decode(), re.MULTILINE))
    assert shown == {metric.full_name for metric in METRICS}


def test_the_series_of_each_rule_exist_from_the_start(counts: Counts) -> None:
    text = lines(counts.totals())
    assert 'wsgi_isr_requests_total{reason="",result="STALE",rule="/"} 0.0' in text
    assert 'wsgi_isr_renders_total{outcome="failed",rule="/",trigger="time"} 0.0' in text
    assert 'wsgi_isr_render_duration_seconds_count{rule="/"} 0.0' in text
    assert (
        'wsgi_isr_store_operation_duration_seconds_count{node="10.0.0.1:11211",outcome="failed",verb="get"} 0.0' in text
    )
    assert 'wsgi_isr_renderer_restarts_total{reason="hanging"} 0.0' in text
    assert 'wsgi_isr_invalidations_total{kind="tag",mode="expire",outcome="pending"} 0.0' in text


def test_values_are_those_of_the_totals(counts: Counts) -> None:
    counts.count(Rendered("p", 0.5, True, rule="/", trigger="time", cpu_seconds=0.25, is_changed=False))
    counts.count(Rendered("p", 3.0, True, rule="/", trigger="tag"))
    text = lines(counts.totals())
    assert 'wsgi_isr_render_duration_seconds_bucket{le="0.5",rule="/"} 1.0' in text
    assert 'wsgi_isr_render_duration_seconds_bucket{le="5",rule="/"} 2.0' in text
    assert 'wsgi_isr_render_duration_seconds_bucket{le="+Inf",rule="/"} 2.0' in text
    assert 'wsgi_isr_render_duration_seconds_sum{rule="/"} 3.5' in text
    assert 'wsgi_isr_render_cpu_seconds_total{rule="/"} 0.25' in text
    assert 'wsgi_isr_renders_unchanged_total{rule="/"} 1.0' in text
    assert 'wsgi_isr_store_node_up{node="10.0.0.1:11211"} 1.0' in text
    assert "wsgi_isr_local_cache_bytes 5.0" in text
    assert "wsgi_isr_local_cache_evictions_total 1.0" in text
    assert "wsgi_isr_journal_pending 2.0" in text


def test_without_the_extra_an_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"wsgi_isr\[prometheus\]"):
        exposition(Totals())


def test_the_page_of_the_reference_has_each_metric_with_its_labels() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(wsgi_isr_\w+)` \| (\w+) \| ([^|]*) \|", page, re.MULTILINE)
    known = [
        (metric.full_name, metric.kind, ", ".join(f"`{label}`" for label in metric.labels) or "none")
        for metric in METRICS
    ]
    assert [(name, kind, labels.strip()) for name, kind, labels in rows] == known


def test_names_in_dashboard_and_alerts_exist() -> None:
    deploy = ROOT / "cluster" / "deploy" / "prometheus"
    known = {metric.full_name for metric in METRICS}
    suffixes = r"(_bucket|_count|_sum)?"
    for name in ("alerts.yml", "dashboard.json", "alerts-test.yml"):
        for used in set(re.findall(r"wsgi_isr_\w+", (deploy / name).read_text("utf-8"))):
            plain = re.sub(suffixes + "$", "", used)
            assert used in known or plain in known, f"{used} in {name}"


def test_a_collector_is_not_registered_anywhere() -> None:
    from prometheus_client import REGISTRY

    before = list(REGISTRY.collect())
    exposition(Totals())
    assert [family.name for family in REGISTRY.collect()] == [family.name for family in before]
    assert prometheus.CONTENT_TYPE.startswith("text/plain")
