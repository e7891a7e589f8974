"""For whom pages are made: the hosts and mount points that visitors ask for.

A page belongs to one of them, and is also made without a request: by a refresh, or before anybody asks. A job that
does so serves nobody, and a process may not have been asked for this host yet; so the store remembers them for all.
"""

from __future__ import annotations

from typing import Any

import msgpack

from .errors import StoreError
from .keys import Site, site_of, site_of_url
from .stores.base import Store

#: For whom, where nobody has said for whom.
NOBODY = Site("http", "localhost")


class Sites:
    """A few sites, the oldest of which goes first: whoever sends many hosts wants to fill the memory.

    :param key: where the store keeps them.
    """

    def __init__(self, canonical_url: str | None, store: Store, key: str, most: int = 16) -> None:
        self._canonical = site_of_url(canonical_url) if canonical_url else None
        self._store = store
        self._key = key
        self._most = most
        self._by_request: dict[tuple[Any, ...], Site] = {}
        self._latest: Site | None = None
        self._has_told: set[Site] = set()

    def note(self, environ: dict[str, Any]) -> None:
        """A request came in."""
        raw = (environ.get("wsgi.url_scheme"), environ.get("HTTP_HOST"), environ.get("SCRIPT_NAME", ""))
        site = self._by_request.get(raw)
        if site is None:
            found = self._canonical or site_of(environ)
            if found is None:
                return
            site = self._by_request[raw] = Site(*found[:2], environ.get("SCRIPT_NAME", ""))
            if len(self._by_request) > self._most:
                self._has_told.clear()
                self._by_request.pop(next(iter(list(self._by_request))), None)
        self._latest = site

    def latest(self) -> Site:
        """That of the latest request here, or in another process; before the first one, the canonical one."""
        return self._latest or self._canonical or (self._told() or [NOBODY])[-1]

    def known(self) -> list[Site]:
        """Every one that any process was asked for, the latest of this one first."""
        return list(dict.fromkeys([self.latest(), *list(self._by_request.values()), *self._told()]))

    def _told(self) -> list[Site]:
        try:
            return _read(self._store.get(self._key))
        except StoreError:
            return []

    def tell(self, site: Site) -> None:
        """A page was made for a visitor of ``site``: whoever makes pages for others is to know of it.

        Best effort: without it, a refresh by a process that never saw the site makes its page stale, and no more.
        """
        if site in self._has_told:
            return
        self._has_told.add(site)
        try:
            for _ in range(4):
                held = self._store.gets(self._key)
                told = _read(held.value) if held is not None else []
                if site in told:
                    return
                packed = msgpack.packb([*told, site][-self._most :])
                if held is None:
                    done = self._store.add(self._key, packed)
                else:
                    done = self._store.cas(self._key, packed, held.token)
                if done:
                    return
        except StoreError:
            pass


def _read(data: bytes | None) -> list[Site]:
    """What is damaged is nothing."""
    try:
        return [Site(*map(str, site)) for site in msgpack.unpackb(data)] if data else []
    except Exception:  # msgpack raises half a dozen kinds; a wrong shape raises more
        return []
