"""``python -m tests.faults.run``: long histories, one line for each fault and coherence.

Exit code 1 where a history has a violation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.support.broken import BREAK
from tests.faults.support.experiment import Plan, run
from tests.faults.support.faults import FAULTS


def main() -> int:
    """Make the histories, and print their counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.add_argument("--reads", type=int, default=20_000, help="in each history, at least (20000)")
    parser.add_argument("--invalidations", type=int, default=200, help="acknowledged in each, at least (200)")
    parser.add_argument("--coherence", type=float, action="append", help="seconds (0 and 0.1)")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="only this one (all)")
    parser.add_argument("--without", choices=BREAK, default="", help="a rule of the protocol that is not kept")
    parser.add_argument("--kind", choices=("memcached", "redis"), help="of the nodes (memcached; redis where needed)")
    arguments = parser.parse_args()
    plan = Plan(arguments.reads, arguments.invalidations, seconds=120 + arguments.reads / 20)
    violations = 0
    for fault in arguments.fault or FAULTS:
        for coherence in arguments.coherence or (0.0, 0.1):
            with tempfile.TemporaryDirectory() as directory:
                kind = arguments.kind or FAULTS[fault].kinds[0]
                outcome = run(Path(directory), FAULTS[fault], coherence, plan, arguments.without, kind)
            print(f"{fault}, coherence {coherence:g}: {outcome}", flush=True)
            for line in [*outcome.violations[:20], *outcome.complaints]:
                print(f"    {line}", flush=True)
            violations += len(outcome.violations) + len(outcome.complaints)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
