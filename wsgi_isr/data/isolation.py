"""Isolation of shared data: its functions run in a thread and a context that serve no client.

Context variables and thread-locals hold data of the current request: a user, a session, a host, a language.
Middlewares, frameworks and the app set them. A function whose result is stored must find none of them.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from contextvars import Context, ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ..cache.single_flight import Flight, leading, led

if TYPE_CHECKING:
    import queue

T = TypeVar("T")

#: Seconds after which an idle thread ends, and its database connections with it.
IDLE_TIMEOUT = 1.0

#: The file name of the import machinery's own code.
_IMPORT_CODE = "<frozen importlib._bootstrap>"

_is_isolated: ContextVar[bool] = ContextVar("wsgi_isr_isolated", default=False)


def is_importing() -> bool:
    """Return whether the caller runs during the import of a module: once in a process, for all clients."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_CODE:
            return True
        frame = frame.f_back
    return False


class NoThread(RuntimeError):
    """No thread could be started: the system has none, or the interpreter is shutting down."""


class Overdue(RuntimeError):
    """A function has not returned before its timeout. It may wait for a lock that its caller holds."""


class Isolation:
    """Threads that serve no client. Each caller waits for its function, so there are as many threads as callers.

    :param at_end: called in a thread before it ends. With it, a thread runs several functions in turn, and they share
        thread-local database connections. Give it only where the transactions of a function end with the function.
    :param inline: run all functions in the calling thread, because a test has begun a transaction there.
    """

    def __init__(self, at_end: Callable[[], None] | None = None, inline: bool = False) -> None:
        self._at_end = at_end
        self._inline = inline
        # list.append, pop and remove are atomic.
        self._idle: list[queue.SimpleQueue[_Job]] = []

    def run(self, function: Callable[[], T], timeout: float, in_caller: bool = False) -> T:
        """Return the result of ``function`` in a thread and a context of its own, or raise its exception.

        A call inside such a thread stays in the thread, in another context.

        :param timeout: seconds to wait; the thread goes on after that.
        :param in_caller: run in the calling thread.
        :raises NoThread: no thread can be started.
        :raises Overdue: the function takes longer than ``timeout``.
        """
        job = _Job(functools.partial(Context().run, _run_isolated, led(), function))
        if in_caller or self._inline or _is_isolated.get():
            job.run()
        else:
            try:
                inbox = self._idle.pop()
            except IndexError:
                inbox = self._start_thread()
            inbox.put(job)
            if not job.done.wait(timeout):
                raise Overdue
        result: T = job.result()
        return result

    def _start_thread(self) -> queue.SimpleQueue[_Job]:
        import queue  # only apps that cache data need it

        inbox: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        try:
            threading.Thread(target=self._work, args=(inbox,), name="wsgi-isr-data", daemon=True).start()
        except RuntimeError as error:
            raise NoThread(str(error)) from error
        return inbox

    def _work(self, inbox: queue.SimpleQueue[_Job]) -> None:
        from queue import Empty

        job = inbox.get()
        while True:
            job.run()
            if self._at_end is not None:
                self._idle.append(inbox)  # before `done`, so that the next call of the caller finds this thread
            job.done.set()
            del job
            if self._at_end is None:
                return
            try:
                job = inbox.get(timeout=IDLE_TIMEOUT)
            except Empty:
                try:
                    self._idle.remove(inbox)
                except ValueError:  # a caller has just taken this thread
                    job = inbox.get()
                else:
                    self._at_end()
                    return


class _Job:
    """A function, and its result or exception once ``done`` is set."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.done = threading.Event()
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # the caller raises it
            self._error = error

    def result(self) -> Any:
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None  # the exception and this frame would keep each other alive


def _run_isolated(flights: tuple[Flight[Any], ...], function: Callable[[], T]) -> T:
    """Return the result of a function, run in a context that knows only the flights that wait for it."""
    _is_isolated.set(True)
    with leading(*flights):
        return function()
