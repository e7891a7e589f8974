"""What the cache is told: how old pages may get, and when one has changed. All of it is here."""

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
    """The tags of all pages that show something of a post: its own, and the lists with its title."""
    return [f"post:{slug}", "posts"]


def invalidate_with(log: logging.Logger) -> None:
    """From now on, what changes in this process is seen at once by everybody."""

    def on_change(slug: str) -> None:
        try:
            invalidate(tags=pages_with(slug))
        except InvalidationError as error:
            # A node that is away is no error: the journal keeps what it has missed, and the log says so. An error is a
            # damaged file of the store, say. What was written is committed, and pages show it when they are renewed.
            log.warning("%s", error)

    writing.changed.connect(on_change, weak=False)
