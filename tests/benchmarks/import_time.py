"""The time that ``import wsgi_isr`` takes, in fresh interpreters, against ``import werkzeug.wrappers``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from typing import NamedTuple

from tests.benchmarks.report import Budget, Report, Row, Table, ratio
from tests.benchmarks.run import ROOT


class Size(NamedTuple):
    """The number of interpreters that are timed and that are profiled, for each statement."""

    rounds: int = 25
    profiles: int = 7


FULL, QUICK = Size(), Size(rounds=1, profiles=1)
SHOWN = 15
OURS, REFERENCE = "wsgi_isr", "werkzeug.wrappers"
#: The usual import of an app. Putting the work off to this statement would gain nothing.
STATEMENTS = {OURS: "from wsgi_isr import ISR, Rule, wrap", REFERENCE: f"import {REFERENCE}"}

# Without `site` (-S): imports of the environment's .pth files would be free for both.
_PATH = [str(ROOT), *dict.fromkeys(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
# CPU time: an import does not wait once its files are in the page cache. On a busy machine the wall clock would measure
# other processes.
_TIMED = "import sys, time; sys.path[:0] = {path}; t = time.process_time(); {statement}; print(time.process_time() - t)"
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)")


def run(size: Size) -> Report:
    samples: dict[str, list[float]] = {label: [] for label in STATEMENTS}
    for turn in range(-1, size.rounds):
        for label in STATEMENTS:
            took = float(_interpreter(label)[0])
            if turn >= 0:  # the first run compiles
                samples[label].append(took * 1e3)
    rows = [Row(label, values) for label, values in samples.items()]
    table = Table("import, each in a fresh interpreter", "ms of CPU", rows, REFERENCE)
    times = ratio(table.row(OURS), table.row(REFERENCE))
    return Report([table], [Budget(f"times the import of {REFERENCE}", times, 1.5)], [_breakdown(size.profiles)])


def _interpreter(label: str, *options: str) -> tuple[str, str]:
    code = _TIMED.format(path=_PATH, statement=STATEMENTS[label])
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-I", "-S", *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=ROOT, timeout=60)
    return done.stdout, done.stderr


def _breakdown(profiles: int) -> str:
    """Return a note on the modules that only our import has: by their own time, and all by package."""
    ours, reference = (_own_times(label, profiles) for label in STATEMENTS)
    extra = {module: ms for module, ms in ours.items() if module not in reference}
    lines = [
        f"modules that {OURS} imports and {REFERENCE} does not (-X importtime, own ms without what they import):",
        *(f"  {extra[module]:6.2f}  {module}" for module in sorted(extra, key=extra.__getitem__, reverse=True)[:SHOWN]),
        f"  {sum(extra.values()):6.2f}  all {len(extra)} of them",
    ]
    packages: dict[str, float] = defaultdict(float)
    for module, ms in extra.items():
        top = module.partition(".")[0]
        packages[top if top in ("wsgi_isr", "werkzeug", "msgpack", "markupsafe") else "the standard library"] += ms
    lines.append("  of it: " + ", ".join(f"{name} {ms:.1f}" for name, ms in sorted(packages.items())))
    return "\n".join(lines)


def _own_times(label: str, profiles: int) -> dict[str, float]:
    """Return the milliseconds of each module alone, at its best: ``-X importtime`` uses wall clock time."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(profiles):
        for own, _cumulative, _indent, module in _LINE.findall(_interpreter(label, "-X", "importtime")[1]):
            found[module].append(int(own) / 1e3)
    return {module: min(times) for module, times in found.items()}
