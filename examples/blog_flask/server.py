"""Run the blog under gunicorn, on a socket that is already open. Stop it by its process id.

The command ``wsgi-isr demo`` has a server of its own, whose module is private. An example imports only public names.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from gunicorn.config import make_settings

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]  # the directory that contains ``examples``
ACCESS_LOG = "  %(m)-5s%(U)s  ->  %(s)s %({x-isr}o)s  %(M)s ms"


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
        listener.listen(128)  # another process could listen on a port that is only bound
    except OSError:
        listener.close()
        raise
    return listener


class Server:
    """Run the blog under gunicorn, with two workers, until the ``with`` block ends.

    :param listener: from :func:`listen`. gunicorn inherits the socket, so no other process can take the port.
    :param options: environment variables, besides those of this process.
    :param log: the file for the output; ``None`` for the terminal, with a line for each request.
    :param root: the directory that contains ``examples``.
    """

    def __init__(
        self, listener: socket.socket, options: Mapping[str, str], log: Path | None = None, root: Path = ROOT
    ) -> None:
        self.port: int = listener.getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"
        self.log = log
        self.root = root
        self._listener = listener
        self.environment = {**os.environ, **options, "PYTHONUNBUFFERED": "1"}

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "gunicorn", "--config", "python:wsgi_isr.gunicorn"]
        command += ["--bind", f"fd://{self._listener.fileno()}", "--workers", "2"]
        command += ["--worker-class", "gthread", "--threads", "8", "--graceful-timeout", "5"]
        if "control_socket_disable" in make_settings():  # gunicorn 25 and later; two demos would share the socket
            command += ["--no-control-socket"]
        if self.log is None:
            command += ["--log-level", "warning", "--access-logfile", "-", "--access-logformat", ACCESS_LOG]
        output: IO[bytes] | None = self.log.open("wb") if self.log else None
        try:
            self.process = subprocess.Popen(
                [*command, "examples.blog_flask:app"],
                env=self.environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[self._listener.fileno()],
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the server
            )
        finally:
            # This process accepts no connections.
            self._listener.close()
            if output is not None:
                output.close()
        try:
            self._wait_until_it_answers(deadline=time.monotonic() + 30)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """Stop gunicorn with SIGTERM, or kill it after 15 seconds; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its workers notice that, and end
        return self.process.wait()

    def tail(self, lines: int = 40) -> str:
        """Return the end of the log."""
        if self.log is None or not self.log.exists():
            return ""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def _wait_until_it_answers(self, deadline: float) -> None:
        # The file is not cached, and the story does not request it.
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerDied(f"gunicorn has ended at once, with exit code {self.process.returncode}")
            try:
                with urlopen(f"{self.url}/static/icon.svg", timeout=5):
                    return
            except HTTPError as error:
                error.close()
                raise ServerDied(f"the blog answers a request for a static file with {error.code}") from error
            except (URLError, OSError):
                time.sleep(0.05)
        raise ServerDied("gunicorn has not answered within 30 seconds")
