"""``python -m cluster load``: its report matches the events."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.live.support.command import Command

#: A page that is slow to render, and stale after a second.
SLOW_PAGE = {"BLOG_SLOW": "0.2", "BLOG_REVALIDATE": "1", "BLOG_TIMEOUT": "3"}


def test_a_page_is_rendered_once_in_each_window_of_a_load(tmp_path: Path) -> None:
    command = Command(tmp_path, **SLOW_PAGE)
    with command.running():
        run = command.run("load", "--seconds", "5", "--connections", "8", "--path", "/stats", "--rate", "200", "--json")
        assert run.returncode == 0, run.stdout + run.stderr
        report = json.loads(run.stdout)
        assert report["requests"] > 100
        assert sum(report["verdicts"].values()) == sum(report["instances"].values()) == report["requests"]
        assert {"HIT", "STALE"} <= set(report["verdicts"]) <= {"HIT", "STALE", "MISS"}
        assert set(report["instances"]) == {"instance-1", "instance-2"}
        assert report["statuses"] == {"200": report["requests"]}
        assert report["renders"]["per_window"] == report["renders"]["most_in_one"] == 1
        assert report["renders"]["windows"] >= 3
        latency = list(report["latency_ms"].values())
        assert latency == sorted(latency)


def test_what_is_done_from_another_terminal_is_in_the_report_and_in_the_plot(tmp_path: Path) -> None:
    command = Command(tmp_path, **SLOW_PAGE)
    plot = tmp_path / "plot.svg"
    with command.running(), ThreadPoolExecutor(1) as terminal:
        load = terminal.submit(
            command.run, "load", "--seconds", "5", "--connections", "4", "--rate", "100", "--plot", str(plot)
        )
        time.sleep(1.5)
        command.done("kill", "instance-2")
        command.done("flush", "node-1")
        run = load.result()
        # Visitors do not notice a dead instance: no answer is an error.
        assert run.returncode == 0, run.stdout + run.stderr
    assert "kill instance-2 for " in run.stdout
    assert "flush node-1" in run.stdout
    words = {text.text for text in ElementTree.parse(plot).iter("{http://www.w3.org/2000/svg}text")}
    assert {"examples.blog_flask:app", "kill", "instance-2", "flush", "node-1", "HIT", "p99", "renders"} <= words


def test_a_load_that_nobody_answers_exits_with_1(tmp_path: Path) -> None:
    command = Command(tmp_path)
    with command.running():
        for instance in ("instance-1", "instance-2"):
            command.done("kill", instance)
        run = command.run("load", "--seconds", "1", "--connections", "2", "--rate", "50", "--path", "/about")
        assert run.returncode == 1
        assert "502 for /about by balancer" in run.stdout
        run = command.run("load", "--seconds", "1")
        assert (run.returncode, run.stderr) == (1, "the start page answers 502: name pages with --path\n")
