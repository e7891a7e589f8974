"""Requests per second under gunicorn: pages from L1 against a bare function that sends the same bytes.

Two gunicorns with one worker each, and a wrk at each, run all at once. Only one worker runs at a time (SIGSTOP,
SIGCONT), in turns of a twentieth of a second. The load of a shared machine changes within a second, by more than the
difference to be measured, and wrk cannot run for less. Requests are counted turn by turn, by the bytes that wrk has
read. The best tenth of the turns is compared, because other processes can only slow a turn down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tests.benchmarks import turns
from tests.benchmarks.load import need_wrk
from tests.benchmarks.report import Budget, Report
from tests.benchmarks.servers import need
from tests.benchmarks.turns import TURN


class Size(NamedTuple):
    """The extent: rounds of each worker class, and seconds of load in one round.

    The worker class that is compared with other servers most often gets the most rounds.

    :param is_judged: whether the machine runs nothing else, and has wrk.
    """

    rounds: Mapping[str, int]
    duration: int
    is_judged: bool


FULL = Size({"gthread": 4, "sync": 3, "gevent": 3}, 2, True)
QUICK = Size({"gthread": 1}, 1, False)
CONNECTIONS = 8


def run(size: Size) -> Report:
    if size.is_judged:
        need_wrk(size.duration)
    need("gunicorn", "gevent")
    report = Report(notes=[f"{CONNECTIONS} connections of one thread; gunicorn: 1 worker; turns of {TURN:g} s"])
    for worker_class, rounds in size.rounds.items():
        title = f"gunicorn, {worker_class} worker"
        pairs = turns.beside_bare(title, worker_class, worker_class, rounds, CONNECTIONS, size.duration)
        if size.is_judged:
            turns.check(pairs)
        report.tables.append(pairs.table)
        text = f"{worker_class}: of the bare function's requests per second"
        report.budgets.append(Budget(text, pairs.share, 0.95, at_least=True))
    return report
