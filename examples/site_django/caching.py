"""The instructions for the cache: how old pages may become, and which tags changes invalidate (and ``menu.py``)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models.signals import post_delete, post_save

from wsgi_isr import ISRError, Rule, invalidate

if TYPE_CHECKING:
    from .models import Event, Reservation, Topic

_log = logging.getLogger(__name__)

# The tags:
#   events        the list of all events
#   topic:<slug>  pages that show the events of a topic: its own page, and "More of this" beside each event
#   event:<slug>  the page of an event
#   topics        pages that show the menu of topics (menu.py)
# Tags that follow from the URL are here. views.py adds the others with cache_tag.
RULES = {
    "/": Rule(revalidate=60, tags=["events"]),
    "/topics/<slug>/": Rule(revalidate=60, tags=["topic:{slug}"]),
    "/events/<slug>/": Rule(revalidate=300, tags=["event:{slug}"]),
    "/about/": 3600,
    # Pages for one visitor. Even without these lines they would not be stored, because they set cookies, redirect or
    # say `private`; 0 saves the attempt. All other pages are kept for the 60 seconds of wsgi.py, where that is safe.
    "/login/": 0,
    "/account/": 0,
    "/events/<slug>/reserve/": 0,
    "/events/<slug>/edit/": 0,
    "/reservations/<code>/": 0,
    "/admin/<path:rest>": 0,
}

# Django gives this cookie, for a year, to each visitor who opens a form. A page that reads the cookie also sets it, and
# is therefore not stored. All other pages are the same with and without it, so the cache may ignore it.
NO_PAGE_LOOKS_AT = ["csrftoken"]


def pages_with(event: Event, counted_anew: bool = False) -> set[str]:
    """Return the tags of the public pages that show parts of an event, in its current or its loaded version.

    :param counted_anew: the event is new or gone, so that the numbers in the menu change.
    """
    from .models import Topic

    before = event.loaded
    if not event.published and not before.get("published"):
        return set()  # a draft before and after: no page has shown it
    tags = {"events", f"event:{event.slug}"}
    of_topics = Topic.objects.filter(pk__in={event.topic_id, before.get("topic_id", event.topic_id)})
    tags |= {f"topic:{slug}" for slug in of_topics.values_list("slug", flat=True)}
    if counted_anew or any(before.get(name) != getattr(event, name) for name in ("topic_id", "published", "starts")):
        tags.add("topics")
    return tags


def connect() -> None:
    """Invalidate pages at each change in this process, from now on: all visitors see it at once."""
    for signal in (post_save, post_delete):
        signal.connect(_event_changed, "library.Event", dispatch_uid="caching")
        signal.connect(_topic_changed, "library.Topic", dispatch_uid="caching")
        signal.connect(_reservation_changed, "library.Reservation", dispatch_uid="caching")


def _event_changed(sender: type[Event], instance: Event, signal: Any, created: bool = False, **_: Any) -> None:
    _drop(pages_with(instance, created or signal is post_delete))
    instance.loaded = {field.attname: getattr(instance, field.attname) for field in sender._meta.concrete_fields}


def _topic_changed(instance: Topic, **_: Any) -> None:
    _drop({f"topic:{instance.slug}", "topics", "events"})


def _reservation_changed(instance: Reservation, **_: Any) -> None:
    # Only the event's own page shows how many places are left. The lists stay.
    _drop({f"event:{instance.event.slug}"})


def _drop(tags: set[str]) -> None:
    def tell() -> None:
        try:
            invalidate(tags=sorted(tags))
        except ISRError as error:
            # An unreachable node raises no error: the journal keeps its invalidations, and the log says so. An error
            # is a damaged store file, for example. The change is saved, and pages show it when they are regenerated.
            _log.warning("%s", error)

    # Not earlier: a page that is rendered before the commit would show the old data, and be kept as new.
    if tags:
        transaction.on_commit(tell)
