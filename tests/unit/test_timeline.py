"""The recorder of timelines: its bounds, its thread, its end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from wsgi_isr.cache import timeline
from wsgi_isr.cache.keyspace import Keyspace, stored_tag
from wsgi_isr.cache.timeline import LASTS, SHORT, Recorder, TimelineEvent, Timelines, acting_as, current_actor
from wsgi_isr.events import Event, Invalidated, Rendered, RenderFailed, Served
from wsgi_isr.stores.memory import MemoryStore

PAGE = "isr5:aa:p:bb"
DEADLINE = 20.0


class Store(MemoryStore):
    """A store that counts the writes, and tells of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lasts: list[tuple[str, float | None]] = []
        self.written = threading.Event()

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        super().set(key, value, ttl)
        self.lasts.append((key, ttl))
        self.written.set()


def recorder_of(store: MemoryStore, is_alone: bool = True, **options: Any) -> Recorder:
    return Recorder(Timelines(store, "default"), lambda: 1000.0, is_alone=is_alone, **options)


def read(store: MemoryStore, key: str = "") -> list[TimelineEvent]:
    return Timelines(store, "default").read(store.get(key or Keyspace.timeline(PAGE)))


def test_stale_answers_in_a_row_are_one_event_that_counts_them() -> None:
    store = Store()
    recorder = recorder_of(store)
    events: list[Event] = [Served(PAGE, "STALE"), Served(PAGE, "HIT"), Served(PAGE, "STALE")]
    for event in [*events, Rendered(PAGE, 0.5, True), Served(PAGE, "STALE")]:
        recorder(event)
    recorder.flush()
    assert [(event.kind, event.times) for event in read(store)] == [("stale", 2), ("rendered", 1), ("stale", 1)]
    recorder(Served(PAGE, "STALE"))
    recorder.flush()
    assert [(event.kind, event.times) for event in read(store)][-1] == ("stale", 2)


def test_an_exception_is_kept_as_the_first_line_of_its_text() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    store = Store()
    recorder = recorder_of(store)
    for error in (ValueError("first\nsecond"), ValueError("x" * 1000), Odd(), ValueError()):
        recorder(RenderFailed(PAGE, "/", "exception", 1.0, error))
    recorder.flush()
    details = [event.detail for event in read(store)]
    assert details[0] == "exception: ValueError: first"
    assert len(details[1]) == timeline.MAX_TEXT
    assert details[2:] == ["exception: Odd: ", "exception: ValueError: "]


def test_a_record_of_a_page_that_may_not_exist_lasts_shortly() -> None:
    store = Store()
    recorder = recorder_of(store)
    for number, event in enumerate(
        [
            Rendered(PAGE, 0.1, True),
            Rendered(PAGE, 0.1, True, source="negative_ttl"),
            RenderFailed(PAGE, "/", "timeout", 1.0),
        ]
    ):
        recorder(event._replace(key=f"{PAGE}{number}"))
    recorder(Invalidated(("tag:a",), "expire"))
    recorder.flush()
    assert [ttl for _, ttl in store.lasts] == [LASTS, SHORT, SHORT, LASTS]


def test_data_has_no_timeline_and_neither_has_an_undelivered_tag() -> None:
    store = Store()
    recorder = recorder_of(store)
    recorder(Rendered("isr5:aa:d:bb", 0.1, True))
    recorder(Invalidated(("tag:a", "tag:b"), "expire", ("tag:a",)))
    recorder.flush()
    assert [key for key, _ in store.lasts] == [Timelines(store, "default").key_of_tag(stored_tag("tag:b"))]


def test_the_waiting_events_have_a_bound() -> None:
    recorder = recorder_of(Store())
    for number in range(3 * timeline.MAX_NOTED):
        recorder(Rendered(f"isr5:aa:p:{number}", 0.1, True))
    assert len(recorder._noted) == timeline.MAX_NOTED
    recorder.waiting(PAGE)
    assert len(recorder._waiting) == timeline.MAX_WAITING


def test_one_write_takes_some_records_and_the_next_one_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    recorder = recorder_of(store)
    for number in range(5):
        recorder(Rendered(f"isr5:aa:p:{number}", 0.1, True))
    recorder.flush(limit=3)
    assert len(store.lasts) == 3
    recorder.flush(limit=3)
    assert len(store.lasts) == 5


def test_a_thread_writes_behind_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "PAUSE", 0.001)
    store = Store()
    recorder = recorder_of(store, is_alone=False)
    recorder(Rendered(PAGE, 0.5, True))
    assert store.written.wait(DEADLINE)
    recorder.close(DEADLINE)
    assert [event.kind for event in read(store)] == ["rendered"]


def test_the_end_of_a_process_writes_at_once_and_starts_no_thread_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "PAUSE", 3600.0)
    store = Store()
    recorder = recorder_of(store, is_alone=False)
    recorder(Rendered(PAGE, 0.5, True))
    recorder.close(DEADLINE)
    assert [event.kind for event in read(store)] == ["rendered"]
    monkeypatch.setattr(timeline, "in_thread", lambda work: pytest.fail("a thread was started"))
    recorder(Rendered(PAGE, 0.5, True))


def test_a_process_without_more_threads_keeps_the_events_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "in_thread", lambda work: False)
    recorder = recorder_of(Store(), is_alone=False)
    recorder(Rendered(PAGE, 0.5, True))
    recorder(Rendered(PAGE, 0.5, True))
    assert len(recorder.waiting(Keyspace.timeline(PAGE))) == 2


def test_the_role_of_the_process_comes_before_that_of_the_render() -> None:
    store = Store()
    recorder_of(store, role=lambda: "renderer")(Rendered(PAGE, 0.5, True))
    recorder = recorder_of(store, role=lambda: "renderer")
    with timeline.rendering_as("background"):
        recorder(Rendered(PAGE, 0.5, True))
    recorder.flush()
    assert [event.by.rpartition(":")[2] for event in read(store)] == ["renderer"]


@pytest.mark.parametrize(
    "bad",
    [
        Invalidated(("tag:a",), "expire", actor=5),  # type: ignore[arg-type]
        RenderFailed(PAGE, "/", "exception", "soon"),  # type: ignore[arg-type]
    ],
    ids=["actor", "seconds"],
)
def test_an_event_that_is_no_record_is_left_out_and_the_thread_goes_on(
    monkeypatch: pytest.MonkeyPatch, bad: Event
) -> None:
    monkeypatch.setattr(timeline, "PAUSE", 0.01)
    store = Store()
    recorder = recorder_of(store, is_alone=False)
    recorder(bad)
    recorder(Rendered(PAGE, 0.5, True))
    assert store.written.wait(DEADLINE)
    recorder.close(DEADLINE)
    assert [event.kind for event in read(store)] == ["rendered"]
    assert not recorder._is_writing


def test_a_thread_that_fails_gives_way_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError

    threads: list[Any] = []
    monkeypatch.setattr(timeline, "PAUSE", 0.0)
    monkeypatch.setattr(timeline, "in_thread", lambda work: not threads.append(work))
    recorder = recorder_of(Store(), is_alone=False)
    monkeypatch.setattr(recorder, "_collect", fail)
    for number in (1, 2):
        recorder(Rendered(PAGE, 0.5, True))
        assert len(threads) == number
        with pytest.raises(MemoryError):
            threads[-1]()


@pytest.mark.parametrize("address", ["postgres://ann:s3cret@db/x", "https://ann:s3/c@ret@db/x", "redis://:s3cret@db"])
def test_the_credentials_in_the_text_of_an_exception_are_not_kept(address: str) -> None:
    store = Store()
    recorder = recorder_of(store)
    recorder(RenderFailed(PAGE, "/", "exception", 1.0, OSError(f"no answer from {address} in 5 s")))
    recorder.flush()
    (event,) = read(store)
    assert event.detail.startswith(f"exception: OSError: no answer from {address.partition(':')[0]}://***@db")
    assert event.detail.endswith(" in 5 s")
    assert "s3" not in event.detail


def test_an_invalidation_outside_of_a_request_is_of_the_app() -> None:
    assert current_actor() == "app"
    with acting_as("request 1"):
        assert current_actor() == "request 1"
    assert current_actor() == "app"


@pytest.mark.parametrize(
    "event",
    [
        ("unknown", 1.0),
        ("stale", "1"),
        ("stale", float("nan")),
        ("stale", 1.0, 5),
        ("stale", 1.0, "x" * 1000),
        ("stale", 1.0, "", 0.0, "", "many"),
        ("stale", 1.0, "", 0.0, "", 1, "", ("x",) * 100),
        (),
    ],
)
def test_an_impossible_event_of_another_program_is_left_out(event: tuple[Any, ...]) -> None:
    import msgpack

    store = MemoryStore()
    timelines = Timelines(store, "default")
    packed = msgpack.packb([("stale", 1.0), event])
    found = timelines.read(timelines._codec.seal(packed, "timeline"))
    assert all(one == TimelineEvent("stale", 1.0) for one in found)
