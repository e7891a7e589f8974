"""A file of the invalidations that a node has missed, kept until they are delivered."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ..errors import ConfigError, listed
from ..stores.base import Store
from ..stores.files import check_writable, owner_of, this_user
from . import keyspace as keys
from .tag_versions import Mode

_log = logging.getLogger("wsgi_isr")

#: Seconds that a process waits for the lock. A holder that was stopped (SIGSTOP) must not hang a view for ever.
LOCK_TIMEOUT = 5.0
#: Bytes: below the first, a new line is compared with those that are there; beyond the second, the lines of a site
#: become one for all of its pages.
SEARCHED, MAX_BYTES = 16 * 1024, 8 * 1024 * 1024
#: Seconds after which a line is dropped, with a warning: its node was removed for good, or is empty when it comes back.
KEPT_FOR = 7 * 24 * 3600.0

_MODES = [mode.value for mode in Mode]


class Kept(NamedTuple):
    """One line: ``tags`` that the store at ``places`` has missed. Each call writes a line with an ``id`` of its own, so
    that the end of a delivery never removes what was kept while it went on.

    ``nodes`` are the places that missed the tags, one for each tag. A tag is delivered by a store that has it there: a
    store of another node list may have it elsewhere. Without ``nodes``, a store of the same places delivers the line.
    ``since`` is the Unix time at which it was kept."""

    namespace: str
    tags: tuple[str, ...]
    mode: str
    places: tuple[str, ...]
    id: str
    nodes: tuple[str, ...] = ()
    since: float = 0.0

    @property
    def what(self) -> tuple[object, ...]:
        """Return all but ``id`` and ``since``: one invalidation delivers two lines that have it in common."""
        return (*self[:4], self.nodes)

    def settled_by(self, places: Sequence[str], place_of: Callable[[str], str]) -> set[str]:
        """Return the tags that are delivered once a store has invalidated them.

        :param place_of: from a tag to the place where that store has it.
        """
        if not self.nodes:
            return {*self.tags} if {*places} == {*self.places} else set()
        return {tag for tag, node in zip(self.tags, self.nodes, strict=True) if place_of(tag) == node}

    def without(self, tags: Collection[str]) -> Kept:
        """Return the line without some of its tags."""
        left = [index for index, tag in enumerate(self.tags) if tag not in tags]
        nodes = tuple(self.nodes[index] for index in left) if self.nodes else ()
        return self._replace(tags=tuple(self.tags[index] for index in left), nodes=nodes)


class Journal:
    """A file of JSON lines, locked while it is read or written, and on the disk before a call returns.

    Any number of processes on a machine may share it, and so may several namespaces and several stores. New files have
    mode 0600, and a new directory 0700.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.path = os.path.abspath(path)
        self._lock = f"{self.path}.lock"
        self._turn = f"{self.path}.turn"

    def check(self) -> None:
        """Return if the file can be written. The check makes no file.

        :raises ConfigError: it cannot.
        """
        if os.path.islink(self.path):
            target = os.path.realpath(self.path)
            raise ConfigError("journal", f"{self.path} is a symbolic link", f"name the file itself: {target}")
        try:
            for path in (self.path, self._lock, self._turn):
                check_writable(path)
                if os.path.islink(path):  # it would not be followed
                    raise OSError(errno.ELOOP, f"{path} is a link", path)
        except OSError as error:
            raise ConfigError("journal", self.said(error), "name a file that can be written") from error

    def said(self, error: OSError) -> str:
        """Return what is wrong with the files, for a message: where one is closed to this user, with its owner."""
        text = f"{self.path}: {error.strerror}"
        if isinstance(error, PermissionError):
            place = str(error.filename or self.path)
            text += f": {place} belongs to {owner_of(place)}, and this process is {this_user()}"
        return text

    def is_empty(self) -> bool:
        """Return whether nothing is kept, for any site. It costs one ``stat``."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return True
        # A directory in its place is not empty: reading it is an error, which is reported.
        return found.st_size == 0 or stat.S_ISLNK(found.st_mode)

    def state(self) -> tuple[int, int, int] | None:
        """Return a value that changes when a line is kept or settled; ``None`` without a file."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def lines(self, namespace: str, places: Sequence[str]) -> list[Kept]:
        """Return the lines of a site, oldest first: of its namespace, and of a store that shares a place with its own.

        Lines that are older than :data:`KEPT_FOR` are dropped, with a warning, whatever site they are of.

        The lock is not held while they are delivered: that may take a while, and delivering a line twice is harmless.

        :raises OSError: the file cannot be read.
        """
        if not os.path.lexists(self.path):
            return []
        with self._locked():
            return [line for line in self._drop_old(self._read()) if _is_of(line, namespace, places)]

    def keep(
        self, namespace: str, tags: Sequence[str], mode: str, places: Sequence[str], nodes: Sequence[str] = ()
    ) -> None:
        """Add a line, in place of one that says the same.

        :param nodes: the places that missed the tags, one for each.
        :raises OSError: it cannot be written.
        """
        number = os.urandom(8).hex()
        line = Kept(namespace, tuple(tags), mode, tuple(places), number, tuple(nodes), self._clock())
        with self._locked():
            size = self._size()
            if size > MAX_BYTES:
                self._replace(_condensed([*self._read(), line]))
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

    def settle(self, delivered: Mapping[str, Collection[str]]) -> None:
        """Note that some tags of lines were delivered.

        :param delivered: id to these tags. The others' order stays.
        :raises OSError: the file cannot be written.
        """
        with self._locked():
            lines = [line.without(delivered.get(line.id, ())) for line in self._read()]
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

    def _drop_old(self, lines: Sequence[Kept]) -> Sequence[Kept]:
        now = self._clock()
        young = [line for line in lines if now - line.since <= KEPT_FOR]
        if len(young) < len(lines):
            old = [line for line in lines if now - line.since > KEPT_FOR]
            self._replace(young)
            _log.warning(
                "%d lines were dropped from %s: for more than %d days no process could deliver them; missed by: %s",
                len(old),
                self.path,
                KEPT_FOR // 86400,
                listed(sorted({node for line in old for node in line.nodes or line.places})),
            )
        return young

    def _size(self) -> int:
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return 0

    def _read(self) -> list[Kept]:
        try:
            with open(self.path, encoding="utf-8", errors="replace", opener=_private) as lines:
                return [line for text in lines if (line := _parse(text, self._clock())) is not None]
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
        _make_folder(os.path.dirname(self.path))
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


def journal_for(given: str | bool | None, store: Store, folder: str, begins: bool = True) -> Journal | None:
    """Return the journal of a site, checked; ``None`` where it has none.

    :param given: the option ``journal``. By default there is one for stores on other machines.
    :param folder: where that one is.
    :param begins: whether the default may be a new file. A job outside of the app may run in another folder, and no
        process would deliver a file that is there.
    :raises ConfigError: the file that was named cannot be written.
    """
    if isinstance(given, str):
        journal = Journal(given)
        journal.check()
        return journal
    if given is not None or not store.remote:
        return None
    journal = Journal(os.path.join(folder, "journal"))
    if not begins and not os.path.lexists(journal.path):
        return None
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


def _condensed(lines: Sequence[Kept]) -> list[Kept]:
    """Return ``lines`` with one for all pages in place of those of the last line's site. It covers them, and the file
    stays small. Where the lines of other sites fill the file, each of these sites gets one, too."""
    own = lines[-1]
    left = [line for line in lines if _site_of(line) != _site_of(own)]
    groups = {_site_of(own): [line for line in lines if _site_of(line) == _site_of(own)]}
    if sum(len(_line(line)) for line in left) > MAX_BYTES // 2:
        for line in left:
            groups.setdefault(_site_of(line), []).append(line)
        left = []
    for group in groups.values():
        hardest = max((line.mode for line in group), key=_MODES.index)
        # Without nodes: which one has the tag of all pages is known to a store of these places alone.
        left.append(group[-1]._replace(tags=(keys.EVERYTHING,), mode=hardest, nodes=()))
    return left


def _site_of(line: Kept) -> tuple[str, frozenset[str]]:
    return line.namespace, frozenset(line.places)


def _is_of(line: Kept, namespace: str, places: Sequence[str]) -> bool:
    return line.namespace == namespace and not {*line.places}.isdisjoint(places)


def _make_folder(path: str) -> None:
    """Make a directory for this user only, and those above it; where root makes one, for the owner of that above."""
    if os.path.isdir(path):
        return
    _make_folder(above := os.path.dirname(path))
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        if os.geteuid() == 0:
            found = os.stat(above)
            os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)


def _private(path: str, flags: int) -> int:
    """Open a file that, where it is new, is for this user only: tags and paths may be private, as in the store. A link
    in its place is not followed.

    Root may run a job of an app whose processes are another user's. A file that root makes belongs to the owner of the
    folder. A file that is there already keeps its owner: it may be a hard link to any."""
    if os.geteuid() == 0 and flags & os.O_CREAT:
        with suppress(FileExistsError):
            file = os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            folder = os.stat(os.path.dirname(path))
            os.fchown(file, folder.st_uid, folder.st_gid)
            return file
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _line(line: Kept) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _parse(text: str, now: float) -> Kept | None:
    """A line cut short by a crash in the middle of an append belongs to a call that was never answered."""
    try:
        namespace, tags, mode, places, number, nodes, since = (*json.loads(text), (), now)[:7]
        line = Kept(namespace, tuple(tags), mode, tuple(places), number, tuple(nodes), float(since))
    except (ValueError, TypeError):
        return None
    words = (line.namespace, line.mode, line.id, *line.tags, *line.places, *line.nodes)
    is_whole = all(type(word) is str for word in words) and len(line.nodes) in (0, len(line.tags))
    return line if is_whole and line.mode in _MODES and line.tags else None
