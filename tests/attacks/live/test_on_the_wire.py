"""Poisoned headers, cloaked parameters and deceptive paths as bytes, parsed by a real server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.attacks import test_cloaking, test_deception, test_poisoning
from tests.attacks.support.attack import Attack
from tests.attacks.support.raw import request, send
from tests.live.support.server import Gunicorn

MARK = b"attacker7f3a"


def odd_requests(path: bytes) -> Iterator[bytes]:
    """Yield requests for a page that a server may parse in more than one way."""
    for target in (
        b"http://" + MARK + b".example" + path,
        b"http://" + MARK + b"@attacked.test" + path,
        path + b"#" + MARK,
    ):
        yield request(target)
    for host in (
        MARK + b".example",
        b"attacked.test:" + MARK,
        b"attacked.test, " + MARK,
        MARK + b"@attacked.test",
        b"",
        b"[" + MARK,
    ):
        yield request(path, host=host)
    for headers in (
        (b"Host: " + MARK,),
        (b"X_Forwarded_Host: " + MARK, b"X-Forwarded_Host: " + MARK),
        (b"X-Forwarded-Host : " + MARK,),
        (b" X-Forwarded-Host: " + MARK,),
        (b"X-Forwarded-Host:\t" + MARK, b"x-forwarded-host: " + MARK),
        (b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: on", b"X-Forwarded-Protocol: ssl"),
        (b"SCRIPT_NAME: /" + MARK,),
        (b"Script-Name: /" + MARK, b"Path-Info: /" + MARK, b"PATH_INFO: /" + MARK, b"Remote-User: " + MARK),
        (b"REMOTE_USER: " + MARK, b"Remote-Addr: " + MARK, b"REMOTE_ADDR: 127.0.0.1", b"wsgi.input: " + MARK),
        (b"Transfer-Encoding: chunked", b"Content-Length: 4"),
        (b"Content-Length: 0", b"Content-Length: 40"),
        (b"Content-Length: +4",),
        (b"Transfer-Encoding: xchunked",),
        (b"Connection: close, X-Forwarded-Host", b"X-Forwarded-Host: " + MARK),
        (b"X-\xff: " + MARK, b"X-Null: a\x00" + MARK),
    ):
        yield request(path, *headers)
    # A body that could be taken for another request.
    inner = request(path, b"X-Forwarded-Host: " + MARK)
    for length in (len(inner), 0, 5):
        yield request(path, b"Content-Length: %d" % length) + inner
        yield request(path, b"Content-Length: %d" % length, method=b"HEAD") + inner
    yield request(path, b"Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    yield request(path, b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + inner
    yield request(path, b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n" + inner
    yield request(path).replace(b"Connection: close\r\n", b"") + request(path, b"X-Forwarded-Host: " + MARK)
    yield request(path).replace(b"\r\n", b"\n")
    yield request(path, b"X-Forwarded-Host: a\r\n " + MARK)
    yield request(path, b"Cookie: session=" + MARK, b"Cookie: lang=" + MARK)
    for method in (b"get", b"GET\t", b"POST", b"PURGE", b"TRACE", b"OPTIONS", b"PUT", MARK):
        yield request(path, b"X-HTTP-Method-Override: GET", b"X-Forwarded-Host: " + MARK, method=method)


def wire(path: str) -> bytes:
    """Return a path of the other attacks as bytes, percent-encoded where it must be."""
    return quote(path, safe="/?&=;%#+,:@!$'()*[]|\\~.-_", encoding="latin-1").encode()


def attacks() -> Iterator[tuple[bytes, bytes, list[bytes]]]:
    """Yield the target of strangers, the request of the attacker, and further targets of strangers."""
    numbers = itertools.count()
    for name, value in itertools.product(test_poisoning.HEADERS, test_poisoning.VALUES):
        path = b"/headers/%d" % next(numbers)
        yield path, request(path, f"{name}: {value}".replace(test_poisoning.MARK, MARK.decode()).encode()), []
    for query in test_cloaking.queries():
        path = b"/queries/%d" % next(numbers)
        yield path, request(path + b"?" + wire(query)), [path + b"?page=1", path + b"?utm_source=x"]
    for odd in range(len(list(odd_requests(b"/")))):
        path = b"/odd/%d" % next(numbers)
        yield path, list(odd_requests(path))[odd], [path + b"?page=1"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Gunicorn]:
    env = {"WSGI_ISR_STORE": f"sqlite:///{tmp_path}/pages.sqlite3"}
    with Gunicorn(tmp_path / "log", env, "tests.attacks.support.served:application", workers=1) as server:
        yield server


def test_nothing_that_is_sent_to_a_server_stays_behind(server: Gunicorn, attack: Attack) -> None:
    clean = send(server.port, request(b"/clean"))
    assert clean.startswith(b"HTTP/1.1 200"), clean
    hits = 0
    for path, sent, more in attacks():
        send(server.port, sent)
        for asked in (path, path, *more):
            seen = send(server.port, request(asked))
            hits += b"X-ISR: HIT" in seen
            # The page is the same as one that was never attacked, except for path and length.
            held = seen.startswith(b"HTTP/1.1 200") and MARK not in seen
            held &= seen.count(b"HTTP_") == clean.count(b"HTTP_") and seen.count(b"\r\n") == clean.count(b"\r\n")
            attack.check(held, f"{sent[:300]!r}, then {asked!r}: {seen.decode('latin-1')}")
    assert hits > attack.tried // 2, f"only {hits} of {attack.tried} answers came from the cache"
    attack.over("visits after an attacker")


def test_no_path_makes_a_server_give_away_the_page_of_a_victim(server: Gunicorn, attack: Attack) -> None:
    victims = [(b"Cookie: session=" + MARK,), (b"Authorization: Bearer " + MARK,)]
    for path, victim in itertools.product(test_deception.PATHS, victims):
        target = wire(path)
        for _ in range(2):
            send(server.port, request(target, *victim))
        for asked in (target, target.replace(b"%2f", b"/").replace(b"%2e", b"."), target.partition(b"?")[0]):
            seen = send(server.port, request(asked))
            attack.check(MARK not in seen, f"{path}, then {asked!r}: {seen.decode('latin-1')}")
    attack.over("visits after a victim")
