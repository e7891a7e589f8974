"""The header fields by which a CDN learns whether it may keep an answer, for how long, and under which tags.

**Lifetime.** ``max-age`` counts from the render, and ``Age`` is true, so the CDN subtracts it (RFC 9111, 4.2.3).
Browsers do not read the field: it is a targeted field (RFC 9213), or ``Surrogate-Control``. Together with
``stale-while-revalidate`` (RFC 5861, 3) it never exceeds the ``expire`` of the page. A CDN without a documented use of
``Age`` gets the rest of the lifetime: it may keep a page for too short a time, and never for too long.

**A field in each answer.** Without a field for it, a CDN falls back to ``Cache-Control``, and keeps a page with
``max-age=300`` from the app, without tags. So each answer says either a lifetime or ``no-store``. ``private`` in
``Cache-Control`` tells the same to caches that do not know the field; browsers are not concerned by it. Answers to
requests that no rule covers are left alone: they are the app's business.

**Not kept.** A CDN finds a page by its URL, before any code of the app runs. These are not kept:

- pages that depend on a header, a cookie or a function (``vary``, ``cookies``, ``bypass``), and pages for clients
  without cookies only (``Vary: Cookie``). Most CDNs ignore ``Vary``, and would serve them to other clients;
- pages for a host or a prefix that forwarded headers name: the CDN finds the page by the client's URL, and the
  client may have forged them;
- redirects: most CDNs ignore the scheme, so that a redirect from http to https would be served for https, and loop;
- pages for http, unless ``canonical_url`` makes one page for both, or the CDN distinguishes schemes: a page with links
  to http would be served for https;
- with Bunny, pages of a query: its default key is the path alone;
- pages that are stale, or not proven to be current (:meth:`.TagVersions.is_quiet`);
- pages with more tags than fit into the header: a CDN drops the rest, and purges by them would miss the page;
- answers of the app to one client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..cache.entry import Content, Entry
from ..config.policy import Policy

Headers = list[tuple[str, str]]

#: Seconds of ``max-age`` for a page that only an invalidation ends (RFC 9111 knows no "for ever").
_YEAR = 365 * 24 * 3600
#: Seconds for which a CDN serves an old page at most while it fetches the new one.
_GRACE = 60


class Dialect(NamedTuple):
    """The fields of a CDN.

    :param control: the field of the lifetime.
    :param tags: the field of the tags.
    :param separator: the text between two tags.
    :param max_tags: the longest field of tags in bytes.
    :param subtracts_age: the documentation says that ``Age`` shortens the lifetime.
    :param knows_query: the default cache key has the query.
    :param knows_scheme: the default cache key, or that of our VCL, has the scheme.
    """

    control: str
    tags: str
    separator: str
    max_tags: int
    subtracts_age: bool = True
    knows_query: bool = True
    knows_scheme: bool = False


DIALECTS = {
    # developers.cloudflare.com, "CDN-Cache-Control" and "Purge cache by cache-tags": 16 KB for all tags.
    "cloudflare": Dialect("Cloudflare-CDN-Cache-Control", "Cache-Tag", ",", 16 * 1024, knows_scheme=True),
    # fastly.com/documentation, "Surrogate-Control", "Surrogate-Key" (16,384 bytes) and "Age".
    "fastly": Dialect("Surrogate-Control", "Surrogate-Key", " ", 16 * 1024),
    # http_resp_hdr_len of varnishd(1) is 8 KB, the name of the field included.
    "varnish": Dialect("CDN-Cache-Control", "xkey", " ", 8 * 1024 - 64, knows_scheme=True),
    # docs.bunny.net, "Purge cache" and "Vary cache". No limit of the field is documented.
    "bunny": Dialect("CDN-Cache-Control", "CDN-Tag", ",", 4 * 1024, subtracts_age=False, knows_query=False),
    "generic": Dialect("CDN-Cache-Control", "Cache-Tag", ",", 8 * 1024),
}


class EdgeHeaders:
    """Add the fields for one CDN to answers.

    :param kind: a key of :data:`DIALECTS`.
    :param token: returns the name of a tag at the CDN.
    :param is_one_site: one page is for all schemes and hosts (``canonical_url``).
    """

    def __init__(self, kind: str, token: Callable[[str], str], is_one_site: bool) -> None:
        self._dialect = DIALECTS[kind]
        self._is_one_site = is_one_site
        self._knows_scheme = is_one_site or self._dialect.knows_scheme
        self._token = token
        self._own = {self._dialect.control.lower(), self._dialect.tags.lower()}
        refusal = "no-store, max-age=0" if kind == "fastly" else "no-store"  # Fastly reads max-age alone
        self._refusal = (self._dialect.control, refusal)

    def is_forwarded(self, environ: Mapping[str, Any]) -> bool:
        """Return whether forwarded headers have led a request to a page of another URL than the client's.

        ``ProxyFix`` notes the values from before. A dispatcher changes ``SCRIPT_NAME`` as well, and not the URL.
        """
        before = environ.get("werkzeug.proxy_fix.orig")
        if before is None:
            return False
        if not self._is_one_site and before.get("HTTP_HOST") != environ.get("HTTP_HOST"):
            return True
        has_prefix = "HTTP_X_FORWARDED_PREFIX" in environ
        return has_prefix and (before.get("SCRIPT_NAME") or "") != environ.get("SCRIPT_NAME", "")

    def of_page(
        self, headers: Headers, now: float, entry: Entry, policy: Policy, scheme: str, has_query: bool
    ) -> Headers:
        """Return the headers of a stored page, with leave for the CDN to keep it where that is safe.

        :param now: Unix time in seconds.
        :param entry: fresh, and proven to be current.
        :param scheme: ``http`` or ``https``, of the page.
        :param has_query: the page is the one of a query.
        """
        is_found = (self._knows_scheme or scheme == "https") and (self._dialect.knows_query or not has_query)
        if not (is_found and policy.by_url_alone and _is_for_all(entry)):
            return self.refuse(headers)
        lifetime, tags = self._lifetime(entry, now), self._tags(entry)
        if not (lifetime and tags):
            return self.refuse(headers)
        return [*self._without_own(headers), (self._dialect.control, lifetime), (self._dialect.tags, tags)]

    def refuse(self, headers: Iterable[tuple[str, str]]) -> Headers:
        """Return the headers of an answer that no CDN may keep."""
        sent, is_said = [], False
        for name, value in self._without_own(headers):
            if name.lower() == "cache-control" and not is_said:
                is_said = True
                value = _private(value)
            sent.append((name, value))
        return [*sent, *([] if is_said else [("Cache-Control", "private")]), self._refusal]

    def _without_own(self, headers: Iterable[tuple[str, str]]) -> Headers:
        """Return the headers without those of the same name from the app: the CDN would have to choose."""
        return [pair for pair in headers if pair[0].lower() not in self._own]

    def _tags(self, entry: Entry) -> str:
        """Return the field of all tags of a page; empty where it would be too long."""
        tokens = dict.fromkeys(self._token(tag) for tag, _ in entry.snapshot.tags)
        field = self._dialect.separator.join(tokens)
        return field if len(field) <= self._dialect.max_tags else ""

    def _lifetime(self, entry: Entry, now: float) -> str:
        """Return the directives of a page's lifetime; empty where less than a second is left."""
        age = entry.age(now)
        seconds = _YEAR if entry.revalidate is None else math.floor(min(entry.revalidate, _YEAR))
        if seconds - age < 1:
            return ""
        grace = _GRACE if entry.expire is None else max(0, min(_GRACE, math.floor(entry.expire) - seconds))
        directives = [f"max-age={seconds if self._dialect.subtracts_age else math.floor(seconds - age)}"]
        if grace:
            directives.append(f"stale-while-revalidate={grace}")
        return ", ".join(directives)


def _private(cache_control: str) -> str:
    """Return ``Cache-Control`` with ``private`` in place of ``public``."""
    if '"' in cache_control:  # a quoted string may have commas (RFC 9111, 5.2); the strictest directive counts
        return f"private, {cache_control}"
    words = [word.strip() for word in cache_control.split(",")]
    return ", ".join(["private", *(word for word in words if word.lower() not in ("", "public", "private"))])


def _is_for_all(entry: Entry) -> bool:
    """Return whether each client that asks for the URL may get the page."""
    content = entry.content
    if not isinstance(content, Content) or content.reads_cookies or content.status.startswith("3"):
        return False
    return _varies_on(content.headers) <= {"accept-encoding"}


def _varies_on(headers: Sequence[tuple[str, str]]) -> set[str]:
    names = [name for field, value in headers if field.lower() == "vary" for name in value.split(",")]
    return {name.strip().lower() for name in names} - {""}
