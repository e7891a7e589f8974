"""The eight verbs as SQL, for a file that can be used. :mod:`.store` handles other files.

Table ``entry`` holds the values. Table ``usage`` holds the time of the last use and the size of each value. The tables
are separate because SQLite writes a row as a whole: the record of a read must not write the page again. Triggers update
``usage`` and the sum of all sizes with ``entry``, in the same transaction.

``used`` is a logical time, one above the highest so far. A clock that is set back would reverse the order of eviction.
The times of control keys are :data:`AHEAD` of those of pages, so pages are evicted first.
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
from .connections import Connection, DatabaseFile, FileBroken, ForeignDatabase, check_file

APPLICATION_ID = 0x57495352  # "WISR"
SCHEMA_VERSION = 2
#: The difference between the logical times of control keys and of pages.
AHEAD = 1 << 61

# The size of an entry is its size in the file (sqlite.org/fileformat2.html, 1.6). A row above 4061 bytes has 489 to
# 4061 bytes in its leaf. Overflow pages of 4092 bytes hold the rest. A leaf holds only whole rows. Indices and usage
# are added.
_ROW = "(length(NEW.value) + length(NEW.key) + 40)"
_OWN_PAGES = f"(CASE WHEN {_ROW} <= 4061 THEN 0 ELSE ({_ROW} - 489) / 4092 + (({_ROW} - 489) % 4092 > 3572) END)"
_IN_LEAF = f"(4096 / (4084 / max(min(489, {_ROW}), {_ROW} - 4092 * {_OWN_PAGES})))"
_SIZE = f"{_IN_LEAF} + 4096 * {_OWN_PAGES} + length(NEW.key) * 3 / 2 + 110"
# Two look-ups in an index: the highest time of the pages, and of the control keys.
_LAST = (
    f"max(ifnull((SELECT max(used) FROM usage WHERE used < {AHEAD}), 0),"
    f" ifnull((SELECT max(used) FROM usage WHERE used >= {AHEAD}) - {AHEAD}, 0))"
)
_NEXT = f"({_LAST} + 1 + NEW.control * {AHEAD})"

SCHEMA = (
    # The value is the last column, so a query without it does not read its overflow pages.
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

#: The maximum number of keys in a SELECT. Older SQLite takes 999 parameters.
_KEYS_AT_ONCE = 500
#: The maximum number of entries that one transaction evicts, because other processes wait to write.
_EVICT_AT_ONCE = 128
#: Reads are written after this number, or after this time in seconds.
_READS_AT_ONCE = 256
_WRITE_READS_EVERY = 5.0


class SQLiteTable(Store):
    """The store in a file that can be used. Every verb may raise :class:`FileBroken` as well.

    :param clock: wall time in seconds, the same in all processes and after a restart.
    """

    def __init__(self, path: str, max_bytes: int, timeout: float, clock: Callable[[], float]) -> None:
        self.max_bytes = max_bytes
        self.max_value = min(Store.max_value, max_bytes // 4)
        self._file = DatabaseFile(path, timeout, prepare)
        self._clock = clock
        self._reads = Reads(clock)

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
                self._record(row[0] for row in rows)
        except StoreUnavailable as error:
            return Many(values, {key: error for key in keys if key not in values})
        return Many(values, {})

    def set(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self._refuse_large(key, value)
        row = key, is_control(key), _new_token()
        self._write(_SET, lambda now: (*row, _expires(now, ttl), bytes(value)))

    def add(self, key: str, value: bytes, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        # All processes try to get a lease, and one gets it. The others need not queue for a write.
        if self._has(key):
            return False
        return self._write(
            _ADD, lambda now: (key, is_control(key), _new_token(), _expires(now, ttl), bytes(value), now)
        )

    def cas(self, key: str, value: bytes, token: Token, ttl: float | None = None) -> bool:
        self._refuse_large(key, value)
        if not isinstance(token, bytes):  # a token of another store, such as the memory that replaces the file
            return False
        return self._write(_CAS, lambda now: (_new_token(), _expires(now, ttl), value, key, token, now))

    def delete(self, key: str) -> bool:
        return self._has(key) and self._write(_DELETE, lambda now: (key, now))

    def close(self) -> None:
        self._file.close()

    def check(self) -> None:
        """Check that the file can be used, without opening it for writing.

        :raises FileBroken: the file cannot be used.
        :raises ForeignDatabase: the file is the database of another program.
        """
        check_file(self._file.path, _has_our_tables)

    # Reading

    def _row(self, statement: str, key: str) -> Any:
        with self._file.connection() as connection:
            # After fetchone, the statement would not have ended, and would keep its read lock.
            rows = connection.execute(statement, (key, self._clock())).fetchall()
        if not rows:
            return None
        self._record((rows[0][0],))
        return rows[0]

    def _has(self, key: str) -> bool:
        with self._file.connection() as connection:
            return bool(connection.execute(_HAS, (key, self._clock())).fetchall())

    def _record(self, ids: Iterable[int]) -> None:
        """Record reads. A process that only reads writes them too; otherwise, other processes evict its entries."""
        if not self._reads.add(ids):
            return
        try:
            with self._file.transaction(wait=False) as connection:
                self._reads.write(connection)
        except StoreUnavailable:
            pass  # another process writes; the reads stay for the next attempt

    # Writing

    def _write(self, statement: str, parameters: Callable[[float], tuple[object, ...]]) -> bool:
        """Return whether the statement changed an entry.

        The parameters are computed inside the lock, because an entry may expire during the wait for the lock.
        """
        with self._file.transaction() as connection:
            now = self._clock()
            self._reads.write(connection)  # before the statement: the new entry must be newer than the reads
            changed = connection.execute(statement, parameters(now)).rowcount > 0
            connection.execute(_PURGE, (now,))
            is_full = self._evict(connection)
        while is_full:
            try:
                with self._file.transaction() as connection:
                    is_full = self._evict(connection)
            except StoreUnavailable:
                break  # the write itself is done; the next write continues the eviction
        return changed

    def _evict(self, connection: Connection) -> bool:
        """Evict a batch of entries; return whether more have to be evicted.

        Control keys have a share of ``max_bytes``, pages have the rest.
        """
        [[total, control]] = connection.execute("SELECT bytes, control FROM total").fetchall()
        more = _delete_oldest(connection, AHEAD, control - self.max_bytes * CONTROL_SHARE)
        return _delete_oldest(connection, 0, total - self.max_bytes) or more

    def _refuse_large(self, key: str, value: bytes) -> None:
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)


def _delete_oldest(connection: Connection, since: int, excess: float) -> bool:
    """Delete a batch of the least recently used entries, from the logical time ``since`` on.

    :returns: whether ``excess`` bytes need more than this batch.
    """
    if excess <= 0:
        return False
    oldest = connection.execute(
        "SELECT id, size FROM usage WHERE used >= ? ORDER BY used LIMIT ?", (since, _EVICT_AT_ONCE)
    )
    batch = []
    for number, size in oldest.fetchall():
        batch.append((number,))
        excess -= size
        if excess <= 0:
            break
    gone = connection.executemany("DELETE FROM entry WHERE id = ?", batch).rowcount
    return excess > 0 and gone > 0


class Reads(ForkAware):
    """The entries that were read since the last write to ``usage``, the latest last."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ids: dict[int, None] = {}
        self._last_attempt = clock()
        watch(self)

    def after_fork_in_child(self) -> None:
        """Replace the lock: another thread of the parent may have held it during the fork."""
        self._lock = threading.Lock()
        self._ids = {}

    def add(self, ids: Iterable[int]) -> bool:
        """Add reads; return whether it is time to write them."""
        with self._lock:
            for number in ids:
                self._ids.pop(number, None)
                self._ids[number] = None
            while len(self._ids) > 4 * _READS_AT_ONCE:
                del self._ids[next(iter(self._ids))]
            if not self._ids:
                return False
            now = self._clock()
            due = abs(now - self._last_attempt) >= _WRITE_READS_EVERY or len(self._ids) % _READS_AT_ONCE == 0
            if due:
                self._last_attempt = now
            return due

    def write(self, connection: Connection) -> None:
        """Write the reads in a transaction. If the transaction fails, only the order of eviction is lost."""
        with self._lock:
            ids, self._ids = self._ids, {}
            self._last_attempt = self._clock()
        if ids:
            [[last]] = connection.execute(f"SELECT {_LAST}").fetchall()
            connection.executemany(
                f"UPDATE usage SET used = ? + (used >= {AHEAD}) * {AHEAD} WHERE id = ?",
                [(used, number) for used, number in enumerate(ids, last + 1)],
            )


def prepare(connection: Connection) -> None:
    """Create the tables in a new file; check the tables of an existing file.

    Tables of an earlier version are replaced: they hold only a cache, and lost tags count as invalidated.

    :raises ForeignDatabase: the file is the database of another program.
    :raises FileBroken: a later version of this package created the file.
    """
    # In one transaction: another process may create the tables between two statements. The application id from before
    # and the tables from after would look like the database of another program.
    connection.execute("BEGIN")
    is_ready = _has_our_tables(connection)
    connection.execute("COMMIT")
    if is_ready:
        return
    # The file keeps both settings. They cannot be set inside a transaction; a second time, they change nothing.
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    if not _has_our_tables(connection):  # no other process was faster
        for statement in ("DROP TABLE IF EXISTS entry", "DROP TABLE IF EXISTS usage", "DROP TABLE IF EXISTS total"):
            connection.execute(statement)
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _has_our_tables(connection: sqlite3.Connection) -> bool:
    """Return whether the tables exist, in this version.

    :raises ForeignDatabase: the file has tables of another program.
    :raises FileBroken: the tables are of a later version.
    """
    [[application]] = connection.execute("PRAGMA application_id").fetchall()
    [[version]] = connection.execute("PRAGMA user_version").fetchall()
    if application == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise FileBroken(f"a later version of wsgi_isr made it (its tables have version {version})", "")
        return bool(version == SCHEMA_VERSION)
    if application or connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall():
        raise ForeignDatabase("it is the database of another program", "write the path of a new file")
    return False


def _new_token() -> bytes:
    """Return random bytes: a counter would start again in a file that was deleted and created anew."""
    return os.urandom(16)


def _expires(now: float, ttl: float | None) -> float | None:
    return None if ttl is None else now + ttl
