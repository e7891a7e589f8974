"""A Redis or Valkey server for a test: one of :mod:`cluster.parts.redis` that runs as soon as it is made."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from cluster.parts.ports import HOST
from cluster.parts.redis import Server

__all__ = ["HOST", "Redis", "Sentinel"]


class Redis(Server):
    """One server on a free port, which it keeps when it is started again.

    A machine without a server fails the test: a skipped test would hide that the store is not tested.

    :param megabytes: memory for items.
    :param arguments: more arguments for the command line.
    """

    def __init__(self, megabytes: int = 256, arguments: Sequence[str] = ()) -> None:
        super().__init__("server", megabytes=megabytes, arguments=arguments)
        self.name = self.address  # the address in the URLs of stores
        self.start()

    def has(self, key: str) -> bool:
        """Return whether the server holds a key of a store with the default prefix, in database 0."""
        return self.say("EXISTS", f"wsgi_isr:{key}") == b":1\r\n"

    def restart_from_snapshot(self) -> None:
        """Kill the server, and start it with the last snapshot (``SAVE``)."""
        self.kill()
        super().start()

    def start(self) -> None:
        """Start the server, empty."""
        assert self.directory is not None
        (self.directory / "dump.rdb").unlink(missing_ok=True)
        super().start()

    def keys_read(self) -> int:
        """Return how many keys were read, found or not."""
        return self.figure("keyspace_hits") + self.figure("keyspace_misses")

    def figure(self, name: str) -> int:
        """Return a number of its ``INFO``."""
        [row] = [row for row in self.say("INFO").decode().splitlines() if row.startswith(f"{name}:")]
        return int(row.partition(":")[2])


class Sentinel(Redis):
    """A Sentinel, which watches no server.

    :param config: a file that it may write.
    """

    def __init__(self, config: Path) -> None:
        config.touch()
        self._config = config
        super().__init__()

    def command(self) -> Sequence[str]:
        return [super().command()[0], str(self._config), "--bind", HOST, "--port", str(self.port), "--sentinel"]

    def say(self, *words: str | bytes) -> bytes:
        """Send a command on a new connection, and return its answer: one piece, because a Sentinel knows no QUIT."""
        with socket.create_connection((HOST, self.port), 20) as connection:
            connection.sendall(" ".join(map(str, words)).encode() + b"\r\n")
            return connection.recv(65536)

    def watch(self, name: str, server: Redis) -> None:
        """Name a server, from now on."""
        self.say("SENTINEL", "REMOVE", name)
        assert self.say("SENTINEL", "MONITOR", name, HOST, str(server.port), "1") == b"+OK\r\n"
