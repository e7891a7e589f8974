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
from .config.identity import caller, name_of
from .config.origin import Site
from .config.settings import Config
from .config.wrapping import Wrapper, advise, check_app, configured, site_of
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
"""Every :class:`ISR` of this process."""


class ISR(Wrapper):
    """Serve an app's pages from a shared cache and render stale ones in the background.

    ``app.wsgi_app = ISR(app.wsgi_app, revalidate=60)`` is all there is to it::

        ISR(app, {"/": 10, "/blog/<slug>": Rule(revalidate=3600, query=["page"])}, store="sqlite:///cache.db")

    :param app: any WSGI application (PEP 3333). Attributes that an ISR does not have are the app's (``isr.route``).
    :param rules: from werkzeug URL pattern to :class:`~wsgi_isr.Rule`, number of seconds, or mapping of options. The
        most specific pattern wins. ``revalidate=`` is the rule for everything not listed.
    :param import_name: the module or package that the app comes from; by default the calling one.
    :param clock: Unix time in seconds; a fake clock makes tests exact.
    :param monotonic: monotonic time in seconds, for durations; by default ``clock``, if that is given.
    :param pause: waits that many seconds.
    :param options: see the option table in docs/reference/options.md; also from ``WSGI_ISR_*`` and
        ``WSGI_ISR_CONFIG``.
    :raises ConfigError: an argument, option or rule is wrong. It is raised at once.
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
        if import_name is None:  # The flask command looks for the app in the app's own module.
            advise(app)
        self._configuration: Config = configured(app, rules, options, import_name or caller())
        settings = self.configuration.settings
        self._configured: Store = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
        self._events = Events(log_events())
        self._clock = clock or time.time
        # A fake clock alone replaces both clocks.
        self._monotonic = monotonic or clock
        self._pause = pause
        if settings.debug:
            self._events.subscribe(log_decisions())
        self._beginning: dict[int, threading.Lock] = {}
        self._is_serving = False
        self._name = name_of(app)
        #: The digest of this app, the same in every process that runs the same code. It is unique if :attr:`is_alone`.
        self._site = site_of(self.configuration, app)
        self._settle(self._look_for_development(app))
        self._app = app  # Last: attributes set from here on go to the app, unless the ISR has them.
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
        """Return the name of the app for warnings and the records of the store.

        The name is the same in each process and each release.
        """
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
        """Use the configured store, the store that tests put in its place, or no store during development."""
        given = self.configuration.settings
        self._live: Engine | None = None
        #: The sign that the app is being developed, which turns caching off.
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
        fingerprint = fingerprint_of(environ)
        # The hot path: send the response that was prepared for a plain request. Its code is inlined because the
        # benchmark "hotpath" shows that matching, keys and headers would take twenty times as long.
        cached = live.local.fingerprints.get(fingerprint)
        if cached is not None and (answer := cached.prepared) is not None:
            now = live.monotonic()
            if now < answer.until or (now < answer.over and live.still_valid(cached, answer)):
                accepted = environ.get("HTTP_ACCEPT_ENCODING")
                headers, body, etag, unchanged = answer.variants.get(accepted) or answer.variant(accepted)
                condition = environ.get("HTTP_IF_NONE_MATCH")
                if condition is None:
                    start_response(answer.status, headers.copy())
                    return [body]
                if condition == etag:  # The form that browsers send; the code below reads other forms.
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
                    live.tag_versions.ask()
                draft = live.drafts.holds(environ)
                page = self._pages.match(environ, live.tag_versions.epochs, draft)
                found = self._find(environ, live, page) if isinstance(page, Page) else page
        except Exception as error:
            # An error of the cache costs speed and never fails a request. (An exception of the app is an outcome.)
            self._events.emit(InternalError("the cache", error, "the app answers the request itself"))
            page = found = Passed("internal-error", draft=draft)
        if isinstance(found, Failed) and isinstance(page, Page) and page.personal:
            # This render was anonymous. Its failure says nothing about requests with cookies, so the app answers.
            found = Passed("cookie")
        self._note(environ, page, found, live.monotonic() - began)
        if isinstance(found, Served) and isinstance(page, Page):
            return self._serve(environ, start_response, live, page, fingerprint, found)
        if isinstance(found, Passed):
            return self._pass_on(environ, start_response, found)
        if isinstance(found, Failed):
            return self._fail(environ, start_response, found)
        if isinstance(found, Absent):
            return send_own(environ, start_response, NOT_FOUND, ABSENT_HEADERS)
        assert isinstance(found, Synthetic)
        return send_own(environ, start_response, found, SHELL_HEADERS)

    def _find(self, environ: dict[str, Any], live: Engine, page: Page) -> Answer | Synthetic:
        """Return the page for this client, rendered first if necessary, or the shell that is shown until then."""
        policy = page.policy
        if policy.has_shell and not is_crawler(environ.get("HTTP_USER_AGENT", "")):
            found = live.cache.get(page.task, page.may_serve, may_wait=False)
            if not isinstance(found, Pending):
                return found
            try:
                return shell_of(policy.fallback, environ)
            except Exception as error:
                outcome = "the visitor waits for the page"
                self._events.emit(InternalError(f"rule {policy.name!r}: fallback", error, outcome))
        with nullcontext() if page.personal else on_behalf_of(self._pages.without_ignored_cookies(page, environ)):
            found = live.cache.get(page.task, page.may_serve)
        if isinstance(found, Served):
            content = found.cached.entry.content
            if isinstance(content, Content) and content.status.startswith("2"):
                self._pages.sites.served(page.key.host)
                if live.presence is not None:
                    live.presence.served(page.site)
                if found.stored:
                    self._pages.sites.tell(page.site)
        return found

    # Responses -----------------------------------------------------------------------------------------

    def _serve(
        self,
        environ: dict[str, Any],
        start_response: StartResponse,
        live: Engine,
        page: Page,
        fingerprint: tuple[Any, ...],
        found: Served,
    ) -> Iterable[bytes]:
        entry, now = found.cached.entry, self._clock()
        content = entry.content
        assert isinstance(content, Content)
        is_plain = page.policy.by_url_alone and fingerprint[_PLAIN:] == _PLAIN_VALUES and fingerprint[_HOST]
        is_plain = is_plain and not self.configuration.settings.debug
        if found.label == "HIT" and is_plain and page.is_spelled(fingerprint[_QUERY]):
            # A condition that does not match comes here although a response is prepared. Keep that response.
            monotonic, prepared = live.monotonic(), found.cached.prepared
            if prepared is None or monotonic >= prepared.over:
                found.cached.prepared = PreparedResponse(entry, content, now, monotonic)
            live.local.add_alias(fingerprint, page.task.page, found.cached)
        if "HTTP_RANGE" not in environ:  # Ranges count bytes of the uncompressed page.
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
        # No page could be stored, so the app's answer is shown as a new page. Stale data must not go into it.
        app = self._app_here(
            environ, RenderContext(CacheDirectives(), self.configuration.rules.profiles) if found.missed else None
        )
        return pass_on(app, environ, start_response, status, label, self._after_write(environ, found.written))

    def _after_write(self, environ: dict[str, Any], written: str | None) -> Callable[[], list[tuple[str, str]]] | None:
        """Return a callback for the success of an unsafe request; ``None`` for a safe request.

        The callback runs before the client gets the response. It invalidates the page at the URL (RFC 9111, 4.4) and
        returns the cookie that lets this client read its own write.
        """
        if environ["REQUEST_METHOD"] not in UNSAFE:
            return None

        def after_write() -> list[tuple[str, str]]:
            live = self._engine
            if written is not None:
                try:
                    live.invalidator.invalidate([written])
                except Exception as error:
                    # The write has happened and must be answered. The journal, if there is one, keeps the undelivered
                    # tags.
                    outcome = "the write is answered, and the cached page may be the one from before it"
                    self._events.emit(InternalError(f"invalidating {written!r} after a write", error, outcome))
            return live.writes.cookie(environ)

        return after_write

    def _fail(self, environ: dict[str, Any], start_response: StartResponse, found: Failed) -> Iterable[bytes]:
        """Answer for a failed render without a stale page.

        The answer is the app's error response, or the app's exception is raised.
        """
        if isinstance(found.content, Content):
            status = f'{NAME}; fwd=uri-miss; detail="{found.reason}"'
            return send_as_is(environ, start_response, found.content, status, "MISS")
        if found.error is not None:
            raise found.error
        return self._pass_on(environ, start_response, Passed(found.reason, missed=True))

    def _app_here(self, environ: dict[str, Any], frame: RenderContext | None) -> WSGIApplication:
        """Return the app, for one request, with this ISR as the place of its cached data.

        Data that the app uses while it answers goes into ``frame``. So does data used while a lazy body is produced.
        """
        live = self._engine
        draft = frame is not None and frame.draft
        # Behind a proxy that ends TLS, only the canonical URL tells the scheme.
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
        """Emit the outcome of this request as an event."""
        text = page.task.text if isinstance(page, Page) else shown_url(environ)
        name = page.task.page if isinstance(page, Page) else ""
        label, age, reason, lock = "MISS", 0.0, "", "none"
        if isinstance(found, Served):
            label, age = found.label, found.cached.entry.age(self._clock())
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
        """Render the page at a public path now, store it, and return whether it has changed.

        Renders already in progress are not reused. Variants of the page (by query, host or cookie) become stale.

        :param only_if_cached: do nothing for a page that is not in the cache.
        :param site: refresh the page of this site only. By default the page is refreshed for every known site, the
            site of the current request first. If clients can invent hosts, at most four sites are rendered; the other
            pages become stale.
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
                # The first call marks all variants of the page as stale, on all sites.
                calls.append(functools.partial(self._refresh, path, page, entry, marks=not calls))
        if not calls and not only_if_cached:
            # The page is not in the cache yet.
            calls.append(functools.partial(self._refresh, path, pages[0], None))
        return any_of(calls)

    def _has(self, path: str) -> bool:
        """Return whether a page is kept at a public path, for any site.

        :raises StoreError: the store cannot be asked.
        """
        try:
            return any(self._kept(page) is not None for page in self._pages.everywhere(path))
        except RefreshError:
            return False

    def _kept(self, page: Page) -> Entry | None:
        entry = self._engine.cache.kept(page.task)
        return entry if entry is not None and isinstance(entry.content, Content) else None

    def _refresh(self, path: str, page: Page, before: Entry | None, marks: bool = True) -> bool:
        tag = path_tag(page.path) if marks else ""
        outcome = self._engine.cache.refresh(page.task, tag)
        if isinstance(outcome, Failed):
            raise RefreshError(path, outcome.reason) from outcome.error
        content = outcome.cached.entry.content
        if not isinstance(content, Content):
            raise RefreshError(path, content.reason if isinstance(content, HitForMiss) else "unreadable")
        old = before.content if before is not None else None
        # An app may give one entity tag to different bodies.
        new = (content.status, content.etag, content.body)
        return not isinstance(old, Content) or (old.status, old.etag, old.body) != new

    # A process and its end -----------------------------------------------------------------------------

    @property
    def _engine(self) -> Engine:
        """Return the engine of this process."""
        return self._begin()

    def _begin(self, environ: Mapping[str, Any] | None = None, again: bool = False) -> Engine:
        """Return the engine of this process.

        The first request makes it, and so does the first one after every fork and gevent patch.

        :param environ: the request, whose server may be a development server.
        :param again: look again for a development server, because the engine was made before its server was known.
        """
        live = self._live
        if live is not None and live.is_here and not again:
            return live
        # The lock is made after gevent has patched the process. A lock from before the patch would block all greenlets
        # once a greenlet yields while it holds the lock.
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
            courier.attend(self)  # Outside the lock: starting a thread yields under gevent.
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
        """Invalidate pages of this app and return the receipt; see :func:`wsgi_isr.invalidate`."""
        names = tag_names(tags, paths, routes, prefixes, everything, set(self.configuration.rules.policies))
        return self._engine.invalidator.invalidate(names, mode)

    def replay(self) -> tuple[str, ...]:
        """Deliver the journal's invalidations and return the stored names of the delivered tags.

        :raises InvalidationError: some could not be delivered.
        """
        return self._engine.invalidator.replay()

    @property
    def _has_journal(self) -> bool:
        """Return whether a journal keeps undelivered invalidations."""
        return self._journal is not None

    def deliver_kept(self) -> bool:
        """Deliver the journal's invalidations in the background; return whether any are left."""
        if self._journal is None or self._journal.is_empty():
            return False
        return self._engine.invalidator.deliver_kept()

    @property
    def _renders_elsewhere(self) -> bool:
        """Return whether other processes may render pages. They need a store that all processes share."""
        return self.configuration.settings.background == "auto" and self._store.keeps and self._store.shared

    @property
    def _is_alone(self) -> bool:
        """Return whether no other :class:`ISR` of this process has the same ``_site``."""
        return not any(other._site == self._site for other in list(instances) if other is not self)

    def _is_at(self, home: object) -> bool:
        """Return whether ``home`` is the engine of this app."""
        return self._live is not None and self._live is home

    def _begin_with_stand_in(self) -> Callable[[], None]:
        """Begin with the store that tests put in the place of the configured one, or with the configured store.

        :returns: a function that restores the state before the call.
        """
        before = self._store, self._journal, self._pages, self._live, self._development
        self._settle(self._look_for_development(self.app))

        def restore() -> None:
            if self._live is not None:
                self._live.close()
            self._store, self._journal, self._pages, self._live, self._development = before

        return restore

    def _reset_after_fork(self) -> None:
        """Reset the child after a fork: drop the parent's threads, flights and locks, and begin with an empty L1."""
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
        """Drain the background and close the store; a later request begins again.

        :param timeout: seconds; by default the ``drain_timeout`` option.
        :returns: whether all background work finished in time.
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
    """Call several refreshes and return whether any of them changed something.

    Every call is made, even after an error. An error of the first call is raised. Errors of other calls are dropped.
    """
    done: list[bool | ISRError] = []
    for call in calls:
        try:
            done.append(call())
        except ISRError as error:
            done.append(error)
    if done and isinstance(done[0], ISRError):
        raise done[0]
    return any(changed is True for changed in done)


# The fingerprint of a request: its URL, then the fields that a plain request must have or must not have.
_QUERY, _HOST = 1, 2
_PLAIN = 5
_PLAIN_VALUES = ("GET", *(None,) * 7)


def fingerprint_of(environ: dict[str, Any]) -> tuple[Any, ...]:
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
