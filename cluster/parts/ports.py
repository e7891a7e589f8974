"""Ports of the loopback interface that nobody else is given while we hold them, served or not."""

from __future__ import annotations

import socket

from ..errors import CannotStart

HOST = "127.0.0.1"


def hold(port: int = 0) -> socket.socket:
    """A socket that is bound and does not listen: connections are refused, and the port is nobody else's.

    A part that is down keeps its address in this way. Between its end and its next start the kernel would otherwise
    give the port to the next outgoing connection of anybody. With ``SO_REUSEADDR``, which memcached and nginx set as
    well, a second socket may be bound to it and listen (Linux: as long as no other one listens).

    :param port: 0 for a free one.
    :raises CannotStart: somebody listens there, or it may not be used.
    """
    place = socket.socket()
    try:
        if port:  # for a free one the kernel must not take one that another holder has
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((HOST, port))
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        place.close()
        raise CannotStart(f"port {port} cannot be used ({error.strerror}): choose another one with --port") from error
    return place


def listener(port: int) -> socket.socket:
    """A socket that listens on a port that we :func:`hold`. :raises CannotStart: somebody else has begun to."""
    found = socket.socket()
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((HOST, port))
        found.listen(512)
    except OSError as error:
        found.close()
        raise CannotStart(f"port {port} cannot be used ({error.strerror}): end who listens there") from error
    return found


def answers(port: int, seconds: float = 1.0) -> bool:
    """Whether somebody takes connections."""
    try:
        socket.create_connection((HOST, port), seconds).close()
    except OSError:
        return False
    return True
