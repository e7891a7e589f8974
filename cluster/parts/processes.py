"""Processes as the kernel sees them (proc(5)): state, parent, group, and start time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Process(NamedTuple):
    """A live process; a zombie is not live.

    ``started`` is in clock ticks since the machine booted. Together with ``pid`` it identifies one process, even after
    the kernel has given the number to another one.
    """

    pid: int
    parent: int
    group: int
    name: str = ""
    state: str = "S"
    started: int = 0

    @property
    def is_stopped(self) -> bool:
        """Return whether SIGSTOP has stopped it, until SIGCONT."""
        return self.state in "Tt"


def alive() -> Iterator[Process]:
    """Yield every live process."""
    for name in os.listdir(PROC):
        if name.isdigit() and (process := look_at(int(name))) is not None:
            yield process


def look_at(pid: int) -> Process | None:
    """Return the process ``pid``, or ``None`` where it is gone or a zombie."""
    try:
        stat = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may contain parentheses, so the last one counts.
    before, _, after = stat.rpartition(")")
    state, parent, group, *rest = after.split()
    name = before.partition("(")[2]
    return None if state in "ZX" else Process(pid, int(parent), int(group), name, state, int(rest[16]))


def same(pid: int, started: int) -> Process | None:
    """Return the process that ``pid`` and ``started`` identify; ``None`` where it is gone."""
    process = look_at(pid) if pid else None
    return process if process is not None and process.started == started else None


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to exactly that process; do nothing where it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        # The kernel may have reused the number since the look-up, but not since the descriptor was opened.
        if same(process.pid, process.started):
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def descendants(pid: int) -> list[Process]:
    """Return every live process below ``pid``, parents first."""
    everyone = list(alive())
    found: list[Process] = []
    generation = {pid}
    while generation:
        children = [process for process in everyone if process.parent in generation]
        found += children
        generation = {child.pid for child in children}
    return found


def threads(pid: int) -> int:
    """Return how many threads a process has, as the kernel counts them."""
    return len(os.listdir(PROC / str(pid) / "task"))


def command_line(pid: int) -> str:
    """Return the command line of a process; empty where the process is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def thread_names(pid: int) -> list[str]:
    """Return the names of the threads of a process."""
    return [(task / "comm").read_text().strip() for task in (PROC / str(pid) / "task").iterdir()]


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for that signal."""
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    raise AssertionError(f"no signals in /proc/{pid}/status")


def open_files(pid: int) -> list[str]:
    """Return the targets of a process's file descriptors."""
    found = []
    for link in (PROC / str(pid) / "fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:  # closed meanwhile
            pass
    return found
