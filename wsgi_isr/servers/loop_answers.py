"""The answers that an event loop gives by itself: prepared pages for plain requests."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import create

from .answer_bytes import AnswerBytes, Wire
from .call_path import PROXY_FIELDS, CallPath
from .request_head import HeadReader, Incomplete

__all__ = ["Found", "Incomplete", "LoopAnswers"]


#: An answer, before its connection is looked at, as a plain tuple (see :data:`.request_head.Head`):
#:
#: - the fields and the body;
#: - whether the method is HEAD;
#: - the minor HTTP version;
#: - whether the client expects the connection to be closed;
#: - the number of bytes of the request.
Found = tuple[Wire, bool, int, bool, int]


class LoopAnswers:
    """Find and write the answers of a worker.

    :param cfg: gunicorn's configuration.
    :param path: the way to the ISR.
    """

    def __init__(self, cfg: Any, path: CallPath) -> None:
        self._cfg = cfg
        self._path = path
        self._heads = HeadReader(cfg, PROXY_FIELDS if path.is_fixed else frozenset())
        self._bytes = AnswerBytes(cfg)

    def find(self, data: bytes, peer: Any) -> Found | None:
        """Return the answer to the request at the begin of ``data``; ``None`` if the request is for gunicorn.

        :param peer: the client's address, as gunicorn has it.
        :raises Incomplete: ``data`` is a part of a head.
        """
        path = self._path
        head = self._heads.read(data, peer)
        if head is None or not path.still_leads():
            return None
        environ, is_head, minor, closes, length = head
        if path.is_fixed:
            path.fix(environ)
        answer = path.isr._prepared(environ)
        if answer is None:
            return None
        wire = self._bytes.wire(answer, environ.get("HTTP_ACCEPT_ENCODING"), environ.get("HTTP_IF_NONE_MATCH"))
        return None if wire is None else (wire, is_head, minor, closes, length)

    def parts(self, found: Found, closes: bool) -> list[bytes]:
        """Return the bytes of an answer.

        :param closes: the connection is closed afterwards.
        """
        (status, fields, body, _, _), is_head, minor, _, _ = found
        begin = self._bytes.begin(status, minor, closes)
        return [begin, fields] if is_head or not body else [begin, fields, body]

    def look_at_environment(self) -> None:
        """Look at the variables that gunicorn reads for each request."""
        self._heads.look_at_environment()


def is_logged(log: Any) -> bool:
    """Return whether gunicorn's logger does something for each request."""
    return bool(log.access_log_enabled) or type(log).access is not Logger.access


def log_access(log: Any, cfg: Any, found: Found, head: bytes, connection: Any, began: float) -> None:
    """Log an answer with the objects that gunicorn's own way makes of the request.

    :param head: the bytes of the request.
    :param began: monotonic seconds, before the answer was found.
    """
    (status, _, body, headers, _), is_head, *_ = found
    request = Request(cfg, IterUnreader([head]), connection.client)
    response, environ = create(request, connection.sock, connection.client, connection.server, cfg)
    environ["wsgi.multithread"] = True
    response.start_response(status, headers.copy())
    response.headers_sent = True
    response.sent = 0 if is_head else len(body)
    log.access(response, request, environ, timedelta(seconds=time.monotonic() - began))
