"""The command ``wsgi-isr demo``: run a small site under gunicorn, and show how its cache works."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import webbrowser
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from ..errors import ConfigError
from .common import reported

if TYPE_CHECKING:
    from ..renderers.child_process import StopSignal
    from .demo_site.server import Server
    from .demo_site.story import Step

_INTRODUCTION = """\
A news site runs at {url} under gunicorn, with two workers. Its pages are in SQLite.
Each render takes {slow} s. The number of the render is at the end of the page.
"""
_TRY = """
The site still runs at {url}. Buttons on its pages invalidate the page, make the backend fail, and heal it.
Ctrl-C ends the site. A line for each request follows.
"""


class _Stopped(Exception):
    """The command has to end."""


@click.command("demo")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port on 127.0.0.1. Default: a free port.")
@click.option("--check", is_flag=True, help="Play the story, then exit; with 1 if a step fails.")
@click.option("--open", "opens", is_flag=True, help="Open the site in a browser.")
@click.option("--json", "as_json", is_flag=True, help="With --check: print the steps as JSON.")
def demo_command(port: int, check: bool, opens: bool, as_json: bool) -> None:
    """Run a small site, and show how its cache works. The site runs until Ctrl-C.

    The command needs gunicorn. All files are in a temporary directory, which is removed at the end.
    """
    if as_json and not check:
        raise click.UsageError("--json works only with --check: write --check --json")
    if opens and check:
        raise click.UsageError("--open does not work with --check: leave out --check")
    with reported(as_json):
        if find_spec("gunicorn") is None:
            raise ConfigError("demo", "gunicorn is not installed", 'pip install "wsgi_isr[gunicorn]"')
    sys.exit(_Demo(check, opens, as_json).run(port))


class _Demo:
    """One run of the command."""

    def __init__(self, check: bool, opens: bool, as_json: bool) -> None:
        self._check = check
        self._opens = opens
        self._as_json = as_json
        self._stopping: StopSignal
        self._steps: list[Step] = []

    def run(self, port: int) -> int:
        """Run the demo; return the exit code."""
        from ..renderers.child_process import StopSignal  # a slow import, which other commands do not need
        from .demo_site.server import Server, ServerDied, listen

        self._stopping = StopSignal(os.getppid())
        signal.signal(signal.SIGHUP, _end)  # sent when the terminal is closed
        try:
            listener = listen(port)
        except OSError as error:
            return self._fail(f"--port {port}: {error.strerror} (write --port 0 for a free port)")
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsgi-isr-demo-")))
            server = Server(listener, folder, self._pause)
            try:
                stack.enter_context(server)
                return self._play(server)
            except ServerDied as error:
                return self._fail(f"{error}. The end of its log:\n{server.tail()}")
            except _Stopped:
                if self._check:
                    return self._fail("stopped before the end of the story")
                self._say("\nStopped.")
                return 0

    def _play(self, server: Server) -> int:
        from .demo_site.site import SLOW
        from .demo_site.story import Story

        self._say(_INTRODUCTION.format(url=server.url, slow=SLOW))
        for number, step in enumerate(Story(server.port, self._pause).play(), 1):
            self._steps.append(step)
            self._tell(number, step)
        if not step.ok:
            return self._fail(f"{step.name} does not hold. The end of the server's log:\n{server.tail()}")
        if not self._check:
            self._stay(server)
        if self._as_json:
            click.echo(json.dumps({"ok": True, "steps": [one.as_json() for one in self._steps]}))
        self._say("All steps hold.")
        return 0

    def _tell(self, number: int, step: Step) -> None:
        mark = "FAIL  " if not step.ok else "ok    " if self._check else ""
        lines = [f"{mark}{number}. {step.name}: {step.sentence}", *(f"       {line}" for line in step.seen)]
        self._say("\n".join(lines))
        self._pause(0.0)

    def _stay(self, server: Server) -> NoReturn:
        """Print a line for each request, until the command has to end.

        :raises _Stopped: the command has to end.
        :raises ServerDied: gunicorn has ended.
        """
        from .demo_site.server import ServerDied

        with server.access_log.open(encoding="utf-8", errors="replace") as log:
            log.seek(0, os.SEEK_END)
            self._say(_TRY.format(url=server.url))
            if self._opens:
                webbrowser.open(server.url)
            while server.process.poll() is None:
                for line in log:
                    if not line.startswith("GET  /demo/"):
                        # The path is text of a client, and must not control the terminal.
                        self._say("".join(c if c.isprintable() else "?" for c in line.rstrip("\n")))
                self._pause(0.2)
        raise ServerDied(f"gunicorn has ended, with exit code {server.process.returncode}")

    def _pause(self, seconds: float) -> None:
        """Wait for some seconds.

        :raises _Stopped: a signal asked the command to end, or the parent process has ended.
        """
        deadline = time.monotonic() + seconds
        while True:
            if self._stopping:
                raise _Stopped
            if (left := deadline - time.monotonic()) <= 0:
                return
            self._stopping.wait(min(left, 1.0))  # an orphan gets no signal, so the loop checks its parent

    def _say(self, text: str) -> None:
        if not self._as_json:
            click.echo(text)

    def _fail(self, problem: str) -> int:
        if self._as_json:
            click.echo(json.dumps({"ok": False, "error": problem, "steps": [one.as_json() for one in self._steps]}))
        else:
            click.echo(problem, err=True)
        return 1


def _end(_number: int, _frame: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
