"""The purge APIs of CDNs on loopback: requests, limits and errors as their documentation describes them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

TOKEN, ZONE = "token-of-the-tests", "zone1"


class Purge(NamedTuple):
    """A purge that the API has acknowledged."""

    tags: tuple[str, ...]
    is_soft: bool


class Answer(NamedTuple):
    """An answer of the API: to a request out of order, or one that a test has scripted."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def rate_limited(seconds: int) -> Answer:
    """Return the answer of an API whose limit is reached."""
    return Answer(429, b'{"success": false}', (("Retry-After", str(seconds)),))


class FakeCdn:
    """The API of one CDN: ``with FakeCdn("cloudflare") as cdn``.

    :ivar purges: the acknowledged purges.
    :ivar requests: the number of requests, refused ones included.
    :ivar scripted: answers for the next requests, in place of those of the API.
    """

    def __init__(self, kind: str, token: str = TOKEN) -> None:
        self._answer = getattr(self, f"_{kind}")
        self.kind = kind
        self.token = token
        self.purges: list[Purge] = []
        self.requests = 0
        self.headers: list[dict[str, str]] = []
        self.scripted: list[Answer] = []
        #: While it is not set, requests hang.
        self.answers = threading.Event()
        self.answers.set()
        #: Set when a request has arrived.
        self.arrived = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                fake._handle(self)

            do_POST = do_PURGE = do_GET = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def tags(self) -> list[str]:
        """Return all purged tags, in order."""
        return [tag for purge in self.purges for tag in purge.tags]

    def options(self) -> dict[str, Any]:
        """Return the options of an app behind it."""
        given: dict[str, Any] = {"cdn": self.kind, "cdn_purge_url": [self.url]}
        if self.token:
            given["cdn_token"] = self.token
        if self.kind in ("cloudflare", "fastly", "bunny"):
            given["cdn_zone"] = ZONE
        return given

    def __enter__(self) -> FakeCdn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests += 1
        self.headers.append(dict(request.headers.items()))
        scripted = self.scripted.pop(0) if self.scripted else None
        self.arrived.set()
        self.answers.wait(20)
        answer = scripted or self._answer(request, body)
        try:
            request.send_response(answer.status)
            for name, value in (*answer.headers, ("Content-Length", str(len(answer.body)))):
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(answer.body)
        except OSError:  # the client has given up
            pass

    def _done(self, tags: Any, is_soft: bool, limit: int, body: bytes) -> Answer:
        if not tags or len(tags) > limit:
            return Answer(400, b"too many tags")
        self.purges.append(Purge(tuple(tags), is_soft))
        return Answer(200, body)

    def _is_bearer(self, request: BaseHTTPRequestHandler) -> bool:
        return not self.token or request.headers.get("Authorization") == f"Bearer {self.token}"

    # The APIs ------------------------------------------------------------------------------------------

    def _cloudflare(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        if not self._is_bearer(request):
            return Answer(403, b'{"success": false, "errors": [{"code": 10000, "message": "Authentication error"}]}')
        if (request.command, request.path) != ("POST", f"/zones/{ZONE}/purge_cache"):
            return Answer(404, b'{"success": false}')
        return self._done(json.loads(body)["tags"], False, 100, b'{"success": true, "errors": [], "result": {}}')

    def _fastly(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        if request.headers.get("Fastly-Key") != self.token:
            return Answer(401, b'{"msg": "Provided credentials are missing or invalid"}')
        if (request.command, request.path) != ("POST", f"/service/{ZONE}/purge"):
            return Answer(404)
        soft = request.headers.get("Fastly-Soft-Purge") == "1"
        return self._done(json.loads(body)["surrogate_keys"], soft, 256, b"{}")

    def _bunny(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        if request.headers.get("AccessKey") != self.token:
            return Answer(401)
        if (request.command, request.path) != ("POST", f"/pullzone/{ZONE}/purgeCache"):
            return Answer(404)
        return self._done([json.loads(body)["CacheTag"]], False, 1, b"")._replace(status=204)

    def _varnish(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        if not self._is_bearer(request):
            return Answer(403)
        soft = request.headers.get("xkey-softpurge")
        tags = (soft or request.headers.get("xkey-purge") or "").split()
        return self._done(tags, soft is not None, 500, b"purged 1") if request.command == "PURGE" else Answer(405)

    def _generic(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        if not self._is_bearer(request):
            return Answer(401)
        asked = json.loads(body)
        return self._done(asked["tags"], asked["mode"] == "soft", 100, b"")
