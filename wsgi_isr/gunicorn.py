"""gunicorn hooks: ``gunicorn -c python:wsgi_isr.gunicorn myapp:app``, or imported into your own config file.

The hooks start the renderer processes of the instance (:mod:`.renderers`) before its workers and stop them after the
workers. A worker that stops drains its background renders first. Nothing else is needed: an :class:`~wsgi_isr.ISR`
starts its threads and connections with its first request. So ``--preload`` inherits none.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from .cache import renderer_pool
from .cache.courier import courier
from .config import development
from .process import close_all
from .renderers.child_process import fork, wait_for
from .renderers.supervisor import Watcher, remove_folder

# The names that `from wsgi_isr.gunicorn import *` brings into a config file.
__all__ = ["on_exit", "on_reload", "post_worker_init", "pre_fork", "when_ready", "worker_exit"]

#: Seconds beyond the drain of renders (``drain_timeout``, which only the supervisor knows).
_STOPPING = 30.0
#: Seconds for removing two sockets.
_CLEANING = 5.0

_log = logging.getLogger("wsgi_isr")


class _Renderers:
    """The renderer processes of one instance, as its master sees them."""

    def __init__(self, server: Any) -> None:
        self._owner = os.getpid()
        self._server = server
        self._folder: str | None = None
        self._watchers: list[Watcher] = []
        self.begin(server)

    def begin(self, server: Any) -> None:
        """Start renderers with the current code. Earlier renderers finish their jobs."""
        new = Watcher(self._folder, server.app.wsgi, lambda: _become_child(server))
        for watcher in self._watchers:
            if watcher.pid not in server.WORKERS:  # the process has ended, and its id may belong to a worker now
                watcher.stop()
        self._watchers = [*(watcher for watcher in self._watchers if watcher.alive), new]
        self._folder = renderer_pool.folder = new.folder

    def look_after(self, server: Any) -> None:
        """Start new renderers if the watcher was killed.

        The master is not told of that, so it looks before each fork of a worker.
        """
        watcher = self._watchers[-1]
        if not watcher.alive and not watcher.content:
            self.begin(server)

    def end(self) -> None:
        if os.getpid() != self._owner:
            return
        for watcher in self._watchers:
            watcher.stop()
        deadline = time.monotonic() + _STOPPING
        for watcher in self._watchers:
            watcher.wait(max(0.0, deadline - time.monotonic()))
        renderer_pool.folder = None
        try:
            wait_for(fork("isr-cleaner", self._clean), _CLEANING)
        except OSError as error:  # the system can start no process
            _log.debug("a folder of sockets stays: %s", error)

    def _clean(self) -> int:
        """Remove the folder as the user that owns it: that user may have put any file in its place."""
        _become_child(self._server)
        remove_folder(str(self._folder))
        return 0


def when_ready(server: Any) -> None:
    """Start the renderers; gunicorn calls this in its master, before there are workers."""
    if server.cfg.reload:
        development.has_reloader = True
        return  # a worker restarts when the code changes; renderers would keep the old code
    try:
        server.wsgi_isr = _Renderers(server)
    except OSError as error:
        _log.warning("no renderer processes (%s): pages are rendered in threads of the workers", error)


def on_reload(server: Any) -> None:
    """Replace the renderers; gunicorn calls this in its master on SIGHUP, after it has read the configuration."""
    renderers: _Renderers | None = getattr(server, "wsgi_isr", None)
    if renderers is None:
        when_ready(server)
        return
    try:
        renderers.begin(server)
    except OSError as error:
        _log.warning("no new renderer processes (%s)", error)


def pre_fork(server: Any, worker: Any) -> None:
    """Replace killed renderers; gunicorn calls this in its master, before it forks a worker."""
    renderers: _Renderers | None = getattr(server, "wsgi_isr", None)
    if renderers is not None:
        try:
            renderers.look_after(server)
        except OSError as error:
            _log.warning("no new renderer processes (%s)", error)


def post_worker_init(worker: Any) -> None:
    """Start the courier; gunicorn calls this in a worker that is about to serve."""
    courier.start()  # a gevent worker of --preload is patched by now


def worker_exit(server: Any, worker: Any) -> None:
    """Drain the worker; gunicorn calls this in a worker that has served its last request."""
    close_all()


def on_exit(server: Any) -> None:
    """Stop the renderers; gunicorn calls this in its master, after the last worker."""
    if (renderers := getattr(server, "wsgi_isr", None)) is not None:
        renderers.end()


def _become_child(server: Any) -> None:
    """Do in a child that does not serve what gunicorn does in its workers: close listeners and set the user."""
    from gunicorn import util

    for listener in server.LISTENERS:
        # Not its close(), which would remove a Unix socket from the disk.
        os.close(listener.sock.detach())
    util.set_owner_process(server.cfg.uid, server.cfg.gid, initgroups=server.cfg.initgroups)
