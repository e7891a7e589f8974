"""Log lines for events, on the logger ``wsgi_isr``."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any
from urllib.parse import quote

from ..config.patterns import spelling
from ..errors import listed
from ..events import (
    BackgroundFull,
    DataServed,
    Delivered,
    Event,
    InternalError,
    Invalidated,
    LeaseLost,
    Refused,
    Rendered,
    RenderFailed,
    Served,
    StoreFailed,
    Subscriber,
    UndeclaredVary,
    Unreadable,
)
from ..pages.request_key import PageKey, decoded

_log = logging.getLogger("wsgi_isr")

_LONGEST_PATH = 200
#: The number of kinds of pages that are named for setting cookies: clients can ask for any.
_MOST_PATTERNS = 16
#: The number of kinds of trouble whose last line is remembered.
_MAX_KINDS = 1000
#: The number of names in a line that may be about thousands.
_SHOWN = 8
#: The process that delivers a journal, if no app of this process has it.
_BY_OTHERS = "by an app with journal= this file, or by wsgi-isr replay, once the node is back"
#: Request headers that an app reads mostly to answer by them, by their lower-case names. Cookies and languages are
#: read for other reasons as well, so they are for ``debug``.
_TELLING = {"accept": "Accept", "hx-request": "HX-Request", "x-requested-with": "X-Requested-With"}


def log_events() -> Subscriber:
    """Return a subscriber that does not repeat itself.

    It logs a refusal once for each rule and reason, and a page that sets cookies once for each kind of pages. It logs
    each kind of store trouble once a minute.
    """
    refused: set[tuple[str, str]] = set()
    signing_in: set[tuple[str, str]] = set()
    unsaid: set[str] = set()
    trouble: dict[str, float] = {}

    def is_due(kind: str) -> bool:
        now = time.monotonic()
        if now < trouble.get(kind, now):
            return False
        if len(trouble) >= _MAX_KINDS:
            trouble.clear()
        trouble[kind] = now + 60
        return True

    def log(event: Event) -> None:
        if isinstance(event, (Served, DataServed, Rendered)):
            return
        if isinstance(event, Refused):
            if event.reason == "set-cookie" and _is_blanket(event.rule):
                pattern = _pattern_of(event.text)
                if (event.rule, pattern) in signing_in or len(signing_in) == _MOST_PATTERNS:
                    return
                signing_in.add((event.rule, pattern))
                _log.warning(
                    "rule %r: %s sets a cookie for a visitor without cookies, so it is not cached, and the app may be "
                    'called twice for a first visit; for one-time links write "%s": 0',
                    event.rule,
                    pattern,
                    pattern,
                )
            elif (event.rule, event.reason) not in refused:
                refused.add((event.rule, event.reason))
                _log.info("pages of the rule %r are not stored: %s", event.rule, event.reason)
        elif isinstance(event, UndeclaredVary):
            names = [_TELLING[header] for header in event.headers if header in _TELLING]
            if names and event.rule not in unsaid:
                unsaid.add(event.rule)
                _log.warning(
                    "rule %r: to answer %s the app looks at %s, and neither its Vary nor the rule says so: everybody "
                    "gets the page of a client that sends no such header; write vary=%s in the rule, or Vary in the "
                    "answer",
                    event.rule,
                    _pattern_of(event.text) if _is_blanket(event.rule) else event.rule,
                    " and ".join(names),
                    json.dumps(names),
                )
        elif isinstance(event, RenderFailed):
            _log.warning(
                "render failed: rule %r, page %s: %s; any last good page stays, next try in %.1f s",
                event.rule,
                event.key,
                event.reason,
                event.retry_in,
                exc_info=_traceback(event.cause),
            )
        elif isinstance(event, StoreFailed):
            if is_due(f"{event.verb}: {type(event.cause).__name__}"):
                _log.warning("the store failed and pages are served without it: %s", event.cause)
        elif isinstance(event, LeaseLost):
            _log.warning("a render took longer than its lease was kept: %s", event.key)
        elif isinstance(event, Unreadable):
            # Another program or version may have written thousands.
            if is_due(f"unreadable: {event.reason}"):
                _log.warning("a stored value is unreadable (%s) and counts as missing: %s", event.reason, event.key)
        elif isinstance(event, Invalidated):
            for warning in event.warnings:
                if is_due(f"invalidation: {warning}"):
                    _log.warning("invalidated %s, but %s", listed(event.tags), warning)
            for hint in event.hints:
                _log.info("invalidated %s, but %s", listed(event.tags), hint)
            if event.undelivered and event.journal is not None:
                _log.warning(
                    "pending: the invalidation (%s) of %s; it is kept in %s, and delivered %s",
                    event.mode,
                    listed(event.undelivered),
                    event.journal,
                    "when the node is back" if event.is_attended else _BY_OTHERS,
                )
            elif event.undelivered:
                _log.error("not delivered: the invalidation (%s) of %s", event.mode, listed(event.undelivered))
            else:
                _log.debug("invalidated (%s): %s", event.mode, listed(event.tags))
        elif isinstance(event, Delivered):
            if event.tags:
                _log.info("delivered from the journal %s: %s", event.journal, listed(event.tags))
            if event.waiting and is_due(f"journal: {event.journal}"):
                number, shown = len(event.waiting), listed(event.waiting[:_SHOWN])
                _log.warning("%d invalidations wait in %s for a node: %s", number, event.journal, shown)
        elif isinstance(event, InternalError):
            cause = event.cause
            outcome = f"; {event.outcome}" if event.outcome else ""
            traceback = (type(cause), cause, cause.__traceback__)
            _log.error("internal error: %s failed%s", event.where, outcome, exc_info=traceback)
        elif isinstance(event, BackgroundFull):
            _log.debug("no room for a background render: %s", event.key)

    return log


def _is_blanket(rule: str) -> bool:
    """Return whether a rule covers several kinds of pages."""
    return rule == "*" or "<path:" in rule


def _pattern_of(text: str) -> str:
    """Return a rule for pages like the one with this key.

    The last segment may be the secret of a valid link, so it becomes ``<token>``.
    """
    try:
        path = decoded(PageKey.parse(text).path)
    except (ValueError, TypeError):
        path = ""
    head = path.rstrip("/").rpartition("/")[0]
    if not head:
        return _written(path) or "/"
    return f"{_written(head)}/<token>{'/' if path.endswith('/') else ''}"


def _written(path: str) -> str:
    """Return a client's path for use in a rule and in one line of a log."""
    written = "".join(c if c.isprintable() and c not in '<>"\\' else quote(c) for c in path[:_LONGEST_PATH])
    # Quote characters that make a rule invalid because another framework's patterns use them.
    return written if spelling(written) == written else re.sub(r"[^\w/%~.-]", lambda c: quote(c[0], ""), written)


def _traceback(error: BaseException | None) -> Any:
    return None if error is None else (type(error), error, error.__traceback__)
