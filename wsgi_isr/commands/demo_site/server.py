"""The server of the demo: gunicorn on a socket that is already open, ended by its process id."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

from ...config.settings import ENV_PREFIX
from .site import FOLDER, PARENT, SECRET
from .visitor import HOST, Visitor

#: The maximum time until the first answer, and from SIGTERM to the end, in seconds.
_STARTING, _STOPPING = 30.0, 10.0


class ServerDied(Exception):
    """gunicorn has ended, or has not answered in time."""


def listen(port: int) -> socket.socket:
    """Return a socket that listens on ``port``; 0 stands for a free port.

    :raises OSError: the port cannot be used.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


class Server:
    """Run the site under gunicorn until the ``with`` block ends.

    :param listener: from :func:`listen`. gunicorn inherits the socket, and this process closes its own copy.
    :param folder: the directory for the store, the logs and the state of the site.
    :param pause: waits for some seconds while the server starts. If it raises, the server is stopped.
    :raises ServerDied: gunicorn does not start.
    """

    def __init__(self, listener: socket.socket, folder: Path, pause: Callable[[float], None]) -> None:
        self.port: int = listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}/"
        self.access_log = folder / "access.log"
        self._log = folder / "server.log"
        self._folder = folder
        self._listener = listener
        self._pause = pause

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "gunicorn", "--config", "python:wsgi_isr.commands.demo_site.hooks"]
        command += ["--bind", f"fd://{self._listener.fileno()}", "wsgi_isr.commands.demo_site.site:create()"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._listener.fileno()],
                start_new_session=True,  # Ctrl-C reaches the command alone, which then stops the server
            )
        self._listener.close()  # this process accepts no connections
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop gunicorn with SIGTERM; kill all its processes if they take too long."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOPPING)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def tail(self, lines: int = 30) -> str:
        """Return the end of the log."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])

    def _environment(self) -> dict[str, str]:
        # Options for another site or another gunicorn would change the story.
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ENV_PREFIX) and name != "GUNICORN_CMD_ARGS"
        }
        # The server runs in another directory, and must find the modules of this process.
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        own = {FOLDER: str(self._folder), SECRET: secrets.token_hex(), PARENT: str(os.getpid()), "PYTHONPATH": path}
        return {**inherited, **own, "PYTHONUNBUFFERED": "1"}

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _STARTING
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerDied(f"gunicorn has ended at once, with exit code {self.process.returncode}")
            try:
                if Visitor(self.port).get("/demo/ready").status == 200:
                    return
            except (OSError, HTTPException):
                pass
            self._pause(0.05)
        raise ServerDied(f"gunicorn has not answered within {_STARTING:.0f} s")
