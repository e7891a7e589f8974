"""Visitors of a hot page while other pages, which take computing, are regenerated without a pause: by renderer
processes, by threads of the worker, and not at all.

Three gunicorns with one worker each, loaded in turns; the order changes. Somebody asks each time for the pages that
are due, so that one is always being made, and the time for which that was true is measured. The worker has a core of
its own, and one is spare. Visitors come from elsewhere: wrk, which takes nearly half of the spare one, goes before the
renderer there, where that is allowed.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import SOMAXCONN, socket
from typing import NamedTuple

from tests.benchmarks.regenerated import BUSY, FOLDER_VARIABLE, HOT, KEPT, cores
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table, undisturbed
from tests.benchmarks.run import ROOT

HOST = "127.0.0.1"
#: Rounds of each worker class.
ROUNDS = {"gthread": 5, "sync": 5}
OPTIONS = {"gthread": ("--threads", "4")}
CONNECTIONS = 8
#: Seconds of load in one turn, and between two requests for a page that is due.
TURN, ASKING = 1, 0.03
PROCESSES, THREADS, NONE = "renderer processes", "threads of the worker", "no regeneration"
#: Below this part of the time somebody was computing, it was not "without a pause".
BUSY_PART = 0.8


class Server(NamedTuple):
    """A gunicorn with one worker."""

    port: int
    folder: Path

    def made(self) -> int:
        """How many pages were computed."""
        return len(self._lines())

    def _lines(self) -> list[str]:
        try:
            return (self.folder / "renders").read_text().splitlines()
        except FileNotFoundError:
            return []

    def computing(self, since: float, until: float) -> float:
        """For which part of that time a page was being made."""
        spans = sorted(tuple(map(float, line.split())) for line in self._lines())
        covered, end = 0.0, since
        for began, ended in spans:
            begin, end_of = max(began, end), min(ended, until)
            if end_of > begin:
                covered, end = covered + end_of - begin, end_of
        return covered / (until - since)


class Sample(NamedTuple):
    """One turn."""

    rate: float
    p99: float
    computing: float


def run() -> Report:
    try:
        import gunicorn  # noqa: F401
    except ImportError as error:
        raise CannotRun("gunicorn is missing: pip install '.[dev]'") from error
    if (os.cpu_count() or 1) < 2:
        raise CannotRun("needs a second core: renderers are to have one that the worker does not")
    load = "wrk" if shutil.which("wrk") else "a client in Python (wrk is missing), which takes much of the spare core"
    report = Report(notes=[f"load: {load}, {CONNECTIONS} connections; gunicorn: 1 worker; turns of {TURN} s"])
    for worker_class, rounds in ROUNDS.items():
        with contextlib.ExitStack() as stack:
            servers = {
                PROCESSES: stack.enter_context(_server(worker_class, "auto")),
                THREADS: stack.enter_context(_server(worker_class, "threads")),
                NONE: stack.enter_context(_server(worker_class, "auto")),
            }
            for server in servers.values():
                for path in (HOT, *BUSY, *KEPT):
                    _fetch(server, path)
            samples: dict[str, list[Sample]] = {name: [] for name in servers}
            for turn in range(rounds):
                for name, server in random.Random(turn).sample(list(servers.items()), len(servers)):
                    samples[name].append(_turn(server, regenerating=name is not NONE))
        _add(report, worker_class, samples)
    return report


def _add(report: Report, worker_class: str, samples: dict[str, list[Sample]]) -> None:
    for name in (PROCESSES, THREADS):
        part = statistics.median(sample.computing for sample in samples[name])
        report.notes.append(f"{worker_class}, {name}: somebody was computing for {part:.0%} of the time")
        if part < BUSY_PART:
            raise CannotRun(f"{worker_class}, {name}: computing for only {part:.0%} of the time; repeat when less runs")
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
def _server(worker_class: str, background: str) -> Iterator[Server]:
    """Until the block ends."""
    from gunicorn.config import make_settings

    with tempfile.TemporaryDirectory() as name, socket() as listener:
        folder = Path(name)
        listener.bind((HOST, 0))
        listener.listen(SOMAXCONN)
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "--log-level", "warning"]
        command += ["--worker-class", worker_class, *OPTIONS.get(worker_class, ()), "--graceful-timeout", "2"]
        command += ["--config", "python:wsgi_isr.gunicorn"]
        if "control_socket_disable" in make_settings():  # gunicorn 25 and later; several would share it
            command += ["--no-control-socket"]
        options = {"STORE": f"sqlite:///{folder}/pages.db", "BACKGROUND": background, "DRAIN": "1"}
        process = subprocess.Popen(
            [*command, "tests.benchmarks.regenerated:application"],
            env={**os.environ, FOLDER_VARIABLE: name, **{f"WSGI_ISR_{key}": each for key, each in options.items()}},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
        server = Server(listener.getsockname()[1], folder)
        try:
            _fetch(server, "/")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()  # those that belong to it notice, and end
                process.wait()


def _fetch(server: Server, path: str) -> str:
    """What became of a request, in a word. The port was there before the server: it may take a while."""
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=20)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
    assert response.status == 200, response.status
    return response.getheader("X-ISR") or ""


# A turn ------------------------------------------------------------------------------------------------------


def _turn(server: Server, regenerating: bool) -> Sample:
    # The same requests in each turn: what is compared is the regeneration, not who asks for it.
    with _asked_for(server, BUSY if regenerating else KEPT):
        began = time.monotonic()
        rate, p99 = _load(server)
        ended = time.monotonic()
    _settle(server)
    return Sample(rate, p99, server.computing(began, ended))


def _settle(server: Server) -> None:
    """What is still being made is not for the next one to bear."""
    made = -1
    while made < (now := server.made()):
        made = now
        time.sleep(0.4)


@contextlib.contextmanager
def _asked_for(server: Server, paths: tuple[str, ...]) -> Iterator[None]:
    """In the block, somebody asks for these pages again and again. Those that are due they get stale, at once."""
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


def _load(server: Server) -> tuple[float, float]:
    """Requests per second, and the 99th percentile of what they took, in seconds."""
    if not shutil.which("wrk"):
        client = [sys.executable, str(Path(__file__).with_name("client.py"))]
        said = _output([*client, str(server.port), HOT, str(CONNECTIONS), str(TURN)])
        rate, p99 = map(float, said.split())
        return rate, p99
    url = f"http://{HOST}:{server.port}{HOT}"
    said = _output(["wrk", "--latency", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{TURN}s", url])
    if bad := re.search(r"Non-2xx.*|Socket errors:.*", said):
        raise AssertionError(f"wrk says: {bad[0]}")
    found, late = re.search(r"Requests/sec:\s*([\d.]+)", said), re.search(r"99%\s*([\d.]+)(us|ms|s)", said)
    assert found is not None, said
    assert late is not None, said
    return float(found[1]), float(late[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[late[2]]


def _output(command: list[str]) -> str:
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=TURN + 20, preexec_fn=_come_from_elsewhere
    )
    return run.stdout


def _come_from_elsewhere() -> None:
    os.sched_setaffinity(0, cores()[1])
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
