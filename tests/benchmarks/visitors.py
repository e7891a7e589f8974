"""Visitors of a hot page while CPU-bound pages are regenerated without a pause: by renderers, by threads, not at all.

Some gunicorns with one worker each are loaded in turns; the order changes. A client asks each time for the pages that
are due, so that one is always being rendered. The time for which that was true is measured. The worker has a core of
its own, and one is spare. wrk stands for visitors from elsewhere: it takes nearly half of the spare core, and goes
before the renderer there, where that is allowed.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster.load.request import fetch
from tests.benchmarks.cores import cores
from tests.benchmarks.load import client_name, load
from tests.benchmarks.regenerated import BUSY, FOLDER_VARIABLE, HOT, INTERVAL_VARIABLE, KEPT
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table, undisturbed
from tests.benchmarks.servers import RENDERING, gunicorn, need
from tests.live.support.waiting import until


class Size(NamedTuple):
    """The extent: rounds of each worker class, and seconds of load in one turn.

    :param intervals: further rows of the worker with an event loop, whose render threads are asked for the interpreter
        lock after so many seconds (:func:`sys.setswitchinterval`; Python's default is 0.005).
    :param is_judged: whether the machine runs nothing else, so that priorities and the number of renders count.
    """

    rounds: Mapping[str, int]
    turn: float
    intervals: Sequence[float]
    is_judged: bool


WORKER = "wsgi_isr.gunicorn.Worker"
FULL = Size({WORKER: 4, "gthread": 4, "sync": 4}, 1, (0.001, 0.0001), True)
QUICK = Size({WORKER: 1}, 0.3, (0.001,), False)
CONNECTIONS = 8
#: Seconds between two requests for a page that is due.
ASKING = 0.03
PROCESSES, THREADS, NONE = "renderer processes", "threads of the worker", "no regeneration"
#: Pages must be rendered for at least this part of the time to count as "without a pause".
BUSY_PART = 0.8


class Server(NamedTuple):
    """A gunicorn with one worker."""

    port: int
    folder: Path

    def made(self) -> int:
        """Return the number of rendered pages."""
        return len(self._lines())

    def _lines(self) -> list[str]:
        try:
            return (self.folder / "renders").read_text().splitlines()
        except FileNotFoundError:
            return []

    def computing(self, since: float, until: float) -> float:
        """Return the part of that time during which a page was being rendered."""
        spans = sorted(tuple(map(float, line.split())) for line in self._lines())
        covered, end = 0.0, since
        for began, ended in spans:
            begin, end_of = max(began, end), min(ended, until)
            if end_of > begin:
                covered, end = covered + end_of - begin, end_of
        return covered / (until - since)


class Sample(NamedTuple):
    """The figures of one turn."""

    rate: float
    p99: float
    computing: float


def run(size: Size) -> Report:
    need("gunicorn")
    if size.is_judged and (os.cpu_count() or 1) < 2:
        raise CannotRun("needs a second core: renderers are to have one that the worker does not")
    client = client_name(size.turn)
    report = Report(notes=[f"load: {client}, {CONNECTIONS} connections; gunicorn: 1 worker; turns of {size.turn:g} s"])
    for worker_class, rounds in size.rounds.items():
        with contextlib.ExitStack() as stack:
            servers = {
                PROCESSES: stack.enter_context(_server(worker_class, "auto")),
                THREADS: stack.enter_context(_server(worker_class, "threads")),
                NONE: stack.enter_context(_server(worker_class, "auto")),
            }
            for seconds in size.intervals if worker_class == WORKER else ():
                name = f"{THREADS}, {seconds * 1000:g} ms"
                servers[name] = stack.enter_context(_server(worker_class, "threads", seconds))
            for server in servers.values():
                for path in (HOT, *BUSY, *KEPT):
                    _fetch(server, path)
            samples: dict[str, list[Sample]] = {name: [] for name in servers}
            for turn in range(rounds):
                for name, server in random.Random(turn).sample(list(servers.items()), len(servers)):
                    samples[name].append(_turn(server, size, regenerating=name is not NONE))
        _add(report, worker_class, samples, size.is_judged)
    return report


def _add(report: Report, worker_class: str, samples: dict[str, list[Sample]], is_judged: bool) -> None:
    for name in (name for name in samples if name != NONE):
        part = statistics.median(sample.computing for sample in samples[name])
        report.notes.append(f"{worker_class}, {name}: a page was being rendered for {part:.0%} of the time")
        if is_judged and part < BUSY_PART:
            raise CannotRun(f"{worker_class}, {name}: rendering for only {part:.0%} of the time; repeat when less runs")
    rates = [Row(name, [sample.rate for sample in each]) for name, each in samples.items()]
    late = [Row(name, [sample.p99 * 1000 for sample in each]) for name, each in samples.items()]
    tables = (
        Table(f"visitors of a hot page, {worker_class} worker", "requests per second", rates, NONE, 0, undisturbed),
        Table(f"how long the slowest hundredth waits, {worker_class} worker", "ms, the 99th percentile", late, NONE, 1),
    )
    report.tables += tables
    rate, p99 = (table.compare(table.row(PROCESSES), table.row(NONE)) for table in tables)
    report.budgets.append(Budget(f"{worker_class}: requests per second, of those without", rate, 0.8, at_least=True))
    report.budgets.append(Budget(f"{worker_class}: times the 99th percentile without", p99, 2.5))


# A server ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(worker_class: str, background: str, interval: float = 0) -> Iterator[Server]:
    """Run a server until the block ends.

    :param interval: seconds; 0 for Python's default.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"STORE": f"sqlite:///{folder}/pages.db", "BACKGROUND": background, "DRAIN_TIMEOUT": "1"}
        env = {
            FOLDER_VARIABLE: name,
            INTERVAL_VARIABLE: str(interval or ""),
            **{f"WSGI_ISR_{key}": each for key, each in options.items()},
        }
        app = "tests.benchmarks.regenerated:application"
        with gunicorn(app, worker_class, env, folder / "log", RENDERING) as server:
            yield Server(server.port, folder)


def _fetch(server: Server, path: str) -> str:
    """Return the value of ``X-ISR``."""
    answer = fetch(server.port, path)
    assert answer.status == 200, answer
    return answer["X-ISR"]


# A turn ------------------------------------------------------------------------------------------------------


def _turn(server: Server, size: Size, regenerating: bool) -> Sample:
    # The requests are the same in each turn: the benchmark compares regeneration, not load.
    with _asked_for(server, BUSY if regenerating else KEPT):
        made = server.made()
        began = time.monotonic()
        rate, p99 = load(server.port, HOT, CONNECTIONS, size.turn, first=size.is_judged)
        ended = time.monotonic()
        if regenerating:
            until(lambda: server.made() > made, "a page that is regenerated")
    _settle(server)
    return Sample(rate, p99, server.computing(began, ended))


def _settle(server: Server) -> None:
    """Wait until the server renders nothing more, so that its load does not slow down the next one."""
    made = -1
    while made < (now := server.made()):
        made = now
        time.sleep(0.4)


@contextlib.contextmanager
def _asked_for(server: Server, paths: tuple[str, ...]) -> Iterator[None]:
    """Ask for these pages again and again during the block. Pages that are due come stale, at once."""
    over = threading.Event()

    def ask() -> None:
        os.sched_setaffinity(0, cores()[1])
        while not over.is_set():
            for path in paths:
                _fetch(server, path)
                over.wait(ASKING)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    try:
        yield
    finally:
        over.set()
        thread.join()
