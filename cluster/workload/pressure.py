"""A process that fills memcached nodes with small keys, so that they evict others.

``CLUSTER_NODES``: their ports. ``CLUSTER_RATE``: keys for each node in a second.
"""

from __future__ import annotations

import os
import socket

from ..ports import HOST
from .tethered import until_told

#: Keys in one go, and the size of their values.
BATCH, SIZE = 250, 40


def main() -> None:
    """Until standard input ends."""
    told = until_told()
    nodes = [socket.create_connection((HOST, int(port)), 20) for port in os.environ["CLUSTER_NODES"].split(",")]
    pause = BATCH / float(os.environ["CLUSTER_RATE"])
    first = 0
    while not told.wait(pause):
        keys = range(first, first + BATCH)
        lines = "".join(f"set filler:{key} 0 0 {SIZE} noreply\r\n{'x' * SIZE}\r\n" for key in keys).encode()
        for node in nodes:
            node.sendall(lines)
        first += BATCH


if __name__ == "__main__":
    main()
