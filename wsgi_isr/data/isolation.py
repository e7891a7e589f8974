"""Isolation of shared data: its functions run in a thread and a context that serve no client.

Context variables and thread-locals hold data of the current request: a user, a session, a host, a language.
Middlewares, frameworks and the app set them. A function whose result is kept must find none of them.
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
IDLE = 1.0

#: The file name of the import machinery's own code.
_IMPORTS = "<frozen importlib._bootstrap>"

_is_isolated: ContextVar[bool] = ContextVar("wsgi_isr_isolated", default=False)


def is_importing() -> bool:
    """Return whether the caller runs during the import of a module: once in a process, for all visitors."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


class NoThread(RuntimeError):
    """The system can start no thread, or the interpreter is shutting down."""


class Overdue(RuntimeError):
    """A function has not returned in time. It may wait for a lock that its caller holds."""


class Isolation:
    """Threads that serve no client. Each caller waits for its function, so there are as many threads as callers.

    :param at_end: called in a thread before it ends. With it, a thread runs several functions in turn, which saves
        thread-local database connections. This is right only if each function's transactions are ended after it.
    :param inline: run all functions in the calling thread, whose transaction a test has begun.
    """

    def __init__(self, at_end: Callable[[], None] | None = None, inline: bool = False) -> None:
        self._at_end = at_end
        self._inline = inline
        # list.append, pop and remove are atomic.
        self._idle: list[queue.SimpleQueue[_Job]] = []

    def run(self, function: Callable[[], T], timeout: float, here: bool = False) -> T:
        """Return the result of ``function`` in a thread and a context of its own, or raise its exception.

        A call inside such a thread stays in the thread, in another context.

        :param timeout: seconds to wait; the thread goes on after that.
        :param here: run in the calling thread.
        :raises NoThread: no thread can be started.
        :raises Overdue: the function takes longer than ``timeout``.
        """
        job = _Job(functools.partial(Context().run, _enter, led(), function))
        if here or self._inline or _is_isolated.get():
            job.run()
        else:
            try:
                inbox = self._idle.pop()
            except IndexError:
                inbox = self._begin()
            inbox.put(job)
            if not job.over.wait(timeout):
                raise Overdue
        result: T = job.result()
        return result

    def _begin(self) -> queue.SimpleQueue[_Job]:
        import queue  # only apps that keep data need it

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
                self._idle.append(inbox)  # before the caller goes on, so that its next call finds this thread
            job.over.set()
            del job
            if self._at_end is None:
                return
            try:
                job = inbox.get(timeout=IDLE)
            except Empty:
                try:
                    self._idle.remove(inbox)
                except ValueError:  # a caller has just taken this thread
                    job = inbox.get()
                else:
                    self._at_end()
                    return


class _Job:
    """A function, and its result or exception once it is ``over``."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.over = threading.Event()
        self._function = function
        self._returned: Any = None
        self._raised: BaseException | None = None

    def run(self) -> None:
        try:
            self._returned = self._function()
        except BaseException as error:  # the caller raises it
            self._raised = error

    def result(self) -> Any:
        if self._raised is None:
            return self._returned
        try:
            raise self._raised
        finally:
            self._raised = None  # the exception and this frame would keep each other alive


def _enter(flights: tuple[Flight[Any], ...], function: Callable[[], T]) -> T:
    """Run a function in a context that knows only the flights that wait for it."""
    _is_isolated.set(True)
    with leading(*flights):
        return function()
