"""The verbs of memcached, as this store uses them on one connection.

Each takes a :class:`~.connection.Connection`, and runs within :meth:`~.node.Node.read` or ``write``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pymemcache.exceptions import MemcacheServerError

from ..base import route
from .chunks import fits, pack, split
from .connection import Connection

#: memcached reads a greater ttl as a date (doc/protocol.txt, "Expiration times").
LONGEST_TTL = 30 * 24 * 3600
#: The last date that memcached takes: a signed 32-bit number, January 2038.
LAST_DATE = 2**31 - 1


class NumberedToken(NamedTuple):
    """A compare-and-swap number, valid for one node until its restart."""

    node: str
    incarnation: tuple[int, int]
    number: bytes


class Found(NamedTuple):
    """An item as a node has it; without a token where none was requested."""

    item: bytes
    token: NumberedToken | None


class Writing:
    """A value to be written to a node; the node's limit decides which items are sent."""

    __slots__ = ("_mark", "_ttl", "_value", "item", "key")

    def __init__(self, key: str, value: bytes, ttl: float | None, mark: bytes) -> None:
        self.key = key
        self._value = value
        self._ttl = ttl
        self._mark = mark
        self.item = b""

    def begin(self, connection: Connection) -> int:
        """Write the parts, if any; return the expiry of :attr:`item`, which the caller writes last.

        :raises ValueTooLarge: before anything was sent. memcached deletes the old item when it gets one above its
            limit.
        """
        limit = connection.facts.item_limit
        if fits(self._value, limit):
            self.item = pack(self._value, self._mark)
        else:
            manifest, parts = split(self.key, self._value, self._ttl, limit)
            # Parts are written before the manifest, and needed as long.
            longer = None if self._ttl is None else self._ttl + connection.settings.deadline
            expires = expiry(longer, connection)
            for name, part in zip(manifest.keys(route(self.key).text), parts, strict=True):
                _stored(connection.set(name, part, expires))
            self.item = manifest.pack(self._mark)
        return expiry(self._ttl, connection)


def expiry(ttl: float | None, connection: Connection) -> int:
    """Return the expiry of an item, in memcached's way.

    memcached counts whole seconds of its own clock, and drops an item when so many have begun: an item of 1 s may be
    gone at once. Therefore one second is added. An item lives less than 1 s longer than a whole ttl, and less than 2 s
    longer than any ttl. It never lives shorter, with one exception of less than 1 s. memcached's ticks are a bit longer
    than a second, so its clock skips one now and then (memcached.c, clock_handler).

    Above 30 days, the expiry is a date by the node's clock, which is read when a connection is opened. ``None``, and a
    ttl that ends after January 2038, give 0: until evicted. A ttl of 0 or less: gone at once.
    """
    if ttl is None:
        return 0
    if ttl <= 0:
        return -1
    if ttl + 1 <= LONGEST_TTL:
        return math.ceil(ttl) + 1
    date = connection.facts.ahead + connection.settings.clock() + ttl + 1
    return math.ceil(date) if date < LAST_DATE else 0


def get(connection: Connection, key: str) -> bytes | None:
    item: bytes | None = connection.get(key)
    return item


def get_many(connection: Connection, keys: Sequence[str]) -> dict[str, bytes]:
    items: dict[str, bytes] = connection.get_many(keys)
    return items


def gets(connection: Connection, key: str) -> Found | None:
    item, number = connection.gets(key)
    return None if item is None else Found(item, NumberedToken(connection.name, connection.facts.incarnation, number))


def set_(connection: Connection, writing: Writing) -> None:
    expires = writing.begin(connection)
    _stored(connection.set(writing.key, writing.item, expires))


def add(connection: Connection, writing: Writing) -> bool:
    expires = writing.begin(connection)
    return bool(connection.add(writing.key, writing.item, expires))


def was_added(connection: Connection, writing: Writing) -> bool | None:
    """Return whether this process wrote the item, after an ``add`` whose answer was lost.

    The mark in the item tells, even if another process added an equal value. Without an item the result is ``None``:
    the item may have come and gone, or may yet come.
    """
    item = connection.get(writing.key)
    return None if item is None else bool(item == writing.item)


def cas(connection: Connection, writing: Writing, token: NumberedToken) -> bool:
    if token.incarnation != connection.facts.incarnation:
        return False  # the node was restarted: the item of the token is gone
    expires = writing.begin(connection)
    return bool(connection.cas(writing.key, writing.item, token.number, expires))


def delete(connection: Connection, key: str) -> bool:
    return bool(connection.delete(key))


def delete_if_unchanged(connection: Connection, key: str, item: bytes) -> Found | None:
    """Remove a useless item, unless another one has replaced it: return that one."""
    found = gets(connection, key)
    if found is not None and found.item == item and found.token is not None:
        # Not `delete`, which would remove a replacement as well.
        connection.cas(key, b"", found.token.number, -1)
        return None
    return found


def _stored(done: bool | None) -> None:
    if not done:
        raise MemcacheServerError("not stored")
