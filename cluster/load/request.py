"""One request on a connection of its own."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from ..parts.ports import HOST


@dataclass(frozen=True)
class Answer:
    """An answer. ``status`` is 0 where no complete answer came; ``error`` says why. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    error: str = ""

    def __getitem__(self, name: str) -> str:
        """Return a header; empty where there is none."""
        return self.headers.get(name.lower(), "")


def fetch(
    port: int, path: str, *, host: str = "", method: str = "GET", seconds: float = 20.0, **headers: str
) -> Answer:
    """Send a request to a port of this machine; an underscore in the name of a header stands for a hyphen."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'{HOST}:{port}'}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    try:
        with socket.create_connection((HOST, port), seconds) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            data = b""
            while piece := connection.recv(65536):
                data += piece
    except OSError as error:
        return Answer(0, {}, error=f"{type(error).__name__}: {error}")
    head, end, body = data.partition(b"\r\n\r\n")
    status, *rest = head.decode("latin-1").split("\r\n")
    if not end or not status.startswith("HTTP/1."):
        return Answer(0, {}, error=f"cut off after {len(data)} bytes")
    pairs = (line.partition(":") for line in rest)
    return Answer(int(status.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}, body)
