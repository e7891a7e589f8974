"""``ISR``: incremental static regeneration around any WSGI app."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from . import engine
from .cache.context import RenderContext, within
from .cache.courier import courier
from .cache.entry import Content, Entry, HitForMiss
from .cache.invalidation import Receipt, tag_names
from .cache.journal import journal_for
from .cache.keyspace import path_tag
from .cache.task import Answer, Failed, Passed, Pending, Served
from .cache.verdict import CacheDirectives
from .config.development import Found, development_of, is_served_by
from .config.identity import name_of
from .config.origin import Site
from .config.settings import Config
from .config.wrapping import Wrapper, advise, caller, check_app, configured, site_of
from .data.cached import activate
from .engine import Engine, on_behalf_of
from .errors import ISRError, RefreshError
from .events import Events, InternalError, Subscriber
from .events import Served as ServedEvent
from .observe.debug import log_decisions
from .observe.log import log_events
from .pages.bots import is_crawler
from .pages.capture import produce_page
from .pages.compression import chosen
from .pages.draft import Visitor, answering
from .pages.listed_paths import Absent
from .pages.request_key import UNSAFE, shown_url
from .pages.resolver import Page, Pages
from .pages.respond import (
    ABSENT_HEADERS,
    NAME,
    NOT_FOUND,
    NOT_MODIFIED,
    SHELL_HEADERS,
    PreparedResponse,
    StreamingBody,
    Synthetic,
    cache_status,
    headers_of,
    own_files,
    pass_on,
    send_as_is,
    send_own,
    send_page,
    shell_of,
)
from .stores import open_store
from .stores.base import Store
from .stores.fork_hooks import look as look_for_fork
from .stores.null import NullStore

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication


instances: weakref.WeakSet[ISR] = weakref.WeakSet()
"""Every one of this process."""


class ISR(Wrapper):
    """Serve an app's pages from a shared cache and render stale ones in the background.

    ``app.wsgi_app = ISR(app.wsgi_app, revalidate=60)`` is all there is to it::

        ISR(app, {"/": 10, "/blog/<slug>": Rule(revalidate=3600, query=["page"])}, store="sqlite:///cache.db")

    :param app: any WSGI application (PEP 3333). Attributes that an ISR does not have are the app's (``isr.route``).
    :param rules: from werkzeug URL pattern to :class:`~wsgi_isr.Rule`, number of seconds, or mapping of
        options; the most specific pattern wins. ``revalidate=`` is the rule for everything not listed.
    :param import_name: name of the module or package that the app comes from; by default the one that calls.
    :param clock: Unix time in seconds; a fake one makes tests exact.
    :param monotonic: the same for durations.
    :param pause: waits that many seconds.
    :param options: see the option table in docs/reference/options.md; also from ``WSGI_ISR_*`` and ``WSGI_ISR_CONFIG``.
    :raises ConfigError: at once, for whatever is wrong with any of these.
    """

    def __init__(
        self,
        app: WSGIApplication,
        rules: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None,
        *,
        import_name: str | None = None,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] | None = None,
        pause: Callable[[float], None] | None = None,
        **options: Any,
    ) -> None:
        check_app(app)
        if import_name is None:  # in the app's own module, where the flask command looks for the app
            advise(app)
        self._configuration: Config = configured(app, rules, options, import_name or caller())
        settings = self.configuration.settings
        self._configured: Store = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
        self._events = Events(log_events())
        self._clock = clock or time.time
        # A fake clock alone is meant for both.
        self._monotonic = monotonic or clock
        self._pause = pause
        if settings.debug:
            self._events.subscribe(log_decisions())
        self._beginning: dict[int, threading.Lock] = {}
        self._is_serving = False
        self._name = name_of(app)
        #: Tells it from others, in every process that runs the same code; unless it is not :attr:`is_alone`.
        self._site = site_of(self.configuration, app)
        self._settle(self._look_for_development(app))
        self._app = app  # last: what is set after it, and is the app's, is set there
        instances.add(self)
        if self._journal is not None:
            courier.attend(self)

    @property
    def app(self) -> WSGIApplication:
        """Return the app that is wrapped."""
        return self._app

    @property
    def configuration(self) -> Config:
        """Return the options and rules that hold, from the constructor, the environment and the file."""
        return self._configuration

    @property
    def app_name(self) -> str:
        """Return the name of the app, as warnings and the records of the store have it: the same in each process and
        each release."""
        return self._name

    @property
    def is_serving(self) -> bool:
        """Return whether this process has answered a request for the app."""
        return self._is_serving

    def _look_for_development(self, app: Any, environ: Mapping[str, Any] | None = None) -> Found | None:
        if engine.stand_in is not None:
            return None
        return development_of(self.configuration.settings.development, app, environ)

    def _settle(self, development: Found | None) -> None:
        """Use the configured store, or what tests have put in its place; none where the app is being developed."""
        given = self.configuration.settings
        self._live: Engine | None = None
        #: What tells that the app is being developed, so that nothing is cached.
        self._development = development
        if development is not None and development.serves:
            development.announce()
        if (stand_in := engine.stand_in) is not None:
            self._store: Store = stand_in.store_of(given.store)
        else:
            self._store = NullStore() if development is not None else self._configured
        is_own = self._store is self._configured
        self._journal = journal_for(given.journal, self._store, self.configuration.folder) if is_own else None
        off = "development" if development is not None else "store-disabled"
        self._pages = Pages(self.configuration, self._store, self._events, self._monotonic, off)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        live = self._live or self._begin(environ)
        probe = _probe(environ)
        # The hot path: what a plain request led to a moment ago, prepared. It may be less pretty, because
        # the benchmark "hotpath" shows that matching, keys and headers would cost twenty times as much.
        slot = live.local.probes.get(probe)
        if slot is not None and (answer := slot.ready) is not None:
            now = live.monotonic()
            if now < answer.until or (now < answer.over and live.still_valid(slot, answer)):
                accepted = environ.get("HTTP_ACCEPT_ENCODING")
                headers, body, etag, unchanged = answer.variants.get(accepted) or answer.variant(accepted)
                condition = environ.get("HTTP_IF_NONE_MATCH")
                if condition is None:
                    start_response(answer.status, headers.copy())
                    return [body]
                if condition == etag:  # as browsers send it; other forms are read below
                    start_response(NOT_MODIFIED, unchanged.copy())
                    return []

        if not live.is_here:
            live = self._begin(environ)
        if live.keeps and is_served_by(environ):
            live = self._begin(environ, again=True)
        began, draft = live.monotonic(), False
        self._is_serving = True
        try:
            with activate(live):
                if live.writes.wrote(environ):
                    live.stamps.ask()
                draft = live.drafts.holds(environ)
                page = self._pages.match(environ, live.stamps.epochs, draft)
                found = self._find(environ, live, page) if isinstance(page, Page) else page
        except Exception as error:
            # The cache's own trouble costs speed, never an error. (What the app raises is an outcome.)
            self._events.emit(InternalError("the cache", error, "the app answers the request itself"))
            page = found = Passed("internal-error", draft=draft)
        if isinstance(found, Failed) and isinstance(page, Page) and page.personal:
            # It failed for somebody without cookies. That says nothing about who has some.
            found = Passed("cookie")
        self._note(environ, page, found, live.monotonic() - began)
        if isinstance(found, Served) and isinstance(page, Page):
            return self._serve(environ, start_response, live, page, probe, found)
        if isinstance(found, Passed):
            return self._pass_on(environ, start_response, found)
        if isinstance(found, Failed):
            return self._fail(environ, start_response, found)
        if isinstance(found, Absent):
            return send_own(environ, start_response, NOT_FOUND, ABSENT_HEADERS)
        assert isinstance(found, Synthetic)
        return send_own(environ, start_response, found, SHELL_HEADERS)

    def _find(self, environ: dict[str, Any], live: Engine, page: Page) -> Answer | Synthetic:
        """The page for this visitor, made first if need be, or what there is to see until it is."""
        policy = page.policy
        if policy.has_shell and not is_crawler(environ.get("HTTP_USER_AGENT", "")):
            found = live.fill.get(page.task, page.may_serve, waits=False)
            if not isinstance(found, Pending):
                return found
            try:
                return shell_of(policy.fallback, environ)
            except Exception as error:
                outcome = "the visitor waits for the page"
                self._events.emit(InternalError(f"rule {policy.name!r}: fallback", error, outcome))
        with nullcontext() if page.personal else on_behalf_of(self._pages.without_ignored_cookies(page, environ)):
            found = live.fill.get(page.task, page.may_serve)
        if isinstance(found, Served):
            content = found.slot.entry.content
            if isinstance(content, Content) and content.status.startswith("2"):
                self._pages.sites.served(page.key.host)
                if live.presence is not None:
                    live.presence.served(page.site)
                if found.stored:
                    self._pages.sites.tell(page.site)
        return found

    # What a visitor gets -----------------------------------------------------------------------------

    def _serve(
        self,
        environ: dict[str, Any],
        start_response: StartResponse,
        live: Engine,
        page: Page,
        probe: tuple[Any, ...],
        found: Served,
    ) -> Iterable[bytes]:
        entry, now = found.slot.entry, self._clock()
        content = entry.content
        assert isinstance(content, Content)
        is_plain = page.policy.by_url_alone and probe[_PLAIN:] == _PLAIN_VALUES and probe[_HOST]
        is_plain = is_plain and not self.configuration.settings.debug
        if found.label == "HIT" and is_plain and page.is_spelled(probe[_QUERY]):
            # A condition that does not match comes here beside a prepared answer, which stays for the others.
            monotonic, ready = live.monotonic(), found.slot.ready
            if ready is None or monotonic >= ready.over:
                found.slot.ready = PreparedResponse(entry, content, now, monotonic)
            live.local.lead(probe, page.task.page, found.slot)
        if "HTTP_RANGE" not in environ:  # parts are those of the page as it is
            content = chosen(content, environ.get("HTTP_ACCEPT_ENCODING", ""))
        status = cache_status(found, now)
        return send_page(environ, start_response, content, headers_of(entry, content, found.label, status, now))

    def _pass_on(self, environ: dict[str, Any], start_response: StartResponse, found: Passed) -> Iterable[bytes]:
        label = "MISS" if found.missed else "BYPASS"
        status = f'{NAME}; fwd={"uri-miss" if found.missed else "bypass"}; detail="{found.reason}"'
        if found.personal is not None:
            return send_as_is(environ, start_response, found.personal.content, status, label)
        if found.draft:
            frame = RenderContext(CacheDirectives(), self.configuration.rules.profiles, stored=False, draft=True)
            app = self._app_here(environ, frame)
            return pass_on(
                app, environ, start_response, status, label, self._after_write(environ, found.written), private=True
            )
        # For want of a page, what the app makes is shown as new, so nothing stale goes into it.
        app = self._app_here(
            environ, RenderContext(CacheDirectives(), self.configuration.rules.profiles) if found.missed else None
        )
        return pass_on(app, environ, start_response, status, label, self._after_write(environ, found.written))

    def _after_write(self, environ: dict[str, Any], written: str | None) -> Callable[[], list[tuple[str, str]]] | None:
        """What follows the success of an unsafe request, before its visitor hears of it: the page at its URL is
        invalidated (RFC 9111, 4.4), and this visitor sees the effect with the next request."""
        if environ["REQUEST_METHOD"] not in UNSAFE:
            return None

        def after_write() -> list[tuple[str, str]]:
            live = self._engine
            if written is not None:
                try:
                    live.invalidator.invalidate([written])
                except Exception as error:
                    # The write has happened and must be answered; the journal, if any, has the rest.
                    outcome = "the write is answered, and the cached page may be the one from before it"
                    self._events.emit(InternalError(f"invalidating {written!r} after a write", error, outcome))
            return live.writes.cookie(environ)

        return after_write

    def _fail(self, environ: dict[str, Any], start_response: StartResponse, found: Failed) -> Iterable[bytes]:
        """Nothing to serve, and the render failed: what the app had to say of it."""
        if isinstance(found.content, Content):
            status = f'{NAME}; fwd=uri-miss; detail="{found.reason}"'
            return send_as_is(environ, start_response, found.content, status, "MISS")
        if found.error is not None:
            raise found.error
        return self._pass_on(environ, start_response, Passed(found.reason, missed=True))

    def _app_here(self, environ: dict[str, Any], frame: RenderContext | None) -> WSGIApplication:
        """Return the app, for one request. What it caches while it answers belongs to this ISR, and goes into
        ``frame``, and so does what it caches while a lazy body is made."""
        live = self._engine
        draft = frame is not None and frame.draft
        # Behind a proxy that ends TLS, only the canonical URL knows of it.
        scheme = (self.configuration.settings.canonical_url or environ.get("wsgi.url_scheme", "")).partition(":")[0]
        visitor = Visitor(live.drafts, draft, secure=scheme == "https")
        sites = self._pages.sites
        site = sites.of(environ)

        @contextmanager
        def enter() -> Iterator[None]:
            around = within(frame) if frame is not None else nullcontext()
            with activate(live), answering(visitor), sites.answering(site), around:
                yield

        def call(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            files = own_files(environ)
            with enter():
                body = self.app(environ, start_response)
            return body if isinstance(body, (list, tuple)) or body in files else StreamingBody(body, enter)

        return call

    def _note(self, environ: dict[str, Any], page: Any, found: Any, seconds: float) -> None:
        """Say what this request came to."""
        text = page.task.text if isinstance(page, Page) else shown_url(environ)
        name = page.task.page if isinstance(page, Page) else ""
        label, age, reason, lock = "MISS", 0.0, "", "none"
        if isinstance(found, Served):
            label, age = found.label, found.slot.entry.age(self._clock())
            lock = "held" if found.stored else "waited" if found.collapsed else "none"
        elif isinstance(found, Passed):
            label, reason = "MISS" if found.missed else "BYPASS", found.reason
        elif isinstance(found, Absent):
            label, reason = "HIT", "not-listed"
        else:
            reason = found.reason if isinstance(found, Failed) else "shell"
        self._events.emit(ServedEvent(name, label, age, reason, text, lock, seconds))

    # On demand -----------------------------------------------------------------------------------------

    def refresh(self, path: str, *, only_if_cached: bool = False, site: Site | None = None) -> bool:
        """Render the page at a public path now and store it, with everything that is read from now on: a render that
        began earlier does not do for it. Variants of the page (by query, host or cookie) become stale.

        :param only_if_cached: do nothing for a page that nobody asked for yet.
        :param site: of this one only; by default of every one that is known here, that of the request which is being
            answered first. Where clients can invent hosts, of four at most; the pages of the others become stale.
        :returns: whether the page has changed.
        :raises RefreshError: the render failed or took too long, or the page is not for the cache; the last good page
            stays.
        :raises InvalidationError: other processes could not be told.
        :raises StoreError: the store cannot be asked.
        :raises ConfigError: ``path`` is no path.
        """
        live = self._engine
        if not live.keeps:
            return False
        pages = self._pages.everywhere(path, site)
        calls: list[Callable[[], bool]] = []
        for page in pages:
            if len(calls) < self._pages.sites.most_refreshed and (entry := self._kept(page)) is not None:
                # The first marks all variants of the page as stale, those of the other sites included.
                calls.append(functools.partial(self._refresh, path, page, entry, marks=not calls))
        if not calls and not only_if_cached:
            # Nobody has asked for it yet.
            calls.append(functools.partial(self._refresh, path, pages[0], None))
        return any_of(calls)

    def _has(self, path: str) -> bool:
        """Whether a page is kept at a public path, for any site.

        :raises StoreError: the store cannot be asked.
        """
        try:
            return any(self._kept(page) is not None for page in self._pages.everywhere(path))
        except RefreshError:
            return False

    def _kept(self, page: Page) -> Entry | None:
        entry = self._engine.fill.kept(page.task)
        return entry if entry is not None and isinstance(entry.content, Content) else None

    def _refresh(self, path: str, page: Page, before: Entry | None, marks: bool = True) -> bool:
        tag = path_tag(page.path) if marks else ""
        outcome = self._engine.fill.refresh(page.task, tag)
        if isinstance(outcome, Failed):
            raise RefreshError(path, outcome.reason) from outcome.error
        content = outcome.slot.entry.content
        if not isinstance(content, Content):
            raise RefreshError(path, content.reason if isinstance(content, HitForMiss) else "unreadable")
        old = before.content if before is not None else None
        # An app may give one entity tag to different bytes.
        new = (content.status, content.etag, content.body)
        return not isinstance(old, Content) or (old.status, old.etag, old.body) != new

    # A process and its end -----------------------------------------------------------------------------

    @property
    def _engine(self) -> Engine:
        """Return the engine of this process."""
        return self._begin()

    def _begin(self, environ: Mapping[str, Any] | None = None, again: bool = False) -> Engine:
        """What a process has of its own; made by its first request, after every fork and every patch.

        :param environ: of that request, whose server may be one for development.
        :param again: whether that was not known when it was made.
        """
        live = self._live
        if live is not None and live.is_here and not again:
            return live
        # The lock is made here, where gevent has patched the process. One from before the patch would stop all
        # greenlets, once one of them yields while it holds the lock.
        with self._beginning.setdefault(os.getpid(), threading.Lock()):
            look_for_fork()
            if self._live is not None and not self._live.is_here:
                self._forget_parent()
            known = self._development
            if (self._live is None or again) and (known is None or not known.is_meant):
                development = self._look_for_development(self.app, environ)
                if development != known:
                    self._settle(development)
            if self._development is not None and environ is not None:
                self._development.announce()
            live, is_new = self._live, False
            if live is None:
                live = self._live = Engine(
                    self.configuration,
                    self._store,
                    self._events,
                    produce_page(
                        lambda *request: self.app(*request),
                        self.configuration.rules,
                        self._events.emit,
                        self._events.emit,
                        self._clock,
                    ),
                    app=self.app,
                    clock=self._clock,
                    monotonic=self._monotonic,
                    pause=self._pause,
                    site=self._site if self._renders_elsewhere else None,
                    is_alone=lambda: self._is_alone,
                    journal=self._journal,
                    name=self.app_name,
                    is_serving=lambda: self._is_serving,
                    inline=engine.stand_in is not None,
                )
                is_new = True
        if is_new and self._journal is not None:
            courier.attend(self)  # outside of the lock: starting a thread yields under gevent
        return live

    def invalidate(
        self,
        tags: Iterable[str] = (),
        paths: Iterable[str] = (),
        routes: Iterable[str] = (),
        prefixes: Iterable[str] = (),
        everything: bool = False,
        mode: str = "expire",
    ) -> Receipt:
        """:func:`wsgi_isr.invalidate` for the pages of this app."""
        names = tag_names(tags, paths, routes, prefixes, everything, set(self.configuration.rules.policies))
        return self._engine.invalidator.invalidate(names, mode)

    def replay(self) -> tuple[str, ...]:
        """Deliver what the journal has kept.

        :raises InvalidationError: some could not be delivered.
        """
        return self._engine.invalidator.replay()

    @property
    def _has_journal(self) -> bool:
        """Whether a file keeps what cannot be delivered."""
        return self._journal is not None

    def deliver_kept(self) -> bool:
        """Deliver what the journal has kept, in the background; return whether anything is left."""
        if self._journal is None or self._journal.is_empty():
            return False
        return self._engine.invalidator.deliver_kept()

    @property
    def _renders_elsewhere(self) -> bool:
        """Whether pages may be rendered in other processes: they have to find them in the store."""
        return self.configuration.settings.background == "auto" and self._store.keeps and self._store.shared

    @property
    def _is_alone(self) -> bool:
        """Whether no other :class:`ISR` of this process has the same ``_site``."""
        return not any(other._site == self._site for other in list(instances) if other is not self)

    def _is_at(self, home: object) -> bool:
        """Whether data that is kept at ``home`` is this app's."""
        return self._live is not None and self._live is home

    def _begin_with_stand_in(self) -> Callable[[], None]:
        """Begin with what tests have put in the place of the store, or with the store itself where there is nothing.

        :returns: a function that puts back what there was before.
        """
        before = self._store, self._journal, self._pages, self._live, self._development
        self._settle(self._look_for_development(self.app))

        def restore() -> None:
            if self._live is not None:
                self._live.close()
            self._store, self._journal, self._pages, self._live, self._development = before

        return restore

    def _reset_after_fork(self) -> None:
        """After a fork: threads, flights and locks of the parent do not exist here, and L1 begins empty."""
        self._beginning = {}
        self._forget_parent()

    def _forget_parent(self) -> None:
        self._pages.reset_after_fork()
        self._live = None
        self._is_serving = False

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call ``subscriber`` with every event (:mod:`wsgi_isr.events`) of this process."""
        self._events.subscribe(subscriber)

    def close(self, timeout: float | None = None) -> bool:
        """Drain the background and let go of the store; a later request begins anew.

        :param timeout: seconds; the ``drain_timeout`` option by default.
        :returns: whether everything that ran came to its end in time.
        """
        if self._journal is not None:
            courier.dismiss(self, self.configuration.settings.drain_timeout if timeout is None else timeout)
        live, self._live = self._live, None
        drained = True
        if live is not None:
            drained = live.close(timeout)
        self._store.close()
        return drained


def any_of(calls: Iterable[Callable[[], bool]]) -> bool:
    """Whether any of several refreshes has changed something. Each is made, whatever becomes of those before it. The
    first is the one that counts: its error is raised, that of another only if all fail."""
    done: list[bool | ISRError] = []
    for call in calls:
        try:
            done.append(call())
        except ISRError as error:
            done.append(error)
    if done and isinstance(done[0], ISRError):
        raise done[0]
    return any(changed is True for changed in done)


# The request as the hot path sees it: the URL, then what a plain request must have, or not have.
_QUERY, _HOST = 1, 2
_PLAIN = 5
_PLAIN_VALUES = ("GET", *(None,) * 7)


def _probe(environ: dict[str, Any]) -> tuple[Any, ...]:
    get = environ.get
    return (
        get("PATH_INFO"),
        get("QUERY_STRING"),
        get("HTTP_HOST"),
        get("SCRIPT_NAME"),
        get("wsgi.url_scheme"),
        environ["REQUEST_METHOD"],
        get("HTTP_COOKIE"),
        get("HTTP_AUTHORIZATION"),
        get("HTTP_IF_MODIFIED_SINCE"),
        get("HTTP_RANGE"),
        get("HTTP_UPGRADE"),
        get("REMOTE_USER"),
        get("AUTH_TYPE"),
    )
