"""One memcached node: a pool of connections, a breaker, and the classification of failures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownCommandError,
)

from ...errors import StoreUnavailable
from .addresses import Address
from .breaker import Breaker
from .connection import Connection, Settings

_Answer = TypeVar("_Answer")

_BROKEN = (OSError, MemcacheError)

#: The most commands to a hanging node that are compensated; the rest lapses by its own ttl.
REGRETS = 256


class NodeDown(StoreUnavailable):
    """The node cannot be reached; another node may take its place, if the key allows it.

    :param sent: a command was sent, and may have been carried out.
    """

    def __init__(self, node: str, cause: BaseException | str, sent: bool = False) -> None:
        super().__init__(node, cause)
        self.sent = sent


class Node:
    """A node, for any number of threads or greenlets.

    A command is a function that gets a :class:`~.connection.Connection` of its own. If anything ends the function
    early, such as the end of its greenlet, the connection is closed: the next command must not read the answer to this
    one.

    Nothing is opened before it is needed. The one lock that threads wait for is created at the first wait: in the child
    of a fork, and after gevent has patched it.
    """

    _freed: threading.Condition | None = None

    def __init__(self, address: Address, settings: Settings) -> None:
        self.name = address.name
        self._clock = settings.clock
        self._deadline = settings.deadline
        self._probing = Connection(address, settings)
        self._connections = [Connection(address, settings) for _ in range(settings.pool)]
        # Last in, first out: as few connections are open as are in use at the same time. list.append and list.pop are
        # atomic, and ten times as fast as a queue.
        self._idle = list(self._connections)
        self._waiting = 0
        self._regrets: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque(maxlen=REGRETS)
        self.breaker = Breaker(self.name, self.probe, settings.clock)

    def read(self, deadline: float, work: Callable[..., _Answer], *args: Any) -> _Answer:
        """Return the answer of ``work(connection, *args)``, which only reads.

        The read is repeated if the node closed the connection while it was idle.

        :raises NodeDown: the node cannot be reached.
        :raises StoreUnavailable: it can, but not now, or not for this command.
        """
        connection = self._take(deadline)
        try:
            reused = connection.begin(deadline)
            try:
                answer = work(connection, *args)
            except _BROKEN as error:
                if not reused or isinstance(error, TimeoutError) or _is_answer(error):
                    raise
                connection.reopen()
                answer = work(connection, *args)
            connection.wire.unanswered = False
            return answer
        except _BROKEN as error:
            raise self._classify_failure(connection, error, False) from error
        finally:
            self._give_back(connection)

    def write(
        self,
        deadline: float,
        work: Callable[..., _Answer],
        *args: Any,
        doubt: Callable[..., _Answer | None] | None = None,
    ) -> _Answer:
        """Return the answer of ``work(connection, *args)``, which writes, and is never repeated.

        :param doubt: ``doubt(connection, *args)``, over a new connection, finds out whether a command whose answer was
            lost was carried out; it returns ``None`` where that cannot be known.
        :raises NodeDown: see :meth:`read`.
        :raises StoreUnavailable: see :meth:`read`; or the answer was lost, and ``doubt`` cannot know it.
        """
        connection = self._take(deadline)
        sent = False
        try:
            connection.begin(deadline, sure=True)
            try:
                answer = work(connection, *args)
            except _BROKEN as error:
                sent = connection.wire.unanswered
                if doubt is None or not sent or _is_answer(error):
                    raise
                connection.reopen()
                known = doubt(connection, *args)
                connection.wire.unanswered = False
                if known is None:
                    raise StoreUnavailable(self.name, error) from error
                answer = known
            connection.wire.unanswered = False
            return answer
        except _BROKEN as error:
            raise self._classify_failure(connection, error, sent) from error
        finally:
            self._give_back(connection)

    def compensate(self, work: Callable[..., object], *args: Any) -> None:
        """Call ``work(connection, *args)`` before the node is used again.

        A node that hangs carries out the commands that were sent to it when it goes on.
        """
        self._regrets.append((work, args))

    def probe(self) -> None:
        """Return if the node answers, and all compensations are done; raise otherwise. For one caller at a time."""
        try:
            self._probing.begin(self._clock() + self._deadline)
            self._probing.version()
            while self._regrets:
                work, args = self._regrets[0]
                work(self._probing, *args)
                self._regrets.popleft()
        finally:
            self._probing.close()

    def close(self) -> None:
        """Close idle connections; busy ones go on."""
        self.breaker.stop()
        self._close_idle()

    def forget(self) -> None:
        """Reset in the child of a fork: the sockets are the parent's, and the parent's threads are gone."""
        for connection in (*self._connections, self._probing):
            connection.close()  # closes this process's descriptor; the node hears nothing, over TLS neither
        self._idle = list(self._connections)
        self._waiting = 0
        self._regrets.clear()  # the parent does them
        self.__dict__.pop("_freed", None)
        self.breaker.forget()

    def _take(self, deadline: float) -> Connection:
        if self.breaker.cause is not None:
            raise NodeDown(self.name, self.breaker.cause)
        try:
            return self._idle.pop()
        except IndexError:
            return self._wait(deadline)

    def _wait(self, deadline: float) -> Connection:
        freed = self.__dict__.setdefault("_freed", threading.Condition())  # atomic: one for all threads
        with freed:
            # Counted before the pool is checked: a thread that gives a connection back after the check will notify.
            self._waiting += 1
            try:
                in_time = True
                while True:
                    try:
                        return self._idle.pop()
                    except IndexError:
                        pass
                    if not in_time:
                        raise StoreUnavailable(self.name, f"all {len(self._connections)} connections are in use")
                    left = deadline - self._clock()
                    in_time = left > 0 and freed.wait(left)
                    if self.breaker.cause is not None:
                        raise NodeDown(self.name, self.breaker.cause)
            finally:
                self._waiting -= 1
                if self._idle:  # not used here: too late, or the node is down; the next thread must learn that
                    freed.notify()

    def _give_back(self, *connections: Connection) -> None:
        for connection in connections:
            if connection.wire.unanswered:
                connection.close()
        self._idle.extend(connections)
        if self._waiting and (freed := self._freed) is not None:
            with freed:
                freed.notify(len(connections))

    def _close_idle(self) -> None:
        idle = []
        while self._idle:
            try:
                idle.append(self._idle.pop())
            except IndexError:  # another thread was faster
                break
        for connection in idle:
            connection.close()
        self._give_back(*idle)

    def _classify_failure(self, connection: Connection, error: BaseException, sent: bool) -> StoreUnavailable:
        """Return the error to raise for a failure; open the breaker if the node is at fault."""
        connection.close()
        if _is_answer(error) or (isinstance(error, TimeoutError) and connection.wire.short_of_time()):
            return StoreUnavailable(self.name, error)
        self.breaker.trip(f"{type(error).__name__}: {error}")
        self._close_idle()  # they are probably dead, and each would cost a timeout
        return NodeDown(self.name, error, sent)


def _is_answer(error: BaseException) -> bool:
    """Return whether the node understood the command and refused it, for lack of memory, say.

    ``ERROR`` without more is no answer: a node with too many connections sends it to turn one away.
    """
    if isinstance(error, MemcacheServerError):
        return not isinstance(error, MemcacheUnexpectedCloseError)
    return isinstance(error, MemcacheClientError) and not isinstance(error, MemcacheUnknownCommandError)
