"""A TCP proxy on loopback that applies scripted faults to connections, at a chosen byte.

``python -m cluster.parts.proxy PORT BEHIND CONTROL`` runs one for :mod:`.link`. ``CONTROL`` is the number of the socket
that brings orders for all connections.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field

from .ports import HOST


@dataclass
class Fault:
    """A fault for the next request that begins with ``request``, or with one of several; applied once.

    :param forward: how many bytes of the request reach the node before the connection is cut; ``None`` for all.
    :param answer: how many bytes of the answer come back before the cut; ``None`` for all, and no cut.
        The node's answer is awaited even for 0, so the node has carried out the command by then.
    :param held: the answer is held back until this event is set.
    """

    request: bytes | tuple[bytes, ...]
    forward: int | None = None
    answer: int | None = None
    held: threading.Event | None = None
    seen: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """A proxy in front of the node at ``port``; :attr:`requests` has the forwarded bytes, one piece for each read.

    :param tls: accept connections over TLS; the node behind is reached without TLS.
    :param at: the port to listen on; 0 for a free one.
    :param remember: keep :attr:`requests`.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, at: int = 0, remember: bool = True) -> None:
        self._behind = port
        self._tls = tls
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self._remember = remember
        self.requests: list[bytes] = []
        #: Longest random delay of an answer, in seconds.
        self.jitter = 0.0
        #: Seconds of pause after each large piece of an answer.
        self.pause_between_pieces = 0.0
        #: While this event is not set, no byte passes in either direction.
        self.flowing = threading.Event()
        self.flowing.set()
        self.port = at
        self.listen()

    @property
    def name(self) -> str:
        return f"{HOST}:{self.port}"

    def next(
        self,
        request: bytes | tuple[bytes, ...],
        forward: int | None = None,
        answer: int | None = None,
        held: threading.Event | None = None,
    ) -> Fault:
        fault = Fault(request, forward, answer, held)
        with self._lock:
            self._faults.append(fault)
        return fault

    def listen(self) -> None:
        """Accept connections, on the previous port if there is one."""
        self._listener = socket.create_server((HOST, self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), name="proxy", daemon=True).start()

    def refuse(self) -> None:
        """Accept no more connections, and cut the open ones."""
        # Wakes up the thread in accept(), which a mere close would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut all open connections; new ones are accepted."""
        with self._lock:
            pairs = list(self._open)
        # Cut the client's side first: it must be cut when this returns. Cutting the other side wakes up the thread
        # that serves both.
        for each in [client for client, _ in pairs] + [node for _, node in pairs]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def commands(self, name: bytes) -> list[bytes]:
        """Return the requests that begin with a word."""
        return [request for request in self.requests if request.split(b" ", 1)[0].strip() == name]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.callback(client.close)
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
                stack.callback(client.close)
            node = stack.enter_context(socket.create_connection((HOST, self._behind), 5))
            with self._lock:
                self._open.add((client, node))
            stack.callback(self._forget, client, node)
            fault: Fault | None = None
            while True:
                pending = isinstance(client, ssl.SSLSocket) and client.pending()
                ready = [client] if pending else select.select([client, node], [], [])[0]
                if client in ready:
                    request = client.recv(1 << 16)
                    if not request:
                        return
                    self.flowing.wait()
                    if self._remember:
                        self.requests.append(request)
                    fault = self._fault_for(request)
                    if fault is not None and fault.forward is not None:
                        node.sendall(request[: fault.forward])
                        return
                    node.sendall(request)
                if node in ready:
                    answer = node.recv(1 << 16)
                    if not answer:
                        return
                    self.flowing.wait()
                    if fault is not None:
                        fault.seen.set()
                        if fault.held is not None:
                            fault.held.wait(30)
                        client.sendall(answer[: fault.answer])
                        if fault.answer is not None:
                            return
                        fault = None
                    else:
                        time.sleep(random.uniform(0, self.jitter))
                        client.sendall(answer)
                        time.sleep(self.pause_between_pieces * (len(answer) > 10_000))

    def _fault_for(self, request: bytes) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if request.startswith(fault.request):
                    self._faults.remove(fault)
                    return fault
        return None

    def _forget(self, client: socket.socket, node: socket.socket) -> None:
        with self._lock:
            self._open.discard((client, node))


def main(port: int, behind: int, control: int) -> None:
    """Run the proxy until the other end of ``control`` is closed."""
    proxy = Proxy(behind, at=port, remember=False)
    listens = True
    with socket.socket(fileno=control) as orders, orders.makefile("rb") as lines:
        for line in lines:
            what, _, argument = line.decode().strip().partition(" ")
            if what == "cut" and listens:
                proxy.refuse()
                listens = False
            elif what == "swallow":
                proxy.flowing.clear()
            elif what == "slow":
                proxy.jitter = float(argument)
            elif what == "heal":
                proxy.jitter = 0.0
                proxy.flowing.set()
                if not listens:
                    proxy.listen()
                    listens = True
            orders.sendall(b"done\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
