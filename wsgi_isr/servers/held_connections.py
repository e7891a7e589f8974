"""The connections that an event loop holds: idle, with a part of a head, or with a client that reads slowly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gunicorn.workers.gthread import TConn


class Connection(TConn):  # type: ignore[misc]
    """A client's connection. Times are monotonic seconds.

    :ivar timeout: the time at which the loop closes the connection.
    :ivar received: the bytes that are not answered yet.
    :ivar unsent: the rest of an answer.
    :ivar closes: the connection is closed after ``unsent``.
    :ivar is_reading_head: ``received`` is a part of a head.
    :ivar is_new: no request of the connection was answered yet.
    :ivar drained: the number of bytes that were dropped since the end of the last answer; ``None`` before that end.
    """

    def __init__(self, cfg: Any, sock: Any, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        self.timeout = 0.0
        self.received = b""
        self.unsent: list[memoryview] = []
        self.closes = False
        self.is_reading_head = False
        self.is_new = True
        self.drained: int | None = None

    @property
    def is_idle(self) -> bool:
        """Return whether no answer is on its way."""
        return not self.unsent and self.drained is None


class HeldConnections:
    """The connections of a worker's event loop, in the place of gunicorn's deque of idle ones.

    gunicorn needs the length, the iteration and the first timeout.
    """

    def __init__(self) -> None:
        self._held: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._held))

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._held

    def __getitem__(self, index: int) -> Connection:
        """Return the connection with the earliest timeout, for gunicorn's wait while it stops.

        :raises IndexError: another one is asked for.
        """
        if index != 0 or not self._held:
            raise IndexError(index)
        return min(self._held, key=lambda connection: connection.timeout)

    def add(self, connection: Connection) -> None:
        """Hold a connection."""
        self._held[connection] = None

    def remove(self, connection: Connection) -> None:
        """Hold a connection no longer."""
        self._held.pop(connection, None)
