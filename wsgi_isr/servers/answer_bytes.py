"""The bytes of a prepared response, made by gunicorn's own response object."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from gunicorn.http.wsgi import Response

from ..pages.respond import MAX_WIRES, NOT_MODIFIED, Hits, PreparedResponse, Variant


class Wire(NamedTuple):
    """The fields of a response as bytes, with the empty line, and its body.

    :param headers: what the fields were made of.
    :param hits: counts the requests that are answered with it.
    """

    status: str
    fields: bytes
    body: bytes
    headers: list[tuple[str, str]]
    hits: Hits


class _Request:
    """The part of a request that gunicorn's response looks at."""

    def __init__(self, method: str, minor: int) -> None:
        self.method = method
        self.version = (1, minor)

    def should_close(self) -> bool:
        return False


class AnswerBytes:
    """Make the bytes for a worker.

    :param cfg: gunicorn's configuration.
    """

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        self._second = 0
        #: Status line, ``Server``, ``Date`` and ``Connection`` of this second.
        self._begins: dict[tuple[str, int, bool], bytes] = {}

    def wire(self, answer: PreparedResponse, accepted: str | None, condition: str | None) -> Wire | None:
        """Return the fields and the body for a client; ``None`` if the app has to look at the request.

        :param accepted: the client's ``Accept-Encoding``.
        :param condition: the client's ``If-None-Match``.
        """
        # A tuple never equals a value of a field, so no client reaches the key of a 304 by its fields.
        key = accepted if condition is None else (accepted,)
        wire: Wire | None = answer.wires.get(key)
        if wire is not None and condition is None:
            return wire
        variant: Variant = answer.variants.get(accepted) or answer.variant(accepted)
        if condition is not None and condition != variant.etag:
            return None  # another form of the condition
        return wire or self._remember(answer, accepted, key, variant, condition is not None)

    def _remember(
        self, answer: PreparedResponse, accepted: str | None, key: Any, variant: Variant, is_unchanged: bool
    ) -> Wire | None:
        """Make the bytes of a variant, unless another ``Accept-Encoding`` has led to it; keep a few of them."""
        own_key = (id(variant), is_unchanged)
        wire: Wire | None = answer.wires.get(own_key)
        if wire is None:
            if is_unchanged:
                wire = self._make(answer.hits, NOT_MODIFIED, variant.unchanged, b"")
            else:
                wire = self._make(answer.hits, answer.status, variant.headers, variant.body)
            if wire is None or len({id(each) for each in answer.wires.values()}) >= MAX_WIRES:
                return wire
            answer.wires[own_key] = wire
        if accepted in answer.variants:  # bounded, unlike the values that clients send
            answer.wires[key] = wire
        return wire

    def begin(self, status: str, minor: int, closes: bool) -> bytes:
        """Return the begin of a response: the status line, and the fields that gunicorn adds."""
        now = time.time()
        if not self._second <= now < self._second + 1:
            self._second = int(now)
            self._begins.clear()
        key = (status, minor, closes)
        begin = self._begins.get(key)
        if begin is None:
            response = Response(_Request("GET", minor), None, self._cfg)
            response.start_response(status, [("Content-Length", "0")])
            if closes:
                response.force_close()
            begin = self._begins[key] = "".join(response.default_headers()).encode("latin-1")
        return begin

    def _make(self, hits: Hits, status: str, headers: list[tuple[str, str]], body: bytes) -> Wire | None:
        response = Response(_Request("GET", 1), None, self._cfg)
        response.start_response(status, headers.copy())
        if response.chunked or response.should_close() or response.upgrade:
            return None
        if response._omits_body:
            body = b""
        elif response.response_length != len(body):
            return None
        fields = "".join([f"{name}: {value}\r\n" for name, value in response.headers])
        return Wire(status, f"{fields}\r\n".encode("latin-1"), body, headers, hits)
