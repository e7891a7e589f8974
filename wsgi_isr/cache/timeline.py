"""Timelines: the last events of a page and the last invalidation of a tag, for :meth:`wsgi_isr.ISR.explain`.

The records decide nothing. They are on the data plane, so a store evicts them like pages, and they lapse by themselves.
A recorder collects events in memory. A background thread writes them at most once a second. Neither a request nor an
invalidation waits for the store. A lost record does no harm.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
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
#: The most characters of an exception's text that are searched for credentials.
MAX_ERROR = 4 * MAX_TEXT
#: Seconds for which a record lasts; for a page that may not exist. Clients can ask for any number of the latter.
LASTS, SHORT = 86400.0, 600.0
#: The most events between two writes; further ones push out the oldest.
MAX_NOTED = 4096
#: Seconds between two writes of a process, and the most records of a write.
PAUSE, MAX_WRITES = 1.0, 32

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


class _Noted(NamedTuple):
    """An event in memory. The rest is worked out when it is written.

    :param times: a list of one number, which later equal events increase.
    """

    event: Served | Rendered | Refused | RenderFailed | Invalidated
    at: float
    role: str
    times: list[int]


class Recorder:
    """A subscriber that records the events of one process.

    An event costs a microsecond. A thread writes at most :data:`MAX_WRITES` records a second, so the cost has a bound
    that does not depend on the number of renders.

    :param role: returns the role of the process; empty where each render has its own.
    :param clock: Unix time in seconds.
    :param is_alone: start no thread: :meth:`flush` writes.
    """

    def __init__(
        self, timelines: Timelines, clock: Callable[[], float], role: Callable[[], str] = str, is_alone: bool = False
    ) -> None:
        self._timelines = timelines
        self._clock = clock
        self._role = role
        self._is_alone = is_alone
        self._host = f"{host_name()}:{os.getpid()}"
        self._changed = threading.Condition()
        self._noted: deque[_Noted] = deque(maxlen=MAX_NOTED)
        #: The last stale answer of each page since the page's last other event.
        self._stale: dict[str, list[int]] = {}
        self._waiting: dict[str, list[TimelineEvent]] = {}
        self._is_writing = False
        self._is_closed = False

    def __call__(self, event: Event) -> None:
        """Note an event. The hits of a page are no events of its timeline."""
        if isinstance(event, Served):
            if event.label == "STALE":
                self._note_stale(event)
        elif isinstance(event, Invalidated):
            self._note(event, "")
        elif isinstance(event, (Rendered, Refused, RenderFailed)) and _is_page(event.key):
            role = self._role() or _role.get() or "background"
            self._stale.pop(event.key, None)
            if isinstance(event, RenderFailed):
                # The exception has the frames of the render, which must not be kept.
                self._note(event._replace(cause=None, reason=_error(event)), role)
            elif not (isinstance(event, Rendered) and event.refused):  # the event `Refused` is there already
                self._note(event, role)

    def _note_stale(self, event: Served) -> None:
        if (times := self._stale.get(event.key)) is not None:
            times[0] += 1
            return
        if len(self._stale) >= MAX_WAITING:
            self._stale.clear()
        noted = self._note(event, "")
        self._stale[event.key] = noted.times

    def _note(self, event: Any, role: str) -> _Noted:
        noted = _Noted(event, self._clock(), role, [1])
        self._noted.append(noted)
        if not (self._is_writing or self._is_alone or self._is_closed):
            self._begin()
        return noted

    def _begin(self) -> None:
        with self._changed:
            if self._is_writing or self._is_closed:
                return
            self._is_writing = True
        if not in_thread(self._write):
            self._is_writing = False

    # Events as records ----------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Move the noted events to the records that wait. Under the lock."""
        self._stale.clear()
        while self._noted:
            noted = self._noted.popleft()
            try:
                records = list(self._records_of(noted))
            except Exception:  # the app may have put anything into its event; the others are written
                continue
            for key, event in records:
                events = self._waiting.get(key)
                if events is None and len(self._waiting) >= MAX_WAITING:
                    continue
                self._waiting[key] = merged([*(events or ()), event])[-MAX_EVENTS:]

    def _records_of(self, noted: _Noted) -> Iterator[tuple[str, TimelineEvent]]:
        """Yield the records that an event belongs to, and the event."""
        event, at, role, times = noted
        by = f"{self._host}:{role}"
        if isinstance(event, Invalidated):
            by = f"{event.actor[:MAX_TEXT]} ({self._host})"
            for name in event.tags[:MAX_TAGS]:
                if name not in event.undelivered:
                    made = TimelineEvent("invalidated", at, by, 0.0, f"{event.mode} {name}"[:MAX_TEXT])
                    yield self._timelines.key_of_tag(stored_tag(name)), made
            return
        key = Keyspace.timeline(event.key)
        if isinstance(event, Served):
            yield key, TimelineEvent("stale", at, times=times[0])
        elif isinstance(event, Refused):
            yield key, TimelineEvent("refused", at, by, 0.0, event.reason[:MAX_TEXT])
        elif isinstance(event, RenderFailed):
            yield key, TimelineEvent("failed", at, by, float(event.retry_in), event.reason[:MAX_TEXT])
        else:
            data = tuple(key[:MAX_TEXT] for key in event.data[:MAX_DATA])
            detail = "" if event.stored else "not stored"
            yield key, TimelineEvent("rendered", at, by, float(event.seconds), detail, 1, event.source, data)

    def waiting(self, key: str) -> list[TimelineEvent]:
        """Return the events of a record that are not written yet."""
        with self._changed:
            self._collect()
            return list(self._waiting.get(key, ()))

    # Writing -------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Write once a second, while anything waits."""
        try:
            self._write_until_done()
        except BaseException:
            with self._changed:
                self._is_writing = False  # the next event begins a thread, and close() does not wait
                self._changed.notify_all()
            raise

    def _write_until_done(self) -> None:
        is_done = False
        while not is_done:
            with self._changed:
                is_done = self._changed.wait_for(lambda: self._is_closed, PAUSE)
            if not is_done:  # otherwise, close() writes
                self.flush(limit=MAX_WRITES)
            with self._changed:
                if is_done := is_done or not (self._waiting or self._noted):
                    self._is_writing = False
                    self._changed.notify_all()

    def flush(self, until: float = float("inf"), limit: int = MAX_WAITING) -> None:
        """Write collected events now. An error of the store loses them.

        :param until: the monotonic time in seconds at which to stop.
        :param limit: the most records.
        """
        with self._changed:
            self._collect()
            records = {key: self._waiting.pop(key) for key in list(self._waiting)[:limit]}
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


def _error(event: RenderFailed) -> str:
    cause = event.cause
    return (
        event.reason
        if cause is None
        else f"{event.reason}: {type(cause).__name__}: {_without_credentials(_first_line(cause))}"
    )


def _without_credentials(text: str) -> str:
    return re.sub(r"://\S*@", "://***@", text[:MAX_ERROR])


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
