"""A way into the processes of a history, for those who test the checker itself."""

from __future__ import annotations

import os
from importlib import import_module


def import_first() -> None:
    """Import the module that ``CLUSTER_IMPORT`` names, if any, before an ``ISR`` is made or anything invalidated."""
    if module := os.environ.get("CLUSTER_IMPORT"):
        import_module(module)
