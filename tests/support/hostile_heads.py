"""Requests for a small site: plain ones, odd ones and hostile ones, made from a source of random choices."""

from __future__ import annotations

import random
import re

METHODS = [b"GET"] * 12 + [b"HEAD"] * 4 + [b"POST", b"OPTIONS", b"get", b"GETT", b"G", b"PUT", b"G\x00T", b""]
TARGETS = (
    [b"/page/1", b"/page/2"] * 6
    + [b"/page/1?a=1", b"/page/1?", b"/page/%31", b"/page/%C3%A9", b"/page/1;x", b"/other", b"/"]
    + [
        b"//page/1",
        b"http://site.example/page/1",
        b"/page/1#part",
        b"*",
        b"/page/../page/1",
        b"/page/%00",
        b"/page/%2F1",
    ]
    + [b"/page/1 ", b" /page/1", b"/page/\xe9", b"/page/1\x00", b"page/1", b"/page/1?a=1#b", b"/p" * 3000, b"/page/1%"]
    + [
        b"/page/1\t",
        b"site.example:443",
        b"/page/1?a=%zz",
        b"/./page/1",
        b"/page//1",
        b"http://[::1/page/1",
        b"///page/1",
    ]
)
VERSIONS = (
    [b"HTTP/1.1"] * 12 + [b"HTTP/1.0"] * 3 + [b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"HTTP/1.", b""]
)
HOSTS = [b"Host: site.example"] * 8 + [
    b"host: site.example",
    b"HOST:site.example",
    b"Host:  site.example \t",
    b"Host: b",
]
ENDS = [b"\r\n"] * 60 + [b"\n", b"\r", b"\r\r\n"]
FIELDS = [
    b"X-Forwarded-Ssl: on\r\nX-Forwarded-Proto: http",
    b"X-Forwarded-Ssl: on\r\nX-Forwarded-Proto: https",
    *[b"User-Agent: Mozilla/5.0 (X11; Linux x86_64)", b"Accept: text/html,*/*;q=0.8", b"Accept-Language: en"] * 3,
    *[b"Accept-Encoding: gzip, deflate, br, zstd", b"Accept-Encoding: gzip", b"Accept-Encoding: identity"] * 2,
    *[b"Connection: keep-alive", b"Connection: close", b"connection: Keep-Alive", b"X-Forwarded-Proto: https"] * 2,
    *[b"X-Forwarded-For: 192.0.2.1", b"X-Forwarded-Proto: http", b"X-Real-IP: 192.0.2.1", b"DNT: 1"] * 2,
    b"Accept-Encoding: gzip;q=0, br;q=0.5",
    b"Accept-Encoding: gzip unchanged",
    b'If-None-Match: "never"',
    b"If-None-Match: *",
    b'If-None-Match: W/"x", "y"',
    b"If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
    b'If-Match: "never"',
    b'If-Range: "never"',
    b"Range: bytes=0-9",
    b"Cookie: session=1",
    b"Cookie: _ga=1",
    b"Cookie:",
    b"Authorization: Basic eDp5",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAMAAABkAAQAAP__",
    b"Connection: Upgrade, HTTP2-Settings",
    b"Connection: close, keep-alive",
    b"Connection: ",
    b"Connection: te",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: +5",
    b"Content-Length : 5",
    b"Content_Length: 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer_Encoding: chunked",
    b"TE: trailers",
    b"Trailer: Host",
    b"Expect: 100-continue",
    b"Expect: 200-ok",
    b"Content-Type: text/plain",
    b"Host: other.example",
    b"Host: site.example",
    b"X-Forwarded-Proto: https, http",
    b"X-Forwarded-Ssl: on",
    b"X-Forwarded-Protocol: ssl",
    b"X-Forwarded-Host: other.example",
    b"X-Forwarded-Port: 8080",
    b"X-Forwarded-Prefix: /mounted",
    b"X_Forwarded_Proto: https",
    b"X_Forwarded_For: 192.0.2.9",
    b"Script-Name: /page",
    b"Script_Name: /page",
    b"Path_Info: /other",
    b"Proxy: evil",
    b"Remote-User: admin",
    b"Remote_User: admin",
    b"Http-Host: other.example",
    b"X-Original-URL: /other",
    b"X-HTTP-Method-Override: POST",
    b"Cache-Control: no-cache",
    b"Pragma: no-cache",
    b"X-Empty:",
    b"X-Folded: one\r\n two",
    b"X-Folded: one\r\n\ttwo",
    b" X-Leading: space",
    b"X-Space : before colon",
    b"X-Nul: a\x00b",
    b"X-Bare: a\nHost: other.example",
    b"X-Bare: a\rb",
    b"X-High: \xe9\xff",
    b"X-\xe9: 1",
    b"X-Ctl: a\x7fb",
    b": nameless",
    b"colonless",
    b"X-Long: " + b"a" * 9000,
    b"Sec-Fetch-Site: none",
    b"Priority: u=0, i",
]


#: The first fields are those of browsers and proxies.
_USUAL = 33


def plain_head(choose: random.Random) -> bytes:
    """Return one request as browsers and proxies send it."""
    fields = [choose.choice(HOSTS), *choose.sample(FIELDS[:_USUAL], choose.randrange(6))]
    line = b" ".join([choose.choice(METHODS[:16]), choose.choice(TARGETS[:18]), choose.choice(VERSIONS[:15])])
    return b"".join(part + b"\r\n" for part in [line, *fields, b""])


def head(choose: random.Random) -> bytes:
    """Return one request without a body, a plain one or an odd one."""
    if choose.random() < 0.4:
        return plain_head(choose)
    hosts = [choose.choice(HOSTS)] if choose.random() < 0.97 else []
    few = choose.choice([0, 1, 1, 2, 2, 3, 3, 4, 6])
    fields = [*hosts, *(choose.choice(FIELDS) for _ in range(few))]
    choose.shuffle(fields)
    if choose.random() < 0.01:
        fields += [b"X-Many: 1"] * 120
    space = b" " if choose.random() < 0.98 else choose.choice([b"  ", b"\t", b""])
    line = space.join([choose.choice(METHODS), choose.choice(TARGETS), choose.choice(VERSIONS)])
    before = b"" if choose.random() < 0.97 else choose.choice([b"\r\n", b"\n", b"\r\n\r\n", b" ", b"\x16\x03\x01"])
    return before + b"".join(part + choose.choice(ENDS) for part in [line, *fields, b""])


def damaged(whole: bytes, choose: random.Random) -> bytes:
    """Return a request with a few bytes changed, or mostly unchanged."""
    data = bytearray(whole)
    for _ in range(choose.choice([0] * 10 + [1, 1, 2, 5])):
        place = choose.randrange(len(data) + 1)
        kind = choose.randrange(4)
        if kind == 0:
            data[place:place] = bytes([choose.choice(b"\x00\t\n\r :_-/%aA0\x7f\xff")])
        elif kind == 1:
            del data[place : place + choose.choice([1, 1, 2, 10])]
        elif kind == 2 and place < len(data):
            data[place] = choose.randrange(256)
        else:
            data[place:place] = data[max(0, place - 8) : place]
    return bytes(data)


def stream(choose: random.Random, most: int = 4) -> bytes:
    """Return some requests, one after the other, as a client pipelines them."""
    return b"".join(damaged(head(choose), choose) for _ in range(choose.randint(1, most)))


def split(data: bytes, choose: random.Random) -> list[bytes]:
    """Return the data in pieces, as a network delivers them."""
    places = sorted(choose.randrange(len(data) + 1) for _ in range(choose.choice([0, 0, 1, 2, 3])))
    pieces = [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]
    return [piece for piece in pieces if piece]


def comparable(received: bytes) -> bytes:
    """Return the answers of a server without its port, the time, and the state of the cache."""
    received = re.sub(rb"\r\n(Date|Age|Cache-Status|ETag|X-ISR): [^\r]*", b"", received)
    received = re.sub(rb"127\.0\.0\.1:\d+", b"server", received)  # in place of a missing Host
    # gunicorn finds one of several errors, depending on the pieces in which a head has come.
    return re.sub(rb"(?s)HTTP/1.1 (400|414|417|431|501) [A-Z].*", b"refused", received)
