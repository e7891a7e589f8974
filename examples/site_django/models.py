"""The data of the library: topics, events, and reservations."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Sum
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils import timezone


class Topic(models.Model):
    """A part of the programme, with a page of its own."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=60)
    about = models.CharField(max_length=200)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """Return the URL of its page."""
        return reverse("topic", args=[self.slug])


class Events(models.QuerySet["Event"]):
    """The usual queries."""

    def upcoming(self) -> Events:
        """Return the events on the public lists."""
        return self.filter(published=True, starts__gte=timezone.now()).select_related("topic").order_by("starts", "pk")

    def with_places(self) -> Events:
        """Return the events with ``places_left``."""
        return self.annotate(places_left=F("seats") - Coalesce(Sum("reservation__people"), 0))


class Event(models.Model):
    """An event of the library. Only the staff sees it before it is published."""

    slug = models.SlugField(unique=True)
    title = models.CharField(max_length=100)
    summary = models.CharField(max_length=200, help_text="One sentence, for the lists.")
    text = models.TextField(help_text="Empty lines separate paragraphs.")
    topic = models.ForeignKey(Topic, on_delete=models.PROTECT)
    starts = models.DateTimeField()
    minutes = models.PositiveSmallIntegerField(validators=[MinValueValidator(5), MaxValueValidator(24 * 60)])
    place = models.CharField(max_length=60)
    seats = models.PositiveSmallIntegerField()
    published = models.BooleanField(default=False)

    objects = Events.as_manager()

    #: The columns as they were read: the previously published version of this event. Empty for a new one.
    loaded: Mapping[str, Any] = MappingProxyType({})

    class Meta:
        ordering = ("starts", "pk")

    def __str__(self) -> str:
        return self.title

    @classmethod
    def from_db(cls, db: str | None, field_names: Collection[str], values: Sequence[Any], **more: Any) -> Event:
        """Remember the loaded columns, so that changes can be found."""
        event = super().from_db(db, field_names, values, **more)
        event.loaded = dict(zip(field_names, values, strict=True))
        return event

    def get_absolute_url(self) -> str:
        """Return the URL of its page."""
        return reverse("event", args=[self.slug])

    @property
    def ends(self) -> datetime:
        """Return the end of the event."""
        return self.starts + timedelta(minutes=self.minutes)

    @property
    def is_over(self) -> bool:
        """Return whether it has begun: no more places can be reserved."""
        return self.starts < timezone.now()


def new_code() -> str:
    """Return a code that cannot be guessed."""
    return secrets.token_urlsafe(12)


class Reservation(models.Model):
    """Reserved places, with or without an account. Visitors who know the code may look at it and cancel it."""

    code = models.CharField(max_length=24, unique=True, default=new_code, editable=False)
    event = models.ForeignKey(Event, on_delete=models.CASCADE)
    name = models.CharField("Your name", max_length=60)
    people = models.PositiveSmallIntegerField(
        "How many of you", default=1, validators=[MinValueValidator(1), MaxValueValidator(6)]
    )
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, editable=False)
    made = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("event__starts", "pk")

    def __str__(self) -> str:
        return f"{self.name} for {self.event}"

    def get_absolute_url(self) -> str:
        """Return the URL of its page; every visitor with this link may open it."""
        return reverse("reservation", args=[self.code])
