"""The key of a request's page, and the canonical request of a key."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from fnmatch import translate
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from werkzeug.http import dump_cookie, parse_cookie

from ..cache.keyspace import EVERYTHING, path_tag, prefix_tag, route_tag, stored_tag, tag_name
from ..cache.verdict import Bypass
from ..config.ignored_names import IGNORED_COOKIES, TRACKING
from ..config.origin import _DEFAULT_PORT, MAX_HOST, MAX_URL, Site, site_of_url
from ..config.policy import Policy
from ..config.policy import tags_of as rule_tags
from ..config.settings import HOST

if TYPE_CHECKING:
    from ..config.rule_set import RuleSet

#: Each segment of a path is a prefix that can be invalidated, and costs a tag.
MAX_SEGMENTS = 32


#: Parsing thousands of parameters takes milliseconds, longer than many renders.
MAX_PARAMETERS = 256


#: The methods that change something (RFC 9110, 9.2.1).
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


#: The environ variable that only a render has. A client cannot set it: a request header becomes ``HTTP_...`` (RFC
#: 3875, 4.1.18).
RENDER = "wsgi_isr.render"


class PageKey(NamedTuple):
    """Everything that a render may see of a request.

    ``path``, ``script`` and ``query`` are bytes held as latin-1 text, as in WSGI (PEP 3333, "Unicode Issues").
    """

    scheme: str
    host: str
    script: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    cookies: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """Return the key as ASCII text: readable, and unambiguous because it is JSON."""
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> PageKey:
        """Return the key of a :attr:`text`."""
        scheme, host, script, path, *pairs = json.loads(text)
        return cls(scheme, host, script, path, *(tuple((name, value) for name, value in part) for part in pairs))


def public_path(script: str, path: str) -> str:
    """Return the path for people: with the mount point, and without percent-encoding.

    An empty path is ``/`` (RFC 9110, 4.2.3).

    :raises UnicodeError: it is not UTF-8.
    """
    return decoded(script) + decoded(path) or "/"


def tags_of_page(key: PageKey, policy: Policy, rules: RuleSet) -> list[str]:
    """Return the stored tags that a page has before its render.

    They are the tags of its path, each ancestor, its rule and everything, and the tags that the rule gives.
    """
    return list(dict.fromkeys(map(stored_tag, tag_names_of_page(key, policy, rules))))


def tag_names_of_page(key: PageKey, policy: Policy, rules: RuleSet) -> list[str]:
    """Return the names of the tags of :func:`tags_of_page`, as an invalidation gives them."""
    path = public_path(key.script, key.path)
    segments = path.strip("/").split("/")
    ancestors = ["/" + "/".join(segments[:n]) for n in range(len(segments) + 1)]
    params = rules.match(decoded(key.path) or "/")[1] if policy.tags else {}
    given = [tag_name(tag) for tag in rule_tags(policy, params)]
    implicit = [EVERYTHING, route_tag(policy.name), path_tag(path), *map(prefix_tag, ancestors)]
    return [*implicit, *given]


class Matcher:
    """Finds the policy and the key of a request's page, or the reason why there is none."""

    def __init__(
        self,
        rules: RuleSet,
        canonical_url: str | None,
        ignore_cookies: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
        anonymous: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        self._rules = rules
        self._ignored = _any_of((*IGNORED_COOKIES, *ignore_cookies))
        self._anonymous = anonymous
        self._site = site_of_url(canonical_url)[:2] if canonical_url else None
        own = (self._site[1],) if self._site else ()
        self._is_own = _any_of((*hosts, *own)) if hosts else None

    def is_served(self, environ: dict[str, Any]) -> bool:
        """Return whether there are pages for the host of a request."""
        if self._is_own is None:
            return True
        named = site_of(environ)
        return named is not None and self._is_own(named[1])

    def is_own(self, site: Site) -> bool:
        """Return whether there are pages for a site."""
        return (self._site is None or self._site == site[:2]) and (self._is_own is None or self._is_own(site.host))

    def match(self, environ: dict[str, Any]) -> tuple[Policy, PageKey] | Bypass:
        """Return the policy and the key of a request's page, or why the cache is bypassed.

        The key has no part of the client's identity.
        """
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return Bypass("method")
        # REMOTE_USER and AUTH_TYPE: the server has authenticated the user (RFC 3875, 4.1.1 and 4.1.11).
        if "HTTP_AUTHORIZATION" in environ or environ.get("REMOTE_USER") or environ.get("AUTH_TYPE"):
            return Bypass("authorization")
        if "HTTP_UPGRADE" in environ:
            return Bypass("upgrade")
        path, query = environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", "")
        if len(path) + len(query) > MAX_URL:
            return Bypass("url-length")
        if path.count("/") > MAX_SEGMENTS:
            return Bypass("url-depth")
        if query.count("&") >= MAX_PARAMETERS:
            return Bypass("url-parameters")
        try:
            text = decoded(path)
            decoded(environ.get("SCRIPT_NAME", ""))
            query.encode("latin-1")
        except UnicodeError:
            return Bypass("url-encoding")
        site = self._site or site_of(environ)
        if site is None or not self.is_served(environ):
            return Bypass("host")
        policy, _ = self._rules.match(text or "/")
        if policy.has_no_rule:
            return Bypass("no-rule")
        if policy.is_never_cached:
            return Bypass("revalidate-0")
        if policy.bypass is not None and policy.bypass(environ):
            return Bypass("rule")
        pairs = _canonical_query(policy, query)
        if pairs is None:
            return Bypass("query")
        headers = tuple(_headers(policy, environ))
        try:
            cookies = tuple(_cookies(policy, environ))
        except UnicodeError:
            return Bypass("cookie-encoding")
        return policy, PageKey(*site, environ.get("SCRIPT_NAME", ""), path, pairs, headers, cookies)

    def written(self, environ: dict[str, Any]) -> str | None:
        """Return the tag that a successful unsafe request invalidates: that of the page at its URL."""
        if environ["REQUEST_METHOD"] not in UNSAFE:
            return None
        try:
            policy, _ = self._rules.match(decoded(environ.get("PATH_INFO", "")) or "/")
            if policy.is_never_cached or policy.has_no_rule:
                return None
            return path_tag(public_path(environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")))
        except UnicodeError:
            return None

    def personal_cookies(self, policy: Policy, environ: dict[str, Any]) -> bool:
        """Return whether the request carries a personal cookie: neither ignored nor part of the key.

        The option ``anonymous`` may declare these cookies anonymous.
        """
        header = environ.get("HTTP_COOKIE")
        if not header:
            return False
        own = [part for name, part in cookie_pairs(header) if name not in policy.cookies and not self._ignored(name)]
        if not own:
            return False
        return self._anonymous is None or not self._anonymous({**environ, "HTTP_COOKIE": ";".join(own)})

    def without_ignored_cookies(self, policy: Policy, environ: dict[str, Any]) -> dict[str, Any]:
        """Return the request. Remove its cookies if all are ignored and none is part of the key."""
        header = environ.get("HTTP_COOKIE")
        if header is None or any(name in policy.cookies or not self._ignored(name) for name, _ in cookie_pairs(header)):
            return environ
        return {name: value for name, value in environ.items() if name != "HTTP_COOKIE"}


def cookie_pairs(header: str) -> Iterator[tuple[str, str]]:
    """Yield each name of a ``Cookie`` header (RFC 6265, 4.2.1), with the pair of name and value as sent."""
    for part in header.split(";"):
        name = part.split("=", 1)[0].strip()
        if name:
            yield name, part


def decoded(path: str) -> str:
    """Return a path of an environ as text.

    :raises UnicodeError: it is not UTF-8 (PEP 3333, "Unicode Issues").
    """
    return path.encode("latin-1").decode("utf-8")


def site_of(environ: dict[str, Any]) -> tuple[str, str] | None:
    """Return the scheme and host that a request names; ``None`` if the host is not valid."""
    scheme = environ.get("wsgi.url_scheme", "http")
    host = environ.get("HTTP_HOST")
    if host is None:
        host = f"{environ.get('SERVER_NAME')}:{environ.get('SERVER_PORT')}"
    host = host.lower()
    if len(host) > MAX_HOST or not HOST.match(host):
        return None
    return scheme, host.removesuffix(_DEFAULT_PORT.get(scheme, "::"))


def _any_of(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    exact = frozenset(p for p in patterns if "*" not in p)
    globs = [translate(p) for p in patterns if "*" in p]
    matches = re.compile("|".join(globs)).match if globs else None
    return lambda name: name in exact or (matches is not None and matches(name) is not None)


_is_tracking = _any_of(TRACKING)


def _canonical_query(policy: Policy, query: str) -> tuple[tuple[str, str], ...] | None:
    """Return the parameters that are part of the key, sorted by name; ``None`` if the request bypasses the cache."""
    if not query:
        return ()
    kept = []
    # latin-1 keeps any byte, so that two spellings of one value are one page.
    for name, value in parse_qsl(query, keep_blank_values=True, encoding="latin-1"):
        if name in policy.query or (policy.other_query == "key" and not _is_tracking(name)):
            kept.append((name, value))
        elif policy.other_query == "bypass" and not _is_tracking(name):
            return None
    return tuple(sorted(kept, key=lambda pair: pair[0]))


def _headers(policy: Policy, environ: dict[str, Any]) -> Any:
    for header, narrow in policy.vary.items():
        value = environ.get(_environ_name(header))
        if narrow is not None:
            value = narrow(value or "")
            if value is not None and not isinstance(value, str):
                raise TypeError(f"rule {policy.name!r}: vary[{header!r}] returned {value!r}, which is not text")
        if value is not None:
            yield header.lower(), value


def _cookies(policy: Policy, environ: dict[str, Any]) -> Any:
    if policy.cookies and environ.get("HTTP_COOKIE"):
        sent = parse_cookie(environ["HTTP_COOKIE"])
        for name in policy.cookies:
            if name in sent:
                yield name, sent[name]


def _environ_name(header: str) -> str:
    name = header.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


def shown_url(environ: dict[str, Any]) -> str:
    """Return the path and query of a request, for people."""
    query = environ.get("QUERY_STRING", "")
    return f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}{'?' if query else ''}{query}"


def query_string(key: PageKey) -> str:
    """Return the query of a page as its render sees it."""
    return urlencode(key.query, encoding="latin-1")


def canonical(key: PageKey) -> dict[str, Any]:
    """Return the environ that renders a page: a GET made of its key alone (PEP 3333, "environ Variables")."""
    host, _, port = key.host.rpartition(":") if re.search(r":[0-9]+\Z", key.host) else (key.host, "", "")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": key.script,
        "PATH_INFO": key.path,
        "QUERY_STRING": query_string(key),
        "SERVER_NAME": host,
        "SERVER_PORT": port or ("443" if key.scheme == "https" else "80"),
        "SERVER_PROTOCOL": "HTTP/1.1",
        # A documentation address (RFC 5737): apps trust loopback, and would show strangers private content.
        "REMOTE_ADDR": "192.0.2.1",
        "HTTP_HOST": key.host,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": key.scheme,
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        RENDER: True,
    }
    for header, value in key.headers:
        environ[_environ_name(header)] = value
    if key.cookies:
        # parse_cookie undid the quoting; the app's parser must get the same values.
        environ["HTTP_COOKIE"] = "; ".join(
            dump_cookie(name, value, path=None, max_size=0).split(";")[0] for name, value in key.cookies
        )
    return environ
