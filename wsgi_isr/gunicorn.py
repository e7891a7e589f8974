"""gunicorn hooks: ``gunicorn -c python:wsgi_isr.gunicorn myapp:app``, or imported into a config file of your own.

They start the renderer processes of the instance (:mod:`.renderers`) before its workers and stop them after these. A
worker that stops drains its background renders first. Nothing else is needed: an :class:`~wsgi_isr.ISR` starts its
threads and connections with its first request, so with ``--preload`` none is inherited.
"""

from __future__ import annotations

import os
from typing import Any

from .process import close_all
from .renderers import Sockets, Supervisor, close_sockets, open_sockets

#: Seconds, beyond those that renders get to their end (``drain``, which only the supervisor knows).
_STOPPING = 30.0


class _Renderers:
    """Those of one instance."""

    def __init__(self, server: Any) -> None:
        self._owner = os.getpid()
        self.sockets: Sockets = open_sockets(server.cfg.uid, server.cfg.gid)
        self.begin(server)

    def begin(self, server: Any) -> None:
        """With the code of now."""
        self._supervisor = Supervisor(self.sockets, server.app.wsgi, lambda: _become_child(server))

    def replace(self, server: Any) -> None:
        """The old ones end what they do; the new ones take what waits."""
        self._supervisor.stop()
        self.begin(server)

    def end(self) -> None:
        if os.getpid() == self._owner:
            self._supervisor.stop()
            self._supervisor.wait(_STOPPING)
            close_sockets(self.sockets)


def when_ready(server: Any) -> None:
    """Called by gunicorn in its master, before there are workers."""
    server.wsgi_isr = _Renderers(server)


def on_reload(server: Any) -> None:
    """Called by gunicorn in its master on SIGHUP, once the configuration was read anew."""
    server.wsgi_isr.replace(server)


def worker_exit(server: Any, worker: Any) -> None:
    """Called by gunicorn in a worker that has served its last request."""
    close_all()


def on_exit(server: Any) -> None:
    """Called by gunicorn in its master, after the last worker."""
    if (renderers := getattr(server, "wsgi_isr", None)) is not None:
        renderers.end()


def _become_child(server: Any) -> None:
    """In a child that serves nobody: what gunicorn does in its own children, besides serving."""
    from gunicorn import util

    for listener in server.LISTENERS:
        # Not its close(), which would remove a Unix socket from the disk.
        os.close(listener.sock.detach())
    util.set_owner_process(server.cfg.uid, server.cfg.gid, initgroups=server.cfg.initgroups)
