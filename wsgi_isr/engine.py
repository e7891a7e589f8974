"""The engine: one process's share of a store, with its copies, flights, leases and background.

Each :class:`~wsgi_isr.ISR` has an engine. A script that only uses cached functions gets its own.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .cache import renderer_pool
from .cache.app_records import Presence, Registry
from .cache.edges import Edges
from .cache.entry import Codec, Entry, HitForMiss
from .cache.invalidation import Invalidator
from .cache.journal import Journal
from .cache.keyspace import Keyspace
from .cache.lease import Leases
from .cache.local_cache import CachedEntry, Local
from .cache.lookup import Cache
from .cache.releases import Releases
from .cache.renderer_pool import Done, Remote
from .cache.single_flight import Flight, leading, led
from .cache.tag_versions import TagVersions
from .cache.task import Product, Task, Unknown
from .cache.verdict import Failure, Validity
from .config.frameworks import Application, Surroundings
from .config.settings import Config
from .data.cached import activate, app_of, inside, produce_data, tags_of_data
from .data.isolation import Isolation, NoThread, Overdue, is_importing
from .events import Events
from .pages.draft import Drafts, Visitor, answering
from .pages.own_writes import Writes
from .pages.request_key import PageKey, tags_of_page
from .pages.respond import PreparedResponse
from .stores.base import Store

if TYPE_CHECKING:
    from .cdn.headers import EdgeHeaders

_log = logging.getLogger("wsgi_isr")


_client: ContextVar[Mapping[str, Any] | None] = ContextVar("wsgi_isr_client", default=None)


@contextmanager
def on_behalf_of(client: Mapping[str, Any]) -> Iterator[None]:
    """Render pages in this context for all clients, but send an answer that may not be stored to this client.

    :param client: the environ of the client's request.
    """
    token = _client.set(client)
    try:
        yield
    finally:
        _client.reset(token)


class Engine:
    """The state of one process, made by its first request, and again after every fork and gevent patch.

    A child process inherits nothing of it.

    :param produce_page: renders the task of a page; ``None`` if there is no app.
    :param app: the app, for data that needs its framework.
    :param site: the digest that names the app to renderer processes; ``None`` if jobs stay in this process.
    :param is_alone: returns whether ``site`` is unique in this process. Otherwise another app might render the page.
    :param journal: keeps undelivered invalidations.
    :param name: the app's name in the records of the store.
    :param is_serving: returns whether this process answers requests for the app.
    :param inline: run everything in the calling thread, as tests need.
    :param edges: the caches of a CDN that invalidations purge; :mod:`wsgi_isr.middleware.edge` makes them.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        events: Events,
        produce_page: Callable[[Task, Mapping[str, Any] | None], Product] | None = None,
        *,
        app: Any = None,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] | None = None,
        pause: Callable[[float], None] | None = None,
        site: bytes | None = None,
        is_alone: Callable[[], bool] = lambda: True,
        journal: Journal | None = None,
        name: str = "",
        is_serving: Callable[[], bool] = lambda: True,
        inline: bool = False,
        edges: Edges | None = None,
    ) -> None:
        settings, rules = config.settings, config.rules
        self._app = app
        self._inline = inline
        self._pid = os.getpid()
        self.store = store
        self.events = events
        self.keeps = store.keeps
        self.profiles = rules.profiles
        self.drain = settings.drain_timeout
        release = settings.release or ""
        self.keyspace = Keyspace(settings.namespace, release)
        # Looked up now: gevent may have patched the functions since the module was loaded.
        self.clock = clock or time.time
        self.monotonic = monotonic or time.monotonic
        self.drafts = Drafts(settings.secret, settings.namespace, self.clock)
        self.codec = Codec(settings.signing_key, settings.namespace)
        self.writes = Writes(settings.coherence if store.keeps and store.shared else 0)
        self.local = Local(settings.local_cache_bytes)
        registry = Registry(store, settings.namespace, settings.signing_key)
        self.invalidator = Invalidator(
            store,
            settings.namespace,
            journal,
            events,
            self.forget,
            registry,
            is_own=True,
            is_known=is_serving,
            edges=edges,
        )
        #: Adds the fields for a CDN to answers; ``None`` without a CDN.
        self.edge: EdgeHeaders | None = None
        if edges is not None and settings.cdn is not None:
            from .cdn.headers import EdgeHeaders  # most apps have no CDN

            self.edge = EdgeHeaders(settings.cdn, self.keyspace.edge_token, settings.canonical_url is not None)
        #: ``None`` if no other process can use the same store.
        self.presence = (
            Presence(
                registry,
                store,
                settings.namespace,
                name,
                rules.policies,
                self.clock,
                self.monotonic,
                settings.cdn or "",
            )
            if store.keeps and (store.shared or isinstance(settings.store, Store))
            else None
        )
        self.tag_versions = TagVersions(
            store, self.keyspace.tag, self.keyspace.epoch, coherence=settings.coherence, monotonic=self.monotonic
        )

        def produce(task: Task) -> Product:
            if not task.data:
                # A cold page is rendered in a client's thread. A new context hides the client's user, language and
                # tenant, which the surrounding code may have set.
                return Context().run(make_page, led(), task, _client.get())
            make = functools.partial(make_data, task, self._application.surroundings(app_of(task)))
            # A module that calls a function at import holds its import lock. The function may import that module, so
            # another thread would deadlock.
            is_locked = inside() is None and is_importing()
            try:
                return self._isolation.run(make, task.timeout, here=is_locked)
            except NoThread:
                return Failure("no-thread")
            except Overdue:
                return Failure("timeout")

        def make_page(flights: tuple[Flight[Any], ...], task: Task, client: Mapping[str, Any] | None) -> Product:
            with leading(*flights), activate(self), answering(Visitor(self.drafts)):
                return produce_page(task, client) if produce_page is not None else HitForMiss("no-app")

        def make_data(task: Task, surroundings: Surroundings) -> Product:
            with activate(self), answering(Visitor(self.drafts)), surroundings():
                return produce_data(task, rules.profiles)

        def tags_of(task: Task) -> list[str]:
            with activate(self):
                if task.data:
                    return tags_of_data(task)
                if task.rule not in rules.policies:
                    raise Unknown(task.rule)
                return tags_of_page(PageKey.parse(task.text), rules.policies[task.rule], rules)

        self.cache = Cache(
            produce,
            tags_of,
            store,
            self.local,
            Leases(store, Keyspace.lock, Keyspace.failures, events),
            self.tag_versions,
            events,
            releases=Releases(release, settings.adopt_release, settings.namespace, store, self.codec, name),
            threads=0 if inline else settings.background_threads,
            queue=settings.background_queue,
            uncacheable_ttl=settings.uncacheable_ttl,
            codec=self.codec,
            clock=self.clock,
            monotonic=self.monotonic,
            pause=pause or time.sleep,
        )

        self._remote = None if site is None or renderer_pool.folder is None else Remote(renderer_pool.folder, site)
        self._is_alone = is_alone
        self._is_confused = False
        if self._remote is not None:
            self.cache.elsewhere = self._hand_over

    @cached_property
    def _application(self) -> Application:
        """Return the framework context of data. It is looked up with the first data: the app is complete by then."""
        return Application(self._app, inline=self._inline)

    @cached_property
    def _isolation(self) -> Isolation:
        return Isolation(self._application.at_end, inline=self._inline)

    def active_app(self) -> str | None:
        """Return the name of the active app (:meth:`.Application.active`)."""
        return self._application.active()

    def work(self, task: Task) -> bytes:
        """Do a job that another process has submitted (:meth:`.Cache.work`)."""
        if task.data and not self._application.knows(app_of(task)):
            return renderer_pool.UNKNOWN  # the job is for an app that this process does not have
        return self.cache.work(task)

    def _hand_over(self, job: bytes, first: bool, max_lease_wait: float, done: Done) -> bool:
        assert self._remote is not None
        if self._is_alone():
            return self._remote.submit(job, first, max_lease_wait, done)
        if not self._is_confused:
            self._is_confused = True
            _log.warning(
                "several apps of this process have the same namespace, release and rules: their pages are rendered in "
                "threads, because a renderer process could not tell them apart (give each a namespace)"
            )
        return False

    @property
    def is_here(self) -> bool:
        """Return whether this process made the engine. A server that forks in C may not have told Python."""
        return self._pid == os.getpid()

    def still_valid(self, cached: CachedEntry, answer: PreparedResponse) -> bool:
        """Return whether nothing was invalidated since the copy was checked.

        If so, the response may be sent until the next poll.
        """
        if not self.is_here:
            return False
        try:
            polled = self.tag_versions.polled()
        except Exception:
            return False  # The slow path reports an unexpected exception of the store, and the app answers.
        checked = cached.checked
        if checked is None or checked[1] is not Validity.VALID or checked[0] != polled.epochs:
            return False
        answer.until = min(answer.over, polled.lapses_at)
        return True

    def is_quiet(self, entry: Entry) -> bool:
        """Return whether no tag was invalidated while the page was rendered, on any node that holds one of its tags."""
        nodes = dict(entry.snapshot.valid_at)
        return all(self.store.node_of(self.keyspace.tag(tag)) in nodes for tag, _ in entry.snapshot.tags)

    def forget(self) -> None:
        """Drop this process's tag versions and prepared responses, so that its own invalidations show at once."""
        self.tag_versions.forget()
        self.local.drop_prepared()

    def close(self, timeout: float | None = None) -> bool:
        """Drain the background within ``timeout`` seconds and return whether it finished.

        :param timeout: seconds; by default the ``drain_timeout`` option.
        """
        if self._remote is not None:
            self._remote.close()
        timeout = self.drain if timeout is None else timeout
        until = self.monotonic() + timeout
        is_drained = self.cache.stop(timeout)
        if self.presence is not None:
            self.presence.close(max(0.0, until - self.monotonic()))
        self.invalidator.close(max(0.0, until - self.monotonic()))
        return is_drained
