"""The items that memcached holds for a value; a value above the item limit is split.

| first byte | what follows |
| --- | --- |
| 1 | the value |
| 2 | 8 bytes that no other writer uses, then the value: written by ``add`` |
| 3 | the same 8 bytes, and a manifest: size and digests of the parts that hold the value |

A large value is split rather than refused. A page above 1 MiB takes long to render, so caching it pays most. Whether it
is cached should not depend on a flag of memcached (``-I``).

Parts are named by their content and never change. The manifest is written last, in one piece. So a reader finds the old
value or the new one, and no mixture. A writer that dies half-way leaves parts without a manifest, which no reader
finds. A missing or damaged part makes the value missing.

Parts are never deleted: a concurrent writer of equal content needs them. Parts that no manifest names any more end by
their ttl, or by eviction.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...errors import ValueTooLarge

PLAIN, ADDED, SPLIT = b"\1", b"\2", b"\3"

#: Bytes of the mark by which the writer of an ``add`` recognizes its own value.
MARK = 8
NO_MARK = bytes(MARK)

#: Bytes of an item besides its value, key included, rounded up (items.c, do_item_alloc): a header of 48 bytes, 8 for
#: the compare-and-swap number, two line ends, a key of up to 250 bytes.
OVERHEAD = 320

_DIGEST = 16
_HEAD = struct.Struct(">Qd")


class Manifest(NamedTuple):
    """The replacement of a value that was split."""

    size: int
    ttl: float  # 0 for none
    digests: tuple[bytes, ...]

    def keys(self, route: str) -> list[str]:
        """Return the keys of the parts, which are on the node of the value.

        :param route: the text that decides the node of the value's key (:func:`~wsgi_isr.stores.base.route`).
        """
        return [f"{route}:part:{digest.hex()}" for digest in self.digests]

    def join(self, parts: Mapping[str, bytes], route: str) -> bytes | None:
        """Return the value; ``None`` where a part is missing or has changed."""
        whole = []
        for key, digest in zip(self.keys(route), self.digests, strict=True):
            part = parts.get(key)
            if part is None or _digest(part, self.ttl) != digest:
                return None
            whole.append(part)
        value = b"".join(whole)
        return value if len(value) == self.size else None

    def pack(self, mark: bytes) -> bytes:
        return b"".join((SPLIT, mark, _HEAD.pack(self.size, self.ttl), *self.digests))


def pack(value: bytes, mark: bytes = NO_MARK) -> bytes:
    """Return the item for a value that fits into one."""
    return PLAIN + value if mark == NO_MARK else b"".join((ADDED, mark, value))


def fits(value: bytes, item_limit: int) -> bool:
    """Return whether the item that :func:`pack` makes stays within a node's limit."""
    return len(value) + 1 + MARK + OVERHEAD <= item_limit


def split(key: str, value: bytes, ttl: float | None, item_limit: int) -> tuple[Manifest, Iterator[bytes]]:
    """Return the manifest of a value that does not fit, and its parts in order.

    The ttl counts as content. Otherwise, a writer whose manifest is refused could shorten the life of parts that
    another manifest names.

    :raises ValueTooLarge: even the manifest would be above the limit.
    """
    room = item_limit - OVERHEAD
    most = (room - 1 - MARK - _HEAD.size) // _DIGEST
    if len(value) > most * room:
        raise ValueTooLarge(key, len(value), most * room)
    view = memoryview(value)
    pieces = [view[start : start + room] for start in range(0, len(value), room)]
    manifest = Manifest(len(value), ttl or 0.0, tuple(_digest(piece, ttl or 0.0) for piece in pieces))
    return manifest, map(bytes, pieces)


def unpack(item: bytes) -> bytes | Manifest | None:
    """Return the value, or the manifest to join it from; ``None`` for an item of another program."""
    kind = item[:1]
    if kind == PLAIN:
        return item[1:]
    if kind == ADDED and len(item) > MARK:
        return item[1 + MARK :]
    listed = len(item) - 1 - MARK - _HEAD.size
    if kind != SPLIT or listed < 0 or listed % _DIGEST:
        return None
    size, ttl = _HEAD.unpack_from(item, 1 + MARK)
    begin = len(item) - listed
    return Manifest(size, ttl, tuple(item[at : at + _DIGEST] for at in range(begin, len(item), _DIGEST)))


def _digest(part: bytes | memoryview, ttl: float) -> bytes:
    return hashlib.blake2b(part, digest_size=_DIGEST, salt=struct.pack(">d", ttl)).digest()
