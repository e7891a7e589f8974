"""Load on a server: wrk, or a small client in Python where wrk is missing."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.cores import cores
from tests.benchmarks.report import CannotRun

HOST = "127.0.0.1"
_FOLDER = Path(__file__).parent
CLIENT = str(_FOLDER / "client.py")
#: Heads of many visitors behind a proxy: a script of wrk, and the user agents that it takes in turn.
VISITORS, AGENTS = str(_FOLDER / "visitors.lua"), str(_FOLDER / "user_agents.txt")


class Load(NamedTuple):
    """Requests per second, and the 99th percentile of the seconds that they took."""

    rate: float
    p99: float


def has_wrk(seconds: float) -> bool:
    """Return whether wrk can be used: it is installed, and counts in whole seconds."""
    return seconds == int(seconds) and shutil.which("wrk") is not None


def need_wrk(seconds: float) -> None:
    """Check that figures can be judged, with the load of wrk.

    :raises CannotRun: wrk is missing.
    """
    if not has_wrk(seconds):
        raise CannotRun("wrk is missing; please install it (Debian: apt-get install wrk)")


def client_name(seconds: float) -> str:
    """Return the name of the client, for a note."""
    return "wrk" if has_wrk(seconds) else "a client in Python, which takes much of the spare core"


def load(port: int, path: str, connections: int, seconds: float, *, first: bool = True, varied: bool = False) -> Load:
    """Ask for a page for some seconds, and return the figures.

    :param first: whether visitors go before renderers on the spare core, where that is allowed.
    :param varied: whether each request has the head of another visitor.
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
        command = [sys.executable, CLIENT, str(port), path, str(connections), str(seconds), *[AGENTS] * varied]
        rate, p99, _ = output(command).split()[1:]
        return Load(float(rate), float(p99))
    command = ["wrk", "--latency", "-t", "1", "-c", str(connections), "-d", f"{int(seconds)}s"]
    command += ["-s", VISITORS] * varied
    command += [f"http://{HOST}:{port}{path}", *["--", AGENTS] * varied]
    said = output(command)
    if bad := re.search(r"Non-2xx.*|Socket errors:.*", said):
        raise AssertionError(f"wrk says: {bad[0]}")
    found, late = re.search(r"Requests/sec:\s*([\d.]+)", said), re.search(r"99%\s*([\d.]+)(us|ms|s)", said)
    assert found is not None, said
    assert late is not None, said
    return Load(float(found[1]), float(late[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[late[2]])
