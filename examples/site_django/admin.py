"""Django's admin pages for the staff, at ``/admin/``; ``caching.py`` invalidates pages when they save."""

from __future__ import annotations

from django.contrib import admin

from .models import Event, Topic


@admin.register(Topic)
class TopicAdmin(admin.ModelAdmin):
    """The topics."""

    prepopulated_fields = {"slug": ["name"]}


@admin.register(Event)
class EventAdmin(admin.ModelAdmin):
    """The events."""

    list_display = ["title", "topic", "starts", "published"]
    prepopulated_fields = {"slug": ["title"]}
