"""The launcher of granian: its defaults, its hooks, and the sockets that renderers do not keep."""

from __future__ import annotations

import os
import socket
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
from granian.constants import Interfaces
from granian.server.mp import MPServer

from tests.live.support.waiting import until
from wsgi_isr.renderers.child_process import fork, status_of
from wsgi_isr.servers.granian import Server, close_listeners, parse


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
    Server("plain:create", reload=True, factory=True, log_enabled=False).serve()
    (loader,) = loaders
    loader.folder = "/a/folder"
    copied = ForkingPickler.loads(ForkingPickler.dumps(loader))
    assert vars(copied) == {
        "_target": "plain:create()",
        "_main": os.getpid(),
        "_has_reloader": True,
        "folder": "/a/folder",
    }


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
