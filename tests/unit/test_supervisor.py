"""The number of renderers at any time: the supervisor's book-keeping, without real processes."""

from __future__ import annotations

import itertools
import logging
import signal

import pytest

from wsgi_isr.renderers import supervisor
from wsgi_isr.renderers.supervisor import ProcessPool
from wsgi_isr.renderers.worker import CHECK_PAUSE, Heartbeat

KILLED, EXITED = int(signal.SIGKILL), 0


class World:
    """Processes by number. A killed process has ended at the next look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heartbeats: dict[int, Heartbeat] = {}
        self.ended: dict[int, int] = {}
        self.signals: list[tuple[int, int]] = []
        self.failing: OSError | None = None
        self.deaf: set[int] = set()
        self._pids = itertools.count(101)
        monkeypatch.setattr(supervisor, "status_of", self.ended.get)
        monkeypatch.setattr("os.kill", self._kill)

    def begin(self, heartbeat: Heartbeat) -> int:
        if self.failing is not None:
            raise self.failing
        pid = next(self._pids)
        self.heartbeats[pid] = heartbeat
        return pid

    def _kill(self, pid: int, number: int) -> None:
        self.signals.append((pid, number))
        if number == signal.SIGKILL or pid not in self.deaf:
            self.ended.setdefault(pid, number)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_as_many_begin_as_there_should_be_and_then_no_more(world: World) -> None:
    pool = ProcessPool(3, world.begin)
    assert pool.replace_due(1000.0) == CHECK_PAUSE
    pool.replace_due(1001.0)
    assert list(world.heartbeats) == [101, 102, 103]


def test_one_that_dies_is_replaced_at_once_and_it_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    pool = ProcessPool(2, world.begin)
    pool.replace_due(1000.0)
    world.ended[101] = KILLED
    pool.replace_due(1010.0)
    assert list(world.heartbeats) == [101, 102, 103]
    assert [record.getMessage() for record in caplog.records] == ["a renderer process was killed by signal 9"]


def test_those_that_end_at_once_are_replaced_more_and_more_slowly(world: World) -> None:
    pool = ProcessPool(1, world.begin)
    now, pauses = 1000.0, []
    pool.replace_due(now)
    for pid in range(101, 108):
        world.ended[pid] = EXITED
        seen = at = now
        while len(world.heartbeats) == pid - 100:
            at = now
            now += pool.replace_due(now)
        pauses.append(at - seen)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    world.ended[108] = KILLED
    pool.replace_due(now + 10)
    assert len(world.heartbeats) == 9, "after a life that was long enough there is no pause"


def test_one_that_leaves_is_replaced_before_it_has_ended_and_only_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ProcessPool(1, world.begin)
    pool.replace_due(1000.0)
    world.heartbeats[101].report(1020.0, leaving=True)
    pool.replace_due(1010.0)
    pool.replace_due(1011.0)
    world.ended[101] = EXITED
    pool.replace_due(1012.0)
    assert list(world.heartbeats) == [101, 102]
    assert caplog.records == []


def test_one_that_hangs_as_a_whole_is_killed_and_replaced(world: World, caplog: pytest.LogCaptureFixture) -> None:
    pool = ProcessPool(1, world.begin)
    pool.replace_due(1000.0)
    world.heartbeats[101].report(1030.0, leaving=False)
    pool.replace_due(1030.0)
    assert world.signals == []
    pool.replace_due(1030.1)
    assert world.signals == [(101, signal.SIGKILL)]
    pool.replace_due(1030.2)
    assert list(world.heartbeats) == [101, 102]
    assert "hangs in a render past its timeout" in caplog.records[0].getMessage()


def test_so_is_one_that_does_not_come_to_its_end(world: World) -> None:
    pool = ProcessPool(1, world.begin)
    pool.replace_due(1000.0)
    world.heartbeats[101].report(1015.0, leaving=True)
    pool.replace_due(1001.0)
    pool.replace_due(1016.0)
    assert world.signals == [(101, signal.SIGKILL)]
    pool.replace_due(1017.0)
    assert list(world.heartbeats) == [101, 102]


def test_one_without_a_job_may_be_idle_for_ever(world: World) -> None:
    pool = ProcessPool(1, world.begin)
    pool.replace_due(1000.0)
    world.heartbeats[101].report(0.0, leaving=False)
    pool.replace_due(9_999_999.0)
    assert world.signals == []


def test_where_none_can_be_forked_it_is_tried_again_in_a_second(world: World, caplog: pytest.LogCaptureFixture) -> None:
    pool = ProcessPool(1, world.begin)
    world.failing = BlockingIOError(11, "Resource temporarily unavailable")
    pool.replace_due(1000.0)
    world.failing = None
    pool.replace_due(1000.9)
    assert world.heartbeats == {}
    pool.replace_due(1001.0)
    assert list(world.heartbeats) == [101]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_at_the_end_all_are_asked_and_who_does_not_hear_is_killed(world: World) -> None:
    pool = ProcessPool(3, world.begin)
    pool.replace_due(1000.0)
    world.heartbeats[103].report(1020.0, leaving=True)
    pool.replace_due(1000.0)
    world.deaf = {102}
    pool.stop(0.0)
    # SIGCONT lets a process that was stopped get the SIGTERM, too.
    asked = [(pid, number) for pid in (101, 102, 103, 104) for number in (signal.SIGTERM, signal.SIGCONT)]
    assert sorted(world.signals) == sorted([*asked, (102, signal.SIGKILL)])
