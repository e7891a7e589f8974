"""Hooks for gunicorn: ``gunicorn -c python:wsgi_isr.gunicorn myapp:app``, or imported into another config file.

The module sets the worker class :class:`Worker`, whose event loop answers prepared pages itself. A class on the command
line replaces it. The hooks start the renderer processes of the instance (:mod:`.renderers`) before its workers, and
stop them after the workers. A worker that stops drains its background renders first. An :class:`~wsgi_isr.ISR` starts
its threads and connections with its first request, so workers inherit none with ``--preload``.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from .cache import renderer_pool
from .cache.courier import courier
from .config import development
from .observe import aggregate
from .process import close_all
from .renderers.child_process import fork, wait_for
from .renderers.folders import remove_folder
from .renderers.supervisor import Watcher

#: gunicorn reads this with ``-c python:wsgi_isr.gunicorn``. A class on the command line, or in ``GUNICORN_CMD_ARGS``,
#: replaces it. A config file of one's own keeps its class: ``import *`` does not bring this name.
worker_class = "wsgi_isr.gunicorn.Worker"

# The names that `from wsgi_isr.gunicorn import *` defines in a config file.
__all__ = ["on_exit", "on_reload", "post_worker_init", "pre_fork", "when_ready", "worker_exit"]

#: The oldest gunicorn whose gthread worker ``Worker`` can extend.
OLDEST = (27,)
#: Seconds beyond the drain of renders (``drain_timeout``, which only the supervisor knows).
_STOPPING = 30.0
#: The maximum time for removing two sockets, in seconds.
_CLEANING = 5.0

_log = logging.getLogger("wsgi_isr")


def __getattr__(name: str) -> Any:
    """Return :class:`.servers.gunicorn_worker.Worker` under the name ``Worker``; gunicorn is imported only for it."""
    if name != "Worker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gunicorn import version_info
    from gunicorn.workers.gthread import ThreadWorker

    if version_info < OLDEST:
        _log.info("gunicorn is older than %d, so its threads answer every request", OLDEST[0])
        return ThreadWorker
    try:
        from .servers.gunicorn_worker import Worker
    except ImportError as error:  # a later gunicorn has moved a part that is not public
        _log.warning("gunicorn's threads answer every request: %s", error)
        return ThreadWorker
    return Worker


class _Renderers:
    """The renderer processes of one instance, in its master."""

    def __init__(self, server: Any) -> None:
        self._owner = os.getpid()
        self._server = server
        self._folder: str | None = None
        self._watchers: list[Watcher] = []
        self.begin(server)

    def begin(self, server: Any) -> None:
        """Start renderers with the current code. Earlier renderers end after their jobs."""
        new = Watcher(self._folder, server.app.wsgi, lambda: _become_child(server))
        for watcher in self._watchers:
            if watcher.pid not in server.WORKERS:  # the process has ended, and its id may belong to a worker now
                watcher.stop()
        self._watchers = [*(watcher for watcher in self._watchers if watcher.alive), new]
        self._folder = renderer_pool.folder = aggregate.folder = new.folder

    def look_after(self, server: Any) -> None:
        """Start new renderers if the watcher was killed.

        The master gets no notice of its end, so it checks before each fork of a worker.
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
        renderer_pool.folder = aggregate.folder = None
        try:
            wait_for(fork("isr-cleaner", self._clean), _CLEANING)
        except OSError as error:  # the system can start no process
            _log.debug("a folder of sockets stays: %s", error)

    def _clean(self) -> int:
        """Remove the folder, as the user that owns it. The user may have replaced it by any file."""
        _become_child(self._server)
        remove_folder(str(self._folder))
        return 0


def when_ready(server: Any) -> None:
    """Start the renderers. gunicorn calls this in its master, before it forks workers."""
    if server.cfg.reload:
        development.has_reloader = True
        return  # after a change of the code, a worker restarts, but renderers would keep the old code
    try:
        server.wsgi_isr = _Renderers(server)
    except OSError as error:
        _log.warning("no renderer processes (%s): pages are rendered in threads of the workers", error)


def on_reload(server: Any) -> None:
    """Replace the renderers. gunicorn calls this in its master on SIGHUP, after it has read the configuration."""
    renderers: _Renderers | None = getattr(server, "wsgi_isr", None)
    if renderers is None:
        when_ready(server)
        return
    try:
        renderers.begin(server)
    except OSError as error:
        _log.warning("no new renderer processes (%s)", error)


def pre_fork(server: Any, worker: Any) -> None:
    """Replace killed renderers. gunicorn calls this in its master, before it forks a worker."""
    renderers: _Renderers | None = getattr(server, "wsgi_isr", None)
    if renderers is not None:
        try:
            renderers.look_after(server)
        except OSError as error:
            _log.warning("no new renderer processes (%s)", error)


def post_worker_init(worker: Any) -> None:
    """Start the courier. gunicorn calls this in a worker that is about to serve."""
    courier.start()  # with --preload, gevent has patched a worker by now


def worker_exit(server: Any, worker: Any) -> None:
    """Drain the worker. gunicorn calls this in a worker after its last request."""
    close_all()


def on_exit(server: Any) -> None:
    """Stop the renderers. gunicorn calls this in its master, after the last worker."""
    if (renderers := getattr(server, "wsgi_isr", None)) is not None:
        renderers.end()


def _become_child(server: Any) -> None:
    """Close listeners and set the user, as gunicorn does in its workers, in a child that does not serve."""
    from gunicorn import util

    for listener in server.LISTENERS:
        # Not its close(), which would remove a Unix socket from the disk.
        os.close(listener.sock.detach())
    util.set_owner_process(server.cfg.uid, server.cfg.gid, initgroups=server.cfg.initgroups)
