"""Requests per second of one worker on one core: servers and caches of Python, beside nginx, Varnish and Next.js.

wrk asks from the other core, with 16 connections, at one server after the other, in an order that changes. Each server
runs during the whole benchmark. The budgets are judged by the requests in a second of the worker's CPU time: on an idle
machine that is the rate, and on a busy one the rate is mostly that of other processes.

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
import random
from collections.abc import Sequence
from typing import NamedTuple

from tests.benchmarks.load import client_name, load, need_wrk
from tests.benchmarks.next_site import next_start, site
from tests.benchmarks.report import Budget, CannotRun, Report, Row, Table, ratio, undisturbed
from tests.benchmarks.servers import PATH, Head, Server, fetch, need, nginx, served, varnish


class Size(NamedTuple):
    """The extent.

    :param rounds: turns of each server.
    :param turn: seconds of load in one turn.
    :param pairs: the app and the server of each row, beside those that the budgets need.
    :param is_judged: whether the machine runs nothing else, and has wrk. Next.js takes part only then: it takes most
        of a minute to install and build.
    """

    rounds: int
    turn: float
    pairs: Sequence[tuple[str, str]]
    is_judged: bool


#: The apps of ``served.py``, and their names in the table.
ISR, BARE = "pages from L1", "bare function"
APPS = {
    BARE: "same_bytes",
    ISR: "isr",
    "Flask-Caching": "flask_caching",
    "Django's cache": "django_cache",
    "WhiteNoise": "whitenoise",
}
WORKER = "wsgi_isr.gunicorn.Worker"
#: The server of our pages under granian, and of other apps there.
SERVE, GRANIAN = "serve", "granian"
SERVERS = ("sync", "gthread", "gevent", GRANIAN)
NGINX, VARNISH, NEXT = "nginx proxy_cache", "Varnish", "next start"
#: The rows of the budgets.
LOOP, REFERENCE = (ISR, WORKER), (BARE, "gthread")
CONNECTIONS = 16

FULL = Size(3, 1, [(app, server) for app in APPS for server in SERVERS] + [(BARE, WORKER)], True)
#: One of each kind: each app, and each server.
QUICK = Size(
    1, 0.3, [("Flask-Caching", "sync"), ("Django's cache", "gevent"), (ISR, GRANIAN), ("WhiteNoise", "gthread")], False
)


def label(app: str, server: str) -> str:
    """Return the name of a row."""
    return f"{server}, {app}"


def run(size: Size) -> Report:
    if size.is_judged:
        need_wrk(size.turn)
    need("gunicorn", "gevent", "granian", "flask_caching", "django", "whitenoise")
    report = Report(notes=[f"load: {client_name(size.turn)}, {CONNECTIONS} connections; turns of {size.turn:g} s"])
    with contextlib.ExitStack() as stack:
        servers = _servers(stack, size, report)
        rates: dict[str, list[float]] = {name: [] for name in servers}
        by_cpu: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(size.rounds):
            for name, server in random.Random(turn).sample(list(servers.items()), len(servers)):
                before = server.cpu()
                rates[name].append(load(server.port, PATH, CONNECTIONS, size.turn).rate)
                by_cpu[name].append(rates[name][-1] * size.turn / max(0.01, server.cpu() - before))
        _check_cached(servers)
    report.tables = [
        Table(
            f"a page of 20 KB, {title}", "requests per second", [Row(*row) for row in rows.items()], NGINX, 0, compare
        )
        for title, rows, compare in (("one core", rates, undisturbed), ("of CPU time", by_cpu, ratio))
    ]
    table = report.tables[1]
    share, times = (table.compare(table.row(label(*LOOP)), table.row(name)) for name in (NGINX, label(*REFERENCE)))
    report.budgets = [
        Budget("of nginx proxy_cache", share, 0.9, at_least=True),
        Budget("times a bare function under gthread", times, 6, at_least=True),
    ]
    return report


def _servers(stack: contextlib.ExitStack, size: Size, report: Report) -> dict[str, Server]:
    """Start every server."""
    built = stack.enter_context(site()) if size.is_judged else None
    servers = {label(*LOOP): stack.enter_context(served("isr", WORKER))}
    fetch(servers[label(*LOOP)], "MISS")
    head = fetch(servers[label(*LOOP)], "HIT")
    for app, server in (REFERENCE, *(pair for pair in size.pairs if pair not in (LOOP, REFERENCE))):
        kind = SERVE if (app, server) == (ISR, GRANIAN) else server
        servers[label(app, server)] = stack.enter_context(served(APPS[app], kind, head))
        _warm(servers[label(app, server)], app)
    origin = servers[label(*REFERENCE)]
    for name, front in ((NGINX, nginx(origin, caches=True)), (VARNISH, varnish(origin))):
        servers[name] = stack.enter_context(front)
        fetch(servers[name])
    if built is None:
        report.notes.append(f"{NEXT}: not in quick mode")
        return servers
    try:
        servers[NEXT] = stack.enter_context(next_start(built.result()))
        fetch(servers[NEXT], is_ours=False)
    except CannotRun as error:
        report.notes.append(f"{NEXT}: no row: {error}")
    return servers


def _warm(server: Server, app: str) -> None:
    """Ask twice, so that the caches have the page."""
    for expected in ("MISS", "HIT"):
        fetch(server, expected if app == ISR else "")


def _check_cached(servers: dict[str, Server]) -> None:
    """Check that the servers in front answered from their caches. :raises AssertionError: one did not."""
    for name in (NGINX, VARNISH):
        head: Head = fetch(servers[name])
        if ("X-Cached", "HIT") not in head:
            raise AssertionError(f"{name} does not cache the page: {head}")
    fetch(servers[label(*LOOP)], "HIT")
