"""The site behind the cache: pages made of rows, each of which shows the version that was committed last.

It lives in the directory ``CLUSTER_DIRECTORY``: the database, and the files that script it.

========  ======================================================================================
``fail``   while this file exists, every render fails: it ``raise``\\ s, or answers with the status in
           the file
``hold``   while this file exists, a render that has read its rows waits, and creates the file ``held``
========  ======================================================================================

``CLUSTER_SLOW``: the longest time of a render, in seconds. Each render takes a random time, partly before it reads
rows, partly between them.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsgi_isr import Rule, cache_tag, cached
from wsgi_isr.cache.invalidation import tag_names

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: Seconds after which a held render goes on in any case.
LONGEST_HOLD = 30.0
#: The rows, and the arguments of ``invalidate`` for a change of each.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "site": {"everything": True},
    "posts": {"tags": ["posts"]},
    **{f"post {number}": {"tags": [f"post:{number}"]} for number in (1, 2, 3)},
    **{f"author {number}": {"tags": [f"author:{number}"]} for number in (0, 1)},
    "featured": {"tags": ["featured"]},
    **{f"item {number}": {"tags": [f"item:{number}"]} for number in (0, 1, 2)},
    "about": {"paths": ["/about"]},
    "docs": {"prefixes": ["/docs"]},
    "shop": {"routes": ["/shop/<name>"]},
    "ticker": {"tags": ["ticker"]},
}
RULES: Mapping[str, Any] = {
    "/": Rule(revalidate=False, tags=["posts"]),
    "/posts/<number>": Rule(revalidate=False, tags=["posts", "post:{number}"]),
    "/featured": Rule(revalidate=False, tags=["featured"]),
    "/about": Rule(revalidate=False),
    "/docs/<path:rest>": Rule(revalidate=False),
    "/shop/<name>": Rule(revalidate=False),
    "/ticker": Rule(revalidate=1, tags=["ticker"]),
    "/data": Rule(revalidate=False),
}
PAGES = (
    *("/", "/posts/1", "/posts/2", "/posts/3", "/featured", "/about", "/docs/a", "/docs/b/c", "/shop/x", "/ticker"),
    "/data",
)


def selection(rows: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of one ``invalidate`` for several rows."""
    together: dict[str, Any] = {}
    for row in rows:
        for name, value in ROWS[row].items():
            together[name] = value if value is True else [*together.get(name, []), *value]
    return together


def tag_of(row: str) -> str:
    """Return the stored name of a row's tag."""
    return tag_names(**ROWS[row])[0]


class Database:
    """The rows in an SQLite file; one connection for each thread.

    :param directory: of the file.
    """

    def __init__(self, directory: str | Path) -> None:
        self._path = Path(directory) / "site.sqlite3"
        self._own = threading.local()

    def create(self) -> None:
        """Create every row in version 1."""
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE pages (row TEXT PRIMARY KEY, version INTEGER NOT NULL)")
            connection.executemany("INSERT INTO pages VALUES (?, 1)", [(row,) for row in ROWS])

    def read(self, row: str) -> int:
        """Return the version that was committed last."""
        with self._connection() as connection:
            found = connection.execute("SELECT version FROM pages WHERE row = ?", (row,)).fetchone()
        return int(found[0])

    def commit(self, rows: Sequence[str]) -> dict[str, int]:
        """Commit the next version of each of ``rows`` in one transaction, and return the versions."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("UPDATE pages SET version = version + 1 WHERE row = ?", [(row,) for row in rows])
            found = connection.execute("SELECT row, version FROM pages").fetchall()
            connection.execute("COMMIT")
        return {row: version for row, version in found if row in rows}

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            # Autocommit: each SELECT sees all commits before it.
            connection = sqlite3.connect(self._path, timeout=20, isolation_level=None)
            connection.execute("PRAGMA synchronous=OFF")  # processes are killed here, machines are not
            self._own.connection = connection
        yield connection


@cached(revalidate=False, tags=["featured"])
def featured(directory: str) -> dict[str, int]:
    """Return the rows of the featured post, from the data cache."""
    database = Database(directory)
    versions = {"featured": database.read("featured")}
    time.sleep(random.uniform(0.0, 0.05))
    number = versions["featured"] % 3
    versions[f"item {number}"] = database.read(f"item {number}")
    cache_tag(f"item:{number}")
    return versions


class Site:
    """The WSGI app."""

    def __init__(self, directory: str | Path, slow: float = 0.0) -> None:
        self._directory = Path(directory)
        self._database = Database(directory)
        self._slow = slow

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "OPTIONS":  # a check whether the server runs
            return self._send(start_response, "200 OK", {"pid": os.getpid()})
        path = environ["PATH_INFO"]
        with _taking(random.uniform(0.0, self._slow)) as pause:
            pause()
            if (status := self._failure()) is not None:
                return self._send(start_response, status, {"path": path, "failed": True})
            versions: dict[str, int] = {}
            for row in self._rows(path, versions):
                versions[row] = self._database.read(row)
                pause()
        self._hold()
        return self._send(start_response, "200 OK", {"path": path, "versions": versions, "pid": os.getpid()})

    def _rows(self, path: str, read: MutableMapping[str, int]) -> Iterator[str]:
        """Yield the rows of a page, one after another; tags are declared after the row was read."""
        yield "site"
        if path == "/":
            yield "posts"
            for number in (1, 2, 3):
                yield f"post {number}"
                cache_tag(f"post:{number}")
        elif path.startswith("/posts/"):
            post = f"post {path[7:]}"
            yield from ("posts", post)
            # The tag is not known before the render, and may be another one the next time.
            number = read[post] % 2
            yield f"author {number}"
            cache_tag(f"author:{number}")
        elif path == "/featured":
            yield "featured"
            number = read["featured"] % 3
            yield f"item {number}"
            cache_tag(f"item:{number}")
        elif path == "/data":
            # The page and its cached data read the same row: the page is as old as the older of both.
            yield "featured"
            cache_tag("featured")
            for row, version in featured(str(self._directory)).items():
                read[row] = min(version, read.get(row, version))
        else:
            yield path.split("/")[1]

    def _failure(self) -> str | None:
        try:
            what = (self._directory / "fail").read_text()
        except FileNotFoundError:
            return None
        if what == "raise":
            raise RuntimeError("this render was to fail")
        return what

    def _hold(self) -> None:
        deadline = time.monotonic() + LONGEST_HOLD
        while (self._directory / "hold").exists() and time.monotonic() < deadline:
            (self._directory / "held").touch()
            time.sleep(0.01)

    @staticmethod
    def _send(start_response: StartResponse, status: str, page: Mapping[str, Any]) -> Iterable[bytes]:
        body = json.dumps(page).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


@contextmanager
def _taking(seconds: float) -> Iterator[Any]:
    """Make the block take ``seconds`` or longer. Each call of the yielded function sleeps for a random part of the
    remaining time, or not at all."""
    until = time.monotonic() + seconds

    def pause() -> None:
        left = until - time.monotonic()
        if left > 0 and random.random() < 0.4:
            time.sleep(left * random.random())

    yield pause
    if (left := until - time.monotonic()) > 0:
        time.sleep(left)
