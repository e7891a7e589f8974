"""Servers as real processes, with the plain middleware: no hooks, and no renderer processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from cluster.errors import CannotStart
from cluster.load.request import fetch
from cluster.parts.part import Part

from .server import ROOT

#: The distribution ``pyuwsgi`` is uWSGI for the Python that runs the tests.
UWSGI = ("-c", "import sys, pyuwsgi; pyuwsgi.run(sys.argv[1:])")
#: By name, the arguments of the Python interpreter. ``{0}`` is the address, ``{1}`` the app, ``{2}`` the port.
SERVERS: dict[str, Sequence[str]] = {
    "uwsgi": (*UWSGI, "--master", "--processes=2", "--enable-threads", "--http-socket={0}", "--module={1}"),
    "waitress": ("-m", "waitress", "--threads=4", "--listen={0}", "{1}"),
    "granian": (
        "-m",
        "granian",
        "--interface=wsgi",
        "--no-ws",
        "--workers=2",
        "--blocking-threads=4",
        "--port={2}",
        "{1}",
    ),
}
SERVERS["uwsgi-lazy-apps"] = (*SERVERS["uwsgi"], "--lazy-apps")


class Other(Part):
    """A server of :data:`SERVERS`.

    :param kind: its name there.
    :param env: environment variables.
    """

    role: ClassVar[str] = "server"
    last_signal: ClassVar[str] = "TERM"
    stop_patience: ClassVar[float] = 20.0
    directory = ROOT

    def __init__(self, kind: str, log: Path, env: Mapping[str, str], app: str) -> None:
        super().__init__(kind, log)
        self._env = env
        self._arguments = [argument.format(self.address, app, self.port) for argument in SERVERS[kind]]
        if kind.startswith("uwsgi"):
            self._arguments += ["--need-app", "--die-on-term"]

    def command(self) -> Sequence[str]:
        needed = "pyuwsgi" if self.name.startswith("uwsgi") else self.name
        if find_spec(needed) is None:
            raise CannotStart(f"{needed} is missing: pip install '.[dev]'")
        return [sys.executable, *self._arguments]

    def environment(self) -> Mapping[str, str]:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
        return {**outside, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **self._env}

    def is_ready(self) -> bool:
        # OPTIONS bypasses the cache and renders no page.
        return fetch(self.port, "/", method="OPTIONS", seconds=5).status == 200


@contextmanager
def running(kind: str, log: Path, env: Mapping[str, str], app: str) -> Iterator[Other]:
    """Run a server until the block ends.

    :raises AssertionError: it does not start.
    """
    server = Other(kind, log, env, app)
    try:
        server.start()
        yield server
        server.stop()
    except CannotStart as error:
        raise AssertionError(f"{error}\n{log.read_text('utf-8', 'replace')}") from error
    finally:
        server.kill()
