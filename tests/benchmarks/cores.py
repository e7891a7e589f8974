"""Cores for the worker and for the renderers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def cores() -> tuple[set[int], set[int]]:
    """Return the core of the worker and the spare cores; on one core, the same one twice."""
    own, *others = sorted(os.sched_getaffinity(0))
    return {own}, set(others) or {own}


@contextlib.contextmanager
def on(some: set[int]) -> Iterator[None]:
    """Start the processes of the block on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, some)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def take_cores() -> None:
    """Pin this process: the worker to its core, renderers to the spare ones.

    Otherwise the kernel moves three busy processes between two cores, and the worker shares its core at times.
    """
    own, spare = cores()
    renders = Path("/proc/self/comm").read_text().startswith("isr-")
    os.sched_setaffinity(0, spare if renders else own)
