"""``wsgi_isr.gunicorn.Worker`` under a real gunicorn, beside gunicorn's own gthread worker."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from cluster.parts import processes
from cluster.parts.nginx import Balancer
from tests.live.support.looped import BIG
from tests.live.support.server import ROOT, Gunicorn
from tests.live.support.waiting import PATIENCE, until
from tests.support import hostile_heads

WORKER = "wsgi_isr.gunicorn.Worker"
#: The line of the log for an answer of the loop.
ANSWERED = "the event loop answers"
HOST = "127.0.0.1"
IDLE = 10_000

every_app = pytest.mark.parametrize("app", ["plain", "flask", "proxied"])


@pytest.fixture
def env(tmp_path: Path, store: str) -> Mapping[str, str]:
    (tmp_path / "text").write_text("first")
    return {"LOOPED_FILE": str(tmp_path / "text"), "WSGI_ISR_STORE": store, "WSGI_ISR_BACKGROUND": "threads"}


@contextlib.contextmanager
def serving(log: Path, env: Mapping[str, str], app: str = "plain", *arguments: str, **more: Any) -> Iterator[Gunicorn]:
    """Run a gunicorn with our worker, one by default, whose log names each answer of the loop."""
    options = {"workers": 1, "worker_class": WORKER, "is_asked": False, **more}
    more_arguments = ("--threads", "4", "--log-level", "debug", "--keep-alive", "30", *arguments)
    target = f"tests.live.support.looped:{app}"
    with Gunicorn(log, env, target, arguments=more_arguments, **options) as server:
        yield server


def answered(server: Gunicorn) -> int:
    """Return the number of requests that the loop has answered."""
    return server.log.read_text("utf-8", "replace").count(ANSWERED)


class Visitor:
    """A client with one connection."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection(HOST, port, timeout=PATIENCE)

    def ask(
        self, path: str = "/a", method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[HTTPResponse, bytes]:
        """Send a request and return the response and its body."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, body, {"Host": "site.example", **given})
        response = self._connection.getresponse()
        return response, response.read()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def visit() -> Iterator[Callable[[int], Visitor]]:
    """Yield a function that opens a connection until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda port: stack.enter_context(contextlib.closing(Visitor(port)))


@every_app
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_hits_are_answered_by_the_loop_and_the_rest_by_threads(
    app: str, preload: bool, env: Mapping[str, str], tmp_path: Path, visit: Callable[[int], Visitor]
) -> None:
    with serving(tmp_path / "log", env, app, preload=preload) as server:
        assert processes.threads(server.pid) == 1
        assert [name for name in processes.open_files(server.pid) if "pages.sqlite3" in name] == []
        client = visit(server.port)
        seen = [client.ask()[0].headers["X-ISR"] for _ in range(12)]
        assert seen == ["MISS"] + ["HIT"] * 11
        # The last look-up may have been a while ago, on a busy machine: then a thread answers.
        assert answered(server) >= 6
        before = answered(server)
        post, _ = client.ask("/other", "POST", b"x" * 10)
        assert post.headers["X-ISR"] == "BYPASS"
        assert client.ask(Cookie="session=1")[0].status == 200
        assert answered(server) == before
        response, body = client.ask(method="HEAD")
        assert (response.status, body) == (200, b"")
        assert server.stop() == 0
        assert server.complaints() == []
        assert server.left() == []


@pytest.mark.parametrize(
    ("arguments", "variables", "name"),
    [
        ((), {}, WORKER),
        (("--threads", "4"), {}, WORKER),
        (("-k", "sync"), {}, "sync"),
        (("-k", "gthread"), {}, "gthread"),
        ((), {"GUNICORN_CMD_ARGS": "-k gthread"}, "gthread"),
    ],
)
def test_the_hooks_bring_the_worker_unless_a_class_is_asked_for(
    arguments: tuple[str, ...], variables: dict[str, str], name: str, env: Mapping[str, str]
) -> None:
    command = [sys.executable, "-m", "gunicorn", "-c", "python:wsgi_isr.gunicorn", "--print-config", *arguments]
    outside = {**os.environ, "PYTHONPATH": str(ROOT), **env, **variables}
    done = subprocess.run(
        [*command, "tests.live.support.looped:plain"],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rf"(?m)^worker_class +=.*\b{name}$", done.stdout), done.stdout


# Side by side ------------------------------------------------------------------------------------------------------


def exchange(port: int, pieces: list[bytes]) -> bytes:
    """Send pieces on one connection and return all that comes back."""
    with socket.create_connection((HOST, port), PATIENCE) as client:
        with contextlib.suppress(OSError):
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                received += piece
        return received


def test_the_worker_and_gthread_give_the_same_bytes(
    env: Mapping[str, str], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    choose = random.Random(5)
    with (
        serving(tmp_path / "ours", env) as ours,
        serving(tmp_path / "theirs", env, worker_class="gthread") as theirs,
    ):
        total = 400
        for _ in range(total):
            data = hostile_heads.stream(choose)
            received = exchange(ours.port, hostile_heads.split(data, choose))
            # In one piece: the errors that gunicorn finds in a part of a head depend on the pieces before it.
            expected = exchange(theirs.port, [data])
            assert hostile_heads.comparable(received) == hostile_heads.comparable(expected), data
        figure(f"{total} connections; the loop answered {answered(ours)} requests")
        assert answered(ours) > total / 20
        assert answered(theirs) == 0
        assert ours.workers() != []


def test_lines_of_the_access_log_are_those_of_gthread(
    env: Mapping[str, str], tmp_path: Path, visit: Callable[[int], Visitor]
) -> None:
    form = " ".join(f"%({name})s" for name in [*"hlursmUqHbfa", "{x-isr}o", "{host}i", "{wsgi.url_scheme}e"])
    lines = []
    for name in (WORKER, "gthread"):
        access = tmp_path / f"access-{name}"
        options = ("--access-logfile", str(access), "--access-logformat", form)
        with serving(tmp_path / f"log-{name}", env, "plain", *options, worker_class=name) as server:
            client = visit(server.port)
            client.ask("/seen")
            for path, method in itertools.product(("/seen", "/seen?page=2", "/b%20c"), ("GET", "HEAD", "GET")):
                response, _ = client.ask(path, method, Referer="http://example.com/", User_Agent="probe")
                client.ask(path, If_None_Match=response.headers["ETag"])
            until(partial(_has_lines, access, 19), "all lines")
            assert (answered(server) > 8) == (name == WORKER)
        lines.append(access.read_text().splitlines())
    assert lines[0][0].endswith("MISS site.example http")
    assert [line.replace("MISS", "HIT") for line in lines[0]] == [line.replace("MISS", "HIT") for line in lines[1]]


def _has_lines(file: Path, count: int) -> bool:
    return len(file.read_text().splitlines()) == count


# Behind nginx ------------------------------------------------------------------------------------------------------


class Front(Balancer):
    """nginx in front of one instance.

    :ivar old: nginx speaks HTTP/1.0 to the instance and closes each connection, as it does unless told otherwise.
    """

    old = False

    def configuration(self) -> str:
        text = super().configuration()
        if not self.old:
            return text
        return text.replace("proxy_http_version 1.1;", "proxy_http_version 1.0;").replace(
            'Connection "";', "Connection close;"
        )


@pytest.mark.parametrize("old", [False, True], ids=["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("app", ["plain", "proxied"])
def test_behind_nginx_the_loop_answers_with_the_clients_url(
    old: bool, app: str, env: Mapping[str, str], tmp_path: Path, visit: Callable[[int], Visitor]
) -> None:
    with serving(tmp_path / "log", env, app) as server:
        directory = tmp_path / "nginx"
        directory.mkdir()
        front = Front("front", tmp_path / "nginx.log", directory, {"one": f"{HOST}:{server.port}"}, 0, workers=1)
        front.old = old
        try:
            front.start()
            client = visit(front.port)
            answers = [client.ask() for _ in range(12)]
        finally:
            front.ask_to_stop()
            front.wait_for_stop()
            front.close()
        assert {body for _, body in answers} == {b"first http|site.example||/a|"}
        assert answered(server) >= 6


@every_app
def test_the_scheme_of_a_proxy_is_part_of_the_page(
    app: str, env: Mapping[str, str], tmp_path: Path, visit: Callable[[int], Visitor]
) -> None:
    with serving(tmp_path / "log", env, app) as server:
        client = visit(server.port)
        for _ in range(8):
            for scheme in ("http", "https"):
                _, body = client.ask(X_Forwarded_Proto=scheme, X_Forwarded_For="192.0.2.1")
                assert body == f"first {scheme}|site.example||/a|".encode()
        assert answered(server) >= 6


# Invalidations -----------------------------------------------------------------------------------------------------


def test_an_invalidation_through_another_instance_shows_within_coherence(
    env: Mapping[str, str], tmp_path: Path, visit: Callable[[int], Visitor], figure: Callable[[str], None]
) -> None:
    coherence, slack = 0.1, 2.0
    times = []
    with serving(tmp_path / "here", env) as here, serving(tmp_path / "there", env) as there:
        reader, writer = visit(here.port), visit(there.port)
        for number in range(10):
            until(lambda: reader.ask()[0].headers["X-ISR"] == "HIT", "a hit")
            for _ in range(20):
                reader.ask()
            text = f"text-{number}"
            writer.ask(f"/write?{text}", "POST")
            began = time.monotonic()
            until(partial(_shows, reader, f"{text} "), "the new page", every=0)
            times.append(time.monotonic() - began)
        assert answered(here) > 100
    figure(f"seen {statistics.median(times) * 1000:.0f} ms after the write, {max(times) * 1000:.0f} ms at most")
    assert max(times) < coherence + slack


def _shows(reader: Visitor, text: str) -> bool:
    return reader.ask()[1].startswith(text.encode())


# The life of a worker ----------------------------------------------------------------------------------------------


def test_a_server_that_stops_finishes_a_large_answer(
    env: Mapping[str, str], tmp_path: Path, visit: Callable[[int], Visitor]
) -> None:
    with serving(tmp_path / "log", env) as server:
        client = visit(server.port)
        for _ in range(3):
            client.ask("/big")
        with socket.create_connection((HOST, server.port), PATIENCE) as slow:
            before = answered(server)
            slow.sendall(b"GET /big HTTP/1.1\r\nHost: site.example\r\n\r\n")
            until(lambda: answered(server) > before or slow.recv(1, socket.MSG_PEEK), "the answer")
            server.signal(signal.SIGTERM)
            received = 0
            while piece := slow.recv(65536):
                received += len(piece)
            assert received > BIG
        assert server.wait() == 0
        assert server.complaints() == []


def test_a_worker_is_replaced_after_its_number_of_requests(
    env: Mapping[str, str], tmp_path: Path, visit: Callable[[int], Visitor]
) -> None:
    with serving(tmp_path / "log", env, "plain", "--max-requests", "20") as server:
        (first,) = server.workers()
        client = visit(server.port)
        kept = [client.ask()[0].headers["Connection"] for _ in range(20)]
        assert kept == ["keep-alive"] * 19 + ["close"]
        assert answered(server) >= 10
        until(lambda: server.workers() not in ([], [first]), "another worker")
        assert visit(server.port).ask()[0].status == 200


def test_workers_that_are_replaced_lose_no_request(env: Mapping[str, str], tmp_path: Path) -> None:
    seen = set()
    with serving(tmp_path / "log", env, "plain", "--max-requests", "60", workers=2) as server:
        for _ in range(600):
            seen.update(server.workers() if len(seen) < 6 else ())
            with contextlib.closing(Visitor(server.port)) as client:
                assert client.ask()[0].status == 200
                assert client.ask()[0].status == 200
        assert answered(server) > 300
        assert len(seen) >= 6
        assert server.complaints() == []


def test_ten_thousand_idle_connections_cost_little(
    env: Mapping[str, str], tmp_path: Path, visit: Callable[[int], Visitor], figure: Callable[[str], None]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(IDLE, hard - 500 if hard != resource.RLIM_INFINITY else IDLE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
    try:
        options = ("--worker-connections", str(IDLE + 100), "--keep-alive", "60", "--log-level", "warning")
        with contextlib.ExitStack() as stack, serving(tmp_path / "log", env, "plain", *options) as server:
            (worker,) = server.workers()
            client = visit(server.port)
            alone, before = _milliseconds(client), _resident(worker)
            for number in range(count):
                idle = stack.enter_context(socket.create_connection((HOST, server.port), PATIENCE))
                if number % 2:
                    idle.sendall(b"GET /a HTTP/1.1\r\nHost: site")  # a part of a head
            until(lambda: _open_files(worker) > count, "all connections")
            among, after = _milliseconds(client), _resident(worker)
            each = (after - before) / count
            figure(
                f"{count} idle connections: {each:.0f} bytes each; a hit takes {among:.2f} ms, and {alone:.2f} without"
            )
            assert each < 6000
            assert client.ask("/unknown")[0].headers["X-ISR"] == "MISS"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _milliseconds(client: Visitor) -> float:
    """Return the median duration of a hit."""
    client.ask()
    times = []
    for _ in range(200):
        began = time.perf_counter()
        assert client.ask()[0].headers["X-ISR"] == "HIT"
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
