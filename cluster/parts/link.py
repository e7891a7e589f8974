"""The network between instances and a node: a proxy in a process of its own that can be cut and slowed down.

A proxy works on every system and without root. iptables and ``tc netem`` need root and affect other processes, too.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from ..errors import CannotStart, ClusterError
from . import ports
from .part import Part, importing


class Link(Part):
    """The way to one node, by the port of this part."""

    role: ClassVar[str] = "network"

    def __init__(self, name: str, log: Path | None, behind: int, port: int = 0) -> None:
        super().__init__(name, log, port)
        self._behind = behind
        self._control: socket.socket | None = None

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "cluster.parts.proxy", str(self.port), str(self._behind)]

    def environment(self) -> Mapping[str, str]:
        return importing()

    def launch(self) -> None:
        if self.leader is not None:
            raise CannotStart(f"{self.name} runs already")
        self.kill()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._spawn([*self.command(), str(theirs.fileno())], theirs)

    def kill(self) -> None:
        super().kill()
        if self._control is not None:
            self._control.close()
            self._control = None

    def is_ready(self) -> bool:
        return ports.answers(self.port)

    def cut(self) -> None:
        """Break open connections and refuse new ones."""
        self._tell("cut")

    def swallow(self) -> None:
        """Accept bytes and discard them, as a dead cable does."""
        self._tell("swallow")

    def heal(self) -> None:
        """End :meth:`cut`, :meth:`swallow` and :meth:`slow`."""
        self._tell("heal")

    @contextmanager
    def healed(self) -> Iterator[None]:
        """Call :meth:`heal` at the end of the block."""
        try:
            yield
        finally:
            self.heal()

    def slow(self, seconds: float) -> None:
        """Delay each answer by a random time of at most ``seconds``."""
        self._tell(f"slow {seconds:g}")

    def _tell(self, command: str) -> None:
        self.need()
        assert self._control is not None
        self._control.settimeout(5)
        try:
            self._control.sendall(command.encode() + b"\n")
            answer = self._control.recv(100)
        except OSError as error:
            raise ClusterError(f"{self.name} does not answer ({error}): restart it") from error
        if answer != b"done\n":
            raise ClusterError(f"{self.name} did not {command}: {answer.decode(errors='replace').strip()}")
