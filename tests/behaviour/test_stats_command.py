"""``wsgi-isr stats``: the history of all instances, or the running counts of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wsgi_isr.commands import stats
from wsgi_isr.commands.main import main
from wsgi_isr.observe.history import History, Instance
from wsgi_isr.observe.totals import Durations, Renders, Totals
from wsgi_isr.stores import open_store

TOTALS = Totals(
    requests={
        ("/", "HIT", ""): 900,
        ("/", "STALE", "time"): 80,
        ("/", "MISS", ""): 20,
        ("/cart", "BYPASS", "cookie"): 500,
        ("/unused", "HIT", ""): 0,
    },
    renders={("/", "time", "stored"): Renders(10, 5.0, 1.0, 4), ("/", "time", "failed"): Renders(2, 1.0, 0.5)},
    store={("node-1", "get", "ok"): Durations(100, 0.1), ("node-1", "get", "failed"): Durations(1, 0.1)},
    nodes={"node-1": True, "node-2": False},
    journal_pending=3,
    processes=2,
)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/pages.db"


def write(url: str, *totals: Totals, kind: str = "instance") -> None:
    store = open_store(url)
    history, now = History(store, "default"), time.time()
    for number, each in enumerate(totals):
        history.write(Instance(f"id-{number}", f"host-{number}:7", kind, now - 100, now), each)
    store.close()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["stats", *arguments], catch_exceptions=False)


def test_the_table_has_the_ratio_by_rule_renders_nodes_and_instances(url: str) -> None:
    write(url, TOTALS, TOTALS)
    done = run("--store", url)
    assert done.exit_code == 0
    assert "requests   3,000; of the cacheable ones from the cache: 98.0 %" in done.stdout
    assert "renders    24, 0.500 s each; failed: 4; same as before: 8; in progress: 0" in done.stdout
    assert "in the journal: 3" in done.stdout
    assert "node-1: up; 202 operations" in done.stdout
    assert "node-2: DOWN" in done.stdout
    assert "host-0:7: seen" in done.stdout
    assert "host-1:7: seen" in done.stdout
    assert "not known: the current minute" in done.stdout
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("/ "))
    assert row.split()[:6] == ["/", "98.0", "%", "1,800", "160", "40"]
    assert "/unused" not in done.stdout


def test_json_has_the_same(url: str) -> None:
    write(url, TOTALS)
    data = json.loads(run("--store", url, "--json").stdout)
    assert data["hit_ratio"] == 0.98
    assert {"rule": "/", "result": "STALE", "reason": "time", "number": 80} in data["requests"]
    assert [node["up"] for node in data["nodes"]] == [True, False]
    assert [instance["alive"] for instance in data["instances"]] == [True]
    assert data["not_known"]


def test_processes_without_hooks_are_said_to_lose_a_minute(url: str) -> None:
    write(url, TOTALS, kind="process")
    assert "not known: the last minute of each process of a server without hooks" in run("--store", url).stdout


def test_an_empty_history_says_so(url: str) -> None:
    done = run("--store", url)
    assert done.exit_code == 0
    assert "no instance has written a record in 25 hours" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no store is known here"),
        (["--store", "memory://"], "is seen by no other process"),
        (["--store", "memcached://127.0.0.1:1?timeout=0.05"], "cannot be read"),
    ],
)
def test_a_store_that_has_no_history_is_an_error(
    arguments: list[str], words: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WSGI_ISR_STORE", raising=False)
    monkeypatch.delenv("WSGI_ISR_APP", raising=False)
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_here_adds_up_the_instances_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "folders_here", lambda: ["one", "two", "silent"])

    def ask(place: str) -> Totals:
        if place == "silent":
            raise ConnectionRefusedError
        return TOTALS

    monkeypatch.setattr(stats, "ask", ask)
    done = run("--here")
    assert "2 instances of this machine, since their start" in done.stdout
    assert "requests   3,000" in done.stdout
    assert "not known: the counts of 1 instances, which do not answer" in done.stdout


def test_here_without_an_instance_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "folders_here", list)
    done = run("--here")
    assert done.exit_code == 2
    assert "no instance of this user runs on this machine" in done.stderr


def test_metrics_are_those_of_the_instances_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "folders_here", lambda: ["one"])
    monkeypatch.setattr(stats, "ask", lambda place: TOTALS)
    done = run("--prometheus")
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=done.stdout, capture_output=True, text=True, timeout=60, check=False
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")
    assert 'wsgi_isr_requests_total{reason="time",result="STALE",rule="/"} 80.0' in done.stdout


def test_watch_prints_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "folders_here", lambda: ["one"])
    monkeypatch.setattr(stats, "ask", lambda place: TOTALS)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            sys.exit(0)

    monkeypatch.setattr(stats.time, "sleep", sleep)
    assert run("--here", "--watch").stdout.count("1 instances of this machine") == 3
    assert pauses == [stats.EVERY] * 3
