"""What is stored of a page, and its bytes.

The bytes are ``schema (1) + CRC-32 (4) + msgpack``. Damage, another schema and another key's value
(a collision of hashed names) are told apart from *missing* here, and treated like it by the caller.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

SCHEMA = 4
_HEAD = 5
_UNICODE = "surrogatepass"  # any text is a tag, that which no UTF-8 has included: a file's name, say


class Content(NamedTuple):
    """A page as it goes out, without the headers that depend on the moment.

    ``status`` is a status line (``"200 OK"``); ``etag`` is unquoted and strong, made from the body;
    ``reads_cookies`` says that the app answered with ``Vary: Cookie``: this is the page of a visitor
    without cookies, and nobody else's; ``coded`` is the body in other content codings, by name, smallest first.
    """

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    etag: str
    reads_cookies: bool = False
    coded: tuple[tuple[str, bytes], ...] = ()


class Value(NamedTuple):
    """What a cached function returned, as bytes (:mod:`.values`)."""

    data: bytes


class Refusal(NamedTuple):
    """A page that may not be stored, and the word for why (a token, as in ``Cache-Status``)."""

    reason: str


class Lifetime(NamedTuple):
    """``revalidate`` and ``expire`` as ages in seconds; ``None`` for never."""

    revalidate: float | None
    expire: float | None

    def lowest(self, revalidate: float | None = None, expire: float | None = None) -> Lifetime:
        """The lower of each, where ``None`` is the longest. Lowest wins, as in Next.js."""
        return Lifetime(_lower(self.revalidate, revalidate), _lower(self.expire, expire))


def _lower(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


class Proof(NamedTuple):
    """An entry's tags with the stamps from before its render, and the epochs of their nodes at which these
    were the stamps of the moment (empty where that is not known)."""

    tags: tuple[tuple[str, bytes], ...] = ()
    valid_at: tuple[tuple[str, bytes], ...] = ()


_NO_PROOF = Proof()


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of the store: a page, or the memory that there is none to be had.

    ``started`` and ``created`` are the begin and the end of its render, in seconds of Unix time; age
    counts from ``created``. ``revalidate`` and ``expire`` are ages in seconds, ``None`` for never.
    """

    key: str
    content: Content | Value | Refusal
    started: float
    created: float
    revalidate: float | None
    expire: float | None
    proof: Proof = _NO_PROOF
    size: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # What it weighs in memory: its bytes, the objects around them, and an answer prepared from them.
        size = len(self.key) + 3712 + sum(len(tag) + len(stamp) + 200 for tag, stamp in self.proof.tags)
        if isinstance(self.content, Content):
            size += len(self.content.body) + sum(len(n) + len(v) + 200 for n, v in self.content.headers)
            size += sum(len(body) + 1280 for _, body in self.content.coded)
        elif isinstance(self.content, Value):
            size += len(self.content.data)
        object.__setattr__(self, "size", size)

    def age(self, now: float) -> float:
        """Seconds since the end of the render; never negative, whatever the clocks say."""
        return max(0.0, now - self.created)


class UnreadableEntry(ValueError):
    """Bytes that are no entry of this schema and key; the message says which of these."""


def pack(entry: Entry) -> bytes:
    """The entry as bytes."""
    content = entry.content
    if isinstance(content, Content):
        kind, payload = "page", list(content)
    elif isinstance(content, Value):
        kind, payload = "value", [content.data]
    else:
        kind, payload = "refusal", [content.reason]
    times = [entry.started, entry.created, entry.revalidate, entry.expire]
    fields = [entry.key, kind, payload, times, entry.proof.tags, entry.proof.valid_at]
    packed: bytes = msgpack.packb(fields, unicode_errors=_UNICODE)
    return bytes([SCHEMA]) + zlib.crc32(packed).to_bytes(4, "big") + packed


def unpack(data: bytes, key: str) -> Entry:
    """The entry in ``data``.

    :raises UnreadableEntry: it is damaged, of another schema, or belongs to another key.
    """
    if len(data) <= _HEAD:
        raise UnreadableEntry("truncated")
    if data[0] != SCHEMA:
        raise UnreadableEntry(f"schema {data[0]}")
    packed = memoryview(data)[_HEAD:]
    if zlib.crc32(packed) != int.from_bytes(data[1:_HEAD], "big"):
        raise UnreadableEntry("checksum")
    try:
        stored_key, kind, payload, (started, created, revalidate, expire), tags, valid_at = msgpack.unpackb(
            packed, unicode_errors=_UNICODE
        )
        proof = Proof(_pairs(tags), _pairs(valid_at))
        entry = Entry(stored_key, _content(kind, payload), started, created, revalidate, expire, proof)
    except Exception as error:  # msgpack raises half a dozen kinds; a wrong shape raises more
        raise UnreadableEntry(f"shape: {type(error).__name__}") from error
    if entry.key != key:
        raise UnreadableEntry("another key")
    return entry


def _content(kind: str, payload: list[Any]) -> Content | Value | Refusal:
    if kind == "refusal":
        return Refusal(*payload)
    if kind == "value":
        return Value(*payload)
    if kind != "page":
        raise UnreadableEntry(f"kind {kind!r}")
    status, headers, body, etag, reads_cookies, coded = payload
    return Content(status, _pairs(headers), body, etag, reads_cookies, _pairs(coded))


def _pairs(read: list[Any]) -> tuple[tuple[Any, Any], ...]:
    # msgpack has no tuples.
    return tuple((name, value) for name, value in read)
