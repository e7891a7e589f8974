"""The eight verbs as SQL, in a file that can be used. What to do with one that cannot: ``sqlite.py``.

Two tables: ``entry`` holds the values, ``usage`` holds when each was last used and how large it is.
Apart, since SQLite writes a row as a whole: noting that a page was read must not write the page again.
Triggers keep ``usage`` and the sum of all sizes in step with ``entry``, inside the same transaction.

``used`` is a logical time, one above the highest so far: no clock, so that a clock which is put back
does not turn eviction upside down. Control keys are :data:`AHEAD` of all pages, and so evicted after them.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...errors import StoreUnavailable, ValueTooLarge
from ..base import CONTROL_SHARE, Many, Store, Token, Versioned, is_control
from ..fork_hooks import ForkAware, watch
from .connections import Connection, DatabaseFile, FileBroken, NotOurs, look_at

APPLICATION_ID = 0x57495352  # "WISR"
SCHEMA_VERSION = 2
#: How far the logical time of control keys is ahead of that of pages.
AHEAD = 1 << 61

# The size of an entry is what it takes in the file, by the rules of the format (sqlite.org/fileformat2.html,
# 1.6): a row of more than 4061 bytes leaves 489 to 4061 in its leaf, the rest has pages of its own, 4092 bytes
# in each; so many rows share a leaf as fit there as a whole. On top, indices and usage.
_ROW = "(length(NEW.value) + length(NEW.key) + 40)"
_OWN_PAGES = f"(CASE WHEN {_ROW} <= 4061 THEN 0 ELSE ({_ROW} - 489) / 4092 + (({_ROW} - 489) % 4092 > 3572) END)"
_IN_LEAF = f"(4096 / (4084 / max(min(489, {_ROW}), {_ROW} - 4092 * {_OWN_PAGES})))"
_SIZE = f"{_IN_LEAF} + 4096 * {_OWN_PAGES} + length(NEW.key) * 3 / 2 + 110"
# Two look-ups in the index: the highest of the pages, and of the control keys.
_LAST = (
    f"max(ifnull((SELECT max(used) FROM usage WHERE used < {AHEAD}), 0),"
    f" ifnull((SELECT max(used) FROM usage WHERE used >= {AHEAD}) - {AHEAD}, 0))"
)
_NEXT = f"({_LAST} + 1 + NEW.control * {AHEAD})"

SCHEMA = (
    # Values last: whatever does not ask for them does not read their pages.
    "CREATE TABLE entry (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, control INTEGER NOT NULL,"
    " token BLOB NOT NULL, expires REAL, value BLOB NOT NULL)",
    "CREATE INDEX entry_expires ON entry (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE usage (id INTEGER PRIMARY KEY, used INTEGER NOT NULL, size INTEGER NOT NULL)",
    "CREATE INDEX usage_used ON usage (used)",
    "CREATE TABLE total (bytes INTEGER NOT NULL, control INTEGER NOT NULL)",
    "INSERT INTO total VALUES (0, 0)",
    f"CREATE TRIGGER entry_new AFTER INSERT ON entry BEGIN INSERT INTO usage VALUES (NEW.id, {_NEXT}, {_SIZE}); END",
    f"CREATE TRIGGER entry_written AFTER UPDATE ON entry BEGIN"
    f" UPDATE usage SET used = {_NEXT}, size = {_SIZE} WHERE id = NEW.id; END",
    "CREATE TRIGGER entry_gone AFTER DELETE ON entry BEGIN DELETE FROM usage WHERE id = OLD.id; END",
    "CREATE TRIGGER size_new AFTER INSERT ON usage BEGIN"
    f" UPDATE total SET bytes = bytes + NEW.size, control = control + (NEW.used >= {AHEAD}) * NEW.size; END",
    "CREATE TRIGGER size_written AFTER UPDATE OF size ON usage BEGIN"
    " UPDATE total SET bytes = bytes - OLD.size + NEW.size,"
    f" control = control + (NEW.used >= {AHEAD}) * (NEW.size - OLD.size); END",
    "CREATE TRIGGER size_gone AFTER DELETE ON usage BEGIN"
    f" UPDATE total SET bytes = bytes - OLD.size, control = control - (OLD.used >= {AHEAD}) * OLD.size; END",
)

_LIVE = "(expires IS NULL OR expires > ?)"
_GET = f"SELECT id, value FROM entry WHERE key = ? AND {_LIVE}"
_GETS = f"SELECT id, value, token FROM entry WHERE key = ? AND {_LIVE}"
_GET_MANY = f"SELECT id, value, key FROM entry WHERE key IN (%s) AND {_LIVE}"
_HAS = f"SELECT id FROM entry WHERE key = ? AND {_LIVE}"
_SET = (
    "INSERT INTO entry (key, control, token, expires, value) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (key) DO UPDATE"
    " SET token = excluded.token, expires = excluded.expires, value = excluded.value"
)
_ADD = f"{_SET} WHERE entry.expires <= ?"
_CAS = f"UPDATE entry SET token = ?, expires = ?, value = ? WHERE key = ? AND token = ? AND {_LIVE}"
_DELETE = f"DELETE FROM entry WHERE key = ? AND {_LIVE}"
_PURGE = "DELETE FROM entry WHERE id IN (SELECT id FROM entry WHERE expires <= ? LIMIT 32)"

#: Keys in one SELECT; older SQLite takes 999 parameters.
_KEYS_AT_ONCE = 500
#: Entries that one transaction evicts at most: others are waiting to write.
_EVICT_AT_ONCE = 128
#: Reads noted before they are written down, and seconds after which they are in any case.
_NOTES_AT_ONCE = 256
_NOTES_EVERY = 5.0


class SQLiteTable(Store):
    """The store in a file that works. Every verb may raise :class:`FileBroken` as well.

    :param clock: wall time in seconds, the same for all processes and after a restart.
    """

    def __init__(self, path: str, max_bytes: int, timeout: float, clock: Callable[[], float]) -> None:
        self.max_bytes = max_bytes
        self.max_value = min(Store.max_value, max_bytes // 4)
        self._file = DatabaseFile(path, timeout, prepare)
        self._clock = clock
        self._notes = Notes(clock)

    def get(self, key: str) -> bytes | None:
        row = self._row(_GET, key)
        return None if row is None else row[1]

    def gets(self, key: str) -> Versioned | None:
        row = self._row(_GETS, key)
        return None if row is None else Versioned(row[1], row[2])

    def get_many(self, keys: Sequence[str]) -> Many:
        values: dict[str, bytes] = {}
        try:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[start : start + _KEYS_AT_ONCE]
                statement = _GET_MANY % ", ".join("?" * len(some))
                with self._file.connection() as connection:
                    rows = connection.execute(statement, (*some, self._clock())).fetchall()
                values.update((key, value) for _, value, key in rows)
                self._note(row[0] for row in rows)
        except StoreUnavailable as error:
            return Many(values, {key: error for key in keys if key not in values})
        return Many(values, {})

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._refuse_large(key, value)
        row = key, is_control(key), _new_token()
        self._write(_SET, lambda now: (*row, _expires(now, ttl), bytes(value)))

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        # Most calls lose (everybody tries for a lock, one gets it): they need not queue for writing.
        if self._has(key):
            return False
        return self._write(
            _ADD, lambda now: (key, is_control(key), _new_token(), _expires(now, ttl), bytes(value), now)
        )

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        if not isinstance(token, bytes):  # from another store, such as the one this stood in for
            return False
        return self._write(_CAS, lambda now: (_new_token(), _expires(now, ttl), value, key, token, now))

    def delete(self, key: str) -> bool:
        return self._has(key) and self._write(_DELETE, lambda now: (key, now))

    def close(self) -> None:
        self._file.close()

    def look(self) -> None:
        """Return if the file can be used, as far as that shows before it is opened.

        :raises FileBroken: it cannot. :raises NotOurs: it is another program's database.
        """
        look_at(self._file.path, _is_ours)

    # Reading

    def _row(self, statement: str, key: str) -> Any:
        with self._file.connection() as connection:
            # fetchall, not fetchone: a statement that is not run to its end keeps its read lock.
            rows = connection.execute(statement, (key, self._clock())).fetchall()
        if not rows:
            return None
        self._note((rows[0][0],))
        return rows[0]

    def _has(self, key: str) -> bool:
        with self._file.connection() as connection:
            return bool(connection.execute(_HAS, (key, self._clock())).fetchall())

    def _note(self, ids: Iterable[int]) -> None:
        """A process that only reads must write its notes down too, or others evict what it needs."""
        if not self._notes.add(ids):
            return
        try:
            with self._file.transaction(wait=False) as connection:
                self._notes.write_down(connection)
        except StoreUnavailable:
            pass  # somebody is writing; the notes are still here, and in time for the next attempt

    # Writing

    def _write(self, statement: str, parameters: Callable[[float], tuple[object, ...]]) -> bool:
        """Whether the statement changed anything. Its parameters are made once the lock is held: what
        has expired while waiting for it has expired."""
        with self._file.transaction() as connection:
            now = self._clock()
            self._notes.write_down(connection)  # first, so that what is written now is newer
            changed = connection.execute(statement, parameters(now)).rowcount > 0
            connection.execute(_PURGE, (now,))
            crowded = self._evict(connection)
        while crowded:
            try:
                with self._file.transaction() as connection:
                    crowded = self._evict(connection)
            except StoreUnavailable:
                break  # what was asked for is done; the next write goes on
        return changed

    def _evict(self, connection: Connection) -> bool:
        """Make room, a batch at a time; whether there is more to do. Control keys have a part of the room, and the
        pages the rest of it."""
        [[total, control]] = connection.execute("SELECT bytes, control FROM total").fetchall()
        more = _delete_oldest(connection, AHEAD, control - self.max_bytes * CONTROL_SHARE)
        return _delete_oldest(connection, 0, total - self.max_bytes) or more

    def _refuse_large(self, key: str, value: bytes) -> None:
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)


def _delete_oldest(connection: Connection, since: int, excess: float) -> bool:
    """Delete what was not used for longest, from the logical time ``since`` on; whether ``excess`` bytes more than a
    batch remain."""
    if excess <= 0:
        return False
    oldest = connection.execute(
        "SELECT id, size FROM usage WHERE used >= ? ORDER BY used LIMIT ?", (since, _EVICT_AT_ONCE)
    )
    victims = []
    for number, size in oldest.fetchall():
        victims.append((number,))
        excess -= size
        if excess <= 0:
            break
    gone = connection.executemany("DELETE FROM entry WHERE id = ?", victims).rowcount
    return excess > 0 and gone > 0


class Notes(ForkAware):
    """Which entries were read since it was last written down, the latest last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ids: dict[int, None] = {}
        self._tried = clock()
        watch(self)

    def after_fork_in_child(self) -> None:
        """A reader may have been noting something in the parent, with the lock, at that moment."""
        self._lock = threading.Lock()
        self._ids = {}

    def add(self, ids: Iterable[int]) -> bool:
        """Whether it is time to write them down."""
        with self._lock:
            for number in ids:
                self._ids.pop(number, None)
                self._ids[number] = None
            while len(self._ids) > 4 * _NOTES_AT_ONCE:
                del self._ids[next(iter(self._ids))]
            if not self._ids:
                return False
            now = self._clock()
            due = abs(now - self._tried) >= _NOTES_EVERY or len(self._ids) % _NOTES_AT_ONCE == 0
            if due:
                self._tried = now
            return due

    def write_down(self, connection: Connection) -> None:
        """Within a transaction. Lost where that fails afterwards: only the order of eviction is."""
        with self._lock:
            ids, self._ids = self._ids, {}
            self._tried = self._clock()
        if ids:
            [[last]] = connection.execute(f"SELECT {_LAST}").fetchall()
            connection.executemany(
                f"UPDATE usage SET used = ? + (used >= {AHEAD}) * {AHEAD} WHERE id = ?",
                [(used, number) for used, number in enumerate(ids, last + 1)],
            )


def prepare(connection: Connection) -> None:
    """Make the tables in a new file; make sure that an old one is ours.

    The tables of an earlier version are made anew: what they held is only a cache, and lost tags count as invalidated.

    :raises NotOurs: another program's database.
    :raises FileBroken: made by a later version of this package.
    """
    # One transaction, one moment: between two, another process may make the tables, and a number from
    # before with tables from after would look like the database of another program.
    connection.execute("BEGIN")
    ours = _is_ours(connection)
    connection.execute("COMMIT")
    if ours:
        return
    # Both stay in the file. They cannot be set inside a transaction, and are harmless when repeated.
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    if not _is_ours(connection):  # no other process was faster
        for statement in ("DROP TABLE IF EXISTS entry", "DROP TABLE IF EXISTS usage", "DROP TABLE IF EXISTS total"):
            connection.execute(statement)
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _is_ours(connection: sqlite3.Connection) -> bool:
    """Return whether the tables are there, and of this version."""
    [[application]] = connection.execute("PRAGMA application_id").fetchall()
    [[version]] = connection.execute("PRAGMA user_version").fetchall()
    if application == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise FileBroken(f"it was made by a later version (its tables are of version {version})", "")
        return bool(version == SCHEMA_VERSION)
    if application or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall():
        raise NotOurs("it is the database of another program", "name a file that does not exist yet")
    return False


def _new_token() -> bytes:
    """Random, not counted: a file that was deleted and made anew must not start to count again."""
    return os.urandom(16)


def _expires(now: float, ttl: float | None) -> float | None:
    return None if ttl is None else now + ttl
