"""The menu of topics, which several pages share."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connection
from django.db.models import Count, Q
from django.utils import timezone

from wsgi_isr import cached

from .models import Topic


@dataclass(frozen=True)
class MenuItem:
    """A topic, and its number of upcoming events."""

    slug: str
    name: str
    events: int


@cached(revalidate=300, tags=["topics"])
def menu() -> list[MenuItem]:
    """Count once for all pages that show the menu, including those for logged-in visitors.

    A page that uses the menu gets its tag and the rest of its five minutes, so no list of such pages is needed. The
    function returns plain data: stored data is no code. A model instance would be more than the data that was read
    (it could query the database again, or write to it).
    """
    to_come = Q(event__published=True, event__starts__gte=timezone.now())
    try:
        topics = Topic.objects.annotate(events=Count("event", filter=to_come)).order_by("name")
        return [MenuItem(topic.slug, topic.name, topic.events) for topic in topics]
    finally:
        # In a background refresh there is no request, at whose end Django would close the connection.
        if not connection.in_atomic_block:
            connection.close()
