"""``wsgi-isr prerender`` as a process, and a file server for its export."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from cluster.parts.part import TETHER

from .server import ROOT
from .waiting import PATIENCE, until

COMMAND = [sys.executable, "-c", "from wsgi_isr.commands.main import main; main()", "prerender"]


class Prerender:
    """Runs of the command for one app.

    :param env: variables of every run.
    """

    def __init__(self, target: str, env: Mapping[str, str]) -> None:
        self._target = target
        outside = {name: value for name, value in os.environ.items() if not name.startswith((*FROM_OUTSIDE, "SITE_"))}
        self._env = {**outside, "PYTHONPATH": str(ROOT), "TERM": "xterm", **env}

    def begin(self, *arguments: str, output: int = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
        """Start a run; it dies with the tests."""
        return subprocess.Popen(
            [sys.executable, str(TETHER), str(os.getpid()), "SIGTERM", *COMMAND, self._target, *arguments],
            env={**self._env, **env},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, code: int = 0, **env: str) -> str:
        """Run the command to its end and return its stdout."""
        process = self.begin(*arguments, **env)
        out, err = process.communicate(timeout=6 * PATIENCE)
        assert process.returncode == code, err
        return out


@contextmanager
def file_server(root: Path, log: Path) -> Iterator[int]:
    """Run ``python -m http.server``, at a port that it finds itself."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(root)],
            stdout=output,
            stderr=output,
        )
    try:
        yield int(until(lambda: re.search(rb" port ([0-9]+) ", log.read_bytes()), "a port")[1])
    finally:
        process.terminate()
        process.wait(PATIENCE)


def ask_file(connection: http.client.HTTPConnection, path: str) -> tuple[int, str, bytes]:
    """Return status, final path and body, as a browser would get them."""
    for _ in range(3):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        location = answer.getheader("Location")
        if answer.status != 301 or location is None:
            return answer.status, path, body
        path = urlsplit(location).path
    raise AssertionError(f"{path} leads round in a circle")
