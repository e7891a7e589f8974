"""The items of a value in memcached. A value above the item limit is split into parts.

| first byte | next bytes |
| --- | --- |
| 1 | the value |
| 2 | the mark of the writer, 8 random bytes; then the value: written by ``add`` |
| 3 | the mark, then a manifest: size, ttl, and the digests of the parts |

A refusal of large values was rejected. A page above 1 MiB takes long to render, so its caching saves most. Its caching
must not depend on a flag of memcached (``-I``).

Parts have keys made of their content, and never change. The manifest is written last, in one item, so a reader finds
the old value or the new one. If a writer dies half-way, no manifest names its parts, and no reader finds them. A
missing or damaged part makes the value missing.

Parts are never deleted, because a concurrent writer of equal content needs them. Parts without a manifest end by their
ttl, or by eviction.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...errors import ValueTooLarge

PLAIN, ADDED, SPLIT = b"\1", b"\2", b"\3"

#: The length of the mark, in bytes. By the mark, the writer of an ``add`` recognizes its own value.
MARK = 8
NO_MARK = bytes(MARK)

#: Bytes of an item besides its value, rounded up (items.c, do_item_alloc): a header of 48 bytes, 8 for the
#: compare-and-swap number, two line ends, and a key of up to 250 bytes.
OVERHEAD = 320

_DIGEST = 16
_HEAD = struct.Struct(">Qd")


class Manifest(NamedTuple):
    """The item of a split value, which names its parts."""

    size: int
    ttl: float  # 0 for none
    digests: tuple[bytes, ...]

    def keys(self, route: str) -> list[str]:
        """Return the keys of the parts. The parts are on the node of the value.

        :param route: the text that decides the node of the value's key (:func:`~wsgi_isr.stores.base.route`).
        """
        return [f"{route}:part:{digest.hex()}" for digest in self.digests]

    def join(self, parts: Mapping[str, bytes], route: str) -> bytes | None:
        """Return the value; ``None`` if a part is missing or damaged."""
        joined = []
        for key, digest in zip(self.keys(route), self.digests, strict=True):
            part = parts.get(key)
            if part is None or _digest(part, self.ttl) != digest:
                return None
            joined.append(part)
        value = b"".join(joined)
        return value if len(value) == self.size else None

    def pack(self, mark: bytes) -> bytes:
        """Return the item."""
        return b"".join((SPLIT, mark, _HEAD.pack(self.size, self.ttl), *self.digests))


def pack(value: bytes, mark: bytes = NO_MARK) -> bytes:
    """Return the item of a value that is not split."""
    return PLAIN + value if mark == NO_MARK else b"".join((ADDED, mark, value))


def fits(value: bytes, item_limit: int) -> bool:
    """Return whether the item from :func:`pack` is within the limit of a node, in bytes."""
    return len(value) + 1 + MARK + OVERHEAD <= item_limit


def split(key: str, value: bytes, ttl: float | None, item_limit: int) -> tuple[Manifest, Iterator[bytes]]:
    """Return the manifest of a value above the limit, and its parts in order.

    The ttl is part of the content. Otherwise, a writer whose manifest is refused could shorten the life of the parts of
    another manifest.

    :raises ValueTooLarge: the manifest itself would be above the limit.
    """
    room = item_limit - OVERHEAD
    max_parts = (room - 1 - MARK - _HEAD.size) // _DIGEST
    if len(value) > max_parts * room:
        raise ValueTooLarge(key, len(value), max_parts * room)
    view = memoryview(value)
    pieces = [view[start : start + room] for start in range(0, len(value), room)]
    manifest = Manifest(len(value), ttl or 0.0, tuple(_digest(piece, ttl or 0.0) for piece in pieces))
    return manifest, map(bytes, pieces)


def unpack(item: bytes) -> bytes | Manifest | None:
    """Return the value or the manifest in an item; ``None`` for an item of another program."""
    kind = item[:1]
    if kind == PLAIN:
        return item[1:]
    if kind == ADDED and len(item) > MARK:
        return item[1 + MARK :]
    digests = len(item) - 1 - MARK - _HEAD.size
    if kind != SPLIT or digests < 0 or digests % _DIGEST:
        return None
    size, ttl = _HEAD.unpack_from(item, 1 + MARK)
    begin = len(item) - digests
    return Manifest(size, ttl, tuple(item[at : at + _DIGEST] for at in range(begin, len(item), _DIGEST)))


def _digest(part: bytes | memoryview, ttl: float) -> bytes:
    return hashlib.blake2b(part, digest_size=_DIGEST, salt=struct.pack(">d", ttl)).digest()
