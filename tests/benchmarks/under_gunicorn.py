"""Requests per second under gunicorn: pages from L1 against a bare function that sends the same bytes.

Two gunicorns with one worker each, and a wrk at each, run all at once. Only one worker runs at a time (SIGSTOP,
SIGCONT), in turns of a twentieth of a second. The load of a shared machine changes within a second, by more than the
difference to be measured, and wrk cannot run for less. Requests are counted turn by turn, by the bytes that wrk has
read. The best tenth of the turns is compared, because other processes can only slow a turn down.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import gunicorns, turns
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table, undisturbed
from tests.benchmarks.served import HEADERS_VARIABLE
from tests.benchmarks.turns import NONSENSE, TURN, Head, Server


class Size(NamedTuple):
    """The extent: rounds of each worker class, and seconds of load in one round.

    The worker class that the README recommends gets the most rounds.

    :param is_judged: whether the machine runs nothing else, and has wrk.
    """

    rounds: Mapping[str, int]
    duration: int
    is_judged: bool


FULL = Size({"gthread": 4, "sync": 3, "gevent": 3}, 2, True)
QUICK = Size({"gthread": 1}, 1, False)
#: The names in ``served.py``, and in the tables.
ISR, BARE = "isr", "same_bytes"
OURS, REFERENCE = "pages from L1", "bare function"
CONNECTIONS = 8


def run(size: Size) -> Report:
    if size.is_judged and not gunicorns.has_wrk(size.duration):
        raise CannotRun("wrk is missing; please install it (Debian: apt-get install wrk)")
    gunicorns.need_gunicorn()
    report = Report(notes=[f"{CONNECTIONS} connections of one thread; gunicorn: 1 worker; turns of {TURN:g} s"])
    for worker_class, rounds in size.rounds.items():
        if worker_class == "gevent" and find_spec("gevent") is None:
            continue
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(_server(ISR, worker_class, []))
            turns.fetch(ours, "MISS")
            head = turns.fetch(ours, "HIT")
            bare = stack.enter_context(_server(BARE, worker_class, head))
            if (other := turns.fetch(bare, "HIT")) != head:
                raise AssertionError(f"{worker_class}: the heads differ: {head} and {other}")
            pairs = turns.rounds(ours, bare, rounds, CONNECTIONS, size.duration)
            turns.fetch(ours, "HIT")
        rows = [Row(OURS, [pair[0] for pair in pairs]), Row(REFERENCE, [pair[1] for pair in pairs])]
        report.tables.append(
            Table(f"gunicorn, {worker_class} worker", "requests per second", rows, REFERENCE, 0, undisturbed)
        )
        if (share := undisturbed(*rows)) > NONSENSE and size.is_judged:
            raise CannotRun(
                f"{worker_class}: {share:.2f} of the bare function cannot be; repeat when nothing else runs"
            )
        text = f"{worker_class}: of the bare function's requests per second"
        report.budgets.append(Budget(text, share, 0.95, at_least=True))
    return report


# A server ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(app: str, worker_class: str, head: Head) -> Iterator[Server]:
    """Run a server until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        env = {HEADERS_VARIABLE: json.dumps(head)}
        with gunicorns.running(f"tests.benchmarks.served:{app}", worker_class, env, Path(folder, "log")) as gunicorn:
            yield Server(gunicorn.port, *gunicorn.workers())
