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
#: The largest job, in bytes: it has to fit into the buffer of a socket that nobody reads yet.
MAX_JOB = 64 * 1024
#: Seconds in which one warning will do, however often renderers come and go.
WARN_AGAIN = 60.0

#: Where the sockets of this instance's renderers are; ``None`` where there are none, and in each of them. Set before
#: processes are forked, and inherited.
folder: str | None = None

#: Called with the word for what came of a job, or with ``None`` where none came.
Done = Callable[[bytes | None], object]

_log = logging.getLogger("wsgi_isr")


class _Sent(NamedTuple):
    done: Done
    until: float


class Remote:
    """The renderers of this instance, as a serving process sees them.

    :param folder: where their sockets are. :param site: tells them whose job it is.
    """

    def __init__(self, folder: str, site: bytes) -> None:
        self._folder = folder
        self._site = site
        self._lock = threading.Lock()
        self._sent: dict[socket.socket, _Sent] = {}
        self._wake: socket.socket | None = None
        self._closed = False
        self._warned_at: float | None = None
        self._well = True

    def submit(self, job: bytes, first: bool, patience: float, done: Done) -> bool:
        """Whether a renderer takes the job.

        :param first: before those that nobody waits for. :param patience: how long its word may take, in seconds.
        :param done: is called with it, once, in another thread; it must not raise.
        """
        message = self._site + job
        if len(message) > MAX_JOB:
            return False
        try:
            connection = self._send(message, URGENT if first else LATER)
        except OSError as error:
            self._warn(error)
            return False
        with self._lock:
            if self._closed or not self._is_listening():
                connection.close()
                return False
            self._sent[connection] = _Sent(done, time.monotonic() + patience)
            self._well = True
            self._nudge()
        return True

    def close(self) -> None:
        """Nobody waits any more; what was taken is rendered all the same."""
        with self._lock:
            self._closed = True
            sent, self._sent = self._sent, {}
            self._nudge()
            wake, self._wake = self._wake, None
        if wake is not None:
            wake.close()
        for connection, (done, _) in sent.items():
            connection.close()
            done(None)

    def _send(self, message: bytes, name: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            connection.connect(f"{self._folder}/{name}")
            if connection.send(message) < len(message):
                raise BlockingIOError("no room for the whole job")
            connection.shutdown(socket.SHUT_WR)
        except BaseException:
            connection.close()
            raise
        return connection

    def _warn(self, error: OSError) -> None:
        """Once when they go, however many jobs that concerns."""
        now = time.monotonic()
        with self._lock:
            silent = not self._well or (self._warned_at is not None and now - self._warned_at < WARN_AGAIN)
            self._well = False
            if silent:
                return
            self._warned_at = now
        why = "are busy" if isinstance(error, BlockingIOError) else f"are gone ({error.strerror})"
        _log.warning("the renderer processes %s: pages are rendered in threads of this process meanwhile", why)

    # The thread that listens for words ---------------------------------------------------------------

    def _is_listening(self) -> bool:
        """Begin it with the first job."""
        if self._wake is None:
            try:
                wake, woken = socket.socketpair()
            except OSError:  # no descriptors are left
                return False
            wake.setblocking(False)
            woken.setblocking(False)
            try:
                threading.Thread(target=self._listen, args=(woken,), name="wsgi-isr-remote", daemon=True).start()
            except RuntimeError:  # nor threads
                wake.close()
                woken.close()
                return False
            self._wake = wake
        return True

    def _nudge(self) -> None:
        if self._wake is not None:
            try:
                self._wake.send(b"+")
            except BlockingIOError:  # it is behind, and will look at all there is
                pass

    def _listen(self, woken: socket.socket) -> None:
        """Wait for words until :meth:`close`."""
        with selectors.DefaultSelector() as selector, woken:
            selector.register(woken, selectors.EVENT_READ)
            known: dict[socket.socket, _Sent] = {}
            while True:
                soonest = min((sent.until for sent in known.values()), default=None)
                patience = None if soonest is None else max(0.0, soonest - time.monotonic())
                ready = {key.fileobj for key, _ in selector.select(patience)}
                if woken in ready:
                    woken.recv(4096)
                with self._lock:
                    if self._closed:
                        return
                    now = time.monotonic()
                    over = [one for one, sent in known.items() if one in ready or sent.until <= now]
                    for connection in over:
                        del self._sent[connection]
                    came = {one: sent for one, sent in self._sent.items() if one not in known}
                for connection in over:
                    selector.unregister(connection)
                    with connection:
                        word = _read(connection)
                    known.pop(connection).done(word)
                for connection in came:
                    selector.register(connection, selectors.EVENT_READ)
                known |= came


def _read(connection: socket.socket) -> bytes | None:
    try:
        return connection.recv(4096) or None
    except OSError:
        return None
