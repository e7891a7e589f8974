"""Renderer processes: an instance renders due pages in them, so that its clients do not notice.

There are three kinds of processes in a row. Each process ends when the one before it is gone.

* The *watcher* is a child of the server's master. It is small, because it never loads the app. It starts another
  supervisor if one is killed.
* The *supervisor* loads the app and forks renderers, which share its memory until they change it. It replaces renderers
  that die, that rendered ``max_renders`` pages, or that hang in a render. It stops them in a fixed order: no more jobs
  are taken, running jobs get ``drain_timeout`` seconds, then the renderers are killed.
* The *renderers* (:mod:`.worker`) render, at lower priority than the processes that serve.

Jobs arrive at two sockets (:mod:`wsgi_isr.cache.renderer_pool`) that only the supervisor and its renderers hold. If
these processes are gone, a client is refused at once, and renders itself. The watcher creates the sockets as its own
user, before the processes that connect: a server that root started touches no file of another user.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from ..cache import renderer_pool
from ..middleware.runtime import runtime
from ..observe import aggregate
from .child_process import StopSignal, ask_to_stop, die_with, fork, status_of, wait_for
from .folders import make_folder, open_sockets, remove_folder
from .recorder import RecorderProcess
from .worker import CHECK_PAUSE, HANGING, Heartbeat, Sockets, render

#: The niceness that renderers add to that of the processes that serve.
NICENESS = 10
#: A process with a shorter life, in seconds, is replaced after a pause: the first one, and the longest.
_SHORT_LIFE = 1.0
_PAUSE = (1.0, 30.0)
#: Seconds beyond ``drain_timeout`` in which a renderer must end after a request to stop.
_EXIT_GRACE = 1.0
#: Seconds in which a watcher must open its sockets.
_START_TIMEOUT = 10.0
#: Exit codes of a supervisor: it was asked to stop; the app does not import. 0: no app needs renderers.
_STOPPED, _NO_APP = 75, 76

_log = logging.getLogger("wsgi_isr")


# The parent's side -----------------------------------------------------------------------------------------


class Watcher:
    """The watcher of an instance, as seen from its parent.

    :param folder: the directory of an earlier watcher's sockets, which this one replaces; ``None`` for a new directory.
    :param load: imports the app, in the supervisor.
    :param prepare: runs first in the watcher. It may change the user: all files are created after it, by that user.
    :raises OSError: the sockets cannot be created, and the watcher has ended.
    """

    def __init__(self, folder: str | None, load: Callable[[], object], prepare: Callable[[], object]) -> None:
        parent = os.getpid()
        #: One shared byte: the watcher ended because there is nothing to do, and was not killed.
        self._content = mmap.mmap(-1, 1)
        hear, tell = socket.socketpair()

        def main() -> int:
            hear.close()
            return _watch(folder, load, prepare, parent, self._content, tell)

        with hear:
            with tell:
                self.pid = fork("isr-watcher", main)
            try:
                #: The directory of its sockets.
                self.folder = _read_folder(hear)
            except OSError:
                self.wait(_EXIT_GRACE)
                raise

    @property
    def content(self) -> bool:
        """Return whether the watcher has ended by itself because there is nothing to do."""
        return self._content[0] == 1

    @property
    def alive(self) -> bool:
        """Return whether the watcher is alive. After its end, its id may become that of any process."""
        try:
            # WNOWAIT leaves a zombie: the server's master collects its children in its own way.
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def stop(self) -> None:
        """Ask the watcher to end; :meth:`wait` waits for the end."""
        if self.alive:
            ask_to_stop(self.pid)

    def wait(self, timeout: float) -> None:
        """Wait until the watcher has ended, at most ``timeout`` seconds; then kill it, which its descendants notice."""
        wait_for(self.pid, timeout)


def _read_folder(hear: socket.socket) -> str:
    """Return the directory that a watcher reports.

    :raises OSError: it has none, has ended, or reports nothing for :data:`_START_TIMEOUT` seconds.
    """
    hear.settimeout(_START_TIMEOUT)
    message = hear.recv(4096)  # the whole message, which is sent at once
    if not message.startswith(b"/"):
        raise OSError(message.decode("utf-8", "replace") or "their watcher has ended")
    return os.fsdecode(message)


# The watcher -----------------------------------------------------------------------------------------------


def _watch(
    old_folder: str | None,
    load: Callable[[], object],
    prepare: Callable[[], object],
    parent: int,
    content: mmap.mmap,
    tell: socket.socket,
) -> int:
    """Run one supervisor after the other; return the exit code."""
    stopping = StopSignal(parent)
    renderer_pool.folder = None  # a renderer asks no other renderer
    prepare()
    # SIGCONT only wakes this process, which must clean up after the others. Repeated, because a change of the user in
    # prepare() undoes it.
    die_with(parent, by=signal.SIGCONT)
    with tell:
        try:
            folder, first = _settle(old_folder, parent)
        except OSError as error:
            tell.sendall(str(error).encode("utf-8", "replace"))
            return 0
        tell.sendall(os.fsencode(folder))
    aggregate.folder = folder
    sockets: Sockets | None = first
    me, again = os.getpid(), _RestartBackoff()
    has_loaded = False
    while not stopping:
        began = time.monotonic()
        try:
            listening = sockets or open_sockets(folder)
            sockets = None
            pid = fork("isr-supervisor", lambda: _supervise(listening, load, me))  # noqa: B023 - forked at once
            listening.close()
        except OSError as error:  # no more processes, or no memory
            why = error.strerror or "it cannot be begun"
        else:
            while (status := status_of(pid)) is None and not stopping:
                stopping.wait(CHECK_PAUSE)
            if status is None:
                while status_of(pid) is None:
                    ask_to_stop(pid)  # repeated: the app may install handlers of its own while it is loaded
                    stopping.wait(CHECK_PAUSE)
                break
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            if code == 0 or (code == _NO_APP and not has_loaded):
                # No app needs renderers; or the app does not import, which workers log as well. Another attempt would
                # give the same result.
                content[0] = 1
                return 0
            has_loaded = has_loaded or code != _NO_APP
            number = signal.SIGTERM if code == _STOPPED else os.WTERMSIG(status)
            why = f"it was stopped by signal {number:d}" if code in (None, _STOPPED) else "it has ended"
        pause = again.after(time.monotonic() - began)
        _log.warning("the supervisor of the renderer processes: %s; another one begins in %g s", why, pause)
        until = time.monotonic() + pause
        while not stopping and (left := until - time.monotonic()) > 0:
            stopping.wait(min(left, CHECK_PAUSE))
    if stopping.orphaned:
        remove_folder(folder)
    return 0


def _settle(folder: str | None, server: int) -> tuple[str, Sockets]:
    """Return the directory, new if there is none, and the sockets in it.

    :raises OSError: they cannot be created.
    """
    place = folder or make_folder(server)
    try:
        return place, open_sockets(place)
    except OSError:
        if folder is None:
            remove_folder(place)
        raise


class _RestartBackoff:
    """The pauses before a process that ended is started again."""

    def __init__(self) -> None:
        self._pause = 0.0

    def after(self, life: float) -> float:
        """Return the pause in seconds; 0 after a life that was long enough."""
        self._pause = 0.0 if life >= _SHORT_LIFE else min(max(_PAUSE[0], 2 * self._pause), _PAUSE[1])
        return self._pause


# The supervisor --------------------------------------------------------------------------------------------


def _supervise(sockets: Sockets, load: Callable[[], object], parent: int) -> int:
    """Load the app, and run its renderers; return the exit code."""
    os.nice(NICENESS)  # before loading, which must not slow down the server either
    try:
        app = load()
    except Exception:
        _log.exception("the app does not import in the supervisor of the renderer processes")
        return _NO_APP
    # Apps with the same identity are not served: a job might belong to another tenant.
    sites = {isr._app_digest: isr for isr in runtime.instances if isr._renders_elsewhere and isr._is_alone}
    if not sites:
        return 0
    # Only now there are renderers to stop, and the app may have installed handlers of its own.
    stopping = StopSignal(parent)
    settings = [isr.configuration.settings for isr in sites.values()]
    me, drain = os.getpid(), max(each.drain_timeout for each in settings)

    def begin(heartbeat: Heartbeat) -> int:
        return fork("isr-renderer", lambda: render(sockets, sites, heartbeat, me))

    recording = RecorderProcess(str(aggregate.folder), sites)
    pool = ProcessPool(max(each.renderers for each in settings), begin, recording.restarted)
    while not stopping:
        pause = pool.replace_due(time.monotonic())  # first: renders wait for these processes
        recording.look_after(time.monotonic())
        stopping.wait(pause)
    sockets.close()
    pool.stop(drain + _EXIT_GRACE)
    recording.stop()
    del app  # the only reference to the wrapped apps
    return _STOPPED


class _Renderer(NamedTuple):
    began: float
    heartbeat: Heartbeat


class ProcessPool:
    """A pool of ``number`` renderers.

    :param begin: forks a renderer that writes to a heartbeat, and returns its process id.
    :param on_end: called with the reason for the end of a renderer, one of ``RESTARTS`` of :mod:`..observe.counts`.
    """

    def __init__(
        self,
        number: int,
        begin: Callable[[Heartbeat], int],
        on_end: Callable[[str], object] = lambda reason: None,
    ) -> None:
        self._begin = begin
        self._on_end = on_end
        self._killed: set[int] = set()
        self._working: dict[int, _Renderer] = {}
        self._leaving: dict[int, _Renderer] = {}
        self._due = [0.0] * number
        self._again = _RestartBackoff()

    def replace_due(self, now: float) -> float:
        """Start and replace due renderers; return the seconds until the next call."""
        self._check(now)
        for at in [at for at in self._due if at <= now]:
            heartbeat = None
            try:
                heartbeat = Heartbeat()
                self._working[self._begin(heartbeat)] = _Renderer(now, heartbeat)
            except OSError as error:  # no more processes, or no memory
                if heartbeat is not None:
                    heartbeat.close()
                _log.warning("no renderer process can be begun (%s)", error.strerror)
                self._due.append(now + _PAUSE[0])
            self._due.remove(at)
        return max(0.0, min([now + CHECK_PAUSE, *self._due]) - now)

    def _check(self, now: float) -> None:
        for pid, renderer in [*self._working.items(), *self._leaving.items()]:
            if (status := status_of(pid)) is not None:
                if pid in self._working:
                    self._due.append(now + self._again.after(now - renderer.began))
                self._on_end(self._reason_of(pid, status))
                if os.WIFSIGNALED(status):
                    _log.warning("a renderer process was killed by signal %d", os.WTERMSIG(status))
                self._working.pop(pid, None)
                self._leaving.pop(pid, None)
                renderer.heartbeat.close()
            elif 0 < renderer.heartbeat.due < now:
                _log.warning("a renderer process hangs in a render past its timeout, and is killed")
                self._killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            elif pid in self._working and renderer.heartbeat.leaving:
                self._leaving[pid] = self._working.pop(pid)
                self._due.append(now)

    def _reason_of(self, pid: int, status: int) -> str:
        """Return why a renderer has ended."""
        if pid in self._killed or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == HANGING):
            self._killed.discard(pid)
            return "hanging"
        if os.WIFSIGNALED(status):
            return "killed"
        return "max-renders" if pid in self._leaving else "ended"

    def stop(self, seconds: float) -> None:
        """Ask all renderers to end; kill those that have not ended after so many seconds."""
        left = {*self._working, *self._leaving}
        for pid in left:
            ask_to_stop(pid)
        deadline = time.monotonic() + seconds
        while left := {pid for pid in left if status_of(pid) is None}:
            if time.monotonic() >= deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
