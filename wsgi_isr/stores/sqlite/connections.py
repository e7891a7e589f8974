"""A pool of connections to one SQLite file: opened lazily, reused, and closed around ``fork``.

A connection for each thread was rejected. Under gevent, each request is a "thread" of its own, and would open the file
anew. With the pool, the greenlets of a worker share one connection, because no switch happens inside a statement. The
number of connections is the number of threads that use the file at the same time.

**Fork.** SQLite forbids carrying a connection across a fork (sqlite.org/howtocorrupt.html, 2.6). A child that does not
use the inherited connections is not safe either. A child inherits SQLite's table of locks, but not the POSIX locks.
While the parent has a connection open, a *new* connection of the child counts the file as locked already. The
connection holds no lock at all (seen in /proc/locks, SQLite 3.40). The last other process that closes the file would
then delete the write-ahead log under the child. Therefore, the parent closes all connections before it forks, and opens
new ones on demand.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import StoreUnavailable
from ..files import check_link, check_writable, this_user
from ..fork_hooks import ForkAware, watch

#: Statements for each new connection. With NORMAL in WAL mode, a killed process loses nothing. A power cut may lose the
#: last writes, but damages nothing. There is no mmap: a truncated file would raise SIGBUS instead of an error.
PRAGMAS = ("PRAGMA synchronous = NORMAL", f"PRAGMA journal_size_limit = {16 * 1024 * 1024}")

#: The time between two checks that the path still leads to the open file, in seconds.
CHECK_EVERY = 1.0


class FileBroken(Exception):
    """The file cannot be used, and waiting does not help.

    :param problem: the cause, for messages.
    :param remedy: the action of the operator; may be empty.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem)


class ForeignDatabase(FileBroken):
    """The file is the database of another program. This package must not write into it."""


#: From a part of SQLite's message to problem and remedy. Python 3.10 has no error codes. The texts of sqlite3_errstr()
#: have not changed for decades.
_DAMAGED = "the file is damaged"
_PERMIT = "make {directory} a directory that {user} can write to, with all files in it"
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_DIAGNOSES = (
    ("malformed", _DAMAGED, ""),
    ("not a database", _DAMAGED, ""),
    ("readonly", "the file is read-only", _PERMIT),
    ("full", "the disk is full", "make room on the disk"),
    ("disk i/o", "reading or writing it fails", "check the disk and the log of the system"),
    ("unable to open", "it cannot be opened", f"check the permissions ({_PERMIT}) and the number of open files"),
)


def diagnose(path: str, error: sqlite3.Error | OSError) -> StoreUnavailable | FileBroken:
    """Return the error to raise: ``StoreUnavailable`` for a lock of another process, otherwise ``FileBroken``."""
    text = str(error).lower()
    if isinstance(error, sqlite3.Error) and "malformed" not in text and "lock" in text:
        return StoreUnavailable(path, error)
    permit = _permit(path)
    if isinstance(error, OSError):
        remedy = permit if error.errno in _FORBIDDEN else "check the disk and the permissions"
        return FileBroken(f"it cannot be created ({error.strerror}: {error.filename})", remedy)
    for fragment, problem, remedy in _DIAGNOSES:
        if fragment in text:
            return FileBroken(f"{problem} ({error})", remedy.replace(_PERMIT, permit))
    return FileBroken(f"it is not as wsgi_isr made it ({error})", "")


def _permit(path: str) -> str:
    return _PERMIT.format(directory=os.path.dirname(path), user=this_user())


def check_file(path: str, check: Callable[[sqlite3.Connection], object]) -> None:
    """Check a file that may exist. Nothing is created, written or locked.

    :param check: called with a connection to an existing file. Without locks, the connection may read half a
        checkpoint of another process. Only the first bytes of the file can be trusted.
    :raises FileBroken: the file is no database, or this user may not use it.
    """
    try:
        check_writable(path)
    except OSError as error:
        raise FileBroken(f"{error.filename} is not writable", _permit(path)) from error
    if not os.path.exists(path):
        return
    try:
        # immutable: no -wal and -shm, which a read-only connection would create as well (sqlite.org/wal.html, 5).
        uri = f"{Path(path).as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("BEGIN")  # check() reads one version of the first page
            check(connection)
    except sqlite3.Error as error:
        if "not a database" in str(error):
            raise diagnose(path, error) from error


class Connection(sqlite3.Connection):
    """A connection to an opening of the file."""

    #: The number of the opening. A connection of an earlier opening is not reused.
    generation = 0


class DatabaseFile(ForkAware):
    """The connections of this process to a file. One thread at a time uses a connection.

    :param timeout: the maximum wait for a lock of another process, in seconds.
    :param prepare: called with each new connection, before its first use.
    """

    def __init__(self, path: str, timeout: float, prepare: Callable[[Connection], None]) -> None:
        self.path = path
        self.timeout = timeout
        self._prepare = prepare
        self._pid = os.getpid()
        self._state = threading.Condition()  # guards the attributes below; no statement runs inside it
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._forking = False
        self._generation = 0
        self._inode: tuple[int, int] | None = None
        self._next_check = 0.0
        weakref.finalize(self, _close_own, self._idle, self._pid)
        watch(self)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection in autocommit mode, for one statement or one transaction.

        :raises StoreUnavailable: another process held the lock longer than ``timeout``.
        :raises FileBroken: the file cannot be used.
        """
        try:
            connection = self._take()
        except (sqlite3.Error, OSError) as error:
            raise diagnose(self.path, error) from error
        try:
            yield connection
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise  # an error of the caller, such as a parameter of a wrong type
        except sqlite3.Error as error:
            raise diagnose(self.path, error) from error
        finally:
            self._give_back(connection)

    @contextmanager
    def transaction(self, wait: bool = True) -> Iterator[Connection]:
        """Yield the only connection that may write. Commit at the end; roll back after any exception.

        :param wait: ``False`` raises at once while another process writes.
        """
        with self.connection() as connection:
            if not wait:
                connection.execute("PRAGMA busy_timeout = 0")
            try:
                # Without IMMEDIATE, a transaction that reads first would fail if another process wrote meanwhile
                # (SQLITE_BUSY_SNAPSHOT).
                connection.execute("BEGIN IMMEDIATE")
            finally:
                if not wait:
                    connection.execute(f"PRAGMA busy_timeout = {int(self.timeout * 1000)}")
            yield connection
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close idle connections now, and busy ones when they are given back."""
        self._notice_fork()
        with self._state:
            self._close_idle()

    # Taking and giving back

    def _take(self) -> Connection:
        self._notice_fork()
        with self._state:
            while self._forking:
                self._state.wait()
            if time.monotonic() >= self._next_check:
                self._check_path()
            if self._idle:
                connection = self._idle.pop()
                self._busy.add(connection)
                return connection
        return self._open()

    def _give_back(self, connection: Connection, reusable: bool = True) -> None:
        if connection.in_transaction:
            try:
                connection.rollback()
            except sqlite3.Error:
                reusable = False
        with self._state:
            self._busy.discard(connection)
            if reusable and connection.generation == self._generation:
                self._idle.append(connection)
            else:
                connection.close()
            self._state.notify_all()

    def _check_path(self) -> None:
        """Close the connections if the path leads to another file.

        An operator may delete the file to empty the cache. The process must not keep a file that no other process sees.
        """
        self._next_check = time.monotonic() + CHECK_EVERY
        if self._inode is not None and self._inode != _inode(self.path):
            self._close_idle()

    def _close_idle(self) -> None:
        self._generation += 1
        self._inode = None
        while self._idle:
            self._idle.pop().close()

    def _open(self) -> Connection:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return self._try_to_open()
            except sqlite3.OperationalError as error:
                # Two processes may create the file at once, and turning WAL on does not wait for a lock.
                if "lock" not in str(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(0.005)

    def _try_to_open(self) -> Connection:
        with self._state:
            # Inside the lock, no connection of this process has a missing file open. Otherwise, closing a descriptor
            # would drop every lock of this process on the file (fcntl(2)).
            _create(self.path)
            connection = sqlite3.connect(
                self.path,
                timeout=self.timeout,
                isolation_level=None,
                check_same_thread=False,
                factory=Connection,
            )
            connection.generation = self._generation
            self._busy.add(connection)
            if self._inode is None:
                self._inode = _inode(self.path)
        try:
            for pragma in PRAGMAS:
                connection.execute(pragma)
            self._prepare(connection)
        except BaseException:
            self._give_back(connection, reusable=False)
            raise
        return connection

    # Around a fork

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():  # C code forked without the hooks of Python
            self.after_fork_in_child()

    def before_fork(self) -> None:
        self._notice_fork()
        self._state.acquire()
        self._forking = True
        # Uses are short. If a use hangs (on a dead disk), the child abandons its connection.
        self._state.wait_for(lambda: not self._busy, timeout=self.timeout + 4)
        self._close_idle()

    def after_fork_in_parent(self) -> None:
        self._forking = False
        self._state.notify_all()
        self._state.release()

    def after_fork_in_child(self) -> None:
        for connection in (*self._idle, *self._busy):
            _abandon(connection)
        self._idle.clear()
        self._busy = set()
        self._state = threading.Condition()
        self._forking = False
        self._generation += 1
        self._inode = None
        self._pid = os.getpid()
        weakref.finalize(self, _close_own, self._idle, self._pid)


def _create(path: str) -> None:
    """Create the file and its missing directories, for this user only: pages may be private.

    :raises OSError: the file cannot be created, or root would follow a link of another user.
    """
    check_link(path)
    if os.path.exists(path):
        return
    missing = []
    directory = os.path.dirname(path)
    while not os.path.exists(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:  # another process was faster
            pass
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close_own(connections: list[Connection], pid: int) -> None:
    if pid == os.getpid():
        while connections:
            connections.pop().close()


def _abandon(connection: Connection) -> None:
    """Make the connection immortal. Its destructor must not run in a process that did not open it."""
    import ctypes  # needed only in a child of a process that forks without hooks

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
