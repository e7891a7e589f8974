"""Renderer processes: where an instance makes the pages that are due, so that its visitors do not feel it.

Three kinds of processes stand in a row, and each ends when the one before it is gone:

* the *watcher* is a child of the server's master. It is small, because it never loads the app, and begins another
  supervisor where one is killed;
* the *supervisor* loads the app and forks renderers, which share its memory until they change it. It replaces those
  that die, that rendered ``max_renders`` pages, or that hang in one, and stops them in a written order: no more jobs
  are taken, what runs gets ``drain_timeout`` seconds, what still runs is killed;
* the *renderers* (:mod:`.renderer`) render, at lower priority than who serves.

Jobs come over two sockets (:mod:`.remote`) that only the supervisor and its renderers hold: where these are gone, who
connects is refused at once, and renders itself. The watcher makes them, as the user that it runs as and before the
processes that connect: a server that root has started touches no file of another user.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from ..cache import renderer_pool as remote
from ..cache.renderer_pool import LATER, URGENT
from ..middleware import instances
from .child_process import StopSignal, ask_to_stop, die_with, fork, status_of, wait_for
from .worker import LOOK, Heartbeat, Sockets, render

#: How much nicer than the processes that serve.
NICENESS = 10
#: Jobs that wait for a renderer, on each socket.
BACKLOG = 128
#: What lived shorter than this is not replaced at once, in seconds; the first pause and the longest.
_SHORT_LIFE = 1.0
_PAUSE = (1.0, 30.0)
#: Seconds, beyond ``drain_timeout``, in which a renderer has to end that was asked to.
_LAST_WORDS = 1.0
#: Seconds in which a watcher has to have its sockets.
_BEGIN_IN = 10.0
#: Exit codes of a supervisor: it was asked to stop; the app does not import. 0: nobody wants renderers.
_STOPPED, _NO_APP = 75, 76

_log = logging.getLogger("wsgi_isr")


# The sockets -----------------------------------------------------------------------------------------------


def make_folder(server: int) -> str:
    """Return the path of a new folder for sockets, which only this user may enter.

    :param server: process id of the server's master. A folder whose master is gone is removed by the next server.
    :raises OSError: there is no place for it.
    """
    parent = _parent()
    _sweep(parent)
    owner = f"{server}-{_started(server)}-{_namespace()}"
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{owner}-", dir=parent)


_PREFIX = "wsgi-isr-"
#: A folder's name: of which process, started when, in which namespace.
_NAME = re.compile(rf"{_PREFIX}([0-9]{{1,9}})-([0-9]+)-([0-9a-f]+)-[a-z0-9_]+")
#: The name of a socket until it listens.
_NEW = "new"
#: Bytes that the address of a socket may have: 108 with the zero at its end on Linux, 104 elsewhere (unix(7)).
_LONGEST_ADDRESS = 103
#: Where there is a folder with a short path.
_SHORT = "/tmp"
#: Bytes that a folder's name and a socket's add to the address of the folder's parent, at the most.
_LONGEST_NAME = len(f"/{_PREFIX}{1 << 22}-{1 << 32}-{1 << 32:x}-12345678/{URGENT}")


def _parent() -> str:
    """Where folders for sockets are: a temporary folder of one's own can have a longer path than the address of a
    socket."""
    parent = tempfile.gettempdir()
    return parent if len(os.fsencode(parent)) + _LONGEST_NAME <= _LONGEST_ADDRESS else _SHORT


def _started(pid: int) -> str:
    """Return when a process was started, in ticks since boot (proc(5)): with it, a process id is unique for ever.

    Empty where the process is gone, ``0`` where that cannot be told.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return "0" if _exists(pid) else ""
    except (OSError, IndexError):
        return "0"


def _exists(pid: int) -> bool:
    """Return whether there is a process of that number. The mount option ``hidepid`` hides none from kill(2)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _namespace() -> str:
    """Where process ids mean what they mean here (pid_namespaces(7)): containers may share a temporary folder."""
    try:
        return f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        return "0"


def _sweep(parent: str) -> None:
    """Remove the folders of this user's servers that were killed with all their processes.

    Every user may write into ``parent``, so nothing that is found there is an error.
    """
    try:
        for name in os.listdir(parent):
            if (match := _NAME.fullmatch(name)) and match[3] == _namespace():
                now = _started(int(match[1]))
                if not now or (now != match[2] and "0" not in (now, match[2])):
                    remove_folder(os.path.join(parent, name))
    except OSError as error:
        _log.debug("old folders of sockets are not looked for: %s", error)


def remove_folder(folder: str) -> None:
    """Remove a folder of sockets where this user owns it, and nothing but sockets is in it.

    No link is followed and no tree removed: in a shared directory, any user may have made what has such a name.
    """
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(opened).st_uid != os.geteuid():
                return
            for name in (URGENT, LATER, _NEW):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=opened)
        finally:
            os.close(opened)
        os.rmdir(folder)
    except OSError as error:
        _log.debug("a folder of sockets stays: %s", error)


def open_sockets(folder: str) -> Sockets:
    """In the place of those that are there, if any: whoever connects from now on reaches these."""
    opened = []
    for name in (URGENT, LATER):
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{folder}/{_NEW}")
        listener.bind(f"{folder}/{_NEW}")
        listener.listen(BACKLOG)
        listener.setblocking(False)
        os.rename(f"{folder}/{_NEW}", f"{folder}/{name}")
        opened.append(listener)
    return Sockets(*opened)


# The parent's side -----------------------------------------------------------------------------------------


class Watcher:
    """The watcher of an instance, as its parent sees it.

    :param folder: where earlier watchers of the instance have their sockets, whose place its own take; ``None`` for a
        new folder. :param load: imports the app, in the supervisor.
    :param prepare: runs first in the watcher. It may change the user: all files are made after it, and are that user's.
    :raises OSError: the sockets cannot be made, and the watcher has ended.
    """

    def __init__(self, folder: str | None, load: Callable[[], object], prepare: Callable[[], object]) -> None:
        parent = os.getpid()
        #: One byte that both processes see: it ends because there is nothing to do, not because it was killed.
        self._content = mmap.mmap(-1, 1)
        hear, tell = socket.socketpair()

        def main() -> int:
            hear.close()
            return _watch(folder, load, prepare, parent, self._content, tell)

        with hear:
            with tell:
                self.pid = fork("isr-watcher", main)
            try:
                #: Where its sockets are.
                self.folder = _told(hear)
            except OSError:
                self.wait(_LAST_WORDS)
                raise

    @property
    def content(self) -> bool:
        """Whether it has found that there is nothing to do, and ended by itself."""
        return self._content[0] == 1

    @property
    def alive(self) -> bool:
        """Whether it is. Once it is not, its id may be that of anybody."""
        try:
            # It stays a zombie: the server's master has its own way to find out about its children.
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def stop(self) -> None:
        """Ask it to end; :meth:`wait` for that."""
        if self.alive:
            ask_to_stop(self.pid)

    def wait(self, timeout: float) -> None:
        """Until it has ended, at most ``timeout`` seconds; then it is killed, and those after it see that."""
        wait_for(self.pid, timeout)


def _told(hear: socket.socket) -> str:
    """Return the folder that a watcher names.

    :raises OSError: it has none, has ended, or says nothing for :data:`_BEGIN_IN` seconds.
    """
    hear.settimeout(_BEGIN_IN)
    said = hear.recv(4096)  # the whole message, which is sent at once
    if not said.startswith(b"/"):
        raise OSError(said.decode("utf-8", "replace") or "their watcher has ended")
    return os.fsdecode(said)


# The watcher -----------------------------------------------------------------------------------------------


def _watch(
    old_folder: str | None,
    load: Callable[[], object],
    prepare: Callable[[], object],
    parent: int,
    content: mmap.mmap,
    tell: socket.socket,
) -> int:
    """Have one supervisor after the other."""
    stopping = StopSignal(parent)
    remote.folder = None  # who renders for others asks nobody else
    prepare()
    # Only to wake it up: it has to clean up behind the others. Once more, because it may be another user now.
    die_with(parent, by=signal.SIGCONT)
    with tell:
        try:
            folder, first = _settle(old_folder, parent)
        except OSError as error:
            tell.sendall(str(error).encode("utf-8", "replace"))
            return 0
        tell.sendall(os.fsencode(folder))
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
                stopping.wait(LOOK)
            if status is None:
                while status_of(pid) is None:
                    ask_to_stop(pid)  # again and again: it may be loading an app that has handlers of its own
                    stopping.wait(LOOK)
                break
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            if code == 0 or (code == _NO_APP and not has_loaded):
                # Nobody wants renderers; or the app does not import, which workers say as well. Trying that again
                # would not lead to anything else.
                content[0] = 1
                return 0
            has_loaded = has_loaded or code != _NO_APP
            number = signal.SIGTERM if code == _STOPPED else os.WTERMSIG(status)
            why = f"it was stopped by signal {number:d}" if code in (None, _STOPPED) else "it has ended"
        pause = again.after(time.monotonic() - began)
        _log.warning("the supervisor of the renderer processes: %s; another one begins in %g s", why, pause)
        until = time.monotonic() + pause
        while not stopping and (left := until - time.monotonic()) > 0:
            stopping.wait(min(left, LOOK))
    if stopping.orphaned:
        remove_folder(folder)
    return 0


def _settle(folder: str | None, server: int) -> tuple[str, Sockets]:
    """Return the folder, new if there is none, and the sockets in it. :raises OSError: they cannot be made."""
    place = folder or make_folder(server)
    try:
        return place, open_sockets(place)
    except OSError:
        if folder is None:
            remove_folder(place)
        raise


class _RestartBackoff:
    """How long to wait before something begins again that has ended."""

    def __init__(self) -> None:
        self._pause = 0.0

    def after(self, life: float) -> float:
        """Seconds; none after a life that was long enough."""
        self._pause = 0.0 if life >= _SHORT_LIFE else min(max(_PAUSE[0], 2 * self._pause), _PAUSE[1])
        return self._pause


# The supervisor --------------------------------------------------------------------------------------------


def _supervise(sockets: Sockets, load: Callable[[], object], parent: int) -> int:
    """Load the app, and have its renderers."""
    os.nice(NICENESS)  # before that: loading is not to be felt either
    try:
        app = load()
    except Exception:
        _log.exception("the app does not import in the supervisor of the renderer processes")
        return _NO_APP
    # Of several that cannot be told apart none is served: a job might be another tenant's.
    sites = {isr._site: isr for isr in instances if isr._renders_elsewhere and isr._is_alone}
    if not sites:
        return 0
    # Only now is there something to come to an end, and the app may have had handlers of its own.
    stopping = StopSignal(parent)
    settings = [isr.configuration.settings for isr in sites.values()]
    me, drain = os.getpid(), max(each.drain_timeout for each in settings)

    def begin(board: Heartbeat) -> int:
        return fork("isr-renderer", lambda: render(sockets, sites, board, me))

    staff = ProcessPool(max(each.renderers for each in settings), begin)
    while not stopping:
        stopping.wait(staff.turn(time.monotonic()))
    sockets.close()
    staff.stop(drain + _LAST_WORDS)
    del app  # the only reference to what is wrapped
    return _STOPPED


class _Renderer(NamedTuple):
    began: float
    board: Heartbeat


class ProcessPool:
    """As many renderers as there should be.

    :param begin: forks one that writes on a board, and returns its process id.
    """

    def __init__(self, number: int, begin: Callable[[Heartbeat], int]) -> None:
        self._begin = begin
        self._working: dict[int, _Renderer] = {}
        self._leaving: dict[int, _Renderer] = {}
        self._due = [0.0] * number
        self._again = _RestartBackoff()

    def turn(self, now: float) -> float:
        """Do what is due; at most so many seconds until there is more to do."""
        self._look(now)
        for at in [at for at in self._due if at <= now]:
            board = None
            try:
                board = Heartbeat()
                self._working[self._begin(board)] = _Renderer(now, board)
            except OSError as error:  # no more processes, or no memory
                if board is not None:
                    board.close()
                _log.warning("no renderer process can be begun (%s)", error.strerror)
                self._due.append(now + _PAUSE[0])
            self._due.remove(at)
        return max(0.0, min([now + LOOK, *self._due]) - now)

    def _look(self, now: float) -> None:
        for pid, renderer in [*self._working.items(), *self._leaving.items()]:
            if (status := status_of(pid)) is not None:
                if pid in self._working:
                    self._due.append(now + self._again.after(now - renderer.began))
                if os.WIFSIGNALED(status):
                    _log.warning("a renderer process was killed by signal %d", os.WTERMSIG(status))
                self._working.pop(pid, None)
                self._leaving.pop(pid, None)
                renderer.board.close()
            elif 0 < renderer.board.until < now:
                _log.warning("a renderer process hangs in a render past its timeout, and is killed")
                os.kill(pid, signal.SIGKILL)
            elif pid in self._working and renderer.board.leaving:
                self._leaving[pid] = self._working.pop(pid)
                self._due.append(now)

    def stop(self, seconds: float) -> None:
        """Ask all to end; what has not after so many seconds is killed."""
        left = {*self._working, *self._leaving}
        for pid in left:
            ask_to_stop(pid)
        deadline = time.monotonic() + seconds
        while left := {pid for pid in left if status_of(pid) is None}:
            if time.monotonic() >= deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
