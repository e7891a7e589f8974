"""granian by ``wsgi-isr serve``: reloads, and errors at the start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from tests.live.support.awaited import renewed, stale
from tests.live.support.granian import PROGRAM, Granian
from tests.live.support.origin import Origin
from tests.live.support.server import ROOT, WATCHER
from tests.live.support.visitor import HOST, ask
from tests.live.support.waiting import until


@pytest.fixture
def env(origin: Origin, store: str, folder: Path) -> dict[str, str]:
    return {**origin.env, "WSGI_ISR_STORE": store, "WSGI_ISR_REVALIDATE": "0.5", "TMPDIR": str(folder)}


# Reload ------------------------------------------------------------------------------------------------

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


def test_a_reload_brings_the_new_code_to_workers_and_renderers_and_loses_no_render(
    origin: Origin, env: Mapping[str, str], tmp_path: Path
) -> None:
    module = tmp_path / "versioned.py"
    module.write_text(VERSIONED)
    # One release: visitors of the new code see renders of the old code.
    env = {**env, "WSGI_ISR_RELEASE": "one"}
    with Granian(tmp_path / "log", env, "versioned:application", directory=tmp_path) as server:
        before = server.workers()
        ask(server.port)
        (old_renderer,) = until(server.renderers, "a renderer")
        origin.hold()
        old = stale(server)
        assert origin.held() == old_renderer
        module.write_text(VERSIONED.replace("VERSION = 1", "VERSION = 2"))
        os.utime(module, (time.time() + 10,) * 2)  # the compiled one is older by any clock
        server.signal(signal.SIGHUP)
        until(lambda: len(server.called(WATCHER)) == 2, "another watcher")
        (new_renderer,) = until(lambda: [pid for pid in server.renderers() if pid != old_renderer], "a new renderer")
        origin.release()
        until(lambda: not {*server.workers()} & {*before}, "the end of the old workers")
        server.wait_for_workers()
        finished = renewed(server, "/", old)
        until(lambda: server.renderers() == [new_renderer], "the end of the old renderer")
        until(lambda: ask(server.port).page["version"] == 2, "a page by the new code")
        assert renewed(server, "/", stale(server)).page["pid"] == new_renderer
        assert server.stop() == 0
        assert server.left() == []
        assert server.complaints() == []
    assert origin.settled()[1].pid == old_renderer
    assert origin.settled()[1].ended is not None
    assert finished.status == 200


def test_watchers_of_earlier_reloads_are_collected(env: Mapping[str, str], tmp_path: Path) -> None:
    with Granian(tmp_path / "log", env, workers=1) as server:
        watchers = []
        for turn in range(3):
            (watcher,) = until(lambda: server.called(WATCHER), "a watcher")
            watchers.append(watcher)
            until(server.renderers, "a renderer")
            server.wait_for_workers()
            (worker,) = server.workers()
            server.signal(signal.SIGHUP)
            until(lambda worker=worker: len(server.workers()) == 1 and server.workers() != [worker], f"reload {turn}")
            until(lambda watcher=watcher: server.called(WATCHER) not in ([], [watcher]), "another watcher")
            until(lambda watcher=watcher: watcher not in server.called(WATCHER), "the end of the old watcher")
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        # A reload collects a watcher that the reload before it has stopped.
        assert not {*map(int, children)} & {*watchers[:2]}
        assert server.stop() == 0


# Errors at the start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["broken:app"], "broken:app: does not import: KeyError: 'DATABASE'"),
        (["broken:app", "--workers", "no"], "Invalid value for '--workers'"),
    ],
)
def test_an_error_at_the_start_is_one_line(
    arguments: list[str], words: str, env: Mapping[str, str], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import os\nos.environ['DATABASE']\n")
    outside = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
    done = subprocess.run(
        [sys.executable, *PROGRAM, "--host", HOST, *arguments],
        cwd=tmp_path,
        env={**outside, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


ONLY_ONCE = """
import os
if os.getpid() != int(open("first").read()):
    raise RuntimeError("not here")
from tests.live.support.measured import application
"""


def test_an_app_that_fails_only_in_the_workers_ends_the_server_and_leaves_no_process(
    env: Mapping[str, str], tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "once.py").write_text(ONLY_ONCE.replace('int(open("first").read())', "os.getpgid(0)"))
    server = Granian(tmp_path / "log", env, "once:application", workers=1, directory=tmp_path)
    with pytest.raises(AssertionError, match="ended"), server:
        pass
    assert server.left() == []
    assert list(folder.iterdir()) == []
