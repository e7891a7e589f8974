"""Import the app that ``CLUSTER_APP`` names, for gunicorn, and record each page that the app renders.

Each render adds a line to the file that ``CLUSTER_RENDERS`` names. The app is not wrapped again, so requests cost
nothing more.
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

# The kernel kills a worker when its master ends. A paused worker could not notice the end by itself.
tether(signal.SIGKILL)
os.register_at_fork(after_in_child=lambda: tether(signal.SIGKILL))

application: WSGIApplication = import_app(os.environ["CLUSTER_APP"])
isr = find_isr(application)
if isr is not None and (_path := os.environ.get("CLUSTER_RENDERS")):
    # cluster.chaos.faults.set_clock shifts an instance's clock. The recorder subtracts the shift, so the times in the
    # file are right.
    _shift = float(os.environ.get("FAKETIME", "0").rstrip("s"))
    isr.subscribe(Recorder(_path, os.environ.get("CLUSTER_INSTANCE", ""), _shift))
