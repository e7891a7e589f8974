"""On demand: the invalidate helper, its receipt, and the journal of what could not be delivered."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from . import keys
from . import options as o
from .errors import ConfigError, InvalidationError, StoreError
from .events import Broken, Events, Invalidated
from .keys import Keyspace
from .stamps import Mode, Stamps
from .stores.base import Store
from .stores.files import check_writable


class Receipt(NamedTuple):
    """The acknowledgement: no request that starts from now on is answered, as fresh, with anything older
    (from copies in other processes: from ``coherence`` seconds on).

    ``tags`` are the stored names (``tag:posts``, ``path:/blog/a``); ``replayed`` those that the journal had
    kept from earlier calls; ``seconds`` how long it took.
    """

    tags: tuple[str, ...]
    mode: str
    seconds: float
    replayed: tuple[str, ...] = ()


def tag_names(
    tags: Iterable[str] = (),
    paths: Iterable[str] = (),
    routes: Iterable[str] = (),
    prefixes: Iterable[str] = (),
    everything: bool = False,
    rules: Collection[str] | None = None,
) -> list[str]:
    """The stored names of what is to be invalidated.

    :param rules: the patterns to hold ``routes`` against; a job that does not have them names what it likes.
    :raises ConfigError: nothing is named, or something is not what it should be.
    """
    for option, value in (("tags", tags), ("paths", paths), ("routes", routes), ("prefixes", prefixes)):
        if isinstance(value, (str, bytes)):
            raise ConfigError(option, f"{value!r} is not a list", f"write {option}=[{value!r}]")
    names = [keys.EVERYTHING] if everything else []
    for tag in tags:
        if not isinstance(tag, str) or not tag:
            raise ConfigError("tags", f"{tag!r} is not a tag", "give non-empty strings")
        names.append(keys.tag_name(tag))
    names += [keys.path_tag(o.parse_path(path, "paths")) for path in paths]
    names += [keys.prefix_tag(o.parse_path(path, "prefixes")) for path in prefixes]
    for pattern in routes:
        if rules is not None and pattern not in rules:
            known = ", ".join(sorted(rules))
            raise ConfigError("routes", f"{pattern!r} is the pattern of no rule", f"one of: {known}")
        names.append(keys.route_tag(pattern))
    if not names:
        raise ConfigError("invalidate", "nothing to invalidate was named", "give tags, paths, routes or prefixes")
    return list(dict.fromkeys(names))


class Invalidator:
    """Invalidates in one store and namespace.

    :param journal: a file for what cannot be delivered; the next call that can be tries it again.
    :param after: called after each attempt, delivered or not (a process then asks the store again).
    """

    def __init__(
        self,
        store: Store,
        namespace: str,
        journal: str | None = None,
        events: Events | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        space = Keyspace(namespace)
        # coherence=0: nothing here is answered from polled values.
        self._stamps = Stamps(store, space.tag, space.epoch, coherence=0, monotonic=time.monotonic)
        self._space = namespace
        self.journal = Journal(journal) if journal else None
        self._events = events or Events()
        self._after = after

    def invalidate(self, names: Iterable[str], mode: str = "expire") -> Receipt:
        """Returns once it is acknowledged.

        :raises InvalidationError: it was not, or not entirely.
        :raises ConfigError: there is no such mode.
        """
        if mode not in {known.value for known in Mode}:
            raise ConfigError("mode", f"{mode!r} is not possible", "one of: stale, expire, purge")
        began = time.monotonic()
        names = tuple(dict.fromkeys(names))
        try:
            undelivered = self._deliver(names, Mode(mode))
        finally:
            self._after()
        self._events.emit(Invalidated(names, mode, tuple(undelivered)))
        if undelivered:
            kept = self._keep(tuple(undelivered), mode)
            delivered = tuple(name for name in names if name not in undelivered)
            raise InvalidationError(delivered, dict(undelivered), kept)
        # Only now, with the store at hand: what earlier calls could not deliver.
        return Receipt(names, mode, time.monotonic() - began, self._replay_quietly())

    def _deliver(self, names: Iterable[str], mode: Mode) -> dict[str, StoreError]:
        """Return the names that were not delivered, and why."""
        stored = {name: keys.stored_tag(name) for name in names}
        failed = self._stamps.invalidate(stored.values(), mode)
        return {name: failed[tag] for name, tag in stored.items() if tag in failed}

    def _keep(self, names: tuple[str, ...], mode: str) -> str | None:
        """The path of the journal that has them now."""
        if self.journal is None:
            return None
        try:
            self.journal.keep(Kept(self._space, names, mode))
        except OSError as error:
            outcome = "it does not keep the undelivered tags"
            self._events.emit(Broken(f"writing the journal {self.journal.path}", error, outcome))
            return None
        return self.journal.path

    def _replay_quietly(self) -> tuple[str, ...]:
        try:
            return self.replay()
        except InvalidationError as error:
            return error.delivered
        except OSError as error:
            assert self.journal is not None
            outcome = "the next invalidation tries it again"
            self._events.emit(Broken(f"replaying the journal {self.journal.path}", error, outcome))
            return ()

    def replay(self) -> tuple[str, ...]:
        """Deliver what the journal has kept; what still cannot be stays there.

        :returns: the names of the tags that were delivered.
        :raises InvalidationError: some were not. :raises OSError: the journal cannot be read or written.
        """
        if self.journal is None:
            return ()
        delivered: list[str] = []
        failed: dict[str, StoreError] = {}
        for line in self.journal.lines(self._space):
            undelivered = self._deliver(line.tags, Mode(line.mode))
            failed.update(undelivered)
            delivered += [tag for tag in line.tags if tag not in undelivered]
            if len(undelivered) < len(line.tags):
                self.journal.done(line, Kept(line.namespace, tuple(undelivered), line.mode))
        if delivered:
            self._after()
        if failed:
            raise InvalidationError(tuple(delivered), failed, self.journal.path)
        return tuple(dict.fromkeys(delivered))


class Kept(NamedTuple):
    """One line of the journal."""

    namespace: str
    tags: tuple[str, ...]
    mode: str


class Journal:
    """A file of JSON lines, locked while it is read or written, and on the disk before a call returns.

    It may be shared by any number of processes on a machine, and by several namespaces. New files have mode 0600, and
    a new directory 0700.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = f"{path}.lock"

    def check(self) -> None:
        """Return if it can be written, which is found out without making it.

        :raises ConfigError: it cannot.
        """
        try:
            for path in (self.path, self._lock):
                check_writable(path)
        except OSError as error:
            raise ConfigError("journal", f"{self.path}: {error.strerror}", "name a file that can be written") from error

    def lines(self, namespace: str) -> list[Kept]:
        """What is kept for ``namespace``. The lock is not held while it is delivered: that may take a while, and
        delivering a line twice is harmless."""
        if not os.path.exists(self.path):
            return []
        with self._locked():
            return [entry for entry in self._read() if entry.namespace == namespace]

    def keep(self, entry: Kept) -> None:
        """Append a line, unless it is there. :raises OSError: it cannot be written."""
        with self._locked():
            if entry in self._read():
                return
            with open(self.path, "ab", opener=_private) as file:
                # It begins with a line break of its own: an append that a crash cut short spoils one line, not two.
                file.write(b"\n" + _line(entry))
                file.flush()
                os.fsync(file.fileno())

    def done(self, entry: Kept, rest: Kept) -> None:
        """``entry`` was delivered, but for the tags of ``rest``."""
        with self._locked():
            others = [other for other in self._read() if other != entry]
            self._replace([*others, rest] if rest.tags and rest not in others else others)

    def _read(self) -> list[Kept]:
        try:
            with open(self.path, encoding="utf-8", errors="replace") as lines:
                return [entry for line in lines if (entry := _parse(line)) is not None]
        except FileNotFoundError:
            return []

    def _replace(self, entries: list[Kept]) -> None:
        """All or nothing: a crash leaves the old file, and delivering its lines again is harmless."""
        beside = f"{self.path}.{os.getpid()}"
        # One that a crash left behind, or a link that another user has put there, is not written to.
        with suppress(FileNotFoundError):
            os.unlink(beside)
        with open(beside, "xb", opener=_private) as file:
            file.writelines(map(_line, entries))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own: the journal itself is replaced, and a lock on it would go with it.
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), mode=0o700, exist_ok=True)
        with open(self._lock, "ab", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _private(path: str, flags: int) -> int:
    """Open a file that, where it is new, is for this user only: tags and paths may be private, as in the store. A link
    in its place is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _line(entry: Kept) -> bytes:
    return json.dumps([entry.namespace, entry.tags, entry.mode]).encode() + b"\n"


def _parse(line: str) -> Kept | None:
    """A line cut short by a crash in the middle of an append belongs to a call that was never answered."""
    try:
        namespace, tags, mode = json.loads(line)
        return Kept(namespace, tuple(tags), mode) if mode in {known.value for known in Mode} else None
    except (ValueError, TypeError):
        return None
