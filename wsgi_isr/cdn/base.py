"""A request to the API of a CDN, and its answer, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

#: The most characters of an answer that a message shows.
_SHOWN = 200


class Request(NamedTuple):
    """A request to an API.

    :param body: the value that is sent as JSON; ``None`` for no body.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: Any = None


class API(Protocol):
    """The API of a CDN, without I/O."""

    #: The most tags of a request.
    batch: int

    def request(self, tokens: Sequence[str], is_soft: bool) -> Request:
        """Return the request that purges tags.

        :param is_soft: the CDN may serve the old page once more. Not all CDNs can.
        """

    def problem(self, status: int, body: bytes) -> str:
        """Return why the answer is no success; empty for success."""


def shown(body: bytes) -> str:
    """Return the beginning of an answer, in one line, for a message."""
    text = " ".join(body.decode("utf-8", "replace").split())[:_SHOWN]
    return "".join(c if c.isprintable() else "?" for c in text)
