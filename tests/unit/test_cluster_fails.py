"""What watches a cluster fails where something is wrong with it, or with the watching itself."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster import check as checks
from cluster import cli
from cluster.errors import Down
from cluster.history import Circumstances, Read, check
from cluster.state import Directory, State
from cluster.topology import uncached
from cluster.workload import readers

# Readers


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """A server that gives one answer, whatever it is asked; its port."""
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
    """Asks once."""

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
