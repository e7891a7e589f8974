"""Servers of a benchmark: gunicorn, granian, nginx, Varnish and Next.js, each with one worker on the worker's core."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.errors import CannotStart
from cluster.parts.part import importing
from tests.benchmarks.apps import PAGE
from tests.benchmarks.cores import cores, on
from tests.benchmarks.fronts import Nginx, Varnish
from tests.benchmarks.load import HOST
from tests.benchmarks.report import CannotRun
from tests.benchmarks.served import HEADERS_VARIABLE

if TYPE_CHECKING:
    from cluster.parts.part import Part

PATH = "/blog/served"
SERVED = "tests.benchmarks.served:"
OPTIONS = {"gthread": ("--threads", "4"), "wsgi_isr.gunicorn.Worker": ("--threads", "4")}
#: The arguments of the Python interpreter for gunicorn, without renderer processes and with them.
PLAIN = ("-m", "gunicorn")
RENDERING = (*PLAIN, "--config", "python:wsgi_isr.gunicorn")
#: granian as it comes. With our command, pages are answered by :mod:`wsgi_isr.servers.granian`.
GRANIAN = ("-m", "granian", "--interface", "wsgi", "--no-ws")
#: Threads of the worker, and no renderers: no page becomes stale.
GRANIAN_OPTIONS = ("--log-level", "warning", "--blocking-threads", "4")

Head = list[tuple[str, str]]


class Server(NamedTuple):
    """A server, and its processes that serve.

    :ivar process: the object that started it.
    """

    port: int
    workers: list[int]
    process: Any = None

    @property
    def worker(self) -> int:
        """Return the process id of its one worker."""
        (worker,) = self.workers
        return worker

    def cpu(self) -> float:
        """Return the seconds of CPU time that its workers have taken, threads that have ended included (proc(5))."""
        ticks = 0
        for pid in self.workers:
            # The name, in brackets, may have spaces; utime and stime are the fields 14 and 15.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def need(*distributions: str) -> None:
    """Check that modules of the development environment are installed.

    :raises CannotRun: one is not.
    """
    for name in distributions:
        if find_spec(name) is None:
            raise CannotRun(f"{name} is missing: pip install '.[dev]'")


# Servers of Python -----------------------------------------------------------------------------------


@contextlib.contextmanager
def gunicorn(
    app: str, worker_class: str, env: Mapping[str, str], log: Path, program: Sequence[str] = PLAIN
) -> Iterator[Server]:
    """Run one gunicorn until the block ends.

    :raises AssertionError: it does not start.
    """
    from tests.live.support.server import Gunicorn

    arguments = ("--log-level", "warning", "--graceful-timeout", "2", *OPTIONS.get(worker_class, ()))
    with Gunicorn(log, env, app, workers=1, worker_class=worker_class, arguments=arguments, program=program) as server:
        yield Server(server.port, server.workers(), server)


@contextlib.contextmanager
def served(app: str, worker_class: str, head: Head | None = None) -> Iterator[Server]:
    """Run an app of ``served.py`` under gunicorn with this worker class, or under granian, on the worker's core.

    :param worker_class: a worker class of gunicorn; ``granian``; ``serve`` for granian by ``wsgi-isr serve``.
    :param head: the head that the bare function sends.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        env = {HEADERS_VARIABLE: json.dumps(head or []), "PYTHONPATH": importing()["PYTHONPATH"]}
        log = Path(folder, "log")
        with on(cores()[0]):
            if worker_class in ("granian", "serve"):
                server = stack.enter_context(_granian(SERVED + app, worker_class == "serve", env, log))
            else:
                server = stack.enter_context(gunicorn(SERVED + app, worker_class, env, log))
        yield server


@contextlib.contextmanager
def _granian(target: str, is_ours: bool, env: Mapping[str, str], log: Path) -> Iterator[Server]:
    from tests.live.support.granian import PROGRAM, Granian

    program = PROGRAM if is_ours else GRANIAN
    with Granian(log, env, target, workers=1, arguments=GRANIAN_OPTIONS, program=program, is_asked=False) as process:
        yield Server(process.port, process.workers(), process)


# Other servers ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def nginx(origin: Server, caches: bool, core: int = 0) -> Iterator[Server]:
    """Run nginx in front of a server.

    :param core: 0 for the worker's core, 1 for the spare ones.
    """
    with tempfile.TemporaryDirectory() as folder, started(Nginx(Path(folder), origin.port, caches), core) as server:
        yield server


@contextlib.contextmanager
def varnish(origin: Server) -> Iterator[Server]:
    """Run Varnish in front of a server."""
    with tempfile.TemporaryDirectory() as folder, started(Varnish(Path(folder), origin.port)) as server:
        yield server


@contextlib.contextmanager
def started(part: Nginx | Varnish | Part, core: int = 0) -> Iterator[Server]:
    """Run a part.

    :raises CannotRun: its program is missing, or it does not start.
    """
    try:
        with on(cores()[core]):
            part.start()
        workers = part.workers() if isinstance(part, (Nginx, Varnish)) else [each.pid for each in part.group()]
        yield Server(part.port, workers, part)
    except CannotStart as error:
        raise CannotRun(str(error)) from None
    finally:
        part.stop()
        part.close()


# The page --------------------------------------------------------------------------------------------


def fetch(server: Server, label: str = "", host: str = "", is_ours: bool = True) -> Head:
    """Return the head of the page without the server's headers, with the ``Age`` of its first second.

    :param label: the value of ``X-ISR``; empty for any.
    :param host: the host of the page; that of the server by default.
    :param is_ours: the page is :data:`PAGE`, to the byte. Otherwise it is about as long.
    :raises AssertionError: another answer than the page with this label.
    """
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=5)) as connection:
        connection.request("GET", PATH, headers={"Host": host} if host else {})
        response = connection.getresponse()
        body, head = response.read(), response.getheaders()
    is_page = body == PAGE if is_ours else 0.9 < len(body) / len(PAGE) < 1.1
    if response.status != 200 or not is_page or (label and response.headers["X-ISR"] != label):
        raise AssertionError(f"port {server.port}: not the page {label}: {response.status}, {len(body)} bytes, {head}")
    fixed = [(name, value) for name, value in head if name.lower() not in ("server", "date", "connection")]
    return [(name, "0" if name.lower() == "age" else value) for name, value in fixed]
