"""A connection to a memcached node: pymemcache's client with deadlines, and facts about the node.

The client differs from pymemcache 4.0 in three points. pymemcache has no deadline for a command as a whole. It tries
only the first address of a host name. It leaves an answer unread after an exception that is no ``Exception``.
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


class Facts(NamedTuple):
    """Facts that a node reports about itself.

    :param item_limit: the maximum size of an item, in bytes.
    :param incarnation: differs after a restart. Compare-and-swap numbers then start from 1, so an older token could
        match by chance.
    :param ahead: the Unix time of the node minus the clock of this process, in seconds.
    """

    item_limit: int
    incarnation: tuple[int, int]
    ahead: float


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
        # pymemcache requests 4 KiB at a time and accepts more.
        data = self._in_time().recv(PIECE)
        self._moved += len(data)
        return data

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

    def _in_time(self) -> socket.socket:
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
    """A connection to a node, opened when it is needed; for one thread at a time."""

    facts: Facts

    def __init__(self, address: Address, settings: Settings) -> None:
        super().__init__(tuple(address), default_noreply=False)
        self.name = address.name
        self.settings = settings
        self._clock = settings.clock
        self.wire = Wire(settings)

    def begin(self, deadline: float, *, check: bool = False) -> bool:
        """Open the connection for a verb, if it is not open.

        :param deadline: a time of the clock.
        :param check: whether to check that an idle connection is usable. A write needs it: once sent, it cannot be
            repeated.
        :returns: whether the connection was open already.
        """
        self.wire.begin(deadline)
        if self.sock is not None:
            if not (check and self.wire.is_unusable()):
                return True
            self.close()
        self._connect()
        return False

    def reopen(self) -> None:
        """Open a new connection for the rest of the same verb."""
        self.close()
        self._connect()

    def check_key(self, key: str, key_prefix: bytes) -> bytes:
        """Return the encoded key. The store has checked the key, once for many verbs."""
        return key.encode("ascii")

    def _connect(self) -> None:
        """Open the connection, and fetch the facts of the node. pymemcache calls this method as well."""
        self.close()
        try:
            self._open()
            try:
                self.facts = self._fetch_facts()
            except MemcacheClientError:
                # A server that resembles memcached may know the other commands. pymemcache has closed the connection.
                self._open()
                self.facts = Facts(1024 * 1024, (0, 0), time.time() - self._clock())
        except BaseException:
            self.close()
            raise
        finally:
            self.wire.unanswered = False  # nothing of the verb itself was sent

    def stats(self, *kind: str) -> dict[str, str]:
        """Return the statistics of the node by name; with ``settings``, its settings."""
        found = self._fetch_cmd(b"stats", kind, False)
        return {name.decode("ascii", "replace"): value.decode("utf-8", "replace") for name, value in found.items()}

    def _fetch_facts(self) -> Facts:
        stats = self._fetch_cmd(b"stats", (), False)
        limits = self._fetch_cmd(b"stats", ("settings",), False)
        now = int(stats.get(b"time", time.time()))
        return Facts(
            int(limits.get(b"item_size_max", 1024 * 1024)),
            (int(stats.get(b"pid", 0)), now - int(stats.get(b"uptime", now))),
            now - self._clock(),
        )

    def _open(self) -> None:
        """Connect to the first address that accepts.

        pymemcache tries only one address, so ``localhost`` fails if it also means ::1, and the node listens on
        127.0.0.1 alone. pymemcache also leaks the socket if its greenlet is killed.
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
            del failure  # it refers to this frame, and would make a reference cycle

    def _extract_value(self, expect_cas: bool, line: bytes, buf: bytes, remapped_keys: Any, prefixed_keys: Any) -> Any:
        try:
            return super()._extract_value(expect_cas, line, buf, remapped_keys, prefixed_keys)
        except (ValueError, KeyError) as error:  # this is not the answer to the command
            raise MemcacheUnknownError(line[:32]) from error
