"""Two servers at a time, whose workers take turns (SIGSTOP, SIGCONT), and the requests of each turn.

The load of a shared machine changes within a second, by more than the difference to be measured, and wrk cannot run for
less. Requests are counted turn by turn, by the bytes that wrk has read.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.apps import PAGE
from tests.benchmarks.cores import cores, on
from tests.benchmarks.load import CLIENT, HOST, has_wrk
from tests.benchmarks.report import CannotRun, Row, Table, undisturbed
from tests.benchmarks.servers import PATH, Server, fetch, served

OURS, REFERENCE = "pages from L1", "bare function"
#: Seconds during which both workers stand still, at the begin and at the end of a round; seconds of one turn. So every
#: request is answered in a turn.
STILL, TURN = 0.25, 0.05
#: Rounds that are repeated where other processes had every core.
RETRIES = 5
#: ISR does more work, so it cannot be faster than this. Beyond it, other processes were measured.
NONSENSE = 1.1


class Pairs(NamedTuple):
    """The outcome: a table of both servers, and the share of the bare function's requests per second."""

    table: Table
    share: float


def beside_bare(title: str, ours: str, bare: str, number: int, connections: int, duration: int) -> Pairs:
    """Compare pages from L1 with a bare function that sends the same bytes.

    :param ours: the server of our pages, a worker class of :func:`servers.served`.
    :param bare: that of the bare function.
    :param number: rounds.
    :param duration: seconds of load in one round.
    :raises AssertionError: the answers are not the same bytes.
    """
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(served("isr", ours))
        fetch(first, "MISS")
        head = fetch(first, "HIT")
        second = stack.enter_context(served("same_bytes", bare, head))
        if (other := fetch(second, "HIT")) != head:
            raise AssertionError(f"{title}: the heads differ: {head} and {other}")
        with on(cores()[1]):
            pairs = rounds(first, second, number, connections, duration)
        fetch(first, "HIT")
    rows = [Row(OURS, [pair[0] for pair in pairs]), Row(REFERENCE, [pair[1] for pair in pairs])]
    table = Table(title, "requests per second", rows, REFERENCE, 0, undisturbed)
    return Pairs(table, undisturbed(*rows))


def check(pairs: Pairs) -> None:
    """Check that the figures can be true.

    :raises CannotRun: they cannot.
    """
    if pairs.share > NONSENSE:
        raise CannotRun(
            f"{pairs.table.title}: {pairs.share:.2f} of the bare function cannot be; repeat when nothing else runs"
        )


def rounds(first: Server, second: Server, number: int, connections: int, seconds: int) -> list[tuple[float, float]]:
    """Return the requests per second of ``first`` and ``second``, for each pair of turns of so many rounds."""
    pairs: list[tuple[float, float]] = []
    turn = 0
    while turn < number or (not pairs and turn < number + RETRIES):  # each goes first in every other round
        if turn % 2:
            pairs += _round(first, second, connections, seconds)
        else:
            pairs += [pair[::-1] for pair in _round(second, first, connections, seconds)]
        turn += 1
    return pairs


def _round(first: Server, second: Server, connections: int, duration: int) -> list[tuple[float, float]]:
    """Return the requests per second of ``first`` and ``second``, for each pair of turns."""
    servers = (first, second)
    read: tuple[list[int], list[int]] = ([], [])  # bytes that its client had read at the begin of each turn
    took: tuple[list[float], list[float]] = ([], [])  # seconds of each turn
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(os.kill, server.worker, signal.SIGCONT)
            os.kill(server.worker, signal.SIGSTOP)
        clients = [stack.enter_context(_client(server, connections, duration)) for server in servers]
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
def _client(server: Server, connections: int, duration: int) -> Iterator[subprocess.Popen[str]]:
    """Run a client that asks on all of its connections."""
    if is_wrk := has_wrk(duration):
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{duration}s"]
        command.append(f"http://{HOST}:{server.port}{PATH}")
    else:
        command = [sys.executable, CLIENT, str(server.port), PATH, str(connections), str(duration)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        if not is_wrk:
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
