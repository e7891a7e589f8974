"""``wsgi_isr.gunicorn.Worker``: a gthread worker whose event loop answers prepared pages itself.

The loop reads without blocking. If it has one complete plain GET or HEAD, and the page is prepared, it sends the bytes.
Any other request goes unread to a thread, and is gunicorn's business from there on. The loop never asks the store: a
thread reads the epochs ahead (:mod:`.epoch_poll`).
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from functools import partial
from typing import Any

from gunicorn import config as settings
from gunicorn.workers import gthread

from .call_path import CallPath
from .epoch_poll import EpochPoll
from .held_connections import Connection, HeldConnections
from .loop_answers import Found, Incomplete, LoopAnswers, is_logged, log_access
from .request_head import is_parser_usable

#: Bytes of one read. The answers to that many bytes of pipelined requests keep other clients waiting.
RECEIVED = 16384
#: Bytes of a head that the loop waits for. A longer one is gunicorn's business.
LONGEST_HEAD = 32768
#: Seconds without any byte from a new client, beyond gunicorn's ``keepalive``; seconds for a whole head; seconds in
#: which a client must read something of an answer.
FIRST_BYTE, WHOLE_HEAD, READING = gthread.DEFAULT_WORKER_DATA_TIMEOUT, 30.0, 30.0
#: Seconds and bytes for which a connection is read after the last answer, so that the client gets all of it (RFC 9112,
#: 9.6).
LINGER, MOST_DRAINED = 2.0, 65536
#: Seconds between two looks at timeouts and at the environment, and between two signs of life to the master.
LOOK = 0.5

#: The option ``timeout`` of gunicorn, in seconds, up to which each sign of life counts.
_SHORT_TIMEOUT = 2
#: Errors of ``accept()`` that pass when descriptors or memory become free.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Hooks of the user's configuration that see each request.
_HOOKS = (settings.PreRequest, settings.PostRequest)


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """A worker of gunicorn for an app with an :class:`~wsgi_isr.ISR`.

    :ivar answered: the number of requests that the event loop has answered.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.answered = 0
        self._answers: LoopAnswers | None = None
        self._held = HeldConnections()
        self._poll: EpochPoll | None = None
        self._look_at = 0.0
        self._notify_at = 0.0
        self._accept_at = 0.0
        self._is_logged = self._is_debugged = False
        self._has_complained = self._has_complained_of_accept = False
        #: Seconds; gunicorn's configuration is slow to read.
        self._keepalive = float(self.cfg.keepalive)

    # The life of the worker ----------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the worker is asked to stop."""
        try:
            self._answers = self._begin()
        except (LookupError, RuntimeError) as reason:
            self.log.info("wsgi_isr: gunicorn's threads answer every request: %s", reason.args[0])
        except Exception:  # of another version of gunicorn, whose parts have other names
            self.log.exception("wsgi_isr: gunicorn's threads answer every request")
        if self._answers is not None:
            self.keepalived_conns = self._held
        try:
            super().run()
        finally:
            if self._poll is not None:
                self._poll.stop()
                self.log.debug("wsgi_isr: the event loop has answered %d requests", self.answered)

    def _begin(self) -> LoopAnswers:
        """Return the answers of the loop.

        :raises LookupError: the loop may not answer; the message names the reason.
        """
        cfg = self.cfg
        if not is_parser_usable(cfg):
            raise LookupError("gunicorn's C parser is not in use (pip install gunicorn_h1c)")
        if cfg.is_ssl or cfg.protocol != "http" or cfg.proxy_protocol != "off" or cfg.http2_cleartext != "off":
            raise LookupError("TLS, uWSGI, PROXY protocol or HTTP/2 is on")
        for hook in _HOOKS:
            if getattr(cfg, hook.name) is not hook.default:
                raise LookupError(f"the hook {hook.name} is set")
        path = CallPath(self.wsgi)
        if path.isr.configuration.settings.coherence == 0:
            raise LookupError("coherence is 0")
        answers = LoopAnswers(cfg, path)
        self._is_logged = is_logged(self.log)
        self._is_debugged = self.log.error_log.isEnabledFor(10)
        self._poll = EpochPoll(path.isr)
        self._poll.start()
        return answers

    def notify(self) -> None:
        """Tell the master that the worker is alive. The loop calls this far more often than is needed."""
        now = time.monotonic()
        # The wait for events may take a second more.
        if now >= self._notify_at or self.cfg.timeout <= _SHORT_TIMEOUT:
            self._notify_at = now + LOOK
            super().notify()

    # Connections ---------------------------------------------------------------------------------------

    def accept(self, listener: Any) -> None:
        """Accept a connection and hold it until it has a request."""
        if self._answers is None:
            super().accept(listener)
            return
        try:
            sock, client = listener.accept()
            connection = Connection(self.cfg, sock, client, listener.getsockname())
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._pause_accepting(error)
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        self._hold(connection, FIRST_BYTE + self._keepalive)

    def _pause_accepting(self, error: OSError) -> None:
        """Accept no connection for a moment: an error here would end the worker, and all its connections."""
        if not self._has_complained_of_accept:
            self._has_complained_of_accept = True
            self.log.error("wsgi_isr: no connection is accepted for %s s, again and again: %s", LOOK, error)
        self._accept_at = time.monotonic() + LOOK
        self.set_accept_enabled(False)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections, or accept none."""
        if not enabled or time.monotonic() >= self._accept_at:
            super().set_accept_enabled(enabled)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Take back a connection from a thread of gunicorn."""
        if self._answers is None:
            super().finish_request(conn, fs)
            return
        try:
            is_kept = not fs.cancelled() and fs.result()
            rest = conn.parser.unreader.take_buffered() if is_kept else b""
            conn.sock.setblocking(False)
        except Exception:
            self.nr_conns -= 1
            conn.close()
            return
        conn.is_new = False
        self._hold(conn, self._idle_time())
        if not is_kept:
            self._end(conn)
        elif rest:
            conn.received = rest
            self._answer_all(conn)

    def _idle_time(self) -> float:
        return self._keepalive if self.alive else min(self._keepalive, gthread.STOP_KEEPALIVE_LINGER)

    def _hold(self, connection: Connection, seconds: float) -> None:
        connection.timeout = time.monotonic() + seconds
        self._held.add(connection)
        self.poller.register(connection.sock, selectors.EVENT_READ, partial(self._on_readable, connection))

    def _hand_over(self, connection: Connection) -> None:
        """Give a connection, with its unanswered bytes, to a thread of gunicorn."""
        self.poller.unregister(connection.sock)
        self._held.remove(connection)
        connection.is_reading_head = False
        received, connection.received = connection.received, b""
        try:
            connection.init()
            connection.parser.unreader.unread(received)
        except OSError:  # the client is gone
            self.nr_conns -= 1
            connection.close()
            return
        self.enqueue_req(connection)

    def _drop(self, connection: Connection) -> None:
        """Close a connection at once."""
        try:
            self.poller.unregister(connection.sock)
        except (KeyError, ValueError, OSError):
            pass
        self._held.remove(connection)
        self.nr_conns -= 1
        connection.close()

    def _end(self, connection: Connection) -> None:
        """Close a connection after its last answer, once the client has read it (RFC 9112, 9.6)."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
            return
        connection.drained, connection.received = 0, b""
        connection.timeout = time.monotonic() + LINGER
        self._wait_for(connection, selectors.EVENT_READ, self._on_late_bytes)

    def _wait_for(self, connection: Connection, event: int, then: Any) -> None:
        self.poller.modify(connection.sock, event, partial(then, connection))

    def murder_keepalived(self, force: bool = False) -> None:
        """Close the connections whose time is over, or all of them."""
        if self._answers is None:
            super().murder_keepalived(force)
            return
        now = time.monotonic()
        if now < self._look_at and not force:
            return
        self._look_at = now + LOOK
        self._answers.look_at_environment()
        for connection in self._held:
            if force or now >= connection.timeout:
                self._drop(connection)

    def _cap_keepalive(self, deadline: float) -> None:
        """Close idle connections by ``deadline``. Answers on their way have all of ``graceful_timeout``."""
        for connection in self.keepalived_conns:
            if self._answers is None:
                connection.timeout = min(connection.timeout, deadline)
            elif connection.is_idle:
                # A client that has begun a request, or has just come, is on its way.
                is_expected = connection.is_new or connection.is_reading_head
                most = max(deadline, time.monotonic() + FIRST_BYTE) if is_expected else deadline
                connection.timeout = min(connection.timeout, most)

    # Events --------------------------------------------------------------------------------------------

    def _on_readable(self, connection: Connection, _: Any) -> None:
        try:
            data = connection.sock.recv(RECEIVED)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.received = connection.received + data if connection.received else data
        self._answer_all(connection)

    def _on_writable(self, connection: Connection, _: Any) -> None:
        if not self._send(connection, connection.unsent):
            return
        if connection.closes:
            self._end(connection)
            return
        connection.timeout = time.monotonic() + self._idle_time()
        self._wait_for(connection, selectors.EVENT_READ, self._on_readable)
        if connection.received:
            self._answer_all(connection)

    def _on_late_bytes(self, connection: Connection, _: Any) -> None:
        assert connection.drained is not None
        try:
            data = connection.sock.recv(4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        connection.drained += len(data)
        if not data or connection.drained >= MOST_DRAINED:
            self._drop(connection)

    # Answers -------------------------------------------------------------------------------------------

    def _answer_all(self, connection: Connection) -> None:
        """Answer the requests of a connection in their order, as far as they have come and are answered here."""
        while received := connection.received:
            try:
                found = self._find(received, connection)
            except Incomplete:
                self._wait_for_head(connection)
                return
            if found is None:
                self._hand_over(connection)
                return
            connection.is_reading_head = False
            connection.received = received[found[-1] :]
            if not self._answer(connection, found, received):
                return
        connection.timeout = time.monotonic() + self._keepalive

    def _find(self, received: bytes, connection: Connection) -> Found | None:
        assert self._answers is not None
        assert self._poll is not None
        self._poll.has_traffic = True
        try:
            found = self._answers.find(received, connection.client)
            return found if self.alive else None  # gunicorn closes the connections of a worker that stops
        except Incomplete:
            raise
        except Exception:
            # An error of the loop costs speed and never fails a request.
            if not self._has_complained:
                self._has_complained = True
                self.log.exception("wsgi_isr: the event loop leaves a request to a thread")
            return None

    def _wait_for_head(self, connection: Connection) -> None:
        """Wait for the rest of a head, for some time from its first byte on."""
        if len(connection.received) > LONGEST_HEAD:
            self._hand_over(connection)
        elif not connection.is_reading_head and self.alive:  # a worker that stops waits no longer than before
            connection.is_reading_head = True
            connection.timeout = time.monotonic() + WHOLE_HEAD

    def _answer(self, connection: Connection, found: Found, received: bytes) -> bool:
        """Send an answer; return whether the connection is ready for the next request."""
        assert self._answers is not None
        self.answered += 1
        found[0].hits.number += 1
        self.nr += 1
        connection.is_new = False
        if self.nr >= self.max_requests:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        is_full = len(self._held) > self.max_keepalived
        closes = connection.closes = found[3] or is_full or not self.alive or not self._keepalive
        began = time.monotonic() if self._is_logged else 0.0
        if self._is_debugged:
            self.log.debug("wsgi_isr: the event loop answers %r", received[: received.find(b"\r")])
        is_sent = self._send(connection, self._answers.parts(found, closes))
        if self._is_logged:
            try:
                log_access(self.log, self.cfg, found, received[: found[-1]], connection, began)
            except Exception:  # of a logger of the user's
                self.log.exception("wsgi_isr: a request was answered and not logged")
        if is_sent and closes:
            self._end(connection)
        return is_sent and not closes

    def _send(self, connection: Connection, parts: list[Any]) -> bool:
        """Send as much as the client takes; return whether that is all. The loop sends the rest later."""
        try:
            sent = connection.sock.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._drop(connection)
            return False
        if sent == sum(map(len, parts)):
            connection.unsent = []
            return True
        is_first = not connection.unsent
        connection.unsent = _rest_of(parts, sent)
        if sent or is_first:
            connection.timeout = time.monotonic() + READING
        if is_first:
            self._wait_for(connection, selectors.EVENT_WRITE, self._on_writable)
        return False


def _rest_of(parts: list[Any], sent: int) -> list[memoryview]:
    """Return the bytes after the first ``sent`` ones."""
    rest = []
    for part in parts:
        if sent < len(part):
            rest.append(memoryview(part)[sent:])
        sent = max(0, sent - len(part))
    return rest
