"""Clients of a worker with an event loop, and the app behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.support.workers import PATIENCE, RunningWorker

Run = Callable[..., RunningWorker]

HOST = b"Host: site.example\r\n"
#: Bytes of a page that fits no buffer of a socket.
BIG = 6_000_000


class Answer(NamedTuple):
    """A response, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def label(self) -> str:
        return self.headers["x-isr"]


class Client:
    """One connection to a worker."""

    def __init__(self, worker: RunningWorker) -> None:
        self.sock = worker.connect()
        self.file = self.sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read(self, method: str = "GET") -> Answer:
        """Read one response. :raises EOFError: the worker has closed the connection."""
        line = self.file.readline()
        if not line:
            raise EOFError
        headers: dict[str, str] = {}
        while (field := self.file.readline()) != b"\r\n":
            name, _, value = field.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        status = int(line.split()[1])
        length = 0 if method == "HEAD" or status == 304 else int(headers.get("content-length", "0"))
        return Answer(status, headers, self.file.read(length))

    def get(self, path: str = "/a", *fields: bytes, method: str = "GET") -> Answer:
        more = b"".join(field + b"\r\n" for field in fields)
        self.send(b"%s %s HTTP/1.1\r\n%s%s\r\n" % (method.encode(), path.encode(), HOST, more))
        return self.read(method)

    def is_closed(self) -> bool:
        """Wait for the end of the connection; return whether no byte came before."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.sock.close()


class Pages:
    """The app behind the cache, and its renders."""

    def __init__(self) -> None:
        self.renders: list[str] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        path = environ["PATH_INFO"]
        self.renders.append(path)
        if path == "/held":
            self.entered.release()
            assert self.gate.wait(PATIENCE)
        size = BIG if path == "/big" else 1000
        kind = "text/plain" if path == "/text" else "application/octet-stream"
        start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(size))])
        return [f"{path} {len(self.renders)} ".encode().ljust(size, b".")]


Connect = Callable[[RunningWorker], Client]


def warm(client: Client, path: str = "/a", *fields: bytes) -> Answer:
    """Have a page rendered and prepared, and return the hit."""
    client.get(path, *fields)
    return client.get(path, *fields)


def until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.005)
