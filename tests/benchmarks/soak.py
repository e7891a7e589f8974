"""A server under load for minutes or hours: its memory, its descriptors and its threads do not grow.

``python -m tests.benchmarks soak --minutes 30``. Visitors ask for known pages, which are due twice a second, and for
new URLs, 404s, failing and private pages; some of them POST. Another process invalidates tags. The worker is
``wsgi_isr.gunicorn.Worker``, with renderer processes. Figures are sampled, and judged by their slope over the second
half: in the first half the caches fill.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import logging
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.load import HOST
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table
from tests.benchmarks.servers import RENDERING, Server, gunicorn, need
from tests.benchmarks.soaked import KNOWN, TAG
from tests.live.support.waiting import until
from wsgi_isr import invalidate


class Size(NamedTuple):
    """The seconds of load, and the seconds between two samples."""

    seconds: float
    interval: float


FULL, QUICK = Size(60, 0.5), Size(1.5, 0.1)
#: Visitors at once, known pages, and seconds between two invalidations.
VISITORS, PAGES, INVALIDATING = 4, 50, 0.1
STORE = "sqlite:///{}/pages.db?max_bytes=4194304"
#: Growth over the second half: MiB for each process, and descriptors or threads.
MEMORY, COUNT = 2, 1
MIB = 1024 * 1024
WORKER, RENDERER = "worker", "renderer"
#: The run says nothing without each of these answers.
NEEDED = {"HIT", "MISS", "STALE", "BYPASS", "invalidated"}
KINDS = {"resident memory": "MiB", "descriptors": "open", "threads": "running"}


def with_minutes(minutes: float) -> Size:
    """Return the size of a run of so many minutes, with some hundred samples."""
    return Size(60 * minutes, max(FULL.interval, minutes / 10))


def run(size: Size) -> Report:
    if sys.platform != "linux":
        raise CannotRun("the figures of a process are read from /proc: run this on Linux")
    need("gunicorn")
    # Warnings of the first invalidations are expected: no page has their tags yet.
    logging.getLogger("wsgi_isr").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as name:
        store = STORE.format(name)
        # A renderer that is replaced would hide what it loses.
        env = {"WSGI_ISR_STORE": store, "WSGI_ISR_DRAIN_TIMEOUT": "1", "WSGI_ISR_MAX_RENDERS": "1000000000"}
        app = "tests.benchmarks.soaked:application"
        with gunicorn(app, "wsgi_isr.gunicorn.Worker", env, Path(name, "log"), RENDERING) as server:
            (renderer,) = until(server.process.renderers, "its renderer")
            pids = {WORKER: server.worker, RENDERER: renderer}
            with _visited(server, store) as seen:
                samples = _sampled(pids, size)
                until(lambda: seen.keys() >= NEEDED, f"answers of each kind, {NEEDED}")
            still = {WORKER: server.process.workers(), RENDERER: server.process.renderers()}
    if still != {what: [pid] for what, pid in pids.items()}:
        raise AssertionError(f"a process has ended: {pids} became {still}")
    return _report(size, samples, seen)


class Sample(NamedTuple):
    """The figures of one process at one time, in the order of :data:`KINDS`."""

    memory: float
    descriptors: float
    threads: float


def _sampled(pids: dict[str, int], size: Size) -> dict[str, list[Sample]]:
    """Return the samples of each process."""
    samples: dict[str, list[Sample]] = {what: [] for what in pids}
    began = time.monotonic()
    for number in itertools.count(1):
        for what, pid in pids.items():
            samples[what].append(_look_at(pid))
        if time.monotonic() > began + size.seconds:
            return samples
        time.sleep(max(0.0, began + number * size.interval - time.monotonic()))
    raise AssertionError("unreachable")


def _look_at(pid: int) -> Sample:
    process = Path("/proc", str(pid))
    pages = int(process.joinpath("statm").read_text().split()[1])
    threads = len(list(process.joinpath("task").iterdir()))
    return Sample(pages * os.sysconf("SC_PAGE_SIZE") / MIB, len(os.listdir(process / "fd")), threads)


# Load ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _visited(server: Server, store: str) -> Iterator[Counter[str]]:
    """Send visitors and invalidations until the block ends. The counter has the answers by their ``X-ISR``.

    :raises AssertionError: a visitor or an invalidation failed.
    """
    over, seen, problems = threading.Event(), Counter[str](), list[BaseException]()

    def guarded(work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            problems.append(error)

    threads = [
        threading.Thread(target=guarded, args=(_visit, server.port, number, over, seen)) for number in range(VISITORS)
    ]
    threads.append(threading.Thread(target=guarded, args=(_invalidate, store, over, seen)))
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if problems:
        raise AssertionError(f"{len(problems)} clients failed: {problems[0]!r}")


def _visit(port: int, number: int, over: threading.Event, seen: Counter[str]) -> None:
    dice = random.Random(number)
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=20)) as connection:
        while not over.is_set():
            method, path = _any(dice)
            connection.request(method, path, headers={"Cookie": f"_ga={dice.random()}"} if dice.random() < 0.1 else {})
            response = connection.getresponse()
            response.read()
            expected = 503 if path.startswith("/broken/") else 500
            assert response.status <= expected, f"{method} {path}: {response.status}"
            seen[response.headers.get("X-ISR", "none")] += 1


def _any(dice: random.Random) -> tuple[str, str]:
    """Return method and path of a request: for a known page, for one that is asked for once, or a hostile one."""
    kind = dice.random()
    known = KNOWN % dice.randrange(PAGES)
    if kind < 0.01:
        return "POST", known
    if kind < 0.7:
        return "GET", known
    name = f"{dice.getrandbits(64):x}"
    places = ("new", "missing", "private", "new/" + "deep/" * 20)
    return "GET", f"/broken/{name}" if kind < 0.702 else f"/{dice.choice(places)}/{name}"


def _invalidate(store: str, over: threading.Event, seen: Counter[str]) -> None:
    dice = random.Random(0)
    while not over.wait(INVALIDATING):
        invalidate(tags=[TAG % dice.randrange(PAGES)], store=store)
        seen["invalidated"] += 1


# The verdict -----------------------------------------------------------------------------------------


def growth(values: Sequence[float]) -> float:
    """Return the growth from the first to the last value, by the median of the slopes (Theil, 1950; Sen, 1968)."""
    slopes = [(values[b] - values[a]) / (b - a) for a, b in itertools.combinations(range(len(values)), 2)]
    return statistics.median(slopes) * (len(values) - 1)


def _report(size: Size, samples: dict[str, list[Sample]], seen: Counter[str]) -> Report:
    report = Report()
    for index, (kind, unit) in enumerate(KINDS.items()):
        rows = []
        for what, figures in samples.items():
            values = [figure[index] for figure in figures]
            half = len(values) // 2
            rows += [Row(f"{what}, first half", values[:half]), Row(f"{what}, second half", values[half:])]
            limit = COUNT if index else MEMORY
            text = f"{what}: {kind}, growth over the second half ({unit})"
            report.budgets.append(Budget(text, growth(values[half:]), limit))
        report.tables.append(
            Table(f"{kind} over {size.seconds / 60:.3g} minutes", unit, rows, rows[0].label, 1, _of_medians)
        )
    words = ", ".join(f"{label} {count:,}" for label, count in sorted(seen.items()))
    report.notes.append(f"answers: {words}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return report


def _of_medians(over: Row, under: Row) -> float:
    """Return the ratio of the medians: the halves need not have as many samples."""
    return over.median / under.median
