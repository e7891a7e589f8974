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
    """What to render, described by bytes, so that a thread or another process can do it as well.

    ``page`` is the name in the store, ``text`` the key's text, ``rule`` the policy's name, or for data the
    function's (``data`` tells which); ``timeout``,
    ``wait`` and ``lease`` are its seconds. ``patience``: how long to wait for somebody else's render,
    0 in the background. ``anyway``: where there is nothing to serve, render even during a back-off.
    ``refreshes``: a tag that is marked as stale once the lock is held, so that no copy anywhere is taken for new (empty
    where that was done already); then it is rendered whatever there is, and whoever else is at it. ``outdated``: the
    page was invalidated, and a back-off from before that does not hold up a render. ``owner``: begins the token in the
    lock, where another process renders: whoever handed the task over knows its lock when it dies.
    """

    page: str
    text: str
    rule: str
    timeout: float
    wait: float
    lease: float
    patience: float = 0.0
    anyway: bool = True
    data: bool = False
    refreshes: str | None = None
    outdated: bool = False
    owner: bytes = b""

    @property
    def flight(self) -> str:
        """What it is called among the flights of a process. Nobody joins a refresh who does not want one: it is
        a render more."""
        return self.page if self.refreshes is None else f"{self.page}:refresh{':marks' * bool(self.refreshes)}"

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
