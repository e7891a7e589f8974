"""The store on Redis or Valkey: ``redis://[user:password@]host[:port],host[:port].../database``.

Several servers are independent nodes, as memcached's are (:mod:`~..nodes.store`). No server knows the others. Sentinel
and Cluster are refused: their failover is asynchronous, so an acknowledged invalidation may be lost.

No verb sends ``KEYS``, ``SCAN`` or ``FLUSHDB``: other programs may use the same database.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from ...errors import ConfigError, StoreUnavailable
from ..base import Store, Versioned
from ..nodes.node import Node
from ..nodes.store import Commands, NodeStore
from ..nodes.tls import TLS_OPTIONS, tls_context
from ..nodes.wire import DEFAULTS, Settings
from ..urls import StoreURL, parse_store_url
from .address import places
from .commands import (
    Useless,
    Writing,
    add,
    cas,
    delete,
    delete_if_unchanged,
    discard,
    find,
    find_many,
    set_,
    was_added,
)
from .connection import Access, Connection, Place
from .items import HEADER
from .memory import Examiner, problem_of

_log = logging.getLogger("wsgi_isr.store")

#: The options of the URL: see :class:`~..nodes.wire.Settings`, :class:`~.connection.Access` and :mod:`~..nodes.tls`.
OPTIONS = (
    "timeout",
    "connect_timeout",
    "deadline",
    "pool",
    "max_value",
    "prefix",
    "default_ttl",
    "database",
    "accept_loss",
    "sentinel",
    *TLS_OPTIONS,
)
#: The maximum of ``max_value``: the maximum size of a string in Redis (512 MB, "Redis strings"), without the header.
LARGEST_VALUE = 512 * 1024 * 1024 - HEADER

_PREFIX = re.compile(r"[!-~]{1,64}\Z")


class RedisStore(NodeStore):
    """Bytes on Redis servers: see :class:`~..nodes.store.NodeStore`.

    :param nodes: from the name of each node to its place.
    :param access: user, password, database, prefix.
    :param max_value: the maximum size of a value, in bytes.

    A value of a page or of data without a ttl lives for ``access.default_ttl``, because a server without eviction would
    fill up. A ttl is rounded up to a millisecond.

    An item of another program, or of another version of this package, is removed by the verb that notices it. So is a
    control key from another run of the server (:mod:`.items`).
    """

    scheme = "redis"
    commands = Commands(set_, add, was_added, cas, delete, delete_if_unchanged)

    def __init__(
        self,
        nodes: Mapping[str, Place],
        settings: Settings = DEFAULTS,
        access: Access = Access(),  # noqa: B008 -- immutable
        *,
        max_value: int = Store.max_value,
    ) -> None:
        self._access = access
        examine = Examiner()
        super().__init__(
            nodes, lambda name: Connection(name, nodes[name], settings, access, examine), settings, max_value
        )

    @classmethod
    def from_url(cls, url: str) -> RedisStore:
        """Return the store for a URL with the scheme ``redis``, ``valkey``, or with TLS ``rediss``, ``valkeys``.

        :raises ConfigError: the URL is malformed, or an option is wrong.
        """
        parts = parse_store_url(url, OPTIONS)
        for name, most in (("pool", 10_000), ("max_value", LARGEST_VALUE)):
            if not 1 <= parts.integer(name, 1) <= most:
                raise parts.error(name, f"is not from 1 to {most}", f"write {name}=1 or more, or leave it out")
        found = places(url, parts)
        settings = Settings(
            timeout=parts.seconds("timeout", DEFAULTS.timeout),
            connect_timeout=parts.seconds("connect_timeout", DEFAULTS.connect_timeout),
            deadline=parts.seconds("deadline", DEFAULTS.deadline),
            pool=parts.integer("pool", DEFAULTS.pool),
            tls=tls_context(_with_tls(parts)),
        )
        access = Access(
            found.user,
            found.password,
            found.database,
            _prefix(parts),
            parts.seconds("default_ttl", Access().default_ttl),
            _flag(parts, "accept_loss"),
        )
        return cls(found.nodes, settings, access, max_value=parts.integer("max_value", Store.max_value))

    @property
    def places(self) -> tuple[str, ...]:
        # Databases and prefixes of a server are stores of their own.
        return tuple(f"redis://{node}/{self._access.database}?prefix={self._access.prefix}" for node in self.nodes)

    def problems(self) -> tuple[str, ...]:
        found = []
        for node in self._nodes.values():
            try:
                facts = node.read(self._clock() + self._deadline, lambda connection: connection.facts)
            except StoreUnavailable:
                continue  # the verbs report it
            if problem := problem_of(facts):
                found.append(f"{node.name}: {problem}")
        return tuple(found)

    def _writing(self, key: str, value: bytes, ttl: float | None, is_add: bool) -> Writing:
        return Writing(key, value, ttl)

    def _get(self, node: Node, deadline: float, key: str) -> bytes | None:
        found = self._gets(node, deadline, key)
        return found and found.value

    def _gets(self, node: Node, deadline: float, key: str) -> Versioned | None:
        return self._useful(node, deadline, key, node.read(deadline, find, key))

    def _get_group(self, node: Node, deadline: float, keys: list[str]) -> dict[str, bytes]:
        values = {}
        for key, found in node.read(deadline, find_many, keys).items():
            if (useful := self._useful(node, deadline, key, found)) is not None:
                values[key] = useful.value
        return values

    def _useful(self, node: Node, deadline: float, key: str, found: Versioned | Useless | None) -> Versioned | None:
        """Return an item that was found. A useless item is removed; if another has replaced it, return that one."""
        if not isinstance(found, Useless):
            return found
        if found.is_foreign:
            _log.warning("the item %s on %s was not written by this version; it is removed", key, node.name)
        again = node.write(deadline, discard, key, found)
        return None if isinstance(again, Useless) else again


def _with_tls(parts: StoreURL) -> StoreURL:
    """Return the parts with the option ``tls`` that the scheme implies."""
    if parts.scheme in ("rediss", "valkeys"):
        if parts.options.get("tls", "1") != "1":
            raise parts.error("tls", f"contradicts {parts.scheme}://", f"write {parts.scheme[:-1]}://")
        parts = parts._replace(options={**parts.options, "tls": "1"})
    if parts.options.get("tls") == "1" and not parts.host:
        raise ConfigError("store", "a Unix socket takes no TLS", f"write {parts.scheme.removesuffix('s')}:///path")
    return parts


def _prefix(parts: StoreURL) -> str:
    prefix = parts.options.get("prefix", Access().prefix)
    if not _PREFIX.match(prefix):
        raise parts.error("prefix", "is not 1 to 64 printable ASCII characters without spaces", "write prefix=site:")
    return prefix


def _flag(parts: StoreURL, name: str) -> bool:
    if (text := parts.options.get(name, "0")) not in ("0", "1"):
        raise parts.error(name, "is neither 0 nor 1", f"write {name}=1, or leave it out")
    return text == "1"
