"""The items of this store in Redis: a header, and the value as it is.

| bytes | content |
| --- | --- |
| 1 | the format: 1 |
| 8 | the run of the server that took the write |
| 8 | the mark of the write: random |
| the rest | the value |

The header is the token of compare-and-swap. It differs after each write, also after a write of equal bytes. A
comparison of whole values was rejected: it misses such a write, and sends the old value once more.

A control key counts only in the run of the server that wrote it. A server that restarts from a snapshot has lost the
last writes. A replica that replaces its primary may lack them, too: replication is asynchronous. An old control key
would revive pages that were invalidated, so it is missing, as after a restart without a snapshot.
"""

from __future__ import annotations

import os

from ..base import is_control

FORMAT = b"\1"
_RUN = 8
_MARK = 8
#: The length of the header, in bytes.
HEADER = len(FORMAT) + _RUN + _MARK


def pack(run: bytes, value: bytes) -> bytes:
    """Return an item with a new mark.

    :param run: the run of the server, 8 bytes.
    """
    return b"".join((FORMAT, run, os.urandom(_MARK), value))


def unpack(key: str, run: bytes, item: bytes) -> bytes | None:
    """Return the value of an item; ``None`` for a useless item: of another program, format, or run of the server."""
    if len(item) < HEADER or not item.startswith(FORMAT):
        return None
    if is_control(key) and item[1 : 1 + _RUN] != run:
        return None
    return item[HEADER:]
