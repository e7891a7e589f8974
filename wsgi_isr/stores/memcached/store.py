"""The store of the cluster: ``memcached://host[:port],host[:port]...``.

While the node of a page or of data is down, the next node in the ranking of the key replaces it (:mod:`.rendezvous`).
Reads and writes go there. In the worst case, a page is rendered twice. Control keys (:func:`~.base.route`) never move:
a node that comes back with old control keys would revive old pages.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from ...errors import ConfigError, StoreUnavailable, ValueTooLarge
from ..base import Many, NodeReport, Observer, Store, Token, Versioned, route
from ..fork_hooks import ForkAware, watch
from ..urls import parse_store_url
from .addresses import Address, addresses
from .chunks import MARK, NO_MARK, Manifest, unpack
from .commands import (
    NumberedToken,
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
from .connection import DEFAULTS, Settings
from .node import Node, NodeDown
from .rendezvous import Ring
from .tls import TLS_OPTIONS, tls_context

_log = logging.getLogger("wsgi_isr.store")

_Answer = TypeVar("_Answer")

#: The options of the URL: see :class:`~.connection.Settings`, :class:`MemcachedStore` and :mod:`.tls`.
OPTIONS = ("timeout", "connect_timeout", "deadline", "pool", "max_value", *TLS_OPTIONS)

_KEY = re.compile(r"[!-~]{1,200}\Z")


class MemcachedStore(ForkAware, Store):
    """Bytes on memcached nodes, shared by all processes with the same nodes, in any order.

    :param nodes: the addresses. All nodes may be down when the store is opened; a node that is down costs only speed.
    :param settings: timeouts, connections, TLS.
    :param max_value: the maximum size of a value, in bytes. A value above the item limit is split (:mod:`.chunks`).

    memcached counts whole seconds. A value is missing less than 2 s after its ttl has passed (less than 1 s for whole
    seconds). See :func:`~.commands.expiry`.

    A value is missing if one of its parts was evicted. The verb that notices it removes the manifest, so the next
    ``add`` succeeds. An item of another program, or of another version of this package, is removed in the same way.
    """

    remote = True
    scheme = "memcached"

    def __init__(
        self, nodes: Sequence[Address], settings: Settings = DEFAULTS, *, max_value: int = Store.max_value
    ) -> None:
        self.max_value = max_value
        self._clock = settings.clock
        self._deadline = settings.deadline
        self._pool = settings.pool
        self._ring = Ring(address.name for address in nodes)
        self.nodes = self._ring.names
        self._nodes = {address.name: Node(address, settings) for address in nodes}
        self._nodes_of = lru_cache(4096)(self._find_nodes)  # without this cache, a third of the time of a read
        watch(self)

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
        return cls(addresses(parts.host), settings, max_value=parts.integer("max_value", Store.max_value))

    def node_of(self, key: str) -> str:
        where = route(key)
        return where.node or self._ring.ranking(where.text)[0]

    @property
    def down(self) -> tuple[str, ...]:
        return tuple(name for name, node in self._nodes.items() if node.breaker.cause is not None)

    def observe(self, observer: Observer) -> None:
        for node in self._nodes.values():
            node.observer = observer

    def is_displaced(self, key: str) -> bool:
        return self._nodes_of(key)[0].breaker.cause is not None

    def report(self, node: str) -> NodeReport:
        return self._nodes[node].read(self._clock() + self._deadline, report, self._pool)

    def get(self, key: str) -> bytes | None:
        return self._try(key, self._get)

    def gets(self, key: str) -> Versioned | None:
        return self._try(key, self._gets)

    def get_many(self, keys: Sequence[str]) -> Many:
        deadline = self._clock() + self._deadline
        many = Many({}, {})
        tried = dict.fromkeys(keys, 0)  # from key to the number of its nodes that are known to be down
        while tried:
            groups: dict[Node, list[str]] = defaultdict(list)
            later = {}
            for key, number in tried.items():
                try:
                    groups[self._nodes_of(key)[number]].append(key)
                except StoreUnavailable as error:
                    many.unreachable[key] = error
            for node, group in groups.items():
                try:
                    many.values.update(self._get_group(node, deadline, group))
                except StoreUnavailable as error:
                    may_retry = isinstance(error, NodeDown) and self._clock() < deadline
                    for key in group:
                        if may_retry and tried[key] + 1 < len(self._nodes_of(key)):
                            later[key] = tried[key] + 1
                        else:
                            many.unreachable[key] = error
            tried = later
        return many

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._refuse_large(key, value)
        self._try(key, self._set, Writing(key, value, ttl, NO_MARK))

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        return self._try(key, self._add, Writing(key, value, ttl, os.urandom(MARK)))

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        return self._try(key, self._cas, Writing(key, value, ttl, NO_MARK), token)

    def delete(self, key: str) -> bool:
        """Remove the item. The parts of a split value stay, unreachable, until they expire or are evicted."""
        return self._try(key, self._delete)

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()

    def after_fork_in_child(self) -> None:
        for node in self._nodes.values():
            node.forget()

    def _find_nodes(self, key: str) -> tuple[Node, ...]:
        """Return the nodes that may hold a key, in the order of the requests."""
        if not _KEY.match(key):
            raise ValueError(f"{key!r} is no key: 1 to 200 printable ASCII characters without spaces")
        where = route(key)
        if where.node is not None:
            if where.node not in self._nodes:
                raise StoreUnavailable(where.node, "it is not among the nodes of this store")
            return (self._nodes[where.node],)
        names = self._ring.ranking(where.text)
        return tuple(self._nodes[name] for name in (names[:1] if where.control else names))

    def _try(self, key: str, verb: Callable[..., _Answer], *args: object) -> _Answer:
        """Return the answer of ``verb(node, deadline, key, *args)`` from the first node that is not down."""
        deadline = self._clock() + self._deadline
        first: NodeDown | None = None
        for node in self._nodes_of(key):
            try:
                return verb(node, deadline, key, *args)
            except NodeDown as error:
                first = first or error
                if self._clock() >= deadline:
                    break
        assert first is not None  # each key has a node
        try:
            raise first
        finally:
            del first  # it refers to this frame, and would make a reference cycle

    @staticmethod
    def _set(node: Node, deadline: float, key: str, writing: Writing) -> None:
        node.write(deadline, set_, writing)

    @staticmethod
    def _delete(node: Node, deadline: float, key: str) -> bool:
        return node.write(deadline, delete, key)

    @staticmethod
    def _add(node: Node, deadline: float, key: str, writing: Writing) -> bool:
        try:
            return node.write(deadline, add, writing, verify=was_added)
        except NodeDown as error:
            if error.sent and not route(key).control:
                # The next node gets the add. If this node carries it out later, the item is a lease without an owner.
                # Clients without a page would then wait until that lease lapses.
                node.compensate(delete_if_unchanged, key, writing.item)
            raise

    @staticmethod
    def _cas(node: Node, deadline: float, key: str, writing: Writing, token: NumberedToken) -> bool:
        if token.node != node.name:
            # The token comes from another node, which held the key before. Only this node holds the key now.
            if node.breaker.cause is not None:
                raise NodeDown(node.name, node.breaker.cause)
            return False
        try:
            return node.write(deadline, cas, writing, token)
        except NodeDown as error:
            if error.sent:  # the value may be written here, so the next node cannot know
                raise StoreUnavailable(error.node, error.cause) from error
            raise

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

    def _refuse_large(self, key: str, value: bytes) -> None:
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)
