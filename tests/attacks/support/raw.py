"""Requests as bytes, valid or not."""

from __future__ import annotations

from socket import create_connection

from cluster.parts.ports import HOST
from tests.live.support.waiting import PATIENCE


def send(port: int, request: bytes) -> bytes:
    """Return all bytes until the server closes the connection, which may be none."""
    with create_connection((HOST, port), PATIENCE) as connection:
        answer = b""
        try:
            connection.sendall(request)
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionError:
            pass  # the server closed the connection early
        return answer


def request(target: bytes, *headers: bytes, method: bytes = b"GET", host: bytes = b"attacked.test") -> bytes:
    """Return a request with exactly these bytes in it."""
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: " + host, b"Connection: close", *headers]
    return b"\r\n".join([*lines, b"", b""])
