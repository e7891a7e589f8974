"""Visitors: one at a time with :func:`ask`, or a crowd of them with :class:`Crowd`.

Each request has a new connection, so any worker may get any request.
"""

from __future__ import annotations

import heapq
import json
import selectors
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import SO_ERROR, SOL_SOCKET, create_connection, socket
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"
#: The host name in requests, for every port: a page belongs to its host.
SITE = "live.test"
#: Seconds after which a visitor gives up.
TIMEOUT = 20.0


@dataclass(frozen=True)
class Answer:
    """An answer to a visitor; times are those of ``time.monotonic``, which is one clock for all processes.

    ``status`` is 0 where no complete answer came; ``error`` then says why.
    """

    began: float
    ended: float
    port: int
    status: int
    headers: Mapping[str, str]
    body: bytes
    error: str = ""

    @property
    def seconds(self) -> float:
        """Return how long the visitor waited."""
        return self.ended - self.began

    @property
    def verdict(self) -> str:
        """Return the word of ``X-ISR``."""
        return self.headers.get("x-isr", "")

    @property
    def page(self) -> dict[str, Any]:
        """Return the data that :mod:`.origin` wrote on the page."""
        page: dict[str, Any] = json.loads(self.body)
        return page

    @property
    def render(self) -> str:
        """Return the name of the render that made the page."""
        return str(self.page["render"])

    @property
    def worker(self) -> int:
        """Return the process that answered; this and the next two use the headers of :mod:`.measured`."""
        return int(self.headers["x-worker"])

    @property
    def entered(self) -> float:
        """Return when the cache was called, after any queue."""
        return float(self.headers["x-entered"])

    @property
    def left(self) -> float:
        """Return when the cache answered."""
        return float(self.headers["x-left"])

    def __str__(self) -> str:
        return f"{self.status} {self.verdict} {self.error} after {self.seconds * 1000:.0f} ms"


def ask(port: int, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    """Send one request; an underscore in the name of a header stands for a hyphen."""
    began = time.monotonic()
    try:
        with create_connection((HOST, port), timeout=TIMEOUT) as connection:
            connection.sendall(_request(method, path, headers))
            chunks = []
            while chunk := connection.recv(65536):
                chunks.append(chunk)
    except OSError as error:
        return _failed(began, port, error)
    return _read(began, port, b"".join(chunks))


class Crowd:
    """Run many visitors at once, each with request after request: ``with Crowd(ports, clients=64) as crowd:``.

    The crowd is one thread with non-blocking sockets, so that it costs less than its servers.

    :param ports: of the servers, which visitors take in turn.
    :param pause: seconds between a visitor's answer and their next request.
    :param rounds: requests of each visitor; ``None``: until the block ends.
    """

    def __init__(
        self, ports: Sequence[int], path: str = "/", *, clients: int, pause: float = 0.02, rounds: int | None = None
    ) -> None:
        #: All answers in their order; grows while the crowd runs.
        self.answers: list[Answer] = []
        self._ports = ports
        self._request = _request("GET", path, {})
        self._pause = pause
        self._rounds = rounds
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, int]] = [(0.0, number, 0) for number in range(clients)]
        self._asking: dict[socket, _Asking] = {}
        self._errands: list[Callable[[], None]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="crowd")
        self._broken: BaseException | None = None

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = self._rounds is None or kind is not None
        self._thread.join()
        self._selector.close()
        if self._broken is not None:
            raise self._broken

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let no request be in progress in the block: each visitor has an answer, and sends no new request."""
        quiet, go_on = threading.Event(), threading.Event()

        def errand() -> None:
            quiet.set()
            go_on.wait(TIMEOUT)

        self._errands.append(errand)
        try:
            assert quiet.wait(TIMEOUT + 5), "the crowd does not come to rest"
            yield
        finally:
            go_on.set()

    def errors(self) -> list[Answer]:
        """Return every answer so far that is not a complete 200."""
        return [answer for answer in self.answers if answer.status != 200]

    def first(self, wanted: Callable[[Answer], bool]) -> Answer | None:
        """Return the first answer so far that is wanted."""
        return next((answer for answer in tuple(self.answers) if answer.status == 200 and wanted(answer)), None)

    def answered_by(self, worker: int, verdict: str = "") -> Answer | None:
        """Return the first answer so far by that process, with that verdict if one is named."""
        return self.first(lambda answer: answer.worker == worker and verdict in ("", answer.verdict))

    def _run(self) -> None:
        try:
            while not self._is_over():
                self._turn()
        except BaseException as error:
            self._broken = error
        finally:
            for connection in self._asking:
                connection.close()

    def _is_over(self) -> bool:
        return not self._asking and (self._stopping or not self._due)

    def _turn(self) -> None:
        now = time.monotonic()
        if self._errands and not self._asking:
            self._errands.pop(0)()
        elif not self._errands and not self._stopping:
            while self._due and self._due[0][0] <= now:
                self._ask(*heapq.heappop(self._due)[1:])
        until_due = max(0.0, self._due[0][0] - now) if self._due and not self._errands else 0.05
        for key, _ in self._selector.select(min(0.05, until_due)) if self._asking else ():
            asking: _Asking = key.data
            try:
                finished = asking.go_on(self._selector, self._request)
            except OSError as error:
                self._finish(asking, _failed(asking.began, asking.port, error))
            else:
                if finished:
                    self._finish(asking, _read(asking.began, asking.port, b"".join(asking.chunks)))
        if not self._asking and until_due:
            time.sleep(min(0.005, until_due))
        for asking in [a for a in self._asking.values() if now - a.began > TIMEOUT]:
            self._finish(asking, _failed(asking.began, asking.port, TimeoutError("no answer")))

    def _ask(self, client: int, asked: int) -> None:
        connection = socket()
        connection.setblocking(False)
        port = self._ports[(client + asked) % len(self._ports)]
        asking = self._asking[connection] = _Asking(client, asked, connection, port, time.monotonic(), [])
        connection.connect_ex((HOST, port))  # an error is reported once the socket is ready
        self._selector.register(connection, selectors.EVENT_WRITE, asking)

    def _finish(self, asking: _Asking, answer: Answer) -> None:
        self._selector.unregister(asking.connection)
        asking.connection.close()
        del self._asking[asking.connection]
        self.answers.append(answer)
        if self._rounds is None or asking.asked + 1 < self._rounds:
            heapq.heappush(self._due, (answer.ended + self._pause, asking.client, asking.asked + 1))


@dataclass(eq=False)
class _Asking:
    client: int
    asked: int
    connection: socket
    port: int
    began: float
    chunks: list[bytes]
    sent: bool = False

    def go_on(self, selector: selectors.BaseSelector, request: bytes) -> bool:
        """Do the work that needs no waiting; return whether the answer is complete."""
        if not self.sent:
            if number := self.connection.getsockopt(SOL_SOCKET, SO_ERROR):
                raise OSError(number, "connecting failed")
            # A few hundred bytes always fit into the buffer of a new connection.
            self.sent = self.connection.send(request) == len(request)
            selector.modify(self.connection, selectors.EVENT_READ, self)
            return False
        if chunk := self.connection.recv(65536):
            self.chunks.append(chunk)
        return not chunk


def _request(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {SITE}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _read(began: float, port: int, data: bytes) -> Answer:
    ended = time.monotonic()
    head, separator, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if not separator or len(body) != int(headers.get("content-length", len(body))):
        return Answer(began, ended, port, 0, headers, body, f"cut off after {len(data)} bytes")
    return Answer(began, ended, port, int(status_line.split()[1]), headers, body)


def _failed(began: float, port: int, error: OSError) -> Answer:
    return Answer(began, time.monotonic(), port, 0, {}, b"", f"{type(error).__name__}: {error}")
