"""The CDN in front of an app: the edges that its invalidations purge."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..cache.edges import Edges
from ..cache.journal import Journal
from ..cache.keyspace import Keyspace
from ..config.settings import Settings
from ..events import Events

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

    from ..cdn.headers import EdgeHeaders


def edges_for(
    settings: Settings,
    journal: Journal | None,
    events: Events,
    monotonic: Callable[[], float] | None = None,
    pause: Callable[[float], None] | None = None,
) -> Edges | None:
    """Return the edges that an invalidation purges; ``None`` without a CDN.

    :param journal: keeps the tags that an edge has missed.
    """
    if (cdn := settings.edge) is None:
        return None
    from ..cdn.purge import edges_of  # most apps have no CDN

    pause = pause or time.sleep  # looked up now: gevent may have patched it since the module was loaded
    space = settings.namespace
    found = edges_of(cdn, monotonic or time.monotonic, pause)
    return Edges(found, Keyspace(space).edge_token, settings.coherence, space, journal, events, pause)


def refusing(start_response: StartResponse, edge: EdgeHeaders) -> StartResponse:
    """Return a ``start_response`` for an answer that no CDN may keep."""

    def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        return start_response(status, edge.refuse(headers), *exc_info)

    return start
