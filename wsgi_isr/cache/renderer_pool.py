"""Hand background renders to renderer processes, over a Unix socket.

A job is one connection: the task goes out, and one reply comes back after the render. The kernel's backlog is the
queue, so that no broker is needed. Where the backlog is full, or no renderer listens or accepts the job in time, this
process renders. The connection of a renderer that dies is closed.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time

from .executor import Job, OnDone, Reply, Status
from .task import pack

#: The first bytes that come back: a renderer has accepted the job.
ACCEPTED = b"+"

#: The names of the two sockets in their folder. Jobs that a client waits for are urgent, and go first.
URGENT, LATER = "urgent", "later"

#: The largest job in bytes: it has to fit into the buffer of a socket that no process reads yet.
MAX_JOB = 64 * 1024
#: Seconds within which a renderer has to accept a job: an urgent one, and any other.
ACCEPT_IN = (0.5, 2.0)
#: Seconds between two warnings, however often renderers come and go.
WARN_AGAIN = 60.0

#: The folder of the sockets of this instance's renderers; ``None`` without renderers, and in each renderer. A master
#: sets the folder before processes are forked.
folder: str | None = None

_log = logging.getLogger("wsgi_isr")


def encode(reply: Reply) -> bytes:
    """Return a reply as bytes: its status, a colon, and the digest or the reason."""
    return b"%b:%b%b" % (reply.status.value.encode(), reply.digest, reply.reason.encode())


def decode(data: bytes) -> Reply:
    """Return the reply in bytes from :func:`encode`. Any other bytes count as ``BUSY``: the next request asks again."""
    name, _, rest = data.partition(b":")
    try:
        status = Status(name.decode())
        if status is Status.FAILED:
            return Reply(status, reason=rest.decode())
    except ValueError:
        return Reply(Status.BUSY)
    return Reply(status, rest)


class _Sent:
    """A job that was sent.

    :param accept_in: seconds within which a renderer has to accept it.
    :param reply_in: seconds within which the reply has to come.
    """

    def __init__(self, on_done: OnDone, accept_in: float, reply_in: float) -> None:
        now = time.monotonic()
        self.on_done = on_done
        self.until = now + reply_in
        self.accepted = False
        self._accept_by = now + accept_in

    @property
    def due(self) -> float:
        """Return the monotonic time by which the next bytes have to come."""
        return self.until if self.accepted else min(self._accept_by, self.until)

    def read(self, connection: socket.socket) -> tuple[bool, Reply | None]:
        """Read from a connection that is readable or due; return whether the job is over, and its reply."""
        try:
            data: bytes | None = connection.recv(4096)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data is None:  # too late: an accepted job has no reply yet, any other is rendered here
            return True, None if self.accepted else Reply(Status.UNKNOWN)
        if not self.accepted and data.startswith(ACCEPTED):
            self.accepted, data = True, data.removeprefix(ACCEPTED)
            if not data:
                return False, None
        if not data:
            return True, Reply(Status.DIED if self.accepted else Status.UNKNOWN)
        return True, decode(data)


class Remote:
    """An executor of the renderers of this instance.

    :param folder: the folder of their sockets.
    :param app_digest: the start of each message: it tells a renderer which app's job it is.
    """

    def __init__(self, folder: str, app_digest: bytes) -> None:
        self._folder = folder
        self._app_digest = app_digest
        self._lock = threading.Lock()
        self._sent: dict[socket.socket, _Sent] = {}
        self._wake: socket.socket | None = None
        self._closed = False
        self._warned_at: float | None = None
        self._is_reachable = True

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        """Send a job, and return whether it was sent; see :meth:`.Executor.submit`.

        The reply has to come within the task's ``timeout`` and ``wait``. ``on_done`` is called in another thread.
        """
        message = self._app_digest + pack(job.task, job.attempt)
        if len(message) > MAX_JOB:
            return False
        try:
            connection = self._send(message, URGENT if urgent else LATER)
        except OSError as error:
            self._warn(error)
            return False
        limits = job.task.limits
        with self._lock:
            if self._closed or not self._is_listening():
                connection.close()
                return False
            accept_in = ACCEPT_IN[0] if urgent else ACCEPT_IN[1]
            self._sent[connection] = _Sent(on_done, accept_in, limits.timeout + limits.wait)
            self._is_reachable = True
            self._nudge()
        job.flight.send()
        return True

    def close(self) -> None:
        """Stop waiting for replies. Accepted jobs are rendered all the same."""
        with self._lock:
            self._closed = True
            sent, self._sent = self._sent, {}
            self._nudge()
            wake, self._wake = self._wake, None
        if wake is not None:
            wake.close()
        for connection, job in sent.items():
            connection.close()
            job.on_done(None)

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
        """Warn once when the renderers go away, however many jobs fail."""
        now = time.monotonic()
        with self._lock:
            silent = not self._is_reachable or (self._warned_at is not None and now - self._warned_at < WARN_AGAIN)
            self._is_reachable = False
            if silent:
                return
            self._warned_at = now
        why = "are busy" if isinstance(error, BlockingIOError) else f"are gone ({error.strerror})"
        _log.warning("the renderer processes %s: pages are rendered in threads of this process meanwhile", why)

    # The thread that listens for replies -------------------------------------------------------------

    def _is_listening(self) -> bool:
        """Return whether a thread listens. The first job starts it."""
        if self._wake is None:
            try:
                wake, woken = socket.socketpair()
            except OSError:  # no descriptors are left
                return False
            wake.setblocking(False)
            woken.setblocking(False)
            try:
                selector = selectors.DefaultSelector()
                selector.register(woken, selectors.EVENT_READ)
                parts = woken, selector
                threading.Thread(target=self._listen, args=parts, name="wsgi-isr-remote", daemon=True).start()
            except (OSError, RuntimeError):  # no descriptors or no threads are left
                wake.close()
                woken.close()
                return False
            self._wake = wake
        return True

    def _nudge(self) -> None:
        if self._wake is not None:
            try:
                self._wake.send(b"+")
            except OSError:  # the thread is behind, and will look at all jobs; or it has ended, and another will start
                pass

    def _listen(self, woken: socket.socket, selector: selectors.BaseSelector) -> None:
        """Wait for replies until :meth:`close`.

        If an error ends the thread earlier, all waiting jobs get ``None``. The next job starts a new thread.
        """
        try:
            with selector, woken:
                self._read_replies(woken, selector)
        except Exception:
            _log.exception("the thread that reads the replies of the renderer processes has ended")
        finally:
            with self._lock:
                closed, wake = self._closed, self._wake
                sent, self._sent = ({}, self._sent) if closed else (self._sent, {})
                if not closed:
                    self._wake = None
            if not closed and wake is not None:
                wake.close()
            for connection, job in sent.items():
                connection.close()
                job.on_done(None)

    def _read_replies(self, woken: socket.socket, selector: selectors.BaseSelector) -> None:
        known: dict[socket.socket, _Sent] = {}
        while True:
            soonest = min((sent.due for sent in known.values()), default=None)
            timeout = None if soonest is None else max(0.0, soonest - time.monotonic())
            ready = {key.fileobj for key, _ in selector.select(timeout)}
            if woken in ready:
                woken.recv(4096)
            with self._lock:
                if self._closed:
                    return
                came = {one: sent for one, sent in self._sent.items() if one not in known}
            now = time.monotonic()
            for connection in [one for one, sent in known.items() if one in ready or sent.due <= now]:
                over, reply = known[connection].read(connection)
                if not over:
                    continue
                with self._lock:
                    if self._sent.pop(connection, None) is None:  # close() has ended the job
                        return
                selector.unregister(connection)
                connection.close()
                known.pop(connection).on_done(reply)
            for connection in came:
                selector.register(connection, selectors.EVENT_READ)
            known |= came
