"""The database: created and filled once, by the first process that needs it."""

from __future__ import annotations

import fcntl

from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.executor import MigrationExecutor

from . import seed
from .models import Topic


def ensure() -> bool:
    """Create the tables and their initial content where they are missing; return whether any was.

    Processes that start together take turns by a lock on a file. If a start is killed, the next one completes its work:
    each migration is one transaction, and so is the filling. No connection is left open: with ``gunicorn --preload``
    this runs before the fork.
    """
    with open(settings.DATA / "setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            executor = MigrationExecutor(connection)
            outdated = bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
            if outdated:
                call_command("migrate", interactive=False, verbosity=0)
            empty = not Topic.objects.exists()
            if empty:
                seed.fill()
        finally:
            connections.close_all()
    return outdated or empty
