"""What an app looks at in its request without saying so by ``Vary``.

People who build a site are told (``debug``), because everybody gets a page that was made for somebody who had sent
nothing of the kind. An answer that sets a cookie is for the first visitor where the app has looked at nothing that this
visitor has sent.

A dict compares the name that is looked up with every key of the same hash. So a key that has the hash of a name and
equals none is asked whenever somebody looks for that name, and the environ remains the builtin dict that PEP 3333
demands. That holds for CPython's dicts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
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

#: These modules look at a variable of every request, whether the app needs it or not: at cookies in case that the
#: session or the token will be wanted, for which they say ``Vary: Cookie``; at the rest for the attributes of a request
#: object, and for settings that are mostly empty.
_AT_ALL = {
    "HTTP_COOKIE": frozenset(
        {"flask.sessions", "flask_session.base", "django.contrib.sessions.middleware", "django.middleware.csrf"}
    ),
    "HTTP_USER_AGENT": frozenset({"django.middleware.common"}),
    "REMOTE_ADDR": frozenset({"werkzeug.wrappers.request"}),
}

#: What says of a client who it is, besides the headers that it has sent.
CLIENT = ("REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT")
#: What is the same in a render, and what answers do not depend on, or a cache sees to itself.
_OF_EVERY_REQUEST = frozenset(
    {
        *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI"),
        *("HTTP_ACCEPT_ENCODING", "HTTP_CACHE_CONTROL", "HTTP_CONNECTION", "HTTP_HOST", "HTTP_PRAGMA"),
        *("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH"),
    }
)
_OF_THE_SERVER = ("wsgi.", "SERVER_", "gunicorn.", "uwsgi.", "mod_wsgi.")
#: In place of a variable: the app has gone through all headers.
ALL = "*"


class _Watch(str):
    """A key that cannot be found, and tells who looks for ``name``. In its own text there is a dot, as in every key
    that is the server's own (PEP 3333, "environ Variables")."""

    __slots__ = ("hash", "name", "tell", "tell_all")
    hash: int
    name: str
    tell: Callable[[FrameType], None]
    tell_all: Callable[[], None]

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
        for_cookies = any(
            frame.f_code.co_name == "cookies" and _module(frame) == "werkzeug.sansio.request"
            for frame in islice(_frames(sys._getframe(1)), 5)
        )
        if not for_cookies:
            self.tell_all()
        elif self.name == "HTTP_COOKIE":
            self.tell(sys._getframe(1))
        return super().startswith(*what)


def sent_by(client: Mapping[str, Any]) -> set[str]:
    """Return the variables of a client's environ by which an answer could be for this client alone: its headers, its
    address, and what middlewares outside have found out about it."""
    own = {name for name in client if name not in _OF_EVERY_REQUEST and not name.startswith(_OF_THE_SERVER)}
    return own.union(CLIENT)


def watched(environ: dict[str, Any], names: Iterable[str] = WATCHED) -> tuple[dict[str, Any], set[str]]:
    """Return the same environ, and the set of those ``names`` that are looked for in it from now on; :data:`ALL` is in
    it as well once all headers were."""
    looks: set[str] = set()
    under_watch: dict[str, Any] = {}
    # Before the others: a key that is there ends the search for it.
    for name in names:
        under_watch[_watch(name, looks)] = ""
    under_watch.update(environ)
    looks.clear()
    return under_watch, looks


def _watch(name: str, looks: set[str]) -> _Watch:
    at_all = _AT_ALL.get(name, frozenset())

    def tell(frame: FrameType) -> None:
        if name not in looks and not any(_module(outer) in at_all for outer in _frames(frame)):
            looks.add(name)

    watch = _Watch(f"wsgi_isr.looks.{name.removeprefix('HTTP_').lower().replace('_', '-')}")
    watch.hash, watch.name, watch.tell, watch.tell_all = hash(name), name, tell, lambda: looks.add(ALL)
    return watch


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """From the one that looks up to where the app was called."""
    while frame is not None and _module(frame) != f"{__package__}.capture":
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> Any:
    return frame.f_globals.get("__name__")
