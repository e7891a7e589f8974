"""The app behind the cache, scripted by files, which reach a render in any process.

In the directory ``LIVE_DIRECTORY``:

==========  ==================================================================================
``renders``  gets a line at the start and at the end of each render (:class:`Origin` reads it)
``hold``     while this file exists, a render waits (if it names a process: in that one only) ...
``held``     ... and has written the id of its process here
==========  ==================================================================================

``LIVE_SLOW``: seconds that each render takes. ``LIVE_NATIVE=1``: a held render waits like C code or a long computation,
and lets no other greenlet run.

``OPTIONS`` requests bypass the cache and are no renders: they tell which process answers. With a query of
``stuck=PID`` that process never answers.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.parts import processes

from .waiting import until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: Seconds after which a held render goes on in any case: no test lasts that long.
LONGEST_HOLD = 60.0

_numbers = itertools.count(1)


def origin(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer as the WSGI app."""
    if environ["REQUEST_METHOD"] == "OPTIONS":
        if environ["QUERY_STRING"] == f"stuck={os.getpid()}":
            _native_sleep()(LONGEST_HOLD)
        return _send(start_response, {"pid": os.getpid()})
    directory = Path(os.environ["LIVE_DIRECTORY"])
    render = f"{os.getpid()}-{next(_numbers)}"
    page = {"render": render, "pid": os.getpid(), "path": environ["PATH_INFO"], "at": time.monotonic()}
    _append(directory / "renders", {**page, "what": "began", "thread": threading.current_thread().name})
    if _is_held(directory):
        _hold(directory)
    time.sleep(float(os.environ.get("LIVE_SLOW", "0")))
    _append(directory / "renders", {**page, "what": "ended", "at": time.monotonic()})
    return _send(start_response, page)


def _send(start_response: StartResponse, page: dict[str, Any]) -> Iterable[bytes]:
    body = json.dumps(page).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _append(path: Path, line: dict[str, Any]) -> None:
    # One write to a file opened for appending: lines of several processes never mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


def _hold(directory: Path) -> None:
    unfinished = directory / f"held.{os.getpid()}"
    unfinished.write_text(str(os.getpid()))
    os.replace(unfinished, directory / "held")  # atomic: readers never see half of the file
    sleep = _native_sleep() if os.environ.get("LIVE_NATIVE") else time.sleep
    deadline = time.monotonic() + LONGEST_HOLD
    while _is_held(directory) and time.monotonic() < deadline:
        sleep(0.01)


def _is_held(directory: Path) -> bool:
    try:
        return (directory / "hold").read_text() in ("", str(os.getpid()))
    except FileNotFoundError:
        return False


def _native_sleep() -> Callable[[float], None]:
    """Return ``time.sleep`` from before gevent's patch."""
    try:
        from gevent.monkey import get_original
    except ImportError:
        return time.sleep
    sleep: Callable[[float], None] = get_original("time", "sleep")
    return sleep


class Render(NamedTuple):
    """One call of the app; times are those of ``time.monotonic``. ``ended`` is ``None`` while it lasts."""

    name: str
    pid: int
    path: str
    thread: str
    began: float
    ended: float | None


class Origin:
    """The tests' side of the app.

    :param directory: an empty directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        #: Environment variables of the servers.
        self.env = {"LIVE_DIRECTORY": str(directory)}

    def renders(self) -> list[Render]:
        """Return every render so far, in the order of their starts."""
        found: dict[str, Render] = {}
        try:
            lines = (self._directory / "renders").read_text().splitlines()
        except FileNotFoundError:
            return []
        for line in map(json.loads, lines):
            if line["what"] == "began":
                name = line["render"]
                found[name] = Render(name, line["pid"], line["path"], line["thread"], line["at"], None)
            else:
                found[line["render"]] = found[line["render"]]._replace(ended=line["at"])
        return sorted(found.values(), key=lambda render: render.began)

    def settled(self) -> list[Render]:
        """Return every render, once each has ended, or its process has."""

        def over() -> bool:
            return all(render.ended or processes.look_at(render.pid) is None for render in self.renders())

        until(over, "the end of all renders")
        return self.renders()

    def hold(self) -> None:
        """Let every render wait, from now on."""
        (self._directory / "held").unlink(missing_ok=True)
        (self._directory / "hold").touch()

    def hold_only(self, pid: int) -> None:
        """Let the renders of other processes go on."""
        unfinished = self._directory / "hold.new"
        unfinished.write_text(str(pid))
        unfinished.replace(self._directory / "hold")

    def held(self) -> int:
        """Return the process that waits in a render, as soon as one does."""
        until((self._directory / "held").exists, "a render that is held")
        return int((self._directory / "held").read_text())

    def release(self) -> None:
        """End :meth:`hold`."""
        (self._directory / "hold").unlink()
