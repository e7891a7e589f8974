"""The proof that gunicorn's callable reaches an ISR with the request as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import bottle
import flask
import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.instrument.statsd import Statsd
from werkzeug.middleware.proxy_fix import ProxyFix

from wsgi_isr import ISR
from wsgi_isr.servers.call_path import CallPath
from wsgi_isr.servers.loop_answers import is_logged


def site(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


@pytest.fixture
def isr() -> ISR:
    return ISR(site, revalidate=60, store="memory://")


class Middleware:
    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self.app(environ, start_response)


class OwnISR(ISR):
    """A class of the user's, that sees each request."""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return super().__call__(environ, start_response)


class OwnFlask(flask.Flask):
    def __call__(self, environ: Any, start_response: Any) -> Any:
        return super().__call__(environ, start_response)


class OwnFix(ProxyFix):
    def __call__(self, environ: Any, start_response: Any) -> Any:
        return super().__call__(environ, start_response)


def in_flask(inner: Any, kind: Callable[..., Any] = flask.Flask) -> Any:
    app = kind("site")
    app.wsgi_app = inner
    return app


def in_bottle(inner: Any) -> Any:
    app = bottle.Bottle()
    app.wsgi = inner
    return app


WAYS: dict[str, Callable[[ISR], Any]] = {
    "the ISR itself": lambda isr: isr,
    "Flask": in_flask,
    "a class of Flask without a __call__": lambda isr: in_flask(isr, type("Sub", (flask.Flask,), {})),
    "Bottle": in_bottle,
    "ProxyFix": ProxyFix,
    "ProxyFix twice": lambda isr: ProxyFix(ProxyFix(isr)),
    "Flask and ProxyFix": lambda isr: in_flask(ProxyFix(isr)),
    "ProxyFix around Flask": lambda isr: ProxyFix(in_flask(isr)),
}
NO_WAYS: dict[str, Callable[[ISR], Any]] = {
    "a middleware": Middleware,
    "a function": lambda isr: lambda environ, start_response: isr(environ, start_response),
    "a partial": lambda isr: functools.partial(isr),
    "a method": lambda isr: isr.__call__,
    "a middleware in Flask": lambda isr: in_flask(Middleware(isr)),
    "a middleware in ProxyFix": lambda isr: ProxyFix(Middleware(isr)),
    "a class of one's own": lambda isr: OwnISR(site, revalidate=60, store="memory://"),
    "a class of Flask of one's own": lambda isr: in_flask(isr, OwnFlask),
    "a ProxyFix of one's own": OwnFix,
    "Flask without an ISR": lambda isr: flask.Flask("site"),
    "Bottle without an ISR": lambda isr: bottle.Bottle(),
    "no ISR": lambda isr: site,
}


@pytest.mark.parametrize("way", WAYS)
def test_there_is_a_way(way: str, isr: ISR) -> None:
    path = CallPath(WAYS[way](isr))
    assert path.isr is isr
    assert path.still_leads()


@pytest.mark.parametrize("way", NO_WAYS)
def test_there_is_no_way(way: str, isr: ISR) -> None:
    with pytest.raises(LookupError, match="stands between gunicorn and the ISR"):
        CallPath(NO_WAYS[way](isr))


def test_a_monitor_that_replaces_the_call_of_flask_is_seen(isr: ISR, monkeypatch: pytest.MonkeyPatch) -> None:
    path = CallPath(in_flask(isr))
    original = flask.Flask.__call__

    @functools.wraps(original)
    def watched(self: Any, environ: Any, start_response: Any) -> Any:
        return original(self, environ, start_response)

    monkeypatch.setattr(flask.Flask, "__call__", watched)
    assert not path.still_leads()
    with pytest.raises(LookupError):
        CallPath(in_flask(isr))


def test_a_middleware_that_comes_later_is_seen(isr: ISR) -> None:
    app = in_flask(isr)
    path = CallPath(app)
    app.wsgi_app = Middleware(app.wsgi_app)
    assert not path.still_leads()


def test_a_monitor_that_replaces_the_call_of_the_isr_is_seen(isr: ISR, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original = CallPath(isr), ISR.__call__
    monkeypatch.setattr(ISR, "__call__", lambda self, *request: original(self, *request))
    assert not path.still_leads()


def test_a_proxy_fix_that_is_set_anew_changes_the_environ_as_it_is_set(isr: ISR) -> None:
    proxy = ProxyFix(isr)
    path = CallPath(proxy)
    proxy.x_host = 1
    environ = {"wsgi.url_scheme": "http", "HTTP_HOST": "inner", "HTTP_X_FORWARDED_HOST": "outer.example"}
    path.fix(environ)
    assert environ["HTTP_HOST"] == "outer.example"


def test_a_proxy_fix_changes_the_environ_as_in_a_request(isr: ISR) -> None:
    path = CallPath(ProxyFix(isr, x_proto=1, x_host=1, x_prefix=1))
    environ = {
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "inner",
        "HTTP_X_FORWARDED_PROTO": "https",
        "HTTP_X_FORWARDED_HOST": "outer.example",
        "HTTP_X_FORWARDED_PREFIX": "/mounted",
    }
    path.fix(environ)
    assert [environ[key] for key in ("wsgi.url_scheme", "HTTP_HOST", "SCRIPT_NAME")] == [
        "https",
        "outer.example",
        "/mounted",
    ]


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({}, Logger, False),
        ({"accesslog": "-"}, Logger, True),
        ({"syslog": True}, type("Own", (Logger,), {"access": lambda *given: None}), True),
        ({"statsd_host": "127.0.0.1:8125"}, Statsd, True),
    ],
)
def test_a_logger_that_does_something_for_each_request_gets_each_request(
    options: dict[str, Any], kind: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config()
    for name, value in options.items():
        config.set(name, value)
    monkeypatch.setattr(kind, "setup", lambda self, cfg: None)
    log = kind(config)
    if getattr(log, "sock", None) is not None:
        log.sock.close()
    assert is_logged(log) is expected
