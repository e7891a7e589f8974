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

ASYNCHRONOUS = (
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

    def __repr__(self) -> str:
        """Return the fields without the password, for tracebacks that show values."""
        return f"Access(user={self.user!r}, database={self.database}, prefix={self.prefix!r})"


class Watched(NamedTuple):
    """A primary whose address its Sentinels tell.

    :param name: the name of the primary in the configuration of the Sentinels.
    :param sentinels: their addresses.
    """

    name: str
    sentinels: tuple[Address, ...]


Place = Address | str | Watched
"""The place of a server: its address, the path of its Unix socket, or its Sentinels."""


class Connection(RedisConnection, NodeConnection):
    """A connection to a server, opened when it is needed; for one thread at a time.

    :param name: the name of the node.
    :param place: see :data:`Place`.
    :param examine: called with the name of the node and its facts.
    """

    failures = (OSError, RedisError)
    timeouts = (TimeoutError, RedisTimeoutError)
    facts: Facts

    def __init__(self, name: str, place: Place, settings: Settings, access: Access, examine: Examiner) -> None:
        self.name = name
        self._place = place
        self._settings = settings
        self._access = access
        self._examine = examine
        self._prefix = access.prefix
        self.default_ttl = access.default_ttl
        self.wire = Wire(settings)
        host, port = place if isinstance(place, Address) else ("localhost", 0)
        super().__init__(host=host, port=port, protocol=2, redis_connect_func=_greet)

    def name_of(self, key: str) -> str:
        """Return the name of a key in the server."""
        return self._prefix + key

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
        if self.facts.is_cluster:  # one hash tag, so that one server holds all keys
            self._prefix = f"{{{access.prefix}}}"
        self._examine(self.name, self.facts)

    def _connect(self) -> Any:
        """Return a socket; redis-py calls this method. redis-py's own has no deadline."""
        place = self._ask_for_primary(self._place) if isinstance(self._place, Watched) else self._place
        if isinstance(place, str):
            connect_unix(self.wire, self._settings, place)
        else:
            connect(self.wire, self._settings, *place)
        return self.wire

    def _ask_for_primary(self, watched: Watched) -> Address:
        """Return the address of the primary, from the first Sentinel that tells it.

        :raises Refused: no Sentinel tells it; the message has the reason of the last one.
        """
        reason: object = "it names no Sentinel"
        for address in watched.sentinels:
            asking = _ToSentinel(address.name, address, self._settings, self._access, self._examine)
            try:
                asking.begin(self.wire.deadline)
                answer = asking.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", watched.name)
                host, port = answer or (b"", b"")
                if host:
                    return Address(host.decode("ascii"), int(port))
                reason = f"{address.name} does not know {watched.name!r}"
            except (*self.failures, TypeError, ValueError) as error:
                reason = f"{address.name}: {error}"
            finally:
                asking.close()
        raise Refused(f"no Sentinel tells the primary: {reason}")

    def _read(self) -> Any:
        try:
            return self.read_response()
        except (ValueError, LookupError, RecursionError) as error:  # the server does not speak this protocol
            raise InvalidResponse(str(error)) from error


class _ToSentinel(Connection):
    """A connection to a Sentinel, which is asked for an address alone."""

    def greet(self) -> None:
        """Send nothing: a Sentinel has no databases, and passwords of its own."""


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
    if mode == "sentinel":
        remedy = "write sentinel=the name of the primary" if accepts_loss else ASYNCHRONOUS
        raise Refused(f"it is a Sentinel: {remedy}")
    if mode == "cluster" and not accepts_loss:
        raise Refused(f"it is a node of a Cluster: {ASYNCHRONOUS}")
    if said.get("role") == "slave":
        raise Refused("it is a replica, and may lack what its primary has acknowledged: name the primary")
    if not said.get("run_id"):
        raise Refused("INFO does not tell its run_id: allow the command INFO")
    run = hashlib.blake2b(said["run_id"].encode(), digest_size=8).digest()
    return Facts(run, int(said.get("maxmemory", "0")), said.get("maxmemory_policy", ""), mode == "cluster")
