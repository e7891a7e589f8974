"""A client of Marionette, the remote protocol of Firefox.

Firefox and the client exchange JSON over TCP, each message after its length and a colon: ``[0, id, command,
parameters]``, and back ``[1, id, error, result]``. The names of commands are those of WebDriver, where it has them.
The package ``marionette-driver`` would do, at the price of sixteen more, some of which warn when they are imported.
"""

from __future__ import annotations

import itertools
import json
import socket
from typing import Any

#: Seconds that one command may take.
TIMEOUT = 60.0


class MarionetteError(Exception):
    """Firefox refused a command; the message is its own."""


class Marionette:
    """One connection, with the one session that Firefox has.

    :param port: of Firefox, on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._numbers = itertools.count(1)
        self._connection = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._incoming = self._connection.makefile("rb")
        protocol = self._receive()["marionetteProtocol"]
        assert protocol == 3, f"protocol {protocol}"
        #: The description of this Firefox.
        self.capabilities: dict[str, Any] = self.send("WebDriver:NewSession")["capabilities"]

    def send(self, command: str, **parameters: Any) -> Any:
        """Return the result of a command, or raise :exc:`MarionetteError` where Firefox refuses it."""
        number = next(self._numbers)
        message = json.dumps([0, number, command, parameters]).encode()
        self._connection.sendall(b"%d:%s" % (len(message), message))
        _, answered, error, result = self._receive()
        assert answered == number, f"the answer to {answered} in place of {number}"
        if error is not None:
            raise MarionetteError(f"{command}: {error['error']}: {error['message']}")
        return result

    def close(self) -> None:
        """Close the connection, which ends the session."""
        self._incoming.close()
        self._connection.close()

    def _receive(self) -> Any:
        length = b""
        while (digit := self._incoming.read(1)) != b":":
            assert digit.isdigit(), "Firefox has gone"
            length += digit
        return json.loads(self._incoming.read(int(length)))
