"""The directory of a cluster: what runs, for other terminals to read.

============== =========================================================================================
``lock``        held by the supervisor as long as it lives: one cluster for each directory. Where there is none, nothing
                else is ours, nor removed
``state.json``  what runs (:class:`State`); replaced as a whole, so nobody reads half of it
``control``     the socket by which the supervisor takes orders (:mod:`.control`)
``events``      a line for everything that was done to a part
``renders``     a line for each page that was rendered
``logs/``       what each part says
``journal``     invalidations that a node has missed, until the instances have delivered them
``site/``       the data that :mod:`.chaos` changes
``up.log``      what the supervisor says, where it runs in the background
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
#: The file in which instances note what was invalidated from them.
INVALIDATIONS = "invalidations"
#: What a cluster leaves in its directory, and removes there when the next one starts.
OURS = (
    *("state.json", "control", "events", "renders", INVALIDATIONS, "nginx.conf", "nginx.pid", "temp", "logs", "site"),
    *("journal", "journal.lock", "journal.turn"),
)
#: What one in the background says; who starts it makes a new one.
UP_LOG = "up.log"


@dataclass(frozen=True)
class PartState:
    """A part as it was started. ``pid`` and ``started`` together are one process, and no later one of that number."""

    name: str
    role: str
    address: str
    log: str
    pid: int = 0
    started: int = 0

    @property
    def state(self) -> str:
        """``running``, ``paused`` or ``dead``, at this moment."""
        process = processes.same(self.pid, self.started)
        if process is None:
            return "dead"
        return "paused" if process.is_stopped else "running"


@dataclass(frozen=True)
class State:
    """A cluster as other terminals see it.

    :param pid: the supervisor; with ``started`` one process for ever.
    :param keeper: the process that ends when nothing is left, in the same way; zeros for none.
    :param app: as it was named. :param url: for visitors. :param store: for invalidations.
    :param ready: everything has been started. :param cached: the app is wrapped in ISR.
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
        """:raises NoSuchPart: there is none of that name."""
        for part in self.parts:
            if part.name == name:
                return part
        raise NoSuchPart(f"there is no part {name!r}: {', '.join(part.name for part in self.parts)}")

    @classmethod
    def parse(cls, text: str) -> State:
        """The reverse of :meth:`written`."""
        read: dict[str, Any] = json.loads(text)
        return cls(
            **{**read, "parts": tuple(PartState(**part) for part in read["parts"]), "keeper": tuple(read["keeper"])}
        )

    def written(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


class Directory:
    """Where a cluster keeps its files.

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
        """In the block the directory is ours, and holds nothing of an earlier cluster.

        :raises CannotStart: another cluster runs there, or it cannot be used.
        """
        self.claim()
        with (self.path / "lock").open("a") as lock:
            # Who only looks whether somebody has the lock holds it for a moment.
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
        """Make it. With its lock, what has our names there is ours.

        :raises CannotStart: it cannot be made, or somebody else keeps something of that name there.
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
        """Nothing runs any more."""
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
        """Whether a supervisor lives. The kernel lets go of the lock when it does not, however it ended."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def write(self, state: State) -> None:
        """Replace what other terminals see."""
        unfinished = self.path / "state.json.new"
        unfinished.write_text(state.written())
        unfinished.replace(self._state)

    def read(self) -> State:
        """What runs. :raises Down: nothing does."""
        if self.is_owned():
            try:
                return State.parse(self._state.read_text())
            except FileNotFoundError:  # it starts, or ends, at this moment
                raise Down(f"the cluster in {self.path} is just starting or ending: try again") from None
        raise Down(f"no cluster runs in {self.path}: python -m cluster up")

    def is_ready(self) -> bool:
        """Whether a cluster runs, all of it."""
        try:
            return self.read().ready
        except Down:
            return False

    def note(self, event: Mapping[str, Any]) -> None:
        """A line for :meth:`noted`, with the time of ``time.monotonic``, which is one clock for all processes."""
        append(self.events, json.dumps({"at": time.monotonic(), **event}))

    def noted(self) -> list[dict[str, Any]]:
        """Everything that was done to the parts so far."""
        try:
            return [json.loads(line) for line in self.events.read_text().splitlines()]
        except FileNotFoundError:
            return []


def append(path: Path, line: str) -> None:
    """One write to a file opened for appending: lines of several processes never mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)
