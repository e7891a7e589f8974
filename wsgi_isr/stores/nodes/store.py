"""The store on nodes of any protocol: which node a key is on, and what happens while a node is down.

While the node of a page or of data is down, the next node in the ranking of the key replaces it (:mod:`.rendezvous`).
Reads and writes go there. In the worst case, a page is rendered twice. Control keys (:func:`~..base.route`) never move:
a node that comes back with old control keys would revive old pages.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from ...errors import StoreUnavailable, ValueTooLarge
from ..base import Many, Observer, Store, Token, Versioned, route
from ..fork_hooks import ForkAware, watch
from .connection import NodeConnection
from .node import Node, NodeDown
from .rendezvous import Ring
from .wire import Settings

_Answer = TypeVar("_Answer")

_KEY = re.compile(r"[!-~]{1,200}\Z")


class Writing(Protocol):
    """A value to be written."""

    @property
    def item(self) -> bytes:
        """The bytes that the node keeps, different for each ``add``; known once the value was sent."""


class Commands(NamedTuple):
    """The commands of a protocol. Each is called with a connection first, by :meth:`~.node.Node.write`.

    :param was_added: returns whether an ``add`` whose answer was lost has written the item; ``None`` if unknown.
    :param delete_if_unchanged: called with a key and an item; removes that item, and no other.
    """

    set: Callable[..., None]
    add: Callable[..., bool]
    was_added: Callable[..., bool | None]
    cas: Callable[..., bool]
    delete: Callable[..., bool]
    delete_if_unchanged: Callable[..., object]


class NodeStore(ForkAware, Store):
    """Bytes on nodes, shared by all processes with the same nodes, in any order.

    :param names: the names of the nodes. All nodes may be down when the store is opened; a node that is down costs only
        speed.
    :param connect: returns a new connection to the node of a name, which is not open yet.
    :param settings: timeouts, connections, TLS.
    :param max_value: the maximum size of a value, in bytes.

    A token has the name of its node in ``node``.
    """

    remote = True
    commands: ClassVar[Commands]

    def __init__(
        self, names: Iterable[str], connect: Callable[[str], NodeConnection], settings: Settings, max_value: int
    ) -> None:
        self.max_value = max_value
        self._clock = settings.clock
        self._deadline = settings.deadline
        self._ring = Ring(names)
        self.nodes = self._ring.names
        self._nodes = {
            name: Node(self.scheme, name, lambda name=name: connect(name), settings)  # type: ignore[misc]
            for name in self.nodes
        }
        self._nodes_of = lru_cache(4096)(self._find_nodes)  # without this cache, a third of the time of a read
        watch(self)

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
        self._try(key, self._set, self._writing(key, value, ttl, False))

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        return self._try(key, self._add, self._writing(key, value, ttl, True))

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        return self._try(key, self._cas, self._writing(key, value, ttl, False), token)

    def delete(self, key: str) -> bool:
        return self._try(key, self._delete)

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()

    def after_fork_in_child(self) -> None:
        for node in self._nodes.values():
            node.forget()

    @abstractmethod
    def _writing(self, key: str, value: bytes, ttl: float | None, is_add: bool) -> Writing:
        """Return a value for :attr:`commands`.

        :param is_add: whether the item must differ from any other.
        """

    @abstractmethod
    def _get(self, node: Node, deadline: float, key: str) -> bytes | None:
        """Return the value of ``key`` on ``node``."""

    @abstractmethod
    def _gets(self, node: Node, deadline: float, key: str) -> Versioned | None:
        """Return the value of ``key`` on ``node`` with a token."""

    @abstractmethod
    def _get_group(self, node: Node, deadline: float, keys: list[str]) -> dict[str, bytes]:
        """Return the values of ``keys`` on ``node``, all in one round trip."""

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

    def _set(self, node: Node, deadline: float, key: str, writing: Writing) -> None:
        node.write(deadline, self.commands.set, writing)

    def _delete(self, node: Node, deadline: float, key: str) -> bool:
        return node.write(deadline, self.commands.delete, key)

    def _add(self, node: Node, deadline: float, key: str, writing: Writing) -> bool:
        try:
            return node.write(deadline, self.commands.add, writing, verify=self.commands.was_added)
        except NodeDown as error:
            if error.sent and not route(key).control:
                # The next node gets the add. If this node carries it out later, the item is a lease without an owner.
                # Clients without a page would then wait until that lease lapses.
                node.compensate(self.commands.delete_if_unchanged, key, writing.item)
            raise

    def _cas(self, node: Node, deadline: float, key: str, writing: Writing, token: Any) -> bool:
        if token.node != node.name:
            # The token comes from another node, which held the key before. Only this node holds the key now.
            if node.breaker.cause is not None:
                raise NodeDown(node.name, node.breaker.cause)
            return False
        try:
            return node.write(deadline, self.commands.cas, writing, token)
        except NodeDown as error:
            if error.sent:  # the value may be written here, so the next node cannot know
                raise StoreUnavailable(error.node, error.cause) from error
            raise

    def _refuse_large(self, key: str, value: bytes) -> None:
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)
