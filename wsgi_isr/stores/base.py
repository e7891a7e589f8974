"""The store contract: eight verbs over bytes.

Locks, stamps, limits and back-off are recipes on top of these verbs; a store knows nothing of pages.
Every store passes the suite in :mod:`wsgi_isr.testing`.

Three answers are kept apart everywhere: a value, *missing* (``None``, or absent), and *unreachable*
(:class:`~wsgi_isr.errors.StoreUnavailable`). What a visitor gets for each is decided elsewhere, once.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import StoreUnavailable

Token = Any
"""What :meth:`Store.gets` hands out and :meth:`Store.cas` takes back; opaque to everybody else."""


class Versioned(NamedTuple):
    """A value with the token that proves, to :meth:`Store.cas`, that nobody wrote since."""

    value: bytes
    token: Token


class Many(NamedTuple):
    """The answer of :meth:`Store.get_many`; a key in neither mapping is missing."""

    values: dict[str, bytes]
    unreachable: dict[str, StoreUnavailable]


class Route(NamedTuple):
    """What decides the node of a key. ``node`` is set where the key names it outright."""

    control: bool
    text: str
    node: str | None = None


def route(key: str) -> Route:
    """Which node a key belongs on, read off the key: ``schema:namespace:plane:name[:suffix]``.

    Planes ``p`` (pages) and ``d`` (data) may move to another node while theirs is down; a suffix (a lock
    beside its entry) does not count, so that they stay together. Plane ``t`` (tags) never moves, and ``e``
    (epochs) is followed by the name of its node. Keys of another form are data, routed whole.
    """
    schema, namespace, plane, name = (*key.split(":", 3), "", "", "")[:4]
    if plane == "e" and name:
        return Route(True, key, name)
    if plane == "t" and name:
        return Route(True, key)
    return Route(False, f"{schema}:{namespace}:{plane}:{name.split(':')[0]}" if plane in ("p", "d") and name else key)


def is_control(key: str) -> bool:
    """Return whether ``key`` is a tag or an epoch: what is lost of these costs the renders of every page that carries
    them, so stores of ours evict them last."""
    parts = key.split(":", 3)
    return len(parts) == 4 and parts[2] in _CONTROL_PLANES and parts[3] != ""


_CONTROL_PLANES = ("t", "e")


#: The part of a store's bytes that control keys may take together. All slots of :mod:`wsgi_isr.cache.keyspace` fit into
#: this part of the default sizes, so that no flood of URLs evicts one.
CONTROL_SHARE = 1 / 2


class Store(abc.ABC):
    """Bytes by key, shared by whoever opens the same URL.

    Keys are printable ASCII without spaces, at most 200 characters (see :func:`route`). Values are any
    bytes up to :attr:`max_value`. ``ttl`` is in seconds, above 0; ``None`` keeps the value until evicted.
    A value past its ttl is missing, for every verb. Only :meth:`cas` also takes 0: gone at once, which is
    how the owner of a lock lets go of it without touching a lock that has become somebody else's.

    Every verb may raise :class:`~wsgi_isr.errors.StoreUnavailable`; a write that raises it may or
    may not have happened. The writing verbs raise :class:`~wsgi_isr.errors.ValueTooLarge` *before*
    anything is changed. All verbs may be called from any thread, and in a child after ``fork``
    without any call in between: whatever a process must not inherit is opened lazily and dropped in
    the child.
    """

    #: Bytes; larger values are refused.
    max_value: int = 64 * 1024 * 1024

    #: Whether anything stored can ever come back; where not, caching is off.
    keeps: bool = True

    #: Whether other processes see what is stored.
    shared: bool = True

    #: The names of the nodes that the store spreads its keys over; they can fail one by one.
    nodes: tuple[str, ...] = ("local",)

    #: Whether the nodes are on other machines, and can be away while this process runs.
    remote: bool = False

    #: Whether its place depends on the current folder of the process.
    relative: bool = False

    #: The scheme of its URLs.
    scheme: str = "store"

    @property
    def places(self) -> tuple[str, ...]:
        """Return the nodes, or the file. Two stores that have one of these in common are the same store."""
        return tuple(f"{self.scheme}://{node}" for node in self.nodes)

    @property
    def location(self) -> str:
        """Return the name of the store for messages: absolute, and without secrets."""
        return f"{self.scheme}://{','.join(self.nodes)}"

    def node_of(self, key: str) -> str:
        """The node that holds a control key: always the same one, reachable or not."""
        return self.nodes[0]

    def is_displaced(self, key: str) -> bool:
        """Return whether another node answers for ``key`` because its own is down: then missing proves nothing."""
        return False

    @abc.abstractmethod
    def get(self, key: str) -> bytes | None:
        """The value, or ``None`` where it is missing."""

    @abc.abstractmethod
    def get_many(self, keys: Sequence[str]) -> Many:
        """All values at once: one round trip to each node that holds one of them.

        Never raises for an unreachable node: its keys come back in ``unreachable``.
        """

    @abc.abstractmethod
    def gets(self, key: str) -> Versioned | None:
        """The value and the token for :meth:`cas`, or ``None`` where it is missing."""

    @abc.abstractmethod
    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        """Write, whatever was there."""

    @abc.abstractmethod
    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        """Write only where the key is missing; ``False`` where it is not. Atomic: of any number of
        concurrent calls, in any number of processes, exactly one returns ``True``."""

    @abc.abstractmethod
    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        """Write only where nobody wrote, deleted or evicted since ``token`` was handed out;
        ``False`` otherwise. Atomic. Writing equal bytes counts as writing."""

    @abc.abstractmethod
    def delete(self, key: str) -> bool:
        """Remove; ``False`` where it was missing."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of files and sockets. Harmless when repeated; a later verb opens them again."""
