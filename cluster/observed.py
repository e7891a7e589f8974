"""The app that ``CLUSTER_APP`` names, for gunicorn, with a line in a file for each page that it renders.

The file is ``CLUSTER_RENDERS`` (:mod:`.renders` reads it). The app is returned as it is: a request costs nothing more.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from gunicorn.util import import_app

from wsgi_isr import ISR
from wsgi_isr.events import Event, Rendered

from .tether import tether

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


#: Seconds by which this process's clocks are wrong on purpose (:func:`.faults.shift_clock`).
SHIFT = float(os.environ.get("FAKETIME", "0").rstrip("s"))


def find_isr(app: Any) -> ISR | None:
    """The ``ISR`` around or inside an app: itself, or below the attributes by which frameworks nest them."""
    for _ in range(10):
        if isinstance(app, ISR):
            return app
        app = getattr(app, "wsgi_app", None) or getattr(app, "app", None)
    return None


class Recorder:
    """A subscriber that writes down every render of a page."""

    def __init__(self, path: str, instance: str) -> None:
        self._path = path
        self._instance = instance

    def __call__(self, event: Event) -> None:
        if isinstance(event, Rendered) and ":p:" in event.key:
            line = [time.monotonic() - SHIFT, event.seconds, event.key, self._instance, os.getpid(), event.stored]
            # One write to a file opened for appending: lines of several processes never mix.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, json.dumps(line).encode() + b"\n")
            finally:
                os.close(descriptor)


# A worker dies with its master, even one that is paused and could not notice it.
tether(signal.SIGKILL)
os.register_at_fork(after_in_child=lambda: tether(signal.SIGKILL))

application: WSGIApplication = import_app(os.environ["CLUSTER_APP"])
isr = find_isr(application)
if isr is not None and (_path := os.environ.get("CLUSTER_RENDERS")):
    isr.subscribe(Recorder(_path, os.environ.get("CLUSTER_INSTANCE", "")))
