"""A model of memcached: one dict that counts commands and keys for each node.

The ring of :mod:`wsgi_isr` maps keys to nodes. No item is lost, and commands take no time: a network trip is a
thousandth of the times that matter here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wsgi_isr.stores.base import Many, Route, Store, Token, Versioned, route
from wsgi_isr.stores.nodes.rendezvous import Ring

EPOCH, TAG, PAGE, LOCK = range(4)
KINDS = ("epoch", "tag", "page", "lock")

# Bytes on the wire around a key and a value: "get K\r\n" and "VALUE K 0 N\r\n...\r\nEND\r\n"; "set K 0 0 N\r\n...\r\n"
# and "STORED\r\n" (memcached, doc/protocol.txt). A compare-and-swap number is some more.
_READ, _WRITE = 26, 26
#: Overhead of a connection: Ethernet, IP and TCP headers, one packet each way.
_PACKETS = 2 * 66


def names(count: int) -> list[str]:
    """Return the names of ``count`` nodes. The names decide which node has which key."""
    return [f"10.0.{number >> 8}.{number & 255}:11211" for number in range(count)]


class Tally:
    """Counts for each node: keys read and written of each kind, trips, and bytes in both directions."""

    __slots__ = ("bytes", "reads", "trips", "writes")

    def __init__(self, nodes: int) -> None:
        self.reads = [[0] * nodes for _ in KINDS]
        self.writes = [[0] * nodes for _ in KINDS]
        self.trips = [0] * nodes
        self.bytes = [0] * nodes


class Place(NamedTuple):
    """The place of a page: the number of its node, and the sizes of the page and its key."""

    node: int
    size: int


class _Item:
    __slots__ = ("expires", "kind", "node", "token", "value")

    def __init__(self, node: int, kind: int) -> None:
        self.node = node
        self.kind = kind
        self.value: bytes | None = None
        self.expires: float | None = None
        self.token = 0


class _Items(dict[str, _Item]):
    """Create an item at its first access, with or without a value. Half of all time is spent here."""

    def __init__(self, number: Callable[[Route], int]) -> None:
        self._number = number

    def __missing__(self, key: str) -> _Item:
        where = route(key)
        kind = LOCK if not where.control else EPOCH if where.node else TAG
        item = self[key] = _Item(self._number(where), kind)
        return item


class Nodes(Store):
    """A store for the real locks, tag versions and epochs. Pages are counted here; the caller keeps them.

    :param clock: seconds of the simulation. :attr:`tally` is the counter that is used at the moment.
    """

    def __init__(self, count: int, clock: Callable[[], float]) -> None:
        self._ring = Ring(names(count))
        self.nodes = self._ring.names
        self._numbers = {name: number for number, name in enumerate(self.nodes)}
        self._clock = clock
        self._items = _Items(self._number)
        self._tokens = itertools.count(1)  # shared, so that a key that comes back gets a new token
        self.tally = Tally(count)

    def node_of(self, key: str) -> str:
        return self.nodes[self._items[key].node]

    def place(self, key: str, size: int) -> Place:
        """Return the place of a page with ``size`` bytes."""
        return Place(self._number(route(key)), size + len(key))

    def read_page(self, place: Place, found: bool) -> None:
        """Count a ``get`` of a page."""
        tally = self.tally
        tally.reads[PAGE][place.node] += 1
        tally.trips[place.node] += 1
        tally.bytes[place.node] += (place.size if found else 40) + _READ + _PACKETS

    def write_page(self, place: Place) -> None:
        """Count a ``cas`` of a page."""
        tally = self.tally
        tally.writes[PAGE][place.node] += 1
        tally.trips[place.node] += 1
        tally.bytes[place.node] += place.size + _WRITE + _PACKETS

    def expires(self, key: str) -> float | None:
        """Return when the value of ``key`` expires, or ``None`` without one; count no command."""
        item = self._items.get(key)
        return item.expires if item is not None and self._value(item) is not None else None

    def get(self, key: str) -> bytes | None:
        item = self._items[key]
        value = self._value(item)
        self._count_read(item, key, value)
        self.tally.trips[item.node] += 1
        self.tally.bytes[item.node] += _PACKETS
        return value

    def get_many(self, keys: Sequence[str]) -> Many:
        tally = self.tally
        values = {}
        asked = set()
        for key in keys:
            item = self._items[key]
            value = self._value(item)
            if value is not None:
                values[key] = value
            asked.add(item.node)
            self._count_read(item, key, value)
        for node in asked:
            tally.trips[node] += 1
            tally.bytes[node] += _PACKETS
        return Many(values, {})

    def gets(self, key: str) -> Versioned | None:
        value = self.get(key)
        return None if value is None else Versioned(value, self._items[key].token)

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        item = self._items[key]
        self._count_write(item, key, value)
        self._put(item, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        item = self._items[key]
        self._count_write(item, key, value)
        if self._value(item) is not None:
            return False
        self._put(item, value, ttl)
        return True

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        item = self._items[key]
        self._count_write(item, key, value)
        if self._value(item) is None or item.token != token:
            return False
        self._put(item, value, ttl)
        return True

    def delete(self, key: str) -> bool:
        item = self._items[key]
        self._count_write(item, key, b"")
        there = self._value(item) is not None
        item.value = None
        return there

    def close(self) -> None:
        """Do nothing: there are no connections."""

    def drop(self, key: str) -> None:
        """Forget a missing key: locks come and go, and there are millions of pages."""
        item = self._items.get(key)
        if item is not None and self._value(item) is None:
            del self._items[key]

    def _number(self, where: Route) -> int:
        return self._numbers[where.node or self._ring.ranking(where.text)[0]]

    def _value(self, item: _Item) -> bytes | None:
        if item.expires is not None and item.expires <= self._clock():
            item.value = item.expires = None
        return item.value

    def _put(self, item: _Item, value: bytes, ttl: float | None) -> None:
        item.value = value
        item.expires = None if ttl is None else self._clock() + ttl
        item.token = next(self._tokens)

    def _count_read(self, item: _Item, key: str, value: bytes | None) -> None:
        self.tally.reads[item.kind][item.node] += 1
        self.tally.bytes[item.node] += _READ + 2 * len(key) + len(value or b"")

    def _count_write(self, item: _Item, key: str, value: bytes) -> None:
        tally = self.tally
        tally.writes[item.kind][item.node] += 1
        tally.trips[item.node] += 1
        tally.bytes[item.node] += _WRITE + _PACKETS + len(key) + len(value)
