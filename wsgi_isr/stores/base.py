"""The store contract: eight verbs over bytes.

Leases, tag versions, limits and back-off are recipes on top of these verbs. A store knows nothing of pages. Every store
passes the suite in :mod:`wsgi_isr.testing`.

Three answers are distinct everywhere: a value, *missing* (``None``, or absent), and *unreachable*
(:class:`~wsgi_isr.errors.StoreUnavailable`). The callers decide how each one is answered.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import StoreUnavailable

Token = Any
"""The token that :meth:`Store.gets` returns and :meth:`Store.cas` takes; opaque to all other code."""


class Versioned(NamedTuple):
    """A value with its token, by which :meth:`Store.cas` detects a later write."""

    value: bytes
    token: Token


class Many(NamedTuple):
    """The answer of :meth:`Store.get_many`; a key in neither mapping is missing."""

    values: dict[str, bytes]
    unreachable: dict[str, StoreUnavailable]


class Route(NamedTuple):
    """The text that decides the node of a key. ``node`` is set where the key names its node."""

    control: bool
    text: str
    node: str | None = None


def route(key: str) -> Route:
    """Return which node a key belongs on, read from the key: ``schema:namespace:plane:name[:suffix]``.

    Planes ``p`` (pages) and ``d`` (data) may move to another node while theirs is down. A suffix does not count, so
    that a lease stays on the node of its cache entry. Plane ``t`` (tags) never moves. In plane ``e`` (epochs), the name
    is that of the node. Keys of another form are data, routed by the whole key.
    """
    schema, namespace, plane, name = (*key.split(":", 3), "", "", "")[:4]
    if plane == "e" and name:
        return Route(True, key, name)
    if plane == "t" and name:
        return Route(True, key)
    return Route(False, f"{schema}:{namespace}:{plane}:{name.split(':')[0]}" if plane in ("p", "d") and name else key)


def is_control(key: str) -> bool:
    """Return whether ``key`` is a tag or an epoch.

    A lost control key costs the renders of all pages that carry it. Therefore, the built-in stores evict control keys
    last.
    """
    parts = key.split(":", 3)
    return len(parts) == 4 and parts[2] in _CONTROL_PLANES and parts[3] != ""


_CONTROL_PLANES = ("t", "e")


#: The part of a store's bytes that control keys may take together. All slots of :mod:`wsgi_isr.cache.keyspace` fit into
#: this part of the default sizes, so that a flood of URLs evicts none of them.
CONTROL_SHARE = 1 / 2


class Store(abc.ABC):
    """Bytes by key, shared by all processes that open the same URL.

    Keys are printable ASCII without spaces, at most 200 characters (see :func:`route`). Values are any bytes up to
    :attr:`max_value`. ``ttl`` is in seconds, above 0; ``None`` keeps the value until it is evicted. A value past its
    ttl is missing, for every verb. Only :meth:`cas` also takes the ttl 0, which removes the value at once. The owner of
    a lease releases the lease so, without a risk to the lease of a later owner.

    Every verb may raise :class:`~wsgi_isr.errors.StoreUnavailable`; a write that raises it may have happened or not.
    The writing verbs raise :class:`~wsgi_isr.errors.ValueTooLarge` *before* they change anything. All verbs may be
    called from any thread, and in a child after ``fork`` without any call in between. A store opens its files and
    sockets lazily, and drops in the child all that a process must not inherit.
    """

    #: Bytes; larger values are refused.
    max_value: int = 64 * 1024 * 1024

    #: Whether a stored value can come back; where not, caching is off.
    keeps: bool = True

    #: Whether other processes see what is stored.
    shared: bool = True

    #: The names of the nodes that the store spreads its keys over; each node can fail alone.
    nodes: tuple[str, ...] = ("local",)

    #: Whether the nodes are on other machines, and can be away while this process runs.
    remote: bool = False

    #: Whether the place of the store depends on the current directory of the process.
    relative: bool = False

    #: The scheme of its URLs.
    scheme: str = "store"

    @property
    def places(self) -> tuple[str, ...]:
        """Return the URLs of the nodes, or of the file. Two stores with a common place are the same store."""
        return tuple(f"{self.scheme}://{node}" for node in self.nodes)

    @property
    def location(self) -> str:
        """Return the name of the store for messages: absolute, and without secrets."""
        return f"{self.scheme}://{','.join(self.nodes)}"

    def node_of(self, key: str) -> str:
        """Return the node that holds a control key: always the same one, reachable or not."""
        return self.nodes[0]

    def is_displaced(self, key: str) -> bool:
        """Return whether another node answers for ``key`` because the key's own node is down.

        A missing value then proves nothing.
        """
        return False

    @abc.abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the value, or ``None`` where it is missing."""

    @abc.abstractmethod
    def get_many(self, keys: Sequence[str]) -> Many:
        """Return all values, with one round trip to each node that holds one of them.

        An unreachable node raises no error: its keys come back in ``unreachable``.
        """

    @abc.abstractmethod
    def gets(self, key: str) -> Versioned | None:
        """Return the value with the token for :meth:`cas`, or ``None`` where it is missing."""

    @abc.abstractmethod
    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        """Write the value, whether the key is there or not."""

    @abc.abstractmethod
    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        """Write the value only where the key is missing; return ``False`` where it is there.

        Atomic: of any number of concurrent calls, in any number of processes, exactly one returns ``True``.
        """

    @abc.abstractmethod
    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        """Write only if the key was not written, deleted or evicted since :meth:`gets` returned ``token``.

        Return ``False`` otherwise. Atomic. A write of equal bytes counts as a write.
        """

    @abc.abstractmethod
    def delete(self, key: str) -> bool:
        """Remove the value; return ``False`` where it was missing."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close files and sockets. Further calls are harmless; a later verb opens them again."""
