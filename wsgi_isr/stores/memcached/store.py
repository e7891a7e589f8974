"""The store on memcached nodes: ``memcached://host[:port],host[:port]...``."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from ...errors import ConfigError
from ..base import NodeReport, Store, Versioned, route
from ..nodes.addresses import Address, addresses
from ..nodes.node import Node
from ..nodes.store import Commands, NodeStore
from ..nodes.tls import TLS_OPTIONS, tls_context
from ..nodes.wire import DEFAULTS, Settings
from ..urls import parse_store_url
from .chunks import MARK, NO_MARK, Manifest, unpack
from .commands import (
    StoredItem,
    Writing,
    add,
    cas,
    delete,
    delete_if_unchanged,
    get,
    get_many,
    gets,
    report,
    set_,
    was_added,
)
from .connection import Connection

_log = logging.getLogger("wsgi_isr.store")

PORT = 11211

#: The options of the URL: see :class:`~..nodes.wire.Settings`, :class:`MemcachedStore` and :mod:`~..nodes.tls`.
OPTIONS = ("timeout", "connect_timeout", "deadline", "pool", "max_value", *TLS_OPTIONS)


class MemcachedStore(NodeStore):
    """Bytes on memcached nodes: see :class:`~..nodes.store.NodeStore`.

    :param nodes: the addresses.
    :param max_value: the maximum size of a value, in bytes. A value above the item limit is split (:mod:`.chunks`).

    memcached counts whole seconds. A value is missing less than 2 s after its ttl has passed (less than 1 s for whole
    seconds). See :func:`~.commands.expiry`.

    A value is missing if one of its parts was evicted. The verb that notices it removes the manifest, so the next
    ``add`` succeeds. An item of another program, or of another version of this package, is removed in the same way.
    ``delete`` removes the item alone. Parts of a split value stay, unreachable, until they expire or are evicted.
    """

    scheme = "memcached"
    commands = Commands(set_, add, was_added, cas, delete, delete_if_unchanged)

    def __init__(
        self, nodes: Sequence[Address], settings: Settings = DEFAULTS, *, max_value: int = Store.max_value
    ) -> None:
        self._pool = settings.pool
        by_name = {address.name: address for address in nodes}
        super().__init__(by_name, lambda name: Connection(by_name[name], settings), settings, max_value)

    @classmethod
    def from_url(cls, url: str) -> MemcachedStore:
        """Return the store for ``memcached://host[:port],host...[?option=value&...]``, with :data:`OPTIONS`."""
        parts = parse_store_url(url, OPTIONS)
        if parts.path.strip("/"):
            raise ConfigError(
                "store",
                f"the memcached URL takes no path such as {parts.path!r}",
                "write memcached://host:port,host:port",
            )
        for name in ("pool", "max_value"):
            if parts.integer(name, 1) < 1:
                raise parts.error(name, "is below 1", f"write {name}=1 or more, or leave it out")
        settings = Settings(
            timeout=parts.seconds("timeout", DEFAULTS.timeout),
            connect_timeout=parts.seconds("connect_timeout", DEFAULTS.connect_timeout),
            deadline=parts.seconds("deadline", DEFAULTS.deadline),
            pool=parts.integer("pool", DEFAULTS.pool),
            tls=tls_context(parts),
        )
        return cls(
            addresses(parts.host, "memcached", PORT), settings, max_value=parts.integer("max_value", Store.max_value)
        )

    def report(self, node: str) -> NodeReport:
        return self._nodes[node].read(self._clock() + self._deadline, report, self._pool)

    def _writing(self, key: str, value: bytes, ttl: float | None, is_add: bool) -> Writing:
        return Writing(key, value, ttl, os.urandom(MARK) if is_add else NO_MARK)

    def _get(self, node: Node, deadline: float, key: str) -> bytes | None:
        item = node.read(deadline, get, key)
        if item is None:
            return None
        value = unpack(item)
        if isinstance(value, bytes):
            return value
        joined = self._join(node, deadline, key, StoredItem(item, None))
        return joined and joined.value

    def _gets(self, node: Node, deadline: float, key: str) -> Versioned | None:
        found = node.read(deadline, gets, key)
        return found and self._join(node, deadline, key, found)

    def _get_group(self, node: Node, deadline: float, keys: list[str]) -> dict[str, bytes]:
        values = {}
        for key, item in node.read(deadline, get_many, keys).items():
            value = unpack(item)
            if not isinstance(value, bytes):
                joined = self._join(node, deadline, key, StoredItem(item, None))
                if joined is None:
                    continue
                value = joined.value
            values[key] = value
        return values

    def _join(self, node: Node, deadline: float, key: str, found: StoredItem) -> Versioned | None:
        """Return the value of an item, joined from its parts if it is split; ``None`` for a useless item.

        A useless item is removed. If another process has replaced it, the new item is read.
        """
        text = route(key).text
        again: StoredItem | None = found
        for _ in range(3):  # another process may write faster than this process reads, but hardly for ever
            if again is None:
                break
            found = again
            value = unpack(found.item)
            if value is None:
                _log.warning("the item %s on %s was not written by this version; it is removed", key, node.name)
            elif isinstance(value, Manifest):
                value = value.join(node.read(deadline, get_many, value.keys(text)), text)
            if value is not None:
                return Versioned(value, found.token)
            again = node.write(deadline, delete_if_unchanged, key, found.item)
        return None
