"""Import a module into the processes of a history: tests of the history checker break ``wsgi_isr`` with it."""

from __future__ import annotations

import os
from importlib import import_module


def import_first() -> None:
    """Import the module that ``CLUSTER_IMPORT`` names, if any, before the first ``ISR`` or ``invalidate``."""
    if module := os.environ.get("CLUSTER_IMPORT"):
        import_module(module)
