"""The functions that act on every :class:`~wsgi_isr.ISR` of a process."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ..cache.app_records import Registry
from ..cache.invalidation import Invalidator, Receipt, check_mode, tag_names
from ..cache.journal import journal_for
from ..cache.switch import Copies
from ..cache.switchboard import Switchboard
from ..cache.timeline import Recorder, Timelines
from ..config.development import development_of
from ..config.identity import module_name
from ..config.loading import load
from ..config.settings import Config
from ..config.source import state_folder
from ..config.wrapping import configured
from ..data.active_engine import request_engine, set_engine_lookup
from ..engine import Engine
from ..errors import ConfigError, InvalidationError, StoreError
from ..events import Events
from ..observe.log import log_events
from ..stores import open_store
from ..stores.base import Store
from ..stores.null import NullStore
from .edge import edges_for
from .isr import ISR
from .on_demand import any_of
from .runtime import runtime

if TYPE_CHECKING:
    from typing import TypeGuard


def _engines_outside_apps() -> list[Engine]:
    """Return the engines that may keep data used outside of any app, one for each store, namespace and release."""
    if runtime.instances:
        return list({_store_key(isr): isr._engine for isr in list(runtime.instances)}.values())
    with runtime.beginning:
        if is_new := runtime.alone is None:
            runtime.alone = _begin_alone()
        alone = runtime.alone
    if is_new and alone.presence is not None and runtime.stand_in is None:
        # In this thread: a script may end before a thread runs. Outside the lock: the call asks the store.
        alone.presence.look_quietly()
    return [alone]


def _begin_alone() -> Engine:
    """Return an engine for the data of a process that wraps no app."""
    config = configured(None, None, {}, "")
    store, events = config.settings.store, Events(log_events())
    if (stand_in := runtime.stand_in) is not None:
        return Engine(config, stand_in.store_of(store), events, inline=True)
    if (development := development_of(config.settings.development, None)) is not None:
        development.announce()
        return Engine(config, NullStore(), events)
    opened = store if isinstance(store, Store) else open_store(store)
    has_edge = config.settings.cdn is not None
    journal = journal_for(config.settings.journal, opened, config.folder, may_create=False, has_edge=has_edge)
    edges = edges_for(config.settings, journal, events)
    return Engine(config, opened, events, journal=journal, name=f"script:{module_name('__main__')}", edges=edges)


set_engine_lookup(_engines_outside_apps, lambda: any(isr.is_serving for isr in runtime.instances))


def close_all(timeout: float | None = None) -> None:
    """Drain every :class:`ISR` of this process; the gunicorn hooks call this.

    :param timeout: seconds for all together; by default the ``drain_timeout`` of each.
    """
    began = time.monotonic()

    def left(drain: float) -> float:
        # All drains share one start time; they do not add up.
        return max(0.0, began + (drain if timeout is None else timeout) - time.monotonic())

    for isr in list(runtime.instances):
        isr.close(left(isr.configuration.settings.drain_timeout))
    if (alone := runtime.exchange_alone(None)) is not None:
        alone.close(left(alone.drain))
        alone.store.close()


# For servers without hooks. With gunicorn, the hook has already drained everything.
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
    journal: str | bool | None = None,
    actor: str | None = None,
) -> Receipt:
    """Invalidate pages, from the app or from any job that knows the store, and return the receipt.

    Commit your data first. The arguments add up: everything with one of the ``tags``; the pages at ``paths`` (public,
    with or without percent-encoding; a trailing slash matters); the pages of the rules ``routes``; everything at and
    below ``prefixes``; or ``everything``.

    :param mode: ``"stale"``: the old page is served once more while it is regenerated. ``"expire"``: the old page is
        served only if rendering fails. ``"purge"``: the old page is never served again.
    :param store: a store or its URL. By default every :class:`ISR` of this process; else the Django site whose
        settings this process has loaded; else ``WSGI_ISR_STORE``. With ``null://``, and with the ``memory://`` of
        another process, there is nothing to invalidate, and the receipt says so.
    :param namespace: with ``store``, the option of the same name.
    :param journal: a file that keeps undelivered invalidations, or ``False`` for none. By default the journal of the
        app in the current folder, if it exists.
    :param actor: the person or program that asks for it, which ``explain`` shows; by default the id of the request, or
        ``app``.
    :returns: the receipt, once every node concerned has acknowledged, or the journal keeps the rest
        (``Receipt.pending``).
    :raises InvalidationError: some tags were not delivered, and no journal keeps them; repeating is always safe.
    :raises ConfigError: no argument names anything, or no store is known.
    """
    apps = list(apps_of_process()) if store is None and namespace is None and journal is None else []
    rules = {pattern for isr in apps for pattern in isr.configuration.rules.policies} if apps else None
    names = tag_names(tags, paths, routes, prefixes, everything, rules)
    check_mode(mode)
    if apps:
        return _invalidate_each({_store_key(isr): isr._engine.invalidator for isr in apps}.values(), names, mode, actor)
    config = _configuration_of(store, namespace, journal)
    if (note := _reason_for_nothing(config)) is not None and config.settings.cdn is None:
        location, space = str(config.settings.store), config.settings.namespace
        return Receipt(tuple(names), mode, 0.0, store=location, namespace=space, notes=(note,))
    with _invalidator_for(config) as invalidator:
        try:
            return invalidator.invalidate(names, mode, actor)
        finally:
            if runtime.alone is not None:
                runtime.alone.forget()


def refresh(path: str, *, only_if_cached: bool = False) -> bool:
    """Render the page at ``path`` now and return whether it has changed; see :meth:`wsgi_isr.ISR.refresh`.

    In a view, the app around the view renders the page. Elsewhere every app of this process renders it.

    :param only_if_cached: do nothing for a page that is not in the cache.
    :raises ConfigError: no app is wrapped in this process.
    """
    engine = request_engine()
    apps = list(apps_of_process())
    own = [isr for isr in apps if isr._is_at(engine)] or apps
    if not own:
        raise ConfigError("refresh", "no app is wrapped in this process", "use `wsgi-isr refresh`, or invalidate()")
    # With several apps, only apps that have the page render it.
    having = [isr for isr in own if len(own) > 1 and isr._has(path)]
    return any_of(functools.partial(isr.refresh, path, only_if_cached=only_if_cached) for isr in having or own)


def replay(
    *, store: str | Store | None = None, namespace: str | None = None, journal: str | None = None
) -> tuple[str, ...]:
    """Deliver the journal's invalidations now and return the stored names of the delivered tags.

    The arguments are those of :func:`invalidate`.

    :returns: the stored names of the tags that were delivered.
    :raises InvalidationError: some still cannot be delivered.
    :raises ConfigError: no store or no journal is known.
    """
    apps = list(apps_of_process()) if store is None and namespace is None and journal is None else []
    if own := [isr for isr in apps if isr._has_journal]:
        return _replay_each(isr.replay for isr in {_store_key(isr): isr for isr in own}.values())
    config = _configuration_of(store, namespace, journal)
    if _reason_for_nothing(config) is not None:
        return ()
    with _invalidator_for(config, begins=True) as invalidator:
        if invalidator.journal is None:
            raise ConfigError("journal", "no journal is known", "give journal=, or set WSGI_ISR_JOURNAL")
        return invalidator.replay()


def _replay_each(replays: Iterable[Callable[[], tuple[str, ...]]]) -> tuple[str, ...]:
    """Call every replay, even after an error, and return the names of all delivered tags.

    :raises InvalidationError: for all failures together.
    """
    delivered: list[str] = []
    failed: dict[str, StoreError] = {}
    journal = None
    for call in replays:
        try:
            delivered += call()
        except InvalidationError as error:
            delivered += error.delivered
            failed |= error.undelivered
            journal = error.journal
    names = tuple(dict.fromkeys(delivered))
    if failed:
        raise InvalidationError(names, failed, journal)
    return names


def apps_of_process() -> Collection[ISR]:
    """Return every :class:`ISR` of this process.

    A command of Django (``manage.py shell``) has loaded the settings and models of its site, but not the application.
    The application knows the store, so it is imported.

    :raises ConfigError: the application does not import.
    """
    if runtime.instances or (target := _django_application()) is None:
        return runtime.instances
    try:
        load(target, "WSGI_APPLICATION")
    except Exception as error:
        remedy = "mend it, or set WSGI_ISR_STORE as the site has it (null:// for none)"
        named = target.replace(":", ".")
        problem = f"Django's WSGI_APPLICATION = {named!r} does not import: {' '.join(str(error).split())}"
        raise ConfigError("store", problem, remedy) from error
    return runtime.instances


def _django_application() -> str | None:
    """Return the application of the Django site whose settings are loaded, as ``module:attribute``."""
    conf = sys.modules.get("django.conf")
    if conf is None or not (conf.settings.configured or os.environ.get("DJANGO_SETTINGS_MODULE")):
        return None
    # Tests and commands that set these want no cache, so the application is not needed.
    if _is_of_one_process(os.environ.get("WSGI_ISR_STORE")):
        return None
    module, dot, attribute = (getattr(conf.settings, "WSGI_APPLICATION", None) or "").rpartition(".")
    return f"{module}:{attribute}" if dot else None


def _configuration_of(store: str | Store | None, namespace: str | None, journal: str | bool | None) -> Config:
    """Return the configuration from the arguments, or else from the environment.

    :raises ConfigError: no store is named.
    """
    if store is None and (stand_in := runtime.stand_in) is not None:
        config = configured(None, None, {"namespace": namespace}, "")
        settings = replace(config.settings, store=stand_in.store_of(config.settings.store), journal=False)
        return replace(config, settings=settings)
    config = Config.load(options={"store": store, "namespace": namespace, "journal": journal})
    if not config.names_store:
        # The default is a path relative to the app's folder. A job in another folder would invalidate nothing.
        remedy = (
            "give store=, set WSGI_ISR_STORE as the app has it (null:// for none), or import the module that wraps the "
            "app in ISR"
        )
        raise ConfigError("store", "no store is known here", remedy)
    return config


def _reason_for_nothing(config: Config) -> str | None:
    """Return why there is nothing to invalidate; ``None`` if there may be something."""
    store = config.settings.store
    if not _is_of_one_process(store):
        return None
    where = "keeps nothing" if store.lower().startswith("null:") else "is seen by no other process"
    return f"{store} {where}: there is nothing to invalidate"


def _is_of_one_process(store: object) -> TypeGuard[str]:
    return isinstance(store, str) and store.partition(":")[0].lower() in ("memory", "null")


@contextmanager
def _invalidator_for(config: Config, begins: bool = False) -> Iterator[Invalidator]:
    """Yield an invalidator for a store that no app of this process uses.

    :param begins: whether to create the default journal; see :func:`journal_for`.
    """
    settings = config.settings
    opened = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
    try:
        registry = Registry(opened, settings.namespace, settings.signing_key)
        # No app of this process records the invalidation.
        recorder = Recorder(Timelines(opened, settings.namespace, settings.signing_key), time.time, is_alone=True)
        events = Events(log_events(), recorder)
        has_edge = settings.cdn is not None
        journal = journal_for(settings.journal, opened, state_folder(None), begins, has_edge)
        edges = edges_for(settings, journal, events)
        invalidator = Invalidator(opened, settings.namespace, journal, events, registry=registry, edges=edges)
        try:
            yield invalidator
        finally:
            invalidator.close(settings.drain_timeout)
            recorder.flush()
    finally:
        if opened is not settings.store:
            opened.close()


@contextmanager
def switchboard_for(store: str | None, namespace: str | None) -> Iterator[Switchboard]:
    """Yield the switchboard of a store that no app of this process uses.

    Its file is in the state folder of the app in the current directory. The arguments are those of :func:`invalidate`.

    :raises ConfigError: no store is known.
    """
    settings = _configuration_of(store, namespace, None).settings
    opened = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
    try:
        registry = Registry(opened, settings.namespace, settings.signing_key)
        copies = Copies(opened, settings.namespace, settings.signing_key, state_folder(None), time.time)
        yield Switchboard(copies, opened, settings.namespace, registry)
    finally:
        if opened is not settings.store:
            opened.close()


def _store_key(isr: ISR) -> tuple[int, str, str | None]:
    return id(isr._store), isr.configuration.settings.namespace, isr.configuration.settings.release


def _invalidate_each(invalidators: Iterable[Invalidator], names: list[str], mode: str, actor: str | None) -> Receipt:
    """Call every invalidator, even after an error, and return one receipt for all.

    :raises InvalidationError: for all failures together.
    """
    receipts: list[Receipt] = []
    failures: list[InvalidationError] = []
    for invalidator in invalidators:
        try:
            receipts.append(invalidator.invalidate(names, mode, actor))
        except InvalidationError as error:
            failures.append(error)
    if len(receipts) == 1 and not failures:
        return receipts[0]
    undelivered = dict(pair for receipt in receipts for pair in receipt.failures)
    for failure in failures:
        undelivered |= failure.undelivered
    if failures:
        # No journal is named: an invalidator that failed has kept nothing.
        raise InvalidationError(tuple(name for name in names if name not in undelivered), undelivered)

    def all_of(field: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part for receipt in receipts for part in getattr(receipt, field)))

    return Receipt(
        tuple(names),
        mode,
        sum(receipt.seconds for receipt in receipts),
        all_of("replayed"),
        ", ".join(dict.fromkeys(receipt.store for receipt in receipts)),
        ", ".join(dict.fromkeys(receipt.namespace for receipt in receipts)),
        all_of("nodes"),
        all_of("acknowledged"),
        tuple(undelivered.items()),
        next((receipt.journal for receipt in receipts if receipt.journal), None),
        all_of("warnings"),
        all_of("notes"),
    )
