"""Events: subscribers get every event, and a broken subscriber breaks nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest

from wsgi_isr.events import Event, Events, LeaseLost, Served

HAPPENED = Served("page", "HIT", 1.5)


def broken(event: Event) -> None:
    raise RuntimeError("no disk left")


def test_every_subscriber_hears_every_event_in_order() -> None:
    first: list[Event] = []
    second: list[Event] = []
    events = Events(first.append)
    events.emit(HAPPENED)
    events.subscribe(second.append)
    events.emit(LeaseLost("page"))
    assert first == [HAPPENED, LeaseLost("page")]
    assert second == [LeaseLost("page")]


def test_without_subscribers_there_is_nothing_to_tell() -> None:
    assert not Events()
    Events().emit(HAPPENED)
    assert Events(broken)


def test_a_broken_subscriber_breaks_neither_the_request_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []
    events = Events(broken, heard.append)
    events.emit(HAPPENED)
    assert heard == [HAPPENED]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "broken" in caplog.text
    assert "no disk left" in caplog.text


def test_a_broken_subscriber_is_reported_once_and_called_on(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Event] = []

    def flaky(event: Event) -> None:
        calls.append(event)
        raise RuntimeError

    events = Events(flaky)
    for _ in range(3):
        events.emit(HAPPENED)
    assert len(calls) == 3
    assert len(caplog.records) == 1


def test_each_broken_subscriber_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def another(event: Event) -> None:
        raise LookupError

    Events(broken, another).emit(HAPPENED)
    assert len(caplog.records) == 2


@dataclass
class Unhashable:
    """A dataclass with ``__eq__``, so without a hash."""

    calls: int = 0

    def __call__(self, event: Event) -> None:
        self.calls += 1
        raise RuntimeError


def test_a_broken_subscriber_that_cannot_be_hashed_breaks_nothing_either(caplog: pytest.LogCaptureFixture) -> None:
    subscriber = Unhashable()
    events = Events(subscriber)
    events.emit(HAPPENED)
    events.emit(HAPPENED)
    assert subscriber.calls == 2
    assert len(caplog.records) == 1


class Nameless:
    """A subscriber whose ``repr`` raises."""

    def __call__(self, event: Event) -> None:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError


def test_a_subscriber_that_cannot_even_be_shown_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The logging package reports its own trouble to stderr, and pytest makes it raise; servers do not.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger = logging.getLogger("wsgi_isr")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(handler := logging.StreamHandler())
    try:
        Events(Nameless()).emit(HAPPENED)
    finally:
        logger.removeHandler(handler)


def test_a_subscriber_may_subscribe_another_one() -> None:
    heard: list[Event] = []
    events = Events()

    def first(event: Event) -> None:
        if not heard:
            events.subscribe(heard.append)

    events.subscribe(first)
    events.emit(HAPPENED)
    events.emit(HAPPENED)
    assert heard == [HAPPENED]


def test_a_subscriber_that_ends_the_process_ends_it() -> None:
    def stop(event: Event) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        Events(stop).emit(HAPPENED)


def test_events_are_values_that_nobody_changes() -> None:
    event: Any = HAPPENED
    with pytest.raises(AttributeError):
        event.label = "MISS"
    assert Served("page", "HIT", 1.5) == HAPPENED
