"""Interleaved rounds: every contestant gets a short slice of each, in turn.

A machine that slows down for a second slows down all contestants. The ratios within a round stay true.
"""

from __future__ import annotations

import gc
import io
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tests.benchmarks.report import Row

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: A function that makes so many calls and returns their duration in seconds.
Batch = Callable[[int], float]
#: CPU time of this thread: for code that does not wait. On an idle machine that is the time that passes. On a busy
#: machine, the time that passes is mostly that of other processes.
CPU = time.thread_time
#: The time that passes: for code that waits for another process.
PASSING = time.perf_counter

#: Seconds of one contestant in one round: long against the clock's resolution, short against the
#: time for which a shared machine stays as it is.
SLICE = 0.004
#: The number of environs that are made ahead. More of them would leave the heap fragmented, or returned to the
#: system, at the cost of the next contestant.
AT_ONCE = 50


def interleaved(contestants: Mapping[str, Batch], rounds: int) -> list[Row]:
    """Return the microseconds per call of each contestant, a sample for each round."""
    counts = {label: _count_for(batch) for label, batch in contestants.items()}
    samples: dict[str, list[float]] = {label: [] for label in contestants}
    # The collector stays on, as in a server, so that a contestant pays for the cycles that it makes. Objects
    # from before the first round are frozen: no contestant pays for them.
    gc.collect()
    gc.freeze()
    try:
        for turn in range(rounds):
            # The order changes, so that no contestant always runs after the same other one.
            for label, batch in random.Random(turn).sample(list(contestants.items()), len(contestants)):
                samples[label].append(batch(counts[label]) / counts[label] * 1e6)
    finally:
        gc.unfreeze()
    return [Row(label, values) for label, values in samples.items()]


def _count_for(batch: Batch) -> int:
    """Return the number of calls that fill a slice, by the best of some tries: the first ones are cold."""
    count = 1
    while (took := min(batch(count) for _ in range(5))) < SLICE / 4:
        count *= 2
    return max(1, round(count * SLICE / took))


def wsgi(app: WSGIApplication, environ: Mapping[str, Any], clock: Callable[[], float] = CPU) -> Batch:
    """Return a batch of requests as a server makes them: an environ for each, iterate, close.

    The environs are made outside of the measured time, because they are the server's work.
    """
    head: tuple[str, list[tuple[str, str]]]

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        nonlocal head
        head = status, headers
        return _no_write

    def batch(count: int) -> float:
        took = 0.0
        for done in range(0, count, AT_ONCE):
            environs = [{**environ, "wsgi.input": io.BytesIO()} for _ in range(min(AT_ONCE, count - done))]
            began = clock()
            for each in environs:
                body = app(each, start_response)
                for _ in body:
                    pass
                if hasattr(body, "close"):
                    body.close()
            took += clock() - began
        return took

    return batch


def plain(function: Callable[[], object], clock: Callable[[], float] = CPU) -> Batch:
    """Return a batch of calls of ``function``."""

    def batch(count: int) -> float:
        turns = range(count)
        began = clock()
        for _ in turns:
            function()
        return clock() - began

    return batch


def _no_write(chunk: bytes) -> object:
    raise NotImplementedError("no contestant uses write()")


def noise() -> Batch:
    """Do a fixed piece of arithmetic. Its rounds differ only by the load of the machine."""

    def work() -> int:
        total = 0
        for number in range(2000):
            total += number & 7
        return total

    return plain(work)


def noise_note(row: Row) -> str:
    """Return a line on the reliability of this machine's figures."""
    best = min(row.samples)
    slow = sorted(row.samples)[int(0.9 * (len(row.samples) - 1))]
    load = f"; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    return (
        f"noise: a fixed loop took {best:.0f} us at best, {row.median / best - 1:.0%} more at the median, "
        f"{slow / best - 1:.0%} more in the slowest tenth of {len(row.samples)} rounds{load}"
    )
