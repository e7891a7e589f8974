"""A bounded load on a site, from one thread, and a record of each answer.

It is in Python instead of wrk, because a report is about verdicts, which are in the headers of each answer, and about
their times. One thread with non-blocking sockets sends some thousand requests per second, which keeps a cluster on the
same machine busy.
"""

from __future__ import annotations

import heapq
import html
import itertools
import random
import re
import selectors
import socket
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from werkzeug.urls import iri_to_uri

from ..errors import ClusterError
from ..parts.ports import HOST
from .request import fetch

#: Labels of answers without a verdict: incomplete ones, and complete ones without ``X-ISR``.
CUT, UNLABELLED = "cut off", "no X-ISR"
#: Seconds after which a visitor gives up.
TIMEOUT = 30.0

#: Verdicts on pages that are served as new.
FRESH = frozenset({b"HIT", b"MISS", b"EXPIRED"})

_VERDICT = re.compile(rb"\r\nx-isr:[ \t]*([!-~]+)", re.IGNORECASE)
_INSTANCE = re.compile(rb"\r\nx-instance:[ \t]*([!-~]+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_LINK = re.compile(rb"""<a\b[^>]*\bhref=["']?(/[^"'#\s>]*)""", re.IGNORECASE)


class Names:
    """Numbers for names, for arrays."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, name: bytes) -> int:
        """Return the number of a name; a new name gets a new number."""
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self.all)
            self.all.append(name.decode("latin-1"))
        return found


@dataclass
class Samples:
    """A record of each request, in the order of the answers. Times are those of ``time.monotonic``."""

    paths: Sequence[str]
    began: float = 0.0
    ended: float = 0.0
    at: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("f"))
    status: array[int] = field(default_factory=lambda: array("h"))
    path: array[int] = field(default_factory=lambda: array("h"))
    verdict: array[int] = field(default_factory=lambda: array("b"))
    instance: array[int] = field(default_factory=lambda: array("b"))
    verdicts: Names = field(default_factory=Names)
    instances: Names = field(default_factory=Names)
    #: The paths of pages that were served as new.
    fresh: set[str] = field(default_factory=set)
    #: The errors, and how often each occurred.
    errors: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.at)

    def add(
        self, at: float, seconds: float, path: int, status: int, verdict: bytes, instance: bytes, error: str = ""
    ) -> None:
        """Record one more answer."""
        self.at.append(at)
        self.seconds.append(seconds)
        self.path.append(path)
        self.status.append(status)
        self.verdict.append(self.verdicts.number(verdict))
        self.instance.append(self.instances.number(instance))
        if error:
            self.errors[error] = self.errors.get(error, 0) + 1


def discover(port: int, limit: int = 24) -> list[str]:
    """Return the start page and its links, in their order. :raises ClusterError: the start page does not answer."""
    answer = fetch(port, "/")
    if answer.status != 200:
        raise ClusterError(f"the start page answers {answer.status or answer.error}: name pages with --path")
    links = (html.unescape(found.decode("utf-8", "replace")) for found in _LINK.findall(answer.body))
    return list(dict.fromkeys(["/", *(asked(link) for link in links if not link.startswith("//"))]))[:limit]


def asked(path: str) -> str:
    """Return the request target for a path as it is written in a link or in a browser's address bar."""
    return iri_to_uri(path.partition("#")[0])


def popularity(count: int) -> list[float]:
    """Return weights of pages, the first the most popular (Zipf: the n-th is asked for 1/n times as often)."""
    return list(itertools.accumulate(1 / number for number in range(1, count + 1)))


def run(
    port: int,
    paths: Sequence[str],
    *,
    seconds: float,
    connections: int,
    rate: float = 0.0,
    seed: int = 0,
    host: str = "",
    weights: Sequence[float] | None = None,
    meanwhile: Callable[[], bool] = lambda: True,
) -> Samples:
    """Send requests for ``seconds``.

    :param rate: requests per second of all connections together; 0 for no limit.
    :param host: the host name in requests.
    :param weights: the popularity of each path; by default, later paths are less popular (:func:`popularity`).
    :param meanwhile: called some times per second; ``False`` ends the load.
    """
    samples = Samples(paths)
    popular = list(itertools.accumulate(weights)) if weights is not None else popularity(len(paths))
    crowd = _Crowd(port, host or f"{HOST}:{port}", samples, connections, rate, popular, random.Random(seed))
    samples.began = time.monotonic()
    try:
        crowd.run(samples.began + seconds, meanwhile)
    finally:
        samples.ended = time.monotonic()
        crowd.close()
    return samples


@dataclass(eq=False)
class _Visitor:
    """One connection with its request in progress."""

    connection: socket.socket | None = None
    path: int = 0
    began: float = 0.0
    data: bytes = b""
    used: bool = False


class _Crowd:
    def __init__(
        self,
        port: int,
        host: str,
        samples: Samples,
        connections: int,
        rate: float,
        weights: Sequence[float],
        chance: random.Random,
    ) -> None:
        self._address = (HOST, port)
        self._samples = samples
        self._requests = [f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1") for path in samples.paths]
        # Drawn in advance: a draw costs as much as a request.
        self._paths: Iterator[int] = itertools.cycle(
            chance.choices(range(len(samples.paths)), cum_weights=weights, k=9973)
        )
        self._pause = connections / rate if rate else 0.0
        self._selector = selectors.EpollSelector()
        now = time.monotonic()
        self._due = [(now + number * self._pause / connections, number) for number in range(connections)]
        self._visitors = [_Visitor() for _ in range(connections)]
        self._busy: set[int] = set()

    def run(self, until: float, meanwhile: Callable[[], bool]) -> None:
        looked, going = 0.0, True
        while going or self._busy:
            now = time.monotonic()
            if now > looked + 0.2:
                looked = now
                going = going and meanwhile()
                self._give_up(now)
            going = going and now < until
            while going and self._due and self._due[0][0] <= now:
                self._ask(heapq.heappop(self._due)[1], now)
            wait = min(0.1, max(0.0, self._due[0][0] - now)) if going and self._due else 0.1
            for key, _ in self._selector.select(wait):
                self._read(key.data)

    def close(self) -> None:
        for visitor in self._visitors:
            if visitor.connection is not None:
                visitor.connection.close()
        self._selector.close()

    def _ask(self, number: int, now: float) -> None:
        visitor = self._visitors[number]
        visitor.path, visitor.began, visitor.data = next(self._paths), now, b""
        self._busy.add(number)
        self._send(number)

    def _send(self, number: int) -> None:
        visitor = self._visitors[number]
        try:
            if visitor.connection is None:
                visitor.used = False
                visitor.connection = socket.create_connection(self._address, 5)
                visitor.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                visitor.connection.setblocking(False)
                self._selector.register(visitor.connection, selectors.EVENT_READ, number)
            visitor.connection.send(self._requests[visitor.path])  # always fits into the buffer
        except OSError as error:
            self._failed(number, error)

    def _read(self, number: int) -> None:
        visitor = self._visitors[number]
        if visitor.connection is None:
            return
        try:
            piece = visitor.connection.recv(262144)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(number, error)
            return
        if number not in self._busy:  # the server closes an idle connection
            self._drop(visitor)
            return
        if not piece:
            self._failed(number, EOFError(f"the connection ended after {len(visitor.data)} bytes"))
            return
        visitor.data += piece
        end = visitor.data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = visitor.data[: end + 2]
        length = _LENGTH.search(head)
        if length is not None:
            whole = len(visitor.data) >= end + 4 + int(length[1])
        else:
            whole = not _CHUNKED.search(head) or visitor.data.endswith(b"\r\n0\r\n\r\n")
        if whole:
            self._answered(number, head)

    def _answered(self, number: int, head: bytes) -> None:
        visitor, samples, now = self._visitors[number], self._samples, time.monotonic()
        status = int(head[9:12])
        verdict, instance = _VERDICT.search(head), _INSTANCE.search(head)
        label = verdict[1] if verdict else UNLABELLED.encode()
        if label in FRESH:
            samples.fresh.add(samples.paths[visitor.path])
        by = instance[1] if instance else b""
        error = f"{status} for {samples.paths[visitor.path]} by {by.decode('latin-1')}" if status >= 500 else ""
        samples.add(now, now - visitor.began, visitor.path, status, label, by, error)
        visitor.used = True
        if _CLOSE.search(head):
            self._drop(visitor)
        self._done(number, now)

    def _failed(self, number: int, error: Exception) -> None:
        visitor, now = self._visitors[number], time.monotonic()
        again = visitor.used and not visitor.data and isinstance(error, (ConnectionError, EOFError))
        self._drop(visitor)
        if again:  # the server may close an idle connection at any time; this is no error
            self._send(number)
            return
        said = f"{type(error).__name__}: {error}"
        self._samples.add(now, now - visitor.began, visitor.path, 0, CUT.encode(), b"", said)
        self._done(number, now + 0.05)  # slower than connections are refused

    def _done(self, number: int, now: float) -> None:
        self._busy.discard(number)
        due = self._visitors[number].began + self._pause
        heapq.heappush(self._due, (max(due, now), number))

    def _drop(self, visitor: _Visitor) -> None:
        if visitor.connection is not None:
            self._selector.unregister(visitor.connection)
            visitor.connection.close()
            visitor.connection = None
            visitor.used = False

    def _give_up(self, now: float) -> None:
        for number in [n for n in self._busy if now - self._visitors[n].began > TIMEOUT]:
            self._visitors[number].used = False
            self._failed(number, TimeoutError(f"no answer within {TIMEOUT:g} s"))


def counts(numbers: array[int], names: Names) -> Mapping[str, int]:
    """Return the frequency of each name, most frequent first."""
    found = {name: numbers.count(number) for number, name in enumerate(names.all)}
    return dict(sorted(((name, count) for name, count in found.items() if count), key=lambda pair: -pair[1]))
