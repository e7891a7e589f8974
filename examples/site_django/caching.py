"""What the cache is told: how old pages may get, and what has changed. All of it is here and in ``menu.py``."""

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
#   events        the list of all of them
#   topic:<slug>  what shows the events of a topic: its page, and "More of this" beside each of them
#   event:<slug>  the page of an event
#   topics        what shows the menu of topics (menu.py)
# Those that the URL says are here. The others are given where they are known, by cache_tag in views.py.
RULES = {
    "/": Rule(revalidate=60, tags=["events"]),
    "/topics/<slug>/": Rule(revalidate=60, tags=["topic:{slug}"]),
    "/events/<slug>/": Rule(revalidate=300, tags=["event:{slug}"]),
    "/about/": 3600,
    # Pages for one visitor. Without these lines they would not be stored either, because they set cookies, redirect or
    # say `private`; 0 saves trying. Everything else is kept for the 60 seconds of wsgi.py, where that is safe.
    "/login/": 0,
    "/account/": 0,
    "/events/<slug>/reserve/": 0,
    "/events/<slug>/edit/": 0,
    "/reservations/<code>/": 0,
    "/admin/<path:rest>": 0,
}

# Django gives this cookie to whoever opens a form, for a year. A page that looks at it sets it, and is not stored for
# that reason; all others are the same with it and without. So who has once seen a form may have pages of the cache.
NO_PAGE_LOOKS_AT = ["csrftoken"]


def pages_with(event: Event, counted_anew: bool = False) -> set[str]:
    """The tags of the public pages that show something of an event, as it is or as it was loaded.

    :param counted_anew: it is new or gone, so that the numbers in the menu change.
    """
    from .models import Topic

    before = event.loaded
    if not event.published and not before.get("published"):
        return set()  # a draft, and it was one: nobody has seen it
    tags = {"events", f"event:{event.slug}"}
    of_topics = Topic.objects.filter(pk__in={event.topic_id, before.get("topic_id", event.topic_id)})
    tags |= {f"topic:{slug}" for slug in of_topics.values_list("slug", flat=True)}
    if counted_anew or any(before.get(name) != getattr(event, name) for name in ("topic_id", "published", "starts")):
        tags.add("topics")
    return tags


def connect() -> None:
    """From now on, what is saved or deleted in this process is seen at once by everybody."""
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
    # Only its own page says how many places an event has left. The lists stay.
    _drop({f"event:{instance.event.slug}"})


def _drop(tags: set[str]) -> None:
    def tell() -> None:
        try:
            invalidate(tags=sorted(tags))
        except ISRError as error:
            # A node that is away is no error: the journal keeps what it has missed, and the log says so. An error is a
            # damaged file of the store, say. What was saved is saved, and pages show it when they are renewed.
            _log.warning("%s", error)

    # Not earlier: a page that is rendered before the commit would show the old data, and be kept as new.
    if tags:
        transaction.on_commit(tell)
