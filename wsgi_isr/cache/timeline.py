"""Timelines: the last events of a page and the last invalidation of a tag, for :meth:`wsgi_isr.ISR.explain`.

The records decide nothing. They are on the data plane, so a store evicts them like pages, and they lapse by themselves.
A recorder collects events in memory. A background thread writes them at most once a second. Neither a request nor an
invalidation waits for the store. A lost record does no harm.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import msgpack

from ..errors import StoreError
from ..events import Event, Invalidated, Refused, Rendered, RenderFailed, Served
from ..stores.base import Store
from .app_records import in_thread
from .entry import Codec
from .keyspace import Keyspace, stored_tag

#: The most events of a page, and of a tag; the most tags of one invalidation that are recorded.
MAX_EVENTS, MAX_OF_TAG, MAX_TAGS = 20, 3, 32
#: The most records that wait to be written. Further ones are dropped.
MAX_WAITING = 1024
#: The most characters of a text in a record, and the most names of data.
MAX_TEXT, MAX_DATA = 200, 16
#: Seconds for which a record lasts; for a page that may not exist. Clients can ask for any number of the latter.
LASTS, SHORT = 86400.0, 600.0
#: Seconds between two writes of a process.
PAUSE = 1.0

_UNICODE = "surrogatepass"  # a path or a tag may be no UTF-8


class TimelineEvent(NamedTuple):
    """An event of a page or a tag.

    :param kind: ``rendered``, ``refused``, ``failed``, ``stale`` (answers) or ``invalidated``.
    :param at: Unix time in seconds; of several equal events, that of the last.
    :param by: the process, as ``host:pid:role``, or the actor of an invalidation.
    :param seconds: the duration of a render; for a failure, the back-off.
    :param detail: the reason, the error, or the mode and the name of the tag.
    :param times: the number of equal events in a row.
    :param source: where the lifetime came from: ``rule``, ``header``, ``code``, ``data`` or ``negative_ttl``.
    :param data: the keys of the cached data that the render used.
    """

    kind: str
    at: float
    by: str = ""
    seconds: float = 0.0
    detail: str = ""
    times: int = 1
    source: str = ""
    data: tuple[str, ...] = ()


KINDS = frozenset({"rendered", "refused", "failed", "stale", "invalidated"})

_role: ContextVar[str] = ContextVar("wsgi_isr_role", default="")
_actor: ContextVar[str] = ContextVar("wsgi_isr_actor", default="")


@contextmanager
def rendering_as(role: str) -> Iterator[None]:
    """Name the role of the renders in this context: ``visitor``, ``background`` or ``refresh``."""
    token = _role.set(role)
    try:
        yield
    finally:
        _role.reset(token)


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """Name the actor of the invalidations in this context."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


def current_actor() -> str:
    """Return the actor of an invalidation that names none: ``app`` outside of :func:`acting_as`."""
    return _actor.get() or "app"


class Timelines:
    """The records in a store.

    :param signing_key: the option ``signing_key``.
    """

    def __init__(self, store: Store, namespace: str, signing_key: str | None = None) -> None:
        self._store = store
        self._names = Keyspace(namespace)
        self._codec = Codec(signing_key, namespace)

    def key_of_tag(self, stored: str) -> str:
        """Return the name of a tag's record, from the tag's stored form."""
        return self._names.invalidated(stored)

    def read(self, data: bytes | None) -> list[TimelineEvent]:
        """Return the well-formed events in ``data``, oldest first: another program may have written it."""
        if data is None:
            return []
        try:
            packed = self._codec.unseal(data, "timeline")
            events = msgpack.unpackb(packed, use_list=False, unicode_errors=_UNICODE)
            return [event for event in map(_event, events[-MAX_EVENTS:]) if event is not None]
        except Exception:  # msgpack raises half a dozen kinds
            return []

    def append(self, records: dict[str, list[TimelineEvent]], until: float = float("inf")) -> None:
        """Add events to records. Best effort: of two processes that write at once, one loses its events.

        :param until: the monotonic time in seconds at which to stop.
        """
        found = self._store.get_many(list(records)) if records else None
        for key, new in records.items():
            if found is None or key in found.unreachable or time.monotonic() >= until:
                continue
            events = merged([*self.read(found.values.get(key)), *new])
            is_of_tag = events[-1].kind == "invalidated"
            events = events[-MAX_OF_TAG if is_of_tag else -MAX_EVENTS :]
            lasts = LASTS if is_of_tag or any(map(_is_of_a_good_page, events)) else SHORT
            packed = msgpack.packb(events, unicode_errors=_UNICODE)
            try:
                self._store.set(key, self._codec.seal(packed, "timeline"), lasts)
            except StoreError:
                continue


class Recorder:
    """A subscriber that records the events of one process.

    :param role: returns the role of the process; empty where each render has its own.
    :param clock: Unix time in seconds.
    :param is_alone: no other process sees the store, and tests want no thread: :meth:`flush` writes.
    """

    def __init__(
        self, timelines: Timelines, clock: Callable[[], float], role: Callable[[], str] = str, is_alone: bool = False
    ) -> None:
        self._timelines = timelines
        self._clock = clock
        self._role = role
        self._is_alone = is_alone
        self._host = host_name()
        self._changed = threading.Condition()
        self._waiting: dict[str, list[TimelineEvent]] = {}
        self._is_writing = False
        self._is_closed = False

    def __call__(self, event: Event) -> None:
        """Note an event. The hits of a page are no events of its timeline."""
        if isinstance(event, Served):
            if event.label == "STALE":
                self._note(Keyspace.timeline(event.key), TimelineEvent("stale", self._clock()))
        elif isinstance(event, (Rendered, Refused, RenderFailed)):
            if _is_page(event.key) and (made := self._made(event)) is not None:
                self._note(Keyspace.timeline(event.key), made)
        elif isinstance(event, Invalidated):
            for name in event.tags[:MAX_TAGS]:
                if name not in event.undelivered:
                    self._note_invalidation(name, event)

    def _made(self, event: Rendered | Refused | RenderFailed) -> TimelineEvent | None:
        if isinstance(event, Refused):
            return self._of("refused", detail=event.reason)
        if isinstance(event, RenderFailed):
            cause = event.cause
            text = event.reason if cause is None else f"{event.reason}: {type(cause).__name__}: {_first_line(cause)}"
            return self._of("failed", event.retry_in, text)
        if event.refused:  # the event `Refused` is there already
            return None
        data = tuple(key[:MAX_TEXT] for key in event.data[:MAX_DATA])
        made = self._of("rendered", event.seconds, "" if event.stored else "not stored")
        return made._replace(source=event.source, data=data)

    def _note_invalidation(self, name: str, event: Invalidated) -> None:
        by = f"{event.actor[:MAX_TEXT]} ({self._host}:{os.getpid()})"
        happened = TimelineEvent("invalidated", self._clock(), by, 0.0, f"{event.mode} {name}"[:MAX_TEXT])
        self._note(self._timelines.key_of_tag(stored_tag(name)), happened)

    def _of(self, kind: str, seconds: float = 0.0, detail: str = "") -> TimelineEvent:
        role = self._role() or _role.get() or "background"
        return TimelineEvent(
            kind, self._clock(), f"{self._host}:{os.getpid()}:{role}", float(seconds), detail[:MAX_TEXT]
        )

    def _note(self, key: str, event: TimelineEvent) -> None:
        with self._changed:
            events = self._waiting.get(key)
            if events is None:
                if len(self._waiting) >= MAX_WAITING:
                    return
                events = self._waiting[key] = []
            events.append(event)
            if len(events) > 1:
                self._waiting[key] = merged(events)[-MAX_EVENTS:]
            if self._is_alone or self._is_writing or self._is_closed:
                return
            self._is_writing = True
        if not in_thread(self._write):
            self._is_writing = False

    def waiting(self, key: str) -> list[TimelineEvent]:
        """Return the events of a record that are not written yet."""
        with self._changed:
            return list(self._waiting.get(key, ()))

    def _write(self) -> None:
        """Write after a pause, so that a busy process writes once a second."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, PAUSE)
            if self._is_closed:  # close() writes
                self._is_writing = False
                self._changed.notify_all()
                return
        self.flush()
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()

    def flush(self, until: float = float("inf")) -> None:
        """Write the collected events now. An error of the store loses them.

        :param until: the monotonic time in seconds at which to stop.
        """
        with self._changed:
            records, self._waiting = self._waiting, {}
        try:
            self._timelines.append(records, until)
        except Exception:  # a third party's store may raise anything; the records decide nothing
            return

    def close(self, timeout: float) -> None:
        """Write the collected events within ``timeout`` seconds. Later ones stay in memory."""
        until = time.monotonic() + timeout
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_writing, timeout)
        self.flush(until)


def merged(events: list[TimelineEvent]) -> list[TimelineEvent]:
    """Return the events, with stale answers in a row as one event that counts them."""
    result: list[TimelineEvent] = []
    for event in events:
        if result and event.kind == result[-1].kind == "stale":
            result[-1] = event._replace(times=result[-1].times + event.times)
        else:
            result.append(event)
    return result


def _is_of_a_good_page(event: TimelineEvent) -> bool:
    return event.kind == "rendered" and event.source != "negative_ttl"


def _is_page(key: str) -> bool:
    """Return whether a name in the store is that of a page, and not of data."""
    return key.split(":", 3)[2:3] == ["p"]


def host_name() -> str:
    """Return the name of this machine."""
    # The module socket takes a millisecond of the import, and Windows has no uname().
    return os.uname().nodename[:64] if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")[:64]


def _first_line(error: BaseException) -> str:
    try:
        return (str(error).splitlines() or [""])[0]
    except Exception:  # an exception class of the app may fail to describe itself
        return ""


def _event(fields: Any) -> TimelineEvent | None:
    event = TimelineEvent(*fields)
    texts = (event.kind, event.by, event.detail, event.source, *event.data)
    good = all(type(text) is str and len(text) <= 3 * MAX_TEXT for text in texts) and event.kind in KINDS
    good = good and type(event.at) is type(event.seconds) is float and abs(event.at) < 2.0**40
    good = good and abs(event.seconds) < 2.0**40
    return event if good and type(event.times) is int and len(event.data) <= MAX_DATA else None
