"""Invalidations faster than renders: a waiting client gets a render that began after its request."""

from __future__ import annotations

import threading

import pytest

from tests.unit.scripted import NEVER, Cluster, Gate, Origin, Process, page, shown, start, task_of
from wsgi_isr.cache.executor import Job, OnDone, Reply, Status
from wsgi_isr.cache.lease import Busy
from wsgi_isr.cache.tag_versions import Mode
from wsgi_isr.cache.task import Passed, Served

TASK = task_of()


def write(process: Process) -> None:
    """Invalidate the page, as a successful POST to its URL does."""
    assert process.tag_versions.invalidate(["all"], Mode.EXPIRE) == {}


class Renderer:
    """A renderer process that does each job at once, in a thread of its own."""

    def __init__(self, serving: Process, rendering: Process) -> None:
        self.replies: list[Reply] = []
        self._rendering = rendering
        serving.elsewhere.executor = self

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        def work() -> None:
            self.replies.append(self._rendering.cache.run_job(job.task, job.attempt))
            on_done(self.replies[-1])

        threading.Thread(target=work, daemon=True).start()
        return True


def test_a_renderer_whose_epochs_are_from_before_a_write_renders_all_the_same() -> None:
    cluster = Cluster()
    serving, rendering = cluster.process(), cluster.process()
    renderer = Renderer(serving, rendering)
    serving.get()
    assert shown(rendering.get()) == ("HIT", "v1")  # the process has polled the epochs now
    write(serving)
    assert shown(serving.get()) == ("EXPIRED", "v2")
    assert [reply.status for reply in renderer.replies] == [Status.STORED]


def test_a_page_that_a_renderer_finds_is_proven_after_the_visitor_came() -> None:
    cluster = Cluster()
    serving, rendering, third = (cluster.process() for _ in range(3))
    renderer = Renderer(serving, rendering)
    serving.get()
    write(serving)
    assert shown(third.get()) == ("EXPIRED", "v2")
    serving.cache._look_up(TASK, serving.tag_versions.epochs())
    answer = serving.cache._load(TASK, serving.local.get(TASK.page))
    assert shown(answer) == ("EXPIRED", "v2")
    assert [reply.status for reply in renderer.replies] == [Status.FOUND]
    assert cluster.origin.renders == 2


def test_a_visitor_gets_the_render_that_began_for_them_although_it_was_invalidated_meanwhile() -> None:
    cluster = Cluster()
    process = cluster.process()
    process.get()
    cluster.origin.on_render = lambda: write(process)
    write(process)
    for number in (2, 3, 4):
        assert shown(process.get()) == ("EXPIRED", f"v{number}")
    assert cluster.origin.renders == 4


@pytest.mark.parametrize("followers", [1, 5])
def test_visitors_who_come_in_the_middle_of_a_render_share_the_next_one(followers: int) -> None:
    first, second = Gate(page("v2")), Gate(page("v3"))
    cluster = Cluster(Origin(None, first, second))
    process = cluster.process()
    process.get()
    write(process)
    leader = start(process.get)
    first.reached()
    write(process)
    late = [start(process.get) for _ in range(followers)]
    for _ in late:
        assert process.joins.acquire(timeout=NEVER)
    first.open()
    second.reached()
    for _ in late[1:]:
        assert process.joins.acquire(timeout=NEVER)
    write(process)
    second.open()
    assert shown(leader.result(NEVER)) == ("EXPIRED", "v2")
    assert [shown(visitor.result(NEVER)) for visitor in late] == [("EXPIRED", "v3")] * followers
    assert cluster.origin.renders == 3


def test_a_visitor_whom_no_answer_suffices_pauses_between_two_looks() -> None:
    cluster = Cluster(Origin(expire=12))
    process = cluster.process()
    process.get()
    jobs: list[Job] = []

    class FindsAnotherPage:
        def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
            jobs.append(job)
            on_done(Reply(Status.FOUND, b"another page"))
            return True

    cluster.clock.advance(15)
    process.elsewhere.executor = FindsAnotherPage()
    answer = process.get(task_of(wait=10.0))
    assert answer == Passed("lock-timeout", missed=True)
    assert len(jobs) < 100


def test_a_page_that_is_busy_elsewhere_is_looked_for_again_after_a_pause() -> None:
    cluster = Cluster()
    pauses: list[float] = []
    process = cluster.process(pause=lambda seconds: (pauses.append(seconds), cluster.clock.advance(seconds)))
    other = cluster.process()
    lease = other.leases.acquire(TASK.page, 10.0)
    assert not isinstance(lease, Busy)
    answer = process.get(task_of(wait=1.0))
    assert not isinstance(answer, Served)
    assert pauses
    assert min(pauses[:-1]) >= 0.005
