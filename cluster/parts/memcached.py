"""memcached nodes: real processes, with methods that inspect them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

from ..errors import ClusterError
from .part import PATIENCE, Part, program
from .ports import HOST


class Node(Part):
    """One node on 127.0.0.1. Started again, it is empty.

    :param megabytes: memory for items.
    :param arguments: more for the command line, such as ``-I``, ``512k``.
    """

    role: ClassVar[str] = "memcached"

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
        self._arguments = arguments

    def command(self) -> Sequence[str]:
        command = [program("memcached"), "-l", HOST, "-p", str(self.port), "-U", "0"]
        if os.geteuid() == 0:  # memcached refuses to run as root without -u; another user would lose the tether
            command += ["-u", "root"]
        return [*command, "-m", str(self._megabytes), "-t", "2", *self._arguments]

    def is_ready(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), 1) as connection:
                connection.sendall(b"stats\r\n")
                return b"STAT pid %d\r\n" % self.pid in connection.recv(65536)
        except OSError:
            return False

    def say(self, *lines: str) -> list[bytes]:
        """Send commands on a new connection and return all lines of the answer."""
        with socket.create_connection((HOST, self.port), PATIENCE) as connection:
            connection.sendall("\r\n".join([*lines, "quit", ""]).encode())
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        return answer.splitlines()

    def stats(self, of: str = "") -> dict[str, str]:
        """Return its counters, or those of ``items``, ``settings``, ``slabs``."""
        rows = [line.decode().split(" ", 2) for line in self.say(f"stats {of}".strip()) if line != b"END"]
        return {row[1]: row[2] if len(row) > 2 else "" for row in rows}

    def has(self, key: str) -> bool:
        """Return whether the node holds a key."""
        return self.say(f"mg {key}") == [b"HD"]

    def contents(self) -> set[str]:
        """Return the keys of all items. The crawler skips items that are locked at that moment, so it is sent again
        until it has found as many items as are counted."""
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
                if not (piece := connection.recv(65536)):
                    raise ClusterError(f"instead of its keys, {self.name} said {answer!r}")
                answer += piece
        lines = answer.splitlines()
        return {unquote(line.split()[0].decode().partition("=")[2]) for line in lines if line.startswith(b"key=")}

    def flush(self) -> None:
        """Drop all items. :raises ClusterError: the node does not run, or hangs."""
        self.need()
        if (answer := self.say("flush_all")) != [b"OK"]:
            raise ClusterError(f"{self.name} was not flushed: instead of OK, it said {answer!r}")
