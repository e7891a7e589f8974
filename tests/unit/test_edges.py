"""Purges of edges: their tags, their journal and their repetition."""

from __future__ import annotations

import math
import string
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgpack
import pytest

from wsgi_isr.cache import edges as module
from wsgi_isr.cache.app_records import AppRecord, Apps, Registry, unpurged
from wsgi_isr.cache.edges import IN_FLIGHT, Edges
from wsgi_isr.cache.entry import Codec
from wsgi_isr.cache.journal import Journal
from wsgi_isr.cache.keyspace import Keyspace, path_tag, stored_tag
from wsgi_isr.cache.tag_versions import Mode
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.events import Event, Events, InternalError
from wsgi_isr.stores.memory import MemoryStore


class FakeEdge:
    """An edge that notes its purges, and fails on demand."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.batch = 100
        self.is_due = True
        self.is_down = False
        self.is_down_after = math.inf
        self.is_closed = False
        self.purges: list[tuple[tuple[str, ...], bool]] = []
        self.again = threading.Event()

    def purge(self, tokens: Sequence[str], is_soft: bool) -> None:
        if self.is_down or len(self.purges) >= self.is_down_after:
            raise StoreUnavailable(self.place, "down")
        self.purges.append((tuple(tokens), is_soft))
        if len(self.purges) > 1:
            self.again.set()

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def one() -> FakeEdge:
    return FakeEdge("cdn://one")


@pytest.fixture
def two() -> FakeEdge:
    return FakeEdge("cdn://two")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "journal"))


class Waits:
    """The pauses before purges."""

    def __init__(self) -> None:
        self.seconds: list[float] = []


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def edges(one: FakeEdge, two: FakeEdge, journal: Journal, waits: Waits, events: list[Event]) -> Iterator[Edges]:
    made = Edges([one, two], str.upper, 0.5, "site", journal, Events(events.append), waits.seconds.append)
    yield made
    made.close(0)


@pytest.mark.parametrize("name", ["all", "tag:posts", "tag:\ud800", path_tag("/a"), "prefix:/", "data:x 1", "route:*"])
def test_a_name_and_its_stored_form_have_one_token_that_fits_into_any_header(name: str) -> None:
    keyspace = Keyspace("site", "release 1")
    token = keyspace.edge_token(name)
    assert token == keyspace.edge_token(stored_tag(name)) == Keyspace("site", "release 2").edge_token(name)
    assert len(token) == 12
    assert {*token} <= {*string.ascii_letters, *string.digits, "-", "_"}


def test_sites_that_share_a_cdn_do_not_share_tokens() -> None:
    assert Keyspace("one").edge_token("all") != Keyspace("two").edge_token("all")


def test_all_edges_are_purged_after_the_wait_in_the_mode(
    edges: Edges, one: FakeEdge, two: FakeEdge, waits: Waits
) -> None:
    assert edges.purge(["a", "b", "a"], Mode.STALE).errors == {}
    assert one.purges == two.purges == [(("A", "B"), True)]
    assert waits.seconds == [0.5 + IN_FLIGHT]


def test_the_edge_that_fails_is_kept_for_and_the_other_is_purged(
    edges: Edges, one: FakeEdge, two: FakeEdge, journal: Journal
) -> None:
    one.is_down = True
    missed = edges.purge(["a"], Mode.EXPIRE)
    assert {*missed.errors} == {one.place}
    assert missed.journal == journal.path
    assert [line.tags for line in journal.lines("site", [one.place])] == [("a",)]
    assert journal.lines("site", [two.place]) == []
    assert two.purges


def test_lines_are_delivered_in_order_and_stay_from_the_first_failure_on(
    edges: Edges, one: FakeEdge, journal: Journal
) -> None:
    for tag, mode in (("a", "expire"), ("b", "stale"), ("c", "expire")):
        journal.keep("site", [tag], mode, [one.place], [one.place])
    one.is_down = True
    delivered, failed, away = edges.replay()
    assert (dict(delivered), {*failed}, away) == ({}, {"a"}, (one.place,))
    one.is_down = False
    assert [*edges.replay()[0]] == ["a", "b", "c"]
    assert [purge for purge in one.purges if purge[0] == ("B",)] == [(("B",), True)]
    assert journal.is_empty()


def test_a_line_of_many_tags_is_delivered_in_parts_and_a_failure_leaves_the_rest(
    edges: Edges, one: FakeEdge, journal: Journal
) -> None:
    tags = [f"t{number}" for number in range(20)]
    journal.keep("site", tags, "expire", [one.place], [one.place] * 20)
    one.batch, one.is_down_after = 1, 2
    delivered, failed, away = edges.replay()
    assert ([*delivered], [*failed], away) == (tags[:16], tags[16:], (one.place,))
    assert [line.tags for line in journal.lines("site", [one.place])] == [tuple(tags[16:])]
    one.is_down_after = math.inf
    assert [*edges.replay()[0]] == tags[16:]
    assert journal.is_empty()


def test_lines_of_other_sites_and_of_stores_stay(edges: Edges, one: FakeEdge, journal: Journal) -> None:
    journal.keep("another site", ["a"], "expire", [one.place], [one.place])
    journal.keep("site", ["b"], "expire", ["memcached://x:1"], ["memcached://x:1"])
    assert edges.replay() == ({}, {}, ())
    assert not journal.is_empty()
    assert one.purges == []


def test_a_purge_is_repeated(edges: Edges, one: FakeEdge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE", 0.01)
    edges.purge(["a"], Mode.EXPIRE)
    assert one.again.wait(20)
    assert one.purges == [(("A",), False)] * 2


def test_the_end_repeats_at_once_what_is_left_and_disconnects(edges: Edges, one: FakeEdge, two: FakeEdge) -> None:
    edges.purge(["a"], Mode.EXPIRE)
    edges.purge(["b"], Mode.EXPIRE)
    edges.close(0)
    assert one.purges[2:] == [(("A", "B"), False)]
    assert one.is_closed
    assert two.is_closed


def test_the_end_does_not_wait_for_a_thread_that_has_not_started(edges: Edges, one: FakeEdge) -> None:
    edges._thread = threading.Thread()
    edges.close(0)
    assert one.is_closed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_an_exception_in_a_repetition_the_next_purge_is_repeated(
    edges: Edges, one: FakeEdge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE", 0.01)

    def fail(_: object) -> None:
        raise ValueError("broken")

    for tag, repeat in (("a", fail), ("b", edges._purge_again)):
        monkeypatch.setattr(edges, "_purge_again", repeat)
        edges.purge([tag], Mode.EXPIRE)
        if (thread := edges._thread) is not None:
            thread.join(20)
    assert one.purges == [(("A",), False), (("B",), False), (("B",), False)]


def test_a_repetition_is_not_asked_of_an_edge_that_has_the_purge_in_its_journal(edges: Edges, one: FakeEdge) -> None:
    one.is_down = True
    edges.purge(["a"], Mode.EXPIRE)
    one.is_down = False
    edges.close(0)
    assert one.purges == []


def test_a_repetition_that_fails_is_kept_and_without_a_journal_reported(
    edges: Edges, one: FakeEdge, journal: Journal, events: list[Event]
) -> None:
    edges.purge(["a"], Mode.EXPIRE)
    one.is_down = True
    edges.close(0)
    assert [line.tags for line in journal.lines("site", [one.place])] == [("a",)]
    bare = Edges([one], str.upper, 0, "site", None, Events(events.append), lambda seconds: None)
    one.is_down = False
    bare.purge(["a"], Mode.EXPIRE)
    one.is_down = True
    bare.close(0)
    assert [type(event) for event in events] == [InternalError]


# The records of apps ------------------------------------------------------------------------------------


def test_a_record_of_an_app_without_the_cdn_is_read() -> None:
    store, codec = MemoryStore(), Codec(None, "site")
    record = ("app", ("/",), True, ("local",), (), 1.0, 2.0)
    for key in Registry(store, "site")._keys:
        store.set(key, codec.seal(msgpack.packb([record]), "apps"))
    found = Registry(store, "site").apps()
    assert found is not None
    assert found.records == (AppRecord(*record, ""),)


@pytest.mark.parametrize(
    ("cdn", "has_edges", "is_warned"), [("fastly", False, True), ("fastly", True, False), ("", False, False)]
)
def test_a_process_that_cannot_purge_the_cdn_of_an_app_is_warned(cdn: str, has_edges: bool, is_warned: bool) -> None:
    apps = Apps((AppRecord("shop", (), True, (), (), 1.0, 2.0, cdn),), ())
    assert bool([*unpurged(apps, has_edges)]) is is_warned
    assert [*unpurged(None, has_edges)] == []
