"""Visitors of a hot page while anonymous POSTs invalidate it: ``ISR`` with renderers or threads, and the bare app.

Three gunicorns with one worker each are loaded in turns; the order changes. A POST has a connection of its own and
comes when it is due, regardless of the answers to others. Each page shows the number of POSTs, so that a page older
than the last POST is noticed.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cluster.load.request import fetch
from tests.benchmarks.cores import cores
from tests.benchmarks.load import client_name, load
from tests.benchmarks.posted import COSTS, FOLDER_VARIABLE, Counts, shown_by
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table, ratio
from tests.benchmarks.servers import PLAIN, RENDERING, gunicorn, need
from tests.live.support.waiting import until


class Size(NamedTuple):
    """The extent: rounds, and seconds of load in one turn.

    :param is_judged: whether the machine runs nothing else, so that priorities count.
    """

    rounds: int = 4
    turn: float = 1
    is_judged: bool = True


FULL, QUICK = Size(), Size(rounds=1, turn=0.3, is_judged=False)
#: POSTs in a second, and the highest number of them in progress.
RATE, AT_ONCE = 100.0, 64
CONNECTIONS = 8
#: Below this part of the POSTs that should be sent in a turn, the load was another one. A busy bare app answers some of
#: them later.
SENT = 0.8
PROCESSES, THREADS, BARE = "ISR, renderer processes", "ISR, threads of the worker", "bare app"


class Server(NamedTuple):
    """A gunicorn with one worker, and the counts of its app."""

    port: int
    counts: Counts


class Sample(NamedTuple):
    """The figures of one turn, for each second of it."""

    requests: float
    renders: float
    sent: float
    answered: float


def run(size: Size) -> Report:
    need("gunicorn")
    if size.is_judged and (os.cpu_count() or 1) < 2:
        raise CannotRun("needs a second core: renderers are to have one that the worker does not")
    with contextlib.ExitStack() as stack:
        servers = {
            PROCESSES: stack.enter_context(_server("cached", "auto")),
            THREADS: stack.enter_context(_server("cached", "threads")),
            BARE: stack.enter_context(_server("bare", "threads")),
        }
        samples: dict[tuple[str, str], list[Sample]] = {(path, name): [] for path in COSTS for name in servers}
        for turn in range(size.rounds):
            for path in COSTS:
                for name, server in random.Random(turn).sample(list(servers.items()), len(servers)):
                    samples[path, name].append(_turn(server, path, size))
    return _report(samples, size)


def _report(samples: dict[tuple[str, str], list[Sample]], size: Size) -> Report:
    client = client_name(size.turn)
    report = Report(
        notes=[
            f"load: {client}, {CONNECTIONS} connections, and {RATE:g} POSTs in a second; gunicorn: 1 gthread worker; "
            f"turns of {size.turn:g} s"
        ]
    )
    for path, cost in COSTS.items():
        rates, renders = (
            [Row(name, [sample[which] for sample in samples[path, name]]) for name in (PROCESSES, THREADS, BARE)]
            for which in (0, 1)
        )
        kind = f"a page of {cost * 1000:g} ms"
        table = Table(f"visitors of {kind}", "requests per second", rates, BARE, 0)
        report.tables += [table, Table(f"renders of {kind}", "in a second", renders, BARE, 0)]
        for name in (PROCESSES, THREADS):
            share = ratio(table.row(name), table.row(BARE))
            text = f"{kind}, {name}: requests per second, of the bare app's"
            report.budgets.append(Budget(text, share, 1.0, at_least=True))
        posts = {
            name: [statistics.median(sample[which] for sample in samples[path, name]) for which in (2, 3)]
            for name in (PROCESSES, THREADS, BARE)
        }
        text = ", ".join(f"{sent:.0f} and {answered:.0f} ({name})" for name, (sent, answered) in posts.items())
        report.notes.append(f"{kind}, POSTs sent and answered in a second: {text}")
        if size.is_judged and min(sent for sent, _ in posts.values()) < SENT * RATE:
            raise CannotRun(f"{report.notes[-1]}, instead of {RATE:g}; repeat when less runs")
    return report


# A server ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(app: str, background: str) -> Iterator[Server]:
    """Run a server until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"STORE": f"sqlite:///{folder}/pages.db", "BACKGROUND": background, "DRAIN_TIMEOUT": "1"}
        env = {FOLDER_VARIABLE: folder, **{f"WSGI_ISR_{key}": each for key, each in options.items()}}
        program = PLAIN if app == "bare" else RENDERING
        log = Path(folder, "log")
        with gunicorn(f"tests.benchmarks.posted:{app}", "gthread", env, log, program) as server:
            yield Server(server.port, Counts(folder))


# A turn ------------------------------------------------------------------------------------------------------


def _turn(server: Server, path: str, size: Size) -> Sample:
    _see(server, path)
    with _posted_to(server, path) as sent:
        before, sent_before = _grown(server, path), len(sent)
        began = time.monotonic()
        figures = load(server.port, path, CONNECTIONS, size.turn, first=size.is_judged)
        # On a machine that is busy elsewhere, until something was invalidated.
        until(lambda: all(_grown(server, path, before)), f"a POST to {path}, and a render")
        took = time.monotonic() - began
        renders, posts = _grown(server, path, before)
        sent_meanwhile = len(sent) - sent_before
    _see(server, path)
    return Sample(figures.rate, renders / took, sent_meanwhile / took, posts / took)


def _grown(server: Server, path: str, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Return the numbers of renders and POSTs since ``before``."""
    return server.counts.of("renders", path) - before[0], server.counts.of("posts", path) - before[1]


def _see(server: Server, path: str) -> None:
    """Wait for a page that shows every POST.

    :raises AssertionError: there is none in 20 seconds.
    """
    posts = server.counts.of("posts", path)

    def sees() -> bool:
        answer = fetch(server.port, path)
        assert answer.status == 200, answer
        return shown_by(answer.body) == posts

    until(sees, f"{path} with {posts} POSTs")


@contextlib.contextmanager
def _posted_to(server: Server, path: str) -> Iterator[list[float]]:
    """Send POSTs at their rate until the block ends; the list gets the moment of each.

    :raises AssertionError: an answer was no redirect.
    """
    over, sent = threading.Event(), list[float]()

    def post() -> None:
        sent.append(time.monotonic())
        answer = fetch(server.port, path, method="POST")
        assert answer.status == 303, answer

    def go_on() -> None:
        os.sched_setaffinity(0, cores()[1])
        with ThreadPoolExecutor(AT_ONCE) as people:
            began, posts = time.monotonic(), []
            while not over.is_set():
                posts.append(people.submit(post))
                over.wait(began + len(posts) / RATE - time.monotonic())
            people.shutdown(cancel_futures=True)
            broken.extend(post.exception() for post in posts if not post.cancelled() and post.exception())

    broken: list[BaseException | None] = []
    thread = threading.Thread(target=go_on)
    thread.start()
    time.sleep(0.1)
    try:
        yield sent
    finally:
        over.set()
        thread.join()
    if broken:
        raise AssertionError(f"{len(broken)} POSTs failed: {broken[0]}")
