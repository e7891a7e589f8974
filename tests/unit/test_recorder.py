"""The supervisor's side of the recorder: it starts, is replaced, and ends last."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from wsgi_isr.observe.totals import Totals
from wsgi_isr.renderers import recorder, supervisor
from wsgi_isr.renderers.recorder import RecorderProcess
from wsgi_isr.renderers.supervisor import ProcessPool


class Processes:
    """Recorders that end when they are told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended: dict[int, int] = {}
        self.refuses = False

    def begin(self) -> int:
        if self.refuses:
            raise OSError(11, "Resource temporarily unavailable")
        self.begun += 1
        return self.begun


@pytest.fixture
def place() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        yield made


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    made = Processes()
    monkeypatch.setattr(recorder, "status_of", made.ended.get)
    return made


def made(place: str, processes: Processes) -> RecorderProcess:
    sites: Any = {b"app": None}
    return RecorderProcess(place, sites, processes.begin)


def test_a_recorder_that_ends_is_replaced_after_a_pause(place: str, processes: Processes) -> None:
    recording = made(place, processes)
    recording.look_after(0.0)
    recording.look_after(1.0)
    assert processes.begun == 1
    processes.ended[1] = 9
    recording.look_after(2.0)
    recording.look_after(2.5)
    assert processes.begun == 1
    recording.look_after(3.1)
    assert processes.begun == 2


def test_where_no_process_can_begin_it_is_tried_again(place: str, processes: Processes) -> None:
    recording = made(place, processes)
    processes.refuses = True
    recording.look_after(0.0)
    processes.refuses = False
    recording.look_after(0.5)
    assert processes.begun == 0
    recording.look_after(1.1)
    assert processes.begun == 1


def test_ends_of_renderers_are_reported_once_the_recorder_listens(place: str, processes: Processes) -> None:
    recording = made(place, processes)
    recording.restarted("killed")
    recording.look_after(0.0)
    reports, readers = recorder._open(place)
    try:
        recording.restarted("max-renders")
        recording.look_after(1.0)
        recording.look_after(2.0)
        sums = recorder.Sums()
        recorder._read(reports, sums)
    finally:
        reports.close()
        readers.close()
    assert sums.all() == Totals(restarts={("killed",): 1, ("max-renders",): 1})


class Ending:
    """A pool of one renderer, which ends as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status: int | None = None
        self.reasons: list[str] = []
        self.heartbeats: list[Any] = []
        self.killed: list[int] = []
        monkeypatch.setattr(supervisor, "status_of", lambda pid: self.status if pid == 1 else None)
        monkeypatch.setattr(supervisor.os, "kill", lambda pid, number: self.killed.append(pid))
        self.pool = ProcessPool(1, self._begin, self.reasons.append)
        self.pool.replace_due(0.0)

    def _begin(self, heartbeat: Any) -> int:
        self.heartbeats.append(heartbeat)
        return len(self.heartbeats)

    def end(self, status: int) -> list[str]:
        self.status = status
        self.pool.replace_due(10.0)
        return self.reasons


def test_the_reason_for_an_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ending(monkeypatch).end(9) == ["killed"]
    assert Ending(monkeypatch).end(0) == ["ended"]
    assert Ending(monkeypatch).end(supervisor.HANGING << 8) == ["hanging"]


def test_a_renderer_that_has_made_its_pages_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(monkeypatch)
    ending.heartbeats[0].report(0.0, leaving=True)
    ending.pool.replace_due(1.0)
    assert ending.end(0)[:1] == ["max-renders"]


def test_a_renderer_that_is_killed_because_it_hangs_counts_as_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending(monkeypatch)
    ending.heartbeats[0].report(0.5, leaving=False)
    ending.pool.replace_due(1.0)
    assert ending.killed == [1]
    assert ending.end(9) == ["hanging"]
