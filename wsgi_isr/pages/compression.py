"""Content codings: a body is compressed once, when it is stored, and sent in the coding that the client prefers.

gzip (RFC 9110, 8.4.1.3) is always there; br (RFC 7932) and zstd (RFC 8878) need their libraries. A stored body is the
same for all clients with equal values of the parts of a request that its rule declares. So no secret of one client is
compressed together with the input of another, which could leak the secret.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from werkzeug.http import parse_accept_header

from ..cache.entry import Content

#: A smaller body fits one packet anyway.
MIN_BYTES = 500
#: The largest part of the body that may be left for a coding to pay.
_PAYS = 0.9
#: Types like text whose name does not say so. Other types are compressed already or not worth trying.
_LIKE_TEXT = frozenset(
    f"{kind}/{name}"
    for kind, names in {
        "application": "json javascript x-javascript ecmascript xml x-ndjson wasm vnd.ms-fontobject",
        "font": "ttf otf collection",
        "image": "bmp x-icon vnd.microsoft.icon",
    }.items()
    for name in names.split()
)
#: Headers about the exact bytes.
_OF_THESE_BYTES = frozenset({"content-encoding", "content-md5", "content-digest", "digest", "repr-digest"})
#: Most clients send one of few short values of Accept-Encoding; longer values are not cached.
MAX_CACHED = 80
#: Longer values count as absent (RFC 9110, 12.5.3): parsing 8 KB takes milliseconds.
MAX_READ = 1024


def encoded(content: Content, sent: Sequence[tuple[str, str]]) -> Content:
    """Return the page with its body in every coding that pays, the smallest first.

    :param sent: the headers that the app has sent, ``Cache-Control`` included.
    """
    if len(content.body) < MIN_BYTES or not _may_be_coded(sent):
        return content
    most = _PAYS * len(content.body)
    made = [(len(body), name, body) for name, code in _coders().items() if len(body := code(content.body)) < most]
    if not made:
        return content
    varies = any(name.lower() == "vary" and "accept-encoding" in value.lower() for name, value in content.headers)
    headers = content.headers if varies else (*content.headers, ("Vary", "Accept-Encoding"))
    return content._replace(headers=headers, coded=tuple((name, body) for _, name, body in sorted(made)))


def _may_be_coded(headers: Sequence[tuple[str, str]]) -> bool:
    kind = ""
    for name, value in headers:
        lower = name.lower()
        if lower in _OF_THESE_BYTES or (lower == "cache-control" and "no-transform" in value.lower()):
            return False  # RFC 9111, 5.2.2.6
        if lower == "content-type":
            kind = value.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind.endswith(("+json", "+xml", "+text")) or kind in _LIKE_TEXT


def chosen(content: Content, accepted: str) -> Content:
    """Return the page as sent to a client with this ``Accept-Encoding`` (RFC 9110, 12.5.3).

    Each coding is a representation with its own strong entity tag (RFC 9110, 8.8.3.3).
    """
    if not content.coded or not accepted or len(accepted) > MAX_READ:
        return content
    best = _best if len(accepted) <= MAX_CACHED else _best.__wrapped__
    name = best(accepted, tuple(name for name, _ in content.coded))
    if not name:
        return content
    headers = (*content.headers, ("Content-Encoding", name))
    return content._replace(headers=headers, body=dict(content.coded)[name], etag=f"{content.etag}-{name}")


@functools.lru_cache(256)
def _best(accepted: str, offered: tuple[str, ...]) -> str:
    """Return the coding with the highest quality, the first offered of several; empty for none.

    A coding that the header does not name has the quality of ``*``, or 0.
    """
    header = parse_accept_header(accepted)
    liked = {name: header.quality(name) for name in offered}
    if "gzip" in liked:
        liked["gzip"] = liked["gzip"] or header.quality("x-gzip")  # RFC 9110, 8.4.1.3
    best = max(offered, key=lambda name: liked[name])
    as_it_is = max((quality for name, quality in header if name.lower() == "identity"), default=0.0)
    return best if liked[best] > 0 and liked[best] >= as_it_is else ""


@functools.cache
def _coders() -> Mapping[str, Callable[[bytes], bytes]]:
    """Return the installed coders. They are imported with the first page, to keep the import of this package cheap."""
    coders: dict[str, Callable[[bytes], bytes]] = {"gzip": _gzip}
    try:
        import brotli
    except ImportError:
        pass
    else:
        # A client may be waiting: higher levels take ten times as long and save a tenth more.
        coders["br"] = lambda body: bytes(brotli.compress(body, quality=5))
    try:
        import zstandard
    except ImportError:
        pass
    else:
        coders["zstd"] = functools.partial(_zstd, zstandard)
    return coders


def _gzip(body: bytes) -> bytes:
    code = zlib.compressobj(6, wbits=16 + zlib.MAX_WBITS)  # with the header and trailer of gzip
    return code.compress(body) + code.flush()


def _zstd(zstandard: Any, body: bytes) -> bytes:
    # Decoders need not support a window of more than 8 MiB (RFC 9659, 3).
    window = {"window_log": 23} if len(body) > 1 << 23 else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(9, source_size=len(body), **window)
    code: bytes = zstandard.ZstdCompressor(compression_params=parameters).compress(body)
    # A copy: zstandard returns an object with the memory of the largest possible result, which L1 would keep.
    return bytes(memoryview(code))
