"""The history: one record a minute for each instance, which readers merge, and which no page needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.observe.aggregate import history_of
from wsgi_isr.observe.history import MAX_INSTANCES, TTL, History, Instance, Minutes, newest, summary
from wsgi_isr.observe.totals import Totals
from wsgi_isr.stores.memory import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(clock=clock)


@pytest.fixture
def minutes(store: MemoryStore, clock: Clock) -> Callable[[], Minutes]:
    return lambda: Minutes(History(store, "shop", clock=clock), "instance", clock)


def hits(number: int, **moment: int) -> Totals:
    return Totals(requests={("/", "HIT", ""): number}, **moment)  # type: ignore[arg-type]


def seen(store: MemoryStore, clock: Clock, minutes: int = 10) -> list[int]:
    return [each.totals.requests.get(("/", "HIT", ""), 0) for each in history_of(store, "shop", minutes, clock=clock)]


def test_a_record_has_the_counts_since_the_one_before(
    minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock
) -> None:
    one = minutes()
    for number in (3, 10, 10):
        clock.now += 60
        assert one.is_due()
        one.write(hits(number))
        assert not one.is_due()
    assert seen(store, clock) == [3, 7, 0]


def test_the_last_record_of_a_process_joins_the_one_of_its_minute(
    minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock
) -> None:
    one = minutes()
    clock.now += 60
    one.write(hits(3))
    clock.now += 0.5
    one.write(hits(5))
    assert seen(store, clock) == [5]


def test_readers_merge_all_instances(minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock) -> None:
    each = [minutes() for _ in range(3)]
    clock.now += 60
    for number, one in enumerate(each, 1):
        one.write(hits(number, local_bytes=10, processes=2))
    records = history_of(store, "shop", 10, clock=clock)
    total = summary(records, clock.now)
    assert (total.requests, total.local_bytes, total.processes) == ({("/", "HIT", ""): 6}, 30, 6)
    assert len(newest(records)) == 3


def test_values_of_the_moment_are_those_of_living_instances(
    minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock
) -> None:
    gone, alive = minutes(), minutes()
    clock.now += 60
    gone.write(hits(1, local_bytes=10))
    for _ in range(4):
        clock.now += 60
        alive.write(hits(1, local_bytes=5))
    total = summary(history_of(store, "shop", 10, clock=clock), clock.now)
    assert (total.requests, total.local_bytes) == ({("/", "HIT", ""): 2}, 5)


def test_a_record_that_was_not_written_is_in_the_next_one(
    minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = minutes()
    with monkeypatch.context() as patch:

        def unreachable(*arguments: object) -> None:
            raise StoreUnavailable("local", "gone")

        patch.setattr(store, "set", unreachable)
        clock.now += 60
        with pytest.raises(StoreUnavailable):
            one.write(hits(3))
    clock.now += 60
    one.write(hits(4))
    assert seen(store, clock) == [4]


def test_only_as_many_minutes_are_read_as_are_asked_for(
    minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock
) -> None:
    one = minutes()
    for number in range(1, 11):
        clock.now += 60
        one.write(hits(number))
    assert len(seen(store, clock, minutes=3)) == 4


def test_records_lapse_after_25_hours(minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock) -> None:
    one = minutes()
    clock.now += 60
    one.write(hits(3))
    clock.now += TTL + 1
    assert history_of(store, "shop", 2000, clock=clock) == []
    assert History(store, "shop", clock=clock).instances() == []


def test_another_namespace_and_another_key_see_nothing(
    minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock
) -> None:
    one = minutes()
    clock.now += 60
    one.write(hits(3))
    assert history_of(store, "other", 10, clock=clock) == []
    assert history_of(store, "shop", 10, signing_key="k" * 40, clock=clock) == []


def test_damaged_records_are_left_out(minutes: Callable[[], Minutes], store: MemoryStore, clock: Clock) -> None:
    one = minutes()
    for number in (3, 10):
        clock.now += 60
        one.write(hits(number))
    history = History(store, "shop", clock=clock)
    (instance,) = history.instances()
    key = history._names.history(f"{instance.id} {int(clock.now // 60)}")
    assert store.get(key) is not None
    store.set(key, b"damaged")
    assert seen(store, clock) == [3]


def test_a_list_of_instances_that_another_program_wrote_counts_as_empty(store: MemoryStore, clock: Clock) -> None:
    history = History(store, "shop", clock=clock)
    key = history._names.history("")
    for data in (b"x", history._codec.seal(b"\xc1", "history"), history._codec.seal(b"\x91\x91\x01", "history")):
        store.set(key, data)
        assert history.instances() == []


def test_the_list_of_instances_is_bounded(store: MemoryStore, clock: Clock) -> None:
    history = History(store, "shop", clock=clock)
    for number in range(MAX_INSTANCES + 5):
        clock.now += 1
        history.write(Instance(str(number), "host:1", "instance", clock.now, clock.now), Totals())
    known = {each.id for each in history.instances()}
    assert len(known) == MAX_INSTANCES
    assert str(MAX_INSTANCES + 4) in known
    assert "0" not in known
