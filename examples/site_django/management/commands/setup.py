"""``manage.py setup``: the database, made and filled."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from examples.site_django.database import ensure


class Command(BaseCommand):
    """Does nothing where all is there; the server does it, too, when it starts."""

    help = "Make the tables and fill them with a first programme, where they are missing."

    def handle(self, **_: Any) -> None:
        """Run it."""
        path = settings.DATABASES["default"]["NAME"]
        self.stdout.write(f"{path} is ready." if ensure() else f"{path} was ready already.")
