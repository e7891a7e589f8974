"""Requests per second under granian: pages from L1 against a bare function that sends the same bytes.

Two granians with one worker each are on one core, and a wrk for each on the other core. The workers take turns, as in
``under_gunicorn.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import gunicorns, turns
from tests.benchmarks.cores import cores
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table, undisturbed
from tests.benchmarks.served import HEADERS_VARIABLE
from tests.benchmarks.turns import NONSENSE, TURN, Head, Server


class Size(NamedTuple):
    """The extent: rounds, and seconds of load in one round.

    :param is_judged: whether the machine runs nothing else, and has wrk.
    """

    rounds: int
    duration: int
    is_judged: bool


FULL = Size(8, 2, True)
QUICK = Size(1, 1, False)
OURS, REFERENCE = "pages from L1", "bare function"
CONNECTIONS = 16
#: Threads of the worker, and no renderers: no page becomes stale.
OPTIONS = ("--log-level", "warning", "--blocking-threads", "4")
#: granian as it comes.
PLAIN = ("-m", "granian", "--interface", "wsgi", "--no-ws")


def run(size: Size) -> Report:
    if size.is_judged and not gunicorns.has_wrk(size.duration):
        raise CannotRun("wrk is missing; please install it (Debian: apt-get install wrk)")
    if find_spec("granian") is None:
        raise CannotRun("granian is missing: pip install '.[dev]'")
    from tests.live.support.granian import PROGRAM

    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(_server("isr", PROGRAM, []))
        turns.fetch(ours, "MISS")
        head = turns.fetch(ours, "HIT")
        bare = stack.enter_context(_server("same_bytes", PLAIN, head))
        if (other := turns.fetch(bare, "HIT")) != head:
            raise AssertionError(f"the heads differ: {head} and {other}")
        with _on(cores()[1]):
            pairs = turns.rounds(ours, bare, size.rounds, CONNECTIONS, size.duration)
        turns.fetch(ours, "HIT")
    rows = [Row(OURS, [pair[0] for pair in pairs]), Row(REFERENCE, [pair[1] for pair in pairs])]
    if (share := undisturbed(*rows)) > NONSENSE and size.is_judged:
        raise CannotRun(f"{share:.2f} of the bare function cannot be; repeat when nothing else runs")
    return Report(
        [Table("granian, 1 worker of 4 threads on a core", "requests per second", rows, REFERENCE, 0, undisturbed)],
        [Budget("of the bare function's requests per second", share, 0.85, at_least=True)],
        [f"{CONNECTIONS} connections of one thread on another core; turns of {TURN:g} s"],
    )


@contextlib.contextmanager
def _server(app: str, program: Sequence[str], head: Head) -> Iterator[Server]:
    """Run a server on the core of workers until the block ends."""
    from tests.live.support.granian import Granian

    env = {HEADERS_VARIABLE: json.dumps(head)}
    target = f"tests.benchmarks.served:{app}"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        log = Path(folder, "log")
        with _on(cores()[0]):
            granian = stack.enter_context(
                Granian(log, env, target, workers=1, arguments=OPTIONS, program=program, is_asked=False)
            )
        yield Server(granian.port, *granian.workers())


@contextlib.contextmanager
def _on(some: set[int]) -> Iterator[None]:
    """Start the processes of the block on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, some)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
