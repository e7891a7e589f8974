"""The page that is being rendered: what its code may say about it.

Each function here speaks of the page whose render it is called in, found through a context variable;
anywhere else it does nothing. A thread that the app starts itself has a context of its own: hand it
``contextvars.copy_context().run``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from ..config import options as o
from ..errors import ConfigError
from .verdict import CacheDirectives


class RenderContext(NamedTuple):
    """What is being made: a page, or data for one. ``stored``: it will be, so nothing stale may go in. ``draft``: its
    visitor sees what is not published yet, so that nothing cached goes in and nothing of it is kept."""

    asked: CacheDirectives
    profiles: Mapping[str, tuple[float, float]]
    stored: bool = True
    draft: bool = False


_current: ContextVar[RenderContext | None] = ContextVar("wsgi_isr_page", default=None)


def current() -> RenderContext | None:
    """What is being made here, if anything is."""
    return _current.get()


@contextmanager
def rendering(profiles: Mapping[str, tuple[float, float]], stored: bool = True) -> Iterator[CacheDirectives]:
    """In here something is made; what is said of it ends up in the value."""
    outer = _current.get()
    frame = RenderContext(CacheDirectives(), profiles, stored, outer is not None and outer.draft)
    with within(frame):
        yield frame.asked


@contextmanager
def within(frame: RenderContext | None) -> Iterator[None]:
    """In here ``frame`` is what is being made: for what is made in several goes, like the body of a generator."""
    token = _current.set(frame)
    try:
        yield
    finally:
        _current.reset(token)


def cache_tag(*tags: str) -> None:
    """Give the page these tags, by which it can be invalidated. Any non-empty text is a tag.

    :raises TypeError: a tag is no text.
    :raises ValueError: it is empty.
    """
    for tag in tags:
        if not isinstance(tag, str):
            raise TypeError(f"a tag is text, not {type(tag).__name__}; several are given as cache_tag(*tags)")
        if not tag:
            raise ValueError("a tag is empty")
    if (page := _current.get()) is not None:
        page.asked.tags.extend(tags)


def cache_life(revalidate: float | str | bool, expire: float | None = None) -> None:
    """Let the page live for ``revalidate`` seconds, or by a profile (``"hours"``), or until invalidated
    (``False``). The lowest of all that is said wins, the rule included; 0 is :func:`no_store`.

    :param expire: the age in seconds past which it is not served while a new one is made.
    :raises ConfigError: a value is impossible, or there is no such profile.
    """
    o.LIFETIME.check("cache_life", revalidate)
    if (page := _current.get()) is None:
        return
    if isinstance(revalidate, str):
        if revalidate not in page.profiles:
            raise o.unknown(f"cache_life({revalidate!r})", page.profiles, "there is no such profile")
        revalidate, profile_expire = page.profiles[revalidate]
        expire = profile_expire if expire is None else expire
    if expire is not None and (revalidate is False or o.PERIOD.check("cache_life: expire", expire) < revalidate):
        raise ConfigError("cache_life: expire", f"{expire:g} is below revalidate", "make it larger, or leave it out")
    if revalidate == 0 and revalidate is not False:
        no_store()
    page.asked.ask(None if revalidate is False else revalidate, expire)


def fail(reason: str) -> None:
    """What is being made here is made of an accident: it is not kept, for ``reason`` (a token), and the last good
    version stays. Not for apps, which raise, or answer with a 5xx."""
    if (page := _current.get()) is not None:
        page.asked.failed = page.asked.failed or reason


def no_store() -> None:
    """Do not store this page: each visitor gets the app's answer to their own request."""
    if (page := _current.get()) is not None:
        page.asked.no_store = True
