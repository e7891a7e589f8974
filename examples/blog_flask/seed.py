"""The initial content of the blog: read ``content/*.txt`` into the database.

A file has a head of ``Name: value`` lines, an empty line and the text. Each comment follows after a line of ``---``, in
the same form. The file's name is its date and the slug of the post.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from werkzeug.security import generate_password_hash

CONTENT = Path(__file__).with_name("content")


class Person(NamedTuple):
    """A row of ``user``, with the password that the demo prints."""

    login: str
    name: str
    bio: str
    password: str | None = None
    is_admin: bool = False


PEOPLE = (
    Person(
        "admin",
        "Robin Vale",
        "Keeps this site running and writes little.",
        password="admin",
        is_admin=True,
    ),
    Person("reader", "Kim Ferro", "Reads everything, and has an account to prove it.", password="reader"),
    Person("ada", "Ada Okafor", "Web developer. Likes systems that can say what they are doing."),
    Person("jonas", "Jonas Lind", "Looks after databases, and after the people who wait for them."),
    Person("mei", "Mei Tanaka", "On call more often than she would like; writes about why."),
)


def fill(connection: sqlite3.Connection) -> None:
    """Insert the people, posts and comments; the caller holds the transaction."""
    authors = {person.login: _insert_person(connection, person) for person in PEOPLE}
    for path in sorted(CONTENT.glob("*.txt")):
        slug = path.stem[len("2024-01-31-") :]
        post, *comments = path.read_text("utf-8").split("\n---\n")
        head, body = _parse(post)
        post_id = connection.execute(
            "INSERT INTO post (slug, title, summary, body, author_id, published) VALUES (?, ?, ?, ?, ?, ?)",
            (slug, head["Title"], head["Summary"], body, authors[head["Author"]], head["Published"]),
        ).lastrowid
        connection.executemany(
            "INSERT INTO post_tag (post_id, tag) VALUES (?, ?)",
            [(post_id, tag.strip()) for tag in head["Tags"].split(",")],
        )
        for comment in comments:
            head, body = _parse(comment)
            connection.execute(
                "INSERT INTO comment (post_id, name, body, written) VALUES (?, ?, ?, ?)",
                (post_id, head["From"], body, head["Date"]),
            )


def _insert_person(connection: sqlite3.Connection, person: Person) -> int | None:
    password_hash = generate_password_hash(person.password) if person.password else None
    return connection.execute(
        "INSERT INTO user (login, name, bio, password_hash, is_admin) VALUES (?, ?, ?, ?, ?)",
        (person.login, person.name, person.bio, password_hash, person.is_admin),
    ).lastrowid


def _parse(part: str) -> tuple[dict[str, str], str]:
    head, _, body = part.partition("\n\n")
    return dict(line.split(": ", 1) for line in head.splitlines()), body.strip("\n")
