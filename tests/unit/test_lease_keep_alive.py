"""The keep-alive renews the leases of renders in progress, and gives up renders that take too long."""

from __future__ import annotations

import threading

import pytest

from tests.unit.scripted import NEVER, Clock, Gate, Troubled, start
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.lease import Lease, LeaseKeepAlive, Leases, Watch
from wsgi_isr.events import Event, Events
from wsgi_isr.stores.memory import MemoryStore


class World:
    """A keep-alive without a thread: the test runs its rounds."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.seen: list[Event] = []
        self.store = Troubled(MemoryStore(clock=self.clock))
        self.leases = Leases(self.store, Keyspace.lock, Keyspace.failures, Events(self.seen.append))
        self.keeper = LeaseKeepAlive(self.clock)
        self.keeper._thread = threading.current_thread()
        self.given_up: list[str] = []

    def lease(self, page: str = "page", ttl: float = 9) -> Lease:
        lease = self.leases.acquire(page, ttl)
        assert isinstance(lease, Lease)
        return lease

    def watch(self, lease: Lease | None, timeout: float = 30, name: str = "page") -> Watch:
        return self.keeper.watch(lease, timeout, lambda: self.given_up.append(name))

    def renewals(self) -> int:
        return self.store.count("cas", Keyspace.lock("page"))


@pytest.fixture
def world() -> World:
    return World()


def test_with_nothing_to_watch_there_is_nothing_in_sight(world: World) -> None:
    assert world.keeper.tick() is None


def test_a_lease_is_renewed_each_third_of_its_ttl(world: World) -> None:
    world.watch(world.lease(ttl=9))
    assert world.keeper.tick() == 3
    for number in range(1, 5):
        world.clock.advance(3)
        assert world.keeper.tick() == 3
        assert world.renewals() == number


def test_a_watched_lease_outlives_its_ttl_for_as_long_as_its_render_runs(world: World) -> None:
    world.watch(world.lease(ttl=9))
    for _ in range(8):
        world.clock.advance(3)
        world.keeper.tick()
    assert not isinstance(world.leases.acquire("page", 9), Lease)


def test_nothing_happens_before_it_is_due(world: World) -> None:
    world.watch(world.lease(ttl=9))
    world.clock.advance(2.5)
    assert world.keeper.tick() == 0.5
    assert world.renewals() == 0


def test_a_render_past_its_deadline_is_given_up_once_and_its_lease_left_alone(world: World) -> None:
    watch = world.watch(world.lease(ttl=9), timeout=5)
    world.clock.advance(5)
    assert world.keeper.tick() is None
    assert world.given_up == ["page"]
    assert world.renewals() == 0
    world.clock.advance(5)
    assert world.keeper.tick() is None
    assert not world.keeper.finish(watch)
    assert world.given_up == ["page"]


def test_a_finished_render_is_watched_no_more(world: World) -> None:
    watch = world.watch(world.lease(ttl=9))
    assert world.keeper.finish(watch)
    world.clock.advance(60)
    assert world.keeper.tick() is None
    assert (world.given_up, world.renewals()) == ([], 0)


def test_a_render_that_ended_past_its_deadline_is_late_even_if_nobody_looked(world: World) -> None:
    watch = world.watch(world.lease(ttl=9), timeout=5)
    world.clock.advance(5)
    assert not world.keeper.finish(watch)
    assert world.given_up == ["page"]
    assert world.keeper.tick() is None
    assert world.given_up == ["page"]


def test_finishing_twice_counts_once(world: World) -> None:
    watch = world.watch(None)
    assert world.keeper.finish(watch)
    assert not world.keeper.finish(watch)


def test_a_render_without_a_lease_has_a_deadline_all_the_same(world: World) -> None:
    world.watch(None, timeout=5)
    assert world.keeper.tick() == 5
    world.clock.advance(5)
    world.keeper.tick()
    assert world.given_up == ["page"]


def test_a_lost_lease_is_not_renewed_again_but_its_render_still_has_a_deadline(world: World) -> None:
    lease = world.lease(ttl=9)
    world.watch(lease, timeout=30)
    world.clock.advance(10)  # the process was stopped for longer than its lease
    world.keeper.tick()
    assert lease.over
    world.clock.advance(3)
    assert world.keeper.tick() == 17
    assert world.renewals() == 0
    world.clock.advance(17)
    world.keeper.tick()
    assert world.given_up == ["page"]


def test_what_is_due_first_comes_first_whatever_was_begun_first(world: World) -> None:
    for timeout, name in ((20, "c"), (5, "a"), (10, "b")):
        world.watch(None, timeout, name)
    assert world.keeper.tick() == 5
    world.clock.advance(10)
    assert world.keeper.tick() == 10
    assert world.given_up == ["a", "b"]


def test_two_renders_that_are_due_at_the_same_moment_are_both_looked_after(world: World) -> None:
    world.watch(None, 5, "a")
    world.watch(None, 5, "b")
    world.clock.advance(5)
    world.keeper.tick()
    assert world.given_up == ["a", "b"]


def test_a_renewal_that_the_store_cannot_take_is_tried_again(world: World) -> None:
    world.watch(world.lease(ttl=9))
    world.store.failing.add("cas")
    world.clock.advance(3)
    world.keeper.tick()
    world.store.failing.clear()
    world.clock.advance(3)
    world.keeper.tick()
    world.clock.advance(5)  # 11 s after the beginning, 5 after the renewal
    assert not isinstance(world.leases.acquire("page", 9), Lease)


def test_closing_gives_the_leases_of_what_still_runs_to_others_and_calls_its_results_late(world: World) -> None:
    watches = [world.watch(world.lease("a")), world.watch(None), world.watch(world.lease("b"))]
    world.keeper.close()
    assert isinstance(world.leases.acquire("a", 9), Lease)
    assert isinstance(world.leases.acquire("b", 9), Lease)
    assert [world.keeper.finish(watch) for watch in watches] == [False] * 3
    assert world.keeper.tick() is None
    assert world.given_up == []


def test_closing_with_nothing_to_watch_is_harmless_and_repeatable(world: World) -> None:
    world.keeper.close()
    world.keeper.close()


# The thread --------------------------------------------------------------------------------------------


@pytest.fixture
def threaded() -> tuple[LeaseKeepAlive, Clock]:
    clock = Clock()
    return LeaseKeepAlive(clock), clock


def test_the_thread_begins_with_the_first_render_and_is_the_only_one(threaded: tuple[LeaseKeepAlive, Clock]) -> None:
    keeper, _ = threaded
    assert keeper._thread is None
    keeper.finish(keeper.watch(None, 30, lambda: None))
    thread = keeper._thread
    assert thread is not None
    assert (thread.daemon, thread.name) == (True, "wsgi-isr-keeper")
    keeper.finish(keeper.watch(None, 30, lambda: None))
    assert keeper._thread is thread
    keeper.close()


def test_the_thread_gives_up_a_render_by_itself(threaded: tuple[LeaseKeepAlive, Clock]) -> None:
    keeper, _ = threaded
    overdue = threading.Event()
    keeper.watch(None, 0, overdue.set)
    assert overdue.wait(NEVER)
    keeper.close()


def test_a_later_render_that_is_due_earlier_wakes_the_thread(threaded: tuple[LeaseKeepAlive, Clock]) -> None:
    keeper, _ = threaded
    overdue = threading.Event()
    later = keeper.watch(None, 3600, lambda: None)
    keeper.watch(None, 0, overdue.set)
    assert overdue.wait(NEVER)
    keeper.finish(later)
    keeper.close()


def test_a_render_begins_while_the_thread_is_busy_with_another(threaded: tuple[LeaseKeepAlive, Clock]) -> None:
    keeper, _ = threaded
    gate = Gate()
    keeper.watch(None, 0, gate.enter)
    gate.reached()
    # The keep-alive does its I/O outside its lock: no render waits for it.
    watch = start(lambda: keeper.watch(None, 3600, lambda: None)).result(NEVER)
    assert start(lambda: keeper.finish(watch)).result(NEVER)
    gate.open()
    keeper.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_while_giving_up_one_render_does_not_leave_the_others_alone(
    threaded: tuple[LeaseKeepAlive, Clock],
) -> None:
    keeper, _ = threaded

    def broken() -> None:
        raise RuntimeError("can't start new thread")

    overdue = threading.Event()
    keeper.watch(None, 0, broken)
    keeper.watch(None, 0, overdue.set)
    assert overdue.wait(NEVER / 5)
    keeper.close()


def test_the_thread_ends_when_the_keeper_is_closed(threaded: tuple[LeaseKeepAlive, Clock]) -> None:
    keeper, _ = threaded
    keeper.finish(keeper.watch(None, 30, lambda: None))
    thread = keeper._thread
    assert thread is not None
    keeper.close()
    thread.join(NEVER / 5)
    assert not thread.is_alive()
