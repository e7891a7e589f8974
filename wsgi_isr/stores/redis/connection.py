"""A connection to a Redis server: redis-py's connection with deadlines, and facts about the server.

The pool of redis-py is not used. It has no deadline for a verb as a whole, and no breaker. It also takes a connection
back whose answer is unread, if the end of a greenlet comes between the sending of a command and the reading of its
answer. :class:`~..nodes.node.Node` closes such a connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import Connection as RedisConnection
from redis.exceptions import (
    AskError,
    ClusterDownError,
    InvalidResponse,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..nodes.addresses import Address
from ..nodes.connection import NodeConnection
from ..nodes.wire import Settings, Wire, connect, connect_unix
from .memory import Examiner, Facts
from .scripts import Script

#: Errors of a server that does not work at present. Another node replaces it meanwhile.
_DOWN = (ReadOnlyError, AskError, TryAgainError, ClusterDownError)
#: Such errors that redis-py has no class for: a script runs for too long.
_DOWN_WORDS = ("BUSY ", "UNKILLABLE ")

_ASYNCHRONOUS = (
    "its failover is asynchronous, so it can lose acknowledged invalidations: name a single server, or several "
    "independent ones; or write accept_loss=1"
)


class Refused(RedisError):
    """The server is of a kind that this store does not use."""


class Access(NamedTuple):
    """The way to the keys of a server.

    :param user: ``None`` for the default user.
    :param password: ``None`` for a server without passwords.
    :param database: the number of the database.
    :param prefix: the first characters of each key in the server.
    :param default_ttl: the ttl of values without one, in seconds.
    :param accepts_loss: whether a server may be used that loses acknowledged writes.
    """

    user: str | None = None
    password: str | None = None
    database: int = 0
    prefix: str = "wsgi_isr:"
    default_ttl: float = 30 * 86400.0
    accepts_loss: bool = False


class Connection(RedisConnection, NodeConnection):
    """A connection to a server, opened when it is needed; for one thread at a time.

    :param name: the name of the node.
    :param place: an address, or the path of a Unix socket.
    :param examine: called with the name of the node and its facts.
    """

    failures = (OSError, RedisError)
    timeouts = (TimeoutError, RedisTimeoutError)
    facts: Facts

    def __init__(self, name: str, place: Address | str, settings: Settings, access: Access, examine: Examiner) -> None:
        self.name = name
        self._place = place
        self._settings = settings
        self._access = access
        self._examine = examine
        self.default_ttl = access.default_ttl
        self.wire = Wire(settings)
        host, port = ("localhost", 0) if isinstance(place, str) else place
        super().__init__(host=host, port=port, protocol=2, redis_connect_func=_greet)

    def name_of(self, key: str) -> str:
        """Return the name of a key in the server."""
        return self._access.prefix + key

    def call(self, *command: str | bytes | int) -> Any:
        """Send a command, and return its answer.

        :raises RedisError: the server refuses the command, or does not answer.
        """
        if not self.wire.is_open:  # redis-py would connect anew, perhaps to another run of the server
            raise RedisConnectionError("the connection was closed meanwhile")
        self.send_command(*command, check_health=False)
        return self._read()

    def evaluate(self, script: Script, key: str, *arguments: bytes | str) -> Any:
        """Run a script, and return its answer. Its text is sent only to a server that does not know it yet."""
        try:
            return self.call("EVALSHA", script.sha, 1, key, *arguments)
        except NoScriptError:  # so nothing was done
            return self.call("EVAL", script.text, 1, key, *arguments)

    def is_answer(self, error: BaseException) -> bool:
        if not isinstance(error, ResponseError) or isinstance(error, _DOWN):
            return False
        return not str(error).startswith(_DOWN_WORDS)

    def ping(self) -> None:
        self.call("PING")

    def close(self) -> None:
        self.disconnect()
        self.wire.close()

    def connect(self) -> None:
        try:
            super().connect()
        except BaseException:
            self.close()
            raise
        finally:
            self.wire.unanswered = False  # nothing of the verb itself was sent

    def greet(self) -> None:
        """Authenticate, fetch the facts of the server, and choose the database, in one round trip."""
        access = self._access
        commands: list[Sequence[str | int]] = [("INFO",)]
        if access.password is not None:
            commands.insert(0, ("AUTH", *filter(None, (access.user,)), access.password))
        if access.database:
            commands.append(("SELECT", access.database))
        self.send_packed_command(self.pack_commands(commands), check_health=False)
        try:
            if access.password is not None:
                self._read()
            self.facts = _facts(self._read(), access.accepts_loss)
            if access.database:
                self._read()
        except ResponseError as error:  # no answer to a verb
            raise Refused(str(error)) from error
        self._examine(self.name, self.facts)

    def _connect(self) -> Any:
        """Return a socket; redis-py calls this method. redis-py's own has no deadline."""
        if isinstance(self._place, str):
            connect_unix(self.wire, self._settings, self._place)
        else:
            connect(self.wire, self._settings, *self._place)
        return self.wire

    def _read(self) -> Any:
        try:
            return self.read_response()
        except (ValueError, LookupError, RecursionError) as error:  # the server does not speak this protocol
            raise InvalidResponse(str(error)) from error


def _greet(connection: RedisConnection) -> None:
    assert isinstance(connection, Connection)
    connection._parser.on_connect(connection)
    connection.greet()


def _facts(answer: Any, accepts_loss: bool) -> Facts:
    """Return the facts in the answer to ``INFO``.

    :raises Refused: the server is no primary of its own.
    """
    if not isinstance(answer, bytes):
        raise InvalidResponse(f"the answer to INFO is {str(answer)[:40]!r}")
    rows = (line.partition(":") for line in answer.decode("utf-8", "replace").splitlines())
    said = {name: value.strip() for name, _, value in rows}
    mode = said.get("redis_mode") or said.get("server_mode")  # Redis, Valkey
    if mode in ("sentinel", "cluster") and not accepts_loss:
        raise Refused(f"it is a {'Sentinel' if mode == 'sentinel' else 'node of a Cluster'}: {_ASYNCHRONOUS}")
    if said.get("role") == "slave":
        raise Refused("it is a replica, and may lack what its primary has acknowledged: name the primary")
    if not said.get("run_id"):
        raise Refused("INFO does not tell its run_id: allow the command INFO")
    run = hashlib.blake2b(said["run_id"].encode(), digest_size=8).digest()
    return Facts(run, int(said.get("maxmemory", "0")), said.get("maxmemory_policy", ""))
