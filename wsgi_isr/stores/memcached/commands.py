"""The commands that this store sends over one connection.

Each function takes a :class:`~.connection.Connection`. :meth:`~.node.Node.read` or ``write`` calls it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from pymemcache.exceptions import MemcacheServerError

from ..base import NodeReport, route
from .chunks import fits, pack, split
from .connection import Connection

#: The maximum ttl, in seconds. A greater number means a date (doc/protocol.txt, "Expiration times").
LONGEST_TTL = 30 * 24 * 3600
#: The maximum date, in Unix seconds: a signed 32-bit number, January 2038.
LAST_DATE = 2**31 - 1


class NumberedToken(NamedTuple):
    """A compare-and-swap number, valid for one node until its restart."""

    node: str
    incarnation: tuple[int, int]
    number: bytes


class StoredItem(NamedTuple):
    """An item of a node; ``token`` is ``None`` if it was not requested."""

    item: bytes
    token: NumberedToken | None


class Writing:
    """A value to be written. The item limit of the node decides whether it is split."""

    __slots__ = ("_mark", "_ttl", "_value", "item", "key")

    def __init__(self, key: str, value: bytes, ttl: float | None, mark: bytes) -> None:
        self.key = key
        self._value = value
        self._ttl = ttl
        self._mark = mark
        self.item = b""

    def begin(self, connection: Connection) -> int:
        """Write the parts, set :attr:`item`, and return the expiry of the item. The caller writes the item last.

        :raises ValueTooLarge: before anything was sent. memcached would answer an item above its limit by deleting the
            old item.
        """
        limit = connection.facts.item_limit
        if fits(self._value, limit):
            self.item = pack(self._value, self._mark)
        else:
            manifest, parts = split(self.key, self._value, self._ttl, limit)
            # Parts are written before the manifest, and must live as long.
            part_ttl = None if self._ttl is None else self._ttl + connection.settings.deadline
            expires = expiry(part_ttl, connection)
            for name, part in zip(manifest.keys(route(self.key).text), parts, strict=True):
                _stored(connection.set(name, part, expires))
            self.item = manifest.pack(self._mark)
        return expiry(self._ttl, connection)


def expiry(ttl: float | None, connection: Connection) -> int:
    """Return the expiry of an item, as memcached reads it.

    memcached counts whole seconds of its own clock. An item is dropped when that many seconds have begun, so a ttl of 1
    may end at once. Therefore, one second is added. An item lives less than 1 s longer than a whole ttl, and less than
    2 s longer than any other ttl. An item may live shorter by less than 1 s: memcached's ticks are longer than a
    second, so its clock skips a second now and then (memcached.c, clock_handler).

    Above 30 days, the expiry is a date by the clock of the node. A new connection reads this clock. ``None``, and an
    end after January 2038, give 0: until evicted. A ttl of 0 or less gives -1: gone at once.
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


def gets(connection: Connection, key: str) -> StoredItem | None:
    item, number = connection.gets(key)
    return (
        None if item is None else StoredItem(item, NumberedToken(connection.name, connection.facts.incarnation, number))
    )


def set_(connection: Connection, writing: Writing) -> None:
    expires = writing.begin(connection)
    _stored(connection.set(writing.key, writing.item, expires))


def add(connection: Connection, writing: Writing) -> bool:
    expires = writing.begin(connection)
    return bool(connection.add(writing.key, writing.item, expires))


def was_added(connection: Connection, writing: Writing) -> bool | None:
    """Return whether this process wrote the item, after an ``add`` whose answer was lost.

    The mark shows it, even if another process added an equal value. If there is no item, return ``None``: the item may
    have come and gone, or may yet come.
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


def delete_if_unchanged(connection: Connection, key: str, item: bytes) -> StoredItem | None:
    """Remove an item, and return ``None``. If another item has replaced it, return that item."""
    found = gets(connection, key)
    if found is not None and found.item == item and found.token is not None:
        # `delete` would remove a replacement as well.
        connection.cas(key, b"", found.token.number, -1)
        return None
    return found


def _stored(done: bool | None) -> None:
    if not done:
        raise MemcacheServerError("not stored")


def report(connection: Connection, pool: int) -> NodeReport:
    """Return the node's report.

    :param pool: the most connections of this process.
    """
    stats, limits = connection.stats(), connection.stats("settings")

    def number(name: str) -> int:
        text = stats.get(name, limits.get(name, "0"))
        return int(text) if text.isdigit() else 0

    return NodeReport(
        stats.get("version", ""),
        number("time") - time.time() if "time" in stats else 0.0,
        number("uptime"),
        number("evictions"),
        number("curr_connections"),
        number("maxconns"),
        pool,
        number("limit_maxbytes"),
    )
