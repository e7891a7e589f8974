"""``ISR``: incremental static regeneration around any WSGI app, and ``wrap`` for when there is no code to touch."""

from __future__ import annotations

import atexit
import importlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from .capture import produce_page
from .config import Config
from .data import live_in
from .engine import Engine
from .entry import Content
from .errors import ConfigError, InvalidationError
from .events import Broken, Events, Subscriber
from .events import Served as ServedEvent
from .fill import Failed, PassedOn, Served, Task
from .freshness import Bypass, asks
from .instrumentation.log import log_events
from .invalidate import Invalidator, Journal, Receipt, tag_names
from .keys import Matcher, PageKey
from .page import rendering
from .respond import NAME, Ready, cache_status, headers_of, pass_on, send_failure, send_page
from .rules import Policy
from .stores import open_store
from .stores.base import Store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication


class ISR:
    """Serve an app's pages from a shared cache and render stale ones in the background.

    ``app.wsgi_app = ISR(app.wsgi_app, revalidate=60)`` is all there is to it::

        ISR(app, {"/": 10, "/blog/<slug>": Rule(revalidate=3600, query=["page"])}, store="sqlite:///cache.db")

    :param app: any WSGI application (PEP 3333).
    :param rules: from werkzeug URL pattern to :class:`~wsgi_isr.Rule`, number of seconds, or mapping of
        options; the most specific pattern wins. ``revalidate=`` is the rule for everything not listed.
    :param clock: Unix time in seconds; a fake one makes tests exact.
    :param monotonic: the same for durations. :param pause: waits that many seconds.
    :param options: see the option table in the README; also from ``WSGI_ISR_*`` and ``WSGI_ISR_CONFIG``.
    :raises ConfigError: at once, for whatever is wrong with any of these.
    """

    def __init__(
        self,
        app: WSGIApplication,
        rules: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None,
        *,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] | None = None,
        pause: Callable[[float], None] | None = None,
        **options: Any,
    ) -> None:
        if not callable(app):
            raise ConfigError("app", f"{app!r} is not a WSGI application", "wrap what your server would call")
        self.app = app
        self.config = Config.load(rules, options)
        settings = self.config.settings
        self.store: Store = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
        self.events = Events(log_events())
        self._clock = clock or time.time
        # A fake clock alone is meant for both.
        self._monotonic = monotonic or clock
        self._pause = pause
        self._matcher = Matcher(self.config.rules, settings.canonical_url, settings.ignore_cookies)
        if settings.journal is not None:
            Journal(settings.journal).check()
        self._on_write = settings.invalidate_on_write
        self._asked: dict[PageKey, None] = {}
        self._live: Engine | None = None
        _instances.add(self)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        live = self._live or self._begin()
        probe = _probe(environ)
        # The hot path: what a plain request led to a moment ago, prepared. It may be less pretty, because
        # the benchmark "hotpath" shows that matching, keys and headers would cost twenty times as much.
        slot = live.local.probes.get(probe)
        if slot is not None and (answer := slot.ready) is not None:
            now = live.monotonic()
            if now < answer.until or (now < answer.over and live.still_valid(slot, answer)):
                start_response(answer.status, answer.headers.copy())
                return [answer.body]

        try:
            page = self._match(environ, live)
            found = live.fill.get(page.task, page.suits) if isinstance(page, _Page) else page
        except Exception as error:
            # The cache's own trouble costs speed, never an error. (What the app raises is an outcome.)
            self.events.emit(Broken("the cache", error))
            page = found = PassedOn("broken")
        if isinstance(found, Failed) and isinstance(page, _Page) and page.personal:
            # It failed for somebody without cookies. That says nothing about who has some.
            found = PassedOn("cookie")
        if isinstance(found, PassedOn):
            return self._pass_on(environ, start_response, found)
        if isinstance(found, Failed):
            return self._fail(environ, start_response, found)
        assert isinstance(page, _Page)
        return self._serve(environ, start_response, live, page, probe, found)

    def _match(self, environ: dict[str, Any], live: Engine) -> _Page | PassedOn:
        """The page that the request is for, or why it is not for the cache."""
        if not self.store.keeps:
            return PassedOn("off")
        match = self._matcher.match(environ)
        if isinstance(match, Bypass):
            written = self._matcher.written(environ, bool(self._asked)) if self._on_write else None
            return PassedOn(match.reason, written=written)
        policy, key = match
        if policy.lifetime is None and key not in self._asked:
            return PassedOn("no-rule", key=key)
        text, personal = key.text, self._matcher.personal_cookies(policy, environ)
        times = policy.timeout, policy.wait, policy.lease
        return _Page(policy, Task(live.keyspace.page(text), text, policy.name, *times, anyway=not personal), personal)

    # What a visitor gets -----------------------------------------------------------------------------

    def _serve(
        self,
        environ: dict[str, Any],
        start_response: StartResponse,
        live: Engine,
        page: _Page,
        probe: tuple[Any, ...],
        found: Served,
    ) -> Iterable[bytes]:
        entry, now = found.slot.entry, self._clock()
        content = entry.content
        assert isinstance(content, Content)
        self.events.emit(ServedEvent(page.task.page, found.label, entry.age(now)))
        if found.label == "HIT" and page.policy.by_url_alone and probe[_PLAIN:] == _PLAIN_VALUES and probe[_HOST]:
            found.slot.ready = Ready(entry, content, now, live.monotonic())
            live.local.lead(probe, page.task.page, found.slot)
        status = cache_status(found, now)
        return send_page(environ, start_response, content, headers_of(entry, content, found.label, status, now))

    def _pass_on(self, environ: dict[str, Any], start_response: StartResponse, found: PassedOn) -> Iterable[bytes]:
        label = "MISS" if found.missed else "BYPASS"
        self.events.emit(ServedEvent("", label, reason=found.reason))
        status = f'{NAME}; fwd={"uri-miss" if found.missed else "bypass"}; detail="{found.reason}"'
        if found.key is not None:
            return self._ask(environ, start_response, found.key, status)
        if found.written is not None:
            return self._write(environ, start_response, found.written, status)
        if found.missed:
            return self._miss(environ, start_response, status)
        return pass_on(self._call, environ, start_response, status, label)

    def _miss(self, environ: dict[str, Any], start_response: StartResponse, status: str) -> Iterable[bytes]:
        """The app itself, for want of a page. It is shown as new, so nothing stale goes into it."""
        with rendering(self.config.rules.profiles):
            return pass_on(self._call, environ, start_response, status, "MISS")

    def _ask(
        self, environ: dict[str, Any], start_response: StartResponse, key: PageKey, status: str
    ) -> Iterable[bytes]:
        """No rule says how long: the app may ask for it in its answer, and then counts as listed."""

        def notice(_status: str, headers: list[tuple[str, str]]) -> None:
            if asks(headers):
                self._note(key)

        with rendering(self.config.rules.profiles, stored=False) as asked:
            body = pass_on(self._call, environ, start_response, status, "BYPASS", notice)
        if asked.lifetime is not None and not asked.no_store:
            self._note(key)
        return body

    def _write(self, environ: dict[str, Any], start_response: StartResponse, tag: str, status: str) -> Iterable[bytes]:
        """A successful unsafe request invalidates the page at its URL (RFC 9111, 4.4), before the visitor
        hears of the success: whoever looks after that sees the new page."""

        def notice(status_line: str, _headers: list[tuple[str, str]]) -> None:
            if status_line[:1] in ("2", "3"):
                try:
                    self._begin().invalidator.invalidate([tag])
                except Exception as error:
                    # The write has happened and must be answered; the journal, if any, has the rest.
                    self.events.emit(Broken(f"invalidating {tag!r} after a write", error))

        return pass_on(self._call, environ, start_response, status, "BYPASS", notice)

    def _fail(self, environ: dict[str, Any], start_response: StartResponse, found: Failed) -> Iterable[bytes]:
        """Nothing to serve, and the render failed: what the app had to say of it."""
        if found.content is not None:
            return send_failure(environ, start_response, found.content, found.reason)
        if found.error is not None:
            raise found.error
        status = f'{NAME}; fwd=uri-miss; detail="{found.reason}"'
        return self._miss(environ, start_response, status)

    def _call(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """The app; what it caches while it is called belongs to this ISR."""
        token = _here.set(self)
        try:
            return self.app(environ, start_response)
        finally:
            _here.reset(token)

    def _note(self, key: PageKey) -> None:
        """Remember that the app asked for this page to be kept; the oldest of some thousand is forgotten."""
        self._asked[key] = None
        if len(self._asked) > 4096:
            self._asked.pop(next(iter(list(self._asked))), None)

    # A process and its end -----------------------------------------------------------------------------

    def _begin(self) -> Engine:
        """What a process has of its own; made by its first request, after every fork and every patch."""
        with _beginning:
            if self._live is None:
                self._live = Engine(
                    self.config,
                    self.store,
                    self.events,
                    produce_page(self._call, self.config.rules),
                    clock=self._clock,
                    monotonic=self._monotonic,
                    pause=self._pause,
                )
            return self._live

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
        names = tag_names(tags, paths, routes, prefixes, everything, set(self.config.rules.policies))
        return self._begin().invalidator.invalidate(names, mode)

    def replay(self) -> tuple[str, ...]:
        """Deliver what the journal has kept. :raises InvalidationError: some could not be delivered."""
        return self._begin().invalidator.replay()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call ``subscriber`` with every event (:mod:`wsgi_isr.events`) of this process."""
        self.events.subscribe(subscriber)

    def close(self, timeout: float | None = None) -> bool:
        """Drain the background and let go of the store; a later request begins anew.

        :param timeout: seconds; the ``drain`` option by default.
        :returns: whether everything that ran came to its end in time.
        """
        live, self._live = self._live, None
        drained = True
        if live is not None:
            drained = live.close(timeout)
        self.store.close()
        return drained


class _Page(NamedTuple):
    """What a request is for: the policy, what is to be rendered, and whether the visitor carries cookies
    that are not part of the key."""

    policy: Policy
    task: Task
    personal: bool

    def suits(self, content: Content) -> bool:
        """A page whose app looks at cookies is for visitors who send none."""
        return not (self.personal and content.reads_cookies)


# The request as the hot path sees it: the URL, then what a plain request must have, or not have.
_HOST = 2
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
        get("HTTP_IF_NONE_MATCH"),
        get("HTTP_IF_MODIFIED_SINCE"),
        get("HTTP_UPGRADE"),
        get("REMOTE_USER"),
        get("AUTH_TYPE"),
    )


_instances: weakref.WeakSet[ISR] = weakref.WeakSet()
_beginning = threading.Lock()
_here: ContextVar[ISR | None] = ContextVar("wsgi_isr_here", default=None)
# For scripts that only use cached functions: as the environment says, like ISR() itself.
_alone: Engine | None = None


def _home() -> Engine:
    """Where data is kept that is used here."""
    isr = _here.get() or next(iter(_instances), None)
    if isr is not None:
        return isr._begin()
    global _alone
    with _beginning:
        if _alone is None:
            config = Config.load()
            store = config.settings.store
            opened = store if isinstance(store, Store) else open_store(store)
            _alone = Engine(config, opened, Events(log_events()))
        return _alone


live_in(_home)


def _after_fork() -> None:
    # Threads, flights and locks of the parent do not exist here; L1 begins empty.
    global _alone, _beginning
    _beginning = threading.Lock()
    _alone = None
    for isr in _instances:
        isr._live = None


os.register_at_fork(after_in_child=_after_fork)


def close_all() -> None:
    """Drain every :class:`ISR` of this process; what the gunicorn hooks call."""
    global _alone
    began = time.monotonic()
    for isr in list(_instances):
        # The drains run out together, not one after the other.
        isr.close(max(0.0, began + isr.config.settings.drain - time.monotonic()))
    alone, _alone = _alone, None
    if alone is not None:
        alone.close(max(0.0, began + alone.drain - time.monotonic()))
        alone.store.close()


# For servers without hooks. gunicorn's hook has done it by then, and there is nothing left to do.
atexit.register(close_all)


def invalidate(
    tags: Iterable[str] = (),
    paths: Iterable[str] = (),
    routes: Iterable[str] = (),
    prefixes: Iterable[str] = (),
    everything: bool = False,
    mode: str = "expire",
    *,
    store: str | Store | None = None,
    namespace: str | None = None,
    journal: str | None = None,
) -> Receipt:
    """Invalidate pages, from the app or from any job that knows the store. Commit your data first.

    What is named is taken together: everything with one of the ``tags``; the pages at ``paths`` (public, with or
    without percent-encoding; a trailing slash matters); the pages of the rules ``routes``; everything at and
    below ``prefixes``; or ``everything``.

    :param mode: ``"stale"``: the old page is served once more while it is renewed. ``"expire"``: nobody gets it, unless
        rendering fails. ``"purge"``: nobody ever gets it again, even then.
    :param store: a store or its URL; otherwise every :class:`ISR` of this process, or ``WSGI_ISR_STORE``.
    :param namespace: with ``store``, the option of the same name. :param journal: a file that keeps what could
        not be delivered; the next call, or ``wsgi-isr replay``, delivers it.
    :returns: once it is acknowledged by every node that it concerns.
    :raises InvalidationError: it was not, or not entirely; repeating is always safe.
    :raises ConfigError: nothing was named, or no store is known.
    """
    rules = None
    if store is None and namespace is None and journal is None and (here := list(_instances)):
        rules = {pattern for isr in here for pattern in isr.config.rules.policies}
    names = tag_names(tags, paths, routes, prefixes, everything, rules)
    if rules is not None:
        return _in_all({_place(isr): isr._begin().invalidator for isr in here}.values(), names, mode)
    with _elsewhere(store, namespace, journal) as invalidator:
        try:
            return invalidator.invalidate(names, mode)
        finally:
            if _alone is not None:
                _alone.forget()


def replay(
    *, store: str | Store | None = None, namespace: str | None = None, journal: str | None = None
) -> tuple[str, ...]:
    """Deliver what a journal has kept; the arguments are those of :func:`invalidate`.

    :returns: the stored names of the tags that were delivered.
    :raises InvalidationError: some still cannot be. :raises ConfigError: no store or no journal is known.
    """
    with _elsewhere(store, namespace, journal) as invalidator:
        if invalidator.journal is None:
            raise ConfigError("journal", "no journal is known", "give journal=, or set WSGI_ISR_JOURNAL")
        return invalidator.replay()


@contextmanager
def _elsewhere(store: str | Store | None, namespace: str | None, journal: str | None) -> Iterator[Invalidator]:
    """An invalidator for a store that is named, or configured by the environment."""
    given = Config.load(options={"store": store, "namespace": namespace, "journal": journal})
    if not given.names_store:
        # The default is a path relative to the app's folder: a job that runs elsewhere would invalidate nothing.
        raise ConfigError("store", "no store is known here", "give store=, or set WSGI_ISR_STORE as the app has it")
    settings = given.settings
    if isinstance(settings.store, str) and settings.store.partition(":")[0].lower() in ("memory", "null"):
        raise ConfigError("store", f"{settings.store} is seen by no other process", "name the store that the app uses")
    opened = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
    try:
        if settings.journal is not None:
            Journal(settings.journal).check()
        yield Invalidator(opened, settings.namespace, settings.journal)
    finally:
        if opened is not store:
            opened.close()


def _place(isr: ISR) -> tuple[int, str]:
    return id(isr.store), isr.config.settings.namespace


def _in_all(invalidators: Iterable[Invalidator], names: list[str], mode: str) -> Receipt:
    """Each is asked, whatever the others come to; together they have one receipt, or one error."""
    receipts, failures = [], []
    for invalidator in invalidators:
        try:
            receipts.append(invalidator.invalidate(names, mode))
        except InvalidationError as error:
            failures.append(error)
    if failures:
        undelivered = {tag: cause for error in failures for tag, cause in error.undelivered.items()}
        journal = next((error.journal for error in failures if error.journal), None)
        raise InvalidationError(tuple(name for name in names if name not in undelivered), undelivered, journal)
    replayed = tuple(dict.fromkeys(tag for receipt in receipts for tag in receipt.replayed))
    return Receipt(tuple(names), mode, sum(receipt.seconds for receipt in receipts), replayed)


def wrap(target: str, rules: Any = None, **options: Any) -> ISR:
    """Wrap the app that ``target`` names, for a server's command line: ``gunicorn "wsgi_isr:wrap('myapp:app')"``.

    :param target: ``module:attribute``; with ``()`` behind it, a factory that is called.
    :raises ConfigError: it does not import, or is no WSGI app.
    """
    where = f"wrap({target!r})"
    module_name, colon, attribute = target.partition(":")
    if not module_name or not colon or not attribute:
        raise ConfigError(where, "is not module:attribute", "write it like wrap('myapp:app')")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(where, f"does not import: {error}", "is it installed, and the folder on sys.path?") from error
    for name in attribute.removesuffix("()").split("."):
        if not hasattr(found, name):
            raise ConfigError(where, f"{module_name} has no {attribute!r}", "name the WSGI app in that module")
        found = getattr(found, name)
    if attribute.endswith("()"):
        try:
            found = found()
        except Exception as error:
            raise ConfigError(where, f"the factory raised {error!r}", "call it by hand to see why") from error
    if not callable(found):
        raise ConfigError(where, f"{found!r} is not a WSGI application", "name the WSGI app in that module")
    return ISR(found, rules, **options)
