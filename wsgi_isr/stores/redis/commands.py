"""The commands that this store sends over one connection.

Each function takes a :class:`~.connection.Connection`. :meth:`~..nodes.node.Node.read` or ``write`` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import InvalidResponse, ResponseError

from ..base import Versioned, is_control
from .connection import Connection
from .items import HEADER, pack, unpack
from .scripts import SWAP

#: The maximum ttl, in seconds: a hundred years. Redis refuses a date beyond 64 bits of milliseconds.
LONGEST_TTL = 100 * 365 * 86400.0


class HeaderToken(NamedTuple):
    """The header of an item, which no other write has."""

    node: str
    header: bytes


class Useless(NamedTuple):
    """An item without a value for this process.

    :param is_foreign: it is of another program or version. Otherwise, it is of another run of the server.
    """

    item: bytes
    is_foreign: bool


class Writing:
    """A value to be written. The connection decides the run of the server in its item."""

    __slots__ = ("_value", "item", "key", "ttl")

    def __init__(self, key: str, value: bytes, ttl: float | None) -> None:
        self.key = key
        self.ttl = ttl
        self._value = value
        self.item = b""

    def begin(self, connection: Connection) -> bytes:
        """Set and return :attr:`item`."""
        self.item = pack(connection.facts.run, self._value)
        return self.item


def milliseconds(key: str, ttl: float | None, default: float) -> str:
    """Return the ttl of a key for ``PX``, rounded up; ``""`` for no expiry, and ``"0"`` to remove the key.

    Control keys alone live without expiry. So each policy of Redis for a full memory that spares keys without expiry
    (``volatile-...``) evicts pages and spares tags.

    :param ttl: in seconds, or ``None``.
    :param default: the ttl of any other key without one, in seconds.
    """
    if ttl is None or ttl > LONGEST_TTL:
        if is_control(key):
            return ""
        ttl = min(default, LONGEST_TTL)
    return str(max(0, math.ceil(ttl * 1000)))


def find(connection: Connection, key: str) -> Versioned | Useless | None:
    """Return the value of a key with its token, or its useless item; ``None`` if there is none."""
    item = _get(connection, key)
    return None if item is None else _judge(connection, key, item)


def find_many(connection: Connection, keys: Sequence[str]) -> dict[str, Versioned | Useless]:
    """Return the values of keys with their tokens, and useless items. A key without an item is left out."""
    items = connection.call("MGET", *map(connection.name_of, keys))
    if not isinstance(items, list) or len(items) != len(keys):
        raise InvalidResponse(f"the answer to MGET of {len(keys)} keys is {str(items)[:40]!r}")
    return {
        key: _judge(connection, key, _item(item)) for key, item in zip(keys, items, strict=True) if item is not None
    }


def set_(connection: Connection, writing: Writing) -> None:
    item = writing.begin(connection)
    _set(connection, writing, item)


def add(connection: Connection, writing: Writing) -> bool:
    item = writing.begin(connection)
    return _set(connection, writing, item, "NX")


def was_added(connection: Connection, writing: Writing) -> bool | None:
    """Return whether this process wrote the item, after an ``add`` whose answer was lost.

    If there is no item, return ``None``: the item may have come and gone, or may yet come.
    """
    item = _get(connection, writing.key)
    return None if item is None else item == writing.item


def cas(connection: Connection, writing: Writing, token: HeaderToken) -> bool:
    item = writing.begin(connection)
    ttl = milliseconds(writing.key, writing.ttl, connection.default_ttl)
    return _swap(connection, writing.key, token.header, b"" if ttl == "0" else item, ttl)


def delete(connection: Connection, key: str) -> bool:
    return _number(connection.call("DEL", connection.name_of(key))) > 0


def delete_if_unchanged(connection: Connection, key: str, item: bytes) -> None:
    """Remove an item, and no item that has replaced it."""
    _swap(connection, key, item[:HEADER], b"", "0")


def discard(connection: Connection, key: str, useless: Useless) -> Versioned | Useless | None:
    """Remove a useless item, and return the item that has replaced it, if any."""
    if useless.item:
        delete_if_unchanged(connection, key, useless.item)
    else:
        delete(connection, key)
    return find(connection, key)


def _get(connection: Connection, key: str) -> bytes | None:
    """Return the item of a key; an empty one for a value of another type, such as a list."""
    try:
        item = connection.call("GET", connection.name_of(key))
    except ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            return b""
        raise
    return None if item is None else _item(item)


def _judge(connection: Connection, key: str, item: bytes) -> Versioned | Useless:
    run = connection.facts.run
    value = unpack(key, run, item)
    if value is None:
        return Useless(item, is_foreign=unpack("", run, item) is None)
    return Versioned(value, HeaderToken(connection.name, item[:HEADER]))


def _set(connection: Connection, writing: Writing, item: bytes, *flags: str) -> bool:
    """Send ``SET``; return ``False`` if a flag kept it from writing."""
    ttl = milliseconds(writing.key, writing.ttl, connection.default_ttl)
    expiry = ("PX", ttl) if ttl else ()
    answer = connection.call("SET", connection.name_of(writing.key), item, *expiry, *flags)
    if answer == b"OK" or (answer is None and flags):
        return answer is not None
    raise InvalidResponse(f"the answer to SET is {str(answer)[:40]!r}")


def _swap(connection: Connection, key: str, header: bytes, item: bytes, ttl: str) -> bool:
    return _number(connection.evaluate(SWAP, connection.name_of(key), header, item, ttl)) > 0


def _item(answer: object) -> bytes:
    if not isinstance(answer, bytes):
        raise InvalidResponse(f"the answer is {str(answer)[:40]!r} in place of an item")
    return answer


def _number(answer: object) -> int:
    if not isinstance(answer, int):
        raise InvalidResponse(f"the answer is {str(answer)[:40]!r} in place of a number")
    return answer
