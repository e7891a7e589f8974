"""Requests per second of ``wsgi_isr.gunicorn.Worker``, beside gthread workers and the ``proxy_cache`` of nginx.

Each server has one worker, on a core of its own. wrk asks from the other core, with 16 connections, at one server after
the other, in an order that changes. The budgets are judged by the requests in a second of the worker's CPU time: on an
idle machine that is the rate, and on a busy one the rate is mostly that of other processes.

Most of a hit in the loop is the kernel's: 8 of 12 us are the calls ``recv`` and ``sendmsg`` with 20 KB. These changes
of the loop did not pay:

- To remember parsed heads by their bytes saves 2 us for wrk, whose heads are all the same. Heads of browsers behind a
  proxy differ in their address, so each one would pay for the memory and find nothing.
- To join head and body, or to send them from one prepared string, is not faster than ``sendmsg``, and copies the body.
- To read a connection once more after its answer, before the next poll, costs 3 us: the client has not answered yet.
- To poll the epoll object without :mod:`selectors` saves 0.4 us, and works on Linux alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import gunicorns
from tests.benchmarks.apps import PAGE
from tests.benchmarks.cores import cores
from tests.benchmarks.gunicorns import HOST
from tests.benchmarks.proxy_cache import ProxyCache
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table, ratio, undisturbed
from tests.benchmarks.served import HEADERS_VARIABLE


class Size(NamedTuple):
    """The extent: rounds, and seconds of load in one turn.

    :param is_judged: whether the machine runs nothing else, and has wrk.
    """

    rounds: int
    turn: float
    is_judged: bool


FULL = Size(5, 1, True)
QUICK = Size(1, 0.3, False)
CONNECTIONS = 16
PATH = "/blog/served"
LOOP, THREADS, BARE, NGINX = (
    "wsgi_isr.gunicorn.Worker",
    "gthread with ISR",
    "gthread, bare function",
    "nginx proxy_cache",
)


class Server(NamedTuple):
    """A server with one worker."""

    port: int
    workers: list[int]

    def cpu(self) -> float:
        """Return the seconds of CPU time that its workers have taken, threads that have ended included (proc(5))."""
        ticks = 0
        for pid in self.workers:
            # The name, in brackets, may have spaces; utime and stime are the fields 14 and 15.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def run(size: Size) -> Report:
    gunicorns.need_gunicorn()
    if size.is_judged and ((os.cpu_count() or 1) < 2 or not gunicorns.has_wrk(size.turn)):
        raise CannotRun("needs wrk (Debian: apt-get install wrk), and a second core for it")
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        servers = {
            LOOP: start(_gunicorn("isr", "wsgi_isr.gunicorn.Worker")),
            THREADS: start(_gunicorn("isr", "gthread")),
        }
        _fetch(servers[LOOP])
        head = _fetch(servers[LOOP])
        servers[BARE] = start(_gunicorn("same_bytes", "gthread", head))
        servers[NGINX] = start(_nginx(servers[BARE]))
        for server in servers.values():
            for _ in range(2):
                _fetch(server)
        if dict(_fetch(servers[NGINX])).get("X-Cached") != "HIT":
            raise AssertionError("nginx does not cache the page")
        rates: dict[str, list[float]] = {name: [] for name in servers}
        by_cpu: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(size.rounds):
            for name, server in random.Random(turn).sample(list(servers.items()), len(servers)):
                before = server.cpu()
                rates[name].append(gunicorns.load(server.port, PATH, CONNECTIONS, size.turn).rate)
                by_cpu[name].append(rates[name][-1] * size.turn / (server.cpu() - before))
    tables = [
        Table(
            f"a page of 20 KB, {title}", "requests per second", [Row(*row) for row in rows.items()], NGINX, 0, compare
        )
        for title, rows, compare in (("one core", rates, undisturbed), ("of CPU time", by_cpu, ratio))
    ]
    share, times = (tables[1].compare(tables[1].row(LOOP), tables[1].row(name)) for name in (NGINX, BARE))
    budgets = [
        Budget("of nginx proxy_cache", share, 0.9, at_least=True),
        Budget("times a bare function under gthread", times, 6, at_least=True),
    ]
    client = "wrk" if gunicorns.has_wrk(size.turn) else "a client in Python"
    return Report(tables, budgets, [f"load: {client}, {CONNECTIONS} connections; turns of {size.turn:g} s"])


@contextlib.contextmanager
def _gunicorn(app: str, worker_class: str, head: list[tuple[str, str]] | None = None) -> Iterator[Server]:
    """Run a gunicorn with one worker on its core."""
    with tempfile.TemporaryDirectory() as folder:
        env = {HEADERS_VARIABLE: json.dumps(head or [])}
        with gunicorns.running(f"tests.benchmarks.served:{app}", worker_class, env, Path(folder, "log")) as gunicorn:
            yield _pinned(Server(gunicorn.port, gunicorn.workers()))


@contextlib.contextmanager
def _nginx(origin: Server) -> Iterator[Server]:
    """Run nginx in front of a server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nginx = ProxyCache("nginx", folder / "log", folder, {"origin": f"{HOST}:{origin.port}"}, 0, workers=1)
        try:
            nginx.start()
            yield _pinned(Server(nginx.port, nginx.workers()))
        finally:
            nginx.ask_to_stop()
            nginx.wait_for_stop()
            nginx.close()


def _pinned(server: Server) -> Server:
    """Give all threads of a server the worker's core."""
    for pid in server.workers:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores()[0])
    return server


def _fetch(server: Server) -> list[tuple[str, str]]:
    """Return the head of the page, without the fields of the server."""
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=5)) as connection:
        connection.request("GET", PATH)
        response = connection.getresponse()
        body, head = response.read(), response.getheaders()
    if response.status != 200 or body != PAGE:
        raise AssertionError(f"port {server.port}: not the page: {response.status}, {head}")
    return [(name, value) for name, value in head if name not in ("Server", "Date", "Connection")]
