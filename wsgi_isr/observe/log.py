"""Log lines for events, on the logger ``wsgi_isr``."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from ..config.patterns import spelling
from ..errors import listed
from ..events import (
    BackgroundFull,
    Delivered,
    Event,
    InternalError,
    Invalidated,
    LeaseLost,
    Refused,
    RenderFailed,
    StoreFailed,
    Subscriber,
    Switched,
    UndeclaredVary,
    Unreadable,
)
from ..pages.request_key import PageKey, decoded

_log = logging.getLogger("wsgi_isr")

#: The maximum length of a client's path in a line, in characters.
_MAX_PATH = 200
#: The maximum number of kinds of pages that are named for setting cookies. Clients can request any kind.
_MAX_PATTERNS = 16
#: The maximum number of kinds of trouble whose last line is remembered.
_MAX_KINDS = 1000
#: The maximum number of names in a line that may be about thousands.
_MAX_NAMES = 8
#: The time between two lines about one kind of trouble, in seconds.
_TROUBLE_EVERY = 60
#: Delivery from a journal that no app of this process has.
_BY_OTHERS = "by an app with journal= this file, or by wsgi-isr replay, once the node is back"
#: Request headers that an app mostly reads because its answer depends on them, by lower-case name. An app reads cookies
#: and languages for other reasons as well, so these appear in ``debug`` lines alone.
_ANSWERED_BY = {"accept": "Accept", "hx-request": "HX-Request", "x-requested-with": "X-Requested-With"}


def log_events() -> Subscriber:
    """Return a subscriber that logs events without repetition.

    A refusal is logged once for each rule and reason. A page that sets cookies is logged once for each kind of pages.
    Trouble with the store is logged once a minute for each kind.
    """
    return _EventLog().log


class _EventLog:
    """The log of one app, with a memory of its lines."""

    def __init__(self) -> None:
        self._refused: set[tuple[str, str]] = set()
        self._setting_cookies: set[tuple[str, str]] = set()
        self._undeclared: set[str] = set()
        #: From a kind of trouble to the time of its next line.
        self._next: dict[str, float] = {}
        self._methods: dict[type, Callable[[Any], None]] = {
            Refused: self._log_refused,
            UndeclaredVary: self._log_undeclared,
            RenderFailed: self._log_render_failed,
            StoreFailed: self._log_store_failed,
            LeaseLost: self._log_lease_lost,
            Unreadable: self._log_unreadable,
            Invalidated: self._log_invalidated,
            Delivered: self._log_delivered,
            InternalError: self._log_internal_error,
            BackgroundFull: self._log_background_full,
            Switched: self._log_switched,
        }

    def log(self, event: Event) -> None:
        """Log an event, unless its line would be a repetition."""
        if (method := self._methods.get(type(event))) is not None:
            method(event)

    def _is_due(self, kind: str) -> bool:
        now = time.monotonic()
        if now < self._next.get(kind, now):
            return False
        if len(self._next) >= _MAX_KINDS:
            self._next.clear()
        self._next[kind] = now + _TROUBLE_EVERY
        return True

    def _log_refused(self, event: Refused) -> None:
        if event.reason == "set-cookie" and _is_blanket(event.rule):
            self._log_set_cookie(event)
        elif (event.rule, event.reason) not in self._refused:
            self._refused.add((event.rule, event.reason))
            _log.info("pages of the rule %r are not stored: %s", event.rule, event.reason)

    def _log_set_cookie(self, event: Refused) -> None:
        pattern = _pattern_of(event.text)
        if (event.rule, pattern) in self._setting_cookies or len(self._setting_cookies) == _MAX_PATTERNS:
            return
        self._setting_cookies.add((event.rule, pattern))
        _log.warning(
            "rule %r: %s sets a cookie for a visitor without cookies, so it is not cached, and the app may be "
            'called twice for a first visit; for one-time links write "%s": 0',
            event.rule,
            pattern,
            pattern,
        )

    def _log_undeclared(self, event: UndeclaredVary) -> None:
        names = [_ANSWERED_BY[header] for header in event.headers if header in _ANSWERED_BY]
        if not names or event.rule in self._undeclared:
            return
        self._undeclared.add(event.rule)
        _log.warning(
            "rule %r: to answer %s the app looks at %s, and neither its Vary nor the rule says so: every client "
            "gets the page of a client without such a header; write vary=%s in the rule, or Vary in the answer",
            event.rule,
            _pattern_of(event.text) if _is_blanket(event.rule) else event.rule,
            " and ".join(names),
            json.dumps(names),
        )

    def _log_render_failed(self, event: RenderFailed) -> None:
        _log.warning(
            "render failed: rule %r, page %s: %s; any last good page stays, next try in %.1f s",
            event.rule,
            event.key,
            event.reason,
            event.retry_in,
            exc_info=_traceback(event.cause),
        )

    def _log_store_failed(self, event: StoreFailed) -> None:
        if self._is_due(f"{event.verb}: {type(event.cause).__name__}"):
            _log.warning("the store failed and pages are served without it: %s", event.cause)

    def _log_lease_lost(self, event: LeaseLost) -> None:
        _log.warning("a render took longer than its lease was kept: %s", event.key)

    def _log_unreadable(self, event: Unreadable) -> None:
        # Another program or version may have written thousands.
        if self._is_due(f"unreadable: {event.reason}"):
            _log.warning("a stored value is unreadable (%s) and counts as missing: %s", event.reason, event.key)

    def _log_invalidated(self, event: Invalidated) -> None:
        for warning in event.warnings:
            if self._is_due(f"invalidation: {warning}"):
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

    def _log_delivered(self, event: Delivered) -> None:
        if event.tags:
            _log.info("delivered from the journal %s: %s", event.journal, listed(event.tags))
        if event.waiting and self._is_due(f"journal: {event.journal}"):
            number, shown = len(event.waiting), listed(event.waiting[:_MAX_NAMES])
            _log.warning("%d invalidations wait in %s for a node: %s", number, event.journal, shown)

    def _log_internal_error(self, event: InternalError) -> None:
        outcome = f"; {event.outcome}" if event.outcome else ""
        _log.error("internal error: %s failed%s", event.where, outcome, exc_info=_traceback(event.cause))

    def _log_switched(self, event: Switched) -> None:
        if event.mode == "on":
            _log.warning("the switch has ended: the cache is on")
            return
        # The record is text of another process, and must not make lines of its own.
        _log.warning(
            "the cache is switched off: mode %s, for %s, by %s, %s; wsgi-isr on ends it",
            event.mode,
            "everything" if event.rules is None else ascii(listed(event.rules)),
            ascii(event.actor),
            _time(event.until),
        )

    def _log_background_full(self, event: BackgroundFull) -> None:
        _log.debug("no room for a background render: %s", event.key)


def _is_blanket(rule: str) -> bool:
    """Return whether a rule covers several kinds of pages."""
    return rule == "*" or "<path:" in rule


def _pattern_of(text: str) -> str:
    """Return a pattern for pages like the page with this key.

    The last segment may be the secret of a link, so ``<token>`` replaces it.
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
    """Return the path of a client as text for a rule, and for one line of a log."""
    written = "".join(c if c.isprintable() and c not in '<>"\\' else quote(c) for c in path[:_MAX_PATH])
    # Characters from the patterns of other frameworks would make the rule invalid, so they are quoted.
    return written if spelling(written) == written else re.sub(r"[^\w/%~.-]", lambda c: quote(c[0], ""), written)


def _time(until: float | None) -> str:
    return "without an end" if until is None else time.strftime("until %Y-%m-%d %H:%M:%S UTC", time.gmtime(until))


def _traceback(error: BaseException | None) -> Any:
    return None if error is None else (type(error), error, error.__traceback__)
