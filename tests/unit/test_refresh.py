"""Refresh on demand: a render that begins after the call. Every process serves its result."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.scripted import NEVER, Cluster, Gate, Origin, Process, Troubled, page, shown, start, task_of
from wsgi_isr.cache.entry import HitForMiss
from wsgi_isr.cache.keyspace import Keyspace
from wsgi_isr.cache.task import Failed, Regenerated
from wsgi_isr.cache.verdict import Failure
from wsgi_isr.errors import InvalidationError, StoreError
from wsgi_isr.events import LeaseLost, Rendered, RenderFailed

TASK = task_of()
TAG = "all"


def refresh(process: Process) -> Regenerated | Failed:
    return process.cache.refresh(TASK, TAG)


def body(outcome: Any) -> str:
    assert isinstance(outcome, Regenerated), outcome
    return outcome.cached.entry.content.body.decode()  # type: ignore[union-attr]


def filled(*script: Any) -> tuple[Cluster, Process]:
    cluster = Cluster(Origin(*script, revalidate=None))
    process = cluster.process()
    assert shown(process.get()) == ("MISS", "v1")
    return cluster, process


def test_a_page_is_rendered_however_fresh_it_is() -> None:
    cluster, process = filled()
    assert body(refresh(process)) == "v2"
    assert shown(process.get()) == ("HIT", "v2")
    assert cluster.origin.renders == 2


def test_a_page_that_nobody_asked_for_is_rendered_and_stored() -> None:
    cluster = Cluster()
    assert body(refresh(cluster.process())) == "v1"
    assert shown(cluster.process().get()) == ("HIT", "v1")


def test_another_process_sees_it_however_long_its_copy_would_live() -> None:
    cluster, process = filled()
    other = cluster.process()
    assert shown(other.get()) == ("HIT", "v1")
    refresh(process)
    cluster.clock.advance(0.1)  # its coherence
    assert shown(other.get()) == ("HIT", "v2")


def test_the_lock_is_held_meanwhile_and_given_back() -> None:
    gate = Gate(page("v2", None))
    cluster, process = filled(page("v1", None), gate)
    refreshed = start(lambda: refresh(process))
    gate.reached()
    lock = Keyspace.lock(TASK.page)
    assert cluster.store.get(lock)
    cluster.clock.advance(0.1)
    other = cluster.process()
    assert shown(other.get()) == ("STALE", "v1")  # served meanwhile, and rendered by no other process
    other.settle()
    gate.open()
    assert body(refreshed.result(NEVER)) == "v2"
    assert cluster.store.get(lock) is None
    assert cluster.origin.renders == 2


def test_a_render_that_hangs_does_not_do_for_it() -> None:
    gate = Gate(page("old"))
    cluster = Cluster(Origin(page("v1"), gate, page("new")))
    process = cluster.process()
    process.get()
    cluster.clock.advance(10)
    assert shown(process.get()) == ("STALE", "v1")
    gate.reached()  # the background render has read the data from before the change
    assert body(refresh(process)) == "new"
    assert shown(process.get())[1] == "new"
    gate.open()
    process.settle()
    assert shown(process.get())[1] == "new"  # a late writer loses


def test_a_render_of_another_process_does_not_do_for_it() -> None:
    gate = Gate(page("old"))
    cluster = Cluster(Origin(gate, page("new")))
    other = start(cluster.process().get)
    gate.reached()
    process = cluster.process()
    assert body(refresh(process)) == "new"
    gate.open()
    other.result(NEVER)
    assert shown(cluster.process().get())[1] == "new"
    assert process.events(LeaseLost) == []


def test_a_refresh_that_hangs_is_not_joined_but_left_behind_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_isr.cache.lookup.REFRESH_JOIN_WAIT", 0.01)
    gate = Gate(page("old", None))
    _, process = filled(page("v1", None), gate, page("new", None))
    hanging = start(lambda: refresh(process))
    gate.reached()
    assert body(refresh(process)) == "new"
    gate.open()
    # Its render began before the stored one, so it returns the stored one.
    assert body(hanging.result(NEVER)) == "new"
    assert shown(process.get()) == ("HIT", "new")


def test_a_refresh_is_no_failure_where_there_is_one_newer_than_the_one_that_was_newer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate(page("old", None))
    cluster, process = filled(page("v1", None), gate, page("new", None), page("newest", None))
    hanging = start(lambda: refresh(process))
    gate.reached()
    other = cluster.process()
    cluster.clock.advance(0.1)
    assert body(refresh(other)) == "new"
    kept = process.cache.kept

    def late(task: Any) -> Any:
        # This happens between our late write, which finds the new entry, and the read of that entry.
        if cluster.origin.script:
            cluster.clock.advance(0.1)
            refresh(other)
        return kept(task)

    monkeypatch.setattr(process.cache, "kept", late)
    gate.open()
    assert body(hanging.result(NEVER)) == "new"
    assert shown(cluster.process().get()) == ("HIT", "newest")


def test_those_who_come_while_one_runs_share_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_isr.cache.lookup.REFRESH_JOIN_WAIT", NEVER)
    gate, second = Gate(page("v2", None)), Gate(page("v3", None))
    cluster, process = filled(page("v1", None), gate, second)
    first = start(lambda: refresh(process))
    gate.reached()
    others = [start(lambda: refresh(process)) for _ in range(5)]
    assert all(process.joins.acquire(timeout=NEVER) for _ in others)
    gate.open()
    assert body(first.result(NEVER)) == "v2"
    second.reached()
    assert all(process.joins.acquire(timeout=NEVER) for _ in others[1:])  # all but the one that leads it
    second.open()
    assert {body(other.result(NEVER)) for other in others} == {"v3"}
    assert cluster.origin.renders == 3


@pytest.mark.parametrize("failure", [Failure("status-500"), ValueError("broken")])
def test_where_it_fails_the_last_good_page_stays(failure: Any) -> None:
    _, process = filled(page("v1", None), failure)
    outcome = refresh(process)
    assert isinstance(outcome, Failed)
    assert shown(process.get()) == ("STALE", "v1")
    assert len(process.events(RenderFailed)) == 1


def test_a_back_off_does_not_hold_it_up_and_its_success_ends_it() -> None:
    _, process = filled(page("v1", None), Failure("status-500"), page("v3", None))
    assert isinstance(refresh(process), Failed)
    assert body(refresh(process)) == "v3"
    assert shown(process.get()) == ("HIT", "v3")


def test_an_answer_that_may_not_be_stored_is_what_it_is() -> None:
    cluster = Cluster(Origin(HitForMiss("private")))
    outcome = refresh(cluster.process())
    assert isinstance(outcome, Regenerated)
    assert outcome.cached.entry.content == HitForMiss("private")


def test_a_render_past_its_timeout_is_reported_while_it_still_hangs() -> None:
    gate = Gate(page("late", None))
    cluster, process = filled(page("v1", None), gate)
    refreshed = start(lambda: refresh(process))
    gate.reached()
    cluster.clock.advance(TASK.limits.timeout)
    process.tick()
    assert refreshed.result(NEVER) == Failed("timeout")
    gate.open()
    assert shown(process.get()) == ("STALE", "v1")


def test_what_cannot_be_told_to_others_is_not_done() -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    process = cluster.process(store)
    process.get()
    store.failing.add("set")
    with pytest.raises(InvalidationError) as raised:
        refresh(process)
    assert list(raised.value.undelivered) == [TAG]
    assert cluster.origin.renders == 1
    store.failing.clear()
    assert body(refresh(process)) == "v2"


def test_without_a_thread_to_be_had_it_is_rendered_by_the_caller() -> None:
    cluster = Cluster()
    process = cluster.process(threads=0, queue=0)
    assert body(refresh(process)) == "v1"


def test_after_the_end_of_a_process_it_still_works() -> None:
    _, process = filled()
    process.cache.stop(NEVER)
    assert body(refresh(process)) == "v2"


def test_what_the_store_has_is_told_whatever_it_is_worth() -> None:
    cluster, process = filled()
    cluster.clock.advance(1e9)
    entry = process.cache.kept(TASK)
    assert entry is not None
    assert entry.content.body == b"v1"  # type: ignore[union-attr]
    assert process.cache.kept(task_of("/other")) is None


def test_a_store_that_cannot_be_asked_says_so() -> None:
    cluster = Cluster()
    store = Troubled(cluster.store)
    store.failing.add("get")
    with pytest.raises(StoreError):
        cluster.process(store).cache.kept(TASK)


def test_a_refresh_is_one_render_in_the_figures() -> None:
    _, process = filled()
    refresh(process)
    assert [event.stored for event in process.events(Rendered)] == [True, True]
