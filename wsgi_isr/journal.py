"""A file of the invalidations that a node has missed, kept until they are delivered."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from . import keys
from .errors import ConfigError
from .stamps import Mode
from .stores.base import Store
from .stores.files import check_writable

_log = logging.getLogger("wsgi_isr")

#: Seconds that a process waits for the lock. A holder that was stopped (SIGSTOP) must not hang a view for ever.
LOCK_TIMEOUT = 5.0
#: Bytes: below the first, a new line is compared with those that are there; beyond the second, the lines of a site
#: become one for all of its pages.
SEARCHED, MAX_BYTES = 64 * 1024, 8 * 1024 * 1024

_MODES = [mode.value for mode in Mode]


class Kept(NamedTuple):
    """One line: ``tags`` that the store at ``places`` has missed. Each call writes a line with an ``id`` of its own, so
    that the end of a delivery never removes what was kept while it went on."""

    namespace: str
    tags: tuple[str, ...]
    mode: str
    places: tuple[str, ...]
    id: str

    @property
    def what(self) -> tuple[object, ...]:
        """All but the ``id``: two lines that have it in common are delivered by one invalidation."""
        return self[:-1]


class Journal:
    """A file of JSON lines, locked while it is read or written, and on the disk before a call returns.

    Any number of processes on a machine may share it, and so may several namespaces and several stores. New files have
    mode 0600, and a new directory 0700.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._lock = f"{self.path}.lock"
        self._turn = f"{self.path}.turn"

    def check(self) -> None:
        """Return if the file can be written. The check makes no file.

        :raises ConfigError: it cannot.
        """
        try:
            for path in (self.path, self._lock, self._turn):
                check_writable(path)
                if os.path.islink(path):  # it would not be followed
                    raise OSError(errno.ELOOP, f"{path} is a link", path)
        except OSError as error:
            raise ConfigError("journal", f"{self.path}: {error.strerror}", "name a file that can be written") from error

    def is_empty(self) -> bool:
        """Return whether nothing is kept, for any site. It costs one ``stat``."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return True
        return found.st_size == 0 or not stat.S_ISREG(found.st_mode)

    def lines(self, namespace: str, places: Sequence[str]) -> list[Kept]:
        """Return the lines of a site, oldest first: of its namespace, and of a store that shares a place with its own.

        The lock is not held while they are delivered: that may take a while, and delivering a line twice is harmless.

        :raises OSError: the file cannot be read.
        """
        if not os.path.lexists(self.path):
            return []
        with self._locked():
            return [line for line in self._read() if _is_of(line, namespace, places)]

    def keep(self, namespace: str, tags: Sequence[str], mode: str, places: Sequence[str]) -> None:
        """Add a line, in place of one that says the same. :raises OSError: it cannot be written."""
        line = Kept(namespace, tuple(tags), mode, tuple(places), os.urandom(8).hex())
        with self._locked():
            size = self._size()
            if size > MAX_BYTES:
                self._replace(_condensed([*self._read(), line], namespace, places))
                return
            lines = self._read() if size <= SEARCHED else []
            if any(other.what == line.what for other in lines):
                self._replace([*(other for other in lines if other.what != line.what), line])
                return
            is_new = not os.path.lexists(self.path)
            with open(self.path, "ab", opener=_private) as file:
                # It begins with a line break of its own: an append that a crash cut short spoils one line, not two.
                file.write(b"\n" + _line(line))
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                self._sync_folder()

    def settle(self, left: Mapping[str, Sequence[str]]) -> None:
        """Note that lines were delivered, but for some of their tags.

        :param left: id to the tags that are still to be delivered. The others' order stays.
        :raises OSError: the file cannot be written.
        """
        with self._locked():
            lines = [line._replace(tags=tuple(left.get(line.id, line.tags))) for line in self._read()]
            self._replace([line for line in lines if line.tags])

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """In here no other process delivers; ``False`` where another one does already. The kernel ends the turn of a
        process that is killed.

        :raises OSError: there is no lock to be had.
        """
        with open(self._turn, "ab", opener=_private) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _size(self) -> int:
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return 0

    def _read(self) -> list[Kept]:
        try:
            with open(self.path, encoding="utf-8", errors="replace", opener=_private) as lines:
                return [line for text in lines if (line := _parse(text)) is not None]
        except FileNotFoundError:
            return []

    def _replace(self, lines: Sequence[Kept]) -> None:
        """Write all of the file anew. A crash leaves the old one, and delivering its lines again is harmless."""
        beside = f"{self.path}.{os.getpid()}"
        # One that a crash left behind, or a link that another user has put there, is not written to.
        with suppress(FileNotFoundError):
            os.unlink(beside)
        with open(beside, "xb", opener=_private) as file:
            file.writelines(map(_line, lines))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        self._sync_folder()

    def _sync_folder(self) -> None:
        """Have the name of a new file on the disk, not only its bytes (fsync(2))."""
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own: the journal itself is replaced, and a lock on it would go with it.
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        deadline = time.monotonic() + LOCK_TIMEOUT
        with open(self._lock, "ab", opener=_private) as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        problem = "another process holds its lock"
                        raise TimeoutError(errno.ETIMEDOUT, problem, self.path) from None
                    time.sleep(0.01)
            try:
                yield
            finally:
                # Closing is not enough: a child that was forked meanwhile would hold the lock for as long as it lives.
                fcntl.flock(lock, fcntl.LOCK_UN)


def journal_for(given: str | bool | None, store: Store, folder: str) -> Journal | None:
    """Return the journal of a site, checked; ``None`` where it has none.

    :param given: the option ``journal``. By default there is one for stores on other machines.
    :param folder: where that one is.
    :raises ConfigError: the file that was named cannot be written.
    """
    if isinstance(given, str):
        journal = Journal(given)
        journal.check()
        return journal
    if given is not None or not store.remote:
        return None
    journal = Journal(os.path.join(folder, "journal"))
    try:
        journal.check()
    except ConfigError as error:
        # The default must not end a server that has run well without it: its file system may be read-only.
        _log.warning(
            "%s. An invalidation that a node misses will raise InvalidationError: name a file that can be written by "
            "journal= (WSGI_ISR_JOURNAL), or write journal=False",
            error.problem,
        )
    return journal


def _condensed(lines: Sequence[Kept], namespace: str, places: Sequence[str]) -> list[Kept]:
    """Return ``lines`` with one for all pages in place of those of a site. It covers them, and the file stays small."""
    own = [line for line in lines if _is_of(line, namespace, places)]
    hardest = max((line.mode for line in own), key=_MODES.index)
    others = [line for line in lines if not _is_of(line, namespace, places)]
    return [*others, own[-1]._replace(tags=(keys.EVERYTHING,), mode=hardest)]


def _is_of(line: Kept, namespace: str, places: Sequence[str]) -> bool:
    return line.namespace == namespace and not {*line.places}.isdisjoint(places)


def _private(path: str, flags: int) -> int:
    """Open a file that, where it is new, is for this user only: tags and paths may be private, as in the store. A link
    in its place is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _line(line: Kept) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _parse(text: str) -> Kept | None:
    """A line cut short by a crash in the middle of an append belongs to a call that was never answered."""
    try:
        namespace, tags, mode, places, number = json.loads(text)
        line = Kept(namespace, tuple(tags), mode, tuple(places), number)
    except (ValueError, TypeError):
        return None
    words = (line.namespace, line.mode, line.id, *line.tags, *line.places)
    return line if all(type(word) is str for word in words) and line.mode in _MODES and line.tags else None
