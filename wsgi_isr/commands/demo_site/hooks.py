"""The configuration of gunicorn for the demo: two workers, which end when the command ends."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

from ... import gunicorn as hooks
from ...gunicorn import on_reload, post_worker_init, pre_fork, when_ready, worker_exit
from ...renderers.child_process import die_with
from .site import FOLDER, PARENT

__all__ = ["on_exit", "on_reload", "on_starting", "post_worker_init", "pre_fork", "when_ready", "worker_exit"]

workers = 2
worker_class = "gthread"
threads = 16
#: The maximum time for requests in progress when the server stops, in seconds.
graceful_timeout = 2
loglevel = "info"
accesslog = os.path.join(os.environ[FOLDER], "access.log")
access_log_format = "%(m)-4s %(U)s  %(s)s  X-ISR: %({x-isr}o)s  Age: %({age}o)s  %(M)s ms"
#: gunicorn 25 and later have a control socket, which two demos would share.
control_socket_disable = True


def on_starting(server: Any) -> None:
    """End the master when its parent ends. gunicorn calls this in the master, before it listens."""
    # After SIGTERM, the master stops workers and renderer processes in order.
    die_with(int(os.environ[PARENT]), signal.SIGTERM)


def on_exit(server: Any) -> None:
    """Run the hook of the package, and remove the directory of a demo whose command was killed.

    gunicorn calls this in the master, after the last worker.
    """
    hooks.on_exit(server)
    if os.getppid() != int(os.environ[PARENT]):  # the command cannot remove the directory any more
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
