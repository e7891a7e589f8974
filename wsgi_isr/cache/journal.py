"""The journal: a file that keeps invalidations that a node has missed, until they are delivered."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ..errors import ConfigError, listed
from ..stores.base import Store
from ..stores.files import check_writable, give_to_owner_of, make_folder, owner_of, this_user
from . import keyspace
from .tag_versions import Mode

_log = logging.getLogger("wsgi_isr")

#: Seconds that a process waits for the lock. A holder that was stopped (SIGSTOP) must not hang a view for ever.
LOCK_TIMEOUT = 5.0
#: Sizes of the file in bytes. Up to the first, :meth:`Journal.keep` looks for an equal line. Above the second, it
#: merges the lines of the site.
SEARCHED, MAX_BYTES = 16 * 1024, 8 * 1024 * 1024
#: Seconds after which a line is dropped with a warning. Its node was removed for good by then, or restarts empty.
MAX_LINE_AGE = 7 * 24 * 3600.0

#: The number of tags that are delivered at once.
_BATCH = 1000
_MODES = [mode.value for mode in Mode]


class JournalLine(NamedTuple):
    """A line of a journal: tags that a store has missed.

    :param places: the URLs of the store's nodes, or of its file.
    :param id: unique for each call of :meth:`Journal.keep`. So :meth:`Journal.settle` never removes a line that was
        added during the delivery.
    :param nodes: for each tag, the URL of the node that missed it. A store may settle a tag only if it maps the tag to
        that URL. An empty tuple requires a store with the same URLs.
    :param since: the Unix time in seconds at which the line was kept.
    """

    namespace: str
    tags: tuple[str, ...]
    mode: str
    places: tuple[str, ...]
    id: str
    nodes: tuple[str, ...] = ()
    since: float = 0.0

    @property
    def content(self) -> tuple[object, ...]:
        """Return all fields but ``id`` and ``since``. One invalidation settles all lines with equal fields."""
        return (*self[:4], self.nodes)

    def settled_by(self, places: Sequence[str], place_of: Callable[[str], str]) -> set[str]:
        """Return the tags of the line that an invalidation in a store settles.

        :param place_of: returns the place where that store has a tag.
        """
        if not self.nodes:
            return {*self.tags} if {*places} == {*self.places} else set()
        return {tag for tag, node in zip(self.tags, self.nodes, strict=True) if place_of(tag) == node}

    def without(self, tags: Collection[str]) -> JournalLine:
        """Return the line without some of its tags."""
        left = [index for index, tag in enumerate(self.tags) if tag not in tags]
        nodes = tuple(self.nodes[index] for index in left) if self.nodes else ()
        return self._replace(tags=tuple(self.tags[index] for index in left), nodes=nodes)


class Journal:
    """A file of JSON lines, locked while it is read or written, and on the disk before a call returns.

    Processes on a machine may share a journal, and so may namespaces and stores. A new file has mode 0600, and a new
    directory 0700.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.path = os.path.abspath(path)
        self._lock = f"{self.path}.lock"
        self._delivery_lock = f"{self.path}.turn"

    def check(self) -> None:
        """Check that the file can be written. The check creates no file.

        :raises ConfigError: the file cannot be written.
        """
        if os.path.islink(self.path):
            target = os.path.realpath(self.path)
            raise ConfigError("journal", f"{self.path} is a symbolic link", f"name the file itself: {target}")
        try:
            for path in (self.path, self._lock, self._delivery_lock):
                check_writable(path)
                if os.path.islink(path):  # a link is never followed
                    raise OSError(errno.ELOOP, f"{path} is a link", path)
        except OSError as error:
            raise ConfigError("journal", self.describe(error), "name a file that can be written") from error

    def describe(self, error: OSError) -> str:
        """Return the error for a message; where this user may not access a file, with the file's owner."""
        text = f"{self.path}: {error.strerror}"
        if isinstance(error, PermissionError):
            place = str(error.filename or self.path)
            text += f": {place} belongs to {owner_of(place)}, and this process is {this_user()}"
        return text

    def is_empty(self) -> bool:
        """Return whether no line is kept, for any site. The check costs one ``stat``."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return True
        # A directory in place of the file counts as not empty, so that reading it reports the error.
        return found.st_size == 0 or stat.S_ISLNK(found.st_mode)

    def change_token(self) -> tuple[int, int, int] | None:
        """Return a value that changes when a line is kept or settled; ``None`` without a file."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def lines(self, namespace: str, places: Sequence[str]) -> list[JournalLine]:
        """Return the lines of a site, oldest first.

        A line belongs to the site if its namespace is equal and it shares a URL with ``places``. Lines older than
        :data:`MAX_LINE_AGE` are dropped with a warning, for all sites. The caller delivers without the lock. A second
        delivery of a line is harmless.

        :raises OSError: the file cannot be read.
        """
        if not os.path.lexists(self.path):
            return []
        with self._locked():
            return [line for line in self._drop_old(self._read()) if _belongs_to(line, namespace, places)]

    def keep(
        self, namespace: str, tags: Sequence[str], mode: str, places: Sequence[str], nodes: Sequence[str] = ()
    ) -> None:
        """Add a line, in place of an equal one.

        :param nodes: the places that missed the tags, one for each tag.
        :raises OSError: the file cannot be written.
        """
        number = os.urandom(8).hex()
        line = JournalLine(namespace, tuple(tags), mode, tuple(places), number, tuple(nodes), self._clock())
        with self._locked():
            size = self._size()
            if size > MAX_BYTES:
                self._replace(_condensed([*self._read(), line]))
                return
            lines = self._read() if size <= SEARCHED else []
            if any(other.content == line.content for other in lines):
                self._replace([*(other for other in lines if other.content != line.content), line])
                return
            is_new = not os.path.lexists(self.path)
            with open(self.path, "ab", opener=_private) as file:
                # Begin with a newline. An append that a crash truncates then damages one line, not two.
                file.write(b"\n" + _line(line))
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                self._sync_folder()

    def settle(self, delivered: Mapping[str, Collection[str]]) -> None:
        """Remove delivered tags from lines. The order of the lines stays.

        :param delivered: a mapping from the id of a line to its delivered tags.
        :raises OSError: the file cannot be written.
        """
        with self._locked():
            lines = [line.without(delivered.get(line.id, ())) for line in self._read()]
            self._replace([line for line in lines if line.tags])

    @contextmanager
    def delivery_lock(self) -> Iterator[bool]:
        """Hold the delivery lock during the block. Yield ``False`` if another process holds it.

        The kernel frees the lock of a process that is killed.

        :raises OSError: the lock file cannot be opened or locked.
        """
        with open(self._delivery_lock, "ab", opener=_private) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _drop_old(self, lines: Sequence[JournalLine]) -> Sequence[JournalLine]:
        now = self._clock()
        young = [line for line in lines if now - line.since <= MAX_LINE_AGE]
        if len(young) < len(lines):
            old = [line for line in lines if now - line.since > MAX_LINE_AGE]
            self._replace(young)
            _log.warning(
                "%d lines were dropped from %s: for more than %d days no process could deliver them; missed by: %s",
                len(old),
                self.path,
                MAX_LINE_AGE // 86400,
                listed(sorted({node for line in old for node in line.nodes or line.places})),
            )
        return young

    def _size(self) -> int:
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return 0

    def _read(self) -> list[JournalLine]:
        try:
            with open(self.path, encoding="utf-8", errors="replace", opener=_private) as lines:
                return [line for text in lines if (line := _parse(text, self._clock())) is not None]
        except FileNotFoundError:
            return []

    def _replace(self, lines: Sequence[JournalLine]) -> None:
        """Replace the whole file. A crash leaves the old file, and delivering its lines again is harmless."""
        beside = f"{self.path}.{os.getpid()}"
        # A file that a crash left behind, or a link that another user has put there, is not written to.
        with suppress(FileNotFoundError):
            os.unlink(beside)
        with open(beside, "xb", opener=_private) as file:
            file.writelines(map(_line, lines))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        self._sync_folder()

    def _sync_folder(self) -> None:
        """Sync the directory, so that the name of a new file is on the disk, not only its bytes (fsync(2))."""
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # The lock is a separate file: the journal itself is replaced, and a lock on it would go with it.
        make_folder(os.path.dirname(self.path))
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
                # Closing is not enough: a child that was forked meanwhile would hold the lock until it ends.
                fcntl.flock(lock, fcntl.LOCK_UN)


def journal_for(
    given: str | bool | None, store: Store, folder: str, may_create: bool = True, has_edge: bool = False
) -> Journal | None:
    """Return the journal of a site, checked; ``None`` where it has none.

    :param given: the option ``journal``. By default, there is a journal if the store or a CDN is on other machines.
    :param folder: the folder of the default journal.
    :param may_create: whether to create the default journal. A job in another folder must not: no process delivers from
        there.
    :param has_edge: whether invalidations purge a CDN.
    :raises ConfigError: the named file cannot be written.
    """
    if isinstance(given, str):
        journal = Journal(given)
        journal.check()
        return journal
    if given is not None or not (store.remote or has_edge):
        return None
    journal = Journal(os.path.join(folder, "journal"))
    if not may_create and not os.path.lexists(journal.path):
        return None
    try:
        journal.check()
    except ConfigError as error:
        # The default must not stop a server from starting: its file system may be read-only.
        _log.warning(
            "%s. An invalidation that a node misses will raise InvalidationError: set journal= "
            "(WSGI_ISR_JOURNAL) to a writable file, or write journal=False",
            error.problem,
        )
    return journal


def batches(lines: Iterable[JournalLine]) -> Iterator[list[JournalLine]]:
    """Yield runs of lines of one mode, in order. A single invalidation delivers a run."""
    batch: list[JournalLine] = []
    size = 0
    for line in lines:
        if batch and (line.mode != batch[0].mode or size + len(line.tags) > _BATCH):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line.tags)
    if batch:
        yield batch


def _condensed(lines: Sequence[JournalLine]) -> list[JournalLine]:
    """Merge all lines of the last line's site into one line that invalidates all pages.

    If the lines of other sites exceed half of :data:`MAX_BYTES`, merge them as well, one line a site.
    """
    own = lines[-1]
    left = [line for line in lines if _scope_of(line) != _scope_of(own)]
    groups = {_scope_of(own): [line for line in lines if _scope_of(line) == _scope_of(own)]}
    if sum(len(_line(line)) for line in left) > MAX_BYTES // 2:
        for line in left:
            groups.setdefault(_scope_of(line), []).append(line)
        left = []
    for group in groups.values():
        hardest = max((line.mode for line in group), key=_MODES.index)
        # Without nodes: only a store with the same nodes knows which of them holds the tag of all pages.
        left.append(group[-1]._replace(tags=(keyspace.EVERYTHING,), mode=hardest, nodes=()))
    return left


def _scope_of(line: JournalLine) -> tuple[str, frozenset[str]]:
    return line.namespace, frozenset(line.places)


def _belongs_to(line: JournalLine, namespace: str, places: Sequence[str]) -> bool:
    return line.namespace == namespace and not {*line.places}.isdisjoint(places)


def _private(path: str, flags: int) -> int:
    """Open a file, without following a link. A new file is for this user only: tags and paths may be private.

    Root may run a job of an app whose processes run as another user. A file that root creates belongs to the owner of
    the folder. An existing file keeps its owner, since it may be a hard link to any file.
    """
    if os.geteuid() == 0 and flags & os.O_CREAT:
        with suppress(FileExistsError):
            file = os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            give_to_owner_of(os.path.dirname(path), file)
            return file
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _line(line: JournalLine) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _parse(text: str, now: float) -> JournalLine | None:
    """Return a line; ``None`` where it is damaged.

    A truncated line may be dropped: the call that wrote it never returned.
    """
    try:
        namespace, tags, mode, places, number, nodes, since = (*json.loads(text), (), now)[:7]
        line = JournalLine(namespace, tuple(tags), mode, tuple(places), number, tuple(nodes), float(since))
    except (ValueError, TypeError):
        return None
    words = (line.namespace, line.mode, line.id, *line.tags, *line.places, *line.nodes)
    is_whole = all(type(word) is str for word in words) and len(line.nodes) in (0, len(line.tags))
    return line if is_whole and line.mode in _MODES and line.tags else None
