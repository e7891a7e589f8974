"""A connection to a memcached node: pymemcache's client with deadlines, and facts about the node.

The client differs from pymemcache 4.0 in three points. pymemcache has no deadline for a command as a whole. It tries
only the first address of a host name. It leaves an answer unread after an exception that is no ``Exception``.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from pymemcache.client.base import Client
from pymemcache.exceptions import (
    MemcacheClientError,
    MemcacheError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
    MemcacheUnknownCommandError,
    MemcacheUnknownError,
)

from ..nodes.addresses import Address
from ..nodes.connection import NodeConnection
from ..nodes.wire import Settings, Wire, connect


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


class Connection(Client, NodeConnection):  # type: ignore[misc]  # pymemcache has no types
    """A connection to a node, opened when it is needed; for one thread at a time."""

    failures = (OSError, MemcacheError)
    facts: Facts

    def __init__(self, address: Address, settings: Settings) -> None:
        super().__init__(tuple(address), default_noreply=False)
        self.name = address.name
        self.settings = settings
        self._clock = settings.clock
        self.wire = Wire(settings)

    def is_answer(self, error: BaseException) -> bool:
        """A bare ``ERROR`` is no answer: a node with too many connections sends it to refuse a connection."""
        if isinstance(error, MemcacheServerError):
            return not isinstance(error, MemcacheUnexpectedCloseError)
        return isinstance(error, MemcacheClientError) and not isinstance(error, MemcacheUnknownCommandError)

    def ping(self) -> None:
        self.version()

    def check_key(self, key: str, key_prefix: bytes) -> bytes:
        """Return the encoded key. The store has checked the key, once for many verbs."""
        return key.encode("ascii")

    def connect(self) -> None:
        self._connect()

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
        """Connect by :func:`~..nodes.wire.connect`.

        pymemcache tries only one address, and leaks the socket if its greenlet is killed.
        """
        connect(self.wire, self.settings, *self.server)
        self.sock = self.wire

    def _extract_value(self, expect_cas: bool, line: bytes, buf: bytes, remapped_keys: Any, prefixed_keys: Any) -> Any:
        try:
            return super()._extract_value(expect_cas, line, buf, remapped_keys, prefixed_keys)
        except (ValueError, KeyError) as error:  # this is not the answer to the command
            raise MemcacheUnknownError(line[:32]) from error
