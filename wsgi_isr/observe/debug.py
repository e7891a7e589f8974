"""Debug lines: one line for each decision of the cache (``debug``, or ``WSGI_ISR_DEBUG=1``).

The lines are ``name=value`` pairs, on the logger ``wsgi_isr.debug``::

    page verdict=STALE key=http://localhost/blog/a age=61.2 lock=none ms=0.2
    data verdict=HIT key=shop.prices:of age=3.0 ms=0.1
    data verdict=MISS key="GET https://shop.example/prices?of=tea" ms=41.9
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from ..events import DataServed, Event, Invalidated, Refused, Rendered, RenderFailed, Served, Subscriber, UndeclaredVary
from ..pages.request_key import PageKey, decoded

_log = logging.getLogger("wsgi_isr.debug")


def log_decisions() -> Subscriber:
    """Return a subscriber that logs the lines.

    If logging is not configured, as under development servers, the lines go to stderr.
    """
    _log.setLevel(logging.DEBUG)
    if not _log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s wsgi_isr %(message)s"))
        _log.addHandler(handler)

    def log(event: Event) -> None:
        if (line := line_of(event)) is not None:
            _log.debug("%s", line)

    return log


def line_of(event: Event) -> str | None:
    """Return the line for an event; ``None`` if the event is no decision."""
    if isinstance(event, Served):
        return _line("page", event.label, event.text, event.age, event.reason, event.lock, event.seconds)
    if isinstance(event, DataServed):
        return _line("data", event.label, event.shown or event.name, event.age, event.reason, "", event.seconds)
    if isinstance(event, Rendered):
        if event.refused:
            return None  # the event `Refused` has a line
        return _line("render", "STORED" if event.stored else "NOT-STORED", event.text, seconds=event.seconds)
    if isinstance(event, RenderFailed):
        return _line("render", "FAILED", event.text, reason=event.reason) + f" retry_in={event.retry_in:.1f}"
    if isinstance(event, Refused):
        return _line("render", "REFUSED", event.text, reason=event.reason)
    if isinstance(event, UndeclaredVary):
        reason = f"the app looked for {', '.join(event.headers)}; neither its Vary nor the rule says so"
        return _line("render", "UNSAID", event.text, reason=reason)
    if isinstance(event, Invalidated):
        return _line("invalidate", event.mode.upper(), ", ".join(event.tags), reason=_undelivered(event))
    return None


def _undelivered(event: Invalidated) -> str:
    state = "pending" if event.journal is not None else "not delivered"
    return f"{state}: {', '.join(event.undelivered)}" if event.undelivered else ""


def _line(
    kind: str,
    verdict: str,
    key: str,
    age: float | None = None,
    reason: str = "",
    lock: str = "",
    seconds: float | None = None,
) -> str:
    pairs: dict[str, Any] = {"verdict": verdict, "key": _shown(key)}
    if age:
        pairs["age"] = f"{age:.1f}"
    pairs |= {name: value for name, value in (("reason", reason), ("lock", lock)) if value}
    if seconds is not None:
        pairs["ms"] = f"{1000 * seconds:.1f}"
    return " ".join([kind, *(f"{name}={_quoted(str(value))}" for name, value in pairs.items())])


def _quoted(text: str) -> str:
    # Parts of the text come from clients. No part may look like another pair or another line.
    return text if text.isprintable() and not any(mark in text for mark in ' "\\') else json.dumps(text)


def _digest(value: str) -> str:
    return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()


def _shown(text: str) -> str:
    """Return the URL of a page's key; any other text unchanged."""
    try:
        key = PageKey.parse(text)
        path = decoded(key.script) + decoded(key.path)
    except (ValueError, TypeError):
        return text
    query = "&".join(f"{name}={value}" for name, value in key.query)
    # Headers and cookies in the key are shown as digests: a cookie may be a session.
    varied = "".join(f" {name}={_digest(value)}" for name, value in (*key.headers, *key.cookies))
    return f"{key.scheme}://{key.host}{path}{'?' if query else ''}{query}{varied}"
