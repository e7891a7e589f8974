"""Which page a request is for, and whose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..cache.entry import Codec, Content
from ..cache.keyspace import Keyspace
from ..cache.task import Passed, Task
from ..cache.verdict import Bypass
from ..config import options as o
from ..config.origin import Site
from ..config.rules import Policy
from ..config.settings import Config
from ..errors import RefreshError
from ..events import Events
from ..stores.base import Store
from .known_sites import Sites
from .listed_paths import Absent, Listings, TagVersions
from .request_key import Matcher, PageKey, canonical, decoded, public_path, query_string


class Page(NamedTuple):
    """What a request is for: the policy, the key, what is to be rendered, and whether the visitor carries cookies
    that are not part of the key."""

    policy: Policy
    key: PageKey
    task: Task
    personal: bool

    @property
    def site(self) -> Site:
        """Where it is."""
        return Site(*self.key[:3])

    @property
    def path(self) -> str:
        """Its public path, as people write it."""
        return public_path(self.key.script, self.key.path)

    def is_spelled(self, query: str | None) -> bool:
        """Return whether a raw query is that of the key, spelled as a render sees it; the order may differ.

        One page has few such queries, and any number of others: campaigns add to them.
        """
        return sorted((query or "").split("&")) == sorted(query_string(self.key).split("&"))

    def may_serve(self, content: Content) -> bool:
        """A page whose app looks at cookies is for visitors who send none."""
        return not (self.personal and content.reads_cookies)


class Pages:
    """The pages of one :class:`~wsgi_isr.ISR`.

    :param monotonic: seconds. :param off: why nothing is kept, where the store keeps nothing.
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
        """After a fork: locks of the parent do not exist here."""
        #: For whom pages are made.
        settings = self._settings
        codec = Codec(settings.signing_key, settings.namespace)
        self.sites = Sites(settings, self._matcher.is_own, self._store, Keyspace(settings.namespace).sites, codec)
        stamps = self._stamps if self._store.keeps else None
        self._listings = Listings(self._rules, self._events, self._monotonic, stamps)

    def _stamps(self, tags: Sequence[str]) -> TagVersions:
        """Return the stamps of tags as the store has them. It is only read: random paths must mint no tags."""
        keys = {tag: self._names.tag(tag) for tag in tags}
        found = self._store.get_many(list(keys.values()))
        return {tag: found.values.get(key) for tag, key in keys.items() if key not in found.unreachable}

    def match(self, environ: dict[str, Any], epochs: Callable[[], Any], draft: bool) -> Page | Passed | Absent:
        """The page that the request is for, or why it is not for the cache.

        :param epochs: as of now, for lists of pages. :param draft: for somebody who sees drafts.
        """
        self.sites.note(environ)
        if not draft and self._matcher.is_here(environ):
            # What is being written just now may be in a list that was asked for a moment ago.
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

    def without_ignored_cookies(self, page: Page, environ: dict[str, Any]) -> dict[str, Any]:
        """Return the request for a page, without its cookies where they say nothing about its visitor."""
        return self._matcher.without_ignored_cookies(page.policy, environ)

    def at(self, path: str, site: Site | None = None) -> Page:
        """The page at a public path, which may have a query, for a visitor without cookies.

        :param site: which one, where several hosts are served; by default the first one known.
        :raises ConfigError: ``path`` is no path. :raises RefreshError: it is not for the cache; says why.
        """
        return self._at(path, site or self.sites_of(path)[0], {})

    def everywhere(self, path: str, site: Site | None = None) -> list[Page]:
        """Return the pages at a public path, one for each known site that has one there.

        :param site: of this one only. :raises ConfigError: ``path`` is no path.
        :raises RefreshError: it is for the cache at none of them; says why it is not at the first one.
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
        """:param absent: what was found out, by path: lists of pages are asked once, however many sites there are."""
        public, query = _public(path)
        below = _below(public, site)
        # A path without the mount point will do as well.
        environ = canonical(PageKey(*site, (public if below is None else below).encode("utf-8").decode("latin-1")))
        environ["QUERY_STRING"] = query
        if environ["PATH_INFO"] not in absent:
            absent[environ["PATH_INFO"]] = self._listings.absent(environ)
        match = absent[environ["PATH_INFO"]] or self._matcher.match(environ)
        if isinstance(match, (Absent, Bypass)):
            raise RefreshError(path, match.reason if isinstance(match, Bypass) else "not-listed")
        return self._page(*match)

    def sites_of(self, path: str) -> list[Site]:
        """Those of the known sites that a public path is of; the first one, where it is below no mount point.

        :raises ConfigError: ``path`` is no path.
        """
        (public, _), known = _public(path), self.sites.known()
        return [site for site in known if _below(public, site) is not None] or known[:1]

    def _page(self, policy: Policy, key: PageKey, personal: bool = False) -> Page:
        text = key.text
        times = policy.render_timeout, policy.lock_timeout, policy.lease
        task = Task(self._names.page(text), text, policy.name, *times, ignore_backoff=not personal)
        return Page(policy, key, task, personal)


def _public(path: str) -> tuple[str, str]:
    """A public path, and its query. :raises ConfigError: it is no path."""
    plain, _, query = path.partition("?") if isinstance(path, str) else (path, "", "")
    return o.parse_path(plain, "path"), query


def _below(public: str, site: Site) -> str | None:
    """What is left of a public path below the mount point of a site; ``None`` where it is elsewhere."""
    script = decoded(site.script)
    return public[len(script) :] if not script or public == script or public.startswith(script + "/") else None
