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
    """A topic, and how much of it there is to come."""

    slug: str
    name: str
    events: int


@cached(revalidate=300, tags=["topics"])
def menu() -> list[MenuItem]:
    """Counted once for all pages that show it, those of visitors who are logged in included.

    A page that uses it gets its tag and what is left of its five minutes, so nobody has to remember which
    pages those are. It returns plain data: what is stored is no code, and a model instance would be more than what was
    read (it could go back to the database, or write to it).
    """
    to_come = Q(event__published=True, event__starts__gte=timezone.now())
    try:
        topics = Topic.objects.annotate(events=Count("event", filter=to_come)).order_by("name")
        return [MenuItem(topic.slug, topic.name, topic.events) for topic in topics]
    finally:
        # When it is renewed in the background, there is no request at whose end Django would do it.
        if not connection.in_atomic_block:
            connection.close()
