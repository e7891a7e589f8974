"""All of one process: every :class:`~wsgi_isr.ISR` in it, and the helpers that speak to all of them."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from . import engine
from .config import Config
from .data import inside, live_in
from .development import development_of
from .engine import Engine
from .errors import ConfigError, InvalidationError
from .events import Events
from .instrumentation.log import log_events
from .invalidate import Invalidator, Journal, Receipt, tag_names
from .middleware import ISR, any_of, instances
from .stores import open_store
from .stores.base import Store
from .stores.null import NullStore
from .wrapping import configured

_beginning = threading.Lock()
# For scripts that only use cached functions: as the environment says, like ISR() itself.
_alone: Engine | None = None


def _homes() -> list[Engine]:
    """Where data is kept that is used outside of any app: as many as there are places."""
    if instances:
        return list({_place(isr): isr.begin() for isr in list(instances)}.values())
    global _alone
    with _beginning:
        if _alone is None:
            _alone = _begin_alone()
        return [_alone]


def _begin_alone() -> Engine:
    """Return an engine for the data of a process that wraps no app."""
    config = configured(None, None, {}, "")
    store, events = config.settings.store, Events(log_events())
    if (stand_in := engine.stand_in) is not None:
        return Engine(config.without_journal(), stand_in.store_of(store), events, inline=True)
    if (development := development_of(config.settings.development, None)) is not None:
        development.announce()
        return Engine(config.without_journal(), NullStore(), events)
    return Engine(config, store if isinstance(store, Store) else open_store(store), events)


def exchange_alone(other: Engine | None) -> Engine | None:
    """Put another engine in the place of the one for data outside of any app, and return that."""
    global _alone
    alone, _alone = _alone, other
    return alone


live_in(_homes)


def _after_fork() -> None:
    # Threads, flights and locks of the parent do not exist here; L1 begins empty.
    global _alone, _beginning
    _beginning = threading.Lock()
    _alone = None
    for isr in instances:
        isr.begin_anew()


os.register_at_fork(after_in_child=_after_fork)


def close_all(timeout: float | None = None) -> None:
    """Drain every :class:`ISR` of this process; what the gunicorn hooks call.

    :param timeout: seconds for all together; the ``drain`` of each by default.
    """
    global _alone
    began = time.monotonic()

    def left(drain: float) -> float:
        # The drains run out together, not one after the other.
        return max(0.0, began + (drain if timeout is None else timeout) - time.monotonic())

    for isr in list(instances):
        isr.close(left(isr.configuration.settings.drain))
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
    if store is None and namespace is None and journal is None and (here := list(instances)):
        rules = {pattern for isr in here for pattern in isr.configuration.rules.policies}
    names = tag_names(tags, paths, routes, prefixes, everything, rules)
    if rules is not None:
        return _in_all({_place(isr): isr.begin().invalidator for isr in here}.values(), names, mode)
    with _elsewhere(store, namespace, journal) as invalidator:
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
    own = [isr for isr in instances if isr.is_at(home)] or list(instances)
    if not own:
        raise ConfigError("refresh", "no app is wrapped in this process", "use `wsgi-isr refresh`, or invalidate()")
    # Of several apps, a page is that of those who have it.
    having = [isr for isr in own if len(own) > 1 and isr.has(path)]
    return any_of(functools.partial(isr.refresh, path, only_if_cached=only_if_cached) for isr in having or own)


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
    if store is None and (stand_in := engine.stand_in) is not None:
        settings = configured(None, None, {"namespace": namespace}, "").settings
        yield Invalidator(stand_in.store_of(settings.store), settings.namespace)
        return
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


def _place(isr: ISR) -> tuple[int, str, str | None]:
    return id(isr.store), isr.configuration.settings.namespace, isr.configuration.settings.release


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
