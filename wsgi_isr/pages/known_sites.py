"""Known sites: the hosts and mount points that clients ask for, and for which pages are rendered.

A page belongs to one site. A refresh or a prerender has no request that names the site, and its process may not have
served this host yet. So the store remembers the sites for all processes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgpack

from ..cache.compare_and_swap import update
from ..cache.entry import Codec
from ..config.origin import MAX_HOST, MAX_URL, Site, site_of_url
from ..config.settings import HOST, Settings
from ..errors import StoreError
from ..stores.base import Store
from .request_key import decoded, site_of

_log = logging.getLogger("wsgi_isr")

#: The site if no request and no option names one.
FALLBACK = Site("http", "localhost")
#: The number of sites that a refresh renders for if clients can invent hosts.
MAX_INVENTED = 4
#: The number of hosts in a warning, and the length of each.
SHOWN, SHOWN_LENGTH = 4, 80


class Sites:
    """A few sites; the first is the main one. If the list is full, new sites are left out.

    A client that sends many hosts must not push out the real one.

    :param is_own: whether there are pages for a site.
    :param key: the key in the store.
    :param codec: seals the stored value.
    """

    def __init__(
        self,
        settings: Settings,
        is_own: Callable[[Site], bool],
        store: Store,
        key: str,
        codec: Codec,
        max_sites: int = 16,
    ) -> None:
        self._canonical = site_of_url(settings.canonical_url) if settings.canonical_url else None
        exact = [host for host in settings.hosts if not host.startswith("*")]
        self._default = Site("http", exact[0]) if exact else FALLBACK
        self._is_own = is_own
        self._store = store
        self._key = key
        self._codec = codec
        self._max_sites = max_sites
        is_fixed = self._canonical is not None or (bool(exact) and len(exact) == len(settings.hosts))
        #: The number of sites that a refresh renders for.
        self.max_refreshed = max_sites if is_fixed else MAX_INVENTED
        self._recorded_here: dict[Site, None] = {}
        self._first_asked: Site | None = None
        # Hosts that got a page; None if a second host needs no warning, or after the warning.
        self._hosts: dict[str, None] | None = None if self._canonical or settings.hosts else {}
        self._noting = threading.Lock()

    def of(self, environ: dict[str, Any]) -> Site | None:
        """Return the site of a request; ``None`` if there are no pages for it."""
        found = self._canonical or site_of(environ)
        site = Site(*found[:2], environ.get("SCRIPT_NAME", "")) if found is not None else None
        return site if site is not None and self._is_own(site) else None

    def note(self, environ: dict[str, Any]) -> None:
        """Note the site of a request, as a fallback while no site is known."""
        if self._first_asked is None:
            self._first_asked = self.of(environ)

    @contextmanager
    def answering(self, site: Site | None) -> Iterator[None]:
        """Make ``site`` the first known site in this context, because the app answers a request for it."""
        token = _answering.set((self, site))
        try:
            yield
        finally:
            _answering.reset(token)

    def known(self) -> list[Site]:
        """Return every site that a page was rendered for, in any process.

        The first is the site of the current request, if there is one. Without any, the only one is the canonical site
        or a fallback.
        """
        owner, own = _answering.get()
        first = [own] if own is not None and owner is self else []
        known = list(dict.fromkeys([*first, *self._stored_sites(), *list(self._recorded_here)]))
        return known or [self._canonical or self._first_asked or self._default]

    def _stored_sites(self) -> list[Site]:
        try:
            stored = self._read(self._store.get(self._key))[: self._max_sites]
        except StoreError:
            return []
        return [site for site in stored if self._is_own(site)]

    def served(self, host: str) -> None:
        """Note that a client got a page. Warn of a second host if no option names the hosts."""
        hosts = self._hosts
        if hosts is None or host in hosts:
            return
        # A new process does not know which hosts others have seen.
        stored = [] if hosts else [site.host for site in self._stored_sites()]
        with self._noting:
            if self._hosts is None:
                return
            self._hosts = hosts = dict.fromkeys([*self._hosts, *stored, host])
            if len(hosts) == 1:
                return
            self._hosts = None
        _warn_of(list(hosts))

    def record(self, site: Site) -> None:
        """Tell other processes, through the store, that a page was rendered for ``site``.

        This is best effort. Without it, a refresh in a process that never saw the site only makes its page stale.
        """
        if site in self._recorded_here or len(self._recorded_here) >= self._max_sites:
            return
        self._recorded_here[site] = None

        def with_site(data: bytes | None) -> bytes | None:
            stored = self._read(data)
            if site in stored or len(stored) >= self._max_sites:
                return None
            return self._codec.seal(msgpack.packb([*stored, site]), "sites")

        update(self._store, self._key, with_site)

    def _read(self, data: bytes | None) -> list[Site]:
        """Return the sites in ``data``. Sites that no request can have are left out; damaged bytes hold none."""
        if data is None:
            return []
        try:
            stored = msgpack.unpackb(self._codec.unseal(data, "sites"), use_list=False)
        except Exception:  # msgpack raises half a dozen kinds
            return []
        return [Site(*site) for site in stored if _is_site(site)] if type(stored) is tuple else []


_answering: ContextVar[tuple[Sites | None, Site | None]] = ContextVar("wsgi_isr_site", default=(None, None))


def _is_site(site: Any) -> bool:
    """Return whether this is a scheme, a host and a mount point that a request can have: pages are rendered for it."""
    if type(site) is not tuple or len(site) != 3 or not all(type(part) is str for part in site):
        return False
    scheme, host, script = site
    if scheme not in ("http", "https") or len(host) > MAX_HOST or not HOST.match(host) or len(script) > MAX_URL:
        return False
    try:
        return script == "" or decoded(script).startswith("/")
    except UnicodeError:
        return False


def _warn_of(hosts: list[str]) -> None:
    # Clients invent hosts, so ascii() keeps the text in one line of the log.
    more = f" and {len(hosts) - SHOWN} more" if len(hosts) > SHOWN else ""
    _log.warning(
        "pages are kept for several hosts (%s%s), and each client can invent more, which a refresh renders for: write "
        'canonical_url="https://example.com" where all of them show the same pages, or name those that there are: '
        'hosts=["example.com", "www.example.com"]',
        ", ".join(ascii(host[:SHOWN_LENGTH]) for host in hosts[:SHOWN]),
        more,
    )
