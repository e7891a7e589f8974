"""Invalidations by a command of Django (``manage.py shell``, say): the site is loaded, its application is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = """
SECRET_KEY = "not a secret"
ROOT_URLCONF = "mysite.urls"
WSGI_APPLICATION = "mysite.wsgi.application"
ALLOWED_HOSTS = ["*"]
"""
URLS = """
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("<path:rest>", lambda request, rest: HttpResponse("hello"))]
"""
WSGI = """
from django.core.wsgi import get_wsgi_application
from wsgi_isr import ISR
application = ISR(get_wsgi_application(), {"/a": 60}, store="sqlite:///%s/pages.db", namespace="blog")
"""
#: The set-up that manage.py does before a command runs.
SET_UP = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()
from wsgi_isr import ConfigError, invalidate, refresh, replay
"""
SHOW = """
receipt = invalidate(paths=["/a"])
print(receipt.store, receipt.namespace, *receipt.notes, "mysite.wsgi" in sys.modules)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    package = tmp_path / "mysite"
    package.mkdir()
    for name, text in (("__init__", ""), ("settings", SETTINGS), ("urls", URLS), ("wsgi", WSGI % tmp_path)):
        (package / f"{name}.py").write_text(text)
    return tmp_path


def run(site: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WSGI_ISR_", "DJANGO_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SET_UP + code],
        env={**inherited, "PYTHONPATH": str(site), **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_reaches_the_store_and_the_namespace_of_the_site(site: Path) -> None:
    done = run(site, SHOW)
    assert (done.stdout, done.stderr) == (f"sqlite:///{site}/pages.db blog True\n", "")


def test_the_application_knows_more_than_the_environment(site: Path) -> None:
    done = run(site, SHOW, WSGI_ISR_STORE=f"sqlite:///{site}/other.db")
    assert done.stdout == f"sqlite:///{site}/pages.db blog True\n"


@pytest.mark.parametrize("store", ["null://", "memory://"])
def test_tests_that_switch_the_cache_off_load_nothing(site: Path, store: str) -> None:
    done = run(site, SHOW, WSGI_ISR_STORE=store)
    assert done.stdout.startswith(f"{store} default {store} ")
    assert done.stdout.endswith(" there is nothing to invalidate False\n")


def test_a_refresh_and_a_replay_find_the_site_as_well(site: Path) -> None:
    done = run(site, "print(refresh('/a'), replay())", WSGI_ISR_JOURNAL=f"{site}/journal")
    assert (done.stdout, done.stderr) == ("True ()\n", "")


FAILS = """
try:
    invalidate(paths=["/a"])
except ConfigError as error:
    print(error)
"""


def test_an_application_that_does_not_import_is_an_error_that_says_what_to_do(site: Path) -> None:
    (site / "mysite" / "wsgi.py").write_text("import nothing_of_that_name\n")
    (said,) = run(site, FAILS).stdout.splitlines()
    assert said.startswith("store: Django's WSGI_APPLICATION = 'mysite.wsgi.application' does not import: ")
    assert "nothing_of_that_name" in said
    assert said.endswith("(mend it, or set WSGI_ISR_STORE as the site has it (null:// for none))")


@pytest.mark.parametrize("how", ["no application", "an application without ISR"])
def test_a_site_whose_store_only_the_server_knows_is_an_error_that_says_what_to_write(site: Path, how: str) -> None:
    if how == "no application":
        (site / "mysite" / "settings.py").write_text(SETTINGS.replace("WSGI_APPLICATION", "OTHER"))
    else:
        (site / "mysite" / "wsgi.py").write_text(
            "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n"
        )
    (said,) = run(site, FAILS).stdout.splitlines()
    assert said.startswith("store: no store is known here (give store=, set WSGI_ISR_STORE")
    # The server wraps the app on its command line, with options from the environment.
    done = run(site, SHOW, WSGI_ISR_STORE=f"sqlite:///{site}/env.db")
    assert done.stdout.startswith(f"sqlite:///{site}/env.db default ")
