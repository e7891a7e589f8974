"""The log has lines for events that happened, and for no others."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from tests.unit.scripted import Clock
from wsgi_isr.cache.invalidation import Invalidator
from wsgi_isr.cache.journal import Journal
from wsgi_isr.cache.lease import LeaseKeepAlive
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.events import Event, Events, InternalError, RenderFailed, Unreadable
from wsgi_isr.observe.log import log_events
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.memory import MemoryStore


def line_of(event: Event, caplog: pytest.LogCaptureFixture) -> str:
    """Return the line that one event makes."""
    with caplog.at_level(logging.DEBUG, "wsgi_isr"):
        log_events()(event)
    (record,) = caplog.records
    return record.getMessage()


def test_an_internal_error_is_logged_with_what_it_led_to(caplog: pytest.LogCaptureFixture) -> None:
    event = InternalError("the cache", LookupError("no such thing"), "the app answers the request")
    assert line_of(event, caplog) == "internal error: the cache failed; the app answers the request"
    assert "no such thing" in caplog.text


def test_an_internal_error_without_consequences_claims_none(caplog: pytest.LogCaptureFixture) -> None:
    assert (
        line_of(InternalError("a background render", LookupError()), caplog)
        == "internal error: a background render failed"
    )


def test_a_failed_render_does_not_claim_that_there_is_an_older_page(caplog: pytest.LogCaptureFixture) -> None:
    line = line_of(RenderFailed("isr3:p:1", "/", "exception", 2.0), caplog)
    assert line == "render failed: rule '/', page isr3:p:1: exception; any last good page stays, next try in 2.0 s"


class Lost(MemoryStore):
    """A store that refuses invalidations."""

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        raise StoreUnavailable("node", "away")


def test_a_journal_that_cannot_be_written_says_that_the_tags_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = tmp_path / "journal"
    os.mkdir(journal)  # nothing can be appended to a directory
    store: Store = Lost()
    with pytest.raises(Exception, match="not delivered"):
        Invalidator(store, "default", Journal(str(journal)), Events(log_events())).invalidate(["tag:a"])
    lines = [record.getMessage() for record in caplog.records if "journal" in record.getMessage()]
    said = f"internal error: writing the journal {journal} failed; it does not keep the undelivered tags"
    assert lines == [f"{said} ({journal}: Is a directory)"]


def test_a_journal_that_cannot_be_read_says_that_its_tags_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = tmp_path / "journal"
    os.mkdir(journal)
    Invalidator(MemoryStore(), "default", Journal(str(journal)), Events(log_events())).invalidate(["tag:a"])
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (
        record.getMessage()
        == f"internal error: replaying the journal {journal} failed; the next invalidation tries it again"
    )


def test_an_error_while_a_lease_is_kept_says_that_renders_go_on(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    keeper = LeaseKeepAlive(clock, Events(log_events()))
    keeper._thread = threading.current_thread()

    def fail() -> None:
        raise RuntimeError("boom")

    keeper.watch(None, 1.0, fail)
    clock.advance(2)
    keeper.tick()
    assert [record.getMessage() for record in caplog.records] == [
        "internal error: keeping a lease failed; its render goes on, and another process may begin the same one"
    ]


def test_unreadable_values_are_logged_once_a_minute_for_each_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("wsgi_isr.observe.log.time.monotonic", clock)
    log = log_events()
    for number in range(50):
        log(Unreadable(f"page {number}", "signature"))
    log(Unreadable("page", "schema 2"))
    clock.advance(60)
    log(Unreadable("page 50", "signature"))
    text = "a stored value is unreadable (%s) and counts as missing: %s"
    assert [record.getMessage() for record in caplog.records] == [
        text % ("signature", "page 0"),
        text % ("schema 2", "page"),
        text % ("signature", "page 50"),
    ]
