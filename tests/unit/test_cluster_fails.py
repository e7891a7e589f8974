"""The checks of a cluster fail where the cluster is faulty, and where the checks themselves are."""

from __future__ import annotations

import heapq
import json
import math
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from cluster import check as checks
from cluster import cli
from cluster.chaos import faults, run
from cluster.chaos import nemesis as striking
from cluster.chaos.history import Attempt, Circumstances, Invalidation, Outage, Read, Violation, check, figures, refused
from cluster.chaos.nemesis import ALL_START, LOST
from cluster.chaos.run import CURRENT, calm, never_struck
from cluster.chaos.schedule import Strike
from cluster.chaos.workload import readers
from cluster.errors import CannotStart, ClusterError, Down, NotInstalled
from cluster.load.report import Spell
from cluster.load.request import Answer
from cluster.supervisor.state import Directory, State
from cluster.supervisor.topology import uncached

# Readers


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """Yield the port of a server that gives the same answer to every request."""
    threads, listeners = [], []

    def answer(said: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)

        listeners.append(listener)
        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield answer
    for thread in threads:
        thread.join(5)
    for listener in listeners:
        listener.close()


class Once(readers.Visitor):
    """A reader that sends one request."""

    def run(self) -> None:
        self.line = self._read("/a")
        self._drop()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX-ISR: HIT\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
        b"HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 500",
    ],
)
def test_an_answer_that_is_none_is_a_violation_even_where_connections_may_break(
    answer: bytes, answering: Callable[[bytes], int]
) -> None:
    visitor = Once([answering(answer)], "a.test", 0.0, threading.Event())
    visitor.run()
    read = Read.parse(json.dumps(visitor.line).encode())
    assert read.status == 0
    assert [v.promise for v in check([read], [], Circumstances(0.0, cuts=True))] == ["every answer is well-formed"]


class Dies(readers.Visitor):
    def run(self) -> None:
        raise KeyError("unforeseen")


class Stays(readers.Visitor):
    def run(self) -> None:
        self._told.wait(10)


def test_a_reader_that_dies_ends_the_others_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    told = threading.Event()
    assert readers.visit([kind([1], "a.test", 0.0, told) for kind in (Dies, Stays)], told) == 1
    assert "unforeseen" in capsys.readouterr().err


# Excuses for an old answer

CALM = Circumstances(0.0, renders_fail=True, patience=2.0, lifetimes={"/a": 1.0})
#: Version 2 of the row was committed at 9.0, and acknowledged at 10.0.
ATTEMPTS = (Attempt(9.0, 10.0),)


def read(start: float, label: str, version: int = 1, port: int = 0, detail: str = "") -> Read:
    return Read(start, start + 0.01, 200, label, "/a", port, "/a", {"x": version}, detail=detail)


def promises(reads: list[Read], mode: str, circumstances: Circumstances) -> list[str]:
    return [v.promise for v in check(reads, [Invalidation({"x": 2}, mode, ATTEMPTS)], circumstances)]


@pytest.mark.parametrize(("label", "mode"), [("STALE", "stale"), ("STALE-IF-ERROR", "expire")])
def test_an_old_page_is_excused_only_until_there_is_a_new_one(label: str, mode: str) -> None:
    assert promises([read(11.9, label), read(15.0, label, 2)], mode, CALM) == []
    assert promises([read(12.1, label)], mode, CALM) == [f"{label} is shown only until there is a new page"]


@pytest.mark.parametrize(("label", "mode"), [("STALE", "stale"), ("STALE-IF-ERROR", "expire")])
def test_while_renders_may_be_lost_the_time_for_a_new_page_does_not_go_on(label: str, mode: str) -> None:
    struck = replace(CALM, disturbed=[(5.0, 6.0), (11.0, 14.0), (12.0, 13.0), (20.0, math.inf)])
    assert promises([read(14.9, label)], mode, struck) == []
    assert promises([read(15.1, label)], mode, struck) == [f"{label} is shown only until there is a new page"]


def test_seconds_are_undisturbed_outside_of_all_that_disturbed() -> None:
    struck = replace(CALM, disturbed=[(1.0, 2.0), (4.0, 8.0), (5.0, 6.0), (7.0, 9.0), (20.0, 21.0)])
    assert struck.undisturbed(10.0, 1.0) == 9.0
    assert struck.undisturbed(10.0, 2.0) == 3.0
    assert struck.undisturbed(8.5, 1.0) == 3.0
    assert struck.undisturbed(10.0, 4.0) == 0.0


def test_a_hit_is_no_older_than_its_page_may_get_whatever_was_acknowledged() -> None:
    never = [Invalidation({"x": 2}, "stale", (Attempt(9.0, 9.5, "not delivered"),))]
    assert check([read(11.9, "HIT"), read(13.0, "HIT", 2)], never, CALM) == []
    (violation,) = check([read(12.1, "HIT")], never, CALM)
    assert violation.promise == "HIT is no older than its page may get"
    assert "version 2 was committed 3.100 s before" in str(violation)
    assert check([read(12.1, "HIT")], never, replace(CALM, lifetimes={})) == []
    assert check([read(12.1, "HIT")], never, replace(CALM, disturbed=[(10.0, 11.0)])) == []


def test_an_instance_that_hung_excuses_only_what_it_answers_itself() -> None:
    hung = replace(CALM, outages=[Outage("A", 10.0, 20.0, port=7)], node_of={"x": "A"})
    assert promises([read(11.0, "DEGRADED", 2, port=7)], "purge", hung) == []
    assert promises([read(11.0, "DEGRADED", 2, port=8)], "purge", hung) == [
        "nothing is degraded while all nodes can be reached"
    ]


def test_an_error_of_the_cache_itself_is_a_violation() -> None:
    broken = read(11.0, "BYPASS", 2, detail='wsgi-isr; fwd=bypass; detail="internal-error"')
    assert promises([broken], "purge", CALM) == ["the cache raises no error of its own"]


def test_an_invalidation_is_refused_only_while_a_node_is_away() -> None:
    tried = [Invalidation({"x": 2}, "purge", (Attempt(9.0, 9.5, "not delivered"), Attempt(9.6, 10.0)))]
    (violation,) = refused(tried, CALM)
    assert str(violation) == "an invalidation is refused only while a node is away: not delivered, at 9.500000"
    assert refused(tried, replace(CALM, outages=[Outage("A", 9.4, 9.6)])) == []
    assert len(refused(tried, replace(CALM, outages=[Outage("A", 9.4, 9.6, port=7), Outage("A", 9.6, 11.0)]))) == 1


# Faults that fail


class Pretended:
    """Instances for a striker. No process belongs to them."""

    instances = (SimpleNamespace(name="instance-1"), SimpleNamespace(name="instance-2"))
    losses: ClassVar[dict[int, tuple[float, float]]] = {}


def strike(error: ClusterError | None) -> striking.Nemesis:
    """Return a striker after one kill that ended in ``error``."""

    class Nemesis(striking.Nemesis):
        def _kill(self, _strike: Strike) -> striking.Acting:
            if error is not None:
                raise error
            yield from ()

    said: list[str] = []
    pretended: Any = Pretended()
    striker = Nemesis(pretended, pretended, [Strike(0.0, "kill", "instance-1")], said.append)
    striker._go_on(striker._steps.pop())
    return striker


def test_a_part_that_does_not_start_is_a_violation() -> None:
    striker = strike(CannotStart("instance-1 ended with 3"))
    (violation,) = striker.violations
    assert str(violation).startswith(f"{ALL_START}: kill instance-1: instance-1 ended with 3, at ")
    assert (striker.failed, striker.skipped, striker.done) == ([], [], [])


def test_a_fault_that_fails_is_no_fault_that_was_skipped() -> None:
    assert strike(ClusterError("no worker")).failed == ["kill instance-1: no worker"]
    assert strike(NotInstalled("no library")).failed == []
    assert strike(NotInstalled("no library")).skipped == ["kill instance-1: no library"]
    struck = strike(None)
    assert [spell.fault for spell in struck.done] == ["kill"]
    ((began, ended),) = struck._observers.losses.values()
    assert ended - began >= LOST


def test_what_took_longer_than_was_drawn_takes_nothing_from_the_quiet_after_it() -> None:
    struck = strike(None)
    drawn = [Strike(0.0, "kill", "instance-1"), Strike(10.0, "kill", "instance-1"), Strike(11.0, "kill", "instance-2")]
    striker = type(struck)(struck._cluster, struck._observers, drawn, lambda _line: None)
    striker._go_on(heapq.heappop(striker._steps))
    second = heapq.heappop(striker._steps)
    striker._go_on(second)
    assert [spell.fault for spell in striker.done] == ["kill"]
    assert [step.at - striker._began for step in sorted(striker._steps)] == pytest.approx([20.0, 21.0], abs=0.5)


def test_what_a_clock_takes_may_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FAKETIME", Path("/nowhere"))
    instance: Any = SimpleNamespace(env={})
    with pytest.raises(NotInstalled):
        faults.set_clock(instance, 1.0)


def test_a_kind_that_never_struck_although_its_time_came_is_said() -> None:
    drawn = [Strike(1.0, "kill", "instance-1"), Strike(2.0, "roll", "instances"), Strike(9.0, "flush", "node-1")]
    assert never_struck(drawn, [Spell("kill", "instance-1", 1.0, 2.0)], 5.0) == [
        "roll never struck, though its time came"
    ]


def test_a_part_that_never_starts_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(striking, "STARTS", -1.0)
    part: Any = SimpleNamespace(name="node-1", has_started=lambda: False)
    with pytest.raises(CannotStart, match="node-1 is not there after"):
        list(striking._until_started(part))


def test_what_is_not_there_at_this_moment_is_struck_later() -> None:
    errors = [ClusterError("no worker"), None]

    def act() -> None:
        if (error := errors.pop(0)) is not None:
            raise error

    assert list(striking._once_there(act)) == [0.05]
    assert errors == []


def in_the_end(monkeypatch: pytest.MonkeyPatch, shows: int, error: CannotStart | None = None) -> list[Violation]:
    def wait_until_all_run() -> None:
        if error is not None:
            raise error

    answer = Answer(200, {"x-isr": "HIT"}, json.dumps({"path": "/a", "versions": {"x": shows}}).encode())
    monkeypatch.setattr(run, "PATIENCE", -1.0)
    monkeypatch.setattr(run, "fetch", lambda *_arguments, **_more: answer)
    cluster: Any = SimpleNamespace(instances=[SimpleNamespace(name="instance-1", port=1)])
    database: Any = SimpleNamespace(read=lambda _row: 2)
    striker: Any = SimpleNamespace(wait_until_all_run=wait_until_all_run)
    return run.in_the_end(cluster, database, striker, [])


def test_a_page_that_does_not_get_current_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_the_end(monkeypatch, shows=2) == []
    (violation,) = in_the_end(monkeypatch, shows=1)
    assert (violation.promise, "of instance-1: 200 HIT {'x': 1}, not {'x': 2}" in violation.reason) == (CURRENT, True)


def test_a_part_that_does_not_start_again_in_the_end_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    (violation,) = in_the_end(monkeypatch, shows=2, error=CannotStart("node-1 ended"))
    assert (violation.promise, violation.reason) == (ALL_START, "node-1 ended")


def test_chaos_takes_nothing_from_one_that_runs_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_leave_outside", lambda: None)
    directory = Directory(tmp_path)
    with directory.owned():
        database = tmp_path / "site" / "site.sqlite3"
        database.parent.mkdir()
        database.write_text("of the one that runs")
        with pytest.raises(CannotStart, match="already"):
            run.run(Directory(tmp_path), 1, 5.0, lambda _line: None)
        assert database.read_text() == "of the one that runs"


def test_a_violation_is_not_lost_because_little_else_has_happened() -> None:
    little = figures([], [])
    with pytest.raises(ClusterError, match="too little happened"):
        run._enough(little, [])
    assert run._enough(little, [Violation.of(ALL_START, 1.0, 1.5, "no")]) is little


@pytest.mark.parametrize(("violations", "failed", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_chaos_exits_with_1_where_a_promise_was_broken_or_a_fault_failed(
    violations: int, failed: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run.Outcome(
        *([], ["1 that had not struck yet"], ["kill"] * failed, [Violation.of(ALL_START, 1.0, 1.5, "no")] * violations),
        *(figures([], []), 0.0, 2.0, [], [], [], 1, 0.0, 0.0, 2.0),
    )
    monkeypatch.setattr(run, "run", lambda *_arguments: outcome)
    assert cli._chaos(Directory(tmp_path), 1, 2.0, False, tmp_path / "plot.svg") == code


def test_seconds_are_calm_in_which_nothing_is_excused() -> None:
    assert calm([(1.0, 3.0), (2.0, 4.0), (9.0, math.inf)], 0.0, 10.0) == 6.0
    assert calm([], 0.0, 10.0) == 10.0
    assert calm([(-5.0, 20.0)], 0.0, 10.0) == 0.0


def test_a_network_that_is_restarted_is_healed() -> None:
    link, noted = SimpleNamespace(name="network-1", restart=lambda: None, pid=1), []
    cluster: Any = SimpleNamespace(
        part=lambda _name: link,
        links=[link],
        nodes=[SimpleNamespace(name="node-1")],
        note=lambda *what: noted.append(what),
    )
    faults.restart(cluster, "network-1")
    assert noted == [("heal", "node-1")]


# The check of a cluster


class Broken(checks.Check):
    """A check whose second step is interrupted or fails."""

    error: BaseException

    def steps(self) -> Iterator[tuple[str, str, Callable[[], str]]]:
        yield "UP", "it runs", lambda: "it does"
        yield "NEXT", "it goes on", self.fail

    def fail(self) -> str:
        raise self.error

    def give_up(self) -> None:
        ended.append(self)


ended: list[Broken] = []


@pytest.mark.parametrize(
    "error", [subprocess.TimeoutExpired("up", 1), Down("nothing runs"), KeyboardInterrupt(), RuntimeError()]
)
def test_a_check_leaves_no_cluster_behind_however_it_ends(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended.clear()
    monkeypatch.setattr(checks, "Check", Broken)
    monkeypatch.setattr(Broken, "error", error, raising=False)
    if isinstance(error, (subprocess.TimeoutExpired, Down)):
        assert checks.check("plain:app") == 1
        assert f"FAIL  NEXT  it goes on\n            {error}" in capsys.readouterr().out
    else:
        with pytest.raises(type(error)):
            checks.check("plain:app")
    assert len(ended) == 1


# Apps that are not cached


@pytest.mark.parametrize(
    ("app", "wrapped"),
    [("plain:app", "plain:app"), ("plain:make()", "plain:make()"), ("plain:make('x')", "myapp:app")],
)
def test_an_app_that_is_not_cached_is_told_how_it_would_be(app: str, wrapped: str) -> None:
    assert uncached(app) == (
        f"{app} is not wrapped in ISR, so nothing is cached: "
        f"--app \"wsgi_isr:wrap('{wrapped}', revalidate=60)\" wraps it"
    )


@pytest.mark.parametrize("cached", [True, False])
def test_who_starts_a_cluster_in_the_background_is_told_that_nothing_is_cached(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(1, 2, "plain:app", "http://127.0.0.1:3", "memory://", True, (), cached=cached)

    def detached(_directory: Any) -> None:
        pass

    monkeypatch.setattr(cli, "_detach", detached)
    monkeypatch.setattr(Directory, "read", lambda _self: state)
    said = CliRunner().invoke(cli.main, ["--directory", str(tmp_path), "up", "--detach", "--app", "plain:app"]).output
    assert (uncached("plain:app") in said) is not cached


@pytest.mark.parametrize(
    "arguments", [["load", "--rate"], ["load", "--seconds"], ["chaos", "--seconds"], ["slow", "node1"]], ids=" ".join
)
def test_what_is_no_number_is_within_no_bounds(arguments: list[str], tmp_path: Path) -> None:
    said = CliRunner().invoke(cli.main, ["--directory", str(tmp_path), *arguments, "nan"])
    assert said.exit_code == 2
    assert "'nan' is not a number" in said.output
