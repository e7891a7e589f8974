"""``wsgi_isr.testing`` gives tests of a cached app no cache, or an empty one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bottle
import flask
import pytest
from werkzeug.test import Client

from tests.behaviour.django_settings import configure
from wsgi_isr import ISR, Rule, cached, invalidate, no_store, refresh
from wsgi_isr.middleware.runtime import runtime
from wsgi_isr.stores.memory import MemoryStore
from wsgi_isr.testing import fresh_cache, fresh_isr, no_isr, without_cache

ROOT = Path(__file__).parents[2]
AWAY = "memcached://127.0.0.1:1?timeout=0.05&connect_timeout=0.05"

__all__ = ["fresh_isr", "no_isr"]


class Counter:
    """The number of renders of a page, and the threads of the renders."""

    def __init__(self) -> None:
        self.pages = 0
        self.threads: set[threading.Thread] = set()

    def page(self) -> str:
        self.pages += 1
        self.threads.add(threading.current_thread())
        return f"page {self.pages}"


def of_flask(counter: Counter) -> Any:
    app = flask.Flask(__name__)
    app.get("/")(counter.page)
    return app.wsgi_app


def of_bottle(counter: Counter) -> Any:
    app = bottle.Bottle()
    app.get("/")(counter.page)
    return app


def of_wsgi(counter: Counter) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/html")])
        return [counter.page().encode()]

    return app


MAKERS: dict[str, Callable[[Counter], Any]] = {"Flask": of_flask, "Bottle": of_bottle, "a function": of_wsgi}


class Site:
    def __init__(self, make: Callable[[Counter], Any], **options: Any) -> None:
        self.counter = Counter()
        self.isr = ISR(make(self.counter), {"/": Rule(revalidate=60, tags=["a"])}, **{"store": AWAY, **options})
        self.client = Client(self.isr)

    def ask(self) -> tuple[str, str]:
        answer = self.client.get("/")
        return answer.headers["X-ISR"], answer.text


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def site(request: pytest.FixtureRequest) -> Site:
    """Return an app that was wrapped before the test, with an unreachable store."""
    return Site(request.param)


@pytest.mark.usefixtures("no_isr")
def test_without_a_cache_each_request_is_answered_by_the_app_and_invalidating_succeeds(site: Site) -> None:
    assert [site.ask() for _ in range(3)] == [("BYPASS", f"page {number}") for number in (1, 2, 3)]
    assert invalidate(tags=["a"]).tags == ("tag:a",)
    assert site.isr.invalidate(paths=["/"]).tags == ("path:/",)


@pytest.mark.usefixtures("fresh_isr")
def test_a_fresh_cache_is_one_that_works(site: Site) -> None:
    assert [site.ask() for _ in range(2)] == [("MISS", "page 1"), ("HIT", "page 1")]
    invalidate(tags=["a"])
    assert site.ask() == ("EXPIRED", "page 2")
    invalidate(tags=["a"], mode="stale")
    assert [site.ask() for _ in range(2)] == [("STALE", "page 2"), ("HIT", "page 3")]
    assert refresh("/")
    assert site.ask() == ("HIT", "page 4")


@pytest.mark.usefixtures("fresh_isr")
@pytest.mark.parametrize("turn", [1, 2])
def test_it_is_empty_for_each_test(site: Site, turn: int) -> None:
    assert site.ask() == ("MISS", "page 1")


def test_everything_is_done_in_the_thread_of_the_test(site: Site) -> None:
    @cached(revalidate=60)
    def rows() -> int:
        site.counter.threads.add(threading.current_thread())
        return 1

    before = threading.active_count()
    with fresh_cache():
        site.ask()
        invalidate(tags=["a"], mode="stale")
        site.ask()
        rows()
        rows.refresh()
    assert site.counter.threads == {threading.current_thread()}
    assert threading.active_count() <= before + 1  # of leases


def test_afterwards_everything_is_as_it_was(tmp_path: Path) -> None:
    site = Site(of_wsgi, store=MemoryStore())
    assert site.ask() == ("MISS", "page 1")
    for stand_in in (fresh_cache, without_cache):
        with stand_in():
            site.ask()
        assert site.ask() == ("HIT", "page 1")
    assert runtime.stand_in is None


def test_one_may_be_inside_of_another(site: Site) -> None:
    with without_cache():
        with fresh_cache():
            assert site.ask()[0] == "MISS"
            assert site.ask()[0] == "HIT"
        assert site.ask()[0] == "BYPASS"


def test_an_app_that_is_made_meanwhile_has_the_cache_of_the_test_and_later_its_own() -> None:
    with fresh_cache():
        site = Site(of_wsgi, store=MemoryStore())
        assert [site.ask()[0] for _ in range(2)] == ["MISS", "HIT"]
    assert [site.ask()[0] for _ in range(2)] == ["MISS", "HIT"]


def test_apps_share_a_cache_where_they_share_a_store() -> None:
    with fresh_cache():
        one, other, alone = Site(of_wsgi), Site(of_wsgi), Site(of_wsgi, store="memory://")
        assert [site.ask()[0] for site in (one, other, alone)] == ["MISS", "HIT", "MISS"]


@pytest.mark.usefixtures("fresh_isr")
def test_a_debug_mode_does_not_keep_a_fresh_cache_off() -> None:
    app = flask.Flask(__name__)
    app.debug = True
    app.get("/")(lambda: "Hello")
    client = Client(ISR(app.wsgi_app, revalidate=60))
    assert [client.get("/").headers["X-ISR"] for _ in range(2)] == ["MISS", "HIT"]


def test_without_an_app_data_is_kept_and_invalidated_as_with_one() -> None:
    calls: list[str] = []

    @cached(revalidate=60, tags=["rows"])
    def rows() -> int:
        calls.append("")
        return len(calls)

    with fresh_cache():
        assert [rows(), rows()] == [1, 1]
        invalidate(tags=["rows"])
        assert rows() == 2
    with without_cache():
        invalidate(tags=["rows"])
        assert [rows(), rows()] == [3, 4]
    assert runtime.alone is None


def test_what_a_page_says_of_itself_counts() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        no_store()
        start_response("200 OK", [("Content-Type", "text/html")])
        return [b"never kept"]

    with fresh_cache():
        client = Client(ISR(app, revalidate=60, store=AWAY))
        answer = client.get("/")
        assert answer.headers["Cache-Status"] == 'wsgi-isr; fwd=bypass; detail="no-store"'


def test_django_s_connections_stay_open_meanwhile_and_are_closed_by_requests_later() -> None:
    configure()
    from django.core.signals import request_finished, request_started
    from django.db import close_old_connections

    def connected() -> list[bool]:
        return [
            any(close_old_connections is receiver for receiver in signal._live_receivers(None)[0])
            for signal in (request_started, request_finished)
        ]

    assert connected() == [True, True]
    with fresh_cache():
        assert connected() == [False, False]
        with without_cache():
            assert connected() == [False, False]
        assert connected() == [False, False]
    assert connected() == [True, True]


# The guide ---------------------------------------------------------------------------------------------


def blocks() -> dict[str, str]:
    """Return the files in the guide: blocks of Python whose first line names one."""
    text = (ROOT / "docs" / "how-to" / "testing.md").read_text("utf-8")
    found = [part.partition("\n```")[0] for part in text.split("```python\n")[1:]]
    return {block.partition("\n")[0].removeprefix("# "): block for block in found if block.startswith("# ")}


def run(folder: Path, *command: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("WSGI_ISR_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "mysite.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


SHOP = """
import flask

from wsgi_isr import ISR, invalidate

app = flask.Flask(__name__)
prices = {"tea": 3}


@app.get("/")
def front() -> str:
    return f"tea is {prices['tea']}"


@app.post("/prices")
def change() -> str:
    prices["tea"] = flask.request.form["tea"]
    invalidate(tags=["prices"])
    return "changed"


app.wsgi_app = ISR(app.wsgi_app, {"/": {"revalidate": 60, "tags": ["prices"]}})
"""


def test_the_tests_for_pytest_in_the_guide_pass(tmp_path: Path) -> None:
    files = blocks()
    (tmp_path / "shop.py").write_text(SHOP)
    for name in ("conftest.py", "test_shop.py"):
        (tmp_path / name).write_text(files[name])
    said = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.")
    assert "3 passed" in said
    assert not (tmp_path / ".wsgi_isr").exists()


DJANGO = {
    "mysite/__init__.py": "",
    "mysite/settings.py": (
        "SECRET_KEY = 'x'\nROOT_URLCONF = 'mysite.urls'\nALLOWED_HOSTS = ['*']\nINSTALLED_APPS = ['shop']\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'db', 'TEST': {'NAME': 'test.db'}}}\n"
        "DEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'\nCONN_MAX_AGE = 0\n"
    ),
    "mysite/wsgi.py": (
        "import os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n"
        "from django.core.wsgi import get_wsgi_application\nfrom wsgi_isr import ISR\n"
        "application = ISR(get_wsgi_application(), {'/': {'revalidate': 60, 'tags': ['products']}})\n"
    ),
    "mysite/urls.py": (
        "from django.http import HttpResponse\nfrom django.urls import path\nfrom shop.models import names\n"
        "urlpatterns = [path('', lambda request: HttpResponse(', '.join(names())))]\n"
    ),
    "shop/__init__.py": "",
    "shop/models.py": (
        "from django.db import models, transaction\nfrom django.db.models.signals import post_save\n"
        "from wsgi_isr import cached, invalidate\n\n\n"
        "class Product(models.Model):\n    name = models.CharField(max_length=50)\n\n\n"
        "@cached(revalidate=3600, tags=['products'])\ndef names() -> list[str]:\n"
        "    return list(Product.objects.values_list('name', flat=True))\n\n\n"
        "def changed(**_):\n    transaction.on_commit(lambda: invalidate(tags=['products']))\n\n\n"
        "post_save.connect(changed, Product)\n"
    ),
    "shop/migrations/__init__.py": "",
    "shop/migrations/0001_initial.py": (
        "from django.db import migrations, models\n\n\nclass Migration(migrations.Migration):\n    initial = True\n"
        "    operations = [migrations.CreateModel('Product', [('id', models.BigAutoField(primary_key=True)), "
        "('name', models.CharField(max_length=50))])]\n"
    ),
}


def test_the_tests_for_django_in_the_guide_pass(tmp_path: Path) -> None:
    files = {**DJANGO, "shop/tests.py": blocks()["shop/tests.py"]}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    said = run(tmp_path, "-m", "django", "test", "--pythonpath=.")
    assert "Ran 2 tests" in said
    assert not (tmp_path / ".wsgi_isr").exists()
