"""The site as an app of Django."""

from __future__ import annotations

from django.apps import AppConfig


class Library(AppConfig):
    """Models, templates and commands are found through it."""

    name = "examples.site_django"
    label = "library"

    def ready(self) -> None:
        """Once per process, when the models are there."""
        from .caching import connect

        connect()
