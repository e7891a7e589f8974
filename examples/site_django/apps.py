"""The site as an app of Django."""

from __future__ import annotations

from django.apps import AppConfig


class Library(AppConfig):
    """Registers models, templates and commands."""

    name = "examples.site_django"
    label = "library"

    def ready(self) -> None:
        """Connect the invalidation, once per process, when the models are loaded."""
        from .caching import connect

        connect()
