"""What is written to memcached for a value, and how a value above the item limit is taken apart.

| first byte | what follows |
| --- | --- |
| 1 | the value |
| 2 | 8 bytes that nobody else writes, then the value: written by ``add`` |
| 3 | the same 8 bytes, and a manifest: size and digests of the parts that hold the value |

Split, and not refused: a page above 1 MiB takes long to render, so it is what a cache is for, and that
memcached takes it or not should not depend on a flag (``-I``) that is set somewhere else. Parts are named
by their content and are never changed, and the manifest is written last, in one piece, so a reader finds
the old value or the new one and no mixture; both together where a writer dies half-way, of which the one
without a manifest is never found. A part that is gone or damaged makes the value missing.

Nobody deletes parts: a concurrent writer of equal content counts on them. Those that no manifest names
any more go by their ttl, or as the least recently used.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...errors import ValueTooLarge

PLAIN, ADDED, SPLIT = b"\1", b"\2", b"\3"

#: Bytes of the mark by which the writer of an ``add`` knows its own value again.
MARK = 8
NO_MARK = bytes(MARK)

#: What an item takes beside its value, key included (items.c, do_item_alloc: a header of 48 bytes, 8 for
#: the compare-and-swap number, two line ends, a key of up to 250 bytes); rounded up.
OVERHEAD = 320

_DIGEST = 16
_HEAD = struct.Struct(">Qd")


class Manifest(NamedTuple):
    """What stands in for a value that was split."""

    size: int
    ttl: float  # 0 for none
    digests: tuple[bytes, ...]

    def keys(self, route: str) -> list[str]:
        """Where the parts are. ``route`` is what decides the node of the value's key: by the convention of
        :func:`~wsgi_isr.stores.base.route`, parts are on the node of what they belong to."""
        return [f"{route}:part:{digest.hex()}" for digest in self.digests]

    def join(self, parts: Mapping[str, bytes], route: str) -> bytes | None:
        """The value; ``None`` where a part is missing or is not what was written."""
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
    """The item for a value that fits into one."""
    return PLAIN + value if mark == NO_MARK else b"".join((ADDED, mark, value))


def fits(value: bytes, item_limit: int) -> bool:
    """Whether the item that :func:`pack` makes stays within a node's limit."""
    return len(value) + 1 + MARK + OVERHEAD <= item_limit


def split(key: str, value: bytes, ttl: float | None, item_limit: int) -> tuple[Manifest, Iterator[bytes]]:
    """The manifest of a value that does not fit, and its parts in order.

    The ttl counts as content: otherwise a writer whose manifest is refused could have cut short the life
    of parts that another one's manifest names.

    :raises ValueTooLarge: where even the manifest would be above the limit.
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
    """The value, or what it has to be joined from; ``None`` for what is none of ours."""
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
