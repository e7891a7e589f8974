"""One connection to a memcached node: pymemcache's client with deadlines, and facts about the node.

It differs from pymemcache 4.0 in three points. A socket there has no total deadline. A host name with several addresses
is tried at the first one only. An answer stays unread after an exception that is no ``Exception``.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheClientError, MemcacheUnknownError

from .addresses import Address

#: Bytes that are sent or requested at once; the deadline is checked between two pieces.
PIECE = 64 * 1024


@dataclass(frozen=True)
class Settings:
    """Timeouts and limits of the connections to nodes; times in seconds.

    :param timeout: without any progress.
    :param connect_timeout: for each address, TLS included.
    :param deadline: for a verb as a whole, with all its attempts. It does not bound the look-up of a host name: the
        system's resolver has limits of its own.
    :param pool: connections to each node; opened when needed.
    """

    timeout: float = 0.25
    connect_timeout: float = 0.25
    deadline: float = 1.0
    pool: int = 16
    tls: ssl.SSLContext | None = None
    clock: Callable[[], float] = time.monotonic


USUAL = Settings()


class Facts(NamedTuple):
    """Facts that a node reports about itself.

    ``incarnation`` differs after a restart. Compare-and-swap numbers then start from 1 again, so an older token could
    match by chance. ``ahead`` is the node's Unix time minus the clock of this process.
    """

    item_limit: int
    incarnation: tuple[int, int]
    ahead: float


class Wire:
    """A socket with a deadline; it outlives the sockets of a connection that is reopened.

    A command sets ``unanswered``. The caller resets it once it has read the answer to the end. As long as it is true,
    the socket must not serve another command.
    """

    __slots__ = ("_began", "_clock", "_enough", "_inner", "_moved", "_shortened", "_timeout", "deadline", "unanswered")

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.timeout
        self._enough = 0.9 * min(settings.timeout, settings.deadline)
        self._clock = settings.clock
        self._inner: socket.socket | None = None
        self.begin(0.0)

    def attach(self, inner: socket.socket) -> None:
        inner.settimeout(self._timeout)
        self._inner = inner
        self._shortened = False

    def begin(self, deadline: float) -> None:
        """Start a verb."""
        self.deadline = deadline
        self.unanswered = False
        self._began = self._clock()
        self._moved = 0  # bytes, roughly

    def sendall(self, data: bytes) -> None:
        self.unanswered = True
        if len(data) <= PIECE:
            self._allowed().sendall(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), PIECE):
            self._allowed().sendall(view[start : start + PIECE])
            self._moved += PIECE

    def recv(self, size: int) -> bytes:
        # pymemcache requests 4 KiB at a time and accepts more.
        data = self._allowed().recv(PIECE)
        self._moved += len(data)
        return data

    def close(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.close()

    def short_of_time(self) -> bool:
        """Return whether the deadline has passed without a fault of the node.

        Either other nodes had used up the time, so that less than a timeout was left. Or the value is large; verbs with
        small values need not suffer for it.
        """
        brief = self.deadline - self._began < self._enough
        return self._clock() >= self.deadline and (brief or self._moved >= PIECE)

    def stale(self) -> bool:
        """Return whether the node has closed an idle connection, or sent something without a command."""
        inner = self._allowed()
        inner.settimeout(0)
        try:
            # Below TLS, whose recv takes no flags: the first byte of an unexpected record is enough.
            socket.socket.recv(inner, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            inner.settimeout(self._timeout)
            self._shortened = False
        return True

    def _allowed(self) -> socket.socket:
        """Return the socket, with a timeout that ends at the deadline."""
        if self._inner is None:
            raise ConnectionError("the connection was closed meanwhile")
        left = self.deadline - self._clock()
        if left < self._timeout:
            if left <= 0:
                raise TimeoutError("the deadline has passed")
            self._inner.settimeout(left)
            self._shortened = True
        elif self._shortened:
            self._inner.settimeout(self._timeout)
            self._shortened = False
        return self._inner


class Connection(Client):  # type: ignore[misc]  # pymemcache has no types
    """A connection to one node, opened when it is needed; for one thread at a time."""

    facts: Facts

    def __init__(self, address: Address, settings: Settings) -> None:
        super().__init__(tuple(address), default_noreply=False)
        self.name = address.name
        self.settings = settings
        self._clock = settings.clock
        self.wire = Wire(settings)

    def begin(self, deadline: float, *, sure: bool = False) -> bool:
        """Open the connection for a verb, if it is not open.

        :param deadline: by the clock.
        :param sure: check whether the node has closed an idle connection; a write cannot be repeated once it was sent.
        :returns: whether the connection was open already.
        """
        self.wire.begin(deadline)
        if self.sock is not None:
            if not (sure and self.wire.stale()):
                return True
            self.close()
        self._connect()
        return False

    def reopen(self) -> None:
        """Open a new connection for the rest of the same verb."""
        self.close()
        self._connect()

    def check_key(self, key: str, key_prefix: bytes) -> bytes:
        """Return the encoded key; the store has checked it, once for many verbs."""
        return key.encode("ascii")

    def _connect(self) -> None:
        """Open, and ask the node for its facts; pymemcache calls this method as well."""
        self.close()
        try:
            self._open()
            try:
                self.facts = self._ask()
            except MemcacheClientError:
                # A server that only resembles memcached may be good for the rest. pymemcache has closed the connection.
                self._open()
                self.facts = Facts(1024 * 1024, (0, 0), time.time() - self._clock())
        except BaseException:
            self.close()
            raise
        finally:
            self.wire.unanswered = False  # nothing of the verb itself was sent yet

    def _ask(self) -> Facts:
        told = self._fetch_cmd(b"stats", (), False)
        limits = self._fetch_cmd(b"stats", ("settings",), False)
        now = int(told.get(b"time", time.time()))
        return Facts(
            int(limits.get(b"item_size_max", 1024 * 1024)),
            (int(told.get(b"pid", 0)), now - int(told.get(b"uptime", now))),
            now - self._clock(),
        )

    def _open(self) -> None:
        """Connect to the first address that accepts.

        pymemcache tries only one address. Then ``localhost`` fails where the node listens on 127.0.0.1 and the name
        means ::1 as well. It also loses the socket when a greenlet is killed.
        """
        settings, (host, port) = self.settings, self.server
        failure: OSError = ConnectionError("no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            left = self.wire.deadline - self._clock()
            if left <= 0:
                raise TimeoutError("the deadline has passed")
            opened = socket.socket(family, kind, protocol)
            try:
                opened.settimeout(min(settings.connect_timeout, left))
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                opened.connect(place)
                if settings.tls is not None:
                    opened = settings.tls.wrap_socket(opened, server_hostname=host, do_handshake_on_connect=False)
                    opened.do_handshake()
            except OSError as error:
                opened.close()
                failure = error
            except BaseException:
                opened.close()
                raise
            else:
                self.wire.attach(opened)
                self.sock = self.wire
                return
        try:
            raise failure
        finally:
            del failure  # a reference cycle: the error refers to this frame

    def _extract_value(self, expect_cas: bool, line: bytes, buf: bytes, remapped_keys: Any, prefixed_keys: Any) -> Any:
        try:
            return super()._extract_value(expect_cas, line, buf, remapped_keys, prefixed_keys)
        except (ValueError, KeyError) as error:  # not the answer to this command
            raise MemcacheUnknownError(line[:32]) from error
