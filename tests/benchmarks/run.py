"""The benchmarks: ``python tests/benchmarks/run.py [NAME ...] [--quick] [--json FILE]``; all of them without a name.

All of them take :data:`MOST` seconds at most. A benchmark for which no time is left is one that could not run.

Exit code: 0, every budget is met; 1, a budget is missed, or a benchmark measured the wrong thing; 2, a benchmark could
not run. With ``--quick``, budgets are reported and not judged.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]

#: Name to module. Each has ``run(size) -> Report``, and the sizes ``FULL`` and ``QUICK``. Those with budgets
#: of the project come first, for a machine on which the time is not enough for all.
BENCHMARKS = {
    "hit": "hit",
    "servers": "server_table",
    "granian": "under_granian",
    "fetched": "fetched",
    "coherence": "coherence",
    "one-render": "one_render",
    "visitors": "visitors",
    "invalidate": "invalidation",
    "node-down": "node_down",
    "import": "import_time",
    "memory": "memory",
    "page-memory": "page_memory",
    "eviction": "eviction",
    "gunicorn": "under_gunicorn",
    "behind-nginx": "behind_nginx",
    "soak": "soak",
    "posts": "posts",
    "tags": "tags",
    "node-memory": "node_memory",
    "hotpath": "hotpath",
    "hit-profile": "hit_profile",
}
#: Seconds after which a benchmark is given up, and seconds for all of them.
PATIENCE, MOST = 240, 12 * 60
ENDING = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py", description="Budgets, measured side by side, as ratios.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="does it run, and measure the right thing? about a second each"
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="the length of the benchmark `soak`, alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")
    options = parser.parse_args(arguments)
    from tests.benchmarks.machine import load_average, machine, versions  # found only after the last lines of this file

    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    if options.minutes is not None and (options.names != ["soak"] or options.minutes <= 0):
        parser.error("--minutes is for `soak` alone, and positive: soak --minutes 30")
    # `with` and `finally` end the servers and nodes that were started, so a polite signal has to reach them, once.
    for number in ENDING:
        signal.signal(number, _exit)
    names = list(dict.fromkeys(options.names)) or list(BENCHMARKS)
    loads = [load_average()]
    if len(names) > 1:
        print(machine(), "; ".join(f"{name} {number}" for name, number in versions().items()), sep="\n", flush=True)
        over = time.monotonic() + MOST
        outcomes = [_in_own_process(name, options.quick, over) for name in names]
    else:
        outcomes = [_run(names[0], options.quick, options.minutes)]
    if options.json:
        results = {outcome["name"]: outcome for outcome in outcomes}
        loads.append(load_average())
        run = {"machine": machine(), "versions": versions(), "load": loads, "quick": options.quick}
        options.json.write_text(json.dumps({**run, "benchmarks": results}, indent=2) + "\n")
    code, summary = judged(outcomes, options.quick)
    if len(names) > 1:
        print(f"\n{summary}")
    return code


def judged(outcomes: list[dict[str, Any]], quick: bool) -> tuple[int, str]:
    """Return the exit code, and a line with its reason."""
    budgets = [budget for outcome in outcomes for budget in outcome.get("budgets", ())]
    missed = [] if quick else [budget for budget in budgets if not budget["met"]]
    wrong = [outcome["name"] for outcome in outcomes if "wrong" in outcome]
    unable = [outcome["name"] for outcome in outcomes if "error" in outcome]
    parts = [f"{len(budgets)} budgets not judged" if quick else f"{len(budgets) - len(missed)} budgets met"]
    parts += [] if quick else [f"{len(missed)} missed"]
    line = ", ".join(parts) + f"; measured something else: {', '.join(wrong)}" * bool(wrong)
    line += f"; could not run: {', '.join(unable)}" * bool(unable)
    return (1 if missed or wrong else 2 if unable else 0), line


def _run(name: str, quick: bool, minutes: float | None = None) -> dict[str, Any]:
    from tests.benchmarks.report import CannotRun

    began = time.monotonic()
    try:
        module = import_module(f"tests.benchmarks.{BENCHMARKS[name]}")
        size = module.QUICK if quick else module.FULL
        report = module.run(module.with_minutes(minutes) if minutes else size)
    except CannotRun as error:
        print(f"{name}: {error}", file=sys.stderr)
        return {"name": name, "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"name": name, "wrong": f"{type(error).__name__}: {error}"}
    took = time.monotonic() - began
    print(f"\n== {name} ({took:.0f} s)\n\n{report.text(is_judged=not quick)}", flush=True)
    return {"name": name, "seconds": took, **report.to_json()}


def _in_own_process(name: str, quick: bool, over: float) -> dict[str, Any]:
    """Run a benchmark in a fresh interpreter: imports, memory and processes do not affect the next one.

    :param over: the time of ``time.monotonic`` at which no benchmark may run any longer.
    """
    patience = min(PATIENCE, over - time.monotonic())
    if patience <= 0:
        problem = f"no time was left: all benchmarks may take {MOST} s"
        print(f"{name}: {problem}", file=sys.stderr)
        return {"name": name, "error": problem}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        child = subprocess.Popen([sys.executable, __file__, name, "--json", str(file), *["--quick"] * quick])
        try:
            code = child.wait(patience)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        if not file.exists():
            problem = f"gave up after {patience:.0f} s" if code is None else f"ended with exit code {code}"
            print(f"{name}: {problem}", file=sys.stderr)
            return {"name": name, "error": problem}
        outcome: dict[str, Any] = json.loads(file.read_text())["benchmarks"][name]
        return outcome


def _exit(number: int, frame: object) -> NoReturn:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    # The script's own folder must not be searched: names of its modules may hide other modules.
    sys.path[0] = str(ROOT)
    raise SystemExit(main())
