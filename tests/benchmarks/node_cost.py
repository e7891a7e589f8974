"""Measure the processor time that a command costs a memcached node: ``python -m tests.benchmarks.node_cost``.

Each client asks one question at a time, as processes do. The clients share the machine with the node. This does not
matter, because the node's own CPU time is counted (proc(5)).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

from tests.support.memcached import HOST, Memcached

CLIENTS, SECONDS = 4, 5.0


def microseconds(node: Memcached, size: int) -> float:
    """Return the node's microseconds for one ``get`` of so many bytes."""
    node.say(f"set k 0 0 {size}", "x" * size)
    answer = len(f"VALUE k 0 {size}\r\n\r\nEND\r\n") + size
    counts: list[int] = []
    began, used = time.monotonic(), _processor_time(node.pid)

    def ask() -> None:
        count = 0
        with socket.create_connection((HOST, node.port)) as connection:
            while time.monotonic() < began + SECONDS:
                connection.sendall(b"get k\r\n")
                left = answer
                while left:
                    left -= len(connection.recv(left))
                count += 1
        counts.append(count)

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return 1e6 * (_processor_time(node.pid) - used) / sum(counts)


def _processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    for size in (48, 20_000):
        node = Memcached()
        try:
            cost = microseconds(node, size)
        finally:
            node.kill()
        print(f"get of {size:,} bytes: {cost:.1f} µs, {1e6 / cost:,.0f} each second and core")


if __name__ == "__main__":
    main()
