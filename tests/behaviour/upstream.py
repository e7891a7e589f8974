"""A real HTTP server on the loopback interface: its answers are set per path. It counts its requests."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.behaviour.origin import Gate


class Reply(NamedTuple):
    """An answer of the server. ``None`` as status closes the connection."""

    status: int | None = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Request(NamedTuple):
    """A request that the server got."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Script = Callable[[Request], Reply]


class Upstream:
    """The server. A path without a script answers 200 with ``<path> v<n>``, the n-th time it is asked."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.calls: Counter[str] = Counter()
        self.targets: Counter[str] = Counter()
        self.seen: dict[str, list[Request]] = defaultdict(list)
        self._gates: dict[str, Gate] = {}
        self._every_gate: list[Gate] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, {n.lower(): v for n, v in self.headers.items()}, body)
                status, content, headers = outer.reply(request)
                if status is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def on(self, path: str, reply: Reply | Script) -> None:
        """Answer ``path`` by ``reply`` from now on."""
        self.scripts[path] = (lambda request: reply) if isinstance(reply, Reply) else reply

    def mend(self, path: str) -> None:
        """Give ``path`` its plain answer again."""
        self.scripts.pop(path, None)

    def hold(self, path: str) -> Gate:
        """Return a gate that stops requests of ``path`` until it is opened."""
        gate = self._gates[path] = Gate()
        self._every_gate.append(gate)
        return gate

    def let_go(self, path: str) -> None:
        """Remove the gate of ``path`` for later requests. Requests before it still wait."""
        self._gates.pop(path, None)

    def reply(self, request: Request) -> Reply:
        path = request.target.partition("?")[0]
        with self._lock:
            self.calls[path] += 1
            self.targets[request.target] += 1
            self.seen[path].append(request)
            plain = Reply(body=f"{path} v{self.calls[path]}".encode())
            gate, script = self._gates.get(path), self.scripts.get(path)
        if gate is not None:
            gate.pass_through()
        return script(request) if script is not None else plain

    def open_all(self) -> None:
        for gate in self._every_gate:
            gate.open()

    def close(self) -> None:
        self.open_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
