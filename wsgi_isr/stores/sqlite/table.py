"""The eight verbs as SQL, in a usable file; :mod:`.store` handles a broken one.

Table ``entry`` holds the values. Table ``usage`` holds when each value was last used, and its size. The tables are
separate because SQLite writes a row as a whole: recording a read must not write the page again. Triggers keep ``usage``
and the sum of all sizes in step with ``entry``, inside the same transaction.

``used`` is a logical time, one above the highest so far. A clock is not used: one that is set back would reverse the
order of eviction. Control keys are :data:`AHEAD` of all pages, so they are evicted after them.
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
#: The lead of the logical time of control keys over that of pages.
AHEAD = 1 << 61

# The size of an entry is its size in the file, by the rules of the format (sqlite.org/fileformat2.html, 1.6). A row of
# more than 4061 bytes leaves 489 to 4061 in its leaf; the rest takes overflow pages, 4092 bytes in each. A leaf holds
# only whole rows. Indices and usage come on top.
_ROW = "(length(NEW.value) + length(NEW.key) + 40)"
_OWN_PAGES = f"(CASE WHEN {_ROW} <= 4061 THEN 0 ELSE ({_ROW} - 489) / 4092 + (({_ROW} - 489) % 4092 > 3572) END)"
_IN_LEAF = f"(4096 / (4084 / max(min(489, {_ROW}), {_ROW} - 4092 * {_OWN_PAGES})))"
_SIZE = f"{_IN_LEAF} + 4096 * {_OWN_PAGES} + length(NEW.key) * 3 / 2 + 110"
# Two index look-ups: the highest time of the pages, and of the control keys.
_LAST = (
    f"max(ifnull((SELECT max(used) FROM usage WHERE used < {AHEAD}), 0),"
    f" ifnull((SELECT max(used) FROM usage WHERE used >= {AHEAD}) - {AHEAD}, 0))"
)
_NEXT = f"({_LAST} + 1 + NEW.control * {AHEAD})"

SCHEMA = (
    # Values last: a query without the value does not read its overflow pages.
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
#: The most entries that one transaction evicts: others are waiting to write.
_EVICT_AT_ONCE = 128
#: Reads that are collected before they are written, and seconds after which they are written in any case.
_NOTES_AT_ONCE = 256
_NOTES_EVERY = 5.0


class SQLiteTable(Store):
    """The store in a usable file. Every verb may raise :class:`FileBroken` as well.

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
        # Most calls lose: all processes try for a lease, one gets it. Losers need not queue for writing.
        if self._has(key):
            return False
        return self._write(
            _ADD, lambda now: (key, is_control(key), _new_token(), _expires(now, ttl), bytes(value), now)
        )

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        if not isinstance(token, bytes):  # from another store, such as the memory that replaces the file
            return False
        return self._write(_CAS, lambda now: (_new_token(), _expires(now, ttl), value, key, token, now))

    def delete(self, key: str) -> bool:
        return self._has(key) and self._write(_DELETE, lambda now: (key, now))

    def close(self) -> None:
        self._file.close()

    def look(self) -> None:
        """Return if the file can be used, as far as that shows before it is opened.

        :raises FileBroken: it cannot.
        :raises NotOurs: it is another program's database.
        """
        look_at(self._file.path, _is_ours)

    # Reading

    def _row(self, statement: str, key: str) -> Any:
        with self._file.connection() as connection:
            # fetchall: a statement that is not run to its end keeps its read lock, as after fetchone.
            rows = connection.execute(statement, (key, self._clock())).fetchall()
        if not rows:
            return None
        self._note((rows[0][0],))
        return rows[0]

    def _has(self, key: str) -> bool:
        with self._file.connection() as connection:
            return bool(connection.execute(_HAS, (key, self._clock())).fetchall())

    def _note(self, ids: Iterable[int]) -> None:
        """Record reads. A process that only reads must write them, too: else other processes evict its entries."""
        if not self._notes.add(ids):
            return
        try:
            with self._file.transaction(wait=False) as connection:
                self._notes.write_down(connection)
        except StoreUnavailable:
            pass  # another process is writing; the notes stay for the next attempt

    # Writing

    def _write(self, statement: str, parameters: Callable[[float], tuple[object, ...]]) -> bool:
        """Return whether the statement changed anything.

        The parameters are computed under the lock: an entry may expire during the wait for the lock.
        """
        with self._file.transaction() as connection:
            now = self._clock()
            self._notes.write_down(connection)  # first: the new entry must be newer than the reads
            changed = connection.execute(statement, parameters(now)).rowcount > 0
            connection.execute(_PURGE, (now,))
            crowded = self._evict(connection)
        while crowded:
            try:
                with self._file.transaction() as connection:
                    crowded = self._evict(connection)
            except StoreUnavailable:
                break  # the write itself is done; the next write goes on with evicting
        return changed

    def _evict(self, connection: Connection) -> bool:
        """Evict a batch of entries; return whether more must go.

        Control keys have a share of the room, pages have the rest.
        """
        [[total, control]] = connection.execute("SELECT bytes, control FROM total").fetchall()
        more = _delete_oldest(connection, AHEAD, control - self.max_bytes * CONTROL_SHARE)
        return _delete_oldest(connection, 0, total - self.max_bytes) or more

    def _refuse_large(self, key: str, value: bytes) -> None:
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)


def _delete_oldest(connection: Connection, since: int, excess: float) -> bool:
    """Delete a batch of the least recently used entries, from the logical time ``since`` on.

    :returns: whether more than the batch has to be deleted to free ``excess`` bytes.
    """
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
    """The entries that were read since the last write of these notes, the latest last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ids: dict[int, None] = {}
        self._tried = clock()
        watch(self)

    def after_fork_in_child(self) -> None:
        """Replace the lock: another thread of the parent may have held it during the fork."""
        self._lock = threading.Lock()
        self._ids = {}

    def add(self, ids: Iterable[int]) -> bool:
        """Record reads; return whether it is time to write them."""
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
        """Write the reads within a transaction. If the transaction fails, only the order of eviction is lost."""
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
    """Create the tables in a new file; check that an old one belongs to this package.

    Tables of an earlier version are replaced: they held only a cache, and lost tags count as invalidated.

    :raises NotOurs: it is another program's database.
    :raises FileBroken: a later version of this package created it.
    """
    # One transaction: another process may create the tables between two statements. An application id from before and
    # tables from after would look like the database of another program.
    connection.execute("BEGIN")
    ours = _is_ours(connection)
    connection.execute("COMMIT")
    if ours:
        return
    # Both settings persist in the file. They cannot be set inside a transaction, and are harmless when repeated.
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
    """Return random bytes: a counter would start again in a file that was deleted and created anew."""
    return os.urandom(16)


def _expires(now: float, ttl: float | None) -> float | None:
    return None if ttl is None else now + ttl
