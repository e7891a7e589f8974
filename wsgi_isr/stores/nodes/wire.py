"""Sockets to nodes with a deadline for a verb as a whole, which no client library has."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: The maximum number of bytes that are sent or requested at once. The deadline is checked between two pieces.
PIECE = 64 * 1024


@dataclass(frozen=True)
class Settings:
    """Timeouts and limits of the connections to nodes; times in seconds.

    :param timeout: the maximum time without progress.
    :param connect_timeout: the maximum time to connect to an address, TLS included.
    :param deadline: the maximum time of a verb, with all its attempts. The look-up of a host name does not count: the
        system's resolver has its own limits.
    :param pool: the maximum number of connections to each node.
    :param tls: ``None`` for connections without TLS.
    :param clock: seconds since any moment.
    """

    timeout: float = 0.25
    connect_timeout: float = 0.25
    deadline: float = 1.0
    pool: int = 16
    tls: ssl.SSLContext | None = None
    clock: Callable[[], float] = time.monotonic


DEFAULTS = Settings()


class Wire:
    """A socket with a deadline. A reopened connection keeps its wire, and attaches a new socket.

    ``unanswered`` is true from the first byte of a command until the caller has read the whole answer. Meanwhile, the
    socket must not serve another command.
    """

    __slots__ = (
        "_began",
        "_clock",
        "_full",
        "_inner",
        "_moved",
        "_shortened",
        "_timeout",
        "deadline",
        "unanswered",
    )

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.timeout
        self._full = 0.9 * min(settings.timeout, settings.deadline)
        self._clock = settings.clock
        self._inner: socket.socket | None = None
        self.begin(0.0)

    def attach(self, inner: socket.socket) -> None:
        """Use a new socket."""
        inner.settimeout(self._timeout)
        self._inner = inner
        self._shortened = False

    def begin(self, deadline: float) -> None:
        """Start a verb.

        :param deadline: a time of the clock.
        """
        self.deadline = deadline
        self.unanswered = False
        self._began = self._clock()
        self._moved = 0  # bytes, roughly

    def sendall(self, data: bytes) -> None:
        self.unanswered = True
        if len(data) <= PIECE:
            self._in_time().sendall(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), PIECE):
            self._in_time().sendall(view[start : start + PIECE])
            self._moved += PIECE

    def recv(self, size: int) -> bytes:
        # Client libraries request a few KiB at a time and accept more.
        data = self._in_time().recv(PIECE)
        self._moved += len(data)
        return data

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        size = self._in_time().recv_into(buffer)
        self._moved += size
        return size

    def shutdown(self, how: int) -> None:
        """Do nothing: :meth:`close` does not disturb another process with the same socket, and a shutdown would."""

    @property
    def is_open(self) -> bool:
        """Return whether there is a socket."""
        return self._inner is not None

    def close(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.close()

    def lacked_time(self) -> bool:
        """Return whether the deadline has passed without a fault of the node.

        Either other nodes had used up the time, and less than a timeout was left. Or the value is large; the breaker
        would then also stop verbs with small values.
        """
        was_short = self.deadline - self._began < self._full
        return self._clock() >= self.deadline and (was_short or self._moved >= PIECE)

    def is_unusable(self) -> bool:
        """Return whether the node has closed an idle connection, or sent bytes without a command."""
        inner = self._in_time()
        inner.settimeout(0)
        try:
            # Below TLS, whose recv takes no flags. One byte of an unexpected record is enough.
            socket.socket.recv(inner, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            inner.settimeout(self._timeout)
            self._shortened = False
        return True

    def time_left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - self._clock()

    def _in_time(self) -> socket.socket:
        """Return the socket, with a timeout that ends at the deadline."""
        if self._inner is None:
            raise ConnectionError("the connection was closed meanwhile")
        left = self.time_left()
        if left < self._timeout:
            if left <= 0:
                raise TimeoutError("the deadline has passed")
            self._inner.settimeout(left)
            self._shortened = True
        elif self._shortened:
            self._inner.settimeout(self._timeout)
            self._shortened = False
        return self._inner


def connect(wire: Wire, settings: Settings, host: str, port: int) -> None:
    """Attach to ``wire`` a socket to the first address of ``host`` that accepts, within the deadline of the verb.

    ``localhost`` may also mean ::1, while the node listens on 127.0.0.1 alone.

    :raises OSError: no address accepts.
    """
    failure: OSError = ConnectionError("no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            _connect_to(wire, settings, socket.socket(family, kind, protocol), place, host)
            return
        except OSError as error:
            if wire.time_left() <= 0:
                raise
            failure = error
    try:
        raise failure
    finally:
        del failure  # it refers to this frame, and would make a reference cycle


def connect_unix(wire: Wire, settings: Settings, path: str) -> None:
    """Attach to ``wire`` a socket to the Unix socket ``path``, without TLS.

    :raises OSError: no program accepts there.
    """
    _connect_to(wire, settings, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path, "")


def _connect_to(wire: Wire, settings: Settings, opened: socket.socket, place: Any, host: str) -> None:
    try:
        left = wire.time_left()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        opened.settimeout(min(settings.connect_timeout, left))
        if opened.family != socket.AF_UNIX:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        opened.connect(place)
        if settings.tls is not None and host:
            opened = settings.tls.wrap_socket(opened, server_hostname=host, do_handshake_on_connect=False)
            opened.do_handshake()
    except BaseException:  # the end of a greenlet among them
        opened.close()
        raise
    wire.attach(opened)
