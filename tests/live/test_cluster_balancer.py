"""nginx with the configuration of :mod:`cluster.parts.nginx`, in front of an instance that closes connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.load.request import fetch
from cluster.parts.nginx import Balancer


class Instance:
    """An instance whose worker dies after it has read a request, for the first requests; it answers the later ones."""

    def __init__(self, listener: socket.socket, dies: int) -> None:
        self._listener = listener
        self._dies = dies
        self.requests: list[bytes] = []

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it was shut down
                return
            with connection:
                request = b""
                while b"\r\n\r\n" not in request and (piece := connection.recv(65536)):
                    request += piece
                if not request:
                    continue
                self.requests.append(request)
                if len(self.requests) > self._dies:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


@contextmanager
def balanced(folder: Path, dies: int) -> Iterator[tuple[Balancer, Instance]]:
    """Run a balancer in front of one such instance, for which the first ``dies`` requests end early."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        instance = Instance(listener, dies)
        thread = threading.Thread(target=instance.serve)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        balancer = Balancer("balancer", folder / "balancer.log", folder, {"instance-1": address}, 0, workers=1)
        try:
            balancer.start()
            yield balancer, instance
        finally:
            balancer.stop()
            balancer.close()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("dies", [0, 1, 2])
def test_whoever_meets_a_dying_worker_after_the_other_is_served_by_the_one_that_lives(
    dies: int, tmp_path: Path
) -> None:
    with balanced(tmp_path, dies) as (balancer, instance):
        answer = fetch(balancer.port, "/")
        assert (answer.status, answer.body, answer["X-Instance"]) == (200, b"ok", "instance-1"), answer
        assert len(instance.requests) == dies + 1


def test_what_could_be_carried_out_twice_is_sent_once(tmp_path: Path) -> None:
    with balanced(tmp_path, 1) as (balancer, instance):
        answer = fetch(balancer.port, "/", method="POST")
        assert (answer.status, answer["X-Instance"]) == (502, "instance-1")
        assert [request.split()[0] for request in instance.requests] == [b"POST"]


def test_where_nobody_is_there_it_says_so_itself(tmp_path: Path) -> None:
    with balanced(tmp_path, 100) as (balancer, _):
        answer = fetch(balancer.port, "/")
        assert answer.status == 502
        assert answer["X-ISR"] == ""
