"""The cache: look up, serve, and render once (single flight), with a scripted origin and no HTTP."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.scripted import (
    NEVER,
    Cluster,
    Gate,
    Origin,
    Process,
    Troubled,
    body,
    page,
    shown,
    start,
    task_of,
    unavailable,
)
from wsgi_isr.cache.entry import Codec, Content, Entry, HitForMiss
from wsgi_isr.cache.executor import Job
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.lease import BACKOFF_VALUE
from wsgi_isr.cache.lookup import RECHECK_PAUSE
from wsgi_isr.cache.tag_versions import Mode
from wsgi_isr.cache.task import Attempt, Failed, Limits, Passed, Served, Task, pack, unpack
from wsgi_isr.cache.verdict import Failure, Storable
from wsgi_isr.config.lifetime import Lifetime
from wsgi_isr.errors import StoreUnavailable, ValueTooLarge
from wsgi_isr.events import BackgroundFull, LeaseLost, Refused, Rendered, RenderFailed, StoreFailed, Unreadable
from wsgi_isr.stores.base import Store
from wsgi_isr.stores.memory import SMALLEST, MemoryStore

TASK = task_of()
LOCK = Keyspace.lock(TASK.page)


def stored(cluster: Cluster) -> Entry:
    """Return the cache entry of the page in the store."""
    data = cluster.store.get(TASK.page)
    assert data is not None
    return Codec().unpack(data, TASK.text)


def text_of(entry: Entry) -> str:
    assert isinstance(entry.content, Content)
    return entry.content.body.decode()


def filled(cluster: Cluster, age: float = 0, **options: Any) -> Process:
    """Return a process that rendered the page ``age`` seconds ago."""
    process = cluster.process(**options)
    assert shown(process.get()) == ("MISS", "v1")
    cluster.clock.advance(age)
    return process


# Missing, then fresh -----------------------------------------------------------------------------------


def test_a_page_that_is_not_there_is_rendered_stored_and_then_served() -> None:
    cluster = Cluster()
    process = cluster.process()
    first = process.get()
    assert shown(first) == ("MISS", "v1")
    assert isinstance(first, Served)
    assert (first.stored, first.collapsed) == (True, False)
    assert text_of(stored(cluster)) == "v1"
    assert shown(process.get()) == ("HIT", "v1")
    assert cluster.origin.renders == 1
    assert [event.stored for event in process.events(Rendered)] == [True]


def test_it_is_said_how_long_storing_took_since_the_age_of_a_page_counts_from_before() -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    store.before["add", TASK.page] = lambda: cluster.clock.advance(0.25)
    process = cluster.process(store)
    process.get()
    (event,) = process.events(Rendered)
    assert (event.seconds, event.storing) == (0.25, 0.25)
    assert stored(cluster).created == cluster.clock.now - 0.25


def test_a_fresh_copy_here_costs_no_look_at_the_store() -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    process = cluster.process(store)
    process.get()
    store.calls.clear()
    assert shown(process.get()) == ("HIT", "v1")
    assert store.calls == []


def test_another_process_finds_the_page_in_the_store() -> None:
    cluster = Cluster()
    filled(cluster)
    assert shown(cluster.process().get()) == ("HIT", "v1")
    assert cluster.origin.renders == 1


def test_the_age_of_a_page_counts_from_the_end_of_its_render() -> None:
    cluster = Cluster()
    gate = Gate(page())
    cluster.origin.script.append(gate)
    process = cluster.process()
    visitor = start(process.get)
    gate.reached()
    begun = cluster.clock.now
    cluster.clock.advance(4)
    gate.open()
    assert shown(visitor.result(NEVER)) == ("MISS", "v1")
    assert (stored(cluster).started, stored(cluster).created) == (begun, begun + 4)


def test_after_a_render_nobody_is_kept_from_the_next() -> None:
    cluster = Cluster()
    process = filled(cluster)
    assert cluster.store.get(LOCK) is None
    assert process.events(LeaseLost) == []


def test_different_pages_do_not_wait_for_each_other() -> None:
    gate = Gate(page("a"))
    cluster = Cluster(Origin(gate))
    process = cluster.process()
    one = start(lambda: process.get(task_of("/a")))
    gate.reached()
    assert shown(process.get(task_of("/b"))) == ("MISS", "v2")
    gate.open()
    assert shown(one.result(NEVER)) == ("MISS", "a")


# One flight in a process --------------------------------------------------------------------------------


def test_visitors_who_come_during_a_render_get_its_page() -> None:
    gate = Gate(page("v1"))
    cluster = Cluster(Origin(gate))
    process = cluster.process()
    first = start(process.get)
    gate.reached()
    others = []
    for _ in range(4):
        process.joined.clear()
        others.append(start(process.get))
        assert process.joined.wait(NEVER)
    gate.open()
    assert shown(first.result(NEVER)) == ("MISS", "v1")
    for other in others:
        answer = other.result(NEVER)
        assert shown(answer) == ("MISS", "v1")
        assert isinstance(answer, Served)
        assert (answer.stored, answer.collapsed) == (False, True)
    assert cluster.origin.renders == 1


def test_visitors_who_joined_a_render_that_fails_hear_of_it_once() -> None:
    error = RuntimeError("database is away")
    gate = Gate(error)
    cluster = Cluster(Origin(gate))
    process = cluster.process()
    first = start(process.get)
    gate.reached()
    other = start(process.get)
    assert process.joined.wait(NEVER)
    gate.open()
    assert first.result(NEVER) == other.result(NEVER) == Failed("exception", error)
    assert cluster.origin.renders == 1


# Stale: no visitor waits --------------------------------------------------------------------------------


def test_a_stale_page_is_served_at_once_and_rendered_once_behind_the_visitors_backs() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    gate = Gate(page("v2"))
    cluster.origin.script.append(gate)
    for _ in range(50):
        assert shown(process.get()) == ("STALE", "v1")
        cluster.clock.advance(0.05)
    gate.reached()
    gate.open()
    process.settle()
    assert shown(process.get()) == ("HIT", "v2")
    assert cluster.origin.renders == 2


def test_while_one_process_renders_the_visitors_of_another_get_the_stale_page() -> None:
    cluster = Cluster()
    one = filled(cluster, age=10)
    other = cluster.process()
    gate = Gate(page("v2"))
    cluster.origin.script.append(gate)
    assert shown(one.get()) == ("STALE", "v1")
    gate.reached()
    for _ in range(20):
        assert shown(other.get()) == ("STALE", "v1")
        other.settle()
        cluster.clock.advance(0.05)
    gate.open()
    one.settle()
    cluster.clock.advance(RECHECK_PAUSE)
    assert shown(other.get()) == ("HIT", "v2")
    assert cluster.origin.renders == 2


def test_a_page_that_another_process_rendered_between_our_look_and_our_lock_is_not_rendered_again() -> None:
    # 1 we see a stale page; 2 the other process renders, stores and releases; 3 we get the lock.
    cluster = Cluster()
    filled(cluster, age=10)
    other = cluster.process()
    store = Troubled(cluster.store)
    process = cluster.process(store)

    def other_renders() -> None:
        assert shown(other.get()) == ("STALE", "v1")
        other.settle()

    store.before["add", LOCK] = other_renders
    assert shown(process.get()) == ("STALE", "v1")
    process.settle()
    assert shown(process.get()) == ("HIT", "v2")
    assert cluster.origin.renders == 2
    assert cluster.store.get(LOCK) is None


def test_the_same_for_a_page_that_was_missing() -> None:
    cluster = Cluster()
    other = cluster.process()
    store = Troubled(cluster.store)
    process = cluster.process(store)
    store.before["add", LOCK] = lambda: other.get()
    answer = process.get()
    assert shown(answer) == ("MISS", "v1")
    assert isinstance(answer, Served)
    assert (answer.stored, answer.collapsed) == (False, True)
    assert cluster.origin.renders == 1


def test_while_somebody_else_renders_the_store_is_asked_only_now_and_then() -> None:
    cluster = Cluster()
    filled(cluster, age=10)
    store = Troubled(cluster.store)
    process = cluster.process(store)
    cluster.store.add(LOCK, b"another process", 10)
    for _ in range(100):  # in one moment
        assert shown(process.get()) == ("STALE", "v1")
        process.settle()
    assert store.count("add", LOCK) == 1
    cluster.clock.advance(RECHECK_PAUSE)
    process.get()
    process.settle()
    assert store.count("add", LOCK) == 2


def test_a_page_that_another_process_renewed_is_noticed_under_constant_traffic() -> None:
    cluster = Cluster()
    one = filled(cluster, age=10)
    other = cluster.process()
    cluster.store.add(LOCK, b"another process", 10)
    other.get()
    other.settle()
    cluster.store.delete(LOCK)
    one.get()
    one.settle()
    for _ in range(5):
        cluster.clock.advance(0.02)
        other.get()
        other.settle()
    assert shown(other.get()) == ("HIT", "v2")
    assert cluster.origin.renders == 2


def test_a_page_that_lives_until_invalidated_is_never_rendered_again() -> None:
    cluster = Cluster(Origin(revalidate=None))
    process = filled(cluster, age=1e9)
    assert shown(process.get()) == ("HIT", "v1")
    assert shown(cluster.process().get()) == ("HIT", "v1")
    assert cluster.origin.renders == 1


# Missing in one process while another renders -----------------------------------------------------------


def test_a_visitor_of_another_process_waits_for_the_one_render_and_gets_its_page() -> None:
    gate = Gate(page("v1"))
    cluster = Cluster(Origin(gate))
    one = cluster.process()
    first = start(one.get)
    gate.reached()
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            gate.open()
            first.result(NEVER)

    answer = cluster.process(pause=pause).get()
    assert shown(answer) == ("MISS", "v1")
    assert isinstance(answer, Served)
    assert (answer.stored, answer.collapsed) == (False, True)
    assert cluster.origin.renders == 1
    assert len(pauses) == 4


def test_the_pauses_of_who_waits_grow_up_to_a_quarter_of_a_second_with_jitter() -> None:
    cluster = Cluster()
    cluster.store.add(LOCK, b"another process", 60)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        cluster.clock.advance(seconds)

    cluster.process(pause=pause).get()
    assert 0.005 <= pauses[0] <= 0.01
    assert max(pauses) <= 0.25
    assert min(pauses[10:-1]) >= 0.125
    assert len(set(pauses)) == len(pauses)


def test_who_has_waited_as_long_as_they_may_gets_the_apps_own_answer() -> None:
    cluster = Cluster()
    cluster.store.add(LOCK, b"another process", 60)
    begun = cluster.clock.now
    assert cluster.process().get() == Passed("lock-timeout", missed=True)
    assert cluster.clock.now - begun == pytest.approx(10)
    assert cluster.origin.renders == 0


def test_a_wait_of_zero_is_none_at_all() -> None:
    cluster = Cluster()
    cluster.store.add(LOCK, b"another process", 60)
    begun = cluster.clock.now
    assert cluster.process().get(task_of(wait=0.0)) == Passed("lock-timeout", missed=True)
    assert cluster.clock.now == begun


def test_nobody_waits_longer_than_they_may_even_if_they_first_waited_with_somebody_else() -> None:
    # Ann leads the flight of her process and waits for another process; Bob joins her flight one second
    # later. When Ann gives up, Bob has one second left, not ten more.
    cluster = Cluster()
    cluster.store.add(LOCK, b"another process", 60)
    gate = Gate()
    ann: list[threading.Thread] = []

    def pause(seconds: float) -> None:
        if threading.current_thread() in ann:
            gate.enter()
            cluster.clock.advance(max(0, ann_until - cluster.clock.now))
        else:
            cluster.clock.advance(seconds)

    process = cluster.process(pause=pause)

    def ann_asks() -> Any:
        ann.append(threading.current_thread())
        return process.get()

    ann_until = cluster.clock.now + 10
    first = start(ann_asks)
    gate.reached()
    cluster.clock.advance(1)
    bob_until = cluster.clock.now + 10
    second = start(process.get)
    assert process.joined.wait(NEVER)
    gate.open()
    assert first.result(NEVER) == second.result(NEVER) == Passed("lock-timeout", missed=True)
    assert cluster.clock.now - bob_until == pytest.approx(0, abs=0.01)


def test_the_render_of_a_dead_process_is_taken_over_when_its_lease_lapses() -> None:
    cluster = Cluster()
    cluster.store.add(LOCK, b"killed", 10)
    begun = cluster.clock.now
    answer = cluster.process().get(task_of(wait=15.0))
    assert shown(answer) == ("MISS", "v1")
    assert 10 <= cluster.clock.now - begun <= 10.25
    assert cluster.store.get(LOCK) is None


# Answers that the app forbids to store -------------------------------------------------------------------


def test_a_page_that_may_not_be_stored_is_remembered_and_nobody_queues_for_it() -> None:
    cluster = Cluster(Origin(HitForMiss("set-cookie")))
    process = cluster.process()
    for _ in range(5):
        assert process.get() == Passed("set-cookie")
    assert cluster.process().get() == Passed("set-cookie")
    assert cluster.origin.renders == 1
    assert process.events(Refused) == [Refused(TASK.page, "*", "set-cookie", TASK.text)]


def test_after_a_while_it_is_tried_again_behind_the_visitors_backs() -> None:
    cluster = Cluster(Origin(HitForMiss("set-cookie")))
    process = cluster.process()
    process.get()
    cluster.clock.advance(59)
    assert process.get() == Passed("set-cookie")
    assert cluster.origin.renders == 1
    cluster.clock.advance(1)
    assert process.get() == Passed("set-cookie")
    process.settle()
    assert shown(process.get()) == ("HIT", "v2")
    assert cluster.origin.renders == 2


def test_the_memory_of_a_page_that_nobody_asks_for_again_goes_by_itself() -> None:
    cluster = Cluster(Origin(HitForMiss("set-cookie")))
    cluster.process().get()
    cluster.clock.advance(120)
    assert cluster.store.get(TASK.page) is None


def test_a_refusal_of_a_page_that_was_cacheable_takes_its_place_at_once() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    cluster.origin.script.append(HitForMiss("status-403"))
    assert shown(process.get()) == ("STALE", "v1")
    process.settle()
    assert stored(cluster).content == HitForMiss("status-403")
    assert process.events(RenderFailed) == []
    assert process.get() == Passed("status-403")


def test_the_refusal_of_a_page_that_may_not_be_served_any_more_is_taken_at_its_word() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20)
    cluster.origin.script.append(HitForMiss("private"))
    assert process.get() == Passed("private")
    assert process.get() == Passed("private")
    assert stored(cluster).content == HitForMiss("private")
    assert cluster.origin.renders == 2


def test_what_is_there_for_a_short_time_only_is_forgotten_by_the_store() -> None:
    gone = Storable(Content("404 Not Found", (), b"", "x"), Lifetime(10, 10), keep=70)
    cluster = Cluster(Origin(gone))
    cluster.process().get()
    cluster.clock.advance(69)
    assert cluster.store.get(TASK.page) is not None
    cluster.clock.advance(1)
    assert cluster.store.get(TASK.page) is None


def test_a_copy_that_is_due_is_kept_for_errors_where_the_store_has_forgotten_the_page() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    cluster.store.delete(TASK.page)
    assert shown(process.get()) == ("EXPIRED", "v2")


def test_a_copy_that_is_due_is_served_where_the_page_may_be_on_a_node_that_is_down() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    cluster.store.delete(TASK.page)
    process.entries.store.is_displaced = lambda key: key == TASK.page  # type: ignore[method-assign]
    assert shown(process.get()) == ("STALE", "v1")
    process.settle()


def test_a_copy_that_is_due_is_served_where_the_store_cannot_be_asked() -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    process = cluster.process(store)
    process.get()
    cluster.clock.advance(10)
    store.failing = {"get"}
    assert shown(process.get()) == ("STALE", "v1")
    process.settle()


# Expired -------------------------------------------------------------------------------------------------


def test_an_expired_page_is_not_served_while_a_new_one_can_be_had() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20)
    answer = process.get()
    assert shown(answer) == ("EXPIRED", "v2")
    assert isinstance(answer, Served)
    assert answer.stored
    assert shown(process.get()) == ("HIT", "v2")


def test_visitors_of_an_expired_page_share_one_render() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20)
    gate = Gate(page("v2"))
    cluster.origin.script.append(gate)
    first = start(process.get)
    gate.reached()
    second = start(process.get)
    assert process.joined.wait(NEVER)
    gate.open()
    assert shown(first.result(NEVER)) == shown(second.result(NEVER)) == ("EXPIRED", "v2")
    assert cluster.origin.renders == 2


def test_an_expired_copy_here_gives_way_to_what_another_process_made() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20)
    assert shown(cluster.process().get()) == ("EXPIRED", "v2")
    assert shown(process.get()) == ("HIT", "v2")
    assert cluster.origin.renders == 2


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("database is away"), Failure("status-503", Content("503 X", (), b"sorry", ""))],
    ids=["an exception", "a 503"],
)
def test_an_expired_page_is_what_there_is_where_rendering_fails(failure: Any) -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20)
    cluster.origin.script.append(failure)
    assert shown(process.get()) == ("STALE-IF-ERROR", "v1")
    assert len(process.events(RenderFailed)) == 1
    assert text_of(stored(cluster)) == "v1"


def test_during_the_back_off_an_expired_page_is_served_without_another_try() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20)
    cluster.origin.script.append(RuntimeError())
    process.get()
    for _ in range(5):
        cluster.clock.advance(0.15)
        assert shown(process.get()) == ("STALE-IF-ERROR", "v1")
        assert shown(cluster.process().get()) == ("STALE-IF-ERROR", "v1")
    assert cluster.origin.renders == 2
    cluster.clock.advance(2)
    assert shown(process.get()) == ("EXPIRED", "v3")


def test_who_waits_too_long_for_somebody_elses_new_page_gets_the_apps_own_answer_not_the_expired_one() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20)
    cluster.store.add(LOCK, b"another process", 60)
    begun = cluster.clock.now
    assert process.get() == Passed("lock-timeout", missed=True)
    assert cluster.clock.now - begun == pytest.approx(10)


def test_an_expired_page_is_rendered_by_its_visitor_where_the_background_is_full() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20, threads=1, queue=1)
    gates = [Gate(page()), Gate(page())]
    cluster.origin.script.extend(gates)
    process.dispatcher._threads.submit(join_or_create(process, task_of("/a")))
    gates[0].reached()
    process.dispatcher._threads.submit(join_or_create(process, task_of("/b")))
    cluster.origin.script.appendleft(page("mine"))
    assert shown(process.get()) == ("EXPIRED", "mine")
    for gate in gates:
        gate.open()
    process.settle(task_of("/b"))


def join_or_create(process: Process, task: Task) -> Job:
    """Begin a flight for the task, and return the job of its background render."""
    return Job(task, Attempt(), process.flights.join_or_create(task.page)[0])


# Failed renders ------------------------------------------------------------------------------------------


def test_the_error_of_the_app_is_the_visitors_where_there_is_no_page() -> None:
    error = RuntimeError("database is away")
    cluster = Cluster(Origin(error))
    process = cluster.process()
    assert process.get() == Failed("exception", error)
    (event,) = process.events(RenderFailed)
    assert (event.reason, event.cause) == ("exception", error)
    assert cluster.store.get(TASK.page) is None


def test_who_comes_after_an_invalidation_is_not_told_of_a_failure_from_before_it() -> None:
    gate = Gate(Failure("status-500", page("broken").content))
    cluster = Cluster(Origin(gate, None))
    process, other = cluster.process(), cluster.process()
    first = start(process.get)
    gate.reached()
    assert other.tag_versions.invalidate(["all"], Mode.EXPIRE) == {}  # the epochs that were polled are older
    second = start(process.get)
    assert process.joined.wait(NEVER)
    gate.open()
    failed = first.result(NEVER)
    assert isinstance(failed, Failed)
    assert failed.content is not None
    assert shown(second.result(NEVER)) == ("MISS", "v2")


def test_what_a_failing_app_had_to_say_is_the_visitors_too() -> None:
    content = Content("503 Service Unavailable", (), b"sorry", "")
    cluster = Cluster(Origin(Failure("status-503", content)))
    answer = cluster.process().get()
    assert isinstance(answer, Failed)
    assert (answer.reason, answer.content) == ("status-503", content)


def test_a_visitor_who_has_nothing_gets_a_render_even_during_a_back_off() -> None:
    cluster = Cluster(Origin(RuntimeError()))
    process = cluster.process()
    process.get()
    assert cluster.store.get(LOCK) == BACKOFF_VALUE
    assert shown(process.get()) == ("MISS", "v2")
    assert cluster.store.get(LOCK) is None  # its success ends the back-off
    assert shown(cluster.process().get()) == ("HIT", "v2")


def test_a_failed_regeneration_neither_stamps_the_page_anew_nor_tries_again_before_its_time() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    before = stored(cluster)
    cluster.origin.script.append(RuntimeError())
    assert shown(process.get()) == ("STALE", "v1")
    process.settle()
    (failed,) = process.events(RenderFailed)
    assert 1 <= failed.retry_in <= 1.25
    for each in (process, cluster.process()):
        cluster.clock.advance(0.2)
        assert shown(each.get()) == ("STALE", "v1")
        each.settle()
    assert stored(cluster) == before
    assert cluster.origin.renders == 2
    cluster.clock.advance(1.25)
    process.get()
    process.settle()
    assert shown(process.get()) == ("HIT", "v3")


def test_back_offs_double_for_the_whole_cluster_until_a_success() -> None:
    cluster = Cluster()
    processes = [filled(cluster, age=10), cluster.process()]
    cluster.origin.script.extend([RuntimeError()] * 4)
    pauses = []
    for number in range(4):
        process = processes[number % 2]
        process.get()
        process.settle()
        pauses.append(process.events(RenderFailed)[-1].retry_in)
        cluster.clock.advance(pauses[-1])
    assert [least <= pause <= 1.25 * least for least, pause in zip((1, 2, 4, 8), pauses, strict=True)] == [True] * 4
    processes[0].get()
    processes[0].settle()
    assert shown(processes[0].get()) == ("HIT", "v6")
    assert cluster.store.get(Keyspace.failures(TASK.page)) is None


@pytest.mark.parametrize("stop", [SystemExit(), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_a_render_that_dies_with_its_process_is_not_the_pages_fault(stop: BaseException) -> None:
    cluster = Cluster(Origin(stop))
    process = cluster.process()
    assert process.get() == Failed("exit", stop)
    assert process.events(RenderFailed) == []
    assert cluster.store.get(LOCK) is None


UNPACKABLE: Any = object()


def test_a_page_that_cannot_be_packed_is_a_failed_render_with_a_back_off() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10, threads=1)
    bad = Storable(Content("200 OK", (("X-File", UNPACKABLE),), b"", "x"), Lifetime(10, None))
    cluster.origin.script.append(bad)
    assert shown(process.get()) == ("STALE", "v1")
    process.settle()
    assert len(process.events(RenderFailed)) == 1
    assert cluster.store.get(LOCK) == BACKOFF_VALUE
    cluster.clock.advance(2)
    process.get()
    process.settle()
    assert shown(process.get()) == ("HIT", "v3")


def test_a_page_that_cannot_be_packed_is_no_error_of_ours_for_the_visitor() -> None:
    cluster = Cluster(Origin(Storable(Content("200 OK", (("X-File", UNPACKABLE),), b"", "x"), Lifetime(10, None))))
    assert isinstance(cluster.process().get(), Failed)


# Late writers --------------------------------------------------------------------------------------------


def test_a_render_that_lost_its_lease_does_not_overwrite_the_page_of_its_successor() -> None:
    cluster = Cluster()
    late = filled(cluster, age=10)
    gate = Gate(page("late"))
    cluster.origin.script.append(gate)
    late.get()
    gate.reached()
    cluster.clock.advance(11)  # its process was stopped: the lease was not renewed
    successor = cluster.process()
    assert shown(successor.get()) == ("STALE", "v1")
    successor.settle()
    assert shown(successor.get()) == ("HIT", "v3")
    gate.open()
    late.settle()
    assert text_of(stored(cluster)) == "v3"
    assert shown(late.get()) == ("HIT", "v3")
    assert [event.stored for event in late.events(Rendered)] == [True, False]
    assert late.events(LeaseLost) == [LeaseLost(TASK.page)]


def test_the_later_of_two_renders_wins_even_if_the_earlier_one_is_stored_first() -> None:
    cluster = Cluster()
    early = filled(cluster, age=10)
    first, second = Gate(page("early")), Gate(page("later"))
    cluster.origin.script.extend([first, second])
    early.get()
    first.reached()
    cluster.clock.advance(11)
    later = cluster.process()
    later.get()
    second.reached()
    first.open()
    early.settle()
    assert text_of(stored(cluster)) == "early"
    second.open()
    later.settle()
    assert text_of(stored(cluster)) == "later"
    assert [event.stored for event in later.events(Rendered)] == [True]


def test_of_two_first_renders_the_later_one_wins_too() -> None:
    first, second = Gate(page("early")), Gate(page("later"))
    cluster = Cluster(Origin(first, second))
    early, later = cluster.process(), cluster.process()
    visitors = [start(early.get)]
    first.reached()
    cluster.clock.advance(11)
    visitors.append(start(later.get))
    second.reached()
    second.open()
    assert shown(visitors[1].result(NEVER)) == ("MISS", "later")
    first.open()
    answer = visitors[0].result(NEVER)
    assert shown(answer) == ("MISS", "later")
    assert isinstance(answer, Served)
    assert not answer.stored
    assert text_of(stored(cluster)) == "later"


def test_a_page_that_was_evicted_during_its_render_is_stored_all_the_same() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    gate = Gate(page("v2"))
    cluster.origin.script.append(gate)
    process.get()
    gate.reached()
    cluster.store.delete(TASK.page)
    gate.open()
    process.settle()
    assert text_of(stored(cluster)) == "v2"


# A render that takes too long ------------------------------------------------------------------------------


def test_a_background_render_past_its_timeout_is_given_up_and_its_page_not_stored() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10, threads=1)
    gate = Gate(page("too late"))
    cluster.origin.script.append(gate)
    process.get()
    gate.reached()
    for _ in range(10):
        cluster.clock.advance(3)
        process.tick()
    process.settle()
    assert [event.reason for event in process.events(RenderFailed)] == ["timeout"]
    assert cluster.store.get(LOCK) == BACKOFF_VALUE
    assert shown(process.get()) == ("STALE", "v1")
    process.settle()
    cluster.clock.advance(2)
    # Its thread still hangs. Another thread has taken its place.
    process.get()
    process.settle()
    assert shown(process.get()) == ("HIT", "v3")
    gate.open()
    assert process.cache.stop(NEVER)
    assert text_of(stored(cluster)) == "v3"
    assert len(process.events(RenderFailed)) == 1


def test_a_render_keeps_its_lease_for_as_long_as_it_runs() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    gate = Gate(page("v2"))
    cluster.origin.script.append(gate)
    process.get()
    gate.reached()
    other = cluster.process()
    for _ in range(9):
        cluster.clock.advance(3)
        process.tick()
        assert shown(other.get()) == ("STALE", "v1")
        other.settle()
    gate.open()
    process.settle()
    assert cluster.origin.renders == 2
    assert text_of(stored(cluster)) == "v2"


def test_a_visitor_who_rendered_past_the_timeout_gets_what_they_waited_for() -> None:
    gate = Gate(page("late"))
    cluster = Cluster(Origin(gate))
    process = cluster.process()
    visitor = start(process.get)
    gate.reached()
    other = start(process.get)
    assert process.joined.wait(NEVER)
    cluster.clock.advance(30)
    process.tick()
    assert other.result(NEVER) == Failed("timeout")  # followers are released at the timeout
    gate.open()
    answer = visitor.result(NEVER)
    assert isinstance(answer, Failed)
    assert answer.content is not None
    assert (answer.reason, answer.content.body) == ("timeout", b"late")
    assert cluster.store.get(TASK.page) is None


def test_a_render_past_its_timeout_that_then_fails_fails_once() -> None:
    gate = Gate(RuntimeError())
    cluster = Cluster(Origin(gate))
    process = cluster.process()
    visitor = start(process.get)
    gate.reached()
    cluster.clock.advance(30)
    process.tick()
    gate.open()
    answer = visitor.result(NEVER)
    assert isinstance(answer, Failed)
    assert [event.reason for event in process.events(RenderFailed)] == ["timeout"]


# A store with trouble --------------------------------------------------------------------------------------

VERBS = ("get", "get_many", "gets", "set", "add", "cas", "delete")


@pytest.mark.parametrize("failing", [*[{verb} for verb in VERBS], set(VERBS)], ids=[*VERBS, "all"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("age", [None, 0, 10, 20], ids=["missing", "fresh", "stale", "expired"])
def test_a_store_that_cannot_be_reached_is_never_the_visitors_trouble(
    failing: set[str], age: float | None, when: str
) -> None:
    cluster = Cluster(Origin(expire=20))
    store = Flaky(cluster.store, when)
    process = cluster.process(store)
    if age is not None:
        assert shown(process.get()) == ("MISS", "v1")
        cluster.clock.advance(age)
    store.failing |= failing
    for _ in range(3):
        answer = process.get()
        assert body(answer) in ("v1", "v2", "v3", "v4")
        process.settle()
        cluster.clock.advance(0.2)
    # Later requests are served as if there had been no fault.
    store.failing.clear()
    cluster.clock.advance(60)
    process.get()
    process.settle()
    assert process.get() == cluster.process().get() or shown(process.get())[0] == "HIT"
    assert cluster.store.get(TASK.page) is not None


class Flaky(Troubled):
    """A store whose verbs in ``failing`` raise: before the operation, or after it."""

    def __init__(self, inner: Store, when: str) -> None:
        super().__init__(inner)
        self.when = when

    def _do(self, verb: str, key: str, call: Any) -> Any:
        if self.when == "after" and verb in self.failing:
            call()
        return super()._do(verb, key, call)


@pytest.mark.parametrize("verb", ["get", "gets", "add", "cas"])
def test_the_trouble_of_a_store_is_said(verb: str) -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    process = cluster.process(store)
    process.get()
    cluster.clock.advance(10)
    store.failing.add(verb)
    process.get()
    process.settle()
    events = process.events(StoreFailed)
    assert events
    assert all(isinstance(event.cause, StoreUnavailable) for event in events)


def test_without_a_store_each_process_renders_once_and_serves_its_own_copy() -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    store.failing |= set(VERBS)
    processes = [cluster.process(store), cluster.process(store)]
    for process in processes:
        first = process.get()
        assert isinstance(first, Served)
        assert (first.label, first.stored) == ("DEGRADED", False)
        assert shown(process.get()) == ("DEGRADED", body(first))
    assert cluster.origin.renders == 2


def test_without_a_store_an_expired_page_is_rendered_anew() -> None:
    cluster = Cluster(Origin(expire=20))
    store = Troubled(cluster.store)
    process = cluster.process(store)
    process.get()
    cluster.clock.advance(20)
    store.failing |= set(VERBS)
    assert shown(process.get()) == ("DEGRADED", "v2")


def test_a_write_whose_answer_was_lost_is_not_held_against_the_page() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    store = Troubled(cluster.store)
    other = cluster.process(store)
    # The first cas is that of the entry; it happens, and then the connection breaks.
    store.after["cas", TASK.page] = unavailable
    assert shown(other.get()) == ("STALE", "v1")
    other.settle()
    assert shown(other.get()) == ("HIT", "v2")
    assert text_of(stored(cluster)) == "v2"
    assert shown(process.get()) == ("HIT", "v2")
    assert cluster.origin.renders == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x00",
        b"garbage",
        Codec().pack(Entry(TASK.text, HitForMiss("x"), 0, 0, 1, None))[:-1],
        Codec().pack(Entry("another key", HitForMiss("x"), 0, 0, 1, None)),
    ],
)
def test_an_unreadable_entry_is_said_counts_as_missing_and_is_replaced(damage: bytes) -> None:
    cluster = Cluster()
    cluster.store.set(TASK.page, damage)
    process = cluster.process()
    assert shown(process.get()) == ("MISS", "v1")
    assert process.events(Unreadable)
    assert text_of(stored(cluster)) == "v1"


def test_a_stale_copy_here_is_better_than_an_unreadable_entry_there() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    cluster.store.set(TASK.page, b"garbage")
    assert shown(process.get()) == ("STALE", "v1")
    process.settle()
    assert text_of(stored(cluster)) == "v2"


def test_a_page_above_the_limit_of_the_store_is_served_from_here() -> None:
    cluster = Cluster()
    store = MemoryStore(SMALLEST, clock=cluster.clock)
    process = cluster.process(store)
    cluster.origin.script.append(page("x" * store.max_value))
    answer = process.get()
    assert isinstance(answer, Served)
    assert not answer.stored
    assert [type(event.cause) for event in process.events(StoreFailed)] == [ValueTooLarge]
    assert shown(process.get())[0] == "HIT"
    assert store.get(LOCK) is None
    cluster.clock.advance(10)
    assert shown(process.get())[0] == "STALE"
    process.settle()


@pytest.mark.parametrize("verb", ["gets", "cas"])
def test_a_lock_that_could_not_be_given_back_is_freed_as_soon_as_the_store_can_be_reached(verb: str) -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    process = cluster.process(store)
    gate = Gate(page())
    cluster.origin.script.append(gate)
    visitor = start(process.get)
    gate.reached()
    store.failing.add(verb)
    gate.open()
    assert body(visitor.result(NEVER)) == "v1"
    cluster.clock.advance(0.5)
    process.tick()
    assert cluster.store.get(LOCK) is not None
    store.failing.clear()
    cluster.clock.advance(0.5)
    process.tick()
    assert cluster.store.get(LOCK) is None
    assert process.events(LeaseLost) == []


def test_a_lock_that_could_not_be_given_back_and_became_somebody_elses_is_left_alone() -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    process = cluster.process(store)
    gate = Gate(page())
    cluster.origin.script.append(gate)
    visitor = start(process.get)
    gate.reached()
    store.failing.add("gets")
    gate.open()
    visitor.result(NEVER)
    cluster.store.set(LOCK, b"another process", 10)
    store.failing.clear()
    cluster.clock.advance(0.5)
    process.tick()
    assert cluster.store.get(LOCK) == b"another process"


# Data that goes into another cache entry -------------------------------------------------------------------


def test_where_only_a_fresh_one_will_do_a_stale_one_is_rendered_anew_at_once() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    assert body(process.get(only_fresh=True)) == "v2"
    assert body(process.get(only_fresh=True)) == "v2"
    assert cluster.origin.renders == 2


def test_where_only_a_fresh_one_will_do_the_last_good_one_does_not() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    error = RuntimeError("database is away")
    cluster.origin.script.append(error)
    assert process.get(only_fresh=True) == Failed("exception", error)
    assert shown(process.get()) == ("STALE", "v1")


# A new release ---------------------------------------------------------------------------------------------


def adopting(cluster: Cluster) -> Process:
    """Return a process of the next release: its page has another key, and the former key is known."""
    return cluster.process(former=TASK.page)


NEXT = TASK._replace(page="isr:p:next release")


def test_a_new_release_serves_the_page_of_the_former_as_stale_and_renders_its_own() -> None:
    cluster = Cluster()
    filled(cluster)
    process = adopting(cluster)
    assert shown(process.get(NEXT)) == ("STALE", "v1")
    process.settle(NEXT)
    assert shown(process.get(NEXT)) == ("HIT", "v2")
    assert text_of(stored(cluster)) == "v1"
    assert cluster.origin.renders == 2


def test_what_the_former_release_could_not_store_is_not_adopted() -> None:
    cluster = Cluster(Origin(HitForMiss("set-cookie")))
    cluster.process().get()
    assert shown(adopting(cluster).get(NEXT)) == ("MISS", "v2")


def test_a_new_release_without_a_former_page_renders_its_own() -> None:
    cluster = Cluster()
    assert shown(adopting(cluster).get(NEXT)) == ("MISS", "v1")


# Pages that a request may be served ------------------------------------------------------------------------


def suits_nobody(content: Content) -> bool:
    return False


def test_a_page_that_does_not_suit_the_visitor_is_passed_on_without_a_render_or_a_wait() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster)
    for age in (0, 10, 10):
        cluster.clock.advance(age)
        assert process.get(may_serve=suits_nobody) == Passed("cookie")
        process.settle()
    assert cluster.origin.renders == 1


def test_the_first_visitor_of_a_page_that_does_not_suit_them_has_it_made_for_others() -> None:
    cluster = Cluster()
    process = cluster.process()
    assert process.get(may_serve=suits_nobody) == Passed("cookie")
    assert shown(process.get()) == ("HIT", "v1")
    assert cluster.origin.renders == 1


# The background ----------------------------------------------------------------------------------------------


def test_where_the_background_is_full_the_stale_page_stays_until_the_next_visitor() -> None:
    cluster = Cluster()
    process = filled(cluster, threads=1, queue=1)
    gates = [Gate(page("a2")), Gate(page("b2"))]
    tasks = [task_of("/a"), task_of("/b")]
    for task in tasks:
        process.get(task)
    cluster.clock.advance(10)
    cluster.origin.script.extend(gates)
    process.get(tasks[0])
    gates[0].reached()
    process.get(tasks[1])
    renders = cluster.origin.renders
    assert shown(process.get()) == ("STALE", "v1")
    assert process.events(BackgroundFull) == [BackgroundFull(TASK.page)]
    assert cluster.origin.renders == renders
    for gate, task in zip(gates, tasks, strict=True):
        gate.open()
        process.settle(task)
    cluster.clock.advance(RECHECK_PAUSE)
    process.get()
    process.settle()
    assert shown(process.get())[0] == "HIT"


def test_stopping_waits_for_the_render_under_way_and_drops_the_others() -> None:
    cluster = Cluster()
    process = filled(cluster, threads=1)
    task = task_of("/b")
    process.get(task)
    cluster.clock.advance(10)
    gate = Gate(page("new"))
    cluster.origin.script.append(gate)
    process.get()
    gate.reached()
    process.get(task)
    dropped = process.flights.get(task.page)
    assert dropped is not None
    stopping: Future[bool] = start(lambda: process.cache.stop(NEVER))
    assert dropped.wait(NEVER) is not None
    gate.open()
    assert stopping.result(NEVER)
    assert text_of(stored(cluster)) == "new"
    assert cluster.origin.renders == 3


def test_after_the_stop_stale_pages_are_served_on_and_nothing_is_rendered_behind() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    assert process.cache.stop(NEVER)
    assert shown(process.get()) == ("STALE", "v1")
    assert cluster.origin.renders == 1


def test_an_invalidation_on_one_node_has_only_the_tags_of_that_node_compared() -> None:
    keys = Keyspace("site")
    cluster = Cluster(Origin(page("v1")._replace(tags=("b",))))
    store = Troubled(cluster.store)
    store.nodes = ("n1", "n2")
    on_first = {keys.tag("all"), keys.tag("beside all"), keys.epoch("n1")}
    store.node_of = lambda key: "n1" if key in on_first else "n2"  # type: ignore[method-assign]
    server, job = cluster.process(store), cluster.process(store)
    server.get()
    for invalidated, compared in [("beside all", "all"), ("beside b", "b"), ("beside all", "all")]:
        assert job.tag_versions.invalidate([invalidated], Mode.EXPIRE) == {}
        cluster.clock.advance(0.2)
        store.calls.clear()
        assert shown(server.get()) == ("HIT", "v1")
        assert [key for verb, key in store.calls if verb == "get_many"][1:] == [keys.tag(compared)]


def test_after_the_stop_a_missing_page_is_rendered_by_its_visitor() -> None:
    cluster = Cluster()
    process = cluster.process()
    assert process.cache.stop(NEVER)
    assert shown(process.get()) == ("MISS", "v1")


def test_a_visitor_of_an_expired_page_whose_render_is_dropped_gets_the_old_one_or_a_new_one() -> None:
    cluster = Cluster(Origin(expire=20))
    process = filled(cluster, age=20, threads=1)
    gate = Gate(page("other"))
    cluster.origin.script.append(gate)
    other = task_of("/other")
    process.dispatcher._threads.submit(join_or_create(process, other))
    gate.reached()
    boarded = threading.Event()
    submit = process.dispatcher._threads.submit

    def watched(job: Job, urgent: bool = False, on_done: Any = None) -> bool:
        taken = submit(job, urgent, on_done)
        boarded.set()
        return taken

    process.dispatcher._threads.submit = watched  # type: ignore[method-assign]
    visitor = start(process.get)
    assert boarded.wait(NEVER)
    assert not process.cache.stop(0)
    assert shown(visitor.result(NEVER)) in [("STALE-IF-ERROR", "v1"), ("EXPIRED", "v3")]
    gate.open()
    process.settle(other)


def test_a_render_that_outlives_the_stop_gives_its_lease_to_others_and_is_not_stored() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    gate = Gate(page("late"))
    cluster.origin.script.append(gate)
    process.get()
    gate.reached()
    assert not process.cache.stop(0)
    other = cluster.process()
    other.get()
    other.settle()
    assert shown(other.get()) == ("HIT", "v3")
    gate.open()
    process.settle()
    assert text_of(stored(cluster)) == "v3"


# Tasks ---------------------------------------------------------------------------------------------------------


@given(
    st.builds(
        Task,
        page=st.text(max_size=20),
        text=st.text(max_size=20),
        rule=st.text(max_size=20),
        limits=st.builds(
            Limits,
            timeout=st.floats(0, 1e6) | st.integers(0, 100),
            wait=st.floats(0, 1e6),
            lease=st.floats(3, 10),
            ignore_backoff=st.booleans(),
        ),
    ),
    st.builds(Attempt, max_lease_wait=st.floats(0, 1e6), ignore_backoff=st.booleans()),
)
def test_a_task_and_an_attempt_are_bytes_and_back(task: Task, attempt: Attempt) -> None:
    assert unpack(pack(task, attempt)) == (task, attempt)


def test_what_is_rendered_is_described_by_the_task_alone() -> None:
    cluster = Cluster()
    process = filled(cluster, age=10)
    process.get()
    process.settle()
    for task in cluster.origin.tasks:
        assert (task.page, task.text, task.rule, task.limits.timeout) == (
            TASK.page,
            TASK.text,
            TASK.rule,
            TASK.limits.timeout,
        )


# Control keys that are in use ----------------------------------------------------------------------------


def test_the_tags_of_a_copy_that_is_served_are_read_with_the_epochs_now_and_then() -> None:
    cluster = Cluster(Origin(revalidate=None))
    store = Troubled(cluster.store)
    process = cluster.process(store)
    process.get()
    tag, epoch = Keyspace("site").tag("all"), Keyspace("site").epoch("local")
    store.calls.clear()
    for _ in range(600):
        cluster.clock.advance(0.2)
        assert shown(process.get()) == ("HIT", "v1")
    asked = [key for verb, key in store.calls if verb == "get_many"]
    assert len(asked) == len(store.calls) == 600  # no round trip more than the epochs cost
    assert set(asked) == {epoch, f"{epoch} {tag}"}
    assert 14 <= asked.count(f"{epoch} {tag}") <= 24  # in 120 s


def test_the_tags_of_a_copy_that_is_not_served_are_not_read() -> None:
    cluster = Cluster(Origin(revalidate=None))
    store = Troubled(cluster.store)
    process = cluster.process(store)
    process.get()
    process.get(task_of("/other"))
    cluster.clock.advance(1000)
    store.calls.clear()
    process.get(task_of("/other"))
    cluster.clock.advance(1)
    process.get(task_of("/other"))
    assert len(store.calls) == 2
