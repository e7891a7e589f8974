"""Renderer processes: background renders leave the workers, and visitors get pages whatever happens to renderers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cluster.parts import processes
from tests.live.support.awaited import renewed, stale, warnings
from tests.live.support.origin import Origin
from tests.live.support.server import ROOT, SUPERVISOR, WATCHER, Gunicorn
from tests.live.support.visitor import Answer, Crowd, ask
from tests.live.support.waiting import until
from tests.live.support.windows import check_one_render_in_each

NICENESS = 10
#: Seconds in which an orphaned process notices the end of its parent, on a busy machine.
ORPHANED = 5.0
#: Log lines of a worker, once, when no renderer is available.
GONE, BUSY = "the renderer processes are gone", "the renderer processes are busy"

every_class = pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])


@pytest.fixture
def env(origin: Origin, store: str, folder: Path) -> dict[str, str]:
    return {**origin.env, "WSGI_ISR_STORE": store, "WSGI_ISR_REVALIDATE": "0.3", "TMPDIR": str(folder)}


def none_left(server: Gunicorn, *pids: int) -> None:
    until(lambda: not {*server.left()} & {*pids}, "the end of those who have lost their parent", ORPHANED)


# Where renders run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@every_class
def test_what_nobody_waits_for_is_rendered_beside_the_workers_at_lower_priority(
    worker_class: str, preload: bool, origin: Origin, env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    with Gunicorn(tmp_path / "log", env, worker_class=worker_class, preload=preload) as server:
        (renderer,) = until(server.renderers, "a renderer")
        workers = server.workers()
        cold = ask(server.port)
        with Crowd([server.port], clients=8) as crowd:
            until(lambda: len(origin.renders()) > 4, "four windows")
        renders = origin.settled()
        assert server.renderers() == [renderer]
        assert os.getpriority(os.PRIO_PROCESS, renderer) == os.getpriority(os.PRIO_PROCESS, workers[0]) + NICENESS
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []
    assert renders[0].pid == cold.page["pid"]
    assert renders[0].pid in workers, "a visitor who waits is served by who answers"
    assert {render.pid for render in renders[1:]} == {renderer}
    assert {answer.verdict for answer in crowd.answers} <= {"HIT", "STALE"}
    check_one_render_in_each(renders, crowd.answers, 0.3)
    assert list(folder.iterdir()) == [], "the folder of the sockets is still there"


def test_there_are_as_many_as_the_option_says(env: Mapping[str, str], tmp_path: Path) -> None:
    with Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_RENDERERS": "3"}, workers=1) as server:
        until(lambda: len(server.renderers()) == 3, "three renderers")
        assert server.stop() == 0


@pytest.mark.parametrize("option", [("BACKGROUND", "threads"), ("STORE", "memory://"), ("STORE", "null://")])
def test_where_nothing_can_be_rendered_elsewhere_there_are_none_after_a_moment(
    option: tuple[str, str], env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", {**env, f"WSGI_ISR_{option[0]}": option[1]}, workers=1) as server:
        until(lambda: server.left() == [server.pid, *server.workers()], "the end of the watcher")
        ask(server.port)
        if option[0] == "BACKGROUND":
            assert renewed(server, "/", stale(server)).page["pid"] in server.workers()
        assert server.stop() == 0
        assert server.complaints() == []


def test_a_server_that_reloads_its_code_by_itself_has_none(env: Mapping[str, str], tmp_path: Path) -> None:
    # Renderers would go on with the old code: the master does not notice that the code has changed.
    env = {**env, "WSGI_ISR_DEVELOPMENT": "cache"}
    with Gunicorn(tmp_path / "log", env, workers=1, arguments=["--reload"]) as server:
        ask(server.port)
        assert renewed(server, "/", stale(server)).page["pid"] in server.workers()
        assert server.left() == [server.pid, *server.workers()]
        assert server.stop() == 0


def test_below_a_temporary_folder_with_a_long_path_the_sockets_are_elsewhere(
    env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    deep = folder / ("d" * 100)  # longer than the address of a socket may be
    deep.mkdir()
    with Gunicorn(tmp_path / "log", {**env, "TMPDIR": str(deep)}, workers=1) as server:
        ask(server.port)
        assert renewed(server, "/", stale(server)).page["pid"] in until(server.renderers, "a renderer")
        assert server.stop() == 0
        assert server.complaints() == []
        assert list(deep.iterdir()) == list(Path("/tmp").glob(f"wsgi-isr-{server.pid}-*")) == []


#: gunicorn where no other folder has a short path.
NOWHERE = """
from gunicorn.app.wsgiapp import run
from wsgi_isr.renderers import folders
folders._SHORT = "/nowhere"
run()
"""


def test_where_no_socket_can_be_made_the_server_starts_all_the_same(
    env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    deep = folder / ("d" * 100)
    deep.mkdir()
    program = ("-c", NOWHERE, "--config", "python:wsgi_isr.gunicorn")
    with Gunicorn(tmp_path / "log", {**env, "TMPDIR": str(deep)}, workers=1, program=program) as server:
        ask(server.port)
        assert renewed(server, "/", stale(server)).page["pid"] in server.workers()
        assert server.stop() == 0
        assert warnings(server, "no renderer processes") == 1
        assert list(deep.iterdir()) == []


# Renderers that end ------------------------------------------------------------------------------------


def test_one_that_is_killed_in_a_render_is_replaced_and_nobody_sees_it(
    origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_RENDER_TIMEOUT": "3"}) as server:
        old = ask(server.port)
        origin.hold()
        with Crowd([server.port], clients=8) as crowd:
            victim = origin.held()
            assert victim in server.renderers()
            server.kill(victim)
            (successor,) = until(lambda: [pid for pid in server.renderers() if pid != victim], "another renderer")
            origin.release()
            new = until(lambda: crowd.first(lambda answer: answer.render != old.render), "a new page")
        workers = server.workers()
        assert server.stop() == 0
        assert warnings(server, "a renderer process was killed by signal 9") == 1
        assert warnings(server, GONE) == 0
    assert crowd.errors() == []
    assert new.page["pid"] == successor
    assert {answer.worker for answer in crowd.answers} == {*workers}


def test_a_render_that_hangs_past_its_timeout_costs_its_renderer_and_is_recorded(
    origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_RENDER_TIMEOUT": "1"}, workers=1) as server:
        ask(server.port)
        ask(server.port, "/other")
        origin.hold()
        old = stale(server)
        victim = origin.held()
        origin.hold_only(victim)
        # A new renderer replaces it at once; the old one ends without the hung process.
        (successor,) = until(lambda: [pid for pid in server.renderers() if pid != victim], "another renderer")
        assert renewed(server, "/other", stale(server, "/other")).page["pid"] == successor
        until(lambda: processes.look_at(victim) is None, "the end of the renderer that hangs")
        assert ask(server.port).body == old.body or successor in server.renderers()
        until(lambda: warnings(server, "timeout") == 1, "the failure in the log")
        assert renewed(server, "/", old).page["pid"] == successor
        assert server.stop() == 0
        assert warnings(server, GONE) + warnings(server, "killed") == 0


HANGS = """
import json, os, re
from wsgi_isr import ISR

def app(environ, start_response):
    flag = os.environ["LIVE_DIRECTORY"] + "/hang"
    if os.path.exists(flag):
        os.remove(flag)
        re.match("(a+)+b", "a" * 40)  # for years, and no other thread gets a turn
    start_response("200 OK", [])
    return [json.dumps({"pid": os.getpid(), "path": environ["PATH_INFO"], "random": os.urandom(8).hex()}).encode()]

application = ISR(app)
"""


def test_one_that_hangs_in_c_code_is_killed(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    env |= {"WSGI_ISR_RENDER_TIMEOUT": "1", "WSGI_ISR_LOCK_TIMEOUT": "0.1"}
    with Gunicorn(tmp_path / "log", env, "hangs", workers=1, directory=tmp_path) as server:
        old = ask(server.port)
        (victim,) = until(server.renderers, "a renderer")
        Path(env["LIVE_DIRECTORY"], "hang").touch()
        stale(server)
        until(lambda: processes.look_at(victim) is None, "the end of the renderer that hangs")
        new = renewed(server, "/", old)
        assert new.page["pid"] in [*server.renderers(), *server.workers()]
        assert new.page["pid"] != victim
        until(server.renderers, "another renderer")
        assert warnings(server, "a renderer process hangs in a render past its timeout, and is killed") == 1
        assert server.stop() == 0


def test_after_enough_renders_they_are_recycled_without_a_gap(
    origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_MAX_RENDERS": "2"}) as server:
        cold = ask(server.port)
        with Crowd([server.port], clients=8) as crowd:
            until(lambda: len({render.pid for render in origin.renders()}) > 4, "four renderers in turn")
        renders = origin.settled()
        workers = server.workers()
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []
    by_pid = [render.pid for render in renders[1:]]
    assert not {*by_pid} & {*workers}
    assert max(by_pid.count(pid) for pid in by_pid) <= 2
    assert crowd.errors() == []
    later = [answer for answer in crowd.answers if answer.render != cold.render]
    assert {answer.verdict for answer in later} == {"HIT", "STALE"}


# Reloading and upgrading -------------------------------------------------------------------------------

VERSIONED = """
import json, os, time
from wsgi_isr import ISR
from tests.live.support.origin import origin

def app(environ, start_response):
    body = json.loads(b"".join(origin(environ, lambda status, headers: None)))
    start_response("200 OK", [])
    return [json.dumps({**body, "version": VERSION}).encode()]

VERSION = 1
application = ISR(app)
"""


@every_class
def test_a_reload_brings_the_new_code_and_loses_no_render(
    worker_class: str, origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    module = tmp_path / "versioned.py"
    module.write_text(VERSIONED)
    # One release: visitors of the new code see renders of the old code.
    env = {**env, "WSGI_ISR_RELEASE": "one"}
    with Gunicorn(tmp_path / "log", env, "versioned", worker_class=worker_class, directory=tmp_path) as server:
        ask(server.port)
        (old_renderer,) = until(server.renderers, "a renderer")
        origin.hold()
        old = stale(server)
        assert origin.held() == old_renderer
        with Crowd([server.port], clients=4) as crowd:
            module.write_text(VERSIONED.replace("VERSION = 1", "VERSION = 2"))
            os.utime(module, (time.time() + 10,) * 2)  # the compiled one is older by any clock
            server.signal(signal.SIGHUP)
            until(lambda: len(server.called(WATCHER)) == 2, "another watcher")
            (new_renderer,) = until(
                lambda: [pid for pid in server.renderers() if pid != old_renderer], "a new renderer"
            )
            origin.release()
            finished = until(lambda: crowd.first(lambda answer: answer.body != old.body), "the render that was held")
            until(lambda: server.renderers() == [new_renderer], "the end of the old renderer")
            newest = until(lambda: crowd.first(lambda answer: answer.page["version"] == 2), "a page by the new code")
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []
    assert (finished.page["pid"], finished.page["version"]) == (old_renderer, 1)
    assert newest.page["pid"] == new_renderer
    assert crowd.errors() == []


def test_a_server_that_is_replaced_by_a_new_one_takes_its_own_renderers_along(
    env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    # Started with -m, it would not find its own modules again: gunicorn runs the program in sys.argv[0].
    program = (str(Path(sys.executable).with_name("gunicorn")), "--config", "python:wsgi_isr.gunicorn")
    with Gunicorn(tmp_path / "log", env, workers=1, program=program, binds=True) as server:
        ask(server.port)
        (before,) = until(server.renderers, "a renderer")
        server.signal(signal.SIGUSR2)
        (after,) = until(lambda: [pid for pid in server.renderers() if pid != before], "a renderer of the new master")
        master = processes.look_at(processes.look_at(processes.look_at(after).parent).parent).parent  # type: ignore[union-attr]
        assert master != server.pid
        assert server.renderers() == sorted([before, after])
        assert len(list(folder.glob("wsgi-isr-*"))) == 2
        os.kill(master, signal.SIGTERM)
        until(lambda: server.renderers() == [before] and processes.look_at(master) is None, "the end of the new one")
        assert len(list(folder.glob("wsgi-isr-*"))) == 1
        assert renewed(server, "/", stale(server)).page["pid"] == before
        assert server.stop() == 0
        assert server.left() == []


# Renderers that are gone, or full ----------------------------------------------------------------------


def test_a_supervisor_that_is_killed_is_replaced_and_its_renderers_end(env: Mapping[str, str], tmp_path: Path) -> None:
    with Gunicorn(tmp_path / "log", env, workers=1) as server:
        ask(server.port)
        (renderer,) = until(server.renderers, "a renderer")
        (supervisor,) = server.called(SUPERVISOR)
        assert renewed(server, "/", stale(server)).page["pid"] == renderer
        server.kill(supervisor)
        none_left(server, renderer)
        (successor,) = until(server.renderers, "another renderer")
        until(lambda: renewed(server, "/", stale(server)).page["pid"] == successor, "a page by the new renderer")
        assert warnings(server, "was stopped by signal 9") == 1
        assert server.stop() == 0
        assert server.left() == []


def test_without_any_renderer_pages_are_rendered_in_threads_with_one_warning_until_there_is_one_again(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    with Gunicorn(tmp_path / "log", env, workers=1) as server:
        for path in "/a", "/b":
            ask(server.port, path)
        beside = until(server.renderers, "a renderer") + server.called(SUPERVISOR)
        (watcher,) = server.called(WATCHER)
        server.kill(watcher)
        none_left(server, *beside)
        for path in "/a", "/b", "/a", "/b":
            assert renewed(server, path, stale(server, path)).page["pid"] in server.workers()
        assert warnings(server, GONE) == 1
        # The master checks when it forks a worker.
        (worker,) = server.workers()
        os.kill(worker, signal.SIGTERM)
        until(lambda: server.workers() not in ([], [worker]), "another worker")
        (renderer,) = until(server.renderers, "a renderer")
        until(lambda: renewed(server, "/a", stale(server, "/a")).page["pid"] == renderer, "a page by the renderer")
        assert warnings(server, GONE) == 1
        assert server.stop() == 0
        assert server.left() == []


def test_more_jobs_than_wait_for_a_renderer_are_done_in_threads(
    origin: Origin, env: dict[str, str], tmp_path: Path
) -> None:
    paths = [f"/{number}" for number in range(140)]
    env |= {"WSGI_ISR_BACKGROUND_THREADS": "2", "WSGI_ISR_REVALIDATE": "2"}
    with Gunicorn(tmp_path / "log", env, workers=1) as server:
        until(server.renderers, "a renderer")
        for path in paths:
            ask(server.port, path)
        time.sleep(2)
        origin.hold()
        answers = [ask(server.port, path) for path in paths]
        workers = server.workers()
        until(lambda: origin.renders()[-1].pid in workers, "a render in the worker")
        origin.release()
        for path, old in zip(paths, answers, strict=True):
            renewed(server, path, old)
        assert server.stop() == 0
        assert {answer.verdict for answer in answers} == {"STALE"}
        assert (warnings(server, BUSY), warnings(server, GONE)) == (1, 0)


ONLY_IN_WORKERS = """
import os
if open("/proc/self/comm").read().startswith("isr-"):
    raise RuntimeError("not here")
from tests.live.support.measured import application
"""


def test_an_app_that_does_not_import_there_is_not_tried_again_and_again(env: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "worked.py").write_text(ONLY_IN_WORKERS)
    with Gunicorn(tmp_path / "log", env, "worked", workers=1, directory=tmp_path) as server:
        ask(server.port)
        until(lambda: server.left() == [server.pid, *server.workers()], "the end of the watcher")
        assert renewed(server, "/", stale(server)).page["pid"] in server.workers()
        (worker,) = server.workers()
        os.kill(worker, signal.SIGTERM)
        until(lambda: server.workers() not in ([], [worker]), "another worker")
        assert renewed(server, "/", stale(server)).page["pid"] in server.workers()
        assert warnings(server, "the app does not import in the supervisor") == 1
        assert server.stop() == 0


def test_an_app_that_does_not_import_at_all_ends_the_server_and_leaves_nobody(
    env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    server = Gunicorn(tmp_path / "log", env, "broken", workers=1, directory=tmp_path)
    with pytest.raises(AssertionError, match="gunicorn ended"), server:
        pass
    assert list(folder.iterdir()) == [], "it did not end in order"


PATCHED = """
from gevent import monkey
monkey.patch_all()
from tests.live.support.measured import application
"""


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_an_app_that_patches_everything_with_gevent_is_rendered_like_any_other(
    preload: bool, origin: Origin, env: dict[str, str], tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "patched.py").write_text(PATCHED)
    env |= {"WSGI_ISR_MAX_RENDERS": "2", "WSGI_ISR_RENDER_TIMEOUT": "3"}
    options = {"worker_class": "gevent", "preload": preload, "directory": tmp_path}
    with Gunicorn(tmp_path / "log", env, "patched", workers=1, **options) as server:  # type: ignore[arg-type]
        ask(server.port)
        for _ in range(3):
            old = stale(server)
            assert renewed(server, "/", old).page["pid"] not in server.workers()
        origin.hold()
        stale(server)
        server.kill(origin.held())
        origin.release()
        until(server.renderers, "another renderer")
        assert ask(server.port).status == 200
        assert server.stop() == 0
        assert server.left() == []
        assert list(folder.iterdir()) == []


# The end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True], ids=["", "in-a-render"])
def test_a_master_that_is_killed_leaves_nobody_and_no_folder(
    held: bool, origin: Origin, env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    with Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_DRAIN_TIMEOUT": "1"}, workers=1) as server:
        ask(server.port)
        until(server.renderers, "a renderer")
        if held:
            origin.hold()
            stale(server)
            origin.held()
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: server.left() == [], "the end of everybody", ORPHANED)
        assert list(folder.iterdir()) == []


def test_a_stop_right_after_a_reload_leaves_nobody(
    origin: Origin, env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    with Gunicorn(tmp_path / "log", {**env, "WSGI_ISR_DRAIN_TIMEOUT": "2"}, workers=1) as server:
        ask(server.port)
        until(server.renderers, "a renderer")
        origin.hold()
        stale(server)
        origin.held()
        server.signal(signal.SIGHUP)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert server.left() == []
        assert list(folder.iterdir()) == []


def test_a_signal_to_all_processes_at_once_is_no_trouble(env: Mapping[str, str], tmp_path: Path, folder: Path) -> None:
    # Ctrl-C in a terminal.
    with Gunicorn(tmp_path / "log", env) as server:
        ask(server.port)
        until(server.renderers, "a renderer")
        for pid in server.left():
            with contextlib.suppress(ProcessLookupError):  # it has ended with one that was told before it
                os.kill(pid, signal.SIGINT)
        assert server.wait() == 0
        assert server.left() == []
        assert list(folder.iterdir()) == []


# Jobs of several apps ----------------------------------------------------------------------------------

SEVERAL = """
import json, os
from wsgi_isr import ISR, cached, refresh

COMM = open("/proc/self/comm").read().strip()

def told(**more):
    return {"pid": os.getpid(), "random": os.urandom(8).hex(), **more}

@cached(revalidate=0.3)
def numbers(name):
    return told(name=name)

@cached(revalidate=0.3)
def fails(name):
    raise ZeroDivisionError(name)

def answer(name, path):
    if path == "/refresh":
        return {"changed": refresh("/page")}
    if path == "/data":
        return numbers("one")
    if path == "/fails":
        try:
            fails.refresh("one")
        except ZeroDivisionError as error:
            return {"raised": str(error)}
    if path == "/own":
        @cached(revalidate=0.3)
        def own():
            return told()
        return own()
    return told(site=name)

def site(name):
    def app(environ, start_response):
        body = json.dumps(answer(name, environ["PATH_INFO"])).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]
    return app

RULES = {"/page": 0.3, "/still": False}
PARTS = {}
PARTS["one"] = ISR(site("one"), RULES, namespace="one")
PARTS["two"] = ISR(site("two"), RULES, namespace="two")
# In the renderers it is one of another release.
PARTS["strange"] = ISR(site("strange"), RULES, namespace="strange", release=COMM[:4])

def application(environ, start_response):
    _, part, path, *_ = environ["PATH_INFO"].split("/") + [""]
    if part not in PARTS:
        start_response("200 OK", [])
        return []
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/" + part, "/" + path
    return PARTS[part](environ, start_response)
"""


@pytest.fixture
def several(env: dict[str, str], tmp_path: Path) -> Iterator[Gunicorn]:
    """Run a server with an app of several parts."""
    (tmp_path / "several.py").write_text(SEVERAL)
    del env["WSGI_ISR_REVALIDATE"]
    with Gunicorn(tmp_path / "log", env, "several", workers=1, directory=tmp_path) as server:
        until(server.renderers, "a renderer")
        yield server
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []


def another(server: Gunicorn, path: str) -> tuple[Answer, Answer]:
    """Return the page at ``path``, and the first later one that differs."""
    first = ask(server.port, path)
    assert first.status == 200, first
    return first, renewed(server, path, first)


def test_two_apps_of_one_process_have_their_pages_rendered_by_the_same_renderer(several: Gunicorn) -> None:
    for part in "one", "two":
        cold, new = another(several, f"/{part}/page")
        assert cold.page["pid"] in several.workers()
        assert (new.page["site"], [new.page["pid"]]) == (part, several.renderers())


def test_a_job_of_another_release_is_refused_and_done_in_the_worker(several: Gunicorn) -> None:
    _, new = another(several, "/strange/page")
    assert new.page["pid"] in several.workers()


def test_a_refresh_in_a_view_is_rendered_by_a_renderer(several: Gunicorn) -> None:
    ask(several.port, "/one/page")
    assert ask(several.port, "/one/refresh").page == {"changed": True}
    assert [ask(several.port, "/one/page").page["pid"]] == several.renderers()


def test_data_is_renewed_by_a_renderer(several: Gunicorn) -> None:
    cold, new = another(several, "/one/data")
    assert cold.page["pid"] in several.workers()
    assert (new.page["name"], [new.page["pid"]]) == ("one", several.renderers())


def test_a_function_that_only_the_worker_has_defined_is_called_in_it(several: Gunicorn) -> None:
    _, new = another(several, "/one/own")
    assert new.page["pid"] in several.workers()


def test_what_a_refreshed_function_raises_comes_out_where_it_was_called(several: Gunicorn) -> None:
    assert ask(several.port, "/one/fails").page == {"raised": "one"}
    # The log must report this failure, and no other.
    assert warnings(several, "render failed") == 1
    several.log.write_text("")


# The command -------------------------------------------------------------------------------------------


def test_the_command_wraps_an_app_and_starts_renderers(env: Mapping[str, str], tmp_path: Path) -> None:
    program = ("-c", "from wsgi_isr.commands.main import main; main()", "serve")
    app = "tests.live.support.origin:origin"
    with Gunicorn(tmp_path / "log", env, app, workers=1, directory=ROOT, program=program) as server:
        cold = ask(server.port)
        assert cold.verdict == "MISS"
        until(server.renderers, "a renderer")
        assert renewed(server, "/", stale(server)).page["pid"] in server.renderers()
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []


# Jobs of indistinguishable parts, slow parts, deadly renders ---------------------------------------------

TENANTS = """
import os
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from wsgi_isr import ISR

def tenant(name):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        told = (os.getpid(), os.urandom(4).hex().encode(), name.encode())
        return [b'{"pid": %d, "render": "%s", "name": "%s"}' % told]
    return ISR(app)

def nobody(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []

names = open("names").read().split()
application = DispatcherMiddleware(nobody, {"/" + name: tenant(name) for name in names})
"""


def test_no_page_of_one_tenant_is_made_by_the_app_of_another(env: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "tenants.py").write_text(TENANTS)
    (tmp_path / "names").write_text("alpha gamma")
    with Gunicorn(tmp_path / "log", env, "tenants", workers=1, directory=tmp_path) as server:
        # The list grows, and only a worker that starts later knows of it.
        (tmp_path / "names").write_text("alpha beta gamma")
        (worker,) = server.workers()
        os.kill(worker, signal.SIGTERM)
        until(lambda: server.workers() not in ([], [worker]), "another worker")
        for _ in range(3):
            for name in ("alpha", "beta", "gamma"):
                answer = renewed(server, f"/{name}/x", stale(server, f"/{name}/x"))
                assert answer.page["name"] == name
        assert warnings(server, "could not tell them apart") == 3  # one for each of them


SLOW_THERE = """
import multiprocessing, os, sys, time

with open("loads", "a") as file:
    file.write("x")
if open("/proc/self/comm").read().startswith("isr-") and len(open("loads").read()) > 2:
    time.sleep(20)
from tests.live.support.measured import application
"""


def test_while_another_supervisor_loads_the_app_threads_do_its_work(env: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "slowly.py").write_text(SLOW_THERE)
    with Gunicorn(tmp_path / "log", env, "slowly", workers=1, directory=tmp_path) as server:
        until(server.renderers, "a renderer")
        ask(server.port)
        (supervisor,) = server.called(SUPERVISOR)
        server.kill(supervisor)
        until(lambda: server.called(SUPERVISOR) not in ([], [supervisor]), "another supervisor")
        old = ask(server.port)
        assert renewed(server, "/", old).page["pid"] in server.workers()
        assert server.renderers() == []


DEADLY = """
import os
from wsgi_isr import ISR

def app(environ, start_response):
    if os.path.exists("deadly") and environ["PATH_INFO"] == "/deadly":
        with open("deaths", "a") as file:
            file.write("x")
        os.kill(os.getpid(), 9)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [b'{"pid": %d, "render": "%s"}' % (os.getpid(), os.urandom(4).hex().encode())]

application = ISR(app)
"""


def test_a_page_that_renderers_die_of_is_left_alone_for_longer_and_longer(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "deadly_app.py").write_text(DEADLY)
    with Gunicorn(tmp_path / "log", env, "deadly_app", workers=2, directory=tmp_path) as server:
        until(server.renderers, "a renderer")
        workers = server.workers()
        old = ask(server.port, "/deadly")
        (tmp_path / "deadly").touch()
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            answer = ask(server.port, "/deadly")
            assert (answer.status, answer.render) == (200, old.render)
            time.sleep(0.02)  # visitors come all the time
        assert 1 <= len((tmp_path / "deaths").read_text()) <= 4
        assert server.workers() == workers
