"""gunicorn hooks: ``gunicorn -c python:wsgi_isr.gunicorn myapp:app``, or imported into your own config file.

The hooks start the renderer processes of the instance (:mod:`.renderers`) before its workers and stop them after the
workers. A worker that stops drains its background renders first. Nothing else is needed: an :class:`~wsgi_isr.ISR`
starts its threads and connections with its first request. So ``--preload`` inherits none.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from .cache.courier import courier
from .config import development
from .process import close_all
from .servers.instance_renderers import InstanceRenderers

# The names that `from wsgi_isr.gunicorn import *` brings into a config file.
__all__ = ["on_exit", "on_reload", "post_worker_init", "pre_fork", "when_ready", "worker_exit"]

_log = logging.getLogger("wsgi_isr")


def when_ready(server: Any) -> None:
    """Start the renderers; gunicorn calls this in its master, before there are workers."""
    if server.cfg.reload:
        development.has_reloader = True
        return  # a worker restarts when the code changes; renderers would keep the old code
    try:
        server.wsgi_isr = InstanceRenderers(
            lambda: server.app.wsgi(), lambda: _become_child(server), lambda pid: pid in server.WORKERS
        )
    except OSError as error:
        _log.warning("no renderer processes (%s): pages are rendered in threads of the workers", error)


def on_reload(server: Any) -> None:
    """Replace the renderers; gunicorn calls this in its master on SIGHUP, after it has read the configuration."""
    renderers: InstanceRenderers | None = getattr(server, "wsgi_isr", None)
    if renderers is None:
        when_ready(server)
        return
    try:
        renderers.begin()
    except OSError as error:
        _log.warning("no new renderer processes (%s)", error)


def pre_fork(server: Any, worker: Any) -> None:
    """Replace killed renderers; gunicorn calls this in its master, before it forks a worker."""
    renderers: InstanceRenderers | None = getattr(server, "wsgi_isr", None)
    if renderers is not None:
        try:
            renderers.look_after()
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
