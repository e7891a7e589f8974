"""``manage.py publish``: an admin job, run by cron or by hand beside the server."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from examples.site_django.caching import pages_with
from examples.site_django.models import Event
from wsgi_isr import ISRError, invalidate


class Command(BaseCommand):
    """Publish drafts, and invalidate the pages that show them in all processes that cache them.

    It needs the same ``LIBRARY_DATA`` and ``WSGI_ISR_STORE`` as the server, if those are set. ``invalidate`` imports
    ``settings.WSGI_APPLICATION``, which knows the store and the namespace.
    """

    help = "Publish drafts. Without a name: say which there are."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the events."""
        parser.add_argument("slug", nargs="*", help="the last part of the event's address")

    def handle(self, *, slug: list[str], **_: Any) -> None:
        """Run the command. :raises CommandError: it failed, or not every copy could be invalidated."""
        if not slug:
            self.stdout.write("\n".join(Event.objects.filter(published=False).values_list("slug", flat=True)))
            return
        with transaction.atomic():
            drafts = Event.objects.filter(slug__in=slug, published=False)
            events = list(drafts)
            if missing := set(slug) - {event.slug for event in events}:
                raise CommandError(f"There is no draft {', '.join(sorted(missing))}; nothing was published.")
            drafts.update(published=True)  # one statement for all of them; it sends no signals
        for event in events:
            event.published = True
        # The data is committed. From here on no visitor may get the lists without it.
        tags = set().union(*map(pages_with, events))
        try:
            receipt = invalidate(tags=sorted(tags))
            receipt.raise_for_pending()
        except ISRError as error:
            raise CommandError(f"Published {', '.join(slug)}, but: {error}") from error
        for event in events:
            self.stdout.write(f"Published {event.get_absolute_url()}")
        self.stdout.write(f"Invalidated {', '.join(receipt.tags)} in {receipt.seconds * 1000:.0f} ms.")
