"""Fork processes that serve no requests: their start, the signals that stop them, and the detection of orphans."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from ..cache.courier import courier

#: The signals that ask a process to stop.
_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
#: Signals of a server's master that do not concern its children.
_NOT_FOR_US = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTTIN", "SIGTTOU")

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

_log = logging.getLogger("wsgi_isr")


def fork(name: str, main: Callable[[], int]) -> int:
    """Return the process id of a child with this ``name``, which runs ``main`` and exits with its result.

    Until the child makes a :class:`StopSignal`, a signal that asks it to stop ends it at once.
    """
    # A signal between the fork and the child's first line would reach the parent's handler, and be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKING)
    me = os.getpid()
    try:
        with courier.off():  # for the child's whole life: it must not deliver journals
            pid = os.fork()
            if pid == 0:
                _run(name, main, before, me)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(name: str, main: Callable[[], int], mask: set[int | signal.Signals], parent: int) -> NoReturn:
    """Run a child until its end; it never returns into its parent's code."""
    code = 1
    try:
        for number in _ASKING[:2]:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # the default would dump core
        for ignored in _NOT_FOR_US:
            signal.signal(getattr(signal, ignored), signal.SIG_IGN)
        for plain in (signal.SIGABRT, signal.SIGCHLD):
            signal.signal(plain, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _call_it(name)
        die_with(parent)
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        _log.exception("%s ended", name)
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Request a signal for the end of the parent, if the kernel supports it (prctl(2), PR_SET_PDEATHSIG).

    A process that hangs or is stopped does not notice that end itself. A change of the user undoes the request, so
    repeat it then.
    """
    if _prctl(_PR_SET_PDEATHSIG, by) and os.getppid() != parent:
        os._exit(1)  # the parent was gone before the call


def _call_it(name: str) -> None:
    """Set the name that ``ps -o comm`` and ``top`` show; Linux has room for 15 characters."""
    # /proc/self/comm does not work: after a change of the user, root owns that file (proc(5), dumpable).
    _prctl(_PR_SET_NAME, name.encode())


def _prctl(option: int, value: int | bytes) -> bool:
    """Call prctl(2); return ``False`` where the system has none."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # only in processes that this package forks

    ctypes.CDLL(None).prctl(option, value)
    return True


def ask_to_stop(pid: int) -> None:
    """Send SIGTERM; SIGCONT makes a process act on it that SIGSTOP has stopped."""
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)


def status_of(pid: int) -> int | None:
    """Return the wait status of a child that has ended, ``None`` while it is alive. It can be read once.

    The wait is for this id alone: the app may have other children.
    """
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # other code has already collected the status
        return 0
    return status if found == pid else None


def wait_for(pid: int, timeout: float) -> None:
    """Return once a child has ended; kill it after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while status_of(pid) is None:
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.02)


class StopSignal:
    """Whether this process was asked to stop, or has lost its parent, and a way to wait for that.

    :param parent: the process that it must not outlive.
    :param others: sockets to wait for as well.
    """

    def __init__(self, parent: int, *others: socket.socket) -> None:
        self._is_requested = False
        self._parent = parent
        self._woken, self._wake = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        for one in others:
            self._selector.register(one, selectors.EVENT_READ, one)
        for number in _ASKING:
            signal.signal(number, self._request)
        signal.signal(signal.SIGCHLD, self._nudge)  # the end of a child ends a wait

    @property
    def orphaned(self) -> bool:
        """Return whether the parent is gone."""
        return os.getppid() != self._parent

    def __bool__(self) -> bool:
        return self._is_requested or self.orphaned

    def wait(self, seconds: float) -> list[socket.socket]:
        """Wait at most so many seconds; return those of ``others`` with a new connection."""
        ready: list[socket.socket | None] = [key.data for key, _ in self._selector.select(seconds)]
        with contextlib.suppress(BlockingIOError):
            while None in ready and self._woken.recv(64):
                pass
        return [one for one in ready if one is not None]

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._is_requested = True
        self._nudge(number, frame)

    def _nudge(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b".")
