"""One memcached node: a pool of connections, a breaker, and what becomes of their failures."""

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

#: How many commands to a node that hangs are regretted; what is beyond lapses by its own ttl.
REGRETS = 256


class NodeDown(StoreUnavailable):
    """The node cannot be reached; another one may take its place, where the key allows it.

    :param sent: a command went out, and may have been carried out.
    """

    def __init__(self, node: str, cause: BaseException | str, sent: bool = False) -> None:
        super().__init__(node, cause)
        self.sent = sent


class Node:
    """A node, for any number of threads or greenlets.

    What it is asked to do is a function that gets a :class:`~.wire.Connection` of its own. Whatever ends
    that function early, a killed greenlet included, closes the connection: the answer to its command must
    not be read by the next one.

    Nothing is opened before it is needed, and the one lock that is waited for is made where somebody first
    waits: in the child of a fork, and after gevent has patched it.
    """

    _freed: threading.Condition | None = None

    def __init__(self, address: Address, settings: Settings) -> None:
        self.name = address.name
        self._clock = settings.clock
        self._deadline = settings.deadline
        self._probing = Connection(address, settings)
        self._connections = [Connection(address, settings) for _ in range(settings.pool)]
        # Last in, first out: as few are open as are in use at the same time. list.append and list.pop are
        # atomic, and ten times as fast as a queue.
        self._idle = list(self._connections)
        self._waiting = 0
        self._regrets: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque(maxlen=REGRETS)
        self.breaker = Breaker(self.name, self.probe, settings.clock)

    def read(self, deadline: float, work: Callable[..., _Answer], *args: Any) -> _Answer:
        """The answer of ``work(connection, *args)``, which only reads: it is repeated where a connection
        turns out to have been closed while it was idle.

        :raises NodeDown: the node cannot be reached.
        :raises StoreUnavailable: it can, but not now, or not for this.
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
        """The same for a ``work`` that writes, and is never repeated.

        :param doubt: ``doubt(connection, *args)``, over a new connection, finds out what became of a
            command whose answer was lost; ``None`` where that cannot be told.
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
        """Before the node is used again, do ``work(connection, *args)``: what was sent to one that hangs is carried out
        when it goes on."""
        self._regrets.append((work, args))

    def probe(self) -> None:
        """Return where the node answers, and nothing is left to regret; raise where it does not. For one caller at a
        time."""
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
        """Close what is idle; what is in use goes on."""
        self.breaker.stop()
        self._close_idle()

    def forget(self) -> None:
        """In the child of a fork: the sockets are the parent's, and its threads are gone."""
        for connection in (*self._connections, self._probing):
            connection.close()  # this process's descriptor; the node hears nothing, over TLS neither
        self._idle = list(self._connections)
        self._waiting = 0
        self._regrets.clear()  # the parent sees to them
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
        freed = self.__dict__.setdefault("_freed", threading.Condition())  # atomic: one for all
        with freed:
            # Said before the pool is looked at: who gives something back after that look will notify.
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
                if self._idle:  # it came too late here, or is not needed: the node is down, as the next is to know
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
        """What to raise for a failure; and the node is left alone from now on, if it is to blame."""
        connection.close()
        if _is_answer(error) or (isinstance(error, TimeoutError) and connection.wire.short_of_time()):
            return StoreUnavailable(self.name, error)
        self.breaker.trip(f"{type(error).__name__}: {error}")
        self._close_idle()  # for all we know they lead nowhere, and each would cost a timeout
        return NodeDown(self.name, error, sent)


def _is_answer(error: BaseException) -> bool:
    """The node understood and refused: no memory left, say. ``ERROR`` without more is none: that is how a
    node with too many connections turns one away."""
    if isinstance(error, MemcacheServerError):
        return not isinstance(error, MemcacheUnexpectedCloseError)
    return isinstance(error, MemcacheClientError) and not isinstance(error, MemcacheUnknownCommandError)
