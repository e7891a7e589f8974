"""Changes to the blog, and the signal that reports them.

``changed`` is sent after a change is committed, with the post's slug. Caches of pages subscribe to it; the blog itself
knows no subscriber.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from blinker import Signal

from . import db

changed = Signal()


def publish(
    connection: sqlite3.Connection, author_id: int, slug: str, tags: Iterable[str], title: str, summary: str, body: str
) -> bool:
    """Publish a post; return ``False`` where there is one with this slug already."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # commits, or rolls back when an error is raised
        try:
            post_id = connection.execute(
                "INSERT INTO post (slug, title, summary, body, author_id, published) VALUES (?, ?, ?, ?, ?, ?)",
                (slug, title, summary, body.replace("\r\n", "\n"), author_id, db.now()),
            ).lastrowid
        except sqlite3.IntegrityError:
            return False
        rows = [(post_id, tag) for tag in tags]
        connection.executemany("INSERT INTO post_tag (post_id, tag) VALUES (?, ?)", rows)
    changed.send(slug)
    return True


def comment(connection: sqlite3.Connection, post: sqlite3.Row, name: str, body: str) -> int:
    """Add a comment; return its id."""
    made = connection.execute(
        "INSERT INTO comment (post_id, name, body, written) VALUES (?, ?, ?, ?)", (post["id"], name, body, db.now())
    ).lastrowid
    changed.send(post["slug"])
    assert made is not None
    return made
