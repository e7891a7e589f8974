"""The switch: turn the cache off, or serve pages whatever their age, in every process and without a restart.

**The record.** A switch is one small record for each namespace: mode, end, rules, actor. The mode ``pass`` passes
requests through to the app. The mode ``serve-stale`` serves what is stored and renders none of it again. The mode
``on`` ends both.

**Copies.** Each node of the store has a copy, and the copy with the highest stamp counts. So a lost node loses no
switch. A process that knows the record writes it back to nodes that lack it, after a restart of memcached, say. A stamp
is the Unix time in milliseconds, or the highest known stamp plus one. Thus a later command wins even if its clock is
behind. Where no node acknowledges, the command writes the file ``off`` in the state folder of the app. The processes of
that machine look at the file once a second. An empty file is a switch without an end, as of the file's time, so
``touch .wsgi_isr/off`` works without the command. A file never spreads to the store.

**Reading.** The copies are read along with the epochs, in the same round trip. So each process learns of a switch
within ``coherence``, and no hit costs more. With ``coherence=0``, a second key would add a tenth to each hit. So a
command marks the epochs that it renews, and a new marked epoch makes the process read the copies. An invalidation may
replace all marked epochs between two requests of a process. The process then reads the copies within five seconds. A
prepared response belongs to the switch that it was prepared under. It is not sent under another one.

**The end.** A switch ends by the clock of each process, so processes end it as far apart as their clocks are. No
validity depends on it: invalidations are delivered while the switch is on, and nonces prove each page afterwards.

**Hostile bytes.** A program that writes to the store can switch a cache off, unless there is a ``signing_key``.
Malformed records count as missing. A stamp in the far future is malformed: no command could end such a switch.
"""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgpack

from ..config.options import MAX_SECONDS
from ..errors import ConfigError, StoreError
from ..events import Event, Switched
from ..stores.base import Many, Store
from ..stores.files import give_to_owner_of, make_folder
from .compare_and_swap import update
from .entry import Codec
from .keyspace import Keyspace

PASS, SERVE_STALE, ON = "pass", "serve-stale", "on"
#: The reasons in ``Cache-Status``.
SWITCHED_OFF, SWITCHED_STALE = "switched-off", "switched-serve-stale"
#: The name of the file in the state folder.
FILE = "off"

#: Seconds between two looks at the file, and between two attempts to write lost copies back.
LOOK_PAUSE = 1.0
#: The bytes of a marked epoch; others have 12.
_MARKED = 13
#: The most rules of a record, the most characters of a text in it, and the most bytes of the file.
MAX_RULES, MAX_TEXT, _MAX_FILE = 256, 2000, 1024 * 1024
#: The most that a stamp may be ahead of this clock, in milliseconds: a day.
_MAX_AHEAD = 24 * 3600 * 1000


class Record(NamedTuple):
    """A record of the switch.

    :param stamp: the record with the highest stamp counts.
    :param mode: ``pass``, ``serve-stale`` or ``on``.
    :param until: the end in seconds of Unix time; ``None`` for no end.
    :param rules: the patterns of the rules concerned; ``None`` for the whole cache, data included.
    :param actor: the user and the machine of the command.
    :param since: the time of the command in seconds of Unix time.
    """

    stamp: int
    mode: str
    until: float | None = None
    rules: tuple[str, ...] | None = None
    actor: str = ""
    since: float = 0.0

    def is_active(self, now: float) -> bool:
        """Return whether the switch is in effect at ``now``, in seconds of Unix time."""
        return self.mode != ON and (self.until is None or now < self.until)

    def mode_for(self, rule: str, is_data: bool, now: float) -> str:
        """Return the mode for a page of ``rule``, or for the data of a function; ``on`` where the switch is not on."""
        is_concerned = self.rules is None or (not is_data and rule in self.rules)
        return self.mode if is_concerned and self.is_active(now) else ON


NO_RECORD = Record(0, ON)


def checked(fields: Sequence[Any], now: float) -> Record | None:
    """Return the record with these fields; ``None`` if it is malformed. Another program may have written it."""
    try:
        stamp, mode, until, rules, actor, since = fields
    except (TypeError, ValueError):
        return None
    if type(stamp) is not int or not 0 < stamp <= now * 1000 + _MAX_AHEAD or mode not in (PASS, SERVE_STALE, ON):
        return None
    if not (until is None or _is_time(until)) or not _is_time(since) or not _is_text(actor):
        return None
    if rules is not None:
        if type(rules) not in (list, tuple) or not 0 < len(rules) <= MAX_RULES or not all(map(_is_text, rules)):
            return None
        rules = tuple(rules)
    return Record(stamp, mode, until, rules, actor, since)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 100 * MAX_SECONDS and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT


class Copies:
    """The copies of a namespace's record: one on each node of the store, and the file of this machine.

    :param folder: the state folder of the app; empty for no file.
    :param clock: Unix time in seconds.
    """

    def __init__(
        self, store: Store, namespace: str, signing_key: str | None, folder: str, clock: Callable[[], float]
    ) -> None:
        self.nodes = store.nodes if store.keeps else ()
        self._names = Keyspace(namespace)
        self.keys = tuple(map(self._names.switch, self.nodes))
        self.file = os.path.join(folder, FILE) if folder else ""
        self.clock = clock
        self._store = store
        self._namespace = namespace
        self._codec = Codec(signing_key, namespace)

    # The store -----------------------------------------------------------------------------------------

    def seal(self, record: Record) -> bytes:
        """Return the bytes of a record in the store."""
        return self._codec.seal(msgpack.packb(record), "switch")

    def newest(self, copies: Iterable[bytes | None]) -> Record:
        """Return the copy with the highest stamp."""
        return max(map(self._record, copies), key=lambda record: record.stamp, default=NO_RECORD)

    def _record(self, data: bytes | None) -> Record:
        if data is None:
            return NO_RECORD
        try:
            fields = msgpack.unpackb(self._codec.unseal(data, "switch"), use_list=False)
        except Exception:  # msgpack raises half a dozen kinds
            return NO_RECORD
        return checked(fields, self.clock()) or NO_RECORD

    def are_signed(self, copies: Iterable[bytes | None]) -> bool:
        """Return whether a copy has the form of a signed record, and this process has no key."""
        for data in copies:
            if data is not None and self._record(data) is NO_RECORD:
                try:
                    fields = msgpack.unpackb(self._codec.beneath_signature(data), use_list=False)
                except Exception:  # msgpack raises half a dozen kinds
                    continue
                if checked(fields, self.clock()) is not None:
                    return True
        return False

    def read(self) -> Many:
        """Return the copies on all nodes."""
        return self._store.get_many(list(self.keys))

    def write(self, record: Record) -> dict[str, StoreError]:
        """Write a record to each node, and mark its epoch; return the nodes that missed it, each with its error."""
        sealed, missed = self.seal(record), {}
        for node, key in zip(self.nodes, self.keys, strict=True):
            try:
                self._store.set(key, sealed)
                self._store.set(self._names.epoch(node), os.urandom(_MARKED))
            except StoreError as error:
                missed[node] = error
        return missed

    def mend(self, key: str, record: Record) -> None:
        """Write a record to a node whose copy is missing or older. Best effort."""
        update(self._store, key, lambda held: self.seal(record) if self._record(held).stamp < record.stamp else None)

    # The file ------------------------------------------------------------------------------------------

    def filed(self) -> Record:
        """Return the record in the file. A file without a readable record is a switch for everything."""
        try:
            found = os.stat(self.file)
        except (OSError, ValueError):
            return NO_RECORD
        text = ""
        try:
            if stat.S_ISREG(found.st_mode) and found.st_size <= _MAX_FILE:  # a pipe would block
                with open(self.file, encoding="utf-8") as file:
                    text = file.read(_MAX_FILE)
            if text:
                fields = json.loads(text)
                if (namespace := fields.pop("namespace", self._namespace)) != self._namespace:
                    return NO_RECORD if isinstance(namespace, str) else self._of_file(found)
                if (record := checked([fields.get(name) for name in Record._fields], self.clock())) is not None:
                    return record
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            pass
        return self._of_file(found)

    def _of_file(self, found: os.stat_result) -> Record:
        # A time in the future would overrule all later commands.
        since = max(0.0, min(found.st_mtime, found.st_ctime, self.clock()))
        return Record(max(1, int(since * 1000)), PASS, actor="the file", since=since)

    def write_file(self, record: Record) -> None:
        """Write the record to the file, in place of the present one.

        :raises ConfigError: the present one is the file of another namespace.
        :raises OSError: the file cannot be written.
        """
        if os.path.exists(self.file) and self.filed() is NO_RECORD:
            problem = f"{self.file} is the one of another namespace"
            raise ConfigError("the file of the switch", problem, "write wsgi-isr on for that namespace first")
        make_folder(folder := os.path.dirname(self.file))
        new = f"{self.file}.{os.getpid()}.new"
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)
            with open(descriptor, "w", encoding="utf-8") as file:
                give_to_owner_of(folder, descriptor)
                json.dump({**record._asdict(), "namespace": self._namespace}, file)
            os.replace(new, self.file)
        except OSError:
            if os.path.lexists(new):
                os.unlink(new)
            raise

    def remove_file(self) -> bool:
        """Remove the file, unless it is another namespace's. Return whether there was one.

        :raises OSError: the file cannot be removed.
        """
        if self.filed() is NO_RECORD:
            return False
        try:
            os.unlink(self.file)
        except FileNotFoundError:
            return False
        return True


class Switch:
    """The switch as one process knows it.

    :param copies: ``None`` for a cache that cannot be switched.
    :param own: the mode of the option ``off``: it holds for this process, and no record is read.
    :param monotonic: monotonic seconds.
    :param on_change: called when another record is in effect, under a lock.
    :param emit: takes an event for each change, in the thread of a request.
    """

    def __init__(
        self,
        copies: Copies | None = None,
        own: str | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
        emit: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._copies = copies if own is None else None
        self._clock = copies.clock if copies is not None else time.time
        self._monotonic = monotonic
        self._on_change = on_change
        self._emit = emit
        self._lock = threading.Lock()
        self._seen: list[bytes | None] = []
        self._stored = self._filed = NO_RECORD
        self._look_at = self._mend_at = float("-inf")
        #: The record in effect; ``None`` while the cache is on. Replaced whole: prepared responses refer to it.
        self.active = Record(1, own, actor="the option off") if own is not None else None
        self._news: list[Record | None] = [self.active] if self.active is not None else []
        #: Whether the option switches this process off: the store need not be asked.
        self.is_off_here = own == PASS
        self._keys = self._copies.keys if self._copies is not None else ()
        self._marked: dict[str, bytes] = {}
        self._read_at = float("-inf")

    def mode_for(self, rule: str, is_data: bool = False) -> str:
        """Return the mode for a page of ``rule``, or for the data of a function, at the last read of the epochs."""
        if self._news:
            self._tell()
        active = self.active
        return ON if active is None else active.mode_for(rule, is_data, self._clock())

    def peek(self, rule: str) -> str:
        """Return the mode for a page of ``rule`` by the records of this moment. Note nothing, and emit no event."""
        copies = self._copies
        if copies is None:
            return ON if self.active is None else self.active.mode
        known = (self._stored, copies.newest(copies.read().values.values()), copies.filed())
        return max(known, key=lambda record: record.stamp).mode_for(rule, False, self._clock())

    def due(self, coherence: float, pause: float) -> tuple[str, ...]:
        """Return the keys to read along with the epochs.

        :param coherence: the option. Without it, the keys are read every ``pause`` seconds, and after a marked epoch.
        """
        if coherence > 0 or not self._keys:
            return self._keys
        now = self._monotonic()
        if now < self._read_at:
            return ()
        self._read_at = now + pause
        return self._keys

    def note(self, found: Many, along: tuple[str, ...], epochs: Iterable[str]) -> None:
        """Note what was read along with the epochs, and look at the file once a second.

        :param along: the keys from :meth:`due`.
        :param epochs: the keys of the epochs.
        """
        if self._copies is None:
            return
        # With coherence=0, each request comes here: the usual case is a few comparisons.
        is_read = bool(along) or self._is_newly_marked(found, epochs)
        now = self._monotonic()
        if is_read:
            self._note_copies(self._copies, found if along else self._copies.read(), now)
        if now >= self._look_at:
            self._look_at = now + LOOK_PAUSE
            self._filed = self._copies.filed()
        elif not is_read and self.active is None:
            return
        self._settle()

    def _is_newly_marked(self, found: Many, epochs: Iterable[str]) -> bool:
        for key in epochs:
            value = found.values.get(key)
            if value is not None and len(value) == _MARKED and self._marked.get(key) != value:
                self._marked = {**self._marked, key: value}
                return True
        return False

    def _note_copies(self, copies: Copies, found: Many, now: float) -> None:
        read = [found.values.get(key) for key in self._keys]
        if read != self._seen:
            newest = copies.newest(read)
            with self._lock:
                self._seen = read
                if newest.stamp > self._stored.stamp:
                    self._stored = newest
        if self._stored is not NO_RECORD and now >= self._mend_at:
            self._mend_at = now + LOOK_PAUSE
            self._mend(copies, read, found)

    def _settle(self) -> None:
        """Put the newest record into effect, or end it."""
        with self._lock:
            newest = max(self._stored, self._filed, key=lambda record: record.stamp)
            active = newest if newest.is_active(self._clock()) else None
            if active == self.active:
                return
            self.active = active
            self._news.append(active)
            self._on_change()

    def _mend(self, copies: Copies, read: list[bytes | None], found: Many) -> None:
        """Write the record back to the nodes that lack it: a node has restarted empty, or evicted it."""
        record = self._stored
        if record.mode != ON and not record.is_active(self._clock()):
            return
        sealed = copies.seal(record)
        lacking = [
            key
            for key, data in zip(self._keys, read, strict=True)
            if data != sealed and key not in found.unreachable and copies.newest([data]).stamp < record.stamp
        ]
        for key in lacking:
            copies.mend(key, record)

    def _tell(self) -> None:
        """Emit an event for each change: not under the locks of the poll, as a subscriber may use the cache."""
        with self._lock:
            news, self._news = self._news, []
        for record in news:
            if record is None:
                self._emit(Switched(ON))
            else:
                self._emit(Switched(record.mode, record.rules, record.until, record.actor))
