"""A connection of a node, as :class:`~.node.Node` uses it; the protocol is that of a subclass."""

from __future__ import annotations

from .wire import Wire


class NodeConnection:
    """A connection that is opened when it is needed; for one thread at a time.

    A subclass has the methods that raise ``NotImplementedError`` here, and one method for each command. It mixes this
    class with the connection of a client library, which reads and writes through :attr:`wire`.
    """

    #: The errors of a command: of the operating system, and of the client library.
    failures: tuple[type[Exception], ...] = (OSError,)
    #: Those of them that mean that no answer came in time.
    timeouts: tuple[type[Exception], ...] = (TimeoutError,)
    wire: Wire

    def begin(self, deadline: float, *, check: bool = False) -> bool:
        """Open the connection for a verb, if it is not open.

        :param deadline: a time of the clock.
        :param check: whether to check that an idle connection is usable. A write needs it: once sent, it cannot be
            repeated.
        :returns: whether the connection was open already.
        """
        self.wire.begin(deadline)
        if self.wire.is_open:
            if not (check and self.wire.is_unusable()):
                return True
            self.close()
        self.connect()
        return False

    def reopen(self) -> None:
        """Open a new connection for the rest of the same verb."""
        self.close()
        self.connect()

    def is_answer(self, error: BaseException) -> bool:
        """Return whether the node understood the command and refused it, for example for lack of memory."""
        raise NotImplementedError

    def ping(self) -> None:
        """Return if the node answers; raise otherwise."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket, if there is one. Another process with the same socket notices nothing."""
        raise NotImplementedError

    def connect(self) -> None:
        """Open the connection, within the deadline of the verb. After an error, it is closed."""
        raise NotImplementedError
