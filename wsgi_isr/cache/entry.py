"""Cache entries, and their bytes in the store.

The bytes are ``schema (1) + seal + msgpack``. The seal is a CRC-32 (4), or with a ``signing_key`` an HMAC-SHA-256 (32).
Damage, a forgery, another schema and another key's value (a collision of hashed names) each raise
:class:`UnreadableEntry`. The caller treats all four as missing.
"""

from __future__ import annotations

import functools
import hmac
import re
import zlib
from typing import Any, NamedTuple

import msgpack

SCHEMA = 5

_UNICODE = "surrogatepass"  # any text is a tag, even text that UTF-8 cannot encode, such as a file name

# A head that a server refuses to send is an error for as long as its entry lives. RFC 9112, 4 (a status line, with a
# status that a rule may store), RFC 9110, 5.6.2 (a token), 5.5 (a field's value, as latin-1), 8.8.3 (between the quotes
# of an entity tag).
_STATUS = re.compile(r"(?!206|304|429)[2-4][0-9][0-9](?: [\t\x20-\x7e\x80-\xff]*)?")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_ETAG = re.compile(r"[!#-~\x80-\xff]*")
#: Content codings of ``pages/compression.py``. An entry with another one is unreadable.
_CODINGS = frozenset({"br", "gzip", "zstd"})
#: Statuses without a body (RFC 9110, 15.3.5 and 15.3.6): a client would read a body as the next response.
_WITHOUT_BODY = frozenset({"204", "205"})
#: Headers that depend on the moment, or delimit the response: a stored one would contradict the server's own.
_NEVER_STORED = frozenset({"age", "cache-status", "connection", "content-length", "etag", "transfer-encoding", "x-isr"})
#: Seconds: the bound of all times. A float represents each whole number below it exactly.
_LONGEST = 2.0**53
_NUMBERS = frozenset({float, int})


class Content(NamedTuple):
    """A page as it is sent, without the headers that depend on the moment.

    :param status: the status line (``"200 OK"``).
    :param etag: the app's entity tag, or one made from the body; strong, without quotes.
    :param reads_cookies: the app answered with ``Vary: Cookie``. Only clients without cookies get the page.
    :param coded: the body in other content codings, as pairs of name and bytes, smallest first.
    """

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    etag: str
    reads_cookies: bool = False
    coded: tuple[tuple[str, bytes], ...] = ()


class Value(NamedTuple):
    """The result of a cached function, as bytes (:mod:`.values`)."""

    data: bytes


class HitForMiss(NamedTuple):
    """A marker that a page may not be stored.

    :param reason: the reason as a token, as in ``Cache-Status``.
    """

    reason: str


class TagSnapshot(NamedTuple):
    """The tag versions that an entry was rendered from.

    :param tags: the entry's tags, each with its version from before the render.
    :param valid_at: the nodes' epochs at which these versions were current; empty where that is not known.
    """

    tags: tuple[tuple[str, bytes], ...] = ()
    valid_at: tuple[tuple[str, bytes], ...] = ()


_NO_PROOF = TagSnapshot()


class Entry(NamedTuple):
    """A cache entry: a page, the result of a function, or a hit-for-miss.

    :param key: the text of the key.
    :param started: the start of the render, in seconds of Unix time.
    :param created: the end of the render, in seconds of Unix time. The age counts from it.
    :param revalidate: the age in seconds from which on the entry is stale; ``None`` for never.
    :param expire: the age in seconds from which on the entry is expired; ``None`` for never.
    :param snapshot: the tag snapshot.
    """

    key: str
    content: Content | Value | HitForMiss
    started: float
    created: float
    revalidate: float | None
    expire: float | None
    snapshot: TagSnapshot = _NO_PROOF

    @property
    def size(self) -> int:
        """Return the bytes in memory: those of the entry, of the objects around them and of a prepared response."""
        size = len(self.key) + 3712 + sum(len(tag) + len(tag_version) + 200 for tag, tag_version in self.snapshot.tags)
        if isinstance(self.content, Content):
            size += len(self.content.body) + sum(len(n) + len(v) + 200 for n, v in self.content.headers)
            size += sum(len(body) + 1280 for _, body in self.content.coded)
            # A server keeps the heads of up to four variants as bytes (MAX_WIRES of pages/respond.py).
            size += 2800 + 4 * sum(len(n) + len(v) + 4 for n, v in self.content.headers)
        elif isinstance(self.content, Value):
            size += len(self.content.data)
        return size

    def age(self, now: float) -> float:
        """Return the seconds since the end of the render. Never negative: the clocks of machines differ."""
        return max(0.0, now - self.created)


class UnreadableEntry(ValueError):
    """The bytes are no entry of this schema and key; the message gives the reason."""


class Codec:
    """Convert entries and lists to bytes and back, and reject damaged bytes.

    :param signing_key: the option ``signing_key``. With a key, bytes from another program are rejected as well.
    :param namespace: the site's namespace. A site rejects the entries of another site with the same signing key.
    """

    def __init__(self, signing_key: str | None = None, namespace: str = "") -> None:
        self._keys: dict[str, bytes] | None = None
        if signing_key is not None:
            # Each purpose has a key of its own: a sealed entry never passes as a list of sites.
            key = signing_key.encode("utf-8", _UNICODE)
            purposes = ("entry", "sites", "apps", "releases", "switch", "timeline", "history")
            contexts = {purpose: f"wsgi_isr.{purpose}:{namespace}" for purpose in purposes}
            self._keys = {
                purpose: hmac.digest(key, context.encode("utf-8", _UNICODE), "sha256")
                for purpose, context in contexts.items()
            }
        self._head = 1 + len(self._seal(b"", "entry"))

    def pack(self, entry: Entry) -> bytes:
        """Return the entry as bytes.

        :raises ValueError: :meth:`unpack` would reject the entry, because of a header with a line break, say.
        """
        content = entry.content
        if isinstance(content, Content):
            kind, payload = "page", list(content)
        elif isinstance(content, Value):
            kind, payload = "value", [content.data]
        else:
            kind, payload = "refusal", [content.reason]
        times = [entry.started, entry.created, entry.revalidate, entry.expire]
        fields = [entry.key, kind, payload, times, entry.snapshot.tags, entry.snapshot.valid_at]
        packed: bytes = msgpack.packb(fields, unicode_errors=_UNICODE)
        _read(packed)
        return self.seal(packed, "entry")

    def unpack(self, data: bytes, key: str, is_data: bool = False) -> Entry:
        """Return the entry in ``data``. Every field is checked, since another program may have written the bytes.

        :param is_data: whether the key is of a cached function's result, and not of a page.
        :raises UnreadableEntry: the bytes are damaged, forged, of another schema or key, or a field is impossible.
        """
        entry = _read(self.unseal(data, "entry"))
        if entry.key != key:
            raise UnreadableEntry("another key")
        if isinstance(entry.content, Content if is_data else Value):
            raise UnreadableEntry("another kind")
        return entry

    def seal(self, packed: bytes, purpose: str) -> bytes:
        """Return ``packed`` behind the schema and the seal.

        :param purpose: ``entry``, ``sites``, ``apps``, ``releases``, ``switch``, ``timeline`` or ``history``.
        """
        return b"".join((bytes([SCHEMA]), self._seal(packed, purpose), packed))

    def unseal(self, data: bytes, purpose: str) -> memoryview:
        """Return the packed bytes that were sealed for ``purpose``.

        :raises UnreadableEntry: the bytes are damaged, forged, or of another schema.
        """
        if len(data) <= self._head:
            raise UnreadableEntry("truncated")
        if data[0] != SCHEMA:
            raise UnreadableEntry(f"schema {data[0]}")
        packed = memoryview(data)[self._head :]
        if not hmac.compare_digest(self._seal(packed, purpose), data[1 : self._head]):
            raise UnreadableEntry("checksum" if self._keys is None else "signature")
        return packed

    def beneath_signature(self, data: bytes) -> bytes:
        """Return the bytes behind the place of a signature, unproven, for a message; empty for a process with a key."""
        return data[1 + 32 :] if self._keys is None and data[:1] == bytes([SCHEMA]) else b""

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
    # The exact type, since a bool is an int. NaN fails the comparison.
    return type(value) in _NUMBERS and 0 <= value < _LONGEST


def _are_stamped(pairs: Any) -> bool:
    """Return whether ``pairs`` is a tuple of pairs of text and bytes."""
    if type(pairs) is not tuple:
        return False
    for pair in pairs:
        if type(pair) is not tuple:
            return False
        name, tag_version = pair
        if type(name) is not str or type(tag_version) is not bytes:
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
    """Return whether a stored header may have this name. Cached, as most pages of a site have the same names."""
    return _TOKEN.fullmatch(name) is not None and name.lower() not in _NEVER_STORED
