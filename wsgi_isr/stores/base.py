"""The store contract: eight verbs over bytes.

Leases, tag versions, limits and back-off are built on these verbs. A store knows nothing of pages. Every store passes
the suite in :mod:`wsgi_isr.testing`.

A read has three results: a value, *missing* (``None``, or absent), and *unreachable*
(:class:`~wsgi_isr.errors.StoreUnavailable`). The caller decides what to do about each.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import StoreUnavailable

Token = Any
"""The token from :meth:`Store.gets` for :meth:`Store.cas`. Only the store knows its content."""


Observer = Callable[[str, str, float, bool], None]
"""Called with the node, the verb, the seconds, and whether the node has answered; it must not raise."""


class Versioned(NamedTuple):
    """A value with its token. By the token, :meth:`Store.cas` detects a later write."""

    value: bytes
    token: Token


class Many(NamedTuple):
    """The result of :meth:`Store.get_many`. A key in neither dict is missing."""

    values: dict[str, bytes]
    unreachable: dict[str, StoreUnavailable]


class Route(NamedTuple):
    """The way from a key to its node.

    :param control: whether the key is a tag, an epoch or a switch, which never moves to another node.
    :param text: the text that decides the node.
    :param node: the node that the key itself names; ``None`` for other keys.
    """

    control: bool
    text: str
    node: str | None = None


class NodeReport(NamedTuple):
    """The state of a node, as the node itself reports it.

    :param version: the version of the server.
    :param ahead: the clock of the node minus that of this process, in seconds.
    :param uptime: seconds.
    :param evictions: the values that the node evicted for want of memory since its start.
    :param connections: the open connections.
    :param max_connections: the most connections.
    :param pool: the most connections of one process.
    :param memory: the memory for values, in bytes.
    """

    version: str
    ahead: float
    uptime: float
    evictions: int
    connections: int
    max_connections: int
    pool: int
    memory: int


def route(key: str) -> Route:
    """Return the route of a key ``schema:namespace:plane:name[:suffix]``.

    Keys in the planes ``p`` (pages) and ``d`` (data) move to another node while their node is down. Their suffix does
    not count, so a lease is on the node of its cache entry. Keys in the planes ``t`` (tags), ``e`` (epochs) and ``s``
    (switches) never move. The name of an epoch or a switch is that of its node. Any other key is data, routed by the
    key as a whole.
    """
    schema, namespace, plane, name = (*key.split(":", 3), "", "", "")[:4]
    if plane in ("e", "s") and name:
        return Route(True, key, name)
    if plane == "t" and name:
        return Route(True, key)
    return Route(False, f"{schema}:{namespace}:{plane}:{name.split(':')[0]}" if plane in ("p", "d") and name else key)


def is_control(key: str) -> bool:
    """Return whether ``key`` is a tag, an epoch or a switch.

    The loss of a control key costs a render of each page with this tag. Therefore, the built-in stores evict control
    keys last.
    """
    parts = key.split(":", 3)
    return len(parts) == 4 and parts[2] in _CONTROL_PLANES and parts[3] != ""


_CONTROL_PLANES = ("t", "e", "s")


#: The part of a store's bytes for all control keys together. All slots of :mod:`wsgi_isr.cache.keyspace`
#: fit into this part of the default sizes, so a flood of URLs evicts no control key.
CONTROL_SHARE = 1 / 2


class Store(abc.ABC):
    """Bytes by key, shared by all processes that open the same URL.

    A key is printable ASCII without spaces, at most 200 characters (see :func:`route`). A value is any bytes up to
    :attr:`max_value`. A ``ttl`` is in seconds, above 0; ``None`` keeps the value until it is evicted. After its ttl, a
    value is missing for every verb. :meth:`cas` alone takes the ttl 0 as well, which removes the value at once. In
    this way, an owner releases a lease without a risk to the lease of a later owner.

    Every verb may raise :class:`~wsgi_isr.errors.StoreUnavailable`. A write that raises it may have happened or not.
    The writing verbs raise :class:`~wsgi_isr.errors.ValueTooLarge` *before* they change anything. Any thread may call
    any verb, also in the child of a ``fork``, without preparation. A store opens its files and sockets lazily. In a
    child, it drops all objects that a process must not inherit.
    """

    #: The maximum size of a value, in bytes.
    max_value: int = 64 * 1024 * 1024

    #: Whether the store keeps values. If not, caching is off.
    keeps: bool = True

    #: Whether other processes see the values.
    shared: bool = True

    #: The names of the nodes that hold the keys. Each node can fail alone.
    nodes: tuple[str, ...] = ("local",)

    #: Whether the nodes are on other machines, and may be down while this process runs.
    remote: bool = False

    #: Whether the location of the store depends on the current directory of the process.
    relative: bool = False

    #: The scheme of the store's URLs.
    scheme: str = "store"

    @property
    def places(self) -> tuple[str, ...]:
        """Return the URLs of the nodes, or of the file. Two stores with a URL in common are the same store."""
        return tuple(f"{self.scheme}://{node}" for node in self.nodes)

    @property
    def location(self) -> str:
        """Return the URL of the store for messages: absolute, and without secrets."""
        return f"{self.scheme}://{','.join(self.nodes)}"

    def node_of(self, key: str) -> str:
        """Return the node of a control key: always the same one, whether it is reachable or not."""
        return self.nodes[0]

    def is_displaced(self, key: str) -> bool:
        """Return whether another node answers for ``key`` because the node of the key is down.

        If so, a missing value proves nothing.
        """
        return False

    def report(self, node: str) -> NodeReport | None:
        """Return the report of a node; ``None`` if its nodes make none.

        :raises StoreUnavailable: the node cannot be reached.
        """
        return None

    def problems(self) -> tuple[str, ...]:
        """Return the settings of the nodes that an administrator should change, with the lines to write."""
        return ()

    @property
    def down(self) -> tuple[str, ...]:
        """Return the nodes that do not answer, as far as this process knows. No node is asked."""
        return ()

    def observe(self, observer: Observer) -> None:
        """Call ``observer`` after each operation from now on, in place of an earlier one. Most stores measure none."""
        return

    @abc.abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the value, or ``None`` if it is missing."""

    @abc.abstractmethod
    def get_many(self, keys: Sequence[str]) -> Many:
        """Return all values, with one round trip to each node that holds any of them.

        An unreachable node raises no error: its keys are in ``unreachable``.
        """

    @abc.abstractmethod
    def gets(self, key: str) -> Versioned | None:
        """Return the value with a token for :meth:`cas`, or ``None`` if it is missing."""

    @abc.abstractmethod
    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        """Write the value, whether the key exists or not."""

    @abc.abstractmethod
    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        """Write the value if the key is missing; return ``False`` if it exists.

        Atomic: one of all concurrent calls, in all processes, returns ``True``.
        """

    @abc.abstractmethod
    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        """Write the value, unless the key was written, deleted or evicted since :meth:`gets` returned ``token``.

        Return whether the value was written. Atomic. A write of equal bytes counts as a write.
        """

    @abc.abstractmethod
    def delete(self, key: str) -> bool:
        """Remove the value; return ``False`` if it was missing."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close files and sockets. A second call does nothing; a later verb opens them again."""
