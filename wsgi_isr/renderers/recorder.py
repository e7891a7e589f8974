"""The recorder: the process of an instance that adds up the counts of all others (:mod:`wsgi_isr.observe.aggregate`).

The supervisor forks it, and starts another one if it ends. It outlives workers and renderers: it ignores the signals
that stop a server, and ends when the supervisor says so in shared memory, after the last renderer. It answers no page,
so it may wait for the store: it writes the history there, in a thread of its own.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..observe import aggregate
from ..observe.aggregate import COUNTS, MAX_REPORT, NEW, TOTALS, Report, Sums
from ..observe.history import History, Minutes
from ..observe.totals import Totals
from .child_process import StopSignal, fork, status_of, wait_for

if TYPE_CHECKING:
    from ..middleware.isr import ISR

#: Seconds between two looks at the clock; for one reader of the totals; for the last record of the history.
_LOOK, _READER, _LAST_RECORD = 0.5, 0.25, 2.0
#: Reports that are read before readers get an answer.
_MOST_REPORTS = 1000
#: Seconds before another recorder is started.
_PAUSE = 1.0
_BACKLOG = 16

_log = logging.getLogger("wsgi_isr")


def record(place: str, sites: Mapping[bytes, ISR], ending: mmap.mmap, parent: int) -> int:
    """Run a recorder until its end; return the exit code.

    :param place: the folder of the sockets.
    :param sites: the apps by their digest.
    :param ending: one shared byte: 1 ends the recorder.
    :param parent: the process that it must not outlive.
    """
    reports, readers = _open(place)
    stopping = StopSignal(parent, reports, readers)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # a server's whole process group may get them, and workers count on
    sums, writer = Sums(), _HistoryWriter(sites)
    while not ending[0] and not stopping.orphaned:
        ready = stopping.wait(_LOOK)
        _read(reports, sums)
        if readers in ready:
            _answer(readers, sums)
        writer.write_due(sums)
    _read(reports, sums)
    writer.finish(sums)
    return 0


def _open(place: str) -> tuple[socket.socket, socket.socket]:
    """Return the socket for reports and the one for readers, in place of those of an earlier recorder."""
    opened = []
    for new, kind in zip(NEW, (socket.SOCK_DGRAM, socket.SOCK_STREAM), strict=True):
        one = socket.socket(socket.AF_UNIX, kind)
        one.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{place}/{new}")
        one.bind(f"{place}/{new}")
        if kind is socket.SOCK_STREAM:
            one.listen(_BACKLOG)
        opened.append(one)
    for name, new in zip((COUNTS, TOTALS), NEW, strict=True):
        os.rename(f"{place}/{new}", f"{place}/{name}")
    return opened[0], opened[1]


def _read(reports: socket.socket, sums: Sums) -> None:
    """Add the reports that have arrived."""
    for _ in range(_MOST_REPORTS):
        try:
            message = reports.recv(MAX_REPORT)
        except BlockingIOError:
            return
        try:
            sums.add(Report.decode(message))
        except ValueError as error:  # sent by another version of this package
            _log.debug("a report is left out: %s", error)


def _answer(readers: socket.socket, sums: Sums) -> None:
    """Send the totals to a reader. A reader that reads too slowly gets a part, which it cannot decode."""
    try:
        connection, _ = readers.accept()
    except OSError:  # the reader is gone
        return
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_READER)
        connection.sendall(sums.all().encode())


class _HistoryWriter:
    """Write the history of all apps, in a thread: the store may be slow or unreachable."""

    def __init__(self, sites: Mapping[bytes, ISR]) -> None:
        self._minutes: dict[bytes, Minutes] = {}
        for app, isr in sites.items():
            settings = isr.configuration.settings
            self._minutes[app] = Minutes(History(isr._store, settings.namespace, settings.signing_key), "instance")
        self._thread: threading.Thread | None = None

    def write_due(self, sums: Sums) -> None:
        """Start writing, if a minute has ended and the last writing as well."""
        is_busy = self._thread is not None and self._thread.is_alive()
        if not is_busy and any(minutes.is_due() for minutes in self._minutes.values()):
            self._start(sums)

    def finish(self, sums: Sums) -> None:
        """Write the last records, for at most so many seconds as are left to a process that ends."""
        if self._thread is not None:
            self._thread.join(_LAST_RECORD / 2)
        self._start(sums)
        if self._thread is not None:
            self._thread.join(_LAST_RECORD)

    def _start(self, sums: Sums) -> None:
        totals = {app: sums.of(app) for app in self._minutes}
        self._thread = threading.Thread(target=self._write, args=(totals,), name="wsgi-isr-history", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads
            self._thread = None

    def _write(self, totals: Mapping[bytes, Totals]) -> None:
        for app, minutes in self._minutes.items():
            try:
                minutes.write(totals[app])
            except Exception as error:  # of the store: the next record has these counts as well
                _log.debug("no record in the history: %s", error)


class RecorderProcess:
    """The recorder of an instance, as seen from the supervisor.

    :param place: the folder of the sockets.
    """

    def __init__(self, place: str, sites: Mapping[bytes, ISR], begin: Callable[[], int] | None = None) -> None:
        self._place = place
        self._app = next(iter(sites))
        me, ending = os.getpid(), mmap.mmap(-1, 1)
        self._ending = ending
        self._begin = begin or (lambda: fork("isr-recorder", lambda: record(place, sites, ending, me)))
        self._pid: int | None = None
        self._due = 0.0
        self._sender = os.urandom(8)
        self._restarts: dict[tuple[str, ...], int] = {}

    def look_after(self, now: float) -> None:
        """Start the recorder, or another one if it has ended.

        :param now: monotonic seconds.
        """
        if self._pid is not None and status_of(self._pid) is not None:
            _log.warning("the process that adds up counts has ended: they begin at zero")
            self._pid, self._due = None, now + _PAUSE
        if self._pid is None and now >= self._due:
            try:
                self._pid = self._begin()
            except OSError as error:  # no more processes, or no memory
                _log.warning("no process adds up counts (%s)", error.strerror)
                self._due = now + _PAUSE
        if self._restarts:
            self._report()

    def restarted(self, reason: str) -> None:
        """Count the end of a renderer."""
        self._restarts[(reason,)] = self._restarts.get((reason,), 0) + 1

    def stop(self) -> None:
        """End the recorder, after the last report of all others."""
        if self._pid is None:
            return
        self._report()
        self._ending[0] = 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCHLD)  # wakes it
        wait_for(self._pid, 2 * _LAST_RECORD)

    def _report(self) -> None:
        report = Report(self._app, self._sender, False, False, Totals(restarts=dict(self._restarts)))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            if aggregate.send(sender, self._place, report):
                self._restarts.clear()
