"""The time of a hit by function: the calls below ``ISR.__call__``, as a tree."""

from __future__ import annotations

import contextlib
import cProfile
import pstats
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks import paths
from tests.benchmarks.measure import Batch, interleaved, wsgi
from tests.benchmarks.report import Report, Table


class Size(NamedTuple):
    """The extent: requests under the profiler, repeats, and rounds without the profiler."""

    requests: int = 1000
    tries: int = 8
    rounds: int = 40


FULL, QUICK = Size(), Size(requests=100, tries=1, rounds=2)
#: The smallest share of a request for a call to be shown, and the number of levels.
SHARE = 0.03
DEPTH = 4
PREPARED = "hit, prepared"

#: A function as pstats names it: file, line and name.
Function = tuple[str, int, str]
#: The data of pstats by function: calls, own and cumulative seconds, and the same by caller.
Stats = dict[Function, Any]


def run(size: Size) -> Report:
    with contextlib.ExitStack() as stack:
        ways = {
            PREPARED: paths.prepared(),
            "hit, its second is over": paths.ticking(),
            "hit, never prepared": paths.unprepared(1),
            "stale, rendered here": stack.enter_context(paths.stale("memory://", rendered_here=True)),
        }
        batches = {label: wsgi(app, environ) for label, (app, environ, _) in ways.items()}
        rows = interleaved(batches, size.rounds)
        notes = []
        for label, batch in batches.items():
            # The run that was disturbed least: the profiler uses wall clock time.
            best = min(
                (_profiled(batch, size.requests) for _ in range(size.tries)), key=lambda stats: stats[_top(stats)][3]
            )
            notes.append(_tree(label, best, size.requests))
        for app, environ, word in ways.values():
            paths.prove(app, environ, word)
    notes.append("The profiler counts calls truly and weighs small ones too heavily: compare shares, do not add up.")
    return Report([Table("without the profiler", "us of CPU per request", rows, PREPARED)], notes=notes)


def _profiled(batch: Batch, requests: int) -> Stats:
    profile = cProfile.Profile()
    profile.enable()
    batch(requests)
    profile.disable()
    stats: Stats = vars(pstats.Stats(profile))["stats"]
    return stats


def _top(stats: Stats) -> Function:
    return next(function for function in stats if function[2] == "__call__" and function[0].endswith("isr.py"))


def _tree(label: str, stats: Stats, requests: int) -> str:
    below: dict[Function, dict[Function, tuple[int, float]]] = defaultdict(dict)
    for function, (_, _, _, _, callers) in stats.items():
        for caller, (count, _, _, seconds) in callers.items():
            below[caller][function] = count, seconds
    top = _top(stats)
    _, _, alone, whole, _ = stats[top]
    lines = [f"{label}\n   share   calls", f"  {1:6.1%}  {1:6.2f}  __call__ (alone {alone / whole:.1%})"]

    def show(function: Function, depth: int, path: tuple[Function, ...]) -> None:
        children = sorted(below[function].items(), key=lambda item: item[1][1], reverse=True)
        for child, (count, seconds) in children:
            if seconds >= SHARE * whole and child not in path:
                lines.append(f"  {seconds / whole:6.1%}  {count / requests:6.2f}  {'  ' * depth}{_name(child)}")
                if depth < DEPTH:
                    show(child, depth + 1, (*path, child))

    show(top, 1, (top,))
    return "\n".join(lines) + "\n"


def _name(function: Function) -> str:
    file, line, name = function
    return f"{name} ({Path(file).name}:{line})" if line else name.strip("<>")
