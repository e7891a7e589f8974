"""A pytest plugin that wraps every Flask app of a test run: ``-p flask_suite_plugin``.

``test_flask_suite.py`` loads this plugin in a process of its own. ``WRAP_WITH=isr`` wraps every app by a middleware
that bypasses the cache for every page. ``WRAP_WITH=nothing`` wraps it by a middleware that does nothing. A test that
fails with the latter fails with any middleware (a wrapped app is part of a reference cycle, for example).
``WRAP_REPORT`` names a file that gets the numbers of apps and requests at the end.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import _pytest.monkeypatch
import flask

from wsgi_isr import ISR
from wsgi_isr.events import Event, Served

if not hasattr(_pytest.monkeypatch, "notset"):
    # Flask's test_cli.py takes this private name from pytest, which renamed it in 9.1 or so.
    _pytest.monkeypatch.notset = _pytest.monkeypatch.NOTSET  # type: ignore[attr-defined]

counted = {"apps": 0, "requests": 0}


def count(event: Event) -> None:
    if isinstance(event, Served):
        counted["requests"] += 1


class Nothing:
    """A middleware that does nothing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        counted["requests"] += 1
        return self.app(environ, start_response)


def without_rules(app: Any) -> Any:
    isr = ISR(app, revalidate=0, store="memory://")
    isr.subscribe(count)
    return isr


WRAPPERS = {"isr": without_rules, "nothing": Nothing}


def wrap_every_app(wrap: Any) -> None:
    begin = flask.Flask.__init__

    def wrapped_begin(self: Any, *args: Any, **named: Any) -> None:
        begin(self, *args, **named)
        self.wsgi_app = wrap(self.wsgi_app)
        counted["apps"] += 1

    flask.Flask.__init__ = wrapped_begin  # type: ignore[method-assign]


wrap_every_app(WRAPPERS[os.environ["WRAP_WITH"]])


def pytest_sessionfinish() -> None:
    Path(os.environ["WRAP_REPORT"]).write_text(json.dumps(counted), encoding="utf-8")
