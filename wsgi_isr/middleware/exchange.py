"""One request on its way through the cache: match, look up, note, send.

The steps stand in the order in which :meth:`Exchange.respond` takes them. Hits of plain requests do not come here:
:meth:`wsgi_isr.ISR.__call__` sends them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cache.entry import Content, Entry
from ..cache.switch import PASS, SWITCHED_OFF
from ..cache.task import Answer, Failed, Passed, Pending, Served
from ..config.settings import Config
from ..data.active_engine import activate
from ..engine import Engine, on_behalf_of
from ..events import Events, InternalError
from ..events import Served as ServedEvent
from ..observe.counts import Counts
from ..pages.bots import is_crawler
from ..pages.compression import chosen
from ..pages.fingerprint import Fingerprint
from ..pages.listed_paths import Absent
from ..pages.request_key import shown_url
from ..pages.resolver import Page, Pages
from ..pages.respond import (
    ABSENT_HEADERS,
    NOT_FOUND,
    SHELL_HEADERS,
    Headers,
    PreparedResponse,
    Synthetic,
    app_headers,
    cache_status,
    headers_of,
    send_as_is,
    send_own,
    send_page,
    shell_of,
)
from .edge import refusing
from .pass_through import PassThrough

if sys.version_info >= (3, 11):
    from typing import assert_never
else:  # pragma: no cover
    from typing_extensions import assert_never

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

    from ..cdn.headers import EdgeHeaders

Found = Served | Passed | Failed | Absent | Synthetic
"""The verdict on a request, which decides who answers."""


class Backing(NamedTuple):
    """The parts of one app that all its requests share."""

    app: WSGIApplication
    configuration: Config
    pages: Pages
    events: Events
    clock: Callable[[], float]
    counts: Counts


class Exchange:
    """One request and its answer.

    :param engine: the engine of this process.
    :param fingerprint: that of ``environ``.
    """

    def __init__(
        self,
        backing: Backing,
        engine: Engine,
        environ: dict[str, Any],
        start_response: StartResponse,
        fingerprint: Fingerprint,
    ) -> None:
        self._app, self._configuration, self._pages, self._events, self._clock, self._counts = backing
        self._engine = engine
        self._environ = environ
        self._start_response = start_response
        self._fingerprint = fingerprint
        self._page: Page | None = None

    def respond(self) -> Iterable[bytes]:
        """Answer the request."""
        began = self._engine.monotonic()
        found = self._find()
        self._note(found, self._engine.monotonic() - began)
        return self._send(found)

    # Match and look up ---------------------------------------------------------------------------------

    def _find(self) -> Found:
        """Return the verdict.

        An error of the cache costs speed and never fails a request. (An exception of the app is an outcome.)
        """
        draft = False
        try:
            with activate(self._engine):
                if self._engine.writes.wrote(self._environ):
                    self._engine.tag_versions.ask()
                draft = self._engine.drafts.holds(self._environ)
                matched = self._pages.match(self._environ, self._fingerprint, self._engine.tag_versions.epochs, draft)
                if isinstance(matched, Absent) and self._is_off(matched.rule):
                    return Passed(SWITCHED_OFF, draft=draft)
                if not isinstance(matched, Page):
                    return matched
                self._page = matched
                found = self._look_up(matched)
        except Exception as error:
            self._page = None
            self._events.emit(InternalError("the cache", error, "the app answers the request itself"))
            return Passed("internal-error", draft=draft)
        if isinstance(found, Failed) and matched.personal:
            # This render was anonymous. Its failure says nothing about requests with cookies, so the app answers.
            return Passed("cookie")
        return found

    def _is_off(self, rule: str) -> bool:
        tag_versions = self._engine.tag_versions
        if not tag_versions.switch.is_off_here:
            tag_versions.epochs()
        return tag_versions.switch.mode_for(rule) == PASS

    def _look_up(self, page: Page) -> Found:
        """Return the page for this client, rendered first if necessary, or the shell that is shown until then."""
        cache = self._engine.cache
        if page.policy.has_shell and not is_crawler(self._environ.get("HTTP_USER_AGENT", "")):
            answer = cache.get(page.task, page.may_serve, may_wait=False)
            if not isinstance(answer, Pending):
                return answer
            if (shell := self._shell(page)) is not None:
                return shell
        plain = self._pages.without_ignored_cookies(page, self._environ)
        with nullcontext() if page.personal else on_behalf_of(plain):
            answer = cache.get(page.task, page.may_serve)
        self._note_site(page, answer)
        assert not isinstance(answer, Pending)  # a client that waits gets an answer
        return answer

    def _shell(self, page: Page) -> Synthetic | None:
        """Return the shell of the rule; ``None`` where its function fails, so that the visitor waits for the page."""
        try:
            return shell_of(page.policy.fallback, self._environ)
        except Exception as error:
            outcome = "the visitor waits for the page"
            self._events.emit(InternalError(f"rule {page.policy.name!r}: fallback", error, outcome))
            return None

    def _note_site(self, page: Page, answer: Answer) -> None:
        """Note the site of a page that exists, so that a refresh renders the page for it."""
        if not isinstance(answer, Served):
            return
        content = answer.cached.entry.content
        if isinstance(content, Content) and content.status.startswith("2"):
            self._pages.sites.served(page.key.host)
            if self._engine.presence is not None:
                self._engine.presence.served(page.site)
            if answer.stored:
                self._pages.sites.record(page.site)

    # Note ----------------------------------------------------------------------------------------------

    def _note(self, found: Found, seconds: float) -> None:
        """Emit the verdict as an event."""
        page = self._page
        text = page.task.text if page is not None else shown_url(self._environ)
        name = page.task.page if page is not None else ""
        rule = page.task.rule if page is not None else ""
        label, age, reason, lock, cause, overdue = "MISS", 0.0, "", "none", "", 0.0
        if isinstance(found, Served):
            entry = found.cached.entry
            label, age, reason, cause = found.label, entry.age(self._clock()), found.detail, found.cause
            overdue = 0.0 if entry.revalidate is None else max(0.0, age - entry.revalidate)
            lock = "held" if found.stored else "waited" if found.collapsed else "none"
        elif isinstance(found, Passed):
            label, reason = "MISS" if found.missed else "BYPASS", found.reason
        elif isinstance(found, Absent):
            label, reason = "HIT", "not-listed"
        else:
            reason = found.reason if isinstance(found, Failed) else "shell"
        self._events.emit(ServedEvent(name, label, age, reason, text, lock, seconds, rule, cause, overdue))

    # Send ----------------------------------------------------------------------------------------------

    def _send(self, found: Found) -> Iterable[bytes]:
        if isinstance(found, Served):
            return self._send_page(found)
        if self._engine.edge is not None and not (isinstance(found, Passed) and found.reason == "no-rule"):
            # The answer may be for this client alone, and the app may have told shared caches to keep it.
            self._start_response = refusing(self._start_response, self._engine.edge)
        if isinstance(found, Passed):
            return self._pass_through(found)
        if isinstance(found, Failed):
            return self._fail(found)
        if isinstance(found, Absent):
            return send_own(self._environ, self._start_response, NOT_FOUND, ABSENT_HEADERS)
        if isinstance(found, Synthetic):
            return send_own(self._environ, self._start_response, found, SHELL_HEADERS)
        assert_never(found)

    def _send_page(self, found: Served) -> Iterable[bytes]:
        entry, now = found.cached.entry, self._clock()
        content = entry.content
        assert isinstance(content, Content)
        if found.label == "HIT":
            self._prepare(found, content, now)
        if "HTTP_RANGE" not in self._environ:  # Ranges count bytes of the uncompressed page.
            content = chosen(content, self._environ.get("HTTP_ACCEPT_ENCODING", ""))
        headers = headers_of(entry, content, found.label, cache_status(found, now), now)
        if (edge := self._engine.edge) is not None:
            is_current = found.label == "HIT" or (found.stored and self._engine.is_quiet(entry))
            may_keep = is_current and not edge.is_forwarded(self._environ)
            headers = self._for_edge(edge, entry)(headers, now) if may_keep else edge.refuse(headers)
        return send_page(self._environ, self._start_response, content, headers)

    def _prepare(self, found: Served, content: Content, now: float) -> None:
        """Prepare the response for the next plain requests with this fingerprint."""
        page, cached = self._page, found.cached
        is_each_seen = self._configuration.settings.debug or self._events.each_request
        if page is None or is_each_seen or not page.is_plain(self._fingerprint):
            return
        if self._engine.edge is not None and self._engine.edge.is_forwarded(self._environ):
            return
        # A condition that does not match comes here although a response is prepared. Keep that response.
        prepared: PreparedResponse | None = cached.prepared  # read once: an invalidation drops it
        monotonic, switch = self._engine.monotonic(), self._engine.tag_versions.switch.active
        if switch is not None and switch.mode_for(page.task.rule, False, now) == PASS:
            return  # Race: the switch was read after this look-up.
        if prepared is None or monotonic >= prepared.over or prepared.switch is not switch:
            edge = self._engine.edge
            finish = self._for_edge(edge, cached.entry) if edge is not None else None
            hits = self._counts.hits_of(page.task.rule)
            prepared = PreparedResponse(cached.entry, content, now, monotonic, finish=finish, switch=switch, hits=hits)
            cached.prepared = prepared
        self._engine.local.add_alias(self._fingerprint, page.task.page, cached)
        self._pages.remember(self._fingerprint, page)

    def _for_edge(self, edge: EdgeHeaders, entry: Entry) -> Callable[[Headers, float], Headers]:
        """Return a function that adds the fields for the CDN to the headers of a page that is current."""
        assert self._page is not None  # a page is served
        policy, key = self._page.policy, self._page.key
        has_query = bool(key.query)
        return functools.partial(edge.of_page, entry=entry, policy=policy, scheme=key.scheme, has_query=has_query)

    def _pass_through(self, found: Passed) -> Iterable[bytes]:
        if found.personal is not None:
            headers = app_headers(found.reason, found.missed)
            return send_as_is(self._environ, self._start_response, found.personal.content, headers)
        canonical_url = self._configuration.settings.canonical_url or ""
        through = PassThrough(self._app, self._engine, self._pages, canonical_url, found)
        return through.send(self._environ, self._start_response)

    def _fail(self, found: Failed) -> Iterable[bytes]:
        """Answer for a failed render without a stale page.

        The answer is the app's error response, or the app's exception is raised.
        """
        if isinstance(found.content, Content):
            headers = app_headers(found.reason, missed=True)
            return send_as_is(self._environ, self._start_response, found.content, headers)
        if found.error is not None:
            raise found.error
        return self._pass_through(Passed(found.reason, missed=True))
