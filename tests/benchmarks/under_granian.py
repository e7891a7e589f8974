"""Requests per second under granian: pages from L1 against a bare function that sends the same bytes.

Two granians with one worker each are on one core, and a wrk for each on the other core. The workers take turns, as in
``under_gunicorn.py``.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.benchmarks import turns
from tests.benchmarks.load import need_wrk
from tests.benchmarks.report import Budget, Report
from tests.benchmarks.servers import need
from tests.benchmarks.turns import TURN


class Size(NamedTuple):
    """The extent: rounds, and seconds of load in one round.

    :param is_judged: whether the machine runs nothing else, and has wrk.
    """

    rounds: int
    duration: int
    is_judged: bool


FULL = Size(8, 2, True)
QUICK = Size(1, 1, False)
CONNECTIONS = 16


def run(size: Size) -> Report:
    if size.is_judged:
        need_wrk(size.duration)
    need("granian")
    title = "granian, 1 worker of 4 threads on a core"
    pairs = turns.beside_bare(title, "serve", "granian", size.rounds, CONNECTIONS, size.duration)
    if size.is_judged:
        turns.check(pairs)
    return Report(
        [pairs.table],
        [Budget("of the bare function's requests per second", pairs.share, 0.85, at_least=True)],
        [f"{CONNECTIONS} connections of one thread on another core; turns of {TURN:g} s"],
    )
