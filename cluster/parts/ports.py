"""Ports of the loopback interface that stay reserved while we hold them, served or not."""

from __future__ import annotations

import socket

from ..errors import CannotStart

HOST = "127.0.0.1"


def hold(port: int = 0) -> socket.socket:
    """Return a socket that is bound and does not listen: connections are refused, and the port stays reserved.

    A part that is down keeps its address in this way. Otherwise the kernel could give the port to any outgoing
    connection between two starts. With ``SO_REUSEADDR``, which memcached and nginx set as well, a second socket may be
    bound to the port and listen (Linux: as long as no other one listens).

    :param port: 0 for a free one.
    :raises CannotStart: another process listens there, or the port may not be used.
    """
    place = socket.socket()
    try:
        if port:  # without it, the kernel picks no port that another holder has
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((HOST, port))
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        place.close()
        raise CannotStart(f"port {port} cannot be used ({error.strerror}): choose another one with --port") from error
    return place


def listener(port: int) -> socket.socket:
    """Listen on a held port (:func:`hold`). :raises CannotStart: another process listens there."""
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
    """Return whether a process accepts connections on the port."""
    try:
        socket.create_connection((HOST, port), seconds).close()
    except OSError:
        return False
    return True
