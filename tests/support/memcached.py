"""Real memcached processes: started, paused, killed and started again, and ended by their pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import pytest

HOST = "127.0.0.1"
#: Seconds for a process to start or to end.
PATIENCE = 20.0


def binary() -> str:
    """Where memcached is; Debian's /usr/bin is on every PATH, others' sbin is not.

    A machine without it fails the test: skipped, nobody would notice that the cluster is not tested.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/bin", "/usr/bin", "/usr/sbin"])
    found = shutil.which("memcached", path=path)
    if found is None:
        pytest.fail("memcached is not installed: apt-get install memcached", pytrace=False)
    return found


class Memcached:
    """One node on a free port of 127.0.0.1, which it keeps when it is started again.

    :param megabytes: memory for items. :param arguments: more for the command line, such as ``-I``, ``512k``.
    """

    def __init__(self, megabytes: int = 64, arguments: Sequence[str] = ()) -> None:
        self._command = [binary(), "-l", HOST, "-U", "0", "-m", str(megabytes), "-t", "2", *arguments]
        if os.geteuid() == 0:  # memcached refuses to be root unless it is told to; the kernel's tether below
            self._command += ["-u", "root"]  # would not survive a change of user
        if (setpriv := shutil.which("setpriv")) is not None:
            # Ends with this process, even if that is killed while the node is paused (prctl(2), PR_SET_PDEATHSIG).
            self._command = [setpriv, "--pdeathsig", "KILL", *self._command]
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.start()

    @property
    def name(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    def start(self) -> None:
        """Start, or start again: empty, on the same port."""
        assert self._process is None, "it runs"
        complaint = b""
        for _ in range(20):  # somebody else may take the port between our look and memcached's
            port = self.port or _free_port()
            process = subprocess.Popen([*self._command, "-p", str(port)], stderr=subprocess.PIPE)
            if _answers(process, port):
                self._process, self.port = process, port
                return
            process.kill()
            complaint = process.communicate()[1]
            if b"in use" not in complaint:
                break
        pytest.fail(f"{' '.join(self._command)}: {complaint.decode()}")

    def kill(self) -> None:
        """End at once; harmless where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=PATIENCE)
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It hangs: the kernel takes connections and bytes for it, and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)  # its threads go on for a moment
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def say(self, *lines: str) -> list[bytes]:
        """Commands on a connection of their own, and all lines of the answer."""
        with socket.create_connection((HOST, self.port), PATIENCE) as connection:
            connection.sendall("\r\n".join([*lines, "quit", ""]).encode())
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        return answer.splitlines()

    def stats(self, of: str = "") -> dict[str, str]:
        """Its counters, or those of ``items``, ``settings``, ``slabs``."""
        rows = [line.decode().split(" ", 2) for line in self.say(f"stats {of}".strip()) if line != b"END"]
        return {row[1]: row[2] if len(row) > 2 else "" for row in rows}

    def has(self, key: str) -> bool:
        return self.say(f"mg {key}") == [b"HD"]

    def contents(self) -> set[str]:
        """The keys of everything that it holds. The crawler passes over what is locked at that moment, so it is sent
        round until it has found as many items as are counted."""
        found: set[str] = set()
        for _ in range(50):
            found |= self._dump()
            if len(found) >= int(self.stats()["curr_items"]):
                break
        return found

    def _dump(self) -> set[str]:
        with socket.create_connection((HOST, self.port), PATIENCE) as connection:
            connection.sendall(b"lru_crawler metadump all\r\n")
            answer = b""  # `say` would wait in vain: the crawler takes the connection over, and reads nothing
            while not answer.endswith(b"END\r\n"):
                piece = connection.recv(65536)
                assert piece, f"instead of keys, memcached said {answer!r}"
                answer += piece
        lines = answer.splitlines()
        return {unquote(line.split()[0].decode().partition("=")[2]) for line in lines if line.startswith(b"key=")}

    def flush(self) -> None:
        assert self.say("flush_all") == [b"OK"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until it does; ``False`` where it ended, or somebody else is on that port."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection((HOST, port), 1) as connection:
                connection.sendall(b"stats\r\n")
                return b"STAT pid %d\r\n" % process.pid in connection.recv(65536)
        except OSError:
            time.sleep(0.005)
    return False
