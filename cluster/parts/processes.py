"""Processes as the kernel sees them (proc(5)): who is alive, whose child, in which group, and since when."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Process(NamedTuple):
    """One that is alive; a zombie is not.

    ``started`` is in clock ticks since the machine booted: together with ``pid`` it is one process, and no other that
    is given the same number later.
    """

    pid: int
    parent: int
    group: int
    name: str = ""
    state: str = "S"
    started: int = 0

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP, until SIGCONT."""
        return self.state in "Tt"


def alive() -> Iterator[Process]:
    """Every process that is alive."""
    for name in os.listdir(PROC):
        if name.isdigit() and (process := look_at(int(name))) is not None:
            yield process


def look_at(pid: int) -> Process | None:
    """The process ``pid``, or ``None`` where it is gone, if only its exit code is left."""
    try:
        stat = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may contain any, so the last one counts.
    before, _, after = stat.rpartition(")")
    state, parent, group, *rest = after.split()
    name = before.partition("(")[2]
    return None if state in "ZX" else Process(pid, int(parent), int(group), name, state, int(rest[16]))


def same(pid: int, started: int) -> Process | None:
    """That very process; ``None`` where it is gone, whoever has its number now."""
    process = look_at(pid) if pid else None
    return process if process is not None and process.started == started else None


def send(process: Process, number: signal.Signals) -> None:
    """To that very process; harmless where it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        # The number may have changed hands since it was looked up, but not since the descriptor was opened.
        if same(process.pid, process.started):
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def descendants(pid: int) -> list[Process]:
    """Every process below ``pid`` that is alive, parents first."""
    everyone = list(alive())
    found: list[Process] = []
    generation = {pid}
    while generation:
        children = [process for process in everyone if process.parent in generation]
        found += children
        generation = {child.pid for child in children}
    return found


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
