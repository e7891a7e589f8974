"""Handing background renders to processes beside this one, over a Unix socket.

A job is one connection: what is to be rendered goes out, one word comes back when it was. The kernel's backlog is the
queue, so that there is nobody in between: where it is full, or nobody listens, the job is refused at once and rendered
here. A renderer that dies closes its connection; its lease lapses, and somebody else renders.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

#: Words that come back. The first is followed by a digest of what was stored, the last by the reason.
MADE, FOUND, BUSY, RESTING, UNKNOWN, FAILED = b"made:", b"found", b"busy", b"resting", b"unknown", b"failed:"

#: The names of the two sockets in their folder: what a visitor waits for goes first.
URGENT, LATER = "urgent", "later"

#: How many bytes of a job say whose it is.
SITE_BYTES = 16

#: Where the sockets of this instance's renderers are; ``None`` where there are none, and in each of them. Set before
#: processes are forked, and inherited.
folder: str | None = None

_log = logging.getLogger("wsgi_isr")


class _Sent(NamedTuple):
    job: bytes
    until: float


class Remote:
    """The renderers of this instance, as a serving process sees them.

    :param folder: where their sockets are. :param site: tells them whose job it is.
    :param done: called with each job that was taken and what came back, ``None`` where nothing did.
    """

    def __init__(self, folder: str, site: bytes, done: Callable[[bytes, bytes | None], None]) -> None:
        self._folder = folder
        self._site = site
        self._done = done
        self._lock = threading.Lock()
        self._sent: dict[socket.socket, _Sent] = {}
        self._wake: socket.socket | None = None
        self._warned = False

    def submit(self, job: bytes, first: bool, patience: float) -> bool:
        """Whether a renderer takes the job; ``patience`` is how long its word may take, in seconds."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            connection.connect(f"{self._folder}/{URGENT if first else LATER}")
            message = self._site + job
            if connection.send(message) < len(message):
                raise BlockingIOError("the job is too large")
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            connection.close()
            if not self._warned:
                self._warned = True
                why = "are busy" if isinstance(error, BlockingIOError) else f"are gone ({error.strerror})"
                _log.warning("the renderer processes %s: pages are rendered in threads of this process", why)
            return False
        self._warned = False
        with self._lock:
            if self._wake is None:
                self._begin()
            self._sent[connection] = _Sent(job, time.monotonic() + patience)
            assert self._wake is not None
            self._wake.send(b"+")
        return True

    def close(self) -> None:
        """Nobody waits any more; what was taken is rendered all the same."""
        with self._lock:
            wake, self._wake = self._wake, None
            sent, self._sent = self._sent, {}
            if wake is not None:
                wake.close()
        for connection, (job, _) in sent.items():
            connection.close()
            self._done(job, None)

    def _begin(self) -> None:
        self._wake, woken = socket.socketpair()
        threading.Thread(target=self._listen, args=(woken,), name="wsgi-isr-remote", daemon=True).start()

    def _listen(self, woken: socket.socket) -> None:
        """Wait for words until :meth:`close`."""
        with selectors.DefaultSelector() as selector, woken:
            selector.register(woken, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(1.0)]
                if woken in ready and not woken.recv(4096):
                    return
                with self._lock:
                    if self._wake is None:
                        return
                    for connection in self._sent:
                        if connection not in selector.get_map():
                            selector.register(connection, selectors.EVENT_READ)
                    now = time.monotonic()
                    late = [connection for connection, sent in self._sent.items() if sent.until < now]
                    over = [(one, self._sent.pop(one)) for one in list(self._sent) if one in ready or one in late]
                for connection, sent in over:
                    selector.unregister(connection)
                    with connection:
                        word = _read(connection)
                    self._done(sent.job, word)


def _read(connection: socket.socket) -> bytes | None:
    try:
        return connection.recv(4096) or None
    except OSError:
        return None
