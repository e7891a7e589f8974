"""The initial content of the database: two accounts, five topics, and eight weeks of events from today on.

The events are in ``programme.txt``: a head of ``Name: value`` lines, an empty line and the text; lines of ``---``
separate them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import transaction
from django.utils import timezone

from .models import Event, Topic

PROGRAMME = Path(__file__).with_name("programme.txt")
TOPICS = (
    ("children", "Children", "Stories, songs and things to take apart, for the under-twelves and their parents."),
    ("history", "Local history", "The mill, the canal, the people: what the town was, by those who have looked it up."),
    ("making", "Making", "Bring a broken thing or an idea. Tools, tea and people who know how are here."),
    ("music", "Music", "Small concerts between the shelves. The piano is tuned twice a year."),
    ("reading", "Reading", "Book groups, readings, and an hour of silence that is better in company."),
)


@transaction.atomic
def fill() -> None:
    """Fill empty tables, with all of it or nothing."""
    users = get_user_model().objects
    staff = users.create_user("librarian", password="librarian", first_name="Noor", last_name="Haddad", is_staff=True)
    staff.user_permissions.set(Permission.objects.filter(content_type__app_label="library"))  # in the admin
    users.create_user("reader", password="reader", first_name="Sam", last_name="Whitlock")
    # Bulk inserts send no signals: there is no page yet that could show the rows.
    Topic.objects.bulk_create(Topic(slug=slug, name=name, about=about) for slug, name, about in TOPICS)
    Event.objects.bulk_create(_events({topic.slug: topic for topic in Topic.objects.all()}))


def _events(topics: dict[str, Topic]) -> Iterator[Event]:
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    for planned in PROGRAMME.read_text("utf-8").split("\n---\n"):
        lines, _, text = planned.partition("\n\n")
        head = dict(line.split(": ", 1) for line in lines.splitlines())
        day, hours, minutes, lasts = map(int, re.findall(r"\d+", head["When"]))
        yield Event(
            slug=head["Slug"],
            topic=topics[head["Topic"]],
            title=head["Title"],
            summary=head["Summary"],
            text=text.strip(),
            starts=today + timedelta(days=day, hours=hours, minutes=minutes),
            minutes=lasts,
            place=head["Place"],
            seats=int(head["Seats"]),
            published="Draft" not in head,
        )
