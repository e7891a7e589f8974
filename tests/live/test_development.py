"""The development servers of the frameworks as developers start them: edit, reload, look."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.chaos.workload.tethered import FROM_OUTSIDE
from cluster.parts import ports
from cluster.parts.part import TETHER
from examples.blog_flask.browser import Answer, Browser
from tests.live.support.server import ROOT
from tests.live.support.waiting import until

PYTHON = sys.executable
OUTSIDE = (*FROM_OUTSIDE, "FLASK_", "WERKZEUG_", "RUN_MAIN", "BOTTLE_")

FILES = {
    "shop/__init__.py": """
import os

import flask

from wsgi_isr import ISR, cached, invalidate

from .prices import TEA

app = flask.Flask(__name__)


@cached(revalidate=3600)
def count():
    app.calls = getattr(app, "calls", 0) + 1
    return app.calls


@app.get("/")
def page():
    return flask.render_template("page.html", tea=TEA, count=count())


@app.post("/")
def change():
    return str(len(invalidate(tags=["prices"]).tags))


app.wsgi_app = ISR(app.wsgi_app, revalidate=3600)
""",
    "shop/prices.py": "TEA = 3\n",
    "shop/templates/page.html": "tea is {{ tea }}, call {{ count }}",
    "manage.py": """
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
from django.core.management import execute_from_command_line

execute_from_command_line(sys.argv)
""",
    "mysite/__init__.py": "",
    "mysite/settings.py": """
import os
from pathlib import Path

SECRET_KEY = "x"
DEBUG = os.environ.get("SITE_DEBUG") == "1"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "mysite.urls"
WSGI_APPLICATION = "mysite.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).parent.parent / "shop" / "templates"],
    }
]
""",
    "mysite/urls.py": """
from django.shortcuts import render
from django.urls import path

from shop.prices import TEA
from wsgi_isr import cached

calls = []


@cached(revalidate=3600)
def count():
    calls.append(1)
    return len(calls)


urlpatterns = [path("", lambda request: render(request, "page.html", {"tea": TEA, "count": count()}))]
""",
    "mysite/wsgi.py": """
import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
from django.core.wsgi import get_wsgi_application

from wsgi_isr import ISR

application = ISR(get_wsgi_application(), revalidate=3600)
""",
    "bottled.py": """
import sys

import bottle
from shop.prices import TEA

from wsgi_isr import ISR, cached

app = bottle.Bottle()
calls = []


@cached(revalidate=3600)
def count():
    calls.append(1)
    return len(calls)


@app.get("/")
def page():
    return bottle.template(open("shop/templates/page.html").read(), tea=TEA, count=count())


bottle.run(ISR(app, revalidate=3600), port=int(sys.argv[1]), reloader=True, quiet=True)
""",
}


class Server(NamedTuple):
    """A running server. ``log``: the file of its console output."""

    port: int
    log: Path

    def get(self) -> Answer:
        return Browser(self.port).get("/")

    def said(self) -> list[str]:
        """Return the lines about development."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if "WSGI_ISR_DEVELOPMENT=cache" in line]

    def shows(self, text: str) -> bool:
        try:
            return text in self.get().body
        except (OSError, HTTPException):  # it restarts
            return False


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@contextmanager
def started(project: Path, command: Sequence[str], env: Mapping[str, str]) -> Iterator[Server]:
    """Run a development server in its folder, with all its processes, until the block ends."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(OUTSIDE)}
    with ports.hold() as place, (project.parent / "log").open("wb") as log:
        port = place.getsockname()[1]
        server = Server(port, project.parent / "log")
        process = subprocess.Popen(
            [PYTHON, str(TETHER), str(os.getpid()), "SIGTERM", *(word.format(port=port) for word in command)],
            cwd=project,
            env={**outside, "PYTHONPATH": f"{project}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Ignored by jobs in the background of a shell. Bottle's reloader cannot end the server then.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            until(lambda: process.poll() is not None or server.shows("tea"), "an answer")
            assert process.poll() is None, server.log.read_text("utf-8", "replace")
            yield server
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)
            print(server.log.read_text("utf-8", "replace"), file=sys.stderr)


FLASK = [PYTHON, "-m", "flask", "--app", "shop", "run", "--port", "{port}"]
DJANGO = [PYTHON, "manage.py", "runserver", "127.0.0.1:{port}"]
GUNICORN = [PYTHON, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--no-control-socket", "shop:app"]
BOTTLE = [PYTHON, "bottled.py", "{port}"]
HOOKS = ["--config", "python:wsgi_isr.gunicorn"]

#: Command, environment, and whether templates are read anew for each request.
RELOADING = {
    "flask run --debug": ([*FLASK, "--debug"], {}, True),
    "manage.py runserver": (DJANGO, {"SITE_DEBUG": "1"}, True),
    "gunicorn --reload": ([*GUNICORN, "--reload"], {}, False),
    "bottle.run(reloader=True)": (BOTTLE, {}, True),
}
OTHERS = {
    "flask run": (FLASK, {}),
    "manage.py runserver --noreload": ([*DJANGO, "--noreload"], {}),
    "gunicorn --reload with the hooks": ([*GUNICORN, *HOOKS, "--reload"], {}),
}


def check_not_cached(project: Path, server: Server) -> None:
    """Check that each request is rendered with current data, that no page is stored, and that one line says so."""
    calls = []
    for _ in range(3):
        answer = server.get()
        assert (answer.verdict, answer["Cache-Status"]) == ("BYPASS", 'wsgi-isr; fwd=bypass; detail="development"')
        calls.append(int(re.findall(r"call (\d+)", answer.body)[0]))
    assert calls == [calls[0], calls[0] + 1, calls[0] + 2]
    assert not (project / ".wsgi_isr").exists()
    (line,) = server.said()
    assert line.startswith("development: ")


def save_until_seen(server: Server, path: Path, text: str, words: str) -> None:
    """Save a file, and again every 3 s. A reloader that has just started takes the new file for the old one, and each
    save ends a server that is still starting.

    Look only twice a second: Bottle's reloader interrupts the main thread, and wsgiref swallows that in a request.
    """
    saved = 0.0

    def saved_and_seen() -> bool:
        nonlocal saved
        if time.monotonic() >= saved + 3:
            path.write_text(text)
            saved = time.monotonic()
        return server.shows(words)

    until(saved_and_seen, words, every=0.5)


@pytest.mark.parametrize(("command", "env", "reads_templates"), RELOADING.values(), ids=RELOADING)
def test_an_edit_shows_at_once(
    project: Path, command: Sequence[str], env: dict[str, str], reads_templates: bool
) -> None:
    with started(project, command, env) as server:
        check_not_cached(project, server)
        if reads_templates:
            save_until_seen(
                server, project / "shop/templates/page.html", "tea costs {{ tea }}, call {{ count }}", "costs 3"
            )
        save_until_seen(server, project / "shop/prices.py", "TEA = 4 + 0\n", "4, call")
        assert server.get().verdict == "BYPASS"


@pytest.mark.parametrize(("command", "env"), OTHERS.values(), ids=OTHERS)
def test_without_debug_or_without_a_reloader_it_is_the_same(
    project: Path, command: Sequence[str], env: dict[str, str]
) -> None:
    with started(project, command, env) as server:
        check_not_cached(project, server)


def test_the_guide_shows_the_headers_of_a_development_server(project: Path) -> None:
    chapter = (ROOT / "docs" / "how-to" / "development.md").read_text("utf-8")
    command, _, *shown = chapter.partition("```console\n")[2].partition("\n```")[0].splitlines()
    assert command == "$ flask --app shop run --debug"
    with started(project, [*FLASK, "--debug"], {}) as server:
        answer = server.get()
        assert [f"{name}: {answer[name]}" for name in ("Cache-Status", "X-ISR")] == shown


def test_a_view_invalidates_as_ever(project: Path) -> None:
    with started(project, FLASK, {}) as server:
        assert Browser(server.port).post("/").body == "1"


def test_the_cache_can_be_tried_under_a_development_server(project: Path) -> None:
    with started(project, FLASK, {"WSGI_ISR_DEVELOPMENT": "cache"}) as server:
        assert server.get().verdict == "HIT"
        assert server.said() == []


@pytest.mark.parametrize(
    ("command", "env"),
    [
        pytest.param(GUNICORN, {"FLASK_DEBUG": "1"}, id="FLASK_DEBUG"),
        pytest.param([*GUNICORN[:-1], "mysite.wsgi"], {"SITE_DEBUG": "1"}, id="Django's DEBUG"),
    ],
)
def test_debug_left_on_in_production_is_a_clear_warning(
    project: Path, command: Sequence[str], env: dict[str, str]
) -> None:
    with started(project, command, env) as server:
        assert server.get().verdict == "BYPASS"
        (line,) = server.said()
        assert line.startswith("NO PAGE IS CACHED, and invalidating does nothing: ")
