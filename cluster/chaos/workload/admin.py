"""A process that commits new versions of rows and invalidates them, again and again, until standard input ends.

It writes a line for each one (:meth:`~cluster.chaos.history.Invalidation.parse`) after the acknowledgement. A refused
or pending invalidation is repeated until then. ``WSGI_ISR_STORE`` is the store; ``WSGI_ISR_JOURNAL`` is the journal,
from which the servers deliver pending invalidations at the same time. ``CLUSTER_PAUSE`` is the mean of the seconds
between two.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from typing import Any

import wsgi_isr
from wsgi_isr import InvalidationError
from wsgi_isr.stores import open_store

from ..history import written
from .imported import import_first
from .site import ROWS, Database, selection
from .slow_store import SlowStore
from .tethered import stop_on_eof

MODES = ("stale", "expire", "purge")
#: Seconds between two attempts; and seconds for which the last invalidation is repeated.
AGAIN, PATIENCE = 0.05, 15.0


def main() -> None:
    """Commit and invalidate until standard input ends."""
    stopping = stop_on_eof()
    database = Database(os.environ["CLUSTER_DIRECTORY"])
    pause = float(os.environ["CLUSTER_PAUSE"])
    shared_store = open_store(os.environ["WSGI_ISR_STORE"])
    # Random kinds of callers: a job that opens the store for each call, a process that keeps it open, and one that
    # pauses between any two steps. Such pauses must not harm any invalidation.
    stores = (None, shared_store, SlowStore(shared_store))
    while not stopping.wait(min(random.expovariate(1 / pause), 10 * pause)):
        rows = _rows()
        sys.stdout.buffer.write(
            written(_invalidate(database, rows, random.choice(MODES), random.choice(stores), stopping))
        )
        sys.stdout.buffer.flush()
    shared_store.close()


def _rows() -> list[str]:
    """Draw the rows that change: mostly one, sometimes several."""
    every, single = "site", list(ROWS)[1:]
    if random.random() < 0.05:
        return [every]  # rarely, or no other version would ever matter
    if random.random() < 0.3:
        return [single[int(time.monotonic()) % len(single)]]  # by several admins at the same time
    return random.sample(single, random.choice((1, 1, 2, 3)))


def _invalidate(
    database: Database, rows: list[str], mode: str, store: object, stopping: threading.Event
) -> dict[str, Any]:
    versions = database.commit(rows)
    attempts: list[tuple[float, float, str]] = []
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        start, error = time.monotonic(), ""
        try:
            receipt = wsgi_isr.invalidate(**selection(rows), mode=mode, store=store)  # type: ignore[arg-type]
            receipt.raise_for_pending()
        except InvalidationError as refused:
            error = str(refused)
        attempts.append((start, time.monotonic(), error))
        if not error:
            break
        time.sleep(AGAIN)
        if stopping.is_set() and deadline is None:
            deadline = time.monotonic() + PATIENCE
    return {"rows": versions, "mode": mode, "attempts": attempts}


if __name__ == "__main__":
    import_first()
    main()
