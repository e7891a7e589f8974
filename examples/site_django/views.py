"""The pages. Their only code for the cache is ``cache_tag``, where a page shows more than its URL says."""

from __future__ import annotations

import os
from typing import Any

from django.contrib.auth.mixins import LoginRequiredMixin, UserPassesTestMixin
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import CreateView, DetailView, ListView, TemplateView, UpdateView

from wsgi_isr import cache_tag

from .forms import EventForm, ReservationForm
from .menu import menu
from .models import Event, Events, Reservation, Topic


def made(_request: HttpRequest) -> dict[str, Any]:
    """Return the footer of each page: the time of its render, and the process."""
    return {"made_at": timezone.now(), "made_by": os.getpid()}


# Public pages


class Programme(ListView):
    """All upcoming events."""

    template_name = "library/programme.html"
    context_object_name = "events"
    extra_context = {"menu": menu}

    def get_queryset(self) -> Events:
        """Return the events by date."""
        return Event.objects.upcoming()


class TopicPage(DetailView):
    """A topic, and its events."""

    model = Topic
    template_name = "library/topic.html"
    extra_context = {"menu": menu}

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        """Add the events."""
        return super().get_context_data(events=self.object.event_set.upcoming(), **context)


class EventPage(DetailView):
    """An event, with the places that are left and more of its topic."""

    template_name = "library/event.html"

    def get_queryset(self) -> Events:
        """Return all events for the staff, and published ones for other visitors."""
        events = Event.objects.select_related("topic").with_places()
        return events if self.request.user.is_staff else events.filter(published=True)

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        """Add the other events of its topic."""
        topic = self.object.topic
        # The page shows titles of other events. The URL does not say of which topic.
        cache_tag(f"topic:{topic.slug}")
        more = topic.event_set.upcoming().exclude(pk=self.object.pk)[:3]
        return super().get_context_data(more=more, **context)


class About(TemplateView):
    """Opening hours."""

    template_name = "library/about.html"


# Private pages, with forms, whose tokens belong to one visitor


@method_decorator(never_cache, "dispatch")
class Reserve(CreateView):
    """The form that reserves places, for all visitors."""

    form_class = ReservationForm
    template_name = "library/reserve.html"

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        """Add the event."""
        return super().get_context_data(event=self._event(), **context)

    def get_initial(self) -> dict[str, Any]:
        """Fill in the name of a logged-in visitor."""
        user = self.request.user
        return {"name": user.get_full_name()} if user.is_authenticated else {}

    def form_valid(self, form: ReservationForm) -> HttpResponse:
        """Save the reservation if there are enough places."""
        # Write transactions run one after the other here, so no other one takes the last place in between.
        with transaction.atomic():
            event = self._event()
            if event.is_over or form.cleaned_data["people"] > event.places_left:
                left = 0 if event.is_over else event.places_left
                form.add_error("people", f"Only {left} {'place is' if left == 1 else 'places are'} left.")
                return self.form_invalid(form)
            form.instance.event = event
            form.instance.user = self.request.user if self.request.user.is_authenticated else None
            return super().form_valid(form)

    def _event(self) -> Event:
        return get_object_or_404(Event.objects.with_places(), slug=self.kwargs["slug"], published=True)


@method_decorator(never_cache, "dispatch")
class ReservationPage(DetailView):
    """A reservation, for visitors with the link; POST cancels it."""

    queryset = Reservation.objects.select_related("event")
    slug_field = slug_url_kwarg = "code"
    template_name = "library/reservation.html"

    def post(self, request: HttpRequest, **_: Any) -> HttpResponse:
        """Cancel the reservation."""
        reservation = self.get_object()
        reservation.delete()
        return HttpResponseRedirect(reservation.event.get_absolute_url())


@method_decorator(never_cache, "dispatch")
class Account(LoginRequiredMixin, ListView):
    """The visitor's reservations."""

    template_name = "library/account.html"
    context_object_name = "reservations"

    def get_queryset(self) -> Any:
        """Return the visitor's own reservations."""
        return Reservation.objects.filter(user=self.request.user).select_related("event")

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        """Add the drafts, for the staff."""
        drafts = Event.objects.filter(published=False) if self.request.user.is_staff else []
        return super().get_context_data(drafts=drafts, **context)


@method_decorator(never_cache, "dispatch")
class EditEvent(UserPassesTestMixin, UpdateView):
    """The form of the staff; ``caching.py`` invalidates pages when it saves."""

    queryset = Event.objects.with_places()
    form_class = EventForm
    template_name = "library/edit.html"

    def test_func(self) -> bool:
        """Allow the staff; other visitors are asked to log in, or refused."""
        return self.request.user.is_staff
