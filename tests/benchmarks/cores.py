"""Which process computes on which core."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> tuple[set[int], set[int]]:
    """That of the worker, and those that it leaves to others: its own, where there is no other."""
    own, *others = sorted(os.sched_getaffinity(0))
    return {own}, set(others) or {own}


def take_cores() -> None:
    """The worker's core is its own. (On two cores a kernel moves three busy processes about, so that the worker would
    now and then share its core with a renderer.)"""
    own, spare = cores()
    renders = Path("/proc/self/comm").read_text().startswith("isr-")
    os.sched_setaffinity(0, spare if renders else own)
