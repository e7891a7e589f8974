"""The counts of an instance: reports arrive as datagrams, are never waited for, and add up exactly."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsgi_isr import ISR
from wsgi_isr.events import Served
from wsgi_isr.observe import aggregate, reporter
from wsgi_isr.observe.aggregate import SILENCE, Report, Sums, ask, totals_of_instance
from wsgi_isr.observe.counts import Counts
from wsgi_isr.observe.reporter import Reporter
from wsgi_isr.observe.totals import Totals
from wsgi_isr.renderers import recorder

HIT = ("/", "HIT", "")


class Recorder:
    """A recorder in this process, which reads when it is told to."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.reports, self.readers = recorder._open(place)
        self.sums = Sums()

    def read(self) -> Totals:
        recorder._read(self.reports, self.sums)
        return self.sums.all()

    def close(self) -> None:
        self.reports.close()
        self.readers.close()


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    # The folder of the test may have too long a path.
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setattr(aggregate, "folder", place)
        made = Recorder(place)
        yield made
        made.close()


def app(*rules: str) -> Any:
    """Return an app as the reporter sees it."""
    store = SimpleNamespace(keeps=True, shared=True)
    return _App(store, Counts(rules or ("/",)))


class _App:
    def __init__(self, store: Any, counts: Counts) -> None:
        self._store, self._counts, self._app_digest = store, counts, b"app"


@pytest.fixture
def reporting() -> Iterator[Reporter]:
    """Yield a reporter without a thread: the test reports itself."""
    made = Reporter()
    made._start = lambda: None  # type: ignore[method-assign]
    yield made
    if made._socket is not None:
        made._socket.close()


def test_reports_add_up(recording: Recorder, reporting: Reporter) -> None:
    one = app()
    reporting.attend(one)
    for number in (3, 4):
        one._counts.hits_of("/").number += number
        reporting.report()
    assert recording.read().requests[HIT] == 7


def test_a_report_that_found_no_room_is_in_the_next_one(recording: Recorder, reporting: Reporter) -> None:
    one = app()
    reporting.attend(one)
    one._counts.hits_of("/").number += 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
        flood.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while flood.sendto(b"x", f"{recording.place}/{aggregate.COUNTS}"):
                pass
        reporting.report()
        assert one._counts.totals().dropped == 1
    assert recording.read().requests.get(HIT, 0) == 0
    reporting.report()
    total = recording.read()
    assert (total.requests[HIT], total.dropped) == (1, 1)


def test_large_totals_are_sent_in_parts(recording: Recorder, reporting: Reporter) -> None:
    rules = [f"/{number}" for number in range(200)]
    one = app(*rules)
    reporting.attend(one)
    for rule in rules:
        one._counts.hits_of(rule).number += 2
        one._counts.count(Served("p", "MISS", rule=rule))
    reporting.report()
    requests = recording.read().requests
    assert sum(requests.values()) == 600
    assert len(requests) == 401


def test_the_last_report_ends_the_values_of_the_moment(recording: Recorder, reporting: Reporter) -> None:
    one = app()
    one._counts.watch(lambda: {"local_bytes": 5, "evictions": 0})
    reporting.attend(one)
    reporting.report()
    assert recording.read().local_bytes == 5
    one._counts.hits_of("/").number += 1
    reporting.dismiss(one)
    total = recording.read()
    assert (total.requests[HIT], total.local_bytes, total.processes) == (1, 0, 0)


def test_an_app_that_begins_again_is_counted_once(recording: Recorder, reporting: Reporter) -> None:
    one = app()
    reporting.attend(one)
    one._counts.hits_of("/").number += 1
    reporting.dismiss(one)
    reporting.attend(one)
    one._counts.hits_of("/").number += 1
    reporting.report()
    assert recording.read().requests[HIT] == 2


def test_a_silent_process_has_no_values_of_the_moment_any_more() -> None:
    now = [0.0]
    sums = Sums(lambda: now[0])
    sums.add(Report(b"a", b"1", True, False, Totals(requests={HIT: 1}, local_bytes=5, processes=1)))
    now[0] = SILENCE + 1
    total = sums.all()
    assert (total.requests, total.local_bytes, total.processes) == ({HIT: 1}, 0, 0)


def test_processes_and_apps_add_up() -> None:
    sums = Sums()
    for name in (b"a", b"b"):
        for sender in (b"1", b"2"):
            sums.add(Report(name, sender, True, False, Totals(requests={HIT: 1}, local_bytes=5, processes=1)))
    assert (sums.of(b"a").requests, sums.of(b"a").processes) == ({HIT: 2}, 2)
    assert (sums.all().requests, sums.all().processes) == ({HIT: 4}, 4)


@pytest.mark.parametrize("message", [b"", b"x", b"\x96\x02\xc4\x01a\xc4\x01b\xc3\xc2\xc4\x00", b"\xc1"])
def test_other_messages_are_left_out(message: bytes, recording: Recorder) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message, f"{recording.place}/{aggregate.COUNTS}")
    assert recording.read() == Totals()


def test_a_reader_gets_the_totals_of_all(recording: Recorder, reporting: Reporter) -> None:
    one = app()
    reporting.attend(one)
    one._counts.hits_of("/").number += 9
    reporting.report()
    recording.read()
    recording.readers.setblocking(True)
    thread = threading.Thread(target=recorder._answer, args=(recording.readers, recording.sums))
    thread.start()
    assert totals_of_instance(timeout=10).requests[HIT] == 9
    thread.join()


def test_a_reader_does_not_wait_for_a_recorder_that_hangs(recording: Recorder) -> None:
    with pytest.raises(TimeoutError):
        ask(recording.place, timeout=0.01)


def test_without_a_recorder_the_totals_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "folder", None)
    monkeypatch.setattr("wsgi_isr.observe.counts._OF_PROCESS", known := set())
    one = Counts(["/"])
    known.add(one)
    one.hits_of("/").number += 2
    assert not aggregate.is_of_instance()
    assert totals_of_instance().requests[HIT] == 2


def test_without_a_recorder_each_process_writes_its_history(
    reporting: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Totals] = []

    class Minutes:
        def __init__(self, history: Any, kind: str) -> None:
            assert kind == "process"

        def is_due(self) -> bool:
            return True

        def write(self, totals: Totals) -> None:
            written.append(totals)

    monkeypatch.setattr(reporter, "Minutes", Minutes)
    monkeypatch.setattr(reporter, "History", lambda *arguments: None)
    one = app()
    one.configuration = SimpleNamespace(settings=SimpleNamespace(namespace="n", signing_key=None))
    reporting.attend(one)
    one._counts.hits_of("/").number += 2
    reporting.report()
    assert [each.requests[HIT] for each in written] == [2]


def test_a_hit_allocates_nothing_for_its_count() -> None:
    import sys

    hits = Counts(["/"]).hits_of("/")
    hits.number = 10**6

    def count() -> None:
        for _ in range(1000):
            hits.number += 1

    count()
    before = sys.getallocatedblocks()
    count()
    assert sys.getallocatedblocks() - before <= 1


def test_the_child_of_a_fork_reports_its_own_counts_alone(recording: Recorder, tmp_path: Path) -> None:
    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x"]

    isr = ISR(wsgi, revalidate=60, store=f"sqlite:///{tmp_path}/pages.db", release="1", development="cache")
    rule = ("*", "HIT", "")
    isr._engine  # noqa: B018 - begins
    isr._counts.hits_of("*").number += 5
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            isr._engine  # noqa: B018
            isr._counts.hits_of("*").number += 2
            isr.close()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert recording.read().requests[rule] == 2
    isr.close()
    assert recording.read().requests[rule] == 7
