"""Round trips of a store to memcached, counted on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cluster.parts.proxy import Proxy
from wsgi_isr.stores.base import route


class Trip(NamedTuple):
    """One request and its answer.

    :param verb: of memcached.
    :param planes: a letter for each key in the request: an epoch, a tag, a page.
    """

    verb: str
    planes: str

    @classmethod
    def of(cls, verb: str, keys: Sequence[str]) -> Trip:
        return cls(verb, "".join(route(key).text.split(":")[2] for key in keys))


class Wires:
    """The connections through proxies. For one thread: bytes written at once are one round trip."""

    def __init__(self, proxies: Sequence[Proxy]) -> None:
        self._proxies = proxies
        self._seen = [0] * len(proxies)
        self.trips()

    def trips(self) -> dict[str, list[Trip]]:
        """Return the round trips of each node since the last call, in order."""
        found = {}
        for number, proxy in enumerate(self._proxies):
            pieces = proxy.requests[self._seen[number] :]
            self._seen[number] += len(pieces)
            found[proxy.name] = [_trip(request) for request in _whole(pieces)]
        return found


def _whole(pieces: Sequence[bytes]) -> list[bytes]:
    """Join the pieces of a request: a request sent as one may have been read in several pieces."""
    requests: list[bytes] = []
    for piece in pieces:
        if requests and not requests[-1].endswith(b"\r\n"):
            requests[-1] += piece
        else:
            requests.append(piece)
    return requests


def _trip(request: bytes) -> Trip:
    verb, *rest = request.partition(b"\r\n")[0].decode().split(" ")
    if verb == "stats":  # the first command of a connection
        return Trip(verb, "")
    return Trip.of(verb, rest if verb in ("get", "gets") else rest[:1])
