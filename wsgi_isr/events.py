"""What happened, as frozen values. Logs and metrics are subscribers.

The core emits and never looks back: a subscriber that raises is reported once, and the request goes on.
Like most values of this package they are named tuples: generating a frozen dataclass costs seven times as
much at import.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

_log = logging.getLogger("wsgi_isr")


class Served(NamedTuple):
    """An answer left. ``label`` is the word of the ``X-ISR`` header; ``age`` is in seconds.

    Not emitted for each of the plain hits that are answered from what was prepared a moment before: there
    is about one for each page and second, or ``coherence``; with ``debug`` there is one for each request.
    ``text`` is the text of the page's key, or the URL of a request that is not for a page; ``lock`` is ``held`` where
    this request rendered the page, ``waited`` where it waited for another's render; ``seconds`` is how long the cache
    took, renders included.
    """

    key: str
    label: str
    age: float = 0.0
    reason: str = ""
    text: str = ""
    lock: str = "none"
    seconds: float = 0.0


class DataServed(NamedTuple):
    """Cached data was asked for, of the function ``name``, under ``key`` (text that holds the arguments).

    ``label`` is that of a page (``HIT``, ``STALE``, ``MISS`` ...), or ``SKIP`` where it was not looked for, or
    could not be kept, for ``reason``. ``shown`` is what it is for people, where the name alone does not tell: of a
    fetch, its method and URL.
    """

    name: str
    label: str
    key: str = ""
    age: float = 0.0
    reason: str = ""
    seconds: float = 0.0
    shown: str = ""


class Rendered(NamedTuple):
    """The app made a page. ``seconds`` is how long it took; ``stored`` whether the store took it; ``text`` is the text
    of the page's key; ``storing`` is how many of the seconds have passed since the page was made, from when its age
    counts; ``revalidate`` is the age at which it is due again, in seconds, ``None`` for never; ``refused``: the answer
    is not for everybody, and what was stored is that alone."""

    key: str
    seconds: float
    stored: bool
    text: str = ""
    storing: float = 0.0
    revalidate: float | None = None
    refused: bool = False


class Refused(NamedTuple):
    """An answer may not be stored; ``rule`` is its pattern, ``reason`` the word in ``Cache-Status``."""

    key: str
    rule: str
    reason: str
    text: str = ""


class UndeclaredVary(NamedTuple):
    """While it rendered, an app has looked for request ``headers`` (names in lower case) that neither its ``Vary`` nor
    the rule names: everybody gets the page of a visitor who sends none of them."""

    key: str
    rule: str
    headers: tuple[str, ...]
    text: str = ""


class RenderFailed(NamedTuple):
    """A render raised, answered 5xx or 429, or ran past its timeout. Next try in ``retry_in`` seconds."""

    key: str
    rule: str
    reason: str
    retry_in: float
    cause: BaseException | None = None
    text: str = ""


class LeaseLost(NamedTuple):
    """A lock was not ours any more when we came to renew or release it."""

    key: str


class StoreFailed(NamedTuple):
    """A verb of the store did not work; the visitor was served without it."""

    verb: str
    key: str
    cause: Exception


class Unreadable(NamedTuple):
    """A stored value was damaged, forged, of another schema, or another key's; it counts as missing."""

    key: str
    reason: str


class BackgroundFull(NamedTuple):
    """A background render found no room; the stale page stays until a later request tries again."""

    key: str


class Invalidated(NamedTuple):
    """Tags were invalidated from this process; ``undelivered`` are those whose node could not be reached, and
    ``journal`` is the file that keeps them (``None``: they are lost).

    ``warnings`` say why it may have reached nothing; ``hints`` the same, where that is usual.
    """

    tags: tuple[str, ...]
    mode: str
    undelivered: tuple[str, ...] = ()
    journal: str | None = None
    warnings: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    #: Whether an app of this process delivers what the journal keeps.
    is_attended: bool = True


class Delivered(NamedTuple):
    """Tags that a ``journal`` had kept were invalidated; ``waiting`` are those whose node still cannot be reached."""

    tags: tuple[str, ...]
    waiting: tuple[str, ...]
    journal: str


class InternalError(NamedTuple):
    """``where`` is the part of the cache, or the callable of a rule, that raised ``cause``.

    ``outcome`` says what follows from that, for people; empty where nothing is known of it.
    """

    where: str
    cause: Exception
    outcome: str = ""


Event = (
    Served
    | DataServed
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
)
Subscriber = Callable[[Event], None]


class Events:
    """A list of subscribers."""

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = subscribers
        self._broken: list[Subscriber] = []

    def __bool__(self) -> bool:
        return bool(self._subscribers)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call ``subscriber`` with every event from now on, in the thread in which it happened."""
        self._subscribers = (*self._subscribers, subscriber)

    def emit(self, event: Event) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                if not any(subscriber is known for known in self._broken):
                    self._broken.append(subscriber)
                    _log.exception("the event subscriber %r is broken; it is reported once", subscriber)
