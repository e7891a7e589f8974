"""A scripted app: its answers, gates and failures are set per path. It counts its renders."""

from __future__ import annotations

import io
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
Handler = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

#: Seconds after which a wait of a test gives up: reached only where a test fails.
DEADLINE = 20.0

HTML = ("Content-Type", "text/html; charset=utf-8")


class Boom(Exception):
    """The error of a broken page of the origin."""


class Gate:
    """Renders stop here until it is opened; ``entered`` is set when the first one stands before it."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def wait_until_entered(self) -> None:
        assert self.entered.wait(DEADLINE), "no render came to the gate"

    def pass_through(self) -> None:
        self.entered.set()
        assert self._open.wait(DEADLINE), "nobody opened the gate"


class Body:
    """An iterable body with everything that can go wrong: parts that raise, a counted close()."""

    def __init__(self, *parts: bytes | BaseException | Callable[[], bytes]) -> None:
        self._parts = iter(parts)
        self.given = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part = next(self._parts)
        if isinstance(part, BaseException):
            raise part
        self.given += 1
        return part() if callable(part) else part

    def close(self) -> None:
        self.closed += 1


def answer(
    body: bytes | Iterable[bytes] | Callable[[Environ], bytes],
    *headers: tuple[str, str],
    status: str = "200 OK",
    content_type: bool = True,
) -> Handler:
    """Return a handler with the same answer each time, or with the body that ``body(environ)`` returns."""

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        made = body(environ) if callable(body) else body
        start_response(status, [*([HTML] if content_type else []), *headers])
        return [made] if isinstance(made, bytes) else made

    return handler


def failing(error: BaseException) -> Handler:
    """Return a handler that raises before it starts a response."""

    def handler(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise error

    return handler


class Origin:
    """The app. A path without a script answers 200 with ``<path> v<n>``, the n-th time it is asked."""

    def __init__(self) -> None:
        self.scripts: dict[str, Handler] = {}
        self.calls: Counter[str] = Counter()
        self.seen: dict[str, list[Environ]] = defaultdict(list)
        self._gates: dict[str, Gate] = {}
        self._every_gate: list[Gate] = []
        self._lock = threading.Lock()

    def on(self, path: str, handler: Handler) -> None:
        """Answer ``path`` by ``handler`` from now on."""
        self.scripts[path] = handler

    def mend(self, path: str) -> None:
        """Give ``path`` its plain answer again."""
        self.scripts.pop(path, None)

    def hold(self, path: str) -> Gate:
        """Return a gate that stops renders of ``path`` until it is opened."""
        gate = self._gates[path] = Gate()
        self._every_gate.append(gate)
        return gate

    def let_go(self, path: str) -> None:
        """Remove the gate of ``path`` for later renders. Renders before it still wait."""
        self._gates.pop(path, None)

    def open_all(self) -> None:
        for gate in self._every_gate:
            gate.open()

    def last(self, path: str = "/") -> Environ:
        """Return a copy of the environ at the beginning of the latest call."""
        return self.seen[path][-1]

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        with self._lock:
            self.calls[path] += 1
            version = self.calls[path]
            self.seen[path].append({**environ, "the very same": environ})
            gate = self._gates.get(path)
            handler = self.scripts.get(path)
        if gate is not None:
            gate.pass_through()
        if handler is None:
            handler = answer(f"{path} v{version}".encode("latin-1"))
        return handler(environ, start_response)


def body_of(environ: Environ) -> bytes:
    """Return the part of the request's body that the app can read."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    source: io.BytesIO = environ["wsgi.input"]
    return source.read(length)
