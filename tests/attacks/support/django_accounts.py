"""The site of :mod:`.flask_accounts` in Django, which knows its visitors by Django's sessions."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

from django import setup
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.urls import path

from wsgi_isr import ISR, cached

settings.configure(
    SECRET_KEY="a secret of the tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    SESSION_COOKIE_NAME="session",
    LOGGING_CONFIG=None,
)
setup()


def card(request: HttpRequest) -> str:
    """Return the user and the token of the session."""
    return (
        f"[user={request.session.get('user', 'nobody')} token={request.session.get('token', 'none')} by={os.getpid()}]"
    )


def login(request: HttpRequest) -> HttpResponse:
    request.session["user"], request.session["token"] = request.POST["user"], f"token-{secrets.token_hex(8)}"
    return HttpResponseRedirect("/", status=303)


def home(request: HttpRequest) -> HttpResponse:
    return HttpResponse(card(request))


def about(request: HttpRequest, page: str) -> HttpResponse:
    if request.method == "POST":
        return HttpResponseRedirect(f"/about/{page}", status=303)
    return HttpResponse(f"about {page} {card(request)}")


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"[user=nobody token=none by={os.getpid()}]")


def touched(request: HttpRequest) -> HttpResponse:
    request.session["seen"] = secrets.token_hex(8)
    return HttpResponse(card(request))


def private(request: HttpRequest) -> HttpResponse:
    return HttpResponse(card(request), headers={"Cache-Control": "private"})


def lazy(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[str]:
        yield "lazy "
        yield card(request)

    return StreamingHttpResponse(parts())


def data(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{shared()} {card(request)}")


@cached(revalidate=1)
def shared() -> str:
    return f"shared {secrets.token_hex(4)}"


urlpatterns = [
    path("login", login),
    path("", home),
    path("about/<path:page>", about),
    *(path(view.__name__, view) for view in (plain, touched, private, lazy, data)),
]
application = ISR(get_wsgi_application(), revalidate=1)
