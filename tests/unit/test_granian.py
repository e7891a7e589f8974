"""The launcher of granian: its defaults, its hooks, and the sockets that renderers do not keep."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
from granian.constants import Interfaces
from granian.server.mp import MPServer

from tests.live.support.waiting import until
from wsgi_isr.renderers.child_process import fork, status_of
from wsgi_isr.servers.granian import Server, _App, _end_orphan, close_listeners, parse


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GRANIAN_")]:
        monkeypatch.delenv(name)


def test_defaults_are_those_of_a_server_that_goes_on() -> None:
    given = parse(["plain:app"])
    assert given["interface"] is Interfaces.WSGI
    assert given["respawn_failed_workers"] is True
    assert given["workers_kill_timeout"] == 30
    assert given["blocking_threads"] < 100


def test_the_environment_replaces_a_default_and_the_command_line_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRANIAN_WORKERS_KILL_TIMEOUT", "7")
    assert parse(["plain:app"])["workers_kill_timeout"] == 7
    assert parse(["plain:app", "--workers-kill-timeout", "9"])["workers_kill_timeout"] == 9
    assert parse(["plain:app", "--no-respawn-failed-workers"])["respawn_failed_workers"] is False


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the functions that servers gave their workers, and let no server serve."""
    found: list[Any] = []
    monkeypatch.setattr(MPServer, "serve", lambda self, target_loader, wrap_loader: found.append(target_loader))
    return found


@pytest.mark.parametrize("reload", [True, False])
def test_a_server_that_reloads_its_code_by_itself_has_no_renderers(reload: bool, loaders: list[Any]) -> None:
    # Renderers would go on with the old code: the main process does not notice that the code has changed.
    server = Server("plain:app", reload=reload, log_enabled=False)
    server.serve()
    hooks = [server.hooks_startup, server.hooks_reload, server.hooks_shutdown]
    assert [len(each) for each in hooks] == [0 if reload else 1] * 3


def test_a_spawned_worker_gets_all_that_a_forked_one_inherits(loaders: list[Any]) -> None:
    Server("plain:create", reload=True, factory=True, log_enabled=False, workers_kill_timeout=7).serve()
    (loader,) = loaders
    loader.folder = "/a/folder"
    copied = ForkingPickler.loads(ForkingPickler.dumps(loader))
    assert vars(copied) == {
        "_target": "plain:create()",
        "_main": os.getpid(),
        "_has_reloader": True,
        "_kill_timeout": 7,
        "folder": "/a/folder",
    }


def test_a_worker_that_hangs_without_its_main_process_ends_itself() -> None:
    def main() -> int:
        app = _App("plain:app", False, 0.05)
        app._main = os.getpid()  # not the parent
        app._set_main_signals(lambda *_: None)
        os.kill(os.getpid(), signal.SIGTERM)
        hangs = threading.Event()
        while True:
            hangs.wait()

    pid = fork("hangs", main)
    (status,) = until(lambda: (found,) if (found := status_of(pid)) is not None else None, "the worker's end")
    assert os.waitstatus_to_exitcode(status) == 1


@pytest.mark.parametrize(("main", "timeout"), [(os.getppid, 30), (os.getpid, None)])
def test_a_worker_with_a_main_process_or_without_a_timeout_waits_for_its_requests(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[], int], timeout: float | None
) -> None:
    monkeypatch.setattr(threading, "Timer", lambda *_: pytest.fail("a timer was started"))
    _end_orphan(main(), timeout)


def test_a_child_closes_listening_sockets_and_no_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        with listener.accept()[0] as connection:

            def main() -> int:
                close_listeners()
                connection.send(b"still open")
                try:
                    os.fstat(listener.fileno())
                except OSError:
                    return 0
                return 1

            pid = fork("closes", main)
            assert until(lambda: (status_of(pid),), "the child's end")
            assert client.recv(100) == b"still open"
            listener.setblocking(False)  # it is open here
