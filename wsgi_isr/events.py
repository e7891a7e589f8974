"""Events are immutable values about past actions of the cache. Logs and metrics subscribe to events.

The core ignores the results of subscribers. If a subscriber raises, the log says so once, and the request continues.
Events are named tuples, like most values of this package: a frozen dataclass costs seven times as much at import.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

_log = logging.getLogger("wsgi_isr")


class Served(NamedTuple):
    """The cache answered a request.

    A hit from a prepared response emits no event, and is counted all the same (:mod:`wsgi_isr.observe.counts`). Each
    page has about one other hit in a second, or in ``coherence``; under ``wsgi_isr.gunicorn.Worker``, one in a minute.
    With ``debug``, each request emits an event.

    :param label: the value of the ``X-ISR`` header.
    :param age: seconds.
    :param text: the text of the page's key, or the URL of a request for no page.
    :param lock: ``held`` if this request rendered the page, ``waited`` if it waited for another render, else ``none``.
    :param seconds: the time in the cache, renders included.
    :param rule: the pattern of the rule; empty for a request that no rule was found for.
    :param cause: why the page was not fresh: ``time``, ``tag:`` and the stored name of the tag that was invalidated, or
        ``release`` for a page of the previous release; empty for any other page.
    :param overdue: the seconds by which the page was older than its ``revalidate``, if an old page was sent.
    """

    key: str
    label: str
    age: float = 0.0
    reason: str = ""
    text: str = ""
    lock: str = "none"
    seconds: float = 0.0
    rule: str = ""
    cause: str = ""
    overdue: float = 0.0


class DataServed(NamedTuple):
    """A cached function was called.

    :param name: the function's name.
    :param label: as for a page (``HIT``, ``STALE``, ``MISS`` ...); ``SKIP`` if the cache was not used, or could not
        keep the result.
    :param key: a text with the arguments.
    :param age: seconds.
    :param reason: the reason of a ``SKIP``.
    :param seconds: the time in the cache, the call included.
    :param shown: the method and URL of a fetch, in place of the name.
    """

    name: str
    label: str
    key: str = ""
    age: float = 0.0
    reason: str = ""
    seconds: float = 0.0
    shown: str = ""


class RenderStarted(NamedTuple):
    """A render has begun, in this thread.

    :param rule: the pattern of the rule, or the name of the function.
    :param trigger: ``miss``, ``time``, ``tag``, ``release``, ``refresh`` or ``prerender``.
    :param is_data: a cached function is called, and no page rendered.
    :param is_background: the request that caused it may have been answered already.
    :param trace: the span of that request, from :meth:`Events.trace`.
    """

    key: str
    rule: str
    trigger: str
    text: str = ""
    is_data: bool = False
    is_background: bool = False
    trace: str = ""


class RenderEnded(NamedTuple):
    """A render that had begun has ended, in the same thread, whatever its outcome."""

    key: str


class Rendered(NamedTuple):
    """The app rendered a page.

    :param seconds: the duration of the render.
    :param stored: whether the page was stored.
    :param text: the text of the page's key.
    :param storing: the part of ``seconds`` after the page was complete. The age of the page counts from its beginning.
    :param revalidate: the age at which the page becomes stale, in seconds; ``None`` for never.
    :param refused: whether the answer may not be shared, so a hit-for-miss was stored.
    :param source: the origin of the lifetime: ``rule``, ``header``, ``code``, ``data`` or ``negative_ttl``.
    :param data: the keys of the cached data that the render used.
    :param rule: as in :class:`RenderStarted`, like ``trigger`` and ``is_data``.
    :param cpu_seconds: the CPU time of the thread that rendered; that of cached functions is not measured.
    :param is_changed: whether the page has another ETag than the page before; ``None`` without a page before.
    """

    key: str
    seconds: float
    stored: bool
    text: str = ""
    storing: float = 0.0
    revalidate: float | None = None
    refused: bool = False
    source: str = ""
    data: tuple[str, ...] = ()
    rule: str = ""
    trigger: str = ""
    cpu_seconds: float = 0.0
    is_changed: bool | None = None
    is_data: bool = False


class Refused(NamedTuple):
    """An answer may not be stored.

    :param rule: the pattern of the rule.
    :param reason: the reason, as in ``Cache-Status``.
    """

    key: str
    rule: str
    reason: str
    text: str = ""


class UndeclaredVary(NamedTuple):
    """The app read request headers that neither its ``Vary`` nor the rule names.

    Every client gets the page for a client that sends none of these headers.

    :param headers: the names of the headers, in lower case.
    """

    key: str
    rule: str
    headers: tuple[str, ...]
    text: str = ""


class RenderFailed(NamedTuple):
    """A render raised, answered 5xx or 429, or ran past its timeout.

    :param retry_in: seconds until the next attempt.
    :param trigger: as in :class:`RenderStarted`, like ``is_data``.
    :param seconds: the duration of the render; 0 where another process rendered.
    :param cpu_seconds: the CPU time of the thread that rendered; 0 where another thread reports the failure.
    """

    key: str
    rule: str
    reason: str
    retry_in: float
    cause: BaseException | None = None
    text: str = ""
    trigger: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    is_data: bool = False


class LeaseLost(NamedTuple):
    """A lease had another owner when this process tried to renew or release the lease."""

    key: str


class StoreFailed(NamedTuple):
    """A verb of the store failed. The request was served without the store."""

    verb: str
    key: str
    cause: Exception


class Unreadable(NamedTuple):
    """A stored value was damaged, forged, or of another schema or key. Such a value counts as missing."""

    key: str
    reason: str


class BackgroundFull(NamedTuple):
    """The background queue was full. The stale page stays until a later request tries again."""

    key: str


class Invalidated(NamedTuple):
    """Tags were invalidated from this process.

    :param undelivered: the tags whose node could not be reached.
    :param journal: the file that keeps ``undelivered``; ``None`` if these tags are lost.
    :param warnings: reasons why the invalidation may have reached no page.
    :param hints: reasons that are usual.
    :param is_attended: whether an app of this process delivers the tags in the journal.
    :param actor: the person, the request or the program that asked for it.
    """

    tags: tuple[str, ...]
    mode: str
    undelivered: tuple[str, ...] = ()
    journal: str | None = None
    warnings: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    is_attended: bool = True
    actor: str = "app"


class Delivered(NamedTuple):
    """Tags from a journal were invalidated.

    :param waiting: the tags whose node still cannot be reached.
    :param journal: the path of the journal.
    """

    tags: tuple[str, ...]
    waiting: tuple[str, ...]
    journal: str


class InternalError(NamedTuple):
    """A part of the cache, or a callable of a rule, raised an error.

    :param where: the part or the callable.
    :param outcome: the consequence, for messages; empty if it is unknown.
    """

    where: str
    cause: Exception
    outcome: str = ""


class Switched(NamedTuple):
    """The switch (``wsgi-isr off``, ``on``) has come into effect in this process, or has ended.

    :param mode: ``pass``, ``serve-stale``, or ``on`` at the end.
    :param rules: the patterns of the rules concerned; ``None`` for the whole cache.
    :param until: the end in seconds of Unix time; ``None`` for no end.
    :param actor: the user and the machine of the command.
    """

    mode: str
    rules: tuple[str, ...] | None = None
    until: float | None = None
    actor: str = ""


Event = (
    Served
    | DataServed
    | RenderStarted
    | RenderEnded
    | Rendered
    | Refused
    | UndeclaredVary
    | RenderFailed
    | LeaseLost
    | StoreFailed
    | Unreadable
    | BackgroundFull
    | Invalidated
    | Delivered
    | InternalError
    | Switched
)
Subscriber = Callable[[Event], None]


class Events:
    """A list of subscribers."""

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = subscribers
        self._broken: list[Subscriber] = []
        #: A subscriber wants an event for each request, so that no response is prepared.
        self.each_request = False
        #: Returns the span of the current request as text, for a render that it causes.
        self.trace: Callable[[], str] = lambda: ""

    def __bool__(self) -> bool:
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call ``subscriber`` with every later event, in the thread that emits it.

        A subscriber may have an attribute ``each_request``, which is true if it needs an event for each request, and a
        method ``trace_of_request``.
        """
        self.each_request = self.each_request or getattr(subscriber, "each_request", False)
        self.trace = getattr(subscriber, "trace_of_request", self.trace)
        self._subscribers = (*self._subscribers, subscriber)

    def emit(self, event: Event) -> None:
        """Call all subscribers with an event."""
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                if not any(subscriber is known for known in self._broken):
                    self._broken.append(subscriber)
                    _log.exception("the event subscriber %r raised; this is logged once", subscriber)
