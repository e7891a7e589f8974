"""The blog's SQLite database: created once, opened for each render, closed after it."""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

from flask import current_app, g

from . import seed

SCHEMA = Path(__file__).with_name("schema.sql")
SCHEMA_VERSION = 1


def connect(path: Path) -> sqlite3.Connection:
    """Open the database in autocommit mode; a writer uses ``BEGIN IMMEDIATE`` itself."""
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def ensure(path: Path) -> None:
    """Create and fill the database unless it exists.

    Two processes that start at once take turns by the lock file. The file is filled beside its place and then moved
    there. So no process ever opens a half-written blog, even after a kill in the middle.

    :raises RuntimeError: the file there was made by another version of this example.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(path.name + ".new")
            unfinished.unlink(missing_ok=True)
            with closing(connect(unfinished)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(SCHEMA.read_text("utf-8"))
                connection.execute("BEGIN IMMEDIATE")
                seed.fill(connection)
                connection.execute(
                    "INSERT INTO setting (name, value) VALUES ('secret_key', ?)", (secrets.token_hex(32),)
                )
                connection.execute("COMMIT")
            os.replace(unfinished, path)
    with closing(connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise RuntimeError(f"{path} is not a database of this blog (version {version}): move it away")


def secret_key(path: Path) -> str:
    """Return the key that signs sessions. It is kept with the data, as all workers must have the same one."""
    with closing(connect(path)) as connection:
        row = connection.execute("SELECT value FROM setting WHERE name = 'secret_key'").fetchone()
    return str(row["value"])


def get() -> sqlite3.Connection:
    """Return the connection of this render."""
    if "db" not in g:
        g.db = connect(current_app.config["DB"])
    connection: sqlite3.Connection = g.db
    return connection


def close(_error: BaseException | None = None) -> None:
    """Close the connection of this render, if it opened one."""
    connection = g.pop("db", None)
    if connection is not None:
        connection.close()


def now() -> str:
    """Return the current time as the database writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
