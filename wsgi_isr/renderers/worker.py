"""One renderer process: it takes jobs (:mod:`.remote`), as many at once as it has threads, until it has done enough
of them, one hangs, or it is asked to stop."""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from ..cache.renderer_pool import ACCEPTED, FAILED, MAX_JOB, UNKNOWN
from ..cache.task import Task
from ..config.wrapping import SITE_BYTES
from ..middleware import ISR
from ..process import close_all
from .child_process import StopSignal

#: Seconds between two looks at what nobody tells: a parent that is gone, a renderer that hangs.
LOOK = 0.5
#: Seconds that a job may take beyond all of its own limits, before its process is taken for hanging as a whole.
GRACE = 5.0
#: Seconds in which a job has to come, once its connection is there: it was sent before.
_ARRIVAL = 5.0

_log = logging.getLogger("wsgi_isr")


class Sockets(NamedTuple):
    """What renderers listen on."""

    urgent: socket.socket
    later: socket.socket

    def close(self) -> None:
        """In this process."""
        self.urgent.close()
        self.later.close()


class Heartbeat:
    """What a renderer tells its supervisor, in memory that both share: it works even where the renderer hangs in C
    code and no thread of it has a turn."""

    _FORM = struct.Struct("dd")

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, self._FORM.size)

    def say(self, until: float, leaving: bool) -> None:
        """:param until: the monotonic time at which it must have said something else, or be killed; 0 for never.
        :param leaving: it takes no more jobs, and another one may take its place."""
        self._FORM.pack_into(self._shared, 0, until, leaving)

    @property
    def until(self) -> float:
        """See :meth:`say`."""
        return float(self._FORM.unpack_from(self._shared)[0])

    @property
    def leaving(self) -> bool:
        """See :meth:`say`."""
        return bool(self._FORM.unpack_from(self._shared)[1])

    def close(self) -> None:
        """In this process."""
        self._shared.close()


def render(sockets: Sockets, sites: Mapping[bytes, ISR], board: Heartbeat, parent: int) -> int:
    """The whole life of a renderer."""
    stopping = StopSignal(parent, *sockets)
    settings = [isr.configuration.settings for isr in sites.values()]
    drain, left = max(each.drain_timeout for each in settings), max(each.max_renders for each in settings)
    desk = _JobRunner(sites, min(each.background_threads for each in settings), board)
    while left > 0 and not stopping and not desk.hangs:
        if not desk.is_free(LOOK):
            continue
        ready = stopping.wait(LOOK)
        # In this order: what somebody waits for goes first.
        for listener in sockets:
            if listener in ready and (connection := _accept(listener)) is not None:
                desk.take(connection)
                left -= 1
                break
    # Whoever connects from now on is for others; where there are none, they are told so at once.
    sockets.close()
    until = time.monotonic() + drain
    board.say(until + GRACE, leaving=True)
    if not stopping:
        os.kill(parent, signal.SIGCHLD)  # have a look: another one may begin
    desk.finish(drain)
    close_all(0.0 if desk.hangs else max(0.0, until - time.monotonic()))
    return 0


def _accept(listener: socket.socket) -> socket.socket | None:
    try:
        connection, _ = listener.accept()
    except OSError:  # another renderer was faster
        return None
    connection.settimeout(_ARRIVAL)
    return connection


class _JobRunner:
    """The jobs that a renderer has taken."""

    def __init__(self, sites: Mapping[bytes, ISR], threads: int, board: Heartbeat) -> None:
        self._sites = sites
        self._changed = threading.Condition()
        self._threads = threads
        self._board = board
        self._busy = 0
        self._numbers = itertools.count()
        self._limits: dict[int, float] = {}
        self._leaving = False
        #: A render ran past its timeout, and nobody can end it but the whole process.
        self.hangs = False

    def is_free(self, seconds: float) -> bool:
        """Whether one more can be taken, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy < self._threads, seconds)

    def take(self, connection: socket.socket) -> None:
        """Do the job that comes over ``connection``."""
        with self._changed:
            self._busy += 1
        threading.Thread(target=self._do, args=(connection,), name="wsgi-isr-job", daemon=True).start()

    def finish(self, seconds: float) -> None:
        """Wait for what runs, at most so long."""
        with self._changed:
            self._leaving = True
            self._changed.wait_for(lambda: self._busy == 0, seconds)

    def _do(self, connection: socket.socket) -> None:
        try:
            with connection:
                message = _read(connection)
                connection.sendall(ACCEPTED)  # in vain where it took us too long, and others do it
                connection.sendall(self._word(message))
        except OSError:
            pass  # who asked is gone; the page is there
        except Exception:
            _log.exception("a job for a renderer")
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _word(self, message: bytes) -> bytes:
        isr = self._sites.get(message[:SITE_BYTES])
        if isr is None:
            return UNKNOWN
        try:
            task = Task.unpack(message[SITE_BYTES:])
        except Exception:  # of another version of this package
            return UNKNOWN
        with self._limited(task.timeout + task.wait + GRACE):
            word = isr._engine.work(task)
        if word == FAILED + b"timeout":
            self.hangs = True
        return word

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """On the board stands when the first of all jobs must be over."""
        number = next(self._numbers)
        self._limit(number, time.monotonic() + seconds)
        try:
            yield
        finally:
            self._limit(number, None)

    def _limit(self, number: int, until: float | None) -> None:
        with self._changed:
            if until is not None:
                self._limits[number] = until
            else:
                del self._limits[number]
            if not self._leaving:
                self._board.say(min(self._limits.values(), default=0.0), leaving=False)


def _read(connection: socket.socket) -> bytes:
    parts, size = [], 0
    while size <= MAX_JOB and (part := connection.recv(65536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)
