"""Orders to the supervisor, from other terminals: a line of JSON each way, over a socket in the cluster's directory.

The supervisor alone touches processes: it is their parent, so their numbers cannot become somebody else's before it
says so. And orders of two terminals come one after the other.
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
#: Seconds that whoever connects may take to say what they want; and that an order may take.
IMPATIENCE, PATIENCE = 2.0, 90.0
ERRORS: Mapping[str, type[ClusterError]] = {error.__name__: error for error in (ClusterError, NoSuchPart)}


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name for a socket that is short enough, however deep its directory (unix(7): 107 bytes)."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> socket.socket:
    """The supervisor's end."""
    listener = socket.socket(socket.AF_UNIX)
    with _reachable(path) as name:
        listener.bind(name)
    path.chmod(0o600)
    listener.listen(16)
    return listener


def answer(listener: socket.socket, carry_out: Callable[[Order], str]) -> None:
    """Take one order, carry it out, say what came of it."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(IMPATIENCE)  # whoever hangs must not hang everybody
        try:
            with connection.makefile("rb") as lines:
                order = json.loads(lines.readline())
            reply = _reply(order, carry_out)
            connection.sendall(json.dumps(reply).encode() + b"\n")
        except (OSError, ValueError):  # it is gone, or never spoke our language
            pass


def _reply(order: Order, carry_out: Callable[[Order], str]) -> dict[str, str]:
    try:
        return {"said": carry_out(order)}
    except ClusterError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:  # a cluster does not end because of an order that nobody understands
        return {"error": f"it failed: {type(error).__name__}: {error}", "kind": "ClusterError"}


def send(path: Path, order: Order) -> str:
    """Give an order and wait until it is carried out; what was said of it.

    :raises Down: nobody is there. :raises ClusterError: it could not be carried out.
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
