"""Where data is made that is kept for everybody: in a thread and a context that no visitor has touched.

Context variables and thread-locals hold what middlewares, frameworks and the app have noted about the visitor who is
being answered: a user, a session, a host, a language. A function whose result is kept must find none of it.
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

#: Seconds after which a thread ends that has nothing to do, and with it the database connections that are its own.
IDLE = 1.0

#: The file name of the import machinery's own code.
_IMPORTS = "<frozen importlib._bootstrap>"

_is_isolated: ContextVar[bool] = ContextVar("wsgi_isr_isolated", default=False)


def is_importing() -> bool:
    """Return whether the caller runs because a module is being imported: once in a process, for all visitors."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


class NoThread(RuntimeError):
    """The system has no thread left, or the interpreter is shutting down."""


class Overdue(RuntimeError):
    """A function has not returned in time: it may wait for a lock that its caller holds."""


class Isolation:
    """Threads that answer no visitor. Each caller waits for its function, so there are as many threads as callers.

    :param at_end: called in a thread before it ends. With it, a thread runs several functions, one after the other:
        that spares thread-local database connections, and is right only where something sees to it that each function
        has ended the transactions that it had begun.
    :param inline: run all in the thread that calls, whose transaction a test has begun.
    """

    def __init__(self, at_end: Callable[[], None] | None = None, inline: bool = False) -> None:
        self._at_end = at_end
        self._inline = inline
        # list.append, pop and remove are atomic.
        self._idle: list[queue.SimpleQueue[_Job]] = []

    def run(self, function: Callable[[], T], timeout: float, here: bool = False) -> T:
        """Return what ``function`` returns in a thread and a context of its own, or raise what it raises there.

        In such a thread it runs where it is called, in another context.

        :param timeout: seconds to wait for the thread, which goes on. :param here: run in the thread that calls.
        :raises NoThread: there is no thread for it. :raises Overdue: it takes longer.
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
        import queue  # for those who keep data

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
                self._idle.append(inbox)  # before the caller goes on: the next call finds this thread
            job.over.set()
            del job
            if self._at_end is None:
                return
            try:
                job = inbox.get(timeout=IDLE)
            except Empty:
                try:
                    self._idle.remove(inbox)
                except ValueError:  # a caller has taken it in this moment
                    job = inbox.get()
                else:
                    self._at_end()
                    return


class _Job:
    """A function, and what came of it once it is ``over``."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.over = threading.Event()
        self._function = function
        self._returned: Any = None
        self._raised: BaseException | None = None

    def run(self) -> None:
        try:
            self._returned = self._function()
        except BaseException as error:  # it is the caller's
            self._raised = error

    def result(self) -> Any:
        if self._raised is None:
            return self._returned
        try:
            raise self._raised
        finally:
            self._raised = None  # it would keep this frame alive, which keeps it alive


def _enter(flights: tuple[Flight[Any], ...], function: Callable[[], T]) -> T:
    """Run in a context in which nothing is known but the renders that wait for this one."""
    _is_isolated.set(True)
    with leading(*flights):
        return function()
