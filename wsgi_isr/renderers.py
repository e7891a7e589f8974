"""Renderer processes: where an instance makes the pages that are due, so that its visitors do not feel it.

One supervisor for each instance loads the app and forks renderers, which share its memory until they change it. It
runs them at lower priority, replaces those that die, that rendered ``max_renders`` pages, or that hang in one, and
stops them in a written order: no more jobs are taken, what runs gets ``drain`` seconds, what still runs is killed.
Whoever's parent is gone ends as well.

Jobs come over two sockets (:mod:`.remote`); who listens on them is made before everybody who connects.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple, NoReturn

from . import remote
from .fill import Task
from .middleware import ISR, instances
from .process import close_all
from .remote import LATER, SITE_BYTES, UNKNOWN, URGENT

#: How much nicer than the processes that serve.
NICENESS = 10
#: Jobs that wait for a renderer, on each socket.
BACKLOG = 128
#: Seconds between two looks at what nobody tells: a parent that is gone.
_LOOK = 0.5
#: A renderer that lived shorter than this is not replaced at once, in seconds.
_SHORT_LIFE = 1.0

_log = logging.getLogger("wsgi_isr")


class Sockets(NamedTuple):
    """What renderers listen on, and the folder that it is in."""

    folder: str
    urgent: socket.socket
    later: socket.socket


def open_sockets(uid: int | None = None, gid: int | None = None) -> Sockets:
    """Made by the process that all others are forked from; they outlive every supervisor.

    :param uid: who the processes run as, if that is somebody else.
    """
    folder = remote.folder = tempfile.mkdtemp(prefix="wsgi-isr-")  # for its owner only
    opened = []
    for name in (URGENT, LATER):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/{name}")
        listener.listen(BACKLOG)
        listener.setblocking(False)
        opened.append(listener)
    if uid is not None and gid is not None and uid != os.geteuid():
        for path in (folder, f"{folder}/{URGENT}", f"{folder}/{LATER}"):
            os.chown(path, uid, gid)
    return Sockets(folder, *opened)


def close_sockets(sockets: Sockets) -> None:
    """For good."""
    remote.folder = None
    sockets.urgent.close()
    sockets.later.close()
    shutil.rmtree(sockets.folder, ignore_errors=True)


# The supervisor ------------------------------------------------------------------------------------------


class Supervisor:
    """A forked process that forks renderers; this is the side of its parent.

    :param load: imports the app, in the child. :param prepare: whatever else is to be done there before that.
    """

    def __init__(self, sockets: Sockets, load: Callable[[], object], prepare: Callable[[], object]) -> None:
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _run(lambda: _supervise(sockets, load, prepare, parent))

    def stop(self) -> None:
        """Ask it to end; :meth:`wait` for that."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float) -> None:
        """Until it has ended, at most ``timeout`` seconds; then it is killed, and its renderers see that."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(ChildProcessError):  # somebody else has reaped it
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                if time.monotonic() >= deadline:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    return
                time.sleep(0.02)


def _run(main: Callable[[], int]) -> NoReturn:
    """The whole life of a child: whatever happens, it does not return into its parent's code."""
    code = 1
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        _log.exception("a renderer process ended")
    finally:
        logging.shutdown()
        os._exit(code)


def _supervise(sockets: Sockets, load: Callable[[], object], prepare: Callable[[], object], parent: int) -> int:
    remote.folder = None  # who renders for others asks nobody else
    _name("isr-supervisor")
    stopping = _Stopping()
    prepare()
    app = load()
    wanted = [isr for isr in instances if isr.renders_elsewhere]
    if not wanted:
        return 0
    settings = [isr.config.settings for isr in wanted]
    number = max(setting.renderers for setting in settings)
    drain = max(setting.drain for setting in settings)
    os.nice(NICENESS)
    running: dict[int, float] = {}
    due = [0.0] * number
    while not stopping.asked and os.getppid() == parent:
        now = time.monotonic()
        for _ in range(sum(1 for at in due if at <= now)):
            running[_fork(lambda: _render(sockets, wanted))] = now
        due = [at for at in due if at > now]
        for pid in _reaped(running):
            began = running.pop(pid)
            due.append(now + _SHORT_LIFE if now - began < _SHORT_LIFE else now)
        stopping.wait(_LOOK if not due else 0.05)
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + drain + 1
    while running and time.monotonic() < deadline:
        for pid in _reaped(running):
            del running[pid]
        time.sleep(0.02)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    del app  # the only reference to what is wrapped
    return 0


def _fork(main: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        _run(main)
    return pid


def _reaped(running: dict[int, float]) -> list[int]:
    """Those that have ended. By their ids: the app may have children of its own."""
    return [pid for pid in running if os.waitpid(pid, os.WNOHANG)[0] == pid]


class _Stopping:
    """Whether this process was asked to end, and a way to wait for that."""

    def __init__(self) -> None:
        self.asked = False
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._ask)
        # Its parent's were for its parent; a child that ends has to wake somebody up.
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, self._nudge)

    def wait(self, seconds: float, *others: socket.socket) -> list[socket.socket]:
        """At most so long; those of ``others`` that somebody connects to."""
        ready, _, _ = select.select([self._woken, *others], [], [], seconds)
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                while self._woken.recv(64):
                    pass
        return [one for one in others if one in ready]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._nudge(number, frame)

    def _nudge(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b".")


def _name(name: str) -> None:
    """What ``ps -o comm`` and ``top`` show; Linux has room for 15 characters."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


# A renderer ----------------------------------------------------------------------------------------------


def _render(sockets: Sockets, sites: list[ISR]) -> int:
    """Take jobs until asked to stop, or enough of them."""
    parent = os.getppid()
    _name("isr-renderer")
    stopping = _Stopping()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    by_site = {isr.site: isr for isr in sites}
    settings = [isr.config.settings for isr in sites]
    threads, left = min(s.background_threads for s in settings), max(s.max_renders for s in settings)
    desk = _Desk(by_site, threads)
    while left > 0 and not stopping.asked and not desk.hangs and os.getppid() == parent:
        if not desk.is_free(_LOOK):
            continue
        ready = stopping.wait(_LOOK, sockets.urgent, sockets.later)
        # In this order: what somebody waits for goes first.
        for listener in (sockets.urgent, sockets.later):
            if listener in ready and (connection := _accept(listener)) is not None:
                desk.take(connection)
                left -= 1
                break
    desk.finish(max(s.drain for s in settings) if not desk.hangs else 1.0)
    close_all()
    return 0


def _accept(listener: socket.socket) -> socket.socket | None:
    try:
        connection, _ = listener.accept()
    except OSError:  # another renderer was faster
        return None
    connection.settimeout(5)
    return connection


class _Desk:
    """The jobs that a renderer has taken: as many at once as it has threads."""

    def __init__(self, sites: dict[bytes, ISR], threads: int) -> None:
        self._sites = sites
        self._changed = threading.Condition()
        self._threads = threads
        self._busy = 0
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
            self._changed.wait_for(lambda: self._busy == 0, seconds)

    def _do(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.sendall(self._word(_read(connection)))
        except OSError:
            pass  # who asked is gone; the page is there
        except Exception:
            _log.exception("a job for a renderer")
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _word(self, message: bytes) -> bytes:
        isr, job = self._sites.get(message[:SITE_BYTES]), message[SITE_BYTES:]
        if isr is None:
            return UNKNOWN
        word = isr.begin().fill.work(Task.unpack(job))
        if word == b"failed:timeout":
            self.hangs = True
        return word


def _read(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)
