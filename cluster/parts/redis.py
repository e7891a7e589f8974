"""Redis servers, or Valkey ones: real processes, with methods that inspect them."""

from __future__ import annotations

import shutil
import socket
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ..errors import CannotStart, ClusterError
from .part import PATIENCE, Part, program
from .ports import HOST


class Server(Part):
    """One server on 127.0.0.1 without persistence. Started again, it is empty.

    :param megabytes: memory for items. A full server evicts keys with an expiry.
    :param arguments: more for the command line, such as ``--requirepass``, ``secret``.
    """

    role: ClassVar[str] = "redis"

    def __init__(
        self,
        name: str,
        log: Path | None = None,
        port: int = 0,
        *,
        megabytes: int = 64,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(name, log, port)
        self._megabytes = megabytes
        self.arguments = tuple(arguments)
        # A server reads a snapshot in its directory at its start. A replica leaves one there.
        self.directory = Path(tempfile.mkdtemp(prefix="isr-redis-"))
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)

    def command(self) -> Sequence[str]:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "save": "",
            "appendonly": "no",
            "maxmemory": f"{self._megabytes}mb",
            "maxmemory-policy": "volatile-lru",
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [_program(), *words, *self.arguments]

    def is_ready(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(65536).startswith((b"+PONG", b"-"))
        except OSError:
            return False

    def say(self, *words: str | bytes) -> bytes:
        """Send a command on a new connection, and return its answer as the server writes it, up to the first pause."""
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        request = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        with socket.create_connection((HOST, self.port), PATIENCE) as connection:
            connection.sendall(request + b"*1\r\n$4\r\nQUIT\r\n")
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        return answer.removesuffix(b"+OK\r\n")

    def contents(self) -> set[str]:
        """Return all keys. (For tests: the store itself never asks for all keys.)"""
        return {word.decode() for word in self.say("KEYS", "*").split(b"\r\n")[2::2]}

    def flush(self) -> None:
        """Drop all keys. :raises ClusterError: the server does not run, or hangs."""
        self.need()
        if (answer := self.say("FLUSHALL")) != b"+OK\r\n":
            raise ClusterError(f"{self.name} was not flushed: instead of OK, it said {answer!r}")


def _program() -> str:
    try:
        return program("redis-server")
    except CannotStart:
        return program("valkey-server", "redis-server")
