"""A site in Flask that knows its visitors by Flask's session, behind ``ISR`` with ``revalidate=1``.

Every page says who it is for and shows a token of the session, which is nobody else's business. The paths are those of
:mod:`.django_accounts`, so that one attack goes against both.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

from flask import Flask, Response, redirect, request, session, stream_with_context

from wsgi_isr import ISR, cached

app = Flask(__name__)
app.secret_key = "a secret of the tests"


def card() -> str:
    """Who the visitor is."""
    return f"[user={session.get('user', 'nobody')} token={session.get('token', 'none')} by={os.getpid()}]"


@app.post("/login")
def login() -> object:
    session["user"], session["token"] = request.form["user"], f"token-{secrets.token_hex(8)}"
    return redirect("/", 303)


@app.get("/")
def home() -> str:
    return card()


@app.get("/about/<path:page>")
def about(page: str) -> str:
    """A page for everybody, with a corner that knows its reader."""
    return f"about {page} {card()}"


@app.get("/plain")
def plain() -> str:
    """It does not look at the session at all."""
    return f"[user=nobody token=none by={os.getpid()}]"


@app.get("/touched")
def touched() -> str:
    """It writes the session, so that each answer sets a cookie, a stranger's as well."""
    session["seen"] = secrets.token_hex(8)
    return card()


@app.get("/private")
def private() -> Response:
    response = Response(card())
    response.cache_control.private = True
    return response


@app.get("/lazy")
def lazy() -> Response:
    """It looks at the session when its body is being sent."""

    def parts() -> Iterator[str]:
        yield "lazy "
        yield card()

    return Response(stream_with_context(parts()))


@app.get("/data")
def data() -> str:
    """With data from the cache, which is made in a request of somebody."""
    return f"{shared()} {card()}"


@cached(revalidate=1)
def shared() -> str:
    return f"shared {secrets.token_hex(4)}"


@app.post("/about/<path:page>")
def write(page: str) -> object:
    """It invalidates the page."""
    return redirect(f"/about/{page}", 303)


application = ISR(app.wsgi_app, revalidate=1)
