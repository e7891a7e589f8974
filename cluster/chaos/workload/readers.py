"""A process of visitors who read without end, and write a line for each answer.

:meth:`~cluster.chaos.history.Read.parse` reads these lines.

``CLUSTER_PORTS``: of the servers. ``CLUSTER_HOST``: the host name in requests, because a page belongs to its host,
whatever the port. ``CLUSTER_READERS``: how many visitors, each with a thread and a connection that is kept for a few
requests. ``CLUSTER_PAUSE``: seconds between two requests of a visitor, at most.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence

from ...parts.ports import HOST
from ..history import written
from .site import PAGES
from .tethered import stop_on_eof

#: Requests over one connection, at most.
KEPT = 30
#: Seconds after which a visitor gives up.
TIMEOUT = 20.0


class Malformed(ValueError):
    """A malformed answer: a cut connection does not excuse it."""


class Visitor:
    """One visitor: picks a page and a server, sends a request, writes the answer, pauses."""

    def __init__(self, ports: list[int], host: str, pause: float, stopping: threading.Event) -> None:
        self._ports = ports
        self._host = host
        self._pause = pause
        self._stopping = stopping
        self._connection: socket.socket | None = None
        self._left = 0
        self._port = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            path = random.choice(PAGES)
            # One write for each line, to a buffer that has a lock of its own.
            sys.stdout.buffer.write(written(self._read(path)))
            time.sleep(random.uniform(0.0, self._pause))
        self._drop()

    def _read(self, path: str) -> list[object]:
        start = time.monotonic()
        try:
            reused = self._connection is not None
            try:
                status, headers, body = self._ask(path)
            except (ConnectionError, EOFError):
                if not reused:
                    raise
                # A server may close an idle connection at any time; this is no error.
                self._drop()
                status, headers, body = self._ask(path)
        except (OSError, EOFError, Malformed) as error:
            self._drop()
            return [start, time.monotonic(), 0, "", path, self._port, f"{type(error).__name__}: {error}"]
        end = time.monotonic()
        self._left -= 1
        if self._left <= 0 or headers.get("connection") == "close":
            self._drop()
        try:
            page = json.loads(body)
        except ValueError:
            page = body.decode("utf-8", "replace")
        # Behind a balancer: the instance that it asked last.
        upstream = headers.get("x-upstream", "").rpartition(":")[2]
        port = int(upstream) if upstream.isdigit() else self._port
        detail = headers.get("cache-status", "")
        return [start, end, status, headers.get("x-isr", ""), path, port, page, detail]

    def _ask(self, path: str) -> tuple[int, dict[str, str], bytes]:
        connection = self._connection or self._connect()
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        return _answer(connection)

    def _connect(self) -> socket.socket:
        self._port = random.choice(self._ports)
        self._left = random.randint(1, KEPT)
        self._connection = socket.create_connection((HOST, self._port), TIMEOUT)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body.

    :raises EOFError: the connection ended before the answer did.
    :raises Malformed: the answer is not valid.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    try:
        number, length = int(status.split()[1]), int(headers["content-length"])
    except (ValueError, LookupError) as error:
        raise Malformed(f"{error!r} in {head[:200]!r}") from error
    while len(body) < length:
        body += _more(connection)
    if len(body) > length:
        raise Malformed(f"{len(body) - length} bytes more than Content-Length: {body[length:][:200]!r}")
    return number, headers, body


def _more(connection: socket.socket) -> bytes:
    if not (data := connection.recv(65536)):
        raise EOFError("the connection ended early")
    return data


def main() -> None:
    """Read until standard input ends."""
    stopping = stop_on_eof()
    ports = [int(port) for port in os.environ["CLUSTER_PORTS"].split(",")]
    host = os.environ["CLUSTER_HOST"]
    pause = float(os.environ["CLUSTER_PAUSE"])
    visitors = [Visitor(ports, host, pause, stopping) for _ in range(int(os.environ["CLUSTER_READERS"]))]
    sys.exit(visit(visitors, stopping))


def visit(visitors: Sequence[Visitor], stopping: threading.Event) -> int:
    """Let visitors read until ``stopping`` is set, and return the exit code.

    If one visitor fails, all end with 1: its missing reads would look like reads without errors.
    """
    dead: list[BaseException] = []

    def run(visitor: Visitor) -> None:
        try:
            visitor.run()
        except BaseException as error:
            traceback.print_exc()
            dead.append(error)
            stopping.set()

    threads = [threading.Thread(target=run, args=(visitor,)) for visitor in visitors]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
        sys.stdout.buffer.flush()
    sys.stdout.buffer.flush()
    return 1 if dead else 0


if __name__ == "__main__":
    main()
