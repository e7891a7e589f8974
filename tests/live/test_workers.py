"""Every kind of gunicorn worker, with and without --preload: a page is served, becomes stale, is rendered once."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from cluster.parts import processes
from tests.live.support.origin import Origin
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import Crowd, ask
from tests.live.support.waiting import PATIENCE, until
from tests.live.support.windows import check_one_render_in_each
from tests.support.memcached import HOST, Memcached

REVALIDATE = 0.5
WINDOWS = 3
#: Connections that are open before the worker's first turn.
AT_ONCE = 31


@pytest.fixture
def env(origin: Origin, store: str) -> Mapping[str, str]:
    return {**origin.env, "WSGI_ISR_STORE": store, "WSGI_ISR_REVALIDATE": f"{REVALIDATE:g}", "LIVE_SLOW": "0.2"}


every_class = pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@every_class
def test_workers_share_one_render_in_each_window_and_inherit_nothing(
    worker_class: str, preload: bool, origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", env, worker_class=worker_class, preload=preload) as server:
        workers = server.workers()
        with Crowd([server.port], clients=16) as crowd:
            until(lambda: len(origin.renders()) > WINDOWS, f"{WINDOWS} windows")
            for verdict, worker in product(("HIT", "STALE"), workers):
                until(partial(crowd.answered_by, worker, verdict), f"a {verdict} by worker {worker}")
        renders = origin.settled()
        # A worker could have inherited a thread or a connection to the store from the master.
        assert processes.threads(server.pid) == 1
        assert [name for name in processes.open_files(server.pid) if "pages.sqlite3" in name] == []
        for worker in workers:
            assert any("pages.sqlite3" in name for name in processes.open_files(worker))
        assert server.workers() == workers, "a worker died meanwhile"
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []

    assert crowd.errors() == []
    assert check_one_render_in_each(renders, crowd.answers, REVALIDATE) >= WINDOWS
    # Only the first visitors wait for a render; all later renders are in the background.
    later = {render.name: render.thread for render in renders[1:]}
    assert {answer.verdict for answer in crowd.answers if answer.render in later} == {"HIT", "STALE"}
    assert set(later.values()) == {"wsgi-isr-render"}


@every_class
def test_workers_are_forked_from_a_master_that_is_rendering(
    worker_class: str, origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    warmed = "tests.live.support.warmed:application"
    with Gunicorn(tmp_path / "log", env, warmed, worker_class=worker_class, preload=True) as server:
        assert processes.threads(server.pid) > 1, "the master has nothing that could be inherited"
        with Crowd([server.port], clients=8) as crowd:
            until(lambda: len(origin.renders()) > 2 + WINDOWS, f"{WINDOWS} windows")
            for worker in server.workers():
                until(partial(crowd.answered_by, worker), f"an answer of {worker}")
        first, *renders = origin.settled()
        assert server.stop() == 0
        assert server.complaints() == []
    assert [first.pid, renders[0].pid] == [server.pid, server.pid]
    assert server.pid not in {render.pid for render in renders[1:]}
    assert crowd.errors() == []
    later = [answer for answer in crowd.answers if answer.render != first.name]
    # Tolerate a delay in the first window, which began while the workers were still starting.
    assert check_one_render_in_each(renders, later, REVALIDATE, noise=5) >= WINDOWS


@pytest.mark.parametrize("journal", ["none", "journal"])
@pytest.mark.parametrize("program", [("-m", "gunicorn"), ("-m", "gunicorn", "--config", "python:wsgi_isr.gunicorn")])
def test_a_gevent_worker_of_a_preloaded_app_answers_its_first_requests_all_at_once(
    program: tuple[str, ...], journal: str, origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    # The app creates its locks at the fork, before gunicorn has gevent patch the worker. A greenlet that yields
    # while it holds such a lock stops the whole worker.
    node = Memcached()
    kept = "none" if journal == "none" else f"{tmp_path}/journal"
    env = {**env, "WSGI_ISR_STORE": f"memcached://{node.name}", "WSGI_ISR_JOURNAL": kept}
    with ExitStack() as stack:
        stack.callback(node.kill)
        server = stack.enter_context(
            Gunicorn(
                tmp_path / "log",
                env,
                workers=1,
                worker_class="gevent",
                preload=True,
                program=program,
                is_asked=False,
            )
        )
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)  # all connections wait for its first turn
        try:
            clients = [
                stack.enter_context(socket.create_connection((HOST, server.port), PATIENCE)) for _ in range(AT_ONCE)
            ]
            for number, client in enumerate(clients):
                method = "POST" if number % 2 else "GET"  # an invalidation looks for the engine once more
                client.sendall(
                    f"{method} / HTTP/1.1\r\nHost: site\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
                )
        finally:
            os.kill(worker, signal.SIGCONT)
        answers = [client.makefile("rb").readline() for client in clients]
        assert answers == [b"HTTP/1.1 200 OK\r\n"] * AT_ONCE
        assert server.workers() == [worker]


def test_an_app_is_wrapped_on_the_command_line_with_options_from_the_environment(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "myapp.py").write_text(
        "import itertools\n"
        "numbers = itertools.count(1)\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [b'%s, render %d' % (environ['PATH_INFO'].encode(), next(numbers))]\n"
    )
    options = {**env, "WSGI_ISR_REVALIDATE": "60", "WSGI_ISR_QUERY": "page", "WSGI_ISR_NAMESPACE": "mine"}
    target = "wsgi_isr:wrap('myapp:app')"
    with Gunicorn(tmp_path / "log", options, target, workers=1, directory=tmp_path) as server:
        first, again = ask(server.port, "/a"), ask(server.port, "/a")
        other, unknown = ask(server.port, "/a?page=2"), ask(server.port, "/a?color=red")
        assert server.stop() == 0
    assert (first.verdict, again.verdict, other.verdict, unknown.verdict) == ("MISS", "HIT", "MISS", "BYPASS")
    assert first.body == again.body != other.body
    assert again.headers["cache-control"] == "max-age=0, must-revalidate"
    assert (tmp_path / "pages.sqlite3").exists()

    # The store outlives the server; another namespace in it is empty.
    with Gunicorn(tmp_path / "log", options, target, workers=1, directory=tmp_path) as server:
        assert ask(server.port, "/a").body == first.body
    with Gunicorn(
        tmp_path / "log", {**options, "WSGI_ISR_NAMESPACE": "another"}, target, workers=1, directory=tmp_path
    ) as server:
        assert ask(server.port, "/a").verdict == "MISS"


def test_a_misspelt_variable_ends_the_server_at_once_and_the_log_says_what_to_write(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    server = Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_REVALIDAET": "60"})
    with pytest.raises(AssertionError, match="gunicorn ended"), server:
        pass
    log = (tmp_path / "log").read_text()
    assert "WSGI_ISR_REVALIDAET" in log
    assert "did you mean WSGI_ISR_REVALIDATE" in log
