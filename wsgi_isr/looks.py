"""What an app looks at in its request without saying so by ``Vary``.

People who build a site are told (``debug``), because everybody gets a page that was made for somebody who had sent
nothing of the kind.

A dict compares the name that is looked up with every key of the same hash. So a key that has the hash of a name and
equals none is asked whenever somebody looks for that name, and the environ remains the builtin dict that PEP 3333
demands. That holds for CPython's dicts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from types import FrameType
from typing import Any

#: Who looks at these has hardly another reason than to answer differently. What is logged about visitors
#: (``User-Agent``) is not among them.
WATCHED = {
    "HTTP_COOKIE": "cookie",
    "HTTP_ACCEPT_LANGUAGE": "accept-language",
    "HTTP_ACCEPT": "accept",
    "HTTP_HX_REQUEST": "hx-request",
    "HTTP_X_REQUESTED_WITH": "x-requested-with",
}

#: These look at the cookies of every request, in case that somebody will want the session or the token, and say
#: ``Vary: Cookie`` if somebody did.
_SAY_SO = frozenset(
    {"flask.sessions", "flask_session.base", "django.contrib.sessions.middleware", "django.middleware.csrf"}
)


class _Watch(str):
    """A key that cannot be found, and tells who looks for ``name``. In its own text there is a dot, as in every key
    that is the server's own (PEP 3333, "environ Variables")."""

    __slots__ = ("hash", "name", "tell")
    hash: int
    name: str
    tell: Callable[[FrameType], None]

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Watch):
            return str.__eq__(self, other)  # so that one environ still equals another
        if other == self.name:
            self.tell(sys._getframe(1))
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __deepcopy__(self, memo: Any) -> _Watch:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # in another process there is nobody to tell

    def startswith(self, *what: Any) -> bool:
        # werkzeug, and Flask with it, goes through all headers to find the cookies.
        if self.name == "HTTP_COOKIE" and any(
            frame.f_code.co_name == "cookies" and _module(frame) == "werkzeug.sansio.request"
            for frame in islice(_frames(sys._getframe(1)), 5)
        ):
            self.tell(sys._getframe(1))
        return super().startswith(*what)


def watched(environ: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The same environ, and the lower-case names of the request headers that are looked for in it from now on."""
    looks: set[str] = set()
    under_watch: dict[str, Any] = {}
    # Before the others: a key that is there ends the search for it.
    for name, header in WATCHED.items():
        under_watch[_watch(name, header, looks)] = ""
    under_watch.update(environ)
    looks.clear()
    return under_watch, looks


def _watch(name: str, header: str, looks: set[str]) -> _Watch:
    def tell(frame: FrameType) -> None:
        if header not in looks and not (header == "cookie" and _says_so(frame)):
            looks.add(header)

    watch = _Watch(f"wsgi_isr.looks.{header}")
    watch.hash, watch.name, watch.tell = hash(name), name, tell
    return watch


def _says_so(frame: FrameType) -> bool:
    return any(_module(frame) in _SAY_SO for frame in _frames(frame))


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """From the one that looks up to where the app was called."""
    while frame is not None and _module(frame) != f"{__package__}.capture":
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> Any:
    return frame.f_globals.get("__name__")
