"""The instructions for the cache: how old pages may become, and which changes invalidate which pages."""

from __future__ import annotations

import logging

from wsgi_isr import InvalidationError, Rule, invalidate

from . import writing

RULES = {
    "/": Rule(revalidate=10, tags=["posts"]),
    "/posts/<slug>": Rule(revalidate=60, tags=["post:{slug}"]),
    "/tags/<tag>": Rule(revalidate=60, tags=["posts"]),
}


def pages_with(slug: str) -> list[str]:
    """Return the tags of all pages that show parts of a post: its own page, and the lists with its title."""
    return [f"post:{slug}", "posts"]


def invalidate_with(log: logging.Logger) -> None:
    """Invalidate pages at each change in this process, from now on: all visitors see it at once."""

    def on_change(slug: str) -> None:
        try:
            invalidate(tags=pages_with(slug))
        except InvalidationError as error:
            # An unreachable node raises no error: the journal keeps its invalidations, and the log says so. An error
            # is a damaged store file, for example. The change itself is committed, and pages show it when they are
            # regenerated.
            log.warning("%s", error)

    writing.changed.connect(on_change, weak=False)
