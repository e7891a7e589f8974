"""The directory of a cluster: what runs, for other terminals to read.

============== =========================================================================================
``lock``        held by the supervisor as long as it lives: one cluster for each directory. Without this file, no other
                file in the directory belongs to a cluster, and none is removed
``state.json``  the running parts (:class:`State`); replaced as a whole, so no reader sees half of it
``control``     the socket by which the supervisor takes orders (:mod:`.control`)
``events``      a line for each fault or order that a part got
``renders``     a line for each page that was rendered
``logs/``       the output of each part
``journal``     invalidations that a node has missed, until the instances have delivered them
``site/``       the data that :mod:`cluster.chaos` changes
``up.log``      the output of a supervisor in the background
============== =========================================================================================
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CannotStart, Down, NoSuchPart
from ..parts import processes

DEFAULT = ".cluster"
#: The file in which instances note their invalidations.
INVALIDATIONS = "invalidations"
#: Files that a cluster leaves in its directory; the next start removes them.
OURS = (
    *("state.json", "control", "events", "renders", INVALIDATIONS, "nginx.conf", "nginx.pid", "temp", "logs", "site"),
    *("journal", "journal.lock", "journal.turn"),
)
#: The output of a supervisor in the background; the starting command creates it anew.
UP_LOG = "up.log"


@dataclass(frozen=True)
class PartState:
    """A part as it was started. ``pid`` and ``started`` together identify one process for ever."""

    name: str
    role: str
    address: str
    log: str
    pid: int = 0
    started: int = 0

    @property
    def state(self) -> str:
        """Return ``running``, ``paused`` or ``dead``, at this moment."""
        process = processes.same(self.pid, self.started)
        if process is None:
            return "dead"
        return "paused" if process.is_stopped else "running"


@dataclass(frozen=True)
class State:
    """A cluster as other terminals see it.

    :param pid: the supervisor; together with ``started`` it identifies one process for ever.
    :param keeper: the process that ends last, identified in the same way; zeros for none.
    :param app: the app as the user named it.
    :param url: for visitors.
    :param store: for invalidations.
    :param ready: all parts have been started.
    :param cached: the app is wrapped in ISR.
    """

    pid: int
    started: int
    app: str
    url: str
    store: str
    ready: bool
    parts: tuple[PartState, ...]
    keeper: tuple[int, int] = (0, 0)
    cached: bool = True

    def part(self, name: str) -> PartState:
        """Return the part of that name. :raises NoSuchPart: there is none."""
        for part in self.parts:
            if part.name == name:
                return part
        raise NoSuchPart(f"there is no part {name!r}: {', '.join(part.name for part in self.parts)}")

    @classmethod
    def parse(cls, text: str) -> State:
        """Return the state in a text from :meth:`written`."""
        read: dict[str, Any] = json.loads(text)
        return cls(
            **{**read, "parts": tuple(PartState(**part) for part in read["parts"]), "keeper": tuple(read["keeper"])}
        )

    def written(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


class Directory:
    """The directory of a cluster's files.

    :param path: need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.events = self.path / "events"
        self.renders = self.path / "renders"
        self.invalidations = self.path / INVALIDATIONS
        self.journal = self.path / "journal"
        self.control = self.path / "control"
        self._state = self.path / "state.json"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the lock of the directory in the block, and remove the files of earlier clusters.

        :raises CannotStart: another cluster runs there, or the directory cannot be used.
        """
        self.claim()
        with (self.path / "lock").open("a") as lock:
            # A process that only checks for a holder takes the lock for a moment.
            for _ in range(20):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.01)
            else:
                raise CannotStart(
                    f"a cluster runs in {self.path} already: end it (python -m cluster down) or name "
                    "another --directory"
                )
            self._clear()
            self.logs.mkdir()
            try:
                yield
            finally:
                self.forget()

    def claim(self) -> None:
        """Create the directory with its lock. From then on, files in it with names of :data:`OURS` belong to a cluster.

        :raises CannotStart: it cannot be created, or has a foreign file of such a name.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = self.path / "lock"
            if not lock.exists():
                for name in (*OURS, UP_LOG):
                    if (self.path / name).exists():
                        raise CannotStart(f"{name} in {self.path} is not of a cluster: name another --directory")
                lock.touch()
        except OSError as error:
            raise CannotStart(f"{self.path} cannot be used ({error.strerror}): name another with --directory") from None

    def forget(self) -> None:
        """Remove the state: no cluster runs any more."""
        self._state.unlink(missing_ok=True)
        self.control.unlink(missing_ok=True)

    def _clear(self) -> None:
        for name in OURS:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def is_owned(self) -> bool:
        """Return whether a supervisor lives. The kernel releases the lock when it ends, even by SIGKILL."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def write(self, state: State) -> None:
        """Replace the state that other terminals read."""
        unfinished = self.path / "state.json.new"
        unfinished.write_text(state.written())
        unfinished.replace(self._state)

    def read(self) -> State:
        """Return the state. :raises Down: no cluster runs."""
        if self.is_owned():
            try:
                return State.parse(self._state.read_text())
            except FileNotFoundError:  # a cluster starts or ends at this moment
                raise Down(f"the cluster in {self.path} is just starting or ending: try again") from None
        raise Down(f"no cluster runs in {self.path}: python -m cluster up")

    def is_ready(self) -> bool:
        """Return whether a cluster runs with all of its parts."""
        try:
            return self.read().ready
        except Down:
            return False

    def note(self, event: Mapping[str, Any]) -> None:
        """Append an event for :meth:`noted`, with the time of ``time.monotonic``, one clock for all processes."""
        append(self.events, json.dumps({"at": time.monotonic(), **event}))

    def noted(self) -> list[dict[str, Any]]:
        """Return all events so far."""
        try:
            return [json.loads(line) for line in self.events.read_text().splitlines()]
        except FileNotFoundError:
            return []


def append(path: Path, line: str) -> None:
    """Append with one write, so that lines of several processes never mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)
