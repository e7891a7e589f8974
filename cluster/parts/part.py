"""A part of the cluster: one program on one port, in a process group of its own.

Signals go to the group or its leader, and only while the leader has not been reaped. Until then, the kernel gives the
leader's number to no other process, even if the leader is dead. So a signal can never hit a foreign process.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, ClassVar

from ..errors import CannotStart, ClusterError
from . import ports, processes
from .processes import Process

TETHER = Path(__file__).with_name("tether.py")
#: This package's import path; children find this package and ``wsgi_isr`` there.
ROOT = Path(__file__).resolve().parents[2]
#: Seconds for a process to start or to end.
PATIENCE = 20.0
#: Directories of Debian that may be missing from PATH.
SBIN = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin")


class Part(ABC):
    """One part. A new part holds its port and does not run.

    Start it in a thread that outlives it: see :mod:`.tether`.

    :param log: the file to which its output is appended; ``None`` for no file.
    :param port: 0 for a free one, which the part keeps for good.
    """

    role: ClassVar[str]
    #: The signal that ends the part when the supervisor itself is killed.
    last_signal: ClassVar[str] = "KILL"
    #: Its working directory; ``None`` for ours.
    directory: Path | None = None
    #: The signal that asks the part to end.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_patience: ClassVar[float] = 5.0

    def __init__(self, name: str, log: Path | None = None, port: int = 0) -> None:
        self.name = name
        self.log = log
        place = ports.hold(port)
        self.port: int = place.getsockname()[1]
        self._give_port_back = weakref.finalize(self, place.close)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._said_before = 0

    @property
    def address(self) -> str:
        """Return the address that it listens on."""
        return f"{ports.HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Return the process id of its group's leader. :raises ClusterError: it was not started."""
        if self._process is None:
            raise ClusterError(f"{self.name} does not run")
        return self._process.pid

    @property
    def leader(self) -> Process | None:
        """Return its process; ``None`` after its end."""
        return None if self._process is None else processes.look_at(self._process.pid)

    @property
    def state(self) -> str:
        """Return ``running``, ``paused`` or ``dead``."""
        leader = self.leader
        return "dead" if leader is None else "paused" if leader.is_stopped else "running"

    def need(self) -> None:
        """Check that it runs. :raises ClusterError: it does not run, or hangs."""
        if (state := self.state) != "running":
            raise ClusterError(f"{self.name} {'hangs: resume it' if state == 'paused' else 'does not run: restart it'}")

    def group(self) -> list[Process]:
        """Return all of its live processes."""
        if self._process is None:
            return []
        return [process for process in processes.alive() if process.group == self._process.pid]

    # Hooks of the parts --------------------------------------------------------------------------------

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return its command line, with the path of the program. :raises CannotStart: the program is not installed."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether a running part does its work."""

    def environment(self) -> Mapping[str, str]:
        """Return its environment variables."""
        return os.environ

    # Start, stop and faults ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start on the same port as before, and wait until it is ready.

        :raises CannotStart: it does not start; the message has the reason in one line.
        """
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start the process without waiting. :raises CannotStart: it runs already, or the program is not installed."""
        if self.leader is not None:
            raise CannotStart(f"{self.name} runs already")
        self.kill()  # processes that the leader has left behind
        self._spawn(list(self.command()))

    def _spawn(self, command: Sequence[str], listener: socket.socket | None = None) -> None:
        self._said = self.log.open("ab+") if self.log else tempfile.TemporaryFile()  # noqa: SIM115 -- closed by kill()
        self._said_before = self._said.seek(0, os.SEEK_END)
        tethered = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), f"SIG{self.last_signal}", *command]
        self._process = subprocess.Popen(
            tethered,
            env=self.environment(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            pass_fds=[listener.fileno()] if listener else [],
            start_new_session=True,  # gives it a process group of its own; Ctrl-C in the terminal goes to us alone
        )

    def wait_until_ready(self, patience: float = PATIENCE) -> None:
        """Wait until it does its work. :raises CannotStart: it ended, or takes longer than ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while not self.has_started():
            if time.monotonic() > deadline:
                raise self._not_started(f"did not answer within {patience:g} s")
            time.sleep(0.01)

    def has_started(self) -> bool:
        """Return whether it is ready, after :meth:`launch`. :raises CannotStart: it has ended instead."""
        if (ended := self.exit_code()) is not None or self._process is None:
            raise self._not_started(f"ended with {_code(ended or 0)}")
        return self.is_ready()

    def _not_started(self, problem: str) -> CannotStart:
        said = self.reason() or "it said nothing"
        self.kill()
        return CannotStart(f"{self.name} {problem}: {said}{f' (see {self.log})' if self.log else ''}")

    def exit_code(self) -> int | None:
        """Return the exit code of its leader, negative for a signal; ``None`` while the leader lives."""
        if self._process is None:
            return None
        # WNOWAIT leaves the zombie in place: see the docstring of this module.
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def kill(self) -> None:
        """Send SIGKILL to all of its processes; do nothing where there is none."""
        if self._process is None:
            return
        deadline = time.monotonic() + PATIENCE
        while True:
            self._signal_group(signal.SIGKILL)
            if not self.group():
                break
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} (pid {self._process.pid}) does not end, not even by SIGKILL")
            time.sleep(0.002)
        self._process.wait()
        self._process = None
        if self._said is not None:
            self._said.close()

    def stop(self) -> int:
        """Ask it to end, kill it after a timeout, and return the exit code, negative for a signal."""
        self.ask_to_stop()
        return self.wait_for_stop()

    def ask_to_stop(self) -> None:
        """Send the signal of :meth:`stop` without waiting."""
        self._signal_group(signal.SIGCONT)
        self.send(self.stop_signal)

    def wait_for_stop(self) -> int:
        """Wait for the end after :meth:`ask_to_stop`; return the exit code."""
        deadline = time.monotonic() + self.stop_patience
        while (code := self.exit_code()) is None and time.monotonic() < deadline and self._process is not None:
            time.sleep(0.01)
        self.kill()
        return -signal.SIGKILL if code is None else code

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop its processes with SIGSTOP: the kernel still accepts connections and bytes; no process answers."""
        if self.leader is None:
            raise ClusterError(f"{self.name} does not run")
        self._signal_group(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # its threads go on for a moment

    def resume(self) -> None:
        """End :meth:`pause`."""
        if self.leader is None:
            raise ClusterError(f"{self.name} does not run: restart it")
        self._signal_group(signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause it in the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its leader alone; do nothing after the leader's end."""
        if self._process is not None and self.exit_code() is None:
            os.kill(self._process.pid, number)

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                pass

    def reason(self) -> str:
        """Return the line of its output since the launch that most likely explains why it does not work."""
        if self._said is None or self._said.closed:
            return ""
        self._said.seek(self._said_before)
        lines = [line.strip() for line in self._said.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return self.telling(lines) if lines else ""

    def telling(self, lines: Sequence[str]) -> str:
        """Return the most informative line."""
        return lines[-1]

    def close(self) -> None:
        """Kill it, and release its port."""
        self.kill()
        self._give_port_back()


def program(name: str, package: str = "") -> str:
    """Return the path of a program. :raises CannotStart: it is not installed; the message names the package."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN)))
    if found is None:
        raise CannotStart(f"{name} is not installed: apt-get install {package or name}")
    return found


def importing() -> dict[str, str]:
    """Return an environment with this package and ``wsgi_isr`` at the front of the import path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _code(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
