"""Orders to the supervisor, from other terminals: a line of JSON each way, over a socket in the cluster's directory.

The supervisor alone signals the parts. It is their parent, so the kernel reuses no process id before the supervisor
reaps it. Orders of two terminals are carried out one after the other.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ClusterError, Down, NoSuchPart

Order = Mapping[str, Any]
#: Seconds that a client may take to send its order; and seconds that an order may take.
IMPATIENCE, PATIENCE = 2.0, 90.0
ERRORS: Mapping[str, type[ClusterError]] = {error.__name__: error for error in (ClusterError, NoSuchPart)}


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Yield a short enough name for a socket in a directory of any depth (unix(7): 107 bytes)."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """Return the supervisor's end of the socket."""
    listener = socket.socket(socket.AF_UNIX)
    with _reachable(path) as name:
        listener.bind(name)
    path.chmod(0o600)
    listener.listen(16)
    return listener


def answer(listener: socket.socket, carry_out: Callable[[Order], str]) -> None:
    """Take one order, carry it out, and send the result."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(IMPATIENCE)  # a hung client must not block the others
        try:
            with connection.makefile("rb") as lines:
                order = json.loads(lines.readline())
            reply = _reply(order, carry_out)
            connection.sendall(json.dumps(reply).encode() + b"\n")
        except (OSError, ValueError):  # the client is gone, or sent no order
            pass


def _reply(order: Order, carry_out: Callable[[Order], str]) -> dict[str, str]:
    try:
        return {"said": carry_out(order)}
    except ClusterError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:  # a faulty order does not end the cluster
        return {"error": f"it failed: {type(error).__name__}: {error}", "kind": "ClusterError"}


def send(path: Path, order: Order) -> str:
    """Give an order, wait until it is carried out, and return the reply.

    :raises Down: no supervisor answers.
    :raises ClusterError: the order could not be carried out.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        try:
            with _reachable(path) as name:
                connection.connect(name)
            connection.sendall(json.dumps(order).encode() + b"\n")
            with connection.makefile("rb") as lines:
                reply = json.loads(lines.readline() or b"{}")
        except (FileNotFoundError, ConnectionError) as error:
            raise Down(f"no cluster runs in {path.parent}: python -m cluster up") from error
        except TimeoutError as error:
            raise ClusterError(f"the supervisor did not answer within {PATIENCE:g} s") from error
    if "error" in reply:
        raise ERRORS.get(reply["kind"], ClusterError)(reply["error"])
    if "said" not in reply:
        raise Down("the supervisor ended before it answered")
    return str(reply["said"])
