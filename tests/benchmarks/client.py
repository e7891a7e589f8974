"""A small HTTP client for machines without wrk: ``python client.py PORT PATH CONNECTIONS SECONDS [AGENTS]``.

One process and one thread ask on connections that stay open where the server allows it. The client prints a line once
it asks on every connection. At the end it prints requests per second, the 99th percentile of the seconds of an answer,
and the number of answers. With ``AGENTS``, a file of user agents, each request has the head of another visitor.
"""

from __future__ import annotations

import itertools
import os
import selectors
import sys
import time
from pathlib import Path
from socket import create_connection, socket


def main(port: int, path: str, connections: int, seconds: float, agents: str = "") -> None:
    host = "www.example.com" if agents else f"127.0.0.1:{port}"
    plain = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n"
    requests = itertools.cycle([f"{plain}{head}\r\n".encode() for head in _heads(agents)])
    took: list[float] = []
    with selectors.DefaultSelector() as selector:

        def ask(connection: socket) -> None:
            connection.sendall(next(requests))
            selector.register(connection, selectors.EVENT_READ, [time.perf_counter(), b""])

        for _ in range(connections):
            ask(create_connection(("127.0.0.1", port)))
        print("asking", flush=True)
        began = time.perf_counter()
        # On a machine that is busy elsewhere, until the first answer.
        while (now := time.perf_counter()) < began + seconds or not took:
            for key, _ in selector.select(max(0.0, began + seconds - now) or None):
                connection, state = key.fileobj, key.data
                assert isinstance(connection, socket)
                chunk = os.read(connection.fileno(), 65536)  # counted in /proc/self/io, as recv() is not
                state[1] += chunk
                head, ended, body = state[1].partition(b"\r\n\r\n")
                if chunk and (not ended or len(body) < _length(head)):
                    continue
                assert head.startswith(b"HTTP/1.1 200"), head
                took.append(time.perf_counter() - state[0])
                selector.unregister(connection)
                if not chunk or b"\r\nconnection: close" in head.lower():
                    connection.close()
                    connection = create_connection(("127.0.0.1", port))
                ask(connection)
        passed = time.perf_counter() - began
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket)
            key.fileobj.close()
    print(len(took) / passed, sorted(took)[int(len(took) * 0.99)], len(took))


def _heads(agents: str) -> list[str]:
    """Return the lines of the visitors in turn, as ``visitors.lua`` makes them."""
    if not agents:
        return [""]
    lines = Path(agents).read_text().splitlines()
    return [
        f"User-Agent: {lines[number % len(lines)]}\r\nX-Forwarded-For: 203.0.{number // 250}.{number % 250}\r\n"
        "Accept-Language: en-US,en;q=0.5\r\nX-Forwarded-Proto: https\r\n"
        for number in range(2048)
    ]


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])
