"""Invalidations that a node misses are named, kept in the journal on disk, and delivered later."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest

from tests.behaviour.conftest import MakeSite
from tests.behaviour.nodes import RULES, TAGS, Nodes, spread
from tests.behaviour.origin import Origin, answer
from tests.behaviour.visitor import Clock
from wsgi_isr import InvalidationError, invalidate, replay
from wsgi_isr.cache import journal as module
from wsgi_isr.cache.invalidation import Invalidator
from wsgi_isr.cache.journal import Journal, JournalLine
from wsgi_isr.cache.keyspace import Keyspace, path_tag
from wsgi_isr.events import Delivered
from wsgi_isr.middleware import process

#: Distinct paths that a flood writes to.
POSTS = 10_000
MODES = ["stale", "expire", "purge"]


@pytest.mark.parametrize("how", ["the next call", "replay"])
@pytest.mark.parametrize("mode", MODES)
def test_a_journal_keeps_what_was_not_delivered_for_replay(
    make_site: MakeSite, clock: Clock, tmp_path: Path, how: str, mode: str
) -> None:
    journal = str(tmp_path / "journal")
    site, store = spread(make_site, clock, journal=journal)
    store.unplugged = {"b:1"}
    receipt = site.isr.invalidate(tags=TAGS, mode=mode)
    assert receipt.journal == journal
    kept = set(receipt.pending)
    assert kept
    store.unplugged = set()
    if how == "replay":
        assert set(replay(store=store, journal=journal)) == kept
    else:
        assert set(site.isr.invalidate(tags=["something else"]).replayed) == kept
    for path in RULES:
        seen = site.visit_and_settle(path)
        assert (seen.label == "STALE") == (mode == "stale"), path
        assert seen.label != "HIT", path
        assert site.visit(path).label == "HIT"
    # The lines are delivered once: a second replay or another call finds none.
    assert replay(store=store, journal=journal) == ()
    assert site.isr.invalidate(tags=["something else"]).replayed == ()


def test_a_receipt_names_what_is_pending_and_can_be_made_an_error(
    make_site: MakeSite, clock: Clock, tmp_path: Path
) -> None:
    journal = str(tmp_path / "journal")
    site, store = spread(make_site, clock, journal=journal)
    store.unplugged = {"b:1"}
    receipt = site.isr.invalidate(tags=TAGS)
    assert set(receipt.tags) == {f"tag:{tag}" for tag in TAGS}
    assert 0 < len(receipt.pending) < len(TAGS)
    assert (set(receipt.nodes), set(receipt.acknowledged)) == ({"a:1", "b:1", "c:1"}, {"a:1", "c:1"})
    with pytest.raises(InvalidationError, match="unplugged") as raised:
        receipt.raise_for_pending()
    assert tuple(raised.value.undelivered) == receipt.pending
    assert set(raised.value.delivered) == set(receipt.tags) - set(receipt.pending)
    assert raised.value.journal == journal
    assert journal in str(raised.value)
    # The line is on disk before the call returns. The delivered part holds.
    lines = [json.loads(line) for line in Path(journal).read_text().splitlines() if line]
    assert [tag for line in lines for tag in line[1]] == list(receipt.pending)
    store.unplugged = set()
    for name in raised.value.delivered:
        assert site.visit(f"/{name.removeprefix('tag:')}").label == "EXPIRED", name
    # A task queue may copy the error.
    assert str(copy.deepcopy(receipt)) == str(receipt)
    assert str(copy.deepcopy(raised.value)) == str(raised.value)
    done = site.isr.invalidate(tags=TAGS)
    assert (done.pending, set(done.acknowledged)) == ((), set(done.nodes))
    done.raise_for_pending()


def test_a_view_that_invalidates_after_its_commit_is_no_error_while_a_node_is_away(
    make_site: MakeSite, origin: Origin, clock: Clock, tmp_path: Path
) -> None:
    site, store = spread(make_site, clock, journal=str(tmp_path / "journal"))
    origin.on("/publish", answer(lambda environ: ",".join(invalidate(tags=["t1"]).pending).encode()))
    store.unplugged = {*store.nodes}
    seen = site.visit("/publish", method="POST")
    assert (seen.code, seen.body) == (200, b"tag:t1")


@pytest.mark.parametrize("how", ["no journal", "a journal that cannot be written"])
def test_what_nothing_can_keep_is_an_error(make_site: MakeSite, clock: Clock, tmp_path: Path, how: str) -> None:
    options = {"journal": str(tmp_path / "journal")} if how != "no journal" else {"journal": False}
    site, store = spread(make_site, clock, **options)
    (tmp_path / "journal").mkdir()
    store.unplugged = {"b:1"}
    with pytest.raises(InvalidationError) as raised:
        site.isr.invalidate(tags=TAGS)
    assert raised.value.undelivered
    assert raised.value.journal is None


def test_lines_of_the_journal_are_delivered_in_the_order_in_which_they_were_kept(
    make_site: MakeSite, clock: Clock, tmp_path: Path
) -> None:
    site, store = spread(make_site, clock, journal=str(tmp_path / "journal"))
    store.unplugged = {*store.nodes}
    named = [("t3", "stale"), ("t1", "stale"), ("t2", "purge"), ("t1", "expire"), ("t5", "stale")]
    for tag, mode in named:
        site.isr.invalidate(tags=[tag], mode=mode)
    store.unplugged = set()
    assert site.isr.replay() == ("tag:t3", "tag:t1", "tag:t2", "tag:t5")


def test_an_app_delivers_its_journal_by_itself(make_site: MakeSite, clock: Clock, tmp_path: Path) -> None:
    site, store = spread(make_site, clock, journal=str(tmp_path / "journal"))
    assert site.isr.deliver_kept() is False
    store.unplugged = {"b:1"}
    kept = site.isr.invalidate(tags=TAGS).pending
    assert site.isr.deliver_kept() is True
    store.unplugged = set()
    assert site.isr.deliver_kept() is False
    assert site.happened(Delivered)[-1].tags == kept
    for path in RULES:
        assert site.visit(path).label == "EXPIRED", path


def test_a_process_waits_while_another_one_delivers_but_not_for_ever(
    make_site: MakeSite, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, store = spread(make_site, clock, journal=str(tmp_path / "journal"))
    store.unplugged = {"b:1"}
    site.isr.invalidate(tags=TAGS)
    store.unplugged = set()
    with Journal(str(tmp_path / "journal")).delivery_lock() as is_ours:
        assert is_ours
        assert [site.isr.deliver_kept() for _ in range(3)] == [True] * 3
        assert site.happened(Delivered) == []
        # The process was stopped, or hangs.
        monkeypatch.setitem(Invalidator.deliver_kept.__globals__, "_MAX_LOCK_WAIT", 0.0)
        assert site.isr.deliver_kept() is False
    assert len(site.happened(Delivered)) == 1


# While a node is unreachable ----------------------------------------------------------------------------


class Known(Nodes):
    """Nodes whose outages are known, as with memcached."""

    def is_displaced(self, key: str) -> bool:
        return self.node_of(key) in self.unplugged


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the journals that were read."""
    found: list[str] = []
    read = Journal.lines
    monkeypatch.setattr(Journal, "lines", lambda self, *of: found.append(self.path) or read(self, *of))
    return found


def test_a_journal_is_not_read_again_until_it_or_a_node_has_changed(
    clock: Clock, tmp_path: Path, reads: list[str]
) -> None:
    store, journal = Known(clock), Journal(str(tmp_path / "journal"))
    one, other = (Invalidator(store, "default", journal) for _ in range(2))
    store.unplugged = {*store.nodes}
    one.invalidate(["tag:a"])
    assert [one.deliver_kept() for _ in range(5)] == [True] * 5
    assert len(reads) == 1
    other.invalidate(["tag:b"])  # the file has changed
    assert [one.deliver_kept() for _ in range(5)] == [True] * 5
    assert len(reads) == 2
    store.unplugged = set()  # a node is back
    assert one.deliver_kept() is False
    assert journal.is_empty()


def test_an_invalidation_reads_no_journal_that_is_empty_or_that_another_process_delivers(
    clock: Clock, tmp_path: Path, reads: list[str]
) -> None:
    store, journal = Known(clock), Journal(str(tmp_path / "journal"))
    invalidator = Invalidator(store, "default", journal)
    invalidator.invalidate(["tag:a"])
    assert reads == []
    store.unplugged = {*store.nodes}
    invalidator.invalidate(["tag:a"])
    store.unplugged = set()
    with Journal(journal.path).delivery_lock():
        assert invalidator.invalidate(["tag:b"]).replayed == ()
    assert reads == []
    assert invalidator.invalidate(["tag:b"]).replayed == ("tag:a",)


def test_an_anonymous_flood_of_writes_keeps_the_journal_small_and_each_line_cheap(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each POST invalidates the page at its URL (RFC 9111, 4.4), and any client can invent URLs.
    written = 0
    write = Journal._replace

    def count(self: Journal, lines: list[JournalLine]) -> None:
        nonlocal written
        write(self, lines)
        written += os.stat(self.path).st_size

    monkeypatch.setattr(Journal, "_replace", count)
    read = 0
    parse = module._parse

    def counted(text: str, now: float) -> JournalLine | None:
        nonlocal read
        read += 1
        return parse(text, now)

    monkeypatch.setattr(module, "_parse", counted)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    store, journal = Known(clock), Journal(str(tmp_path / "journal"))
    invalidator = Invalidator(store, "default", journal)
    store.unplugged = {*store.nodes}
    for number in range(POSTS):
        invalidator.invalidate([path_tag(f"/{number}")])
    assert os.stat(journal.path).st_size <= module.MAX_BYTES
    assert read <= 100 * POSTS
    assert written <= 2 * module.MAX_BYTES


# Another list of nodes ----------------------------------------------------------------------------------


class Other(Nodes):
    """The same nodes without the first one."""

    nodes = ("b:1", "c:1", "d:1")


def test_only_a_store_that_has_a_tag_on_the_node_that_missed_it_takes_it_out_of_the_journal(
    make_site: MakeSite, clock: Clock, tmp_path: Path
) -> None:
    # A rolling change of the node list: processes with the old list and with the new one share the journal.
    journal = Journal(str(tmp_path / "journal"))
    site, store = spread(make_site, clock, journal=journal.path)
    store.unplugged = {"a:1", "b:1"}
    pending = site.isr.invalidate(tags=TAGS).pending
    key = Keyspace(site.isr.configuration.settings.namespace).tag
    other = Other(clock)
    both = {name for name in pending if store.node_of(key(name)) == other.node_of(key(name)) == "b:1"}
    assert set() < both < {*pending}
    elsewhere = Invalidator(other, site.isr.configuration.settings.namespace, journal)

    assert elsewhere.deliver_kept() is False
    assert {tag for line in journal.lines("default", store.places) for tag in line.tags} == {*pending} - both
    # The node got the rest, once. A page on it with one of these tags is not served, either.
    assert all(other.get(key(name)) is not None for name in pending)
    told = [other.get(key(name)) for name in pending]
    assert elsewhere.deliver_kept() is False
    assert [other.get(key(name)) for name in pending] == told

    store.unplugged = set()
    assert site.isr.deliver_kept() is False
    assert journal.is_empty()
    for path in RULES:
        if f"tag:{path[1:]}" in {*pending} - both:
            assert site.visit(path).label == "EXPIRED", path


# A job outside of any app -------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a store whose only node is down, for a process without an app in its own folder."""
    monkeypatch.setattr(process, "state_folder", lambda app: str(tmp_path / ".wsgi_isr"))
    return "memcached://127.0.0.1:1"


def test_a_job_in_a_folder_without_a_journal_promises_no_delivery(job: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidationError) as raised:
        invalidate(tags=["posts"], store=job)
    assert raised.value.journal is None
    assert list(tmp_path.iterdir()) == []
    assert replay(store=job) == ()


@pytest.mark.parametrize("which", ["the default", "named"])
def test_a_job_uses_the_journal_of_the_app_and_says_who_delivers_it(
    job: str, which: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    default = tmp_path / ".wsgi_isr" / "journal"
    if which == "the default":
        default.parent.mkdir()
        default.touch()
    named = None if which == "the default" else str(tmp_path / "journal")
    receipt = invalidate(tags=["posts"], store=job, journal=named)
    assert receipt.journal == (named or str(default))
    (line,) = [text for text in caplog.messages if text.startswith("pending")]
    assert line.endswith(
        f"it is kept in {receipt.journal}, and delivered by an app with journal= this file, or by wsgi-isr replay, "
        "once the node is back"
    )
