"""The history of an app: each instance writes one record a minute to the store, and readers merge them.

The records are plain values that lapse after :data:`TTL`. A list of the instances, with their last heartbeat, tells a
reader which records to look for. Nothing here is needed to serve a page: a write that fails is left out.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgpack

from ..cache.entry import Codec
from ..cache.keyspace import Keyspace
from ..stores.base import Store
from .totals import Totals, merged

#: Seconds for which a record is kept; seconds between two records.
TTL, MINUTE = 25 * 3600.0, 60.0
#: Seconds after its last heartbeat, from which on an instance counts as gone.
GONE_AFTER = 150.0
#: The most instances of an app whose records are found.
MAX_INSTANCES = 256
#: The records that are read at once.
_BATCH = 200
_MAX_NAME = 200


class Instance(NamedTuple):
    """An instance: a server with its workers and renderers, or one process of a server without hooks.

    :param id: tells it from others, and from its own earlier lives.
    :param name: its host name and process id.
    :param kind: ``instance``, or ``process`` where each process counts by itself.
    :param started: Unix time in seconds.
    :param seen: the time of its last heartbeat, Unix time in seconds.
    """

    id: str
    name: str
    kind: str
    started: float
    seen: float

    def is_alive(self, now: float) -> bool:
        """Return whether the last heartbeat is recent."""
        return now - self.seen < GONE_AFTER


class Record(NamedTuple):
    """The work of one instance in one minute.

    :param minute: the begin of the minute, Unix time in seconds.
    :param totals: the counts of the minute, and the values of its end.
    """

    instance: Instance
    minute: float
    totals: Totals


class History:
    """The records of an app.

    :param signing_key: the option ``signing_key`` of the app.
    :param clock: Unix time in seconds.
    """

    def __init__(
        self, store: Store, namespace: str, signing_key: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._names = Keyspace(namespace)
        self._codec = Codec(signing_key, namespace)
        self._clock = clock

    def write(self, instance: Instance, totals: Totals) -> None:
        """Write the heartbeat of an instance, and its record of the current minute.

        :raises StoreError: the store is unreachable.
        """
        self._beat(instance)
        minute = int(self._clock() // MINUTE)
        key = self._names.history(f"{instance.id} {minute}")
        self._store.set(key, self._codec.seal(totals.encode(), "history"), TTL)

    def instances(self) -> list[Instance]:
        """Return the instances of the last :data:`TTL` seconds, the first started one first.

        :raises StoreError: the store is unreachable.
        """
        return sorted(self._read(self._store.get(self._names.history(""))), key=lambda each: each.started)

    def records(self, minutes: int) -> list[Record]:
        """Return the records of the last ``minutes``, in order. Unreadable and unreachable ones are left out.

        :raises StoreError: the store is unreachable.
        """
        last, instances = int(self._clock() // MINUTE), self.instances()
        wanted = {
            self._names.history(f"{instance.id} {minute}"): (instance, minute)
            for minute in range(last - minutes, last + 1)
            for instance in instances
            if (minute + 1) * MINUTE >= instance.started and minute * MINUTE <= instance.seen
        }
        keys = list(wanted)
        found: list[Record] = []
        for first in range(0, len(keys), _BATCH):
            values = self._store.get_many(keys[first : first + _BATCH]).values
            for key in keys[first : first + _BATCH]:
                instance, minute = wanted[key]
                if (totals := self._totals(values.get(key))) is not None:
                    found.append(Record(instance, minute * MINUTE, totals))
        return found

    def _beat(self, instance: Instance) -> None:
        """Put an instance in the list. After a lost race, the next minute tries again."""
        key, now = self._names.history(""), self._clock()
        for _ in range(4):
            held = self._store.gets(key)
            known = self._read(held.value if held is not None else None)
            others = [each for each in known if each.id != instance.id and now - each.seen < TTL]
            newest = sorted(others, key=lambda each: each.seen)[1 - MAX_INSTANCES :]
            packed = msgpack.packb([*newest, instance._replace(seen=now)])
            data = self._codec.seal(packed, "history")
            if self._store.add(key, data, TTL) if held is None else self._store.cas(key, data, held.token, TTL):
                return

    def _read(self, data: bytes | None) -> list[Instance]:
        """Return the well-formed instances in ``data``: another program may have written it."""
        if data is None:
            return []
        try:
            rows = msgpack.unpackb(self._codec.unseal(data, "history"), use_list=False)
            return [each for each in map(_instance, rows[:MAX_INSTANCES]) if each is not None]
        except Exception:  # msgpack raises half a dozen kinds
            return []

    def _totals(self, data: bytes | None) -> Totals | None:
        if data is None:
            return None
        try:
            return Totals.decode(self._codec.unseal(data, "history"))
        except ValueError:
            return None


class Minutes:
    """The minutes of one instance: a record holds the counts since the last written one.

    :param kind: see :class:`Instance`.
    """

    def __init__(self, history: History, kind: str, clock: Callable[[], float] = time.time) -> None:
        self._history = history
        self._clock = clock
        now = clock()
        self._instance = Instance(os.urandom(8).hex(), f"{socket.gethostname()}:{os.getpid()}", kind, now, now)
        self._written = Totals()
        self._minute = int(now // MINUTE)
        self._in_minute = Totals()

    def is_due(self) -> bool:
        """Return whether a minute has ended since the last record."""
        return int(self._clock() // MINUTE) != self._minute

    def write(self, totals: Totals) -> None:
        """Write the record of the counts since the last one. A record that cannot be written is left to the next one.

        :raises StoreError: the store is unreachable.
        """
        minute = int(self._clock() // MINUTE)
        since = totals.since(self._written)
        # A second record of the same minute, at the end of the process, replaces the first.
        record = self._in_minute.merge(since.counts()) if minute == self._minute else since
        self._history.write(self._instance, Totals.combine(record, totals))
        self._written, self._minute, self._in_minute = totals, minute, record.counts()


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each instance."""
    last: dict[str, Record] = {}
    for record in records:
        if record.instance.id not in last or last[record.instance.id].minute <= record.minute:
            last[record.instance.id] = record
    return list(last.values())


def summary(records: Iterable[Record], now: float) -> Totals:
    """Return the counts of all records, and the values of the moment of the instances that are alive."""
    every = list(records)
    counts = merged(record.totals.counts() for record in every)
    moment = merged(record.totals for record in newest(every) if record.instance.is_alive(now))
    return Totals.combine(counts, moment)


def _instance(fields: Any) -> Instance | None:
    instance = Instance(*fields)
    texts = instance.id, instance.name, instance.kind
    good = all(type(text) is str and len(text) <= _MAX_NAME and text.isprintable() for text in texts)
    return instance if good and type(instance.started) is type(instance.seen) is float else None
