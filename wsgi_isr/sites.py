"""For whom pages are made: the hosts and mount points that visitors ask for.

A page belongs to one of them, and is also made without a request: by a refresh, or before anybody asks. A job that
does so serves nobody, and a process may not have been asked for this host yet; so the store remembers them for all.
"""

from __future__ import annotations

from typing import Any

import msgpack

from .config import HOST
from .entry import Codec
from .errors import StoreError
from .keys import MAX_URL, Site, decoded, site_of, site_of_url
from .stores.base import Store

#: For whom, where nobody has said for whom.
NOBODY = Site("http", "localhost")


class Sites:
    """A few sites, the first of which is taken for the site itself. Where there is room for no more, newcomers are left
    out: whoever sends many hosts wants to push the real one out.

    :param key: where the store keeps them. :param codec: how.
    """

    def __init__(self, canonical_url: str | None, store: Store, key: str, codec: Codec, most: int = 16) -> None:
        self._canonical = site_of_url(canonical_url) if canonical_url else None
        self._store = store
        self._key = key
        self._codec = codec
        self._most = most
        self._told_here: dict[Site, None] = {}
        self._asked: Site | None = None

    def note(self, environ: dict[str, Any]) -> None:
        """A request came in: better than nothing, where nobody knows of any site."""
        if self._asked is None and (found := self._canonical or site_of(environ)) is not None:
            self._asked = Site(*found[:2], environ.get("SCRIPT_NAME", ""))

    def known(self) -> list[Site]:
        """Every one that a page was made for by a visitor of any process; the canonical one where there is none."""
        told = list(dict.fromkeys([*self._told(), *list(self._told_here)]))
        return told or [self._canonical or self._asked or NOBODY]

    def _told(self) -> list[Site]:
        try:
            told = self._read(self._store.get(self._key))[: self._most]
        except StoreError:
            return []
        fixed = self._canonical
        return told if fixed is None else [site for site in told if site[:2] == fixed[:2]]

    def tell(self, site: Site) -> None:
        """A page was made for a visitor of ``site``: whoever makes pages for others is to know of it.

        Best effort: without it, a refresh by a process that never saw the site makes its page stale, and no more.
        """
        if site in self._told_here or len(self._told_here) >= self._most:
            return
        self._told_here[site] = None
        try:
            for _ in range(4):
                held = self._store.gets(self._key)
                told = self._read(held.value) if held is not None else []
                if site in told or len(told) >= self._most:
                    return
                packed = self._codec.seal(msgpack.packb([*told, site]), "sites")
                if held is None:
                    done = self._store.add(self._key, packed)
                else:
                    done = self._store.cas(self._key, packed, held.token)
                if done:
                    return
        except StoreError:
            pass

    def _read(self, data: bytes | None) -> list[Site]:
        """Return the sites in ``data``. One that no visitor can have come to is left out; damaged bytes hold none."""
        if data is None:
            return []
        try:
            stored = msgpack.unpackb(self._codec.unseal(data, "sites"), use_list=False)
        except Exception:  # msgpack raises half a dozen kinds
            return []
        return [Site(*site) for site in stored if _is_site(site)] if type(stored) is tuple else []


def _is_site(site: Any) -> bool:
    """Whether this is a scheme, a host and a mount point, as a request has them: pages are rendered for it."""
    if type(site) is not tuple or len(site) != 3 or not all(type(part) is str for part in site):
        return False
    scheme, host, script = site
    if scheme not in ("http", "https") or not HOST.match(host) or len(script) > MAX_URL:
        return False
    try:
        return script == "" or decoded(script).startswith("/")
    except UnicodeError:
        return False
