"""The background pool: bounded, lazily started, stopped in order."""

from __future__ import annotations

import threading

import pytest

from tests.unit.scripted import NEVER, Gate, start
from wsgi_isr.cache.thread_pool import Pool


class World:
    """A pool whose jobs are gates, by name; a job without a gate just runs."""

    def __init__(self, threads: int = 1, queue: int = 8) -> None:
        self.gates: dict[bytes, Gate] = {}
        self.ran: list[bytes] = []
        self.dropped: list[bytes] = []
        self.threads: dict[bytes, threading.Thread] = {}
        self.done: dict[bytes, threading.Event] = {}
        self.pool = Pool(self._run, threads, queue)

    def _run(self, job: bytes) -> bool:
        self.threads[job] = threading.current_thread()
        if gate := self.gates.get(job):
            gate.enter()
        self.ran.append(job)
        self.done[job].set()
        return True

    def submit(self, job: bytes) -> bool:
        self.done[job] = threading.Event()
        return self.pool.submit(job, on_done=lambda result: self.end(job, result))

    def end(self, job: bytes, result: bool | None) -> None:
        if result is None:
            self.dropped.append(job)

    def hold(self, job: bytes) -> Gate:
        """Submit a job and wait until it runs; it ends when its gate is opened."""
        gate = self.gates[job] = Gate()
        assert self.submit(job)
        gate.reached()
        return gate

    def finish(self, *jobs: bytes) -> None:
        for job in jobs:
            if job in self.gates:
                self.gates[job].open()
            assert self.done[job].wait(NEVER)


def start_fails(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_no_thread_exists_before_the_first_job() -> None:
    before = set(threading.enumerate())
    world = World(threads=4)
    assert set(threading.enumerate()) == before
    world.submit(b"a")
    world.finish(b"a")
    thread = world.threads[b"a"]
    assert thread not in before
    assert (thread.daemon, thread.name) == (True, "wsgi-isr-render")
    assert world.pool.stop(NEVER)


def test_a_job_is_the_bytes_that_were_submitted() -> None:
    world = World()
    world.submit(b"\x00\xff")
    world.finish(b"\x00\xff")
    assert world.ran == [b"\x00\xff"]
    assert world.pool.stop(NEVER)


def test_jobs_that_wait_run_in_order() -> None:
    world = World()
    world.hold(b"a")
    for job in (b"b", b"c", b"d"):
        world.submit(job)
    world.finish(b"a", b"b", b"c", b"d")
    assert world.ran == [b"a", b"b", b"c", b"d"]
    assert world.pool.stop(NEVER)


def test_as_many_jobs_run_at_once_as_there_are_threads_and_no_more() -> None:
    world = World(threads=2)
    world.hold(b"a")
    world.hold(b"b")
    world.gates[b"c"] = Gate()
    world.submit(b"c")
    assert set(world.threads) == {b"a", b"b"}
    world.finish(b"a")
    world.gates[b"c"].reached()
    assert world.threads[b"c"] is world.threads[b"a"]
    world.finish(b"b", b"c")
    assert world.pool.stop(NEVER)


def test_a_job_that_somebody_waits_for_comes_before_those_that_nobody_does() -> None:
    world = World()
    world.hold(b"a")
    world.submit(b"b")
    world.submit(b"c")
    world.done[b"urgent"] = threading.Event()
    assert world.pool.submit(b"urgent", urgent=True)
    world.finish(b"a", b"b", b"c", b"urgent")
    assert world.ran == [b"a", b"urgent", b"b", b"c"]
    assert world.pool.stop(NEVER)


def test_no_more_jobs_wait_than_the_queue_holds() -> None:
    world = World(threads=1, queue=2)
    world.hold(b"a")
    assert world.submit(b"b")
    assert world.submit(b"c")
    assert not world.submit(b"d")
    world.finish(b"a", b"b", b"c")
    assert b"d" not in world.ran
    assert world.submit(b"e")
    world.finish(b"e")
    assert world.pool.stop(NEVER)


# Stopping ----------------------------------------------------------------------------------------------


def test_a_pool_that_never_had_a_job_stops_at_once() -> None:
    assert World().pool.stop(0)


def test_idle_threads_end_when_the_pool_stops() -> None:
    world = World(threads=2)
    world.hold(b"a")
    world.hold(b"b")
    world.finish(b"a", b"b")
    assert world.pool.stop(NEVER)
    for thread in world.threads.values():
        thread.join(NEVER)
        assert not thread.is_alive()


def test_stopping_drops_what_waits_in_order_and_lets_what_runs_come_to_its_end() -> None:
    world = World()
    gate = world.hold(b"a")
    world.submit(b"b")
    world.submit(b"c")
    dropped = Gate()
    end = world.end

    def end_slowly(job: bytes, result: bool | None) -> None:
        end(job, result)
        if result is None:
            dropped.enter()

    world.end = end_slowly  # type: ignore[method-assign]
    stopping = start(lambda: world.pool.stop(NEVER))
    dropped.reached()
    assert not world.pool.submit(b"d")  # no more jobs are taken, even before the others are dropped
    dropped.open()
    gate.open()
    assert stopping.result(NEVER)
    assert world.dropped == [b"b", b"c"]
    assert world.ran == [b"a"]


def test_a_job_that_does_not_end_is_not_waited_for_beyond_the_deadline() -> None:
    world = World()
    world.hold(b"a")
    world.submit(b"b")
    assert not world.pool.stop(0)
    assert world.dropped == [b"b"]
    world.finish(b"a")
    assert world.pool.stop(NEVER)


def test_nothing_is_taken_after_the_stop() -> None:
    world = World()
    world.submit(b"a")
    world.finish(b"a")
    assert world.pool.stop(NEVER)
    assert not world.submit(b"b")
    assert world.pool.stop(0)
    assert (world.ran, world.dropped) == ([b"a"], [])


# Stuck threads -----------------------------------------------------------------------------------------


def test_a_thread_that_was_written_off_is_replaced() -> None:
    world = World()
    world.hold(b"stuck")
    world.submit(b"b")
    world.pool.write_off(world.threads[b"stuck"])
    world.finish(b"b")
    assert world.threads[b"b"] is not world.threads[b"stuck"]
    world.finish(b"stuck")
    assert world.pool.stop(NEVER)


def test_a_replacement_comes_with_the_next_job_where_none_waits() -> None:
    world = World()
    world.hold(b"stuck")
    world.pool.write_off(world.threads[b"stuck"])
    world.submit(b"b")
    world.finish(b"b")
    world.finish(b"stuck")
    assert world.pool.stop(NEVER)


def test_a_written_off_thread_ends_when_its_job_does_and_takes_no_other() -> None:
    world = World()
    world.hold(b"stuck")
    world.pool.write_off(world.threads[b"stuck"])
    world.hold(b"b")
    world.submit(b"c")
    world.finish(b"stuck")
    world.threads[b"stuck"].join(NEVER)
    assert not world.threads[b"stuck"].is_alive()
    assert world.ran == [b"stuck"]
    world.finish(b"b", b"c")
    assert world.pool.stop(NEVER)


def test_where_the_app_hangs_everywhere_jobs_are_refused_until_one_comes_back() -> None:
    world = World(threads=2)
    jobs = [b"1", b"2", b"3", b"4"]
    for job in jobs:
        world.hold(job)
        world.pool.write_off(world.threads[job])
    # Two threads hang and are written off, and their two successors hang. More threads would only hang, too.
    assert not world.submit(b"5")
    world.finish(b"1")
    world.threads[b"1"].join(NEVER)
    assert world.submit(b"6")
    world.finish(b"6")
    world.finish(*jobs)
    assert world.pool.stop(NEVER)


def test_writing_off_a_thread_twice_counts_once() -> None:
    world = World()
    world.hold(b"stuck")
    world.pool.write_off(world.threads[b"stuck"])
    world.pool.write_off(world.threads[b"stuck"])
    world.submit(b"b")
    world.finish(b"b", b"stuck")
    assert world.pool.stop(NEVER)


def test_the_thread_of_somebody_else_is_not_written_off() -> None:
    world = World()
    world.pool.write_off(threading.current_thread())
    assert world.pool.stop(0)


def test_a_pool_with_a_written_off_thread_is_not_stopped_before_that_ends() -> None:
    world = World()
    world.hold(b"stuck")
    world.pool.write_off(world.threads[b"stuck"])
    assert not world.pool.stop(0)
    world.finish(b"stuck")
    assert world.pool.stop(NEVER)


# Where a process has no thread left --------------------------------------------------------------------


def test_a_job_is_refused_where_the_system_has_no_thread_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_fails)
        assert not world.submit(b"a")
    assert world.submit(b"b")
    world.finish(b"b")
    assert world.ran == [b"b"]
    assert world.pool.stop(NEVER)


def test_a_job_waits_for_a_thread_that_is_there_where_no_other_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(threads=2)
    world.hold(b"a")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_fails)
        assert world.submit(b"b")
    world.finish(b"a", b"b")
    assert world.pool.stop(NEVER)


def test_without_threads_a_job_runs_where_it_is_submitted() -> None:
    world = World(threads=0)
    assert world.submit(b"a")
    assert world.threads[b"a"] is threading.current_thread()


def test_without_threads_and_without_room_no_job_is_taken() -> None:
    world = World(threads=0, queue=0)
    assert not world.submit(b"a")
    assert world.threads == {}
