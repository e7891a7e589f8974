"""A TCP proxy on loopback that does to a connection what a script says, at a chosen byte.

``python -m cluster.parts.proxy PORT BEHIND CONTROL`` runs one for :mod:`.link`. Orders for all connections come by the
socket with the number ``CONTROL``.
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
    """What happens to the next request that begins with ``request``, once.

    :param forward: how many bytes of it reach the node before the connection is cut; ``None`` for all.
    :param answer: how many bytes of the answer come back before it is cut; ``None`` for all, and no cut.
        Even for 0 the node's answer is awaited, so the command was carried out by then.
    :param held: the answer is held back until this is set.
    """

    request: bytes
    forward: int | None = None
    answer: int | None = None
    held: threading.Event | None = None
    seen: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """In front of the node at ``port``; :attr:`requests` has what went through, a piece for each read.

    :param tls: take connections over TLS; the node behind is talked to without.
    :param at: where to listen; 0 for a free port. :param remember: keep :attr:`requests`.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, at: int = 0, remember: bool = True) -> None:
        self._behind = port
        self._tls = tls
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self._remember = remember
        self.requests: list[bytes] = []
        #: Seconds that answers are held back at most, at random.
        self.jitter = 0.0
        #: Seconds after each piece of an answer that is no small one.
        self.pause_between_pieces = 0.0
        #: While this is not set, nothing goes through, in either direction.
        self.flowing = threading.Event()
        self.flowing.set()
        self.port = at
        self.listen()

    @property
    def name(self) -> str:
        return f"{HOST}:{self.port}"

    def next(
        self, request: bytes, forward: int | None = None, answer: int | None = None, held: threading.Event | None = None
    ) -> Fault:
        fault = Fault(request, forward, answer, held)
        with self._lock:
            self._faults.append(fault)
        return fault

    def listen(self) -> None:
        """Take connections, on the port of before if there is one."""
        self._listener = socket.create_server((HOST, self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), name="proxy", daemon=True).start()

    def refuse(self) -> None:
        """Take no more, and cut those there are."""
        # Wakes up the thread in accept(), which a mere close would not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections; new ones are taken."""
        with self._lock:
            pairs = list(self._open)
        # The client's side first: what happens to it must have happened when this returns, and the other
        # side wakes up the thread that serves both.
        for each in [client for client, _ in pairs] + [node for _, node in pairs]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def commands(self, name: bytes) -> list[bytes]:
        """The requests that begin with a word."""
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
    """Until whoever holds the other end of ``control`` is gone."""
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
