"""granian by ``wsgi-isr serve``: renderer processes, drain, reload, and the end of each kind of process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from cluster.parts import processes
from tests.live.support.awaited import renewed, stale, warnings
from tests.live.support.granian import Granian
from tests.live.support.origin import Origin
from tests.live.support.server import SUPERVISOR, WATCHER
from tests.live.support.visitor import Crowd, ask
from tests.live.support.waiting import until
from tests.live.support.windows import check_one_render_in_each
from tests.support.memcached import Memcached
from wsgi_isr import invalidate
from wsgi_isr.observe.aggregate import ask as ask_totals

REVALIDATE = 0.5
NICENESS = 10
#: Seconds in which an orphaned process notices the end of its parent, on a busy machine.
ORPHANED = 5.0
#: The options of a server whose workers render in the background themselves.
IN_WORKERS = {"WSGI_ISR_BACKGROUND": "threads"}


@pytest.fixture
def env(origin: Origin, store: str, folder: Path) -> dict[str, str]:
    return {**origin.env, "WSGI_ISR_STORE": store, "WSGI_ISR_REVALIDATE": f"{REVALIDATE:g}", "TMPDIR": str(folder)}


# Where renders run -------------------------------------------------------------------------------------


def test_workers_share_one_render_in_each_window_and_a_renderer_makes_it(
    origin: Origin, env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    with Granian(tmp_path / "log", {**env, "LIVE_SLOW": "0.2"}) as server:
        (renderer,) = until(server.renderers, "a renderer")
        workers = server.workers()
        cold = ask(server.port)
        with Crowd([server.port], clients=16) as crowd:
            until(lambda: len(origin.renders()) > 4, "four windows")
            for verdict, worker in product(("HIT", "STALE"), workers):
                until(partial(crowd.answered_by, worker, verdict), f"a {verdict} by worker {worker}")
        renders = origin.settled()
        assert [name for name in processes.open_files(server.pid) if "pages.sqlite3" in name] == []
        assert os.getpriority(os.PRIO_PROCESS, renderer) == os.getpriority(os.PRIO_PROCESS, workers[0]) + NICENESS
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []
    assert (cold.verdict, renders[0].pid) == ("MISS", cold.page["pid"])
    assert renders[0].pid in workers, "a visitor who waits is served by the process that answers"
    assert {render.pid for render in renders[1:]} == {renderer}
    assert crowd.errors() == []
    assert {answer.verdict for answer in crowd.answers} <= {"HIT", "STALE"}
    check_one_render_in_each(renders, crowd.answers, REVALIDATE)
    assert list(folder.iterdir()) == [], "the folder of the sockets is still there"


def test_an_app_without_isr_is_wrapped_and_options_are_granian_s(
    env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    socket_path = folder / "granian.sock"
    arguments = ["--uds", str(socket_path), "--access-log", "--url-path-prefix", "/shop"]
    app = "tests.live.support.origin:origin"
    with Granian(tmp_path / "log", env, app, workers=1, arguments=arguments, is_asked=False) as server:
        command = ["curl", "-si", "--unix-socket", str(socket_path), "http://live.test/shop/tea"]
        server.wait_for_workers()
        cold, warm = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
        assert "x-isr: MISS" in cold
        assert "x-isr: HIT" in warm
        assert '"path": "/tea"' in warm
        assert warnings(server, '"GET /shop/tea HTTP/1.1" 200') == 2
        assert until(server.renderers, "a renderer")
        assert server.stop() == 0
        assert server.left() == []
        assert not socket_path.exists()


def test_a_factory_in_another_folder_is_called_by_workers_and_renderers(env: Mapping[str, str], tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "made.py").write_text(
        "def create():\n    from tests.live.support.measured import application as app\n    return app\n"
    )
    arguments = ["--factory", "--working-dir", str(place)]
    with Granian(tmp_path / "log", env, "made:create", workers=1, arguments=arguments) as server:
        ask(server.port)
        until(server.renderers, "a renderer")
        assert renewed(server, "/", stale(server)).page["pid"] in server.renderers()
        assert server.stop() == 0
        assert server.complaints() == []


#: granian where workers are started afresh, as on macOS.
SPAWNING = """
import multiprocessing
multiprocessing.set_start_method("spawn")
from wsgi_isr.servers.granian import main
main()
"""


def test_workers_that_are_spawned_find_renderers_and_recorder_and_drain(
    env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    with Granian(tmp_path / "log", env, program=("-c", SPAWNING)) as server:
        ask(server.port)
        until(server.renderers, "a renderer")
        assert renewed(server, "/", stale(server)).page["pid"] in server.renderers()
        (place,) = folder.iterdir()
        until(lambda: sum(ask_totals(str(place), timeout=5).requests.values()), "the counts of the workers")
        assert server.stop() == 0
        until(lambda: server.left() == [], "the end of multiprocessing's own process")
        assert server.complaints() == []


def test_an_invalidation_by_another_process_is_seen_by_all_workers(
    origin: Origin, env: Mapping[str, str], store: str, tmp_path: Path
) -> None:
    with Granian(tmp_path / "log", {**env, "WSGI_ISR_REVALIDATE": "3600", "WSGI_ISR_COHERENCE": "0"}) as server:
        with Crowd([server.port], clients=8) as crowd:
            for worker in server.workers():
                until(partial(crowd.answered_by, worker, "HIT"), f"a hit by {worker}")
            invalidate(paths=["/"], store=store)
            done = time.monotonic()
            until(lambda: len(origin.settled()) == 2, "another render")
            new = origin.renders()[1].name
            for worker in server.workers():
                found = partial(
                    crowd.first, lambda answer, worker=worker: answer.worker == worker and answer.render == new
                )
                until(found, f"the new page by {worker}")
        assert [answer.render for answer in crowd.answers if answer.entered > done and answer.render != new] == []
        assert crowd.errors() == []
        assert server.stop() == 0


def test_a_worker_delivers_what_the_journal_keeps_once_the_node_is_back(env: Mapping[str, str], tmp_path: Path) -> None:
    node, journal = Memcached(), tmp_path / "journal"
    env = {**env, "WSGI_ISR_STORE": f"memcached://{node.name}", "WSGI_ISR_JOURNAL": str(journal)}
    try:
        with Granian(tmp_path / "log", env, workers=1) as server:
            ask(server.port)
            node.kill()
            assert ask(server.port, method="POST").status == 200  # it invalidates its own URL
            until(lambda: journal.exists() and journal.stat().st_size, "a line in the journal")
            node.start()
            until(lambda: not journal.exists() or not journal.stat().st_size, "an empty journal")
            assert server.stop() == 0
            assert server.left() == []
    finally:
        node.kill()


# Renderers and workers that end ------------------------------------------------------------------------


def test_a_renderer_that_is_killed_in_a_render_is_replaced_and_no_visitor_sees_it(
    origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Granian(tmp_path / "log", {**env, "WSGI_ISR_RENDER_TIMEOUT": "3"}) as server:
        old = ask(server.port)
        origin.hold()
        with Crowd([server.port], clients=8) as crowd:
            victim = origin.held()
            assert victim in server.renderers()
            server.kill(victim)
            (successor,) = until(lambda: [pid for pid in server.renderers() if pid != victim], "another renderer")
            origin.release()
            new = until(lambda: crowd.first(lambda answer: answer.render != old.render), "a new page")
        assert server.stop() == 0
        assert warnings(server, "a renderer process was killed by signal 9") == 1
    assert crowd.errors() == []
    assert new.page["pid"] == successor


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(
    origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Granian(tmp_path / "log", env) as server:
        ask(server.port)
        victim, other = server.workers()
        with Crowd([server.port], clients=4) as crowd:
            until(partial(crowd.answered_by, other), "an answer")
            with crowd.quiet():
                server.kill(victim)
                # All of its threads have ended then, and its own listening socket is closed.
                until(lambda: not Path(f"/proc/{victim}").exists(), "the collection of its exit code")
            until(lambda: len({*server.workers()} - {victim}) == 2, "another worker")
            (new,) = {*server.workers()} - {victim, other}
            until(partial(crowd.answered_by, new, "HIT"), "a hit by the new worker")
        assert crowd.errors() == []
        assert other in server.workers()
        assert server.stop() == 0
        assert server.left() == []


FORKING = """
import json, multiprocessing, os, time

def app(environ, start_response):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    os.kill(child.pid, 15)  # the child has inherited the worker's handlers and its socket
    time.sleep(0.2)
    child.kill()
    child.join()
    start_response("200 OK", [("Cache-Control", "no-store")])
    return [json.dumps({"pid": os.getpid()}).encode()]
"""


def test_a_signal_to_a_child_of_the_app_does_not_end_the_worker(env: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text(FORKING)
    with Granian(tmp_path / "log", env, "forking:app", workers=1, directory=tmp_path, is_asked=False) as server:
        (worker,) = server.workers()
        assert [ask(server.port, f"/{number}").page["pid"] for number in range(4)] == [worker] * 4
        assert server.stop() == 0
        assert server.left() == []
        assert warnings(server, "Unexpected exit") == 0


def test_without_a_watcher_threads_render_until_the_next_worker_starts(env: Mapping[str, str], tmp_path: Path) -> None:
    with Granian(tmp_path / "log", env, workers=1) as server:
        ask(server.port)
        beside = until(server.renderers, "a renderer") + server.called(SUPERVISOR)
        (watcher,) = server.called(WATCHER)
        server.kill(watcher)
        until(lambda: not {*server.left()} & {*beside}, "the end of renderers without a watcher", ORPHANED)
        assert renewed(server, "/", stale(server)).page["pid"] in server.workers()
        (worker,) = server.workers()
        server.kill(worker)
        until(lambda: server.workers() not in ([], [worker]), "another worker")
        (renderer,) = until(server.renderers, "a renderer of the new worker")
        server.wait_for_workers()
        until(lambda: renewed(server, "/", stale(server)).page["pid"] == renderer, "a page by the renderer")
        assert server.stop() == 0
        assert server.left() == []


# The end of the server ---------------------------------------------------------------------------------


@pytest.mark.parametrize("renders_in", ["renderer", "worker"])
def test_a_server_that_is_asked_to_stop_finishes_and_stores_the_page_it_renders(
    renders_in: str, origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    if renders_in == "worker":
        env |= IN_WORKERS
    with Granian(tmp_path / "log", env, workers=1) as server:
        ask(server.port)
        origin.hold()
        stale(server)
        process = origin.held()
        assert (process in server.workers()) == (renders_in == "worker")
        server.signal(signal.SIGTERM)
        until(lambda: warnings(server, "Shutting down granian"), "the stop")
        time.sleep(1)  # longer than an idle process takes
        assert processes.look_at(process) is not None, "the process did not wait for its render"
        origin.release()
        assert server.wait() == 0
        assert server.left() == []
        assert server.complaints() == []
    _, new = origin.settled()
    assert new.ended is not None
    with Granian(tmp_path / "log", env, workers=1) as server:
        assert ask(server.port).render == new.name, "the page that was rendered during the stop is not in the store"
        assert server.stop() == 0


@pytest.mark.parametrize("renders_in", ["renderer", "worker"])
def test_past_the_drain_deadline_a_server_stops_in_the_middle_of_a_render(
    renders_in: str, origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    env |= {"WSGI_ISR_DRAIN_TIMEOUT": "1", **(IN_WORKERS if renders_in == "worker" else {})}
    with Granian(tmp_path / "log", env, workers=1) as server:
        ask(server.port)
        origin.hold()
        stale(server)
        origin.held()
        asked = time.monotonic()
        assert server.stop() == 0
        # Well below the default drain (10 s) and granian's own deadline (30 s): our deadline has ended it.
        assert 1.0 <= time.monotonic() - asked < 7
        assert server.left() == []


def test_the_deadline_of_granian_ends_a_worker_before_its_drain_does(
    origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["--workers-kill-timeout", "1"]
    with Granian(tmp_path / "log", {**env, **IN_WORKERS}, workers=1, arguments=arguments) as server:
        ask(server.port)
        origin.hold()
        stale(server)
        origin.held()
        asked = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - asked < 7  # the drain lasts 10 s
        assert server.left() == []
        assert warnings(server, "Killing worker-1") == 1


def test_a_request_in_progress_is_answered_before_the_worker_drains(
    origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Granian(tmp_path / "log", env, workers=1) as server:
        origin.hold()
        with Crowd([server.port], clients=1, rounds=1) as crowd:
            origin.held()
            server.signal(signal.SIGTERM)
            until(lambda: warnings(server, "Shutting down granian"), "the stop")
            origin.release()
        assert server.wait() == 0
        assert [answer.verdict for answer in crowd.answers] == ["MISS"]
        assert server.complaints() == []


def test_a_main_process_that_is_killed_leaves_no_process_and_no_folder(
    origin: Origin, env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    with Granian(tmp_path / "log", {**env, "WSGI_ISR_DRAIN_TIMEOUT": "1"}) as server:
        ask(server.port)
        until(server.renderers, "a renderer")
        origin.hold()
        stale(server)
        origin.held()
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: server.left() == [], "the end of all processes", ORPHANED)
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "systemd"])
def test_a_signal_to_all_processes_at_once_is_no_trouble(
    number: signal.Signals, env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    for _ in range(3):  # a worker that gets two signals at once does not always notice
        with Granian(tmp_path / "log", env) as server:
            ask(server.port)
            until(server.renderers, "a renderer")
            server.wait_for_workers()
            os.killpg(server.pid, number)
            # 1: a worker ended before the main process had read its own signal, which granian takes for a failure.
            assert server.wait() in (0, 1)
            assert server.left() == []
            assert list(folder.iterdir()) == []


SLOW = """
import os, time
open(f"importing-{os.getpid()}", "w").close()
while os.path.exists("slow"):
    time.sleep(0.01)
from tests.live.support.measured import application
"""


def test_a_stop_while_the_workers_import_the_app_is_not_lost(
    env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "slowly.py").write_text(SLOW)
    with Granian(tmp_path / "log", env, "slowly:application", workers=1, directory=tmp_path) as server:
        (tmp_path / "slow").touch()
        server.signal(signal.SIGHUP)
        until(lambda: len(server.workers()) == 2, "a new worker")
        (new,) = [pid for pid in server.workers() if not processes.catches(pid, signal.SIGHUP)][-1:]
        until((tmp_path / f"importing-{new}").exists, "its import")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.left() == []
        assert list(folder.iterdir()) == []
