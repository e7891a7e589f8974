"""Workers that stop: asked to, replaced, recycled, or ended by gunicorn; no page is lost, no visitor gets an error."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from cluster.parts import processes
from tests.live.support.origin import Origin
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Answer, Crowd, ask
from tests.live.support.waiting import until
from tests.live.support.windows import NOISE, check_one_render_in_each

#: Seconds: of the rule ``timeout`` below.
LEASE = 3.0
#: The options of a server whose workers render in the background themselves.
IN_WORKERS = {"WSGI_ISR_BACKGROUND": "threads"}

#: Seconds in which a process renders although workers come and go: longer than two workers take to start on
#: a busy machine, shorter than the rest of a lease (10 s, renewed at every third) that its worker failed to release.
TAKEOVER = 6.0

every_class = pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])


@pytest.fixture
def env(origin: Origin, store: str) -> Mapping[str, str]:
    return {**origin.env, "WSGI_ISR_STORE": store, "WSGI_ISR_REVALIDATE": "0.5"}


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@every_class
def test_a_server_that_is_asked_to_stop_finishes_and_stores_the_page_it_renders(
    worker_class: str, preload: bool, origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", env, workers=1, worker_class=worker_class, preload=preload) as server:
        old = ask(server.port)
        worker = _held_in_the_background(server, origin, old)
        server.signal(signal.SIGTERM)
        # Longer than an idle worker takes, whatever its class; gevent's looks once in a second.
        time.sleep(1.5)
        assert processes.look_at(worker) is not None, "the worker did not wait for its render"
        origin.release()
        released = time.monotonic()
        assert server.wait() == 0
        assert time.monotonic() - released < 6
        assert server.left() == []
        assert server.complaints() == []
    _, new = origin.settled()
    assert new.ended is not None

    with Gunicorn(tmp_path / "log", env, workers=1, worker_class=worker_class) as server:
        assert ask(server.port).render == new.name, "what was rendered while stopping is not in the store"
        server.stop()


@every_class
def test_past_the_drain_deadline_a_server_stops_in_the_middle_of_a_render(
    worker_class: str, origin: Origin, env: Mapping[str, str], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    options = {**env, "WSGI_ISR_DRAIN_TIMEOUT": "1", "WSGI_ISR_RENDER_TIMEOUT": f"{LEASE:g}"}
    with Gunicorn(tmp_path / "log", options, workers=1, worker_class=worker_class) as server:
        old = ask(server.port)
        _held_in_the_background(server, origin, old)
        asked = time.monotonic()
        assert server.stop() == 0
        took = time.monotonic() - asked
        # Well below the default drain (10 s) and gunicorn's own timeout (30 s): our deadline has ended it.
        assert 1.0 <= took < 6
        assert server.left() == []
        assert server.complaints() == []
    origin.release()

    with Gunicorn(tmp_path / "log", options, workers=1, worker_class=worker_class) as server:
        answer = ask(server.port)
        assert (answer.verdict, answer.render) == ("STALE", old.render), "half a page, or none, was stored"
        until(lambda: ask(server.port).render != old.render, "a page rendered by the next server", LEASE + 2)
        server.stop()
    figure(f"stopped after {took:.2f} s with a drain of 1 s")


@every_class
def test_a_reload_lets_nobody_feel_it_and_the_old_worker_finishes_its_render(
    worker_class: str, origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", {**env, **IN_WORKERS}, worker_class=worker_class) as server:
        before = server.workers()
        ask(server.port)
        with Crowd([server.port], clients=8) as crowd:
            until(lambda: crowd.first(lambda answer: answer.verdict == "STALE"), "a stale page")
            origin.hold()
            renderer = origin.held()
            server.signal(signal.SIGHUP)
            until(lambda: len(set(server.workers()) - set(before)) == 2, "two new workers")
            until(lambda: set(server.workers()) & set(before) == {renderer}, "the end of the idle old worker")
            for worker in set(server.workers()) - {renderer}:
                until(partial(crowd.answered_by, worker), f"an answer of {worker}")
            last = origin.renders()[-1]
            origin.release()
            until(lambda: crowd.first(lambda answer: answer.render == last.name), "the page of the old worker")
            until(lambda: len(server.workers()) == 2, "the end of the old worker")
        renders = origin.settled()
        assert server.complaints() == []
        assert server.stop() == 0
    assert last.pid == renderer
    assert crowd.errors() == []
    assert {answer.verdict for answer in crowd.answers} <= {"HIT", "STALE"}
    check_one_render_in_each(renders, crowd.answers, 0.5, noise=TAKEOVER)


@every_class
def test_workers_that_are_recycled_under_load_lose_no_visitor_and_no_render(
    worker_class: str, origin: Origin, env: Mapping[str, str], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    recycling = ["--max-requests", "100", "--max-requests-jitter", "20"]
    options = {**env, "LIVE_SLOW": "0.1"}
    with Gunicorn(tmp_path / "log", options, worker_class=worker_class, arguments=recycling) as server:
        with Crowd([server.port], clients=8, pause=0.03) as crowd:
            until(lambda: _count_workers(crowd) >= 6 and len(origin.renders()) > 3, "four recycled workers")
        renders = origin.settled()
        assert server.stop() == 0
        assert server.complaints() == []
    assert crowd.errors() == []
    assert {answer.verdict for answer in crowd.answers if answer.render != renders[0].name} == {"HIT", "STALE"}
    windows = check_one_render_in_each(renders, crowd.answers, 0.5, noise=TAKEOVER)
    figure(f"{len(crowd.answers)} requests to {_count_workers(crowd)} workers in turn, {windows} windows, no error")


@pytest.mark.parametrize("worker_class", ["sync", "gevent"])
def test_a_worker_that_gunicorn_ends_in_the_middle_of_a_render_costs_one_lease(
    worker_class: str, origin: Origin, env: Mapping[str, str], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    # Longer than gunicorn's timeout: a second, and another one before its SIGKILL.
    lease = 5.0
    options = {**env, **IN_WORKERS, "WSGI_ISR_RENDER_TIMEOUT": f"{lease:g}", "LIVE_NATIVE": "1"}
    with Gunicorn(tmp_path / "log", options, worker_class=worker_class, arguments=["--timeout", "1"]) as server:
        old = ask(server.port)
        victim = _held_in_the_background(server, origin, old)
        origin.hold_only(victim)
        # All of a gevent worker hangs in a render that computes; a sync one in the request of a visitor.
        hang = threading.Thread(target=_hang, args=(server, victim))
        if worker_class == "sync":
            hang.start()
        answers = []

        def newer() -> Answer | None:
            answers.append(ask(server.port))
            return answers[-1] if answers[-1].render != old.render else None

        until(lambda: newer() or victim not in server.workers(), "the end of the worker that hangs")
        ended = time.monotonic()
        new = until(newer, "a new page")
        server.wait_for_workers()
        if worker_class == "sync":
            hang.join()
        assert server.stop() == 0
    assert f"WORKER TIMEOUT (pid:{victim})" in (tmp_path / "log").read_text()
    assert [answer for answer in answers if answer.status != 200] == []
    assert {answer.verdict for answer in answers} <= {"HIT", "STALE"}
    assert new.page["pid"] != victim
    assert new.ended - ended < lease + NOISE
    figure(f"{len(answers)} times 200; new {new.ended - ended:.2f} s after the worker was gone")


def _hang(server: Gunicorn, victim: int) -> None:
    """Send a request that never ends to that very process."""
    while victim in server.workers():
        ask(server.port, f"/?stuck={victim}", method="OPTIONS")


def _held_in_the_background(server: Gunicorn, origin: Origin, old: Answer) -> int:
    """Make ``old`` stale, start its render, and stop in the middle of it; return the process."""
    origin.hold()
    stale = until(lambda: _if_stale(ask(server.port)), "a stale page")
    assert stale.render == old.render
    return origin.held()


def _if_stale(answer: Answer) -> Answer | None:
    assert answer.status == 200, answer
    return answer if answer.verdict == "STALE" else None


def _count_workers(crowd: Crowd) -> int:
    return len({answer.worker for answer in tuple(crowd.answers) if answer.status == 200})
