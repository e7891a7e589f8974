"""What is to be rendered, how that ends, and what a visitor gets: the words of the filling core."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgpack

from .entry import Content, HitForMiss, TagSnapshot, Value
from .lease import BackingOff, Busy
from .local_cache import CachedEntry
from .verdict import CacheDirectives, Failure, Personal, Storable


class Unknown(LookupError):
    """This process cannot make it: a function, say, that only the process that asks has defined."""


class Task(NamedTuple):
    """A render to be done, described by bytes, so that a thread or another process can do it as well.

    :param page: the name in the store.
    :param text: the text of the key.
    :param rule: the name of the policy, or of the function where the task is one for ``data``.
    :param timeout: seconds for the render.
    :param wait: seconds for which a visitor waits for a render.
    :param lease: seconds for which the lock is kept after its owner's last sign of life.
    :param max_lease_wait: seconds to wait for another process's render; 0 in the background.
    :param ignore_backoff: where there is nothing to serve, render even during a back-off.
    :param refresh_tag: render whatever is stored, and whoever else renders. The tag is marked as stale once the lock is
        held, so that no copy anywhere is taken for new. Empty where that was done already; ``None`` for no refresh.
    :param invalidated_since_failure: the page was invalidated, and a back-off from before that holds up no render.
    :param owner: begins the token in the lock, where another process renders. The process that hands the task over
        finds the lock by it when the other one dies.
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
        """What it is called among the flights of a process. Nobody joins a refresh who does not want one: it is
        a render more."""
        return self.page if self.refresh_tag is None else f"{self.page}:refresh{':marks' * bool(self.refresh_tag)}"

    def pack(self) -> bytes:
        """The task as bytes."""
        packed: bytes = msgpack.packb(self)
        return packed

    @classmethod
    def unpack(cls, job: bytes) -> Task:
        """The reverse of :meth:`pack`."""
        return cls(*msgpack.unpackb(job))


Product = Storable | HitForMiss | Personal | Failure
Produce = Callable[[Task], Product]


# How a flight ends -----------------------------------------------------------------------------------


class Regenerated(NamedTuple):
    """We rendered; ``entry`` is what is to be served now (not ours, if a later render got in first). ``personal`` is
    what the app answered, where that is for one visitor."""

    slot: CachedEntry
    stored: bool
    personal: Personal | None = None


class AlreadyFresh(NamedTuple):
    """Another process had rendered in the meantime. ``proven``: the page was current after the flight had begun."""

    slot: CachedEntry
    proven: bool = True


class Failed(NamedTuple):
    """The render raised ``error``, or its answer is a failure, or it ran past its timeout.

    ``content`` is what there is all the same, ``said`` what was said meanwhile, and ``proof`` the one of its tags from
    before it was made.
    """

    reason: str
    error: BaseException | None = None
    content: Content | Value | None = None
    said: CacheDirectives | None = None
    proof: TagSnapshot = TagSnapshot()


Outcome = Regenerated | AlreadyFresh | Failed | Busy | BackingOff


# What a visitor gets ---------------------------------------------------------------------------------


class Served(NamedTuple):
    """A page. ``label`` is the word of ``X-ISR``; ``stored``: rendered and stored for this very request;
    ``collapsed``: for another one, whose render this one waited for (RFC 9211, 2.7); ``hit``: not rendered now;
    ``personal``: the app's answer to this request alone, where it refuses to have one for others."""

    slot: CachedEntry
    label: str
    stored: bool = False
    collapsed: bool = False
    hit: bool = True
    personal: Personal | None = None


class Passed(NamedTuple):
    """The app's own answer to the visitor's own request. ``missed``: for want of a page, not by rule.
    ``written`` is the tag that the request invalidates if it succeeds; ``draft``: it is of a client who sees drafts.
    ``personal`` is the answer, where the app has given it already."""

    reason: str
    missed: bool = False
    written: str | None = None
    draft: bool = False
    personal: Personal | None = None


class Pending(NamedTuple):
    """Nothing yet: it is being made in the background, and the visitor is somebody who does not wait."""


Answer = Served | Passed | Failed | Pending
