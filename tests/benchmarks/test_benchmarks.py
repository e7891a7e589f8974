"""Each benchmark runs, and measures the right thing. ``make bench`` alone judges its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks import next_site, run, soak
from tests.benchmarks.report import Budget, CannotRun, Report
from tests.benchmarks.run import BENCHMARKS, ROOT

#: Seconds for one benchmark on a machine under load. It takes a few.
PATIENCE = 150


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_measures_what_it_says(name: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    # The tests' own variables would change the measured process.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHONWARN"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", name, "--json", str(file)],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    figures = json.loads(file.read_text())["benchmarks"][name]
    assert figures["tables"], done.stdout


def test_a_machine_without_npm_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotRun, match=r"^npm is missing; please install it \(Debian: apt-get install npm\)$"):
        next_site.build(tmp_path)


def test_an_npm_without_a_registry_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2; echo 'npm error more' >&2; exit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(CannotRun, match=r"^npm install failed: npm error code ENOTFOUND$"):
        next_site.build(tmp_path)


def test_growth_is_the_slope_that_one_outlier_does_not_change() -> None:
    assert soak.growth([5.0] * 20) == 0
    assert soak.growth([5.0] * 10 + [90.0] + [5.0] * 9) == 0
    assert soak.growth([float(number) for number in range(11)]) == 10


def test_minutes_are_for_the_soak_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["hit", "--minutes", "3"])
    assert "--minutes is for `soak` alone" in capsys.readouterr().err
    assert soak.with_minutes(30) == (1800, 3)


def test_a_benchmark_for_which_no_time_is_left_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run._in_own_process("hit", True, over=0)
    assert outcome == {"name": "hit", "error": "no time was left: all benchmarks may take 720 s"}
    assert "hit: no time was left" in capsys.readouterr().err


# The exit code -----------------------------------------------------------------------------------


def missing_its_budget(size: str) -> Report:
    return Report(budgets=[Budget(f"of {size}", 2, 1)])


def unable_to_run(size: str) -> Report:
    raise CannotRun("memcached is missing")


def measuring_something_else(size: str) -> Report:
    raise AssertionError("these were no hits")


@pytest.mark.parametrize(
    ("benchmark", "full", "quick"),
    [(missing_its_budget, 1, 0), (unable_to_run, 2, 2), (measuring_something_else, 1, 1)],
)
def test_the_exit_code_says_what_went_wrong(
    benchmark: Any, full: int, quick: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SimpleNamespace(run=benchmark, FULL="full", QUICK="quick")
    monkeypatch.setattr(run, "import_module", lambda name: module)
    codes = [run.judged([run._run("hit", is_quick)], is_quick)[0] for is_quick in (False, True)]
    assert codes == [full, quick]


def test_what_was_missed_weighs_more_than_what_could_not_be_run() -> None:
    missed = {"name": "hit", "budgets": [{"met": False}, {"met": True}]}
    unable = {"name": "tags", "error": "memcached is missing"}
    wrong = {"name": "import", "wrong": "AssertionError"}
    line = "1 budgets met, 1 missed; measured something else: import; could not run: tags"
    assert run.judged([missed, unable, wrong], False) == (1, line)
    assert run.judged([missed, unable], True) == (2, "2 budgets not judged; could not run: tags")
