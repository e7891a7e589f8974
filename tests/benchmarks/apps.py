"""The contestants: one page of 20 KB, from bare functions, from frameworks, and from their caches."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from tests.benchmarks.report import CannotRun

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

PAGE = (b"<!doctype html><title>On caching</title>" + b"<p>A page is rendered once.</p>\n" * 700)[:20_000]
#: Seconds: long enough that no page becomes stale during the measurement.
LIFETIME = 3600


def environ_of(slug: str, **more: Any) -> dict[str, Any]:
    """Return the environ that gunicorn makes of a browser's GET for ``/blog/<slug>``."""
    path = f"/blog/{slug}"
    return {
        "wsgi.errors": sys.stderr,
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input": io.BytesIO(),
        "wsgi.input_terminated": True,
        "wsgi.url_scheme": "http",
        "SERVER_SOFTWARE": "gunicorn",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000",
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "RAW_URI": path,
        "HTTP_HOST": "www.example.com",
        "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "HTTP_ACCEPT": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "HTTP_ACCEPT_LANGUAGE": "en-US,en;q=0.5",
        "HTTP_ACCEPT_ENCODING": "gzip, deflate, br, zstd",
        "HTTP_CONNECTION": "keep-alive",
        **more,
    }


class Site:
    """The page under any name, and the number of renders by name: one, if a cache works."""

    def __init__(self) -> None:
        self.renders: Counter[str] = Counter()

    def render(self, slug: str) -> bytes:
        """Return the page as bytes: text would cost the other caches an encoding with every answer."""
        self.renders[slug] += 1
        return PAGE


def bare(site: Site) -> WSGIApplication:
    """Return a minimal WSGI app."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        body = site.render(environ["PATH_INFO"].removeprefix("/blog/"))
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    return app


def flask(site: Site, cached: bool = False) -> WSGIApplication:
    """Return an app with a Flask view; ``cached``: by Flask-Caching, in its fastest store."""
    try:
        from flask import Flask
        from flask_caching import Cache
    except ImportError as error:
        raise CannotRun(f"{error.name} is missing: pip install '.[dev]'") from None
    app = Flask("benchmarked")
    view = site.render
    if cached:
        cache = Cache(app, config={"CACHE_TYPE": "SimpleCache", "CACHE_DEFAULT_TIMEOUT": LIFETIME})
        view = cache.cached()(view)
    app.add_url_rule("/blog/<slug>", endpoint="view", view_func=view)
    return cast("WSGIApplication", app.wsgi_app)


def django(site: Site, cached: bool = False) -> WSGIApplication:
    """Return an app with a Django view and no other middleware; ``cached``: by Django's, in locmem."""
    try:
        from django import setup  # type: ignore[import-untyped]
        from django.conf import settings  # type: ignore[import-untyped]
        from django.core.handlers.wsgi import WSGIHandler  # type: ignore[import-untyped]
        from django.http import HttpRequest, HttpResponse  # type: ignore[import-untyped]
        from django.urls import path  # type: ignore[import-untyped]
    except ImportError as error:
        raise CannotRun(f"{error.name} is missing: pip install '.[dev]'") from None

    def view(request: HttpRequest, slug: str) -> HttpResponse:
        body = site.render(slug)
        return HttpResponse(body, headers={"Content-Length": str(len(body))})  # servers would send it in chunks

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"],
            CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
            CACHE_MIDDLEWARE_SECONDS=LIFETIME,
            LOGGING_CONFIG=None,
            ROOT_URLCONF=(path("blog/<slug:slug>", view),),  # settings are one for the process
        )
        setup()
    # A handler takes its middleware from the settings when it is made.
    update, fetch = "UpdateCacheMiddleware", "FetchFromCacheMiddleware"
    settings.MIDDLEWARE = [f"django.middleware.cache.{name}" for name in (update, fetch) if cached]
    return cast("WSGIApplication", WSGIHandler())
