"""gunicorn instances of an app that is cached by ``ISR``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gunicorn.config import make_settings

from ..errors import CannotStart, ClusterError
from ..load.request import fetch
from . import ports, processes
from .part import Part, importing

#: Names of the processes that run beside the workers (:mod:`wsgi_isr.gunicorn`).
WATCHER, SUPERVISOR, RENDERER = "isr-watcher", "isr-supervisor", "isr-renderer"
#: A program that imports the app as an instance does, and prints whether the app is cached.
CHECK = "from cluster.parts.observed import isr; print('cached' if isr else 'not cached')"


@dataclass(frozen=True)
class SharedOptions:
    """The options that all instances share.

    :param app: ``module:attribute``, or ``module:factory('argument')``, as gunicorn takes it.
    :param store: the store's URL.
    :param directory: the working directory, also the import path.
    :param renders: the file that gets a line for each render.
    :param env: more environment variables.
    :param preload: the app is loaded once, before the workers are forked.
    """

    app: str
    store: str
    directory: Path
    renders: Path
    workers: int = 2
    threads: int = 8
    env: Mapping[str, str] = field(default_factory=dict)
    preload: bool = False

    def environment(self, instance: str) -> dict[str, str]:
        """Return the environment variables of an instance."""
        return {
            **importing(),
            "WSGI_ISR_STORE": self.store,
            "CLUSTER_APP": self.app,
            "CLUSTER_INSTANCE": instance,
            "CLUSTER_RENDERS": str(self.renders),
            **self.env,
        }

    def check(self) -> bool:
        """Import the app in a separate process, and return whether ``ISR`` caches the app.

        :raises CannotStart: the app cannot be imported; the message has the reason.
        """
        done = subprocess.run(
            [sys.executable, "-c", CHECK],
            env=self.environment("check"),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            output = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise CannotStart(f"the app {self.app} cannot be imported from {self.directory}: {output[-1]}")
        return done.stdout.strip().endswith("not cached") is False


class Gunicorn(Part):
    """A gunicorn master with its workers.

    :param arguments: arguments of gunicorn, added to those that :meth:`command` and :meth:`launch` set.
    """

    role: ClassVar[str] = "gunicorn"
    stop_patience: ClassVar[float] = 15.0  # longer than --graceful-timeout
    #: The arguments with which the Python interpreter starts gunicorn.
    program: Sequence[str] = ("-m", "gunicorn")
    #: ``True``: gunicorn binds the port itself. ``False``: gunicorn inherits a socket, and the port stays reserved.
    binds: bool = False

    def __init__(
        self, name: str, log: Path | None, arguments: Sequence[str], directory: Path, workers: int, port: int = 0
    ) -> None:
        super().__init__(name, log, port)
        self.directory = directory
        self._arguments = arguments
        self._workers = workers

    def command(self) -> Sequence[str]:
        command = [sys.executable, *self.program, "--workers", str(self._workers)]
        # Longer than the default of ISR's `drain_timeout`, and no longer than an orphaned worker should live.
        command += ["--graceful-timeout", "12"]
        # gunicorn 25 and later opens a control socket, and all instances would share it.
        if "control_socket_disable" in make_settings():
            command += ["--no-control-socket"]
        return [*command, *self._arguments]

    def launch(self) -> None:
        if self.leader is not None:
            raise CannotStart(f"{self.name} runs already")
        self.kill()
        # gunicorn inherits the socket, so no other process can take the port. This process closes its own copy. An open
        # copy would accept connections after the end of the instance, and no process would answer them.
        with ports.listener(self.port) as listener:
            address = f"{ports.HOST}:{self.port}" if self.binds else f"fd://{listener.fileno()}"
            if self.binds:
                listener.close()
            command, position = list(self.command()), 1 + len(self.program)
            command[position:position] = ["--bind", address]
            self._spawn(command, None if self.binds else listener)

    def is_ready(self) -> bool:
        # Any answer counts. OPTIONS bypasses the cache and renders no page.
        return self.has_all_workers() and fetch(self.port, "/", method="OPTIONS", seconds=5).status != 0

    def workers(self) -> list[int]:
        """Return the process ids of the live workers, in order."""
        if self.leader is None:
            return []
        children = (process for process in processes.alive() if process.parent == self.pid)
        return sorted(process.pid for process in children if process.name != WATCHER)

    def renderers(self) -> list[int]:
        """Return the process ids of the live renderers, in order."""
        return self.called(RENDERER)

    def called(self, name: str) -> list[int]:
        """Return the process ids of all processes of this gunicorn with a name, in order."""
        return sorted(process.pid for process in self.group() if process.name == name)

    def has_all_workers(self) -> bool:
        """Return whether all workers run, and each handles SIGTERM.

        A new worker first has inherited handlers, and then installs its own. An inherited handler loses a SIGTERM, and
        gunicorn then waits for that worker in vain. The handler of SIGABRT is the last that a worker installs.
        """
        workers = self.workers()
        try:
            unready = [pid for pid in workers if not processes.catches(pid, signal.SIGABRT)]
        except (FileNotFoundError, ProcessLookupError):  # a worker ended just now
            return False
        return len(workers) == self._workers and not unready

    def kill_process(self, pid: int) -> None:
        """Send SIGKILL to a worker, a renderer, their supervisor, or the watcher.

        :raises ClusterError: ``pid`` is none of these processes.
        """
        # A process id may be reused once the parent has reaped its process. A pidfd refers to one process for ever.
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            descriptor = -1
        others = [pid for name in (RENDERER, SUPERVISOR, WATCHER) for pid in self.called(name)]
        if descriptor < 0 or pid not in (ours := [*self.workers(), *others]):
            raise ClusterError(f"{pid} is no worker and no renderer of {self.name}: choose one of {ours}")
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)

    def telling(self, lines: Sequence[str]) -> str:
        errors = [line for line in lines if "Error" in line or "[ERROR]" in line]
        return (errors or lines)[-1]


class Instance(Gunicorn):
    """One of several gunicorns that serve the same app."""

    def __init__(self, name: str, log: Path | None, options: SharedOptions, port: int = 0) -> None:
        self.options = options
        #: Variables of this instance, on top of the shared ones.
        self.env: dict[str, str] = {}
        arguments = ["--config", "python:wsgi_isr.gunicorn"]
        arguments += ["--worker-class", "gthread", "--threads", str(options.threads)]
        # Longer than the balancer keeps idle connections: the instance never closes a connection that the balancer is
        # about to use.
        arguments += ["--keep-alive", "75"]
        if options.preload:
            arguments += ["--preload"]
        super().__init__(
            name, log, [*arguments, "cluster.parts.observed:application"], options.directory, options.workers, port
        )

    def environment(self) -> Mapping[str, str]:
        return {**self.options.environment(self.name), **self.env}
