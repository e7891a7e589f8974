"""What is stored of a page, and its bytes.

The bytes are ``schema (1) + seal + msgpack``. The seal is a CRC-32 (4), or with a ``signing_key`` an HMAC-SHA-256 (32).
Damage, a forgery, another schema and another key's value (a collision of hashed names) are told apart from *missing*
here, and treated like it by the caller.
"""

from __future__ import annotations

import functools
import hmac
import re
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

SCHEMA = 5

_UNICODE = "surrogatepass"  # any text is a tag, that which no UTF-8 has included: a file's name, say

# A head that a server refuses to send is an error for as long as its entry lives. RFC 9112, 4 (a status line, of those
# that a rule may store), RFC 9110, 5.6.2 (a token), 5.5 (a field's value, as latin-1), 8.8.3 (between the quotes of an
# entity tag).
_STATUS = re.compile(r"(?!206|304|429)[2-4][0-9][0-9](?: [\t\x20-\x7e\x80-\xff]*)?")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_ETAG = re.compile(r"[!#-~\x80-\xff]*")
#: Content codings that :mod:`.coding` makes.
_CODINGS = frozenset({"br", "gzip", "zstd"})
#: Statuses whose answer ends with its head (RFC 9110, 15.3.5 and 15.3.6): a body would be read as the next answer.
_WITHOUT_BODY = frozenset({"204", "205"})
#: Headers that are made anew for each answer, or that say where it ends: a second one would contradict ours.
_NEVER_STORED = frozenset({"age", "cache-status", "connection", "content-length", "etag", "transfer-encoding", "x-isr"})
#: Seconds. Nothing is as old, and as a float each whole number below it is exact.
_LONGEST = 2.0**53
_NUMBERS = frozenset({float, int})


class Content(NamedTuple):
    """A page as it goes out, without the headers that depend on the moment.

    ``status`` is a status line (``"200 OK"``); ``etag`` is unquoted and strong: the app's, or made from the body;
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


class HitForMiss(NamedTuple):
    """A page that may not be stored, and the word for why (a token, as in ``Cache-Status``)."""

    reason: str


class TagSnapshot(NamedTuple):
    """An entry's tags with the stamps from before its render, and the epochs of their nodes at which these
    were the stamps of the moment (empty where that is not known)."""

    tags: tuple[tuple[str, bytes], ...] = ()
    valid_at: tuple[tuple[str, bytes], ...] = ()


_NO_PROOF = TagSnapshot()


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of the store: a page, or the memory that there is none to be had.

    ``started`` and ``created`` are the begin and the end of its render, in seconds of Unix time; age
    counts from ``created``. ``revalidate`` and ``expire`` are ages in seconds, ``None`` for never.
    """

    key: str
    content: Content | Value | HitForMiss
    started: float
    created: float
    revalidate: float | None
    expire: float | None
    proof: TagSnapshot = _NO_PROOF
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


class Codec:
    """Turns entries and lists into bytes and back, and tells whole bytes from damaged ones.

    :param signing_key: the option of this name. With one, bytes that another program wrote are unreadable as well.
    :param namespace: of the site. The entries of one site are worth nothing to another one with the same key.
    """

    def __init__(self, signing_key: str | None = None, namespace: str = "") -> None:
        self._keys: dict[str, bytes] | None = None
        if signing_key is not None:
            # A key for each purpose: an entry is no list of sites, whatever it holds.
            key = signing_key.encode("utf-8", _UNICODE)
            purposes = ("entry", "sites", "apps", "releases")
            contexts = {purpose: f"wsgi_isr.{purpose}:{namespace}" for purpose in purposes}
            self._keys = {
                purpose: hmac.digest(key, context.encode("utf-8", _UNICODE), "sha256")
                for purpose, context in contexts.items()
            }
        self._head = 1 + len(self._seal(b"", "entry"))

    def pack(self, entry: Entry) -> bytes:
        """Return the entry as bytes.

        :raises ValueError: it has what :meth:`unpack` does not take, such as a header with a line break.
        """
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
        _read(packed)
        return self.seal(packed, "entry")

    def unpack(self, data: bytes, key: str, is_data: bool = False) -> Entry:
        """Return the entry in ``data``. Every field is one that can be served: the bytes may be another program's.

        :param is_data: whether the key is that of a cached function's result, and not that of a page.
        :raises UnreadableEntry: it is damaged, forged, of another schema, or another key's, or a field is impossible.
        """
        entry = _read(self.unseal(data, "entry"))
        if entry.key != key:
            raise UnreadableEntry("another key")
        if isinstance(entry.content, Content if is_data else Value):
            raise UnreadableEntry("another kind")
        return entry

    def seal(self, packed: bytes, purpose: str) -> bytes:
        """Return ``packed`` behind the schema and the seal for ``purpose``: ``entry``, ``sites``, ``apps`` or
        ``releases``."""
        return b"".join((bytes([SCHEMA]), self._seal(packed, purpose), packed))

    def unseal(self, data: bytes, purpose: str) -> memoryview:
        """Return what was sealed for ``purpose``.

        :raises UnreadableEntry: it is damaged, forged, or of another schema.
        """
        if len(data) <= self._head:
            raise UnreadableEntry("truncated")
        if data[0] != SCHEMA:
            raise UnreadableEntry(f"schema {data[0]}")
        packed = memoryview(data)[self._head :]
        if not hmac.compare_digest(self._seal(packed, purpose), data[1 : self._head]):
            raise UnreadableEntry("checksum" if self._keys is None else "signature")
        return packed

    def _seal(self, packed: bytes | memoryview, purpose: str) -> bytes:
        if self._keys is None:
            return zlib.crc32(packed).to_bytes(4, "big")
        return hmac.digest(self._keys[purpose], packed, "sha256")


def _read(packed: bytes | memoryview) -> Entry:
    try:
        stored_key, kind, payload, (started, created, revalidate, expire), tags, valid_at = msgpack.unpackb(
            packed, use_list=False, unicode_errors=_UNICODE
        )
        if not (
            _is_time(started)
            and _is_time(created)
            and (revalidate is None or _is_time(revalidate))
            and (expire is None or _is_time(expire))
        ):
            raise UnreadableEntry("impossible times")
        if not (_are_stamped(tags) and _are_stamped(valid_at)):
            raise UnreadableEntry("impossible tags")
        return Entry(
            stored_key, _content(kind, payload), started, created, revalidate, expire, TagSnapshot(tags, valid_at)
        )
    except UnreadableEntry:
        raise
    except Exception as error:  # msgpack raises half a dozen kinds; a wrong shape raises more
        raise UnreadableEntry(f"shape: {type(error).__name__}") from error


def _content(kind: str, payload: tuple[Any, ...]) -> Content | Value | HitForMiss:
    if kind == "page":
        content = Content(*payload)
        if not (_STATUS.fullmatch(content.status) and _ETAG.fullmatch(content.etag) and _are_headers(content.headers)):
            raise UnreadableEntry("impossible head")
        if type(content.body) is not bytes or type(content.reads_cookies) is not bool:
            raise UnreadableEntry("impossible body")
        if content.coded != () and not (_are_stamped(content.coded) and _CODINGS.issuperset(dict(content.coded))):
            raise UnreadableEntry("impossible codings")
        if content.status[:3] in _WITHOUT_BODY and (content.body or content.coded):
            raise UnreadableEntry("impossible body")
        return content
    (only,) = payload
    if kind == "value" and type(only) is bytes:
        return Value(only)
    if kind == "refusal" and _TOKEN.fullmatch(only):
        return HitForMiss(only)
    raise UnreadableEntry("impossible kind")


def _is_time(value: Any) -> bool:
    # True is an int, and NaN is within no bounds.
    return type(value) in _NUMBERS and 0 <= value < _LONGEST


def _are_stamped(pairs: Any) -> bool:
    """Whether these are pairs of text and bytes."""
    if type(pairs) is not tuple:
        return False
    for pair in pairs:
        if type(pair) is not tuple:
            return False
        name, stamp = pair
        if type(name) is not str or type(stamp) is not bytes:
            return False
    return True


def _are_headers(headers: Any) -> bool:
    if type(headers) is not tuple:
        return False
    values = []
    for pair in headers:
        if type(pair) is not tuple:
            return False
        name, value = pair
        if not _is_name(name):
            return False
        values.append(value)
    text = "".join(values)
    return (text.isascii() and text.isprintable()) or _VALUE.fullmatch(text) is not None


@functools.lru_cache(1024)
def _is_name(name: str) -> bool:
    """Whether a stored header may have this name. Most pages of a site have the same ones."""
    return _TOKEN.fullmatch(name) is not None and name.lower() not in _NEVER_STORED
