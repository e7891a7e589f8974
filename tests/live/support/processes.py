"""Processes as the kernel sees them (proc(5)): who is alive, whose child, in which group."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Process(NamedTuple):
    """One that is alive; a zombie is not."""

    pid: int
    parent: int
    group: int
    name: str


def alive() -> Iterator[Process]:
    """Every process that is alive."""
    for name in os.listdir(PROC):
        if name.isdigit() and (process := look_at(int(name))) is not None:
            yield process


def look_at(pid: int) -> Process | None:
    """The process ``pid``, or ``None`` where it is gone, if only its exit code is left."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may contain any, so the last one counts.
    before, _, after = stat.rpartition(")")
    state, parent, group = after.split()[:3]
    return None if state in "ZX" else Process(pid, int(parent), int(group), before.partition("(")[2])


def threads(pid: int) -> int:
    """How many threads a process has, as the kernel counts them."""
    return len(os.listdir(PROC / str(pid) / "task"))


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for that signal."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    raise AssertionError(f"no signals in /proc/{pid}/status")


def open_files(pid: int) -> list[str]:
    """Where the descriptors of a process lead."""
    found = []
    for link in (PROC / str(pid) / "fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:  # closed meanwhile
            pass
    return found
