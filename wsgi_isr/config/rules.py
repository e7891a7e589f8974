"""Rules: which pages are cached, for how long, and which requests share a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from string import Formatter
from typing import TYPE_CHECKING, Any, NamedTuple

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, RequestRedirect
from werkzeug.routing import Rule as Route

from ..errors import ConfigError
from . import options as o
from .lifetime import Lifetime
from .patterns import spelling

#: The ``revalidate`` of pages whose own headers say how long they live.
AUTO = "auto"

#: Next.js's profiles: revalidate and expire, in seconds.
PROFILES: dict[str, tuple[float, float]] = {
    "seconds": (1, 60),
    "minutes": (60, 3600),
    "hours": (3600, 86400),
    "days": (86400, 604800),
    "weeks": (604800, 2592000),
    "max": (2592000, 31536000),
}

#: Parameters that campaigns add to links and that no page reads. They are dropped.
TRACKING = (
    "utm_*",
    "gclid",
    "dclid",
    "gbraid",
    "wbraid",
    "fbclid",
    "msclkid",
    "yclid",
    "mc_cid",
    "mc_eid",
    "_ga",
    "_gl",
)


#: Cookies that no page reads: those of analytics, advertising, consent banners, chats, payment and bot protection, and
#: the package's own. ``*`` stands for any text. Keep the list sorted: ``docs/reference/options.md`` shows it.
IGNORED_COOKIES = (
    "__adroll*",
    "__cf_bm",
    "__cflb",
    "__cfruid",
    "__gads",
    "__gpi*",
    "__hs*",
    "__insp_*",
    "__kla_id",
    "__qca",
    "__stripe_*",
    "__utm*",
    "__zlcmid",
    "_abck",
    "_cfuvid",
    "_clck",
    "_clsk",
    "_dc_gtm_*",
    "_derived_epik",
    "_fbc",
    "_fbp",
    "_ga*",
    "_gat*",
    "_gcl_*",
    "_gid",
    "_hj*",
    "_iub_cs-*",
    "_mkto_trk",
    "_pin_unauth",
    "_pk_*",
    "_rdt_uuid",
    "_scid",
    "_scid_r",
    "_sctr",
    "_tt_*",
    "_ttp",
    "_uet*",
    "_vwo_*",
    "_ym_*",
    "ajs_*",
    "ak_bmsc",
    "AMCV_*",
    "AMP_*",
    "bm_mi",
    "bm_sv",
    "bm_sz",
    "borlabs-cookie*",
    "cf_clearance",
    "cmapi_*",
    "cookie-agreed*",
    "cookie_consent*",
    "cookie_notice_accepted",
    "cookiebot*",
    "CookieConsent",
    "cookieconsent*",
    "cookielawinfo-*",
    "CookieScriptConsent",
    "cookieyes-consent",
    "didomi_token",
    "drift_aid",
    "drift_campaign_refresh",
    "driftt_aid",
    "euconsent*",
    "fs_uid",
    "hubspotutk",
    "intercom-*",
    "klaro",
    "li_fat_id",
    "li_giant",
    "moove_gdpr_popup",
    "mp_*_mixpanel",
    "notice_gdpr_prefs*",
    "notice_preferences*",
    "OptanonAlertBoxClosed",
    "OptanonConsent",
    "ph_*_posthog",
    "rl_anonymous_id",
    "rl_page_init_referrer",
    "rl_session",
    "rl_trait",
    "rl_user_id",
    "s_cc",
    "s_sq",
    "tarteaucitron",
    "usprivacy",
    "viewed_cookie_policy",
    "wsgi_isr_wrote",
)


@dataclass(frozen=True)
class Rule:
    """How the pages of one pattern are cached. Missing options come from the ``ISR`` that has the rule.

    :raises ConfigError: a value is impossible; names the option and says what to write.
    """

    revalidate: float | str | bool | None = o.option(
        None,
        o.LIFETIME,
        'how old a page gets before it is rendered anew: seconds; `"forever"` (or `False`): until invalidated; `0`: '
        'never cached; `"auto"`: as long as its own headers say; or a profile (`"minutes"`, `"hours"`, ...)',
        "-",
    )
    expire: float | None = o.option(
        None,
        o.PERIOD,
        "the age past which the old page is no longer served while a new one is made; counts from the end of "
        "the render",
        "unlimited",
    )
    tags: Any = o.option(
        None,
        o.TAGS,
        "tags of the page, for invalidation: a list, with `{param}` filled from the URL, or a callable that gets "
        "the parameters as a dict",
        "none",
    )
    query: tuple[str, ...] | None = o.option(
        None, o.NAMES, "query parameters that make a different page (any order, repeated values kept)", "none"
    )
    other_query: str | None = o.option(
        None,
        o.choice("bypass", "ignore", "key"),
        "what becomes of a request with other query parameters: passed to the app uncached, the parameters "
        "dropped (as Next.js does), or made part of the key",
        "bypass",
    )
    vary: Any = o.option(
        None,
        o.HEADERS,
        "request headers that make a different page; a dict maps a header to a function that narrows its value to few",
        "none",
    )
    cookies: tuple[str, ...] | None = o.option(None, o.NAMES, "cookies that make a different page", "none")
    paths: Any = o.option(
        None,
        o.PATHS,
        "the pages there are, for `wsgi-isr prerender`: paths, or dicts of the pattern's parameters; or a callable "
        "that returns them",
        "none",
    )
    dynamic_params: bool | None = o.option(
        None,
        o.FLAG,
        "`False`: a path that `paths` does not list is a 404, without calling the app",
        "true",
    )
    fallback: Any = o.option(
        None,
        o.FALLBACK,
        "what a visitor gets who asks for a page that was not made yet: the page, once it is made; or a shell, at "
        "once, with the page a moment later (crawlers always get the page)",
        "blocking",
    )
    statuses: tuple[int, ...] | None = o.option(
        None, o.STATUSES, "statuses that may be stored", "200 203 301 308 404 410"
    )
    negative_ttl: float | None = o.option(None, o.SECONDS, "how long a stored 404 or 410 lives, at most", "10")
    render_timeout: float | None = o.option(
        None, o.PERIOD, "the longest render: past it, its result is not stored and another worker may try", "30"
    )
    lock_timeout: float | None = o.option(
        None, o.SECONDS, "the longest a visitor waits for another process's render", "10"
    )
    max_body: int | None = o.option(None, o.SIZE, "larger answers stream through, unstored", "8 MiB")
    bypass: Callable[[Mapping[str, Any]], bool] | None = o.option(
        None, o.CALLABLE, "called with the environ: true keeps the request away from the cache", "none"
    )

    if not TYPE_CHECKING:  # a dataclass would raise a TypeError without the name that was meant

        def __new__(cls, *_args: Any, **options: Any) -> Rule:
            known = o.options_of(cls)
            for name in options:
                if name not in known:
                    raise o.unknown(name, known, "unknown option of a Rule")
            return super().__new__(cls)

    def __post_init__(self) -> None:
        o.check_all(self)

    @classmethod
    def of(cls, value: Any, pattern: str) -> Rule:
        """Return the rule for ``value``: a rule, a bare ``revalidate``, or a mapping of options."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            known = o.options_of(cls)
            for name in value:
                if name not in known:
                    raise o.unknown(str(name), known, f"unknown option of the rule {pattern!r}")
            return cls(**value)
        return cls(revalidate=value)


# The names of werkzeug's one string converter.
_CONVERTERS = {None: "string", "default": "string"}

RULE_DEFAULTS: dict[str, Any] = {
    "tags": (),
    "query": (),
    "other_query": "bypass",
    "vary": {},
    "cookies": (),
    "dynamic_params": True,
    "fallback": "blocking",
    "statuses": (200, 203, 301, 308, 404, 410),
    "negative_ttl": 10.0,
    "render_timeout": 30.0,
    "lock_timeout": 10.0,
    "max_body": 8 * 1024 * 1024,
}


Paths = tuple[str | Mapping[str, Any], ...] | Callable[[], Iterable[str | Mapping[str, Any]]]
TagTemplates = tuple[str, ...] | Callable[[Mapping[str, Any]], Iterable[str]]


def lease_for(render_timeout: float) -> float:
    """Return the ttl of a lock, in seconds, for renders that take at most ``render_timeout`` seconds.

    A render in progress renews its lease, so a short one costs nothing. It frees the page sooner after a killed worker.
    memcached counts whole seconds: below 3 s, a lease could lapse.
    """
    return max(3.0, min(5.0, render_timeout))


@dataclass(frozen=True)
class Policy:
    """A rule with all defaults filled in, as the rest of the package uses it.

    ``name`` is the pattern (``"*"``: everything unlisted). ``lifetime`` is ``None`` where the page's own headers
    decide; ``expire`` holds even then. ``is_off``: no rule covers these pages. ``lease`` is the ttl of the lock, in
    seconds: a killed worker blocks the page for at most this time.
    """

    name: str
    lifetime: Lifetime | None
    expire: float | None
    never: bool
    is_off: bool
    tags: TagTemplates
    query: frozenset[str]
    other_query: str
    vary: Mapping[str, Callable[[str], str] | None]
    cookies: tuple[str, ...]
    paths: Paths | None
    dynamic_params: bool
    fallback: Any
    statuses: frozenset[int]
    negative_ttl: float
    render_timeout: float
    lock_timeout: float
    max_body: int
    bypass: Callable[[Mapping[str, Any]], bool] | None

    @property
    def lease(self) -> float:
        return lease_for(self.render_timeout)

    @property
    def by_url_alone(self) -> bool:
        """Return whether method and URL alone decide which page it is."""
        return not (self.vary or self.cookies or self.bypass)

    @property
    def lists_all(self) -> bool:
        """Return whether ``paths`` lists all pages."""
        return self.paths is not None and not self.dynamic_params

    @property
    def has_shell(self) -> bool:
        """Return whether a client gets a shell while a page is rendered."""
        return bool(self.fallback != "blocking")

    @property
    def declares(self) -> tuple[str, ...]:
        """Return the request headers that make a different page, as a ``Vary`` names them."""
        return (*self.vary, *(("Cookie",) if self.cookies else ()))

    @property
    def varies_on(self) -> frozenset[str]:
        """Return the lower-case names of the request headers that are part of the key."""
        return frozenset(name.lower() for name in self.vary)


def _policy(
    name: str, rule: Rule, site: Rule, profiles: Mapping[str, tuple[float, float]], is_off: bool = False
) -> Policy:
    where = f"rule {name!r}: "

    def value(option: str) -> Any:
        for source in (rule, site):
            if getattr(source, option) is not None:
                return getattr(source, option)
        return RULE_DEFAULTS.get(option)

    revalidate, expire = value("revalidate"), value("expire")
    if revalidate == AUTO:
        revalidate = None
    if isinstance(revalidate, str):
        if revalidate not in profiles:
            raise o.unknown(where + f"revalidate={revalidate!r}", profiles, "there is no such profile")
        profile = profiles[revalidate]
        revalidate = profile[0]
        if rule.expire is None:
            # A profile is a pair: its ``expire`` precedes a site-wide default, but not the rule's.
            expire = profile[1]
    never = revalidate == 0 and revalidate is not False
    lifetime = None if revalidate is None else Lifetime(None if revalidate is False else float(revalidate), expire)
    if lifetime and not never and expire is not None and (lifetime.revalidate is None or expire < lifetime.revalidate):
        raise ConfigError(
            where + "expire",
            f"{expire:g} is below revalidate={revalidate!r}: every page would expire before it becomes stale",
            "make expire at least revalidate, or leave it out",
        )
    # Paths belong to one pattern: a rule does not inherit those of the site.
    paths = rule.paths if name != "*" else site.paths
    if rule.dynamic_params is False and paths is None:
        raise ConfigError(where + "dynamic_params", "no path is listed, so all would be a 404", "give paths as well")
    return Policy(
        name=name,
        paths=paths,
        lifetime=lifetime,
        expire=expire,
        never=never,
        is_off=is_off,
        tags=_templates(where, name, value("tags")),
        query=frozenset(item.encode().decode("latin-1") for item in value("query")),
        vary=dict(sorted(value("vary").items())),
        cookies=tuple(sorted(value("cookies"))),
        statuses=frozenset(value("statuses")),
        **{key: value(key) for key in _AS_THEY_ARE},
    )


_AS_THEY_ARE = (
    "other_query",
    "dynamic_params",
    "fallback",
    "negative_ttl",
    "render_timeout",
    "lock_timeout",
    "max_body",
    "bypass",
)


def _templates(where: str, pattern: str, tags: TagTemplates) -> TagTemplates:
    if not callable(tags):
        check_templates(where, tags, set(re.findall(r"<(?:[^<>]*:)?([^<>]*)>", pattern)))
    return tags


def check_templates(where: str, tags: Iterable[str], params: set[str]) -> None:
    """Check the ``{param}`` of tags against the parameters of the URL.

    :raises ConfigError: a tag names another parameter.
    """
    for tag in tags:
        try:
            names = {name for _, name, _, _ in Formatter().parse(tag) if name is not None}
        except ValueError as error:
            raise ConfigError(where + "tags", f"{tag!r}: {error}", "double a brace that is meant as one") from None
        for name in names - params:
            raise ConfigError(
                where + "tags",
                f"{tag!r} names {{{name}}}, which the pattern does not have",
                f"use {', '.join(sorted(params)) or 'none'}",
            )


def tags_of(policy: Policy, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tags that a policy gives to the page with these URL parameters."""
    if callable(policy.tags):
        tags = policy.tags(params)
        checked: tuple[str, ...] = o.TAGS.check(f"rule {policy.name!r}: tags", tags)
        return checked
    return tuple(tag.format_map(params) for tag in policy.tags)


class RuleSet:
    """All rules of a site, compiled once; the most specific pattern wins.

    :param rules: a mapping from pattern to :class:`Rule`, number, or mapping of options; or pairs.
    :param site: the options of the whole site; its ``revalidate`` is the rule of everything unlisted.
    :raises ConfigError: werkzeug refuses a pattern, two patterns are equal, or a value is impossible.
    """

    def __init__(
        self,
        rules: Mapping[str, Any] | Iterable[tuple[str, Any]],
        site: Rule,
        profiles: Mapping[str, tuple[float, float]] = PROFILES,
    ) -> None:
        pairs = list(rules.items()) if isinstance(rules, Mapping) else list(rules)
        self.policies: dict[str, Policy] = {}
        self.profiles = profiles
        shapes: dict[str, str] = {}
        routes = []
        for pattern, value in pairs:
            where = f"rule {pattern!r}"
            if not isinstance(pattern, str):
                raise ConfigError(where, "a pattern is text", "write it like '/blog/<slug>'")
            if (spelled := spelling(pattern)) != pattern:
                problem = "werkzeug would match this text literally, so the rule would match no page"
                raise ConfigError(where, problem, f"write {spelled!r}")
            if not pattern.startswith("/"):
                raise ConfigError(where, "a pattern starts with a slash", "write it like '/blog/<slug>'")
            # Two patterns that differ only in the names of their parameters match the same paths.
            shape = re.sub(r"<(?:([^:<>]*):)?[^<>]*>", lambda m: f"<{_CONVERTERS.get(m[1], m[1])}>", pattern)
            if shape in shapes:
                raise ConfigError(where, f"matches the same paths as {shapes[shape]!r}", "keep one of them")
            shapes[shape] = pattern
            try:
                routes.append(Route(pattern, endpoint=pattern))
                # Compiled alone, by one match: only a match compiles a pattern, and the error names no pattern.
                Map([Route(pattern, endpoint=pattern)], merge_slashes=False).bind("host").test("/x")
            except Exception as error:  # werkzeug raises a SyntaxError, an OverflowError ...
                raise ConfigError(where, str(error) or type(error).__name__, "see werkzeug's URL rules") from error
            self.policies[pattern] = _policy(pattern, _own(value, where), site, profiles)
        if (
            site.dynamic_params is False
            and not any(policy.paths for policy in self.policies.values())
            and not site.paths
        ):
            raise ConfigError("dynamic_params", "no path is listed, so all would be a 404", "give paths as well")
        # If some pages have rules, the app alone serves all others, unless `revalidate` is given for them.
        self.policies["*"] = _policy("*", Rule(), site, profiles, is_off=bool(pairs) and site.revalidate is None)
        # The app redirects: an additional slash makes another path, as in WSGI.
        self._adapter = Map(routes, merge_slashes=False, redirect_defaults=False).bind("host", "/")
        for policy in self.policies.values():
            if not callable(policy.paths):
                self.listed(policy)

    def match(self, path: str) -> tuple[Policy, Mapping[str, Any]]:
        """Return the policy and the URL's parameters for a decoded path below the app's mount point."""
        try:
            pattern, params = self._adapter.match(path, method="GET")
        except (HTTPException, RequestRedirect):
            return self.policies["*"], {}
        return self.policies[pattern], params

    def listed(self, policy: Policy) -> tuple[Listed, ...]:
        """Return the pages that a rule lists; a callable is called each time.

        :raises ConfigError: an item is no path of the rule. Exceptions of the callable pass through.
        """
        where = f"rule {policy.name!r}: paths"
        given = policy.paths() if callable(policy.paths) else policy.paths or ()
        return tuple(dict.fromkeys(self._listed(policy, where, one) for one in o.PATHS.check(where, given)))

    def _listed(self, policy: Policy, where: str, given: str | Mapping[str, Any]) -> Listed:
        if isinstance(given, Mapping):
            if policy.name == "*":
                raise ConfigError(where, f"{given!r} needs a pattern with parameters", "write the full path as text")
            try:
                # A parameter that the pattern lacks would become a part of the query.
                path, _, query = self._adapter.build(policy.name, dict(given)).partition("?")
            except Exception as error:  # a BuildError, or an exception of a converter
                problem = f"{given!r} does not fill the pattern"
                raise ConfigError(where, problem, "give a dict with each of its parameters") from error
        else:
            path, _, query = given.partition("?")
        path = o.parse_path(path, where)
        if self.match(path)[0] is not policy:
            raise ConfigError(where, f"{given!r} is a path of the rule {self.match(path)[0].name!r}", "list it there")
        return Listed(path, query)


class Listed(NamedTuple):
    """A listed page: its decoded path below the app's mount point, and its query as it is written."""

    path: str
    query: str = ""


def _own(value: Any, where: str) -> Rule:
    try:
        return Rule.of(value, where)
    except ConfigError as error:
        if error.option.startswith(where):
            raise
        raise ConfigError(f"{where}: {error.option}", error.problem, error.remedy) from None


#: Every option of a rule is also an option of the site: the default for rules without it.
RULE_OPTIONS = tuple(field.name for field in fields(Rule))
