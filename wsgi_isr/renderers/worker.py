"""Run one renderer process: it takes jobs (:mod:`wsgi_isr.cache.renderer_pool`), as many at once as it has threads.

It ends after ``max_renders`` jobs, after a job that hangs, or when it is asked to stop.
"""

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

from ..cache.executor import Reply, Status
from ..cache.renderer_pool import ACCEPTED, MAX_JOB, encode
from ..cache.task import unpack
from ..config.wrapping import APP_DIGEST_BYTES
from ..middleware.isr import ISR
from ..middleware.process import close_all
from ..middleware.runtime import runtime
from .child_process import StopSignal

#: Seconds between two checks for events without a signal: the end of the parent, a renderer that hangs.
CHECK_PAUSE = 0.5
#: Seconds that a job may take beyond its own limits, before its whole process counts as hanging.
GRACE = 5.0
#: Seconds in which a job must arrive after its connection; it was sent before.
_ARRIVAL = 5.0
#: The exit code of a renderer that ends because a job of it hangs.
HANGING = 77

_log = logging.getLogger("wsgi_isr")


class Sockets(NamedTuple):
    """The sockets that renderers listen on."""

    urgent: socket.socket
    later: socket.socket

    def close(self) -> None:
        """Close them in this process."""
        self.urgent.close()
        self.later.close()


class Heartbeat:
    """The state that a renderer reports to its supervisor, in shared memory.

    The supervisor can read it even if the renderer hangs in C code and none of its threads runs.
    """

    _FORM = struct.Struct("dd")

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, self._FORM.size)

    def report(self, until: float, leaving: bool) -> None:
        """Report the state.

        :param until: the monotonic time of the next report; the renderer is killed if it is late. 0 for never.
        :param leaving: the renderer takes no more jobs, and another one may replace it.
        """
        self._FORM.pack_into(self._shared, 0, until, leaving)

    @property
    def due(self) -> float:
        """Return the monotonic time of the next report; see :meth:`report`."""
        return float(self._FORM.unpack_from(self._shared)[0])

    @property
    def leaving(self) -> bool:
        """Return whether the renderer takes no more jobs; see :meth:`report`."""
        return bool(self._FORM.unpack_from(self._shared)[1])

    def close(self) -> None:
        """Close it in this process."""
        self._shared.close()


def render(sockets: Sockets, sites: Mapping[bytes, ISR], heartbeat: Heartbeat, parent: int) -> int:
    """Run a renderer until its end; return the exit code."""
    runtime.role = "renderer"
    stopping = StopSignal(parent, *sockets)
    settings = [isr.configuration.settings for isr in sites.values()]
    drain, left = max(each.drain_timeout for each in settings), max(each.max_renders for each in settings)
    runner = _JobRunner(sites, min(each.background_threads for each in settings), heartbeat)
    while left > 0 and not stopping and not runner.hangs:
        if not runner.is_free(CHECK_PAUSE):
            continue
        ready = stopping.wait(CHECK_PAUSE)
        # In this order: clients wait for urgent jobs.
        for listener in sockets:
            if listener in ready and (connection := _accept(listener)) is not None:
                runner.take(connection)
                left -= 1
                break
    # Other renderers take new connections; without any, the connections are refused at once.
    sockets.close()
    until = time.monotonic() + drain
    heartbeat.report(until + GRACE, leaving=True)
    if not stopping:
        os.kill(parent, signal.SIGCHLD)  # wakes the supervisor: another renderer may start
    runner.finish(drain)
    close_all(0.0 if runner.hangs else max(0.0, until - time.monotonic()))
    return HANGING if runner.hangs else 0


def _accept(listener: socket.socket) -> socket.socket | None:
    try:
        connection, _ = listener.accept()
    except OSError:  # another renderer was faster
        return None
    connection.settimeout(_ARRIVAL)
    return connection


class _JobRunner:
    """The jobs that a renderer has taken."""

    def __init__(self, sites: Mapping[bytes, ISR], threads: int, heartbeat: Heartbeat) -> None:
        self._sites = sites
        self._changed = threading.Condition()
        self._threads = threads
        self._heartbeat = heartbeat
        self._busy = 0
        self._numbers = itertools.count()
        self._limits: dict[int, float] = {}
        self._leaving = False
        #: Whether a render ran past its timeout: only the end of the process ends it.
        self.hangs = False

    def is_free(self, seconds: float) -> bool:
        """Return whether another job can be taken, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._busy < self._threads, seconds)

    def take(self, connection: socket.socket) -> None:
        """Run the job that arrives over ``connection``."""
        with self._changed:
            self._busy += 1
        threading.Thread(target=self._do, args=(connection,), name="wsgi-isr-job", daemon=True).start()

    def finish(self, seconds: float) -> None:
        """Wait for running jobs, at most so many seconds."""
        with self._changed:
            self._leaving = True
            self._changed.wait_for(lambda: self._busy == 0, seconds)

    def _do(self, connection: socket.socket) -> None:
        try:
            with connection:
                message = _read(connection)
                # In vain after a long delay: the client has given the job to another process.
                connection.sendall(ACCEPTED)
                connection.sendall(encode(self._reply_to(message)))
        except OSError:
            pass  # the client is gone; the page is stored
        except Exception:
            _log.exception("a job for a renderer")
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _reply_to(self, message: bytes) -> Reply:
        isr = self._sites.get(message[:APP_DIGEST_BYTES])
        if isr is None:
            return Reply(Status.UNKNOWN)
        try:
            task, attempt = unpack(message[APP_DIGEST_BYTES:])
        except Exception:  # sent by another version of this package
            return Reply(Status.UNKNOWN)
        with self._limited(task.limits.timeout + task.limits.wait + GRACE):
            reply = isr._engine.run_job(task, attempt)
        if reply.status is Status.FAILED and reply.reason == "timeout":
            self.hangs = True
        return reply

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """Report the time at which the first of all jobs must have ended."""
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
                self._heartbeat.report(min(self._limits.values(), default=0.0), leaving=False)


def _read(connection: socket.socket) -> bytes:
    parts, size = [], 0
    while size <= MAX_JOB and (part := connection.recv(65536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)
