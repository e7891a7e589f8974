"""Rows 7, 8 and 13 of the comparison with Next.js, with instances in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live.support.origin import Origin
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Answer, ask
from tests.live.support.waiting import until
from wsgi_isr import invalidate


def everywhere(*servers: Gunicorn) -> list[Answer]:
    """Return answers of each server, enough in a row that each of its workers has its turn."""
    return [ask(server.port, "/page") for _ in range(8) for server in servers]


def warm(*servers: Gunicorn) -> set[str]:
    """Return the served renders, once every answer is a hit."""

    def hits() -> set[str] | None:
        answers = everywhere(*servers)
        return {answer.render for answer in answers} if {one.verdict for one in answers} == {"HIT"} else None

    return until(hits, "hits in every process")


@pytest.fixture
def env(origin: Origin, store: str) -> dict[str, str]:
    return {
        **origin.env,
        "WSGI_ISR_STORE": store,
        "WSGI_ISR_REVALIDATE": "3600",
        "WSGI_ISR_COHERENCE": "0",
    }


@pytest.mark.parametrize("when", ["before the restart", "while nobody was there"])
@pytest.mark.parametrize("mode", ["expire", "purge"])
def test_row_07_after_a_restart_nobody_gets_what_was_invalidated(
    origin: Origin, store: str, env: dict[str, str], tmp_path: Path, when: str, mode: str
) -> None:
    with Gunicorn(tmp_path / "before.log", env) as before:
        (old,) = warm(before)
        if when == "before the restart":
            invalidate(paths=["/page"], mode=mode, store=store)
        assert before.stop() == 0
    if when != "before the restart":
        invalidate(paths=["/page"], mode=mode, store=store)
    with Gunicorn(tmp_path / "after.log", env) as after:
        answers = everywhere(after)
        assert {answer.status for answer in answers} == {200}
        assert old not in {answer.render for answer in answers}
        assert len(origin.renders()) == 2
        assert after.complaints() == []


def test_row_07_a_second_instance_hears_of_an_invalidation_by_the_first(
    origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "one.log", env) as one, Gunicorn(tmp_path / "two.log", env) as two:
        (old,) = warm(one, two)
        # A write at the page's own URL invalidates it.
        assert ask(one.port, "/page", method="PUT").status == 200
        answers: list[Answer] = []

        def all_workers_have_answered() -> bool:
            answers.extend(everywhere(one, two))
            return len({answer.worker for answer in answers}) == 4

        until(all_workers_have_answered, "an answer of each worker")
        assert old not in {answer.render for answer in answers}
        assert (one.complaints(), two.complaints()) == ([], [])


SKEWED = """
import sys, time
from werkzeug.test import Client
from wsgi_isr import ISR

ahead = float(sys.argv[1])

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode() + b" by " + sys.argv[1].encode()]

isr = ISR(app, revalidate=False, clock=lambda: time.time() + ahead)
client = Client(isr)
for line in sys.stdin:
    if line == "invalidate\\n":
        isr.invalidate(paths=["/page"])
        print("done", flush=True)
    else:
        answer = client.get("/page")
        print(answer.headers["X-ISR"], answer.text, flush=True)
"""


class Skewed:
    """An instance whose clock is some seconds ahead; it takes commands line by line."""

    def __init__(self, ahead: float, store: str) -> None:
        environ = {**os.environ, "WSGI_ISR_STORE": store, "WSGI_ISR_COHERENCE": "0"}
        self.name = f"{ahead:g}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", SKEWED, self.name],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Skewed:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0

    def do(self, what: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("ahead", [-86400, -5, 5, 86400])
def test_row_08_processes_whose_clocks_differ_agree_on_what_is_invalidated(store: str, ahead: float) -> None:
    with Skewed(0, store) as here, Skewed(ahead, store) as there:
        assert here.do("get") == "MISS /page by 0"
        for invalidates, renders in ((there, here), (here, there), (there, there), (here, here)):
            assert {here.do("get").split()[0], there.do("get").split()[0]} == {"HIT"}
            assert invalidates.do("invalidate") == "done"
            assert renders.do("get") == f"EXPIRED /page by {renders.name}"


@pytest.mark.parametrize("cold", [True, False], ids=["a missing page", "an expired page"])
def test_row_13_two_instances_of_two_workers_render_once(
    origin: Origin, store: str, env: dict[str, str], tmp_path: Path, cold: bool
) -> None:
    with Gunicorn(tmp_path / "one.log", env) as one, Gunicorn(tmp_path / "two.log", env) as two:
        if not cold:
            warm(one, two)
            invalidate(paths=["/page"], store=store)
        before = len(origin.renders())
        origin.hold()
        with ThreadPoolExecutor(24) as pool:
            visits = [pool.submit(ask, server.port, "/page") for _ in range(12) for server in (one, two)]
            origin.held()
            # All visitors have come in by now, or come while the render still goes on; both orders are valid.
            time.sleep(0.5)
            origin.release()
            answers = [visit.result() for visit in visits]
        assert {answer.status for answer in answers} == {200}
        assert len({answer.render for answer in answers}) == 1
        assert len(origin.settled()) == before + 1
        assert len({answer.worker for answer in answers}) > 1
        assert (one.complaints(), two.complaints()) == ([], [])
