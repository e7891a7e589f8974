"""The types of the cache: a task, an attempt at it, the outcome of its flight, and the answer for a client."""

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


class Limits(NamedTuple):
    """The limits of a task.

    :param timeout: seconds for the render.
    :param wait: seconds for which a client waits for a render.
    :param lease: seconds for which the lease lasts without a renewal.
    :param ignore_backoff: a client for which there is no entry may cause a render during a back-off.
    """

    timeout: float
    wait: float
    lease: float
    ignore_backoff: bool = True


class Task(NamedTuple):
    """The identity and the limits of a page or of data to render. All renders of a page have the same task.

    :param page: the name in the store.
    :param text: the text of the key.
    :param rule: the name of the policy, or of the function where the task is for data.
    :param data: the task is for a cached function, and not for a page.
    """

    page: str
    text: str
    rule: str
    limits: Limits
    data: bool = False


class Attempt(NamedTuple):
    """The conditions of one render of a task.

    :param max_lease_wait: seconds to wait for another process's render; 0 in the background.
    :param ignore_backoff: render even during a back-off, as there is no entry to serve.
    :param refresh_tag: render whatever is stored, even beside another process. The tag is marked as stale once the
        lease is held, so that no copy passes for new. Empty where it was marked already; ``None`` for no refresh.
    :param invalidated_since_failure: the page was invalidated. A back-off from before that prevents no render.
    :param owner: the start of the lease's token, where another process renders. If that process dies, the process that
        handed over the task finds the lock by it.
    :param trigger: why the page is rendered, for events (:class:`~wsgi_isr.events.RenderStarted`); likewise ``trace``.
    """

    max_lease_wait: float = 0.0
    ignore_backoff: bool = True
    refresh_tag: str | None = None
    invalidated_since_failure: bool = False
    owner: bytes = b""
    trigger: str = "miss"
    trace: str = ""

    @property
    def role(self) -> str:
        """Return the role of the render, for the page's timeline."""
        if self.refresh_tag is not None:
            return "refresh"
        return "background" if self.owner else "visitor"

    def flight_key(self, task: Task) -> str:
        """Return the key of the flight of this attempt at ``task``.

        A look-up never joins a refresh: the flight of a refresh has a key of its own, and costs a render of its own.
        """
        if self.refresh_tag is None:
            return task.page
        return f"{task.page}:refresh{':marks' * bool(self.refresh_tag)}"


def pack(task: Task, attempt: Attempt) -> bytes:
    """Return a task and an attempt as bytes, for another process."""
    packed: bytes = msgpack.packb((task, attempt))
    return packed


def unpack(job: bytes) -> tuple[Task, Attempt]:
    """Return the task and the attempt in bytes from :func:`pack`."""
    (page, text, rule, limits, data), attempt = msgpack.unpackb(job)
    return Task(page, text, rule, Limits(*limits), data), Attempt(*attempt)


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
    :param directives: the cache directives of the render.
    :param snapshot: the tag snapshot from before the render.
    """

    reason: str
    error: BaseException | None = None
    content: Content | Value | None = None
    directives: CacheDirectives | None = None
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
    :param detail: why the page is served although it is due, a token; empty for the usual reasons.
    :param cause: why the page was not fresh (:attr:`.entries.Judged.cause`).
    """

    cached: CachedEntry
    label: str
    stored: bool = False
    collapsed: bool = False
    hit: bool = True
    personal: Personal | None = None
    detail: str = ""
    cause: str = ""


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
