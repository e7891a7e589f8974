"""One node: a pool of connections, a breaker, and the classification of failures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ...errors import StoreUnavailable
from ..base import Observer
from .breaker import Breaker
from .connection import NodeConnection
from .wire import Settings

_Answer = TypeVar("_Answer")

#: The maximum number of compensations for a hanging node. The effect of further commands ends by their ttl.
MAX_COMPENSATIONS = 256
#: The verbs of commands that have other names.
_VERBS = {"set_": "set", "delete_if_unchanged": "delete"}


class NodeDown(StoreUnavailable):
    """The node cannot be reached. Another node may replace it, except for control keys.

    :param sent: whether a command was sent, which the node may have carried out.
    """

    def __init__(self, node: str, cause: BaseException | str, sent: bool = False) -> None:
        super().__init__(node, cause)
        self.sent = sent


class Node:
    """A node, for any number of threads or greenlets.

    :param kind: the kind of the server, for the log.
    :param name: the name of the node.
    :param connect: returns a new connection, which is not open yet.

    A command is a function of a :class:`~.connection.NodeConnection`, which no other command uses meanwhile. If the end
    of its greenlet, for example, interrupts the function, the connection is closed. Otherwise, the next command would
    read the answer to this command.

    Connections are opened when they are needed. The lock that threads wait for is created at the first wait: in the
    child of a fork, and after gevent has patched ``threading``.
    """

    _freed: threading.Condition | None = None

    def __init__(self, kind: str, name: str, connect: Callable[[], NodeConnection], settings: Settings) -> None:
        self.name = name
        self.observer: Observer | None = None
        self._clock = settings.clock
        self._deadline = settings.deadline
        self._probing = connect()
        self._connections = [connect() for _ in range(settings.pool)]
        # Last in, first out, so no more connections are open than are in use at the same time. list.append and list.pop
        # are atomic, and ten times as fast as a queue.
        self._idle = list(self._connections)
        self._waiting = 0
        self._compensations: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque(maxlen=MAX_COMPENSATIONS)
        self.breaker = Breaker(name, self.probe, settings.clock, kind=kind)

    def _measured(self, work: Callable[..., _Answer], call: Callable[[], _Answer]) -> _Answer:
        """Return the result of ``call``, and tell the observer of the store how long it took."""
        if self.observer is None:
            return call()
        began, is_answered = self._clock(), False
        try:
            result = call()
            is_answered = True
            return result
        finally:
            verb = _VERBS.get(work.__name__, work.__name__)
            self.observer(self.name, verb, max(0.0, self._clock() - began), is_answered)

    def read(self, deadline: float, work: Callable[..., _Answer], *args: Any) -> _Answer:
        """Return the answer of ``work(connection, *args)``, which only reads.

        The read is repeated if the node has closed an idle connection.

        :param deadline: a time of the clock.
        :raises NodeDown: the node cannot be reached.
        :raises StoreUnavailable: the node refused the command, or had too little time for it.
        """
        return self._measured(work, partial(self._read, deadline, work, *args))

    def _read(self, deadline: float, work: Callable[..., _Answer], *args: Any) -> _Answer:
        connection = self._take(deadline)
        try:
            reused = connection.begin(deadline)
            try:
                answer = work(connection, *args)
            except connection.failures as error:
                if not reused or isinstance(error, connection.timeouts) or connection.is_answer(error):
                    raise
                connection.reopen()
                answer = work(connection, *args)
            connection.wire.unanswered = False
            return answer
        except connection.failures as error:
            raise self._classify_failure(connection, error, False) from error
        finally:
            self._give_back(connection)

    def write(
        self,
        deadline: float,
        work: Callable[..., _Answer],
        *args: Any,
        verify: Callable[..., _Answer | None] | None = None,
    ) -> _Answer:
        """Return the answer of ``work(connection, *args)``, which writes, and is never repeated.

        :param verify: called as ``verify(connection, *args)`` over a new connection, if the answer was lost. It returns
            the answer, or ``None`` if the answer cannot be known.
        :raises NodeDown: see :meth:`read`.
        :raises StoreUnavailable: see :meth:`read`; or ``verify`` returned ``None``.
        """
        return self._measured(work, partial(self._write, deadline, work, *args, verify=verify))

    def _write(
        self,
        deadline: float,
        work: Callable[..., _Answer],
        *args: Any,
        verify: Callable[..., _Answer | None] | None,
    ) -> _Answer:
        connection = self._take(deadline)
        sent = False
        try:
            connection.begin(deadline, check=True)
            try:
                answer = work(connection, *args)
            except connection.failures as error:
                sent = connection.wire.unanswered
                if verify is None or not sent or connection.is_answer(error):
                    raise
                connection.reopen()
                known = verify(connection, *args)
                connection.wire.unanswered = False
                if known is None:
                    raise StoreUnavailable(self.name, error) from error
                answer = known
            connection.wire.unanswered = False
            return answer
        except connection.failures as error:
            raise self._classify_failure(connection, error, sent) from error
        finally:
            self._give_back(connection)

    def compensate(self, work: Callable[..., object], *args: Any) -> None:
        """Call ``work(connection, *args)`` before the node is used again.

        A node that hangs carries out the sent commands once it continues.
        """
        self._compensations.append((work, args))

    def probe(self) -> None:
        """Return once the node answers and all compensations are done; raise otherwise. For one caller at a time."""
        try:
            self._probing.begin(self._clock() + self._deadline)
            self._probing.ping()
            while self._compensations:
                work, args = self._compensations[0]
                work(self._probing, *args)
                self._compensations.popleft()
        finally:
            self._probing.close()

    def close(self) -> None:
        """Close idle connections. Commands in progress continue."""
        self.breaker.stop()
        self._close_idle()

    def forget(self) -> None:
        """Reset in the child of a fork, which has the sockets of the parent, and none of its threads."""
        for connection in (*self._connections, self._probing):
            connection.close()  # closes the descriptor of this process; the node notices nothing, over TLS neither
        self._idle = list(self._connections)
        self._waiting = 0
        self._compensations.clear()  # the parent runs them
        self.__dict__.pop("_freed", None)
        self.breaker.forget()

    def _take(self, deadline: float) -> NodeConnection:
        if self.breaker.cause is not None:
            raise NodeDown(self.name, self.breaker.cause)
        try:
            return self._idle.pop()
        except IndexError:
            return self._wait(deadline)

    def _wait(self, deadline: float) -> NodeConnection:
        freed = self.__dict__.setdefault("_freed", threading.Condition())  # atomic: one for all threads
        with freed:
            # Counted before the pool is checked, so a thread that gives a connection back after the check notifies.
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
                if (
                    self._idle
                ):  # this thread left a connection: it is late, or the node is down; the next thread must wake
                    freed.notify()

    def _give_back(self, *connections: NodeConnection) -> None:
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

    def _classify_failure(self, connection: NodeConnection, error: BaseException, sent: bool) -> StoreUnavailable:
        """Return the error to raise for a failure. Open the breaker if the node is at fault."""
        connection.close()
        if connection.is_answer(error) or (isinstance(error, connection.timeouts) and connection.wire.lacked_time()):
            return StoreUnavailable(self.name, error)
        self.breaker.trip(f"{type(error).__name__}: {error}")
        self._close_idle()  # probably dead; each would cost a timeout
        return NodeDown(self.name, error, sent)
