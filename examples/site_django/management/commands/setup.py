"""``manage.py setup``: create and fill the database."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from examples.site_django.database import ensure


class Command(BaseCommand):
    """Create and fill the database where it is missing; the server does the same when it starts."""

    help = "Make the tables and fill them with a first programme, where they are missing."

    def handle(self, **_: Any) -> None:
        """Run the command."""
        path = settings.DATABASES["default"]["NAME"]
        self.stdout.write(f"{path} is ready." if ensure() else f"{path} was ready already.")
