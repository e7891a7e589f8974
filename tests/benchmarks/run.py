"""The benchmarks: ``python tests/benchmarks/run.py [NAME ...] [--json FILE]``; all of them without a name.

Exit code: 0, every budget is met; 1, one is missed; 2, something could not be run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]

#: Name to module. Each has ``run() -> Report``.
BENCHMARKS = {
    "hit": "hit",
    "hit-profile": "hit_profile",
    "hotpath": "hotpath",
    "coherence": "coherence",
    "invalidate": "invalidation",
    "tags": "tags",
    "gunicorn": "under_gunicorn",
    "visitors": "visitors",
    "node-down": "node_down",
    "import": "import_time",
    "memory": "memory",
}
#: Seconds after which a benchmark is given up. Each should take less than 30.
PATIENCE = 120
ENDING = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py", description="Budgets, measured side by side, as ratios.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    # What was started is ended by `with` and `finally`, so a polite signal has to reach them, once.
    for number in ENDING:
        signal.signal(number, _exit)
    names = list(dict.fromkeys(options.names)) or list(BENCHMARKS)
    if len(names) > 1:
        print(machine(), flush=True)
        outcomes = [_in_own_process(name) for name in names]
    else:
        outcomes = [_run(names[0])]
    if options.json:
        results = {outcome["name"]: outcome for outcome in outcomes}
        options.json.write_text(json.dumps({"machine": machine(), "benchmarks": results}, indent=2) + "\n")
    missed = [budget for outcome in outcomes for budget in outcome.get("budgets", ()) if not budget["met"]]
    unable = [outcome["name"] for outcome in outcomes if "error" in outcome]
    if len(names) > 1:
        met = sum(len(outcome.get("budgets", ())) for outcome in outcomes) - len(missed)
        print(f"\n{met} budgets met, {len(missed)} missed" + (f"; could not run: {', '.join(unable)}" * bool(unable)))
    return 1 if missed else 2 if unable else 0


def machine() -> str:
    """One line on where these figures are from."""
    parts = [f"{name} {version(name)}" for name in ("werkzeug", "flask", "flask-caching", "django") if _has(name)]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join([f"{python} on {os.cpu_count()} cores ({platform.machine()})", *parts])


def _run(name: str) -> dict[str, Any]:
    from tests.benchmarks.report import CannotRun

    began = time.monotonic()
    try:
        report = import_module(f"tests.benchmarks.{BENCHMARKS[name]}").run()
    except CannotRun as error:
        print(f"{name}: {error}", file=sys.stderr)
        return {"name": name, "error": str(error)}
    took = time.monotonic() - began
    print(f"\n== {name} ({took:.0f} s)\n\n{report.text()}", flush=True)
    return {"name": name, "seconds": took, **report.to_json()}


def _in_own_process(name: str) -> dict[str, Any]:
    """Each in a fresh interpreter: what one imports, allocates or starts does not touch the next."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        child = subprocess.Popen([sys.executable, __file__, name, "--json", str(file)])
        try:
            code = child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        if not file.exists():
            problem = f"gave up after {PATIENCE} s" if code is None else f"ended with exit code {code}"
            print(f"{name}: {problem}", file=sys.stderr)
            return {"name": name, "error": problem}
        outcome: dict[str, Any] = json.loads(file.read_text())["benchmarks"][name]
        return outcome


def _has(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except ImportError:
        return False


def _exit(number: int, frame: object) -> NoReturn:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    # The script's own folder is not to be searched: the modules in it are named after what they measure.
    sys.path[0] = str(ROOT)
    raise SystemExit(main())
