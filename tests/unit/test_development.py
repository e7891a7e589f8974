"""Signs that an app is being developed, and the line about it on the console."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import bottle
import django
import flask
import pytest

from wsgi_isr.config import development
from wsgi_isr.config.development import DevelopmentSign, development_of, is_served_by


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide variables, options and servers of the tests themselves."""
    for name in ("WERKZEUG_RUN_MAIN", "RUN_MAIN", "BOTTLE_CHILD", "FLASK_RUN_FROM_CLI", "FLASK_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    development._announce.cache_clear()
    yield
    development._announce.cache_clear()


def app(environ: Any, start_response: Any) -> list[bytes]:
    return []


def flask_app(debug: bool) -> flask.Flask:
    made = flask.Flask(__name__)
    made.debug = debug
    return made


def bottle_app() -> bottle.Bottle:
    return bottle.Bottle()


def of(app: Any, option: str = "auto", **environ: str) -> str:
    found = development_of(option, app, environ or None)
    return found.text if found is not None else ""


@pytest.mark.parametrize("software", ["Werkzeug/3.1.9", "WSGIServer/0.2"])
def test_a_development_server_names_itself_in_each_request(software: str) -> None:
    assert is_served_by({"SERVER_SOFTWARE": software})
    assert "server is running" in of(app, SERVER_SOFTWARE=software)


@pytest.mark.parametrize("software", ["gunicorn/27.0.1", "waitress", "", "Apache Werkzeug/3"])
def test_any_other_server_is_none(software: str) -> None:
    assert not is_served_by({"SERVER_SOFTWARE": software})
    assert of(app, SERVER_SOFTWARE=software) == of(app) == ""
    assert not is_served_by({})
    assert not is_served_by({"SERVER_SOFTWARE": 7})


@pytest.mark.parametrize(
    ("variable", "reloader"),
    [("WERKZEUG_RUN_MAIN", "werkzeug's"), ("RUN_MAIN", "Django's"), ("BOTTLE_CHILD", "Bottle's")],
)
def test_a_reloader_is_known_by_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, reloader: str) -> None:
    import django  # noqa: F401 - RUN_MAIN is Django's only where Django is imported

    monkeypatch.setenv(variable, "true")
    assert of(app) == f"{reloader} reloader is running"


def test_a_variable_of_a_framework_that_is_not_there_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_MAIN", "true")
    monkeypatch.delitem(sys.modules, "django", raising=False)
    assert of(app) == ""


@pytest.mark.parametrize(
    "argv", [["/usr/bin/gunicorn", "--reload", "app"], ["/x/uvicorn/__main__.py", "app", "--reload"]]
)
def test_the_reload_option_of_a_server_is_known(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert "--reload" in of(app)


def test_the_same_option_of_another_program_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["manage.py", "import", "--reload"])
    assert of(app) == ""


def test_gunicorn_s_reloader_is_known_by_its_hooks_and_by_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(development, "has_reloader", True)
    assert "--reload" in of(app)
    monkeypatch.setattr(development, "has_reloader", False)

    class Reloader(threading.Thread):
        __module__ = "gunicorn.reloader"

    over = threading.Event()
    thread = Reloader(target=over.wait, daemon=True)
    thread.start()
    assert "--reload" in of(app)
    over.set()
    thread.join()
    assert of(app) == ""


@pytest.mark.parametrize("argv", [["manage.py", "runserver", "--noreload"], ["django-admin", "runserver"]])
def test_django_s_command_is_known_without_its_reloader(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "django", django)
    monkeypatch.setattr(sys, "argv", argv)
    assert of(app) == "manage.py runserver is running"


def test_flask_s_command_is_known_and_may_only_begin_the_process_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["flask", "--app", "shop", "run"])
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    for debug in (False, True):
        assert development_of("auto", flask_app(debug)) == DevelopmentSign(
            "flask run is running", serves_requests=not debug
        )
    monkeypatch.setattr(sys, "argv", ["flask", "--app", "shop", "reindex"])
    assert of(flask_app(debug=False)) == ""


@pytest.mark.parametrize("nested", [lambda app: app, lambda app: app.wsgi_app], ids=["the app", "its wsgi_app"])
def test_flask_s_debug_mode_is_known_inside_of_anything(nested: Callable[[Any], Any]) -> None:
    found = development_of("auto", nested(flask_app(debug=True)))
    assert found is not None
    assert "Flask's debug mode" in found.text
    assert not found.is_deliberate
    assert development_of("auto", nested(flask_app(debug=False))) is None


def test_bottle_s_debug_mode_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(bottle_app()) == ""
    monkeypatch.setattr(bottle, "DEBUG", True)
    assert of(bottle_app()) == "Bottle's debug mode is on"
    assert of(flask_app(debug=False)) == ""


@pytest.mark.parametrize("with_app", [True, False], ids=["its handler", "a command without an app"])
def test_django_s_debug_mode_is_known(with_app: bool) -> None:
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import override_settings

    from tests.behaviour.django_settings import configure

    configure()
    handler = WSGIHandler() if with_app else None
    assert of(handler) == ""
    with override_settings(DEBUG=True):
        assert of(handler) == "Django's debug mode is on (DEBUG in its settings)"
        assert of(app) == ""


def test_the_option_decides_before_anything_else() -> None:
    assert of(flask_app(debug=True), "cache", SERVER_SOFTWARE="Werkzeug/3") == ""
    assert of(app, "bypass") == 'development="bypass"'


def test_a_development_server_is_one_line_with_what_to_set(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        DevelopmentSign("flask run is running").announce()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING  # without a set-up of logging, lower levels are not printed
    assert record.getMessage() == (
        "development: flask run is running, so pages are not cached (X-ISR: BYPASS) and invalidating does nothing; to "
        "try the cache, set WSGI_ISR_DEVELOPMENT=cache"
    )


def test_a_debug_mode_that_may_have_been_forgotten_is_a_louder_one(caplog: pytest.LogCaptureFixture) -> None:
    DevelopmentSign("Django's debug mode is on (DEBUG in its settings)", is_deliberate=False).announce()
    (record,) = caplog.records
    assert record.getMessage().startswith("NO PAGE IS CACHED, and invalidating does nothing: Django's debug mode is on")
    assert "in production, switch it off" in record.getMessage()
