"""Render the pages of one site without clients, in the same way as for clients."""

from __future__ import annotations

from urllib.parse import urlencode

from werkzeug.test import run_wsgi_app

from ..cache.entry import Content, Entry, HitForMiss
from ..cache.keyspace import path_tag
from ..cache.task import Failed, Passed, Served
from ..config import options as o
from ..config.origin import Site, site_of_url
from ..config.settings import HOST
from ..errors import ConfigError, ISRError, StoreError
from ..middleware.isr import ISR
from ..pages.request_key import PageKey, canonical
from ..pages.resolver import Page
from . import html_links
from .html_links import SiteAddress, spelled
from .static_site import Answer


class Skip(Exception):
    """The page is not for the cache, or not for the export."""


class Fail(Exception):
    """The page could not be rendered."""


class TryLater(Exception):
    """Another process renders the page, or it is in back-off."""


def site_at(isr: ISR, url: str | None) -> tuple[Site, bool]:
    """Return the site of the pages, and whether ``url`` or the app's ``canonical_url`` names it.

    :param url: scheme and host, and the mount point if there is one.
    :raises ConfigError: ``url`` is malformed; or the app renders for another site.
    """
    canonical_url = isr.configuration.settings.canonical_url
    fixed = site_of_url(canonical_url) if canonical_url else None
    if url is None:
        known = isr._pages.sites.known()
        if len({site[:2] for site in known}) > 1:
            hosts = ", ".join(sorted({f"{site.scheme}://{site.host}" for site in known}))
            raise ConfigError("--url", f"visitors come to several sites: {hosts}", "say for which one")
        return known[0], fixed is not None
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if scheme not in ("http", "https") or not HOST.match(host.lower()):
        raise ConfigError("--url", f"{url!r} is not scheme and host", "write it like https://example.com")
    given = site_of_url(f"{scheme}://{host}")
    mount = o.parse_path(slash + path, "--url").rstrip("/") if slash else ""
    if fixed is not None and given != fixed:
        raise ConfigError("--url", f"the app renders for {canonical_url} only", "leave it out, or name that one")
    return given._replace(script=mount.encode().decode("latin-1")), True


def check_shared(isr: ISR) -> None:
    """Check that other processes see the pages that this one stores.

    :raises ConfigError: the store is private to this process, or development mode turns the cache off.
    """
    if isr._development is not None:
        problem = f"{isr._development.text}, so that nothing is cached"
        raise ConfigError("development", problem, "set WSGI_ISR_DEVELOPMENT=cache, as the servers have it")
    if not (isr._store.keeps and isr._store.shared):
        kind = "memory://" if isr._store.keeps else "null://"
        raise ConfigError("store", f"{kind} is seen by no other process", "set WSGI_ISR_STORE as the servers have it")


class SiteClient:
    """Renders the pages of ``site``. Several threads may call its methods, which hang if a render does."""

    def __init__(self, isr: ISR, site: Site) -> None:
        self._isr = isr
        self._site = site
        engine = isr._engine
        self._cache, self._keeps, self._codec = engine.cache, engine.keeps, engine.codec
        self._cache.trigger = "prerender"
        self.address = address_of(site)

    def own_path(self, url: str) -> str | None:
        """Return the path of a URL of this site, absolute or not; ``None`` for any other URL."""
        absolute = html_links.absolute(url, self.address.at("/"))
        return self.address.path_of(absolute) if absolute else None

    def page_at(self, path: str) -> Page:
        """Return the page at a public path.

        :raises RefreshError: the page is not for the cache.
        :raises ConfigError: ``path`` is no path.
        """
        return self._isr._pages.at(path, self._site)

    def get(self, page: Page) -> tuple[bool, Content]:
        """Return whether the page was rendered now, and its fresh content.

        :raises Skip: the page is not for the cache.
        :raises Fail: the page cannot be rendered.
        :raises TryLater: another process renders the page, or the page is in back-off.
        """
        # No wait: while another process renders this page, the caller renders others. Back-off holds as for any client.
        task = page.task._replace(limits=page.task.limits._replace(wait=0.0, ignore_backoff=False))
        answer, tried = self._cache.get(task, only_fresh=True), False
        if isinstance(answer, Passed) and not answer.missed and self._cache.done(task):
            # The hit-for-miss has just been tried again in the background.
            answer, tried = self._cache.get(task, only_fresh=True), True
        if isinstance(answer, Passed):
            raise TryLater if answer.missed else Skip(answer.reason)
        if isinstance(answer, Failed):
            raise Fail(_why(answer))
        assert isinstance(answer, Served)
        entry = answer.cached.entry
        assert isinstance(entry.content, Content)
        if answer.label == "DEGRADED":
            raise Fail("a node of the store is unreachable, so the page cannot be proven fresh")
        if answer.hit or answer.collapsed:
            return tried, entry.content
        if not answer.stored:
            self._check_stored(page, entry)
        return answer.stored or not self._keeps, entry.content

    def renew(self, page: Page) -> tuple[bool, Content]:
        """Render the page anew, from data that is read from now on; return as :meth:`get` does."""
        refreshed = self._cache.refresh(page.task, path_tag(page.path), inline=True)
        if isinstance(refreshed, Failed):
            raise Fail(_why(refreshed))
        entry = refreshed.cached.entry
        if isinstance(entry.content, HitForMiss):
            raise Skip(entry.content.reason)
        assert isinstance(entry.content, Content)
        if not refreshed.stored:
            self._check_stored(page, entry)
        return True, entry.content

    def _check_stored(self, page: Page, entry: Entry) -> None:
        """Check that an unstored render is no loss.

        :raises Fail: the store has no cache entry that is as new.
        """
        if not self._keeps:
            return
        if len(self._codec.pack(entry)) > self._isr._store.max_value:
            raise Fail("it is larger than what the store takes")
        try:
            newest = self._cache.kept(page.task)
        except StoreError as error:
            raise Fail(f"the store cannot be asked: {error}") from error
        if newest is None or newest.started < entry.started:
            raise Fail("the store did not keep it")

    def fetch(self, path: str) -> Answer:
        """Return the response for an anonymous client: the fresh page from the cache, or else the app's response.

        :raises Fail: the page cannot be rendered. Exceptions of the app pass through.
        """
        try:
            page = self.page_at(path)
        except ISRError:
            page = None
        if page is not None:
            found = self._cache.get(page.task, only_fresh=True)
            if isinstance(found, Failed):
                raise Fail(_why(found))
            if isinstance(found, Served) and isinstance(content := found.cached.entry.content, Content):
                return Answer(int(content.status[:3]), content.headers, content.body)
        plain, _, query = path.partition("?")
        below = o.parse_path(plain, "path").removeprefix(self.address.mount)
        environ = canonical(PageKey(*self._site, below.encode("utf-8").decode("latin-1")))
        environ["QUERY_STRING"] = query
        body, status, headers = run_wsgi_app(self._isr, environ, buffered=True)
        return Answer(int(status[:3]), tuple(headers), b"".join(body))


def address_of(site: Site) -> SiteAddress:
    """Return the address of a site, for links."""
    return SiteAddress(site.scheme, site.host, site.script.encode("latin-1").decode("utf-8"))


def spelled_out(path: str) -> str:
    """Return a decoded path as it is written in a URL."""
    return spelled(path.replace("%", "%25"))


def url_of(page: Page) -> str:
    """Return the path and query of a page as written in URLs, for reports and for the name of its file."""
    query = urlencode(page.key.query, encoding="latin-1")
    return spelled_out(page.path) + (f"?{query}" if query else "")


def _why(failed: Failed) -> str:
    return f"{failed.reason}: {shown(failed.error)}" if failed.error is not None else failed.reason


def shown(error: BaseException) -> str:
    """Return an exception as one short line."""
    text = " ".join(f"{error!r}".split())
    return text if len(text) <= 200 else text[:199] + "…"
