"""``wsgi-isr demo``: the package alone, in another folder, plays its story and leaves no files or processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from cluster.parts import processes
from tests.live.support.waiting import until
from tests.support.browsers import Browser, Chromium
from wsgi_isr.commands.demo_site.site import PRIVATE

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["MISS", "HIT", "CROWD", "STALE", "INVALIDATE", "ERROR", "HEAL", "SESSION"]
COMMAND = "from wsgi_isr.commands.main import main; main(prog_name='wsgi-isr')"
#: Another process runs the command, and waits for it.
UNDER_ANOTHER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {COMMAND!r}, *sys.argv[1:]])"
#: Options of a site of the caller's own, with which no page would be cached, or no process would start.
OF_THE_CALLER = {
    "WSGI_ISR_STORE": "null://",
    "WSGI_ISR_DEVELOPMENT": "bypass",
    "WSGI_ISR_CONFIG": "/none.toml",
    "WSGI_ISR_NO_OPTION": "1",
    "GUNICORN_CMD_ARGS": "--workers 1 --bind 127.0.0.1:1",
}


class Place:
    """An empty folder without the repository, and one for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.here, self.temporary, package = folder / "here", folder / "tmp", folder / "lib"
        for made in (self.here, self.temporary, package):
            made.mkdir()
        (package / "wsgi_isr").symlink_to(ROOT / "wsgi_isr")  # neither examples nor tests can be imported
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WSGI_ISR_", "ISR_DEMO_", "PYTHON"))}
        self.environment = {**kept, "PYTHONPATH": str(package), "TMPDIR": str(self.temporary)}

    def begin(self, *arguments: str, code: str = COMMAND, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, "demo", *arguments],
            cwd=self.here,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: str = COMMAND, **environment: str) -> subprocess.CompletedProcess[str]:
        with self.begin(*arguments, code=code, **environment) as process:
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.terminate()  # has no effect after its end
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def is_clean(self) -> bool:
        return [*self.here.iterdir(), *self.temporary.iterdir()] == []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@contextmanager
def running(
    place: Place, *arguments: str, code: str = COMMAND, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield the command and the port of its site, once the first step was played."""
    with place.begin(*arguments, code=code, **environment) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            (port,) = next(found for line in lines if (found := re.findall(r"http://127\.0\.0\.1:(\d+)/", line)))
            assert any("X-ISR: MISS" in line for line in lines)
            yield process, int(port)
        finally:
            process.terminate()
            process.stdout.read()


def test_the_whole_story_holds_whatever_options_the_caller_has(place: Place) -> None:
    run = place.run("--check", **OF_THE_CALLER)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.findall(r"^ok +\d+\. ([A-Z]+):", run.stdout, re.MULTILINE) == STEPS
    for word in ("MISS", "HIT", "STALE", "EXPIRED", "STALE-IF-ERROR", "BYPASS"):
        assert re.search(rf"X-ISR: {word}  .*\d ms", run.stdout), word
    assert run.stderr == ""
    assert place.is_clean()


def test_a_step_that_does_not_hold_ends_the_story_with_exit_code_1(place: Place) -> None:
    run = place.run("--check", **{PRIVATE: "/news/library"})
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.findall(r"^(ok|FAIL) +\d+\. ([A-Z]+):", run.stdout, re.MULTILINE) == [
        ("ok", "MISS"),
        ("ok", "HIT"),
        ("FAIL", "CROWD"),
    ]
    assert "expected: render 1 for all" in run.stdout
    assert "CROWD does not hold" in run.stderr
    assert "Listening at" in run.stderr  # the server's log
    assert place.is_clean()


def test_the_steps_are_data_with_json(place: Place) -> None:
    run = place.run("--check", "--json", **{PRIVATE: "/news/library"})
    assert run.returncode == 1, run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert told["ok"] is False
    assert "CROWD does not hold" in told["error"]
    assert [(step["step"], step["ok"]) for step in told["steps"]] == [("MISS", True), ("HIT", True), ("CROWD", False)]
    (miss,) = told["steps"][0]["answers"]
    assert miss.pop("ms") > 0
    assert miss == {"request": "GET /news/harbour", "status": 200, "x_isr": "MISS", "age": 0, "render": 1}


@pytest.mark.parametrize(
    ("code", "by"),
    [(COMMAND, signal.SIGTERM), (COMMAND, signal.SIGKILL), (UNDER_ANOTHER, signal.SIGKILL)],
    ids=["asked to end", "killed", "its parent is killed"],
)
def test_every_process_ends_with_the_command(place: Place, code: str, by: signal.Signals) -> None:
    with running(place, code=code) as (process, port):
        below = processes.descendants(process.pid)
        assert len(below) >= 3, below  # gunicorn and two workers
        process.send_signal(by)
        assert process.wait(30) == (-by if by == signal.SIGKILL else 0)
    try:
        until(lambda: not any(processes.same(one.pid, one.started) for one in below), "every process has ended")
    finally:
        for one in below:
            processes.send(one, signal.SIGKILL)
    until(place.is_clean, "the temporary folder is removed")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_the_site_stays_until_ctrl_c_and_its_buttons_work_in_a_browser(place: Place, tmp_path: Path) -> None:
    # The browser starts while the story is played.
    opening = running(place, "--open", BROWSER="echo opened %s")
    with opening as (process, port), closing(Chromium(tmp_path)) as browser:
        assert process.stdout is not None
        assert any("still runs at" in line for line in iter(process.stdout.readline, ""))
        assert any(f"opened http://127.0.0.1:{port}/" in line for line in iter(process.stdout.readline, ""))
        assert ask_from("cross-site", port) == 403
        browser.go(f"http://127.0.0.1:{port}/news/night-train")
        until(lambda: rows(browser) == [["HIT", "1"]], "the page shows its first answer")
        browser.click("[data-action=invalidate]")
        until(lambda: rows(browser) == [["EXPIRED", "2"], ["HIT", "1"]], "the page shows the new render")
        browser.click("[data-action=fail]")
        browser.click("[data-action=invalidate]")
        until(lambda: rows(browser)[0] == ["STALE-IF-ERROR", "2"], "the page shows the last good render")
        browser.click("[data-action=heal]")
        assert any("POST /demo/heal  200" in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        assert "Stopped." in process.stdout.read()
        assert process.wait(30) == 0
    assert place.is_clean()


def rows(browser: Browser) -> list[list[str]]:
    """Return X-ISR and the number of the render of each answer that the page shows, the latest first."""
    script = (
        "return [...document.querySelectorAll('#answers tr')].map(({cells}) => [2, 5].map(i => cells[i].innerText))"
    )
    found: list[list[str]] = browser.run(script)
    return found


def ask_from(site: str, port: int) -> int:
    """Return the status of a POST that a browser sends from a page of this ``site`` (Fetch Metadata)."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/demo/fail", "", {"Sec-Fetch-Site": site})
        return connection.getresponse().status
    finally:
        connection.close()


def test_without_gunicorn_one_line_says_what_to_install(place: Place) -> None:
    run = place.run(code=f"import sys; sys.modules['gunicorn'] = None; {COMMAND}")
    assert run.returncode == 2
    assert run.stderr == 'demo: gunicorn is not installed (pip install "wsgi_isr[gunicorn]")\n'


def test_a_port_that_is_taken_is_one_line(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = place.run("--port", port)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert f"--port {port}: Address already in use" in run.stderr
