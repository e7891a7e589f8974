"""A site in Flask that knows its visitors by Flask's session, behind ``ISR`` with ``revalidate=1``.

Every page shows the user and the secret token of the session. :mod:`.django_accounts` has the same paths, so that one
attack goes against both.
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
    """Return the user and the token of the session."""
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
    """Show a public page with the user in a corner."""
    return f"about {page} {card()}"


@app.get("/plain")
def plain() -> str:
    """Do not read the session."""
    return f"[user=nobody token=none by={os.getpid()}]"


@app.get("/touched")
def touched() -> str:
    """Write the session: each answer sets a cookie, to strangers as well."""
    session["seen"] = secrets.token_hex(8)
    return card()


@app.get("/private")
def private() -> Response:
    response = Response(card())
    response.cache_control.private = True
    return response


@app.get("/lazy")
def lazy() -> Response:
    """Read the session while the body is sent."""

    def parts() -> Iterator[str]:
        yield "lazy "
        yield card()

    return Response(stream_with_context(parts()))


@app.get("/data")
def data() -> str:
    """Show data from the cache, which one visitor's request has made."""
    return f"{shared()} {card()}"


@cached(revalidate=1)
def shared() -> str:
    return f"shared {secrets.token_hex(4)}"


@app.post("/about/<path:page>")
def write(page: str) -> object:
    """Invalidate the page."""
    return redirect(f"/about/{page}", 303)


application = ISR(app.wsgi_app, revalidate=1)
