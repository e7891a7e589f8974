"""Requests per second behind nginx, with 64 connections of many visitors: our worker and gthread workers.

nginx forwards each request with the headers that sites use, and caches nothing. Each request has a user agent and a
client address of another visitor, as behind a load balancer. nginx shares the spare core with wrk.
"""

from __future__ import annotations

import contextlib
import random
from typing import NamedTuple

from tests.benchmarks.load import client_name, load, need_wrk
from tests.benchmarks.report import Report, Row, Table, ratio, undisturbed
from tests.benchmarks.servers import PATH, fetch, need, nginx, served


class Size(NamedTuple):
    """The extent: rounds, and seconds of load in one turn.

    :param is_judged: whether the machine has wrk.
    """

    rounds: int
    turn: float
    is_judged: bool


FULL = Size(5, 1, True)
QUICK = Size(1, 0.3, False)
CONNECTIONS = 64
#: The host that all visitors ask for (``visitors.lua``, ``client.py``).
HOST = "www.example.com"
WORKER, GTHREAD, BARE = "wsgi_isr.gunicorn.Worker, pages from L1", "gthread, pages from L1", "gthread, bare function"


def run(size: Size) -> Report:
    if size.is_judged:
        need_wrk(size.turn)
    need("gunicorn")
    with contextlib.ExitStack() as stack:
        apps = {WORKER: stack.enter_context(served("isr", "wsgi_isr.gunicorn.Worker"))}
        fetch(apps[WORKER], "MISS")
        head = fetch(apps[WORKER], "HIT")
        apps[GTHREAD] = stack.enter_context(served("isr", "gthread"))
        apps[BARE] = stack.enter_context(served("same_bytes", "gthread", head))
        fronts = {name: stack.enter_context(nginx(app, caches=False, core=1)) for name, app in apps.items()}
        for front in fronts.values():
            load(front.port, PATH, 1, size.turn, varied=True)  # the page of this host is in L1 from now on
        rates: dict[str, list[float]] = {name: [] for name in apps}
        by_cpu: dict[str, list[float]] = {name: [] for name in apps}
        late: dict[str, list[float]] = {name: [] for name in apps}
        for turn in range(size.rounds):
            for name in random.Random(turn).sample(list(apps), len(apps)):
                before = apps[name].cpu()
                rate, p99 = load(fronts[name].port, PATH, CONNECTIONS, size.turn, first=False, varied=True)
                rates[name].append(rate)
                late[name].append(p99 * 1000)
                by_cpu[name].append(rate * size.turn / max(0.01, apps[name].cpu() - before))
        for name in (WORKER, GTHREAD):
            fetch(fronts[name], "HIT", HOST)
    title = f"a page of 20 KB behind nginx, {CONNECTIONS} connections"
    return Report(
        [
            Table(title, "requests per second", _rows(rates), GTHREAD, 0, undisturbed),
            Table("the same, of the worker's CPU time", "requests per second", _rows(by_cpu), GTHREAD, 0, ratio),
            Table("how long the slowest hundredth waits", "ms, the 99th percentile", _rows(late), GTHREAD, 1),
        ],
        notes=[
            f"load: {client_name(size.turn)}; nginx, with one worker, and the load share a core; "
            f"turns of {size.turn:g} s"
        ],
    )


def _rows(samples: dict[str, list[float]]) -> list[Row]:
    return [Row(*pair) for pair in samples.items()]
