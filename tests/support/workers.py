"""gunicorn's workers in a thread of the test, on a free port, without a master."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger

#: Seconds that a step may take which an idle machine finishes in a tenth of the time.
PATIENCE = 20.0


def configuration(**options: Any) -> Config:
    """Return gunicorn's configuration with these options. Its log goes to stderr."""
    config = Config()
    for name, value in {"loglevel": "warning", "graceful_timeout": 5, **options}.items():
        config.set(name, value)
    return config


class _App:
    """The part of gunicorn's application that a worker looks at."""

    def __init__(self, app: Any) -> None:
        self.wsgi = lambda: app


class RunningWorker:
    """Run a worker until the block ends.

    :param kind: the class of the worker.
    :param options: of gunicorn.
    """

    def __init__(self, kind: Any, app: Any, **options: Any) -> None:
        self.config = configuration(**{"threads": 4, "keepalive": 20, **options})
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        # gunicorn sets it on its listeners, and connections inherit it.
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = self.listener.getsockname()[1]
        self.worker = kind(0, os.getppid(), [self.listener], _App(app), 30, self.config, Logger(self.config))
        self.worker.wsgi = app
        self.worker.pid = os.getpid()
        self._thread = threading.Thread(target=self._serve, name="worker")

    def _serve(self) -> None:
        # As init_process() does, without signals.
        self.worker.tpool = self.worker.get_thread_pool()
        self.worker.poller = selectors.DefaultSelector()
        self.worker.method_queue.init()
        self.worker.run()
        self.worker.tpool.shutdown(wait=True)

    def __enter__(self) -> RunningWorker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the worker does not stop"
        self.worker.tmp.close()
        for logger in (self.worker.log.error_log, self.worker.log.access_log):
            for handler in list(logger.handlers):
                logger.removeHandler(handler)
                handler.close()

    def stop(self) -> None:
        """Ask the worker to stop, as SIGTERM does."""
        self.worker.handle_exit(None, None)

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def connect(self) -> socket.socket:
        """Return a connection to the worker."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def exchange(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Send pieces on one connection, end the sending, and return all bytes of the answer."""
        with self.connect() as client:
            try:
                for number, piece in enumerate(pieces):
                    if number and pause:
                        time.sleep(pause)
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
            except OSError:  # the worker has closed already
                pass
            received = b""
            while True:
                try:
                    piece = client.recv(65536)
                except ConnectionResetError:
                    break
                if not piece:
                    break
                received += piece
            return received
