"""All of one process: every :class:`~wsgi_isr.ISR` in it, and the helpers that speak to all of them."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from . import engine
from .cache.app_records import Registry
from .cache.courier import courier
from .cache.invalidation import Invalidator, Receipt, check_mode, tag_names
from .cache.journal import journal_for
from .config.development import development_of
from .config.identity import module_name
from .config.settings import Config
from .config.source import state_folder
from .config.wrapping import configured
from .data.cached import inside, set_engine_lookup
from .engine import Engine
from .errors import ConfigError, InvalidationError, StoreError
from .events import Events
from .loading import load
from .middleware import ISR, any_of, instances
from .observe.log import log_events
from .stores import open_store
from .stores.base import Store
from .stores.null import NullStore

if TYPE_CHECKING:
    from typing import TypeGuard

# By process id: each lock is made where it is first needed, after gevent has patched the process.
_beginning: dict[int, threading.Lock] = {}
# For scripts that only use cached functions: as the environment says, like ISR() itself.
_alone: Engine | None = None


def _homes() -> list[Engine]:
    """Where data is kept that is used outside of any app: as many as there are places."""
    if instances:
        return list({_place(isr): isr._engine for isr in list(instances)}.values())
    global _alone
    with _beginning.setdefault(os.getpid(), threading.Lock()):
        if is_new := _alone is None:
            _alone = _begin_alone()
        alone = _alone
    if is_new and alone.presence is not None and engine.stand_in is None:
        # Here: a script may be over before a thread has had its turn. Outside of the lock: it asks the store.
        alone.presence.look_quietly()
    return [alone]


def _begin_alone() -> Engine:
    """Return an engine for the data of a process that wraps no app."""
    config = configured(None, None, {}, "")
    store, events = config.settings.store, Events(log_events())
    if (stand_in := engine.stand_in) is not None:
        return Engine(config, stand_in.store_of(store), events, inline=True)
    if (development := development_of(config.settings.development, None)) is not None:
        development.announce()
        return Engine(config, NullStore(), events)
    opened = store if isinstance(store, Store) else open_store(store)
    journal = journal_for(config.settings.journal, opened, config.folder, begins=False)
    return Engine(config, opened, events, journal=journal, name=f"script:{module_name('__main__')}")


def exchange_alone(other: Engine | None) -> Engine | None:
    """Put another engine in the place of the one for data outside of any app, and return that."""
    global _alone
    alone, _alone = _alone, other
    return alone


set_engine_lookup(_homes, lambda: any(isr.is_serving for isr in instances))


def _after_fork() -> None:
    # Threads, flights and locks of the parent do not exist here; L1 begins empty.
    global _alone, _beginning
    _beginning = {}
    _alone = None
    for isr in instances:
        isr._reset_after_fork()
    courier.after_fork_in_child()


os.register_at_fork(
    before=courier.before_fork, after_in_parent=courier.after_fork_in_parent, after_in_child=_after_fork
)


def close_all(timeout: float | None = None) -> None:
    """Drain every :class:`ISR` of this process; what the gunicorn hooks call.

    :param timeout: seconds for all together; the ``drain_timeout`` of each by default.
    """
    global _alone
    began = time.monotonic()

    def left(drain: float) -> float:
        # The drains run out together, not one after the other.
        return max(0.0, began + (drain if timeout is None else timeout) - time.monotonic())

    for isr in list(instances):
        isr.close(left(isr.configuration.settings.drain_timeout))
    alone, _alone = _alone, None
    if alone is not None:
        alone.close(left(alone.drain))
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
    journal: str | bool | None = None,
) -> Receipt:
    """Invalidate pages, from the app or from any job that knows the store. Commit your data first.

    What is named is taken together: everything with one of the ``tags``; the pages at ``paths`` (public, with or
    without percent-encoding; a trailing slash matters); the pages of the rules ``routes``; everything at and
    below ``prefixes``; or ``everything``.

    :param mode: ``"stale"``: the old page is served once more while it is renewed. ``"expire"``: nobody gets it, unless
        rendering fails. ``"purge"``: nobody ever gets it again, even then.
    :param store: a store or its URL. Without it: every :class:`ISR` of this process; else that of the Django site whose
        settings this process has loaded; else ``WSGI_ISR_STORE``. With ``null://``, and with the ``memory://`` of
        another process, there is nothing to invalidate: the receipt says so.
    :param namespace: with ``store``, the option of the same name.
    :param journal: a file that keeps what cannot be delivered, or ``False`` for none; by default that of the app in the
        current folder, where there is one already.
    :returns: once every node that it concerns has acknowledged it, or the journal keeps the rest (``Receipt.pending``).
    :raises InvalidationError: something was not delivered, and nothing keeps it; repeating is always safe.
    :raises ConfigError: nothing was named, or no store is known.
    """
    here = list(apps_here()) if store is None and namespace is None and journal is None else []
    rules = {pattern for isr in here for pattern in isr.configuration.rules.policies} if here else None
    names = tag_names(tags, paths, routes, prefixes, everything, rules)
    check_mode(mode)
    if here:
        return _in_all({_place(isr): isr._engine.invalidator for isr in here}.values(), names, mode)
    given = _given(store, namespace, journal)
    if (note := _unseen(given)) is not None:
        location, space = str(given.settings.store), given.settings.namespace
        return Receipt(tuple(names), mode, 0.0, store=location, namespace=space, notes=(note,))
    with _elsewhere(given) as invalidator:
        try:
            return invalidator.invalidate(names, mode)
        finally:
            if _alone is not None:
                _alone.forget()


def refresh(path: str, *, only_if_cached: bool = False) -> bool:
    """Render the page at ``path`` now; see :meth:`wsgi_isr.ISR.refresh`. In a view it is that of the app around it;
    elsewhere that of every app of this process.

    :raises ConfigError: there is none.
    """
    home = inside()
    here = list(apps_here())
    own = [isr for isr in here if isr._is_at(home)] or here
    if not own:
        raise ConfigError("refresh", "no app is wrapped in this process", "use `wsgi-isr refresh`, or invalidate()")
    # Of several apps, a page is that of those who have it.
    having = [isr for isr in own if len(own) > 1 and isr._has(path)]
    return any_of(functools.partial(isr.refresh, path, only_if_cached=only_if_cached) for isr in having or own)


def replay(
    *, store: str | Store | None = None, namespace: str | None = None, journal: str | None = None
) -> tuple[str, ...]:
    """Deliver what the journal has kept, now; the arguments are those of :func:`invalidate`.

    :returns: the stored names of the tags that were delivered.
    :raises InvalidationError: some still cannot be.
    :raises ConfigError: no store or no journal is known.
    """
    here = list(apps_here()) if store is None and namespace is None and journal is None else []
    if own := [isr for isr in here if isr._has_journal]:
        return _replayed(isr.replay for isr in {_place(isr): isr for isr in own}.values())
    given = _given(store, namespace, journal)
    if _unseen(given) is not None:
        return ()
    with _elsewhere(given, begins=True) as invalidator:
        if invalidator.journal is None:
            raise ConfigError("journal", "no journal is known", "give journal=, or set WSGI_ISR_JOURNAL")
        return invalidator.replay()


def _replayed(replays: Iterable[Callable[[], tuple[str, ...]]]) -> tuple[str, ...]:
    """Each is called, whatever the others come to. :raises InvalidationError: for all of them together."""
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


def apps_here() -> Collection[ISR]:
    """Return every :class:`ISR` of this process.

    A command of Django (``manage.py shell``) has loaded the settings and models of its site, but not the application.
    The application knows the store, so it is imported.

    :raises ConfigError: it does not import.
    """
    if instances or (target := _django_application()) is None:
        return instances
    try:
        load(target, "WSGI_APPLICATION")
    except Exception as error:
        remedy = "mend it, or set WSGI_ISR_STORE as the site has it (null:// for none)"
        named = target.replace(":", ".")
        problem = f"Django's WSGI_APPLICATION = {named!r} does not import: {' '.join(str(error).split())}"
        raise ConfigError("store", problem, remedy) from error
    return instances


def _django_application() -> str | None:
    """Return the application of the Django site whose settings this process has loaded, as ``module:attribute``."""
    conf = sys.modules.get("django.conf")
    if conf is None or not (conf.settings.configured or os.environ.get("DJANGO_SETTINGS_MODULE")):
        return None
    # Tests and commands that set these want no cache: nothing has to be found out.
    if _is_unseen(os.environ.get("WSGI_ISR_STORE")):
        return None
    module, dot, attribute = (getattr(conf.settings, "WSGI_APPLICATION", None) or "").rpartition(".")
    return f"{module}:{attribute}" if dot else None


def _given(store: str | Store | None, namespace: str | None, journal: str | bool | None) -> Config:
    """Return what is named, or configured by the environment. :raises ConfigError: that is no store."""
    if store is None and (stand_in := engine.stand_in) is not None:
        config = configured(None, None, {"namespace": namespace}, "")
        settings = replace(config.settings, store=stand_in.store_of(config.settings.store), journal=False)
        return replace(config, settings=settings)
    given = Config.load(options={"store": store, "namespace": namespace, "journal": journal})
    if not given.names_store:
        # The default is a path relative to the app's folder: a job that runs elsewhere would invalidate nothing.
        remedy = (
            "give store=, set WSGI_ISR_STORE as the app has it (null:// for none), or import the module that wraps the "
            "app in ISR"
        )
        raise ConfigError("store", "no store is known here", remedy)
    return given


def _unseen(given: Config) -> str | None:
    """Return why there is nothing to invalidate, where that is so."""
    store = given.settings.store
    if not _is_unseen(store):
        return None
    where = "keeps nothing" if store.lower().startswith("null:") else "is seen by no other process"
    return f"{store} {where}: there is nothing to invalidate"


def _is_unseen(store: object) -> TypeGuard[str]:
    return isinstance(store, str) and store.partition(":")[0].lower() in ("memory", "null")


@contextmanager
def _elsewhere(given: Config, begins: bool = False) -> Iterator[Invalidator]:
    """An invalidator for a store that is in no app of this process. :param begins: see :func:`journal_for`."""
    settings = given.settings
    opened = settings.store if isinstance(settings.store, Store) else open_store(settings.store)
    try:
        registry = Registry(opened, settings.namespace, settings.signing_key)
        journal = journal_for(settings.journal, opened, state_folder(None), begins)
        yield Invalidator(opened, settings.namespace, journal, Events(log_events()), registry=registry)
    finally:
        if opened is not settings.store:
            opened.close()


def _place(isr: ISR) -> tuple[int, str, str | None]:
    return id(isr._store), isr.configuration.settings.namespace, isr.configuration.settings.release


def _in_all(invalidators: Iterable[Invalidator], names: list[str], mode: str) -> Receipt:
    """Each is asked, whatever the others come to; together they have one receipt, or one error."""
    receipts: list[Receipt] = []
    failures: list[InvalidationError] = []
    for invalidator in invalidators:
        try:
            receipts.append(invalidator.invalidate(names, mode))
        except InvalidationError as error:
            failures.append(error)
    if len(receipts) == 1 and not failures:
        return receipts[0]
    undelivered = dict(pair for receipt in receipts for pair in receipt.failures)
    for failure in failures:
        undelivered |= failure.undelivered
    if failures:
        # Without a journal, whatever others have kept: of something, nothing is kept.
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
