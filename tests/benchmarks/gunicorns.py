"""gunicorns with one worker each, and their load."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.benchmarks.cores import cores
from tests.benchmarks.report import CannotRun

if TYPE_CHECKING:
    from tests.live.support.server import Gunicorn

HOST = "127.0.0.1"
OPTIONS = {"gthread": ("--threads", "4")}
CLIENT = str(Path(__file__).with_name("client.py"))
#: Without renderer processes, and with them.
PLAIN = ("-m", "gunicorn")
RENDERING = (*PLAIN, "--config", "python:wsgi_isr.gunicorn")


def need_gunicorn() -> None:
    """Check that gunicorn is installed.

    :raises CannotRun: it is not.
    """
    if find_spec("gunicorn") is None:
        raise CannotRun("gunicorn is missing: pip install '.[dev]'")


@contextlib.contextmanager
def running(
    app: str, worker_class: str, env: Mapping[str, str], log: Path, program: tuple[str, ...] = PLAIN
) -> Iterator[Gunicorn]:
    """Run one gunicorn until the block ends.

    :raises AssertionError: it does not start.
    """
    from tests.live.support.server import Gunicorn

    arguments = ("--log-level", "warning", "--graceful-timeout", "2", *OPTIONS.get(worker_class, ()))
    with Gunicorn(log, env, app, workers=1, worker_class=worker_class, arguments=arguments, program=program) as server:
        yield server


class Load(NamedTuple):
    """Requests per second, and the 99th percentile of the seconds that they took."""

    rate: float
    p99: float


def has_wrk(seconds: float) -> bool:
    """Return whether wrk can be used: it is installed, and counts in whole seconds."""
    return seconds == int(seconds) and shutil.which("wrk") is not None


def load(port: int, path: str, connections: int, seconds: float, *, first: bool = True) -> Load:
    """Ask for a page for some seconds, and return the figures.

    :param first: whether visitors go before renderers on the spare core, where that is allowed.
    :raises AssertionError: another answer than 200.
    """

    def come_from_elsewhere() -> None:
        os.sched_setaffinity(0, cores()[1])
        if first:
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    def output(command: list[str]) -> str:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 20, preexec_fn=come_from_elsewhere, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    if not has_wrk(seconds):
        rate, p99, _ = output([sys.executable, CLIENT, str(port), path, str(connections), str(seconds)]).split()[1:]
        return Load(float(rate), float(p99))
    url = f"http://{HOST}:{port}{path}"
    said = output(["wrk", "--latency", "-t", "1", "-c", str(connections), "-d", f"{int(seconds)}s", url])
    if bad := re.search(r"Non-2xx.*|Socket errors:.*", said):
        raise AssertionError(f"wrk says: {bad[0]}")
    found, late = re.search(r"Requests/sec:\s*([\d.]+)", said), re.search(r"99%\s*([\d.]+)(us|ms|s)", said)
    assert found is not None, said
    assert late is not None, said
    return Load(float(found[1]), float(late[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[late[2]])
