"""The cache directives that an app's code may give while a page is rendered.

Each function applies to the page whose render calls it, and does nothing elsewhere. A context variable holds the page.
A thread that the app starts has a context of its own: run its target by ``contextvars.copy_context().run``.
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
    """A render in progress: of a page, or of data for a page.

    :param directives: the cache directives so far.
    :param profiles: the lifetimes by name, each as ``revalidate`` and ``expire`` in seconds.
    :param stored: the result may be stored, so no stale data may go in.
    :param draft: the client sees unpublished content. No cached data goes in, and no result is stored.
    """

    directives: CacheDirectives
    profiles: Mapping[str, tuple[float, float]]
    stored: bool = True
    draft: bool = False


_current: ContextVar[RenderContext | None] = ContextVar("wsgi_isr_page", default=None)


def current() -> RenderContext | None:
    """Return the render in progress; ``None`` without one."""
    return _current.get()


@contextmanager
def rendering(profiles: Mapping[str, tuple[float, float]], stored: bool = True) -> Iterator[CacheDirectives]:
    """Yield the cache directives of a render that begins here and ends with the block."""
    outer = _current.get()
    frame = RenderContext(CacheDirectives(), profiles, stored, outer is not None and outer.draft)
    with within(frame):
        yield frame.directives


@contextmanager
def within(frame: RenderContext | None) -> Iterator[None]:
    """Make ``frame`` the render in progress within the block, for renders in several steps, such as a generator."""
    token = _current.set(frame)
    try:
        yield
    finally:
        _current.reset(token)


def cache_tag(*tags: str) -> None:
    """Add tags to the page, by which it can be invalidated. Any non-empty text is a tag.

    :raises TypeError: a tag is no text.
    :raises ValueError: a tag is empty.
    """
    for tag in tags:
        if not isinstance(tag, str):
            raise TypeError(f"a tag is text, not {type(tag).__name__}; several are given as cache_tag(*tags)")
        if not tag:
            raise ValueError("a tag is empty")
    if (page := _current.get()) is not None:
        page.directives.tags.extend(tags)


def cache_life(revalidate: float | str | bool, expire: float | None = None) -> None:
    """Set the lifetime of the page. The lowest of all given lifetimes wins, the rule's included.

    :param revalidate: the age in seconds from which on the page is stale. A text names a profile (``"hours"``);
        ``False`` means until invalidated; 0 is :func:`no_store`.
    :param expire: the age in seconds from which on the page is not served while it is regenerated.
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
    page.directives.ask(None if revalidate is False else revalidate, expire)


def fail(reason: str) -> None:
    """Mark the render in progress as failed: its result is not stored, and the last good entry stays.

    Apps do not call this function: they raise, or respond with a 5xx.

    :param reason: a token.
    """
    if (page := _current.get()) is not None:
        page.directives.failed = page.directives.failed or reason


def no_store() -> None:
    """Prevent that the page is stored: the app answers each request itself."""
    if (page := _current.get()) is not None:
        page.directives.no_store = True
