"""Run the blog under gunicorn: started on a socket of ours, stopped by process id."""

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
ROOT = Path(__file__).resolve().parents[2]  # ``examples`` is imported from here
ACCESS_LOG = "  %(m)-5s%(U)s  ->  %(s)s %({x-isr}o)s  %(M)s ms"


class ServerDied(Exception):
    """gunicorn ended by itself, or never answered."""


def listen(port: int) -> socket.socket:
    """Listen on the port before the server starts; 0 takes a free one.

    :raises OSError: another process uses it.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)  # a port that is only bound could still be taken by a process that listens
    except OSError:
        listener.close()
        raise
    return listener


class Server:
    """Run gunicorn with two workers until the block ends: ``with Server(...):``.

    :param listener: from :func:`listen`; gunicorn inherits it, so the port cannot be lost in between.
    :param options: environment variables on top of ours.
    :param log: where output goes; None is the terminal, with a line for each request.
    :param root: where ``examples`` is imported from.
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
        if "control_socket_disable" in make_settings():  # gunicorn 25 and later; two demos would share it
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
                start_new_session=True,  # Ctrl-C goes to us alone, and we stop the server afterwards
            )
        finally:
            # An open copy of ours would accept connections that no process answers.
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
        """Ask gunicorn to end, kill it after 15 seconds, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its workers notice the loss, and end
        return self.process.wait()

    def tail(self, lines: int = 40) -> str:
        """Return the end of the log."""
        if self.log is None or not self.log.exists():
            return ""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def _wait_until_it_answers(self, deadline: float) -> None:
        # Ask for a file that is not cached and that the story does not use.
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerDied(f"gunicorn ended at once, with exit code {self.process.returncode}")
            try:
                with urlopen(f"{self.url}/static/icon.svg", timeout=5):
                    return
            except HTTPError as error:
                error.close()
                raise ServerDied(f"the blog answers {error.code} to a request for a static file") from error
            except (URLError, OSError):
                time.sleep(0.05)
        raise ServerDied("gunicorn did not answer within 30 seconds")
