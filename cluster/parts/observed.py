"""The app that ``CLUSTER_APP`` names, for gunicorn; each page that it renders adds a line to a file.

``CLUSTER_RENDERS`` names the file. The app is returned unwrapped, so requests cost nothing more.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from gunicorn.util import import_app

from wsgi_isr.middleware.loading import find_isr

from ..load.renders import Recorder
from .tether import tether

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# A worker dies with its master, even a paused worker, which could not notice the end of its master.
tether(signal.SIGKILL)
os.register_at_fork(after_in_child=lambda: tether(signal.SIGKILL))

application: WSGIApplication = import_app(os.environ["CLUSTER_APP"])
isr = find_isr(application)
if isr is not None and (_path := os.environ.get("CLUSTER_RENDERS")):
    # An instance's clock may be wrong on purpose (cluster.chaos.faults.set_clock); the times in the file are right.
    _shift = float(os.environ.get("FAKETIME", "0").rstrip("s"))
    isr.subscribe(Recorder(_path, os.environ.get("CLUSTER_INSTANCE", ""), _shift))
