"""Refresh pages on demand: the app or a script calls ``refresh()``, and no client does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from ..cache.entry import Content, Entry, HitForMiss
from ..cache.keyspace import path_tag
from ..cache.tag_versions import Mode
from ..cache.task import Failed
from ..config.origin import Site
from ..engine import Engine
from ..errors import ISRError, RefreshError
from ..pages.resolver import Page, Pages


def refresh_path(engine: Engine, pages: Pages, path: str, only_if_cached: bool, site: Site | None) -> bool:
    """Render the page at a path once for each known site, and return whether any page has changed.

    The parameters are those of :meth:`wsgi_isr.ISR.refresh`.
    """
    at_path = pages.everywhere(path, site)
    calls: list[Callable[[], bool]] = []
    for page in at_path:
        if len(calls) < pages.sites.max_refreshed and (entry := _entry_of(engine, page)) is not None:
            # The first call marks all variants of the page as stale, on all sites.
            calls.append(functools.partial(_refresh, engine, path, page, entry, marks_stale=not calls))
    if not calls and not only_if_cached:
        # The page is not in the cache yet.
        calls.append(functools.partial(_refresh, engine, path, at_path[0], None))
    changed = any_of(calls)
    # The edges have a page from before the refresh, or an unchanged one with an older lifetime.
    engine.invalidator.purge_edges([path_tag(at_path[0].path)], Mode.STALE)
    return changed


def is_stored(engine: Engine, pages: Pages, path: str) -> bool:
    """Return whether the store has a page at a public path, for any site.

    :raises StoreError: the store cannot be asked.
    """
    try:
        return any(_entry_of(engine, page) is not None for page in pages.everywhere(path))
    except RefreshError:
        return False


def any_of(calls: Iterable[Callable[[], bool]]) -> bool:
    """Make all calls, and return whether any of them has changed a page.

    A call that fails does not prevent later calls. An error of the first call is raised at the end. Errors of later
    calls are dropped.
    """
    results: list[bool | ISRError] = []
    for call in calls:
        try:
            results.append(call())
        except ISRError as error:
            results.append(error)
    if results and isinstance(results[0], ISRError):
        raise results[0]
    return any(changed is True for changed in results)


def _entry_of(engine: Engine, page: Page) -> Entry | None:
    entry = engine.cache.kept(page.task)
    return entry if entry is not None and isinstance(entry.content, Content) else None


def _refresh(engine: Engine, path: str, page: Page, before: Entry | None, marks_stale: bool = True) -> bool:
    outcome = engine.cache.refresh(page.task, path_tag(page.path) if marks_stale else "")
    if isinstance(outcome, Failed):
        raise RefreshError(path, outcome.reason) from outcome.error
    content = outcome.cached.entry.content
    if not isinstance(content, Content):
        raise RefreshError(path, content.reason if isinstance(content, HitForMiss) else "unreadable")
    old = before.content if before is not None else None
    # The bodies are compared too: an app may give different bodies the same entity tag.
    new = (content.status, content.etag, content.body)
    return not isinstance(old, Content) or (old.status, old.etag, old.body) != new
