"""Requests per second under gunicorn: pages from L1 against a bare function that sends the same bytes.

Two gunicorns with one worker each, and a wrk at each, run all at once. Only one worker runs at a time (SIGSTOP,
SIGCONT), in turns of a twentieth of a second. The load of a shared machine changes within a second, by more than the
difference to be measured, and wrk cannot run for less. Requests are counted turn by turn, by the bytes that wrk has
read. The best tenth of the turns is compared, because other processes can only slow a turn down.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import gunicorns
from tests.benchmarks.apps import PAGE
from tests.benchmarks.gunicorns import HOST
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table, undisturbed
from tests.benchmarks.served import HEADERS_VARIABLE


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
PATH = "/blog/served"
#: The names in ``served.py``, and in the tables.
ISR, BARE = "isr", "same_bytes"
OURS, REFERENCE = "pages from L1", "bare function"
CONNECTIONS = 8
#: Seconds during which both workers stand still, at the begin and at the end of a round; seconds of one turn. So every
#: request is answered in a turn.
STILL, TURN = 0.25, 0.05
#: Rounds that are repeated where other processes had every core.
RETRIES = 5
#: ISR does more work, so it cannot be faster than this. Beyond it, other processes were measured.
NONSENSE = 1.1

Head = list[tuple[str, str]]


class Server(NamedTuple):
    """A gunicorn with one worker."""

    port: int
    worker: int


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
            _fetch(ours, "MISS")
            head = _fetch(ours, "HIT")
            bare = stack.enter_context(_server(BARE, worker_class, head))
            if (other := _fetch(bare, "HIT")) != head:
                raise AssertionError(f"{worker_class}: the heads differ: {head} and {other}")
            pairs: list[tuple[float, float]] = []
            turn = 0
            while turn < rounds or (not pairs and turn < rounds + RETRIES):  # each goes first in every other round
                if turn % 2:
                    pairs += _round(ours, bare, size.duration)
                else:
                    pairs += [pair[::-1] for pair in _round(bare, ours, size.duration)]
                turn += 1
            _fetch(ours, "HIT")
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


def _fetch(server: Server, label: str) -> Head:
    """Return the head of the page without gunicorn's headers, with the ``Age`` of its first second."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", PATH)
        response = connection.getresponse()
        body, head = response.read(), response.getheaders()
    if response.status != 200 or body != PAGE or dict(head).get("X-ISR") != label:
        raise AssertionError(f"port {server.port}: not the page as {label}: {response.status}, {head}")
    fixed = [(name, value) for name, value in head if name not in ("Server", "Date", "Connection")]
    return [(name, "0" if name == "Age" else value) for name, value in fixed]


# A round -------------------------------------------------------------------------------------------


def _round(first: Server, second: Server, duration: int) -> list[tuple[float, float]]:
    """Return the requests per second of ``first`` and ``second``, for each pair of turns."""
    servers = (first, second)
    read: tuple[list[int], list[int]] = ([], [])  # bytes that its client had read at the begin of each turn
    took: tuple[list[float], list[float]] = ([], [])  # seconds of each turn
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(os.kill, server.worker, signal.SIGCONT)
            os.kill(server.worker, signal.SIGSTOP)
        clients = [stack.enter_context(_client(server, duration)) for server in servers]
        time.sleep(STILL)  # they connect, and send their first requests
        end = time.monotonic() + duration - 2 * STILL
        while time.monotonic() < end:
            for which, server in enumerate(servers):
                read[which].append(_bytes_read(clients[which].pid))
                os.kill(server.worker, signal.SIGCONT)
                began = time.perf_counter()
                time.sleep(TURN)
                os.kill(server.worker, signal.SIGSTOP)
                took[which].append(time.perf_counter() - began)
        time.sleep(STILL / 2)  # clients read the answers in progress
        rates = []
        for which, client in enumerate(clients):
            read[which].append(_bytes_read(client.pid))
            size = (read[which][-1] - read[which][0]) / _answered(client, duration)
            if not len(PAGE) < size < len(PAGE) + 1000:
                raise AssertionError(f"an answer has {size:.0f} bytes, by what its client and the kernel counted")
            turns = zip(read[which], read[which][1:], took[which], strict=False)
            rates.append([(after - before) / size / seconds for before, after, seconds in turns])
    # Leave out turns in which other processes had every core all the time.
    return [pair for pair in zip(*rates, strict=True) if all(pair)]


@contextlib.contextmanager
def _client(server: Server, duration: int) -> Iterator[subprocess.Popen[str]]:
    """Run a client that asks on all of its connections."""
    if has_wrk := gunicorns.has_wrk(duration):
        command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{duration}s"]
        command.append(f"http://{HOST}:{server.port}{PATH}")
    else:
        command = [sys.executable, gunicorns.CLIENT, str(server.port), PATH, str(CONNECTIONS), str(duration)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        if not has_wrk:
            assert client.stdout is not None
            client.stdout.readline()  # until then it has read only its own modules
        yield client
    finally:
        if client.poll() is None:
            client.kill()
        client.communicate()


def _bytes_read(pid: int) -> int:
    """Return the bytes that a process has read, from sockets as well (proc(5), ``rchar`` in /proc/pid/io)."""
    found = re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())
    assert found is not None
    return int(found[1])


def _answered(client: subprocess.Popen[str], duration: int) -> int:
    """Return the number of requests that got the page, by the client's own count."""
    said, _ = client.communicate(timeout=duration + 10)
    if bad := re.search(r"Non-2xx.*|Socket errors:.*", said):
        raise AssertionError(f"wrk says: {bad[0]}")
    count = re.search(r"(\d+) requests in", said) or re.search(r" (\d+)$", said)
    if client.returncode or count is None or not int(count[1]):
        raise AssertionError(f"the client says: {said}")
    return int(count[1])
