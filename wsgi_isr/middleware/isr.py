"""``ISR``: incremental static regeneration around any WSGI app."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..cache.courier import courier
from ..cache.invalidation import Receipt, tag_names
from ..cache.journal import journal_for
from ..config.cdn import check_hosts
from ..config.development import DevelopmentSign, development_of, is_served_by
from ..config.identity import caller, name_of
from ..config.origin import Site
from ..config.settings import Config
from ..config.wrapping import Wrapper, app_digest, check_app, configured, warn_of_flask_command
from ..engine import Engine
from ..events import Event, Events, Subscriber
from ..observe.counts import Counts
from ..observe.debug import log_decisions
from ..observe.log import log_events
from ..observe.reporter import reporter
from ..pages.capture import produce_page
from ..pages.fingerprint import fingerprint_of
from ..pages.resolver import Pages
from ..pages.respond import NOT_MODIFIED, PreparedResponse
from ..stores import open_store
from ..stores.base import Store
from ..stores.fork_hooks import detect_fork
from ..stores.null import NullStore
from .edge import edges_for
from .exchange import Backing, Exchange
from .on_demand import is_stored, refresh_path
from .runtime import runtime

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

    from ..observe.explanation import Explanation


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
            warn_of_flask_command(app)
        self._configuration: Config = configured(app, rules, options, import_name or caller())
        settings = self.configuration.settings
        check_hosts(settings.cdn, settings.hosts, settings.canonical_url)
        self._configured: Store = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
        self._counts = Counts(self.configuration.rules.policies)
        self._events = Events(log_events(), self._counts.count)
        self._clock = clock or time.time
        # A fake clock alone replaces both clocks.
        self._monotonic = monotonic or clock
        self._pause = pause
        self._events.subscribe(self._record)
        if settings.debug:
            self._events.subscribe(log_decisions())
        self._beginning: dict[int, threading.Lock] = {}
        self._is_serving = False
        self._name = name_of(app)
        #: The digest of this app, the same in every process that runs the same code. It is unique if :attr:`is_alone`.
        self._app_digest = app_digest(self.configuration, app)
        self._settle(self._look_for_development(app))
        self._app = app  # Last: attributes set from here on go to the app, unless the ISR has them.
        runtime.instances.add(self)
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

    def _look_for_development(self, app: Any, environ: Mapping[str, Any] | None = None) -> DevelopmentSign | None:
        if runtime.stand_in is not None:
            return None
        return development_of(self.configuration.settings.development, app, environ)

    def _settle(self, development: DevelopmentSign | None) -> None:
        """Use the configured store, the store that tests put in its place, or no store during development."""
        given = self.configuration.settings
        self._live: Engine | None = None
        #: The sign that the app is being developed, which turns caching off.
        self._development = development
        if development is not None and development.serves_requests:
            development.announce()
        if (stand_in := runtime.stand_in) is not None:
            self._store: Store = stand_in.store_of(given.store)
        else:
            self._store = NullStore() if development is not None else self._configured
        is_own = self._store is self._configured
        #: Whether invalidations purge the CDN. Tests and development must not.
        self._has_edge = is_own and given.cdn is not None
        folder = self.configuration.folder
        self._journal = journal_for(given.journal, self._store, folder, has_edge=self._has_edge) if is_own else None
        off = "development" if development is not None else "store-disabled"
        self._pages = Pages(self.configuration, self._store, self._events, self._monotonic, off)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        live = self._live or self._begin(environ)
        fingerprint = fingerprint_of(environ)
        # The hot path: send the response that was prepared for a plain request. Its code is inlined because the
        # benchmark "hotpath" shows that matching, keys and headers would take twenty times as long.
        cached = live.local.fingerprints.get(fingerprint)
        if cached is not None and (answer := cached.prepared) is not None:
            now, edge = live.monotonic(), live.edge
            if (edge is None or not edge.is_forwarded(environ)) and (
                now < answer.until or (now < answer.over and live.still_valid(cached, answer))
            ):
                accepted = environ.get("HTTP_ACCEPT_ENCODING")
                headers, body, etag, unchanged = answer.variants.get(accepted) or answer.variant(accepted)
                condition = environ.get("HTTP_IF_NONE_MATCH")
                if condition is None:
                    answer.hits.number += 1
                    start_response(answer.status, headers.copy())
                    return [body]
                if condition == etag:  # The form that browsers send; the code below reads other forms.
                    answer.hits.number += 1
                    start_response(NOT_MODIFIED, unchanged.copy())
                    return []

        if not live.is_here:
            live = self._begin(environ)
        if live.keeps and is_served_by(environ):
            live = self._begin(environ, again=True)
        self._is_serving = True
        backing = Backing(self._app, self._configuration, self._pages, self._events, self._clock, self._counts)
        return Exchange(backing, live, environ, start_response, fingerprint).respond()

    def _prepared(self, environ: dict[str, Any]) -> PreparedResponse | None:
        """Return the response that ``__call__`` would send to a plain GET, for a server that sends it without waiting.

        ``None``: the app has to be called. The store is never asked; :meth:`_poll_ahead` does that in another thread.
        """
        live = self._live
        if live is None or (cached := live.local.fingerprints.get(fingerprint_of(environ))) is None:
            return None
        if live.edge is not None and live.edge.is_forwarded(environ):
            return None
        answer: PreparedResponse | None = cached.prepared
        if answer is None or live.monotonic() < answer.until:
            return answer
        return live.prepared_again(cached, answer)

    def _poll_ahead(self) -> None:
        """Read the epochs before they lapse. An unexpected exception of the store is left to the next request."""
        live = self._live
        if live is not None and live.is_here:
            try:
                live.tag_versions.ask()
            except Exception:
                pass

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
        engine = self._engine
        return engine.keeps and refresh_path(engine, self._pages, path, only_if_cached, site)

    def explain(
        self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, site: Site | None = None
    ) -> Explanation:
        """Return how a request would be answered now, and why. Nothing is rendered, stored or counted as a use.

        The explanation has the rule, the key, the stored page with its age and lifetime, its tags with their last
        invalidations, the lock, the nodes, and a timeline of the last events.

        :param path: the public path, which may have a query, or a whole URL.
        :param headers: the request's headers by name; by default none.
        :param site: the site, if several hosts are served; by default that of the URL, or the first known one.
        :raises ConfigError: ``path`` is neither a path nor a URL.
        """
        from .explain import explain  # few processes explain, and the modules would lengthen each start

        return explain(self._engine, self._pages, self.configuration, path, method, headers, site)

    def _has(self, path: str) -> bool:
        """Return whether the store has a page at a public path, for any site.

        :raises StoreError: the store cannot be asked.
        """
        return is_stored(self._engine, self._pages, path)

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
            detect_fork()
            if self._live is not None and not self._live.is_here:
                self._forget_parent()
            known = self._development
            if (self._live is None or again) and (known is None or not known.is_deliberate):
                development = self._look_for_development(self.app, environ)
                if development != known:
                    self._settle(development)
            if self._development is not None and environ is not None:
                self._development.announce()
            live = self._live
            if is_new := live is None:
                live = self._live = self._new_engine()
        # Outside the lock: starting a thread yields under gevent.
        if is_new and self._journal is not None:
            courier.attend(self)
        if is_new and runtime.stand_in is None:
            reporter.attend(self)
        return live

    def _new_engine(self) -> Engine:
        emit, settings = self._events.emit, self.configuration.settings
        edges = None
        if self._has_edge:
            edges = edges_for(settings, self._journal, self._events, self._monotonic, self._pause)
        return Engine(
            self.configuration,
            self._store,
            self._events,
            produce_page(self.app, self.configuration.rules, emit, emit, self._clock),
            app=self.app,
            clock=self._clock,
            monotonic=self._monotonic,
            pause=self._pause,
            site=self._app_digest if self._renders_elsewhere else None,
            is_alone=lambda: self._is_alone,
            journal=self._journal,
            counts=self._counts,
            name=self.app_name,
            is_serving=lambda: self._is_serving,
            inline=runtime.stand_in is not None,
            edges=edges,
            role=lambda: runtime.role,
        )

    def _record(self, event: Event) -> None:
        """Record an event in the timelines."""
        if (live := self._live) is not None and live.keeps:
            live.recorder(event)

    def invalidate(
        self,
        tags: Iterable[str] = (),
        paths: Iterable[str] = (),
        routes: Iterable[str] = (),
        prefixes: Iterable[str] = (),
        everything: bool = False,
        mode: str = "expire",
        actor: str | None = None,
    ) -> Receipt:
        """Invalidate pages of this app and return the receipt; see :func:`wsgi_isr.invalidate`."""
        names = tag_names(tags, paths, routes, prefixes, everything, set(self.configuration.rules.policies))
        return self._engine.invalidator.invalidate(names, mode, actor)

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
        """Return whether no other :class:`ISR` of this process has the same ``_app_digest``."""
        return not any(other._app_digest == self._app_digest for other in list(runtime.instances) if other is not self)

    def _is_at(self, home: object) -> bool:
        """Return whether ``home`` is the engine of this app."""
        return self._live is not None and self._live is home

    def _begin_with_stand_in(self) -> Callable[[], None]:
        """Begin with the store that tests put in the place of the configured one, or with the configured store.

        :returns: a function that restores the state before the call.
        """
        before = self._store, self._journal, self._pages, self._live, self._development, self._has_edge
        self._settle(self._look_for_development(self.app))

        def restore() -> None:
            if self._live is not None:
                self._live.close()
            self._store, self._journal, self._pages, self._live, self._development, self._has_edge = before

        return restore

    def _reset_after_fork(self) -> None:
        """Reset the child after a fork: drop the parent's threads, flights and locks, and begin with an empty L1."""
        self._beginning = {}
        self._forget_parent()

    def _forget_parent(self) -> None:
        self._pages.reset_after_fork()
        self._counts.reset()
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
        reporter.dismiss(self)
        self._store.close()
        return drained
