"""Resolution of a request: its page, and whether the client carries personal cookies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..cache.entry import Codec, Content
from ..cache.keyspace import Keyspace
from ..cache.task import Limits, Passed, Task
from ..cache.verdict import Bypass
from ..config import options as o
from ..config.origin import Site
from ..config.policy import Policy
from ..config.settings import Config
from ..errors import RefreshError
from ..events import Events
from ..stores.base import Store
from .fingerprint import Fingerprint, is_plain, query_of
from .known_sites import Sites
from .listed_paths import Absent, Listings, TagVersions
from .request_key import Matcher, PageKey, canonical, decoded, public_path, query_string

#: The pages of plain requests that are remembered: matching, key and hash take longer than the rest of a look-up. The
#: longest text of key and fingerprint among them; both bound the memory to about a megabyte.
MAX_REMEMBERED = 1024
MAX_REMEMBERED_TEXT = 512


class Page(NamedTuple):
    """The page of a request: the policy, the key and the task.

    :param personal: whether the client carries cookies that are neither ignored nor part of the key.
    """

    policy: Policy
    key: PageKey
    task: Task
    personal: bool

    @property
    def site(self) -> Site:
        """Return the site of the page."""
        return Site(*self.key[:3])

    @property
    def path(self) -> str:
        """Return the public path, for people."""
        return public_path(self.key.script, self.key.path)

    def is_plain(self, fingerprint: Fingerprint) -> bool:
        """Return whether each request with this fingerprint is for this page, and few fingerprints are.

        The raw query is that of the key, spelled as a render sees it; the order may differ. A page has few such
        queries, but any number of others: campaigns add parameters.
        """
        if not (self.policy.by_url_alone and is_plain(fingerprint)):
            return False
        return sorted((query_of(fingerprint) or "").split("&")) == sorted(query_string(self.key).split("&"))

    def may_serve(self, content: Content) -> bool:
        """Return whether this client may get the page.

        A page whose app reads cookies is for clients without personal cookies.
        """
        return not (self.personal and content.reads_cookies)


class Pages:
    """The pages of one :class:`~wsgi_isr.ISR`.

    :param monotonic: monotonic time in seconds.
    :param off: why nothing is kept, for a store that keeps nothing.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        events: Events,
        monotonic: Callable[[], float] | None = None,
        off: str = "store-disabled",
    ) -> None:
        settings = config.settings
        self._rules = config.rules
        self._store = store
        self._events = events
        self._monotonic = monotonic or time.monotonic
        self._names = Keyspace(settings.namespace, settings.release or "")
        self._off = off
        self._matcher = Matcher(
            config.rules, settings.canonical_url, settings.ignore_cookies, settings.hosts, settings.anonymous
        )
        self._on_write = settings.invalidate_on_write
        self._settings = settings
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Make new locks after a fork: the parent's locks may be held forever in the child."""
        self._remembered: dict[Fingerprint, Page] = {}
        #: The known sites, for which pages are rendered.
        settings = self._settings
        codec = Codec(settings.signing_key, settings.namespace)
        self.sites = Sites(settings, self._matcher.is_own, self._store, Keyspace(settings.namespace).sites, codec)
        tag_versions = self._tag_versions if self._store.keeps else None
        self._listings = Listings(self._rules, self._events, self._monotonic, tag_versions)

    def _tag_versions(self, tags: Sequence[str]) -> TagVersions:
        """Return the versions of tags in the store. The store is only read: random paths must not create tags."""
        keys = {tag: self._names.tag(tag) for tag in tags}
        found = self._store.get_many(list(keys.values()))
        return {tag: found.values.get(key) for tag, key in keys.items() if key not in found.unreachable}

    def match(
        self, environ: dict[str, Any], fingerprint: Fingerprint, epochs: Callable[[], Any], draft: bool
    ) -> Page | Passed | Absent:
        """Return the page of a request, or why it is not for the cache.

        :param fingerprint: that of ``environ``: that of a plain request may be remembered.
        :param epochs: returns the current epochs, for lists of pages.
        :param draft: whether the client is in draft mode.
        """
        self.sites.note(environ)
        if not draft and (page := self._remembered.get(fingerprint)) is not None:
            return page
        return self.resolve(environ, epochs, draft)

    def resolve(self, environ: dict[str, Any], epochs: Callable[[], Any], draft: bool) -> Page | Passed | Absent:
        """Return the page of a request, or why it is not for the cache. The request is neither noted nor remembered.

        The parameters are those of :meth:`match`.
        """
        if not draft and self._matcher.is_served(environ):
            # In development the list is always loaded again, because its pages are being edited.
            absent = self._listings.absent(environ, None if self._off == "development" else epochs)
            if absent is not None:
                return absent
        if not self._store.keeps:
            return Passed(self._off, draft=draft)
        match = self._matcher.match(environ)
        if isinstance(match, Bypass):
            written = self._matcher.written(environ) if self._on_write else None
            return Passed(match.reason, written=written, draft=draft)
        policy, key = match
        if draft:
            return Passed("draft", draft=True)
        return self._page(policy, key, self._matcher.personal_cookies(policy, environ))

    def remember(self, fingerprint: Fingerprint, page: Page) -> None:
        """Remember the page of a plain request that was a hit, unless its rule asks a list of pages each time."""
        # The client chooses the length of the fingerprint: with a canonical URL, any Host leads to the page.
        length = len(page.task.text) + sum(len(part) for part in fingerprint if part is not None)
        if page.policy.lists_all or length > MAX_REMEMBERED_TEXT:
            return
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()  # removing one item while another thread reads would need a lock
        self._remembered[fingerprint] = page

    def without_ignored_cookies(self, page: Page, environ: dict[str, Any]) -> dict[str, Any]:
        """Return the request for a page, without its cookies if all of them are ignored."""
        return self._matcher.without_ignored_cookies(page.policy, environ)

    def at(self, path: str, site: Site | None = None) -> Page:
        """Return the page at a public path, which may have a query, for a client without cookies.

        :param site: the site, if several hosts are served; by default the first known one.
        :raises ConfigError: ``path`` is no path.
        :raises RefreshError: the page is not for the cache; the error says why.
        """
        return self._at(path, site or self.sites_of(path)[0], {})

    def everywhere(self, path: str, site: Site | None = None) -> list[Page]:
        """Return the pages at a public path, one for each known site that has a page there.

        :param site: look at this site only.
        :raises ConfigError: ``path`` is no path.
        :raises RefreshError: no site has a page for the cache there; the error gives the first site's reason.
        """
        pages: list[Page] = []
        refused: list[RefreshError] = []
        absent: dict[str, Absent | None] = {}
        for one in [site] if site else self.sites_of(path):
            try:
                pages.append(self._at(path, one, absent))
            except RefreshError as error:
                refused.append(error)
        if not pages:
            raise refused[0]
        return pages

    def _at(self, path: str, site: Site, absent: dict[str, Absent | None]) -> Page:
        """Return the page at a path of a site.

        :param absent: results by path, so that each list of pages is asked once for all sites.
        """
        _, query = _public(path)
        environ = canonical(PageKey(*site, self.path_below(path, site).encode("utf-8").decode("latin-1")))
        environ["QUERY_STRING"] = query
        if environ["PATH_INFO"] not in absent:
            absent[environ["PATH_INFO"]] = self._listings.absent(environ)
        match = absent[environ["PATH_INFO"]] or self._matcher.match(environ)
        if isinstance(match, (Absent, Bypass)):
            raise RefreshError(path, match.reason if isinstance(match, Bypass) else "not-listed")
        return self._page(*match)

    @staticmethod
    def path_below(path: str, site: Site) -> str:
        """Return a public path, without its query, below the mount point of a site.

        A path without the mount point is accepted, too.

        :raises ConfigError: ``path`` is no path.
        """
        public, _ = _public(path)
        below = _below(public, site)
        return public if below is None else below

    def sites_of(self, path: str) -> list[Site]:
        """Return the known sites whose mount point a public path is below; the first known site if there is none.

        :raises ConfigError: ``path`` is no path.
        """
        (public, _), known = _public(path), self.sites.known()
        return [site for site in known if _below(public, site) is not None] or known[:1]

    def _page(self, policy: Policy, key: PageKey, personal: bool = False) -> Page:
        text = key.text
        limits = Limits(policy.render_timeout, policy.lock_timeout, policy.lease, ignore_backoff=not personal)
        task = Task(self._names.page(text), text, policy.name, limits)
        return Page(policy, key, task, personal)


def _public(path: str) -> tuple[str, str]:
    """Return a public path and its query.

    :raises ConfigError: it is no path.
    """
    plain, _, query = path.partition("?") if isinstance(path, str) else (path, "", "")
    return o.parse_path(plain, "path"), query


def _below(public: str, site: Site) -> str | None:
    """Return the rest of a public path below the mount point of a site; ``None`` if it is not below it."""
    script = decoded(site.script)
    return public[len(script) :] if not script or public == script or public.startswith(script + "/") else None
