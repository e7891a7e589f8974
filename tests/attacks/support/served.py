"""The target of attacks on the wire: an app that shows its whole request, behind ``ISR``, which caches every page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tests.attacks.support.reflecting import reflecting
from wsgi_isr import ISR, Rule

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Show the request without the client's port, which differs each time."""
    return reflecting({name: value for name, value in environ.items() if name != "REMOTE_PORT"}, start_response)


application = ISR(app, {"/<path:rest>": Rule(revalidate=3600, query=["page"])}, revalidate=3600)
