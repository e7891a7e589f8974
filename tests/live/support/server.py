"""gunicorn as a real process: started on a free port, watched, and ended by its process id."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from cluster.errors import CannotStart
from cluster.parts import gunicorn as instances
from cluster.parts import processes
from cluster.parts.gunicorn import SUPERVISOR, WATCHER

from .waiting import PATIENCE, until

__all__ = ["FROM_OUTSIDE", "ROOT", "SUPERVISOR", "WATCHER", "Gunicorn"]

ROOT = Path(__file__).parents[3]

#: The app of most live tests.
MEASURED = "tests.live.support.measured:application"
#: Words of log levels and tracebacks that mark complaints of a server.
COMPLAINTS = ("[WARNING]", "[ERROR]", "[CRITICAL]", "Traceback", "Error: ", "Exception")


class _Process(instances.Gunicorn):
    """The process, in an environment without the machine's variables."""

    last_signal = "TERM"
    stop_patience = 5.0

    def __init__(
        self,
        log: Path,
        arguments: Sequence[str],
        directory: Path,
        workers: int,
        env: Mapping[str, str],
        program: Sequence[str],
        binds: bool,
        is_asked: bool,
    ) -> None:
        super().__init__("gunicorn", log, arguments, directory, workers)
        self._env = env
        self.program = program
        self.binds = binds
        self._is_asked = is_asked

    def is_ready(self) -> bool:
        return super().is_ready() if self._is_asked else self.has_all_workers()

    def environment(self) -> Mapping[str, str]:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
        return {**outside, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **self._env}


class Gunicorn:
    """Run a server that answers until the block ends: ``with Gunicorn(...) as server:``.

    Enter it in a thread that outlives the block: the server dies with its thread (see :mod:`cluster.parts.tether`).

    :param log: the file to which its output is appended.
    :param env: environment variables.
    :param arguments: further options of gunicorn's command line.
    :param program: the arguments of the Python interpreter.
    :param binds: gunicorn binds the port itself, instead of inheriting a socket.
    :param is_asked: the server counts as started when it answers a request; otherwise it gets no request.
    """

    def __init__(
        self,
        log: Path,
        env: Mapping[str, str],
        target: str = MEASURED,
        *,
        workers: int = 2,
        worker_class: str = "gthread",
        preload: bool = False,
        arguments: Sequence[str] = (),
        directory: Path = ROOT,
        program: Sequence[str] = ("-m", "gunicorn", "--config", "python:wsgi_isr.gunicorn"),
        binds: bool = False,
        is_asked: bool = True,
    ) -> None:
        self.log = log
        options = ["--worker-class", worker_class]
        if worker_class == "gthread":
            options += ["--threads", "8"]
        if preload:
            options += ["--preload"]
        options += [*arguments, target]
        self._process = _Process(log, options, directory, workers, env, program, binds, is_asked)
        self.port = self._process.port

    def __enter__(self) -> Gunicorn:
        try:
            self._process.start()
        except CannotStart as error:
            raise AssertionError(f"{error}\n{self.log.read_text('utf-8', 'replace')}") from error
        except BaseException:
            self._process.close()
            raise
        self.pid = self._process.pid
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.ask_to_stop()
        self._process.wait_for_stop()
        self._process.close()
        if kind is not None:  # pytest shows it with the failure
            print(f"--- {self.log.name}\n{self.log.read_text('utf-8', 'replace')}", file=sys.stderr)

    def workers(self) -> list[int]:
        """Return the process ids of the live workers, in order."""
        return self._process.workers()

    def renderers(self) -> list[int]:
        """Return the process ids of the live renderers, in order."""
        return self._process.renderers()

    def called(self, name: str) -> list[int]:
        """Return the process ids of its processes with this name, in order."""
        return self._process.called(name)

    def wait_for_workers(self) -> None:
        """Wait until all workers are there, and each handles SIGTERM."""
        until(self._process.has_all_workers, "all workers")

    def left(self) -> list[int]:
        """Return every process of this server that is still alive, orphans included."""
        return sorted(process.pid for process in self._process.group())

    def kill(self, worker: int) -> None:
        """``kill -9`` one worker or renderer, and wait until it is gone."""
        self._process.kill_process(worker)
        until(lambda: processes.look_at(worker) is None, f"the end of {worker}", every=0.001)

    def kill_all(self) -> None:
        """``kill -9`` its master and all its other processes, and wait until they are gone."""
        self._process.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        assert self._process.exit_code() is None, "gunicorn has ended"
        self._process.send(number)

    def stop(self, timeout: float = PATIENCE) -> int:
        """Send SIGTERM and return the exit code, negative for the signal that ended it.

        :raises AssertionError: it took longer than ``timeout`` seconds.
        """
        self.wait_for_workers()
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit code of a server that is ending."""
        until(lambda: self._process.exit_code() is not None, "the end of gunicorn", timeout)
        code = self._process.exit_code()
        assert code is not None
        return code

    def complaints(self) -> list[str]:
        """Return the lines of the log that mark errors or warnings."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if any(word in line for word in COMPLAINTS)]
