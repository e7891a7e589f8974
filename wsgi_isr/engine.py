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
from .cache.entries import Entries
from .cache.entry import Codec, Content, Entry, HitForMiss
from .cache.executor import Job, OnDone, Reply, Status
from .cache.inspection import Inspector
from .cache.invalidation import Invalidator
from .cache.journal import Journal
from .cache.keyspace import Keyspace
from .cache.lease import LeaseKeepAlive, Leases
from .cache.local_cache import CachedEntry, Local
from .cache.lookup import Cache
from .cache.regenerate import Regenerator
from .cache.releases import Releases
from .cache.renderer_pool import Remote
from .cache.single_flight import Flight, leading, led
from .cache.switch import Copies, Switch
from .cache.switchboard import Switchboard
from .cache.tag_versions import TagVersions
from .cache.task import Attempt, Product, Task, Unknown
from .cache.timeline import Recorder, Timelines
from .cache.verdict import Failure, Fresh, Validity, judge
from .config.frameworks import Application, Surroundings
from .config.settings import Config
from .data.active_engine import activate, request_engine
from .data.function import app_of, produce_data, tags_of_data
from .data.isolation import Isolation, NoThread, Overdue, is_importing
from .events import Events
from .observe.counts import Counts
from .pages.draft import Drafts, Visitor, answering
from .pages.own_writes import Writes
from .pages.request_key import PageKey, tags_of_page
from .pages.respond import PreparedResponse
from .stores.base import Store

if TYPE_CHECKING:
    from .cdn.headers import EdgeHeaders
    from .config.rule_set import RuleSet

#: Seconds after which a prepared response needs another look-up, however often it is sent.
LOOK_UP_EVERY = 60.0

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


class Producer:
    """Render tasks: pages by the app, data by cached functions.

    :param produce_page: renders the task of a page; ``None`` if there is no app.
    :param app: the app, for data that needs its framework.
    :param inline: run everything in the calling thread.
    """

    def __init__(
        self,
        engine: Engine,
        rules: RuleSet,
        produce_page: Callable[[Task, Mapping[str, Any] | None], Product] | None,
        app: Any,
        inline: bool,
    ) -> None:
        self._engine = engine
        self._rules = rules
        self._produce_page = produce_page
        self._app = app
        self._inline = inline

    @cached_property
    def application(self) -> Application:
        """Return the framework context of data. It is looked up with the first data: the app is complete by then."""
        return Application(self._app, inline=self._inline)

    @cached_property
    def _isolation(self) -> Isolation:
        return Isolation(self.application.at_end, inline=self._inline)

    def produce(self, task: Task) -> Product:
        """Render a task, and return the product."""
        if task.data:
            return self._isolate(task)
        # A cold page is rendered in a client's thread. A new context hides the client's user, language and tenant,
        # which the surrounding code may have set.
        return Context().run(self._make_page, led(), task, _client.get())

    def tags_of(self, task: Task) -> list[str]:
        """Return the tags of a task that are known before its render.

        :raises Unknown: this process cannot render the task.
        """
        with activate(self._engine):
            if task.data:
                return tags_of_data(task)
            if task.rule not in self._rules.policies:
                raise Unknown(task.rule)
            return tags_of_page(PageKey.parse(task.text), self._rules.policies[task.rule], self._rules)

    def _make_page(self, flights: tuple[Flight[Any], ...], task: Task, client: Mapping[str, Any] | None) -> Product:
        with leading(*flights), activate(self._engine), answering(Visitor(self._engine.drafts)):
            return self._produce_page(task, client) if self._produce_page is not None else HitForMiss("no-app")

    def _isolate(self, task: Task) -> Product:
        """Call a cached function in a thread of its own, for at most the timeout of its task."""
        make = functools.partial(self._make_data, task, self.application.surroundings(app_of(task)))
        # A module that calls a function at import holds its import lock. The function may import that module, so
        # another thread would deadlock.
        is_locked = request_engine() is None and is_importing()
        try:
            return self._isolation.run(make, task.limits.timeout, in_caller=is_locked)
        except NoThread:
            return Failure("no-thread")
        except Overdue:
            return Failure("timeout")

    def _make_data(self, task: Task, surroundings: Surroundings) -> Product:
        with activate(self._engine), answering(Visitor(self._engine.drafts)), surroundings():
            return produce_data(task, self._rules.profiles)


class Renderers:
    """An executor of the renderer processes, which refuses jobs that they could mistake for another app's.

    :param folder: the folder of their sockets.
    :param site: the digest that names the app to them.
    :param is_alone: returns whether ``site`` is unique in this process.
    """

    def __init__(self, folder: str, site: bytes, is_alone: Callable[[], bool]) -> None:
        self._remote = Remote(folder, site)
        self._is_alone = is_alone
        self._has_warned = False

    def submit(self, job: Job, urgent: bool, on_done: OnDone) -> bool:
        """Send a job, and return whether it was sent; see :meth:`.Executor.submit`."""
        if self._is_alone():
            return self._remote.submit(job, urgent, on_done)
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "several apps of this process have the same namespace, release and rules: their pages are rendered in "
                "threads, because a renderer process could not tell them apart (give each a namespace)"
            )
        return False

    def close(self) -> None:
        """Stop waiting for replies. Accepted jobs are rendered all the same."""
        self._remote.close()


class Engine:
    """The state of one process, made by its first request, and again after every fork and gevent patch.

    A child process inherits nothing of it.

    :param produce_page: renders the task of a page; ``None`` if there is no app.
    :param app: the app, for data that needs its framework.
    :param site: the digest that names the app to renderer processes; ``None`` if jobs stay in this process.
    :param is_alone: returns whether ``site`` is unique in this process. Otherwise another app might render the page.
    :param journal: keeps undelivered invalidations.
    :param counts: the counts of the app.
    :param name: the app's name in the records of the store.
    :param is_serving: returns whether this process answers requests for the app.
    :param inline: run everything in the calling thread, as tests need.
    :param edges: the caches of a CDN that invalidations purge; :mod:`wsgi_isr.middleware.edge` makes them.
    :param role: returns the role of this process in timelines; empty where each render has its own.
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
        counts: Counts | None = None,
        name: str = "",
        is_serving: Callable[[], bool] = lambda: True,
        inline: bool = False,
        edges: Edges | None = None,
        role: Callable[[], str] = str,
    ) -> None:
        settings, rules = config.settings, config.rules
        self._namespace = settings.namespace
        self._pid = os.getpid()
        self.store = store
        self.events = events
        self.keeps = store.keeps
        self.profiles = rules.profiles
        self.drain = settings.drain_timeout
        self.keyspace = Keyspace(settings.namespace, settings.release or "")
        # Looked up now: gevent may have patched the functions since the module was loaded.
        self.clock = clock or time.time
        self.monotonic = monotonic or time.monotonic
        self.drafts = Drafts(settings.secret, settings.namespace, self.clock)
        self.codec = Codec(settings.signing_key, settings.namespace)
        self.writes = Writes(settings.coherence if store.keeps and store.shared else 0)
        self.local = Local(settings.local_cache_bytes)
        copies = Copies(store, settings.namespace, settings.signing_key, config.folder, self.clock)
        switch = Switch(
            copies, settings.off, monotonic=self.monotonic, on_change=self.local.drop_prepared, emit=events.emit
        )
        self.tag_versions = TagVersions(
            store,
            self.keyspace.tag,
            self.keyspace.epoch,
            coherence=settings.coherence,
            monotonic=self.monotonic,
            switch=switch,
        )
        registry = Registry(store, settings.namespace, settings.signing_key)
        self.switchboard = Switchboard(copies, store, settings.namespace, registry, self.forget)
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
        self.timelines = Timelines(store, settings.namespace, settings.signing_key)
        #: Records the events of this process. The middleware subscribes it.
        self.recorder = Recorder(self.timelines, self.clock, role, is_alone=inline or not store.keeps)
        self._journal = journal
        #: The change token of the journal, and the names in it.
        self._pending: tuple[Any, int] = (None, 0)
        if counts is not None:
            counts.watch(self._gauges)
            store.observe(counts.operated)
        self.presence = self._make_presence(config, registry, name)
        self._producer = Producer(self, rules, produce_page, app, inline)
        self._renderers = (
            None if site is None or renderer_pool.folder is None else Renderers(renderer_pool.folder, site, is_alone)
        )
        self.cache = self._make_cache(config, name, 0 if inline else settings.background_threads, pause or time.sleep)

    def _make_presence(self, config: Config, registry: Registry, name: str) -> Presence | None:
        """Return the record of the app; ``None`` if no other process can use the same store."""
        settings = config.settings
        if not self.store.keeps or not (self.store.shared or isinstance(settings.store, Store)):
            return None
        patterns = config.rules.policies
        cdn = settings.cdn or ""
        return Presence(registry, self.store, settings.namespace, name, patterns, self.clock, self.monotonic, cdn)

    def _make_cache(self, config: Config, name: str, threads: int, pause: Callable[[float], None]) -> Cache:
        """Return the cache of this process.

        :param threads: the number of background threads.
        """
        settings, store = config.settings, self.store
        release = settings.release or ""
        releases = Releases(release, settings.adopt_release, settings.namespace, store, self.codec, name)
        keep_alive = LeaseKeepAlive(self.monotonic, self.events)
        leases = Leases(store, Keyspace.lock, Keyspace.failures, self.events, keep_alive.let_go)
        self._entries = entries = Entries(
            store, self.local, self.tag_versions, self.codec, self.events, self.clock, self.monotonic, releases
        )
        producer = self._producer
        regenerator = Regenerator(
            entries, leases, keep_alive, producer.produce, producer.tags_of, settings.uncacheable_ttl
        )
        queue = settings.background_queue
        cache = Cache(entries, regenerator, renderers=self._renderers, threads=threads, queue=queue, pause=pause)
        self.inspector = Inspector(entries, cache.dispatcher, self.keyspace, self.timelines, self.recorder)
        return cache

    def _gauges(self) -> dict[str, Any]:
        """Return the values of the moment, as fields of :class:`.Totals`, and the number of evictions."""
        down = self.store.down
        return {
            "local_bytes": self.local.bytes,
            "evictions": self.local.evictions,
            "nodes": {node: node not in down for node in self.store.nodes},
            "journal_pending": self._count_pending(),
        }

    def _count_pending(self) -> int | None:
        """Return the number of names in the journal, which is read only if it has changed."""
        journal = self._journal
        if journal is None or journal.is_empty():
            return None if journal is None else 0
        if self._pending[0] != (token := journal.change_token()):
            try:
                lines = journal.lines(self._namespace, self.store.places)
            except OSError:  # the courier reports it
                return None
            self._pending = token, sum(len(line.tags) for line in lines)
        return self._pending[1]

    def active_app(self) -> str | None:
        """Return the name of the active app (:meth:`.Application.active`)."""
        return self._producer.application.active()

    def run_job(self, task: Task, attempt: Attempt) -> Reply:
        """Run the job of another process, and return the reply (:meth:`.Cache.run_job`)."""
        if task.data and not self._producer.application.knows(app_of(task)):
            return Reply(Status.UNKNOWN)  # the job is for an app that this process does not have
        return self.cache.run_job(task, attempt)

    @property
    def is_here(self) -> bool:
        """Return whether this process made the engine. A server that forks in C may not have told Python."""
        return self._pid == os.getpid()

    def still_valid(self, cached: CachedEntry, answer: PreparedResponse, *, reads: bool = True) -> bool:
        """Return whether nothing was invalidated since the copy was checked.

        If so, the response may be sent until the next poll.

        :param reads: read the epochs if they have lapsed. Otherwise the copy is then not known to be valid.
        """
        if not self.is_here:
            return False
        try:
            polled = self.tag_versions.polled() if reads else self.tag_versions.known()
        except Exception:
            return False  # The slow path reports an unexpected exception of the store, and the app answers.
        checked = cached.checked
        if polled is None or checked is None or checked[1] is not Validity.VALID or checked[0] != polled.epochs:
            return False
        if answer.switch is not self.tag_versions.switch.active:
            return False
        answer.until = min(answer.over, polled.lapses_at)
        return True

    def prepared_again(self, cached: CachedEntry, answer: PreparedResponse) -> PreparedResponse | None:
        """Return a prepared response that may be sent, without any wait; ``None`` if the request needs a look-up.

        A response whose second is over is prepared again, up to :data:`LOOK_UP_EVERY` seconds after its last look-up.
        Look-ups tell subscribers of the page's traffic.

        :param answer: the response of ``cached`` so far.
        """
        now = self.monotonic()
        if now < answer.over:
            return answer if self.still_valid(cached, answer, reads=False) else None
        entry: Entry = cached.entry
        content = entry.content
        if now >= answer.looked_up + LOOK_UP_EVERY or cached.adopted or not isinstance(content, Content):
            return None
        if not isinstance(judge(entry, Validity.VALID, self.clock()), Fresh):
            return None
        if self.local.get(self.keyspace.page(entry.key)) is not cached:  # the call marks the entry as used
            return None
        self._entries.keep_tags_alive(cached, now)
        shown = answer.finish, answer.switch, answer.hits
        again = PreparedResponse(entry, content, self.clock(), now, answer.looked_up, *shown)
        # Race: this process invalidates tags meanwhile. It lets the epochs lapse first and drops prepared responses
        # then, so that either the check below fails or this response is dropped.
        cached.prepared = again
        return again if self.still_valid(cached, again, reads=False) else None

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
        if self._renderers is not None:
            self._renderers.close()
        timeout = self.drain if timeout is None else timeout
        until = self.monotonic() + timeout
        is_drained = self.cache.stop(timeout)
        self.recorder.close(max(0.0, until - self.monotonic()))
        if self.presence is not None:
            self.presence.close(max(0.0, until - self.monotonic()))
        self.invalidator.close(max(0.0, until - self.monotonic()))
        return is_drained
