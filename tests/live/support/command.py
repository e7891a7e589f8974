"""``python -m cluster``, as a user types it in a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from cluster.parts import processes
from cluster.parts.processes import Process
from cluster.supervisor.state import Directory, State

from .waiting import until

ROOT = Path(__file__).parents[3]
#: The smallest cluster in which one part of each kind may be missing.
SMALL = ("--nodes", "2", "--instances", "2", "--workers", "1", "--port", "0", "--read-timeout", "2")


class Command:
    """Terminals whose cluster lives in ``directory``."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.directory = Directory(directory / "cluster")
        outside = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
        self._env = {**outside, "PYTHONPATH": str(ROOT), "BLOG_DB": str(directory / "blog.sqlite3"), **env}
        self._prefix = [sys.executable, "-m", "cluster", "--directory", str(self.directory.path)]

    def run(self, *arguments: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [*self._prefix, *arguments],
            cwd=ROOT,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def done(self, *arguments: str) -> str:
        """Return the output of a command that must succeed."""
        run = self.run(*arguments)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    @contextmanager
    def running(self, *arguments: str) -> Iterator[State]:
        """Run a small cluster in the background of the block."""
        self.done("up", "--detach", *SMALL, *arguments)
        try:
            yield self.directory.read()
        finally:
            self.run("down")

    @contextmanager
    def in_the_foreground(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a small cluster in the block, and watch its terminal."""
        with self.begun("up", *SMALL, *arguments) as up:
            until(self.directory.is_ready, "a cluster that is ready")
            yield up

    @contextmanager
    def begun(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command in the block, in a terminal of its own, which is watched."""
        begun = subprocess.Popen(
            [*self._prefix, *arguments],
            cwd=ROOT,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        with begun:
            try:
                yield begun
            finally:
                if begun.poll() is None:
                    os.kill(begun.pid, signal.SIGTERM)
                    os.killpg(begun.pid, signal.SIGCONT)

    def everything(self) -> list[Process]:
        """Return every process of the cluster: the supervisor, its keeper, and all parts."""
        supervisor = processes.look_at(self.directory.read().pid)
        assert supervisor is not None
        keeper = processes.look_at(supervisor.parent)
        assert keeper is not None
        return [keeper, *processes.descendants(keeper.pid)]


def left(several: list[Process]) -> list[Process]:
    """Return the processes that are still alive; a later process with a reused number does not count."""
    return [process for process in several if processes.same(process.pid, process.started)]
