"""A process that fills memcached nodes with small keys, so that they evict others.

``CLUSTER_NODES``: their ports. ``CLUSTER_RATE``: keys for each node in a second.
"""

from __future__ import annotations

import os
import socket
import threading

from ...parts.ports import HOST
from .tethered import stop_on_eof

#: Keys in one batch, and the size of their values.
BATCH, SIZE = 250, 40
#: Seconds until an unreachable node is tried again.
AGAIN = 0.1


def main() -> None:
    """Fill the nodes until standard input ends."""
    stopping = stop_on_eof()
    pause = BATCH / float(os.environ["CLUSTER_RATE"])
    for port in os.environ["CLUSTER_NODES"].split(","):
        # A thread for each node, so that a hung node does not hold up the others.
        threading.Thread(target=_fill, args=(int(port), pause, stopping), name=f"fill {port}", daemon=True).start()
    stopping.wait()


def _fill(port: int, pause: float, stopping: threading.Event) -> None:
    first = 0
    while not stopping.is_set():
        try:
            with socket.create_connection((HOST, port), 20) as node:
                while not stopping.wait(pause):
                    keys = range(first, first + BATCH)
                    value = "x" * SIZE
                    node.sendall(
                        "".join(f"set filler:{key} 0 0 {SIZE} noreply\r\n{value}\r\n" for key in keys).encode()
                    )
                    first += BATCH
        except OSError:
            stopping.wait(AGAIN)


if __name__ == "__main__":
    main()
