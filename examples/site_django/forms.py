"""The two forms."""

from __future__ import annotations

from typing import Any

from django import forms

from .models import Event, Reservation


class ReservationForm(forms.ModelForm):
    """The reservation form, for all visitors."""

    class Meta:
        model = Reservation
        fields = ("name", "people")
        widgets = {
            "name": forms.TextInput({"autocomplete": "name"}),
            "people": forms.NumberInput({"inputmode": "numeric"}),
        }


class EventForm(forms.ModelForm):
    """The event form, for the staff."""

    class Meta:
        model = Event
        fields = ("title", "summary", "text", "topic", "starts", "minutes", "place", "seats", "published")
        widgets = {
            "text": forms.Textarea({"rows": 8}),
            "starts": forms.DateTimeInput({"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        }

    def clean_seats(self) -> Any:
        """Return the number of seats; refuse one below the number of reserved places."""
        taken = self.instance.seats - self.instance.places_left
        if self.cleaned_data["seats"] < taken:
            raise forms.ValidationError(f"{taken} places are reserved already.")
        return self.cleaned_data["seats"]
