"""gunicorn as a real process: started on a free port, watched, and ended by its process id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from types import TracebackType

from gunicorn.config import make_settings

from cluster import processes
from cluster.parts import TETHER
from cluster.workload.tethered import FROM_OUTSIDE

from .visitor import HOST, ask
from .waiting import PATIENCE, until

ROOT = Path(__file__).parents[3]

#: The app that most live tests are about.
MEASURED = "tests.live.support.measured:application"
#: The words of log levels and tracebacks with which a server complains.
COMPLAINTS = ("[WARNING]", "[ERROR]", "[CRITICAL]", "Traceback", "Error: ", "Exception")


class Gunicorn:
    """``with Gunicorn(...) as server:`` a server that answers, until the block ends.

    To be entered in a thread that outlives the block: the server dies with it (see :mod:`cluster.tether`).

    :param log: where its output goes, appended.
    :param env: environment variables.
    :param arguments: further options of gunicorn's command line.
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
    ) -> None:
        self.log = log
        self._env = env
        self._directory = directory
        self._workers = workers
        self._arguments = ["--workers", str(workers), "--worker-class", worker_class]
        # Longer than the default of our `drain`, and no longer than an orphan should live.
        self._arguments += ["--graceful-timeout", "12"]
        if worker_class == "gthread":
            self._arguments += ["--threads", "8"]
        if preload:
            self._arguments += ["--preload"]
        if "control_socket_disable" in make_settings():  # gunicorn 25 and later; two servers would share it
            self._arguments += ["--no-control-socket"]
        self._arguments += ["--config", "python:wsgi_isr.gunicorn", *arguments, target]

    def __enter__(self) -> Gunicorn:
        with socket() as listener, self.log.open("ab") as output:
            listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            listener.bind((HOST, 0))
            listener.listen(512)
            self.port: int = listener.getsockname()[1]
            descriptor = listener.fileno()
            command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{descriptor}", *self._arguments]
            # The port is ours before the server starts, and the server inherits it: nobody else can get it.
            self._process = subprocess.Popen(
                [sys.executable, str(TETHER), str(os.getpid()), "SIGTERM", *command],
                env=self._environment(),
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[descriptor],
                start_new_session=True,  # a group of its own, which is ended as a whole
            )
        self.pid = self._process.pid
        try:
            until(self._answers, f"an answer of gunicorn (its log: {self.log})")
            self.wait_for_workers()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if kind is not None:  # pytest shows it with the failure
            print(f"--- {self.log.name}\n{self.log.read_text('utf-8', 'replace')}", file=sys.stderr)

    def workers(self) -> list[int]:
        """The process ids of its workers that are alive, in order."""
        return sorted(process.pid for process in processes.alive() if process.parent == self.pid)

    def wait_for_workers(self) -> None:
        """Until there are as many as there should be, and each would hear a SIGTERM.

        One that comes before a worker has its own handlers is lost in those that it inherited, and
        gunicorn then waits for it in vain. The handler of SIGABRT is the last that a worker gets.
        """

        def ready() -> bool:
            workers = self.workers()
            try:
                deaf = [pid for pid in workers if not processes.catches(pid, signal.SIGABRT)]
            except (FileNotFoundError, ProcessLookupError):  # it ended just now
                return False
            return len(workers) == self._workers and not deaf

        until(ready, f"{self._workers} workers")

    def left(self) -> list[int]:
        """Every process of this server that is still alive, orphans included."""
        return sorted(process.pid for process in processes.alive() if process.group == self.pid)

    def kill(self, worker: int) -> None:
        """``kill -9`` one worker, and wait until it is gone."""
        assert worker in self.workers(), f"{worker} is none of {self.workers()}"
        os.kill(worker, signal.SIGKILL)
        until(lambda: processes.look_at(worker) is None, f"the end of {worker}", every=0.001)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        assert self._ended() is None, "gunicorn has ended"
        os.kill(self.pid, number)

    def stop(self, timeout: float = PATIENCE) -> int:
        """SIGTERM, and the exit code; negative for the signal that ended it.

        :raises AssertionError: it took longer than ``timeout`` seconds.
        """
        self.wait_for_workers()
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code of a server that is ending."""
        until(lambda: self._ended() is not None, "the end of gunicorn", timeout)
        code = self._ended()
        assert code is not None
        return code

    def complaints(self) -> list[str]:
        """The lines of the log that nobody wants to see."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if any(word in line for word in COMPLAINTS)]

    def _environment(self) -> dict[str, str]:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
        return {**outside, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **self._env}

    def _answers(self) -> bool:
        assert self._ended() is None, f"gunicorn ended at once: {self.log.read_text('utf-8', 'replace')}"
        return ask(self.port, method="OPTIONS").status == 200

    def _ended(self) -> int | None:
        # WNOWAIT leaves the zombie in place: until it is reaped, its id belongs to nobody else.
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def _end(self) -> None:
        """Whatever happened: afterwards none of its processes is left."""
        deadline = time.monotonic() + 5
        if self._ended() is None:
            os.kill(self.pid, signal.SIGTERM)
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(self.pid, signal.SIGKILL)  # its group is empty, save for the zombie, if all went well
        self._process.wait()
