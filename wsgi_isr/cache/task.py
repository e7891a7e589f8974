"""The types of the cache: a task to render, the outcome of its flight, and the answer for a client."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgpack

from .entry import Content, HitForMiss, TagSnapshot, Value
from .lease import BackingOff, Busy
from .local_cache import CachedEntry
from .verdict import CacheDirectives, Failure, Personal, Storable


class Unknown(LookupError):
    """This process cannot render the task. Only the process that asks has defined its function, say."""


class Task(NamedTuple):
    """A render to do. A task packs into bytes, so that a thread or another process can render it.

    :param page: the name in the store.
    :param text: the text of the key.
    :param rule: the name of the policy, or of the function where the task is for data.
    :param timeout: seconds for the render.
    :param wait: seconds for which a client waits for a render.
    :param lease: seconds for which the lease lasts without a renewal.
    :param max_lease_wait: seconds to wait for another process's render; 0 in the background.
    :param ignore_backoff: render even during a back-off, as there is no entry to serve.
    :param data: the task is for a cached function, and not for a page.
    :param refresh_tag: render whatever is stored, even beside another process. The tag is marked as stale once the
        lease is held, so that no copy passes for new. Empty where it was marked already; ``None`` for no refresh.
    :param invalidated_since_failure: the page was invalidated. A back-off from before that prevents no render.
    :param owner: the start of the lease's token, where another process renders. If that process dies, the process that
        handed over the task finds the lock by it.
    """

    page: str
    text: str
    rule: str
    timeout: float
    wait: float
    lease: float
    max_lease_wait: float = 0.0
    ignore_backoff: bool = True
    data: bool = False
    refresh_tag: str | None = None
    invalidated_since_failure: bool = False
    owner: bytes = b""

    @property
    def flight(self) -> str:
        """Return the key of the task's flight in a process.

        A look-up never joins a refresh: the flight of a refresh has a key of its own, and costs a render of its own.
        """
        return self.page if self.refresh_tag is None else f"{self.page}:refresh{':marks' * bool(self.refresh_tag)}"

    def pack(self) -> bytes:
        """Return the task as bytes."""
        packed: bytes = msgpack.packb(self)
        return packed

    @classmethod
    def unpack(cls, job: bytes) -> Task:
        """Return the task in bytes from :meth:`pack`."""
        return cls(*msgpack.unpackb(job))


Product = Storable | HitForMiss | Personal | Failure
Produce = Callable[[Task], Product]


# The outcomes of a flight ----------------------------------------------------------------------------


class Regenerated(NamedTuple):
    """This process rendered the page.

    :param cached: the entry to serve; not the rendered one, if a later render was stored first.
    :param stored: whether the rendered entry was stored.
    :param personal: the app's response, where it fits one client alone.
    """

    cached: CachedEntry
    stored: bool
    personal: Personal | None = None


class AlreadyFresh(NamedTuple):
    """Another process had rendered the page already.

    :param proven: the page was found current after the flight had begun.
    """

    cached: CachedEntry
    proven: bool = True


class Failed(NamedTuple):
    """The render raised ``error``, responded with a failure, or ran past its timeout.

    :param reason: a token.
    :param content: the app's error response, or a page that came too late to be stored.
    :param said: the cache directives of the render.
    :param snapshot: the tag snapshot from before the render.
    """

    reason: str
    error: BaseException | None = None
    content: Content | Value | None = None
    said: CacheDirectives | None = None
    snapshot: TagSnapshot = TagSnapshot()


Outcome = Regenerated | AlreadyFresh | Failed | Busy | BackingOff


# The answers for a client ----------------------------------------------------------------------------


class Served(NamedTuple):
    """A page.

    :param label: the value of ``X-ISR``.
    :param stored: the page was rendered for this request, and stored.
    :param collapsed: the page was rendered for another request, and this request waited for it (RFC 9211, 2.7).
    :param hit: the page was not rendered now.
    :param personal: the app's response to this request alone, where the page may not be stored.
    """

    cached: CachedEntry
    label: str
    stored: bool = False
    collapsed: bool = False
    hit: bool = True
    personal: Personal | None = None


class Passed(NamedTuple):
    """The app answers the request itself.

    :param reason: a token.
    :param missed: there was no page to serve; the request was not passed by a rule.
    :param written: the tag that the request invalidates if it succeeds.
    :param draft: the client sees drafts.
    :param personal: the response, where the app has given it already.
    """

    reason: str
    missed: bool = False
    written: str | None = None
    draft: bool = False
    personal: Personal | None = None


class Pending(NamedTuple):
    """There is no page yet: it is rendered in the background, and the client does not wait."""


Answer = Served | Passed | Failed | Pending
