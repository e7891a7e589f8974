"""The first executor that takes a job, and the bytes of a reply."""

from __future__ import annotations

import pytest

from tests.unit.scripted import task_of
from wsgi_isr.cache.executor import FirstOf, Job, OnDone, Reply, Status
from wsgi_isr.cache.lease import Busy
from wsgi_isr.cache.renderer_pool import decode, encode
from wsgi_isr.cache.single_flight import Flights
from wsgi_isr.cache.task import Attempt, Outcome


class Scripted:
    """An executor that takes every job, or none, and keeps the callbacks."""

    def __init__(self, takes: bool = True) -> None:
        self.takes = takes
        self.callbacks: list[OnDone] = []

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        if self.takes:
            self.callbacks.append(on_done)
        return self.takes


def job() -> Job:
    flights: Flights[Outcome] = Flights()
    task = task_of()
    return Job(task, Attempt(), flights.join_or_create(task.page)[0])


def test_a_job_goes_to_the_first_executor_that_takes_it() -> None:
    full, one, two = Scripted(takes=False), Scripted(), Scripted()
    replies: list[Reply | None] = []
    assert FirstOf(full, one, two).submit(job(), False, replies.append)
    assert (len(one.callbacks), len(two.callbacks)) == (1, 0)
    one.callbacks[0](Reply(Status.BUSY))
    assert replies == [Reply(Status.BUSY)]


def test_a_job_that_no_executor_takes_is_refused() -> None:
    replies: list[Reply | None] = []
    assert not FirstOf(Scripted(takes=False), Scripted(takes=False)).submit(job(), True, replies.append)
    assert replies == []


def test_a_job_that_is_unknown_to_one_executor_goes_to_the_next() -> None:
    one, two = Scripted(), Scripted()
    replies: list[Reply | None] = []
    assert FirstOf(one, two).submit(job(), False, replies.append)
    one.callbacks[0](Reply(Status.UNKNOWN))
    assert replies == []
    two.callbacks[0](None)
    assert replies == [None]


def test_a_job_that_is_unknown_to_the_last_executor_gets_its_reply() -> None:
    one, full = Scripted(), Scripted(takes=False)
    replies: list[Reply | None] = []
    assert FirstOf(one, full).submit(job(), False, replies.append)
    one.callbacks[0](Reply(Status.UNKNOWN))
    assert replies == [Reply(Status.UNKNOWN)]


def test_an_unknown_job_whose_flight_has_an_outcome_goes_to_no_other_executor() -> None:
    one, two = Scripted(), Scripted()
    replies: list[Reply | None] = []
    done = job()
    assert FirstOf(one, two).submit(done, False, replies.append)
    done.flight.set_result(Busy())
    one.callbacks[0](Reply(Status.UNKNOWN))
    assert (len(two.callbacks), replies) == (0, [Reply(Status.UNKNOWN)])


@pytest.mark.parametrize(
    "reply",
    [
        Reply(Status.STORED, b"a digest with a colon : and \xff"),
        Reply(Status.FOUND, b"digest"),
        Reply(Status.BUSY),
        Reply(Status.BACKING_OFF),
        Reply(Status.UNKNOWN),
        Reply(Status.FAILED, reason="status-500"),
    ],
    ids=lambda reply: reply.status.value,
)
def test_a_reply_is_bytes_and_back(reply: Reply) -> None:
    assert decode(encode(reply)) == reply


@pytest.mark.parametrize("data", [b"made:digest", b"\xff:", b"nothing", b"failed:\xff"])
def test_bytes_of_another_version_count_as_busy(data: bytes) -> None:
    assert decode(data) == Reply(Status.BUSY)
