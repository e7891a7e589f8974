"""Leases: one owner in the cluster at a time, which may lose its lease; and the back-off after failures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.scripted import NEVER, Clock, Troubled, start, unavailable
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.lease import BACKOFF_PAUSE, BACKOFF_VALUE, BackingOff, Busy, Lease, Leases
from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.events import Event, Events, LeaseLost, StoreFailed
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.memory import MemoryStore

PAGE = "isr:p:page"
LOCK = Keyspace.lock(PAGE)


class World:
    """Two processes that want to render the same page."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.memory = MemoryStore(clock=self.clock)
        self.store = Troubled(self.memory)
        self.seen: list[Event] = []
        self.one = self.leases(self.store)
        self.other = self.leases(self.memory)
        self.future: Future[object]

    def leases(self, store: Store) -> Leases:
        return Leases(store, Keyspace.lock, Keyspace.failures, Events(self.seen.append))

    def meanwhile(self, act: Callable[[], object]) -> Callable[[], None]:
        """Run ``act`` in another thread, to its end or until it has to wait for this thread."""

        def interruption() -> None:
            self.future = start(act)
            wait([self.future], timeout=0.2)

        return interruption

    def take(self, leases: Leases | None = None, ttl: float = 10) -> Lease:
        lease = (leases or self.one).acquire(PAGE, ttl)
        assert isinstance(lease, Lease), lease
        return lease


@pytest.fixture
def world() -> World:
    return World()


# One owner ---------------------------------------------------------------------------------------------


def test_of_two_who_ask_one_gets_the_lease(world: World) -> None:
    world.take(world.one)
    assert world.other.acquire(PAGE, 10) == Busy()


def test_who_holds_a_lease_does_not_get_it_twice(world: World) -> None:
    world.take()
    assert world.one.acquire(PAGE, 10) == Busy()


def test_leases_of_different_pages_are_independent(world: World) -> None:
    world.take()
    assert isinstance(world.other.acquire(PAGE + "2", 10), Lease)


def test_a_released_lease_can_be_had_at_once(world: World) -> None:
    lease = world.take()
    lease.release()
    assert lease.over
    world.take(world.other)
    assert world.seen == []


@pytest.mark.parametrize(("after", "lapsed"), [(9.9, False), (10, True)])
def test_the_lease_of_a_dead_owner_lapses_after_its_ttl(world: World, after: float, lapsed: bool) -> None:
    world.take()
    world.clock.advance(after)
    assert isinstance(world.other.acquire(PAGE, 10), Lease if lapsed else Busy)


def test_a_renewed_lease_begins_its_ttl_anew(world: World) -> None:
    lease = world.take()
    for _ in range(3):
        world.clock.advance(9)
        assert lease.renew()
    world.clock.advance(9)
    assert world.other.acquire(PAGE, 10) == Busy()
    world.clock.advance(1)
    world.take(world.other)


# The late owner ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [Lease.release, Lease.back_off, Lease.renew])
def test_a_late_owner_changes_nothing_about_the_lease_of_the_next(world: World, act: object) -> None:
    late = world.take(world.one)
    world.clock.advance(10)
    owner = world.take(world.other)
    before = world.memory.gets(LOCK)
    act(late)  # type: ignore[operator]
    assert world.memory.gets(LOCK) == before
    assert before is not None
    assert before.value == owner.token
    assert late.over
    assert world.seen == [LeaseLost(PAGE)]


@pytest.mark.parametrize("act", [Lease.release, Lease.back_off, Lease.renew])
def test_a_late_owner_does_not_bring_a_lapsed_lease_back(world: World, act: object) -> None:
    late = world.take()
    world.clock.advance(10)
    act(late)  # type: ignore[operator]
    assert world.memory.get(LOCK) is None
    assert world.seen == [LeaseLost(PAGE)]


def test_a_lease_that_changes_hands_between_look_and_release_is_left_alone(world: World) -> None:
    late = world.take(world.one)

    def changes_hands() -> None:
        world.clock.advance(10)
        world.take(world.other)

    world.store.after["gets", LOCK] = changes_hands
    late.release()
    held = world.memory.get(LOCK)
    assert held is not None
    assert held != late.token
    assert world.seen == [LeaseLost(PAGE)]


def test_a_lost_lease_is_said_once_and_not_touched_again(world: World) -> None:
    late = world.take()
    world.clock.advance(10)
    assert not late.renew()
    calls = len(world.store.calls)
    assert not late.renew()
    late.release()
    assert len(world.store.calls) == calls
    assert world.seen == [LeaseLost(PAGE)]


def test_a_renewal_after_the_release_brings_nothing_back(world: World) -> None:
    lease = world.take()
    lease.release()
    assert not lease.renew()
    assert world.memory.get(LOCK) is None
    assert world.seen == []


def test_a_renewal_in_the_middle_of_a_release_does_not_keep_the_lock(world: World) -> None:
    # The keep-alive began to renew the lease just before its render ended: the release has read the lock, then the
    # renewal writes it. Left in place, the lock would keep every process from rendering for one more lease.
    lease = world.take()
    world.store.after["gets", LOCK] = world.meanwhile(lease.renew)
    lease.release()
    world.future.result(NEVER)
    assert world.memory.get(LOCK) is None
    assert world.seen == []


def test_a_release_in_the_middle_of_a_renewal_is_no_loss(world: World) -> None:
    lease = world.take()
    world.store.after["gets", LOCK] = world.meanwhile(lease.release)
    lease.renew()
    world.future.result(NEVER)
    assert world.memory.get(LOCK) is None
    assert world.seen == []


def test_a_release_in_the_middle_of_going_to_rest_does_not_end_the_back_off(world: World) -> None:
    # A render past its timeout: the keep-alive is turning the lock into a back-off when the render ends at last and
    # releases the lock.
    lease = world.take()
    world.store.before["set", Keyspace.failures(PAGE)] = world.meanwhile(lease.release)
    lease.back_off()
    world.future.result(NEVER)
    assert world.other.acquire(PAGE, 10) == BackingOff()


# The back-off ------------------------------------------------------------------------------------------


def test_after_a_failure_nobody_gets_the_lease_until_the_pause_is_over(world: World) -> None:
    pause = world.take().back_off()
    world.clock.advance(pause - 0.01)
    assert world.other.acquire(PAGE, 10) == BackingOff()
    assert world.one.acquire(PAGE, 10) == BackingOff()
    world.clock.advance(0.01)
    world.take(world.other)


def test_releasing_after_going_to_rest_changes_nothing(world: World) -> None:
    lease = world.take()
    lease.back_off()
    lease.release()
    assert world.memory.get(LOCK) == BACKOFF_VALUE
    assert world.seen == []


@settings(max_examples=30)
@given(st.integers(1, 12))
def test_pauses_double_up_to_a_bound_whoever_fails(failures: int) -> None:
    world = World()
    pause = 0.0
    for number in range(failures):
        pause = world.take(world.one if number % 2 else world.other).back_off()
        world.clock.advance(pause)
    least = min(BACKOFF_PAUSE[0] * 2 ** (failures - 1), BACKOFF_PAUSE[1])
    assert least <= pause <= 1.25 * least


def test_pauses_of_many_pages_that_fail_together_do_not_end_together(world: World) -> None:
    pauses = set()
    for number in range(20):
        lease = world.one.acquire(f"{PAGE}{number}", 10)
        assert isinstance(lease, Lease)
        pauses.add(lease.back_off())
    assert len(pauses) == 20


def test_after_a_success_the_next_failure_is_the_first_again(world: World) -> None:
    for _ in range(4):
        world.clock.advance(world.take().back_off())
    world.one.forget_failures(PAGE)
    assert world.take().back_off() <= 1.25


def test_a_streak_is_forgotten_after_a_while_without_failures(world: World) -> None:
    for _ in range(4):
        world.clock.advance(world.take().back_off())
    world.clock.advance(4 * BACKOFF_PAUSE[1])
    assert world.take().back_off() <= 1.25


def test_failures_of_one_page_do_not_count_for_another(world: World) -> None:
    world.clock.advance(world.take().back_off())
    lease = world.one.acquire(PAGE + "2", 10)
    assert isinstance(lease, Lease)
    assert lease.back_off() <= 1.25


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff", b"-5", b"1e9", b"9" * 5000])
def test_a_damaged_counter_of_failures_is_no_error(world: World, damage: bytes) -> None:
    world.memory.set(Keyspace.failures(PAGE), damage)
    assert 0 < world.take().back_off() <= 1.25 * BACKOFF_PAUSE[1]


# A store with trouble ----------------------------------------------------------------------------------


def test_a_store_that_cannot_be_asked_has_no_lease_to_give(world: World) -> None:
    world.store.failing.add("add")
    with pytest.raises(StoreUnavailable):
        world.one.acquire(PAGE, 10)


def test_a_doubtful_add_that_happened_is_recognised_by_its_token(world: World) -> None:
    # The first try was applied, its answer was lost, and the client library tried again.
    add = world.store.add

    def add_twice(key: str, value: bytes, ttl: float | None = None) -> bool:
        add(key, value, ttl)
        return add(key, value, ttl)

    world.store.add = add_twice  # type: ignore[method-assign]
    lease = world.take()
    lease.release()
    assert world.memory.get(LOCK) is None


def test_an_add_whose_answer_was_lost_is_looked_up_by_its_token(world: World) -> None:
    world.store.after["add", LOCK] = unavailable
    lease = world.take()
    lease.release()
    assert world.memory.get(LOCK) is None


@pytest.mark.parametrize("verb", ["gets", "cas"])
def test_a_renewal_that_the_store_cannot_take_is_tried_again_later(world: World, verb: str) -> None:
    lease = world.take()
    world.store.failing.add(verb)
    assert not lease.renew()
    assert [type(event) for event in world.seen] == [StoreFailed]
    world.store.failing.clear()
    assert lease.renew()


@pytest.mark.parametrize("verb", ["gets", "cas"])
def test_a_release_that_the_store_cannot_take_leaves_the_lock_to_lapse(world: World, verb: str) -> None:
    lease = world.take()
    world.store.failing.add(verb)
    lease.release()
    world.store.failing.clear()
    assert lease.over
    assert world.other.acquire(PAGE, 10) == Busy()
    world.clock.advance(10)
    world.take(world.other)


@pytest.mark.parametrize("verb", ["get", "set", "gets", "cas"])
def test_going_to_rest_without_a_store_still_says_how_long(world: World, verb: str) -> None:
    lease = world.take()
    world.store.failing.add(verb)
    assert 1 <= lease.back_off() <= 1.25


@pytest.mark.parametrize("verb", ["get", "delete"])
def test_forgetting_failures_without_a_store_is_no_error(world: World, verb: str) -> None:
    world.one.count_failure(PAGE)
    world.store.failing.add(verb)
    world.one.forget_failures(PAGE)


class Strict(Troubled):
    """A store that enforces the contract: only ``cas`` may be given a ttl of 0."""

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        assert ttl is None or ttl > 0
        super().set(key, value, ttl)

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        assert ttl is None or ttl > 0
        return super().add(key, value, ttl)


def test_a_lock_is_only_ever_changed_by_its_owner_and_within_the_store_contract(world: World) -> None:
    store = Strict(world.memory)
    leases = world.leases(store)
    for end in (Lease.release, Lease.back_off):
        lease = world.take(leases)
        lease.renew()
        end(lease)
        world.clock.advance(60)
    assert {verb for verb, key in store.calls if key == LOCK} == {"add", "gets", "cas"}
