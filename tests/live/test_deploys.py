"""Real deploys: an edit and a restart, a pull, a new image, a rolling deploy, and a rollback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from examples.blog_flask.browser import Answer, Browser
from tests.live.support.server import ROOT, Gunicorn
from tests.live.support.waiting import until
from tests.support.memcached import Memcached
from wsgi_isr import invalidate
from wsgi_isr.config.source import PLATFORM_VARIABLES

SHOP = {
    "shop/__init__.py": """
import flask

from wsgi_isr import ISR

from .prices import TEA

app = flask.Flask(__name__)


@app.get("/")
@app.get("/<page>")
def page(page: str = "") -> str:
    return flask.render_template("page.html", tea=TEA, page=page)


app.wsgi_app = ISR(app.wsgi_app, revalidate=3600)
""",
    "shop/prices.py": "TEA = 3\n",
    "shop/templates/page.html": "Welcome: tea is {{ tea }}",
}
HOST = {"Host": "shop.example"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, text in SHOP.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def no_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in PLATFORM_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def serve(folder: Path, store: str = "", **options: object) -> Gunicorn:
    env = {"WSGI_ISR_STORE": store} if store else {}
    return Gunicorn(folder.parent / f"{folder.name}.log", env, "shop:app", directory=folder, **options)


def ask(server: Gunicorn, path: str = "/") -> Answer:
    answer = Browser(server.port).get(path, **HOST)
    assert answer.status == 200, answer
    return answer


def shown(server: Gunicorn, path: str = "/") -> tuple[str, str]:
    answer = ask(server, path)
    return answer.verdict, answer.body


def renewed(server: Gunicorn, text: str, path: str = "/") -> None:
    """Wait for the render behind a stale page: then each worker shows it."""
    until(lambda: [shown(server, path)[1] for _ in range(4)] == [text] * 4, f"{text!r}")


EDITS = {
    "a template": ("shop/templates/page.html", "Welcome back: tea is {{ tea }}", "Welcome back: tea is 3", False),
    "a module of a preloaded app": ("shop/prices.py", "TEA = 4\n", "Welcome: tea is 4", True),
}


@pytest.mark.parametrize(("name", "text", "new", "preload"), EDITS.values(), ids=EDITS)
def test_an_edit_shows_after_a_restart_stale_for_the_first_visitor_and_new_for_the_second(
    project: Path, name: str, text: str, new: str, preload: bool
) -> None:
    old = "Welcome: tea is 3"
    with serve(project, preload=preload) as server:
        assert shown(server) == ("MISS", old)
    assert (project / ".wsgi_isr/store.db").exists()
    with serve(project, preload=preload) as server:
        assert shown(server) == ("HIT", old)  # a restart alone is no deploy
    (project / name).write_text(text)
    with serve(project, preload=preload) as server:
        assert shown(server) == ("STALE", old)
        renewed(server, new)
        assert server.complaints() == []


def test_an_edit_shows_after_a_reload_by_sighup_with_its_new_renderers(project: Path) -> None:
    with serve(project) as server:
        shown(server)
        before = server.workers()
        (project / "shop/templates/page.html").write_text("Reloaded")
        server.signal(signal.SIGHUP)
        until(lambda: not set(server.workers()) & set(before), "new workers")
        server.wait_for_workers()
        assert shown(server) == ("STALE", "Welcome: tea is 3")
        renewed(server, "Reloaded")


def test_a_file_that_changes_before_the_restart_is_no_part_of_the_release_that_runs(project: Path) -> None:
    """The server still runs the old code: its renders must not count as pages of the new release."""
    with serve(project) as server:
        (project / "shop/prices.py").write_text("TEA = 4\n")  # a pull, before the first request
        assert shown(server) == ("MISS", "Welcome: tea is 3")
    with serve(project) as server:
        assert shown(server)[0] == "STALE"
        renewed(server, "Welcome: tea is 4")


def test_the_same_content_in_another_folder_is_the_same_release_and_a_new_image_is_not(
    project: Path, tmp_path: Path, store: str
) -> None:
    with serve(project, store) as server:
        shown(server)
    image = tmp_path / "srv" / "image"
    shutil.copytree(project, image)
    for path in image.rglob("*"):
        os.utime(path, (1, 1))
    with serve(image, store) as server:
        assert shown(server) == ("HIT", "Welcome: tea is 3")
    (image / "shop/templates/page.html").write_text("A new image")
    with serve(image, store) as server:
        assert shown(server) == ("STALE", "Welcome: tea is 3")
        renewed(server, "A new image")


def test_a_command_makes_pages_of_the_release_that_the_servers_have(project: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(FROM_OUTSIDE)}
    command = [
        sys.executable,
        "-c",
        "from wsgi_isr.commands.main import main; main()",
        "prerender",
        "shop:app",
        "/",
        "/about",
    ]
    done = subprocess.run(
        [*command, "--url", "http://shop.example"],
        cwd=project,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with serve(project) as server:
        assert shown(server, "/about")[0] == "HIT"


# A rolling deploy --------------------------------------------------------------------------------------


class Load:
    """Visitors of several servers, one after the other, each at a server of their own."""

    def __init__(self, servers: dict[str, Gunicorn]) -> None:
        self.seen: list[tuple[float, str, Answer]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=server, daemon=True) for server in servers.items()]

    def _visit(self, name: str, server: Gunicorn) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self.seen.append((began, name, Browser(server.port).get("/", **HOST)))

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def has_seen(self, answers: int) -> bool:
        return len(self.seen) > answers

    def has_expired(self, name: str, after: float) -> bool:
        """Return whether a visitor of a server who came ``after`` has found the page expired."""
        return any(one == name and at > after and answer.verdict == "EXPIRED" for at, one, answer in list(self.seen))

    def since(self, began: float) -> list[tuple[str, str]]:
        return [(name, answer.body) for at, name, answer in self.seen if at > began]


def test_in_a_rolling_deploy_each_release_serves_its_own_pages_and_an_invalidation_reaches_both(
    project: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    node = Memcached()
    store = f"memcached://{node.address}"
    image = tmp_path / "new"
    shutil.copytree(project, image)
    (image / "shop/templates/page.html").write_text("New: tea is {{ tea }}")
    old, new = "Welcome: tea is 3", "New: tea is 3"
    try:
        with serve(project, store) as first:
            assert shown(first) == ("MISS", old)
            with serve(image, store) as second:
                assert shown(second) == ("STALE", old)
                renewed(second, new)
                load = Load({old: first, new: second})
                with load.running():
                    began = time.monotonic()
                    for number in range(4):
                        until(partial(load.has_seen, 100 * (1 + number)), "visitors")
                        at = time.monotonic()
                        invalidate(paths=["/"], store=store)
                        # Both see each invalidation: an expired page, once or more.
                        for name in (old, new):
                            until(partial(load.has_expired, name, at), f"{name!r} to expire")
                    until(lambda: len(load.seen) > 600, "visitors")
                assert load.since(began)
                assert {answer.status for _, _, answer in load.seen} == {200}
                assert all(body == name for name, body in load.since(0)), Counter(load.since(0))
                verdicts = Counter(answer.verdict for _, _, answer in load.seen)
            # Rollback: the new server is gone, and the old one has its pages.
            assert shown(first) == ("HIT", old)
        with serve(project, store) as back:
            assert shown(back) == ("HIT", old)
        figure(f"{len(load.seen)} answers of two releases side by side, none of the other one's; {dict(verdicts)}")
    finally:
        node.kill()
